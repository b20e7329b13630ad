"""Rows of a gradient, as embeddings have them, seen through a tensor index."""

import dataclasses
import math

from keras import ops

from et_optimizer.compilers.bits import entries_of
from et_optimizer.views.axes import combine
from et_optimizer.views.dense import DenseGradient

# Repeated indices are found with one integer a row of the table, which beats
# sorting the indices until the table has this many times more rows than them.
MAX_SCRATCH_RATIO = 512


class RowsOfGradient(DenseGradient):
    """Rows of a gradient; every other row of the variable has gradient 0."""

    def __init__(self, gradient, index):
        self.index = index
        self._like = gradient

    def slice_maxima_above(self, vectors, minima):
        """The largest of g² + minimum, as if every row were given; see the base."""
        maxima = super().slice_maxima_above(vectors, minima)
        # Of the rows not given, where g = 0, none has more than the slice's own
        # number; and as much as that there is at some entry of the slice.
        return [ops.maximum(*pair) for pair in zip(vectors, maxima)]

    def restore(self, matrix):
        """Gives a matrix of this gradient's shape the form of the gradient."""
        values = ops.reshape(matrix, (-1, *self.index.shape[1:]))
        return self._like.in_form(values)


class SparseGradient(RowsOfGradient):
    """Rows of a gradient whose index tells rows or entries of the variable apart.

    Attributes:
        given: Float32, shape (rows given, columns). Rows given for the same row
            of the variable are added up in one of them, the others are 0.
        rows: The variable's row behind each row of the matrix.
    """

    def __init__(self, gradient, index):
        super().__init__(gradient, index)
        width = math.prod(index.shape[1:])
        self.given = _added_up(gradient, index.shape[0], width)
        self.rows, cut = gradient.indices, index.leading_axes()
        if cut is None:
            # The index runs across the end of the first dimension, so it tells
            # entries apart and not rows: each entry becomes a row of its own.
            columns, cut = ops.arange(width, dtype="int64"), len(index.axes)
            first = ops.expand_dims(ops.cast(self.rows, "int64") * width, -1)
            self.rows = ops.reshape(first + columns, (-1,))
            self.given = ops.reshape(self.given, (-1, 1))
        self.row_axes, self.column_axes = index.axes[:cut], index.axes[cut:]

    def at_slices(self, vectors):
        """Picks from one vector a mode what this gradient touches; see the base."""
        if self.index.is_one_slice:
            return vectors
        digits = self._digits()
        picked = [
            None if vector is None else ops.take(vector, digit, axis=0)
            for vector, (digit, _) in zip(vectors, digits)
        ]
        return picked + vectors[len(digits) :]

    def _over_row_slices(self, rows, reduction):
        return [
            reduction.by_segment(rows, digits, size) for digits, size in self._digits()
        ]

    def _along_rows(self, vectors, combination):
        return combine(vectors, combination)

    def _digits(self):
        """(digits, size) a row mode: the slice of that mode each row lies in."""
        rest, digits = self.rows, []
        for axis in reversed(self.row_axes):
            position, rest = rest % axis.length, rest // axis.length
            for size in reversed(axis.modes):
                digits.append((position % size, size))
                position = position // size
        return digits[::-1]


class SparseStackGradient(RowsOfGradient):
    """Rows of a gradient whose index stacks tensors: some of the stack.

    Attributes:
        given: Float32, shape (stacked tensors given, rows, columns). Of those given
            repeatedly one has the sum, the others are 0.
    """

    def __init__(self, gradient, index):
        super().__init__(gradient, index)
        self._table_rows = index.shape[0]
        width = math.prod(index.shape[1:])
        values = _added_up(gradient, self._table_rows, width)
        self.given = self._as_matrix(values)

    def at_slices(self, vectors):
        """Picks from one vector a mode what this gradient touches; see the base."""
        return [None if v is None else self._picked(v) for v in vectors]

    def _picked(self, vector):
        by_row = ops.reshape(vector, (self._table_rows, -1))
        picked = ops.take(by_row, self._like.indices, axis=0)
        return ops.reshape(picked, (-1, *vector.shape[1:]))

    def _over_slices(self, reduction, numbers, factors=()):
        given = super()._over_slices(reduction, numbers, factors)
        return [
            self._into_stack(vector, shape, reduction)
            for vector, shape in zip(given, self.index.slot_shapes)
        ]

    def _into_stack(self, vector, shape, reduction):
        by_row = ops.reshape(vector, (-1, math.prod(shape) // self._table_rows))
        table = reduction.by_segment(by_row, self._like.indices, self._table_rows)
        return ops.reshape(table, shape)


def values_of_rows(value, rows, moved):
    """What the rows of a table are after a step; alike for those given repeatedly.

    Args:
        value: The table.
        rows: What is subtracted, `Rows`.
        moved: As of `et_optimizer.views.gradients.take_from`.
    """
    width = math.prod(value.shape[1:])
    place = _common_place(rows.indices, value.shape[0])
    change = ops.take(_added_up_at(place, rows, width), place, axis=0)
    before = ops.take(value, rows.indices, axis=0)

    def entries(first):
        of_rows = ops.expand_dims(ops.cast(rows.indices, "int32") * width, -1)
        return of_rows + entries_of((1, width), first)

    found = moved(ops.reshape(before, (-1, width)), change, entries)
    return ops.reshape(found, (-1, *value.shape[1:]))


def added_up(rows, shape):
    """The same gradient, of whose repeated rows one has the sum and others are 0.

    Args:
        rows: `Rows`.
        shape: The variable's shape.
    """
    total = _added_up(rows, shape[0], math.prod(shape[1:]))
    total = ops.reshape(ops.cast(total, rows.dtype), (-1, *shape[1:]))
    return dataclasses.replace(rows, values=total)


def _added_up(gradient, table_rows, width):
    """The rows given as (rows given, width), repeated ones added up in one of them."""
    place = _common_place(gradient.indices, table_rows)
    return _added_up_at(place, gradient, width)


def _added_up_at(place, gradient, width):
    """The same, where all rows that are repeated have one position in common."""
    values = ops.reshape(ops.cast(gradient.values, "float32"), (-1, width))
    return ops.segment_sum(values, place, ops.shape(values)[0])


def _common_place(indices, table_rows):
    """For each position, one position that all of the same index agree on."""
    count = indices.shape[0]
    if count is not None and table_rows <= MAX_SCRATCH_RATIO * count:
        last = ops.segment_max(ops.arange(count), indices, table_rows)
        return ops.take(last, indices, axis=0)
    count = ops.shape(indices)[0]
    order = ops.argsort(indices)
    ordered = ops.take(indices, order, axis=0)
    is_new = ops.cast(ordered[1:] != ordered[:-1], "int32")
    run = ops.cumsum(ops.concatenate([ops.zeros_like(order[:1]), is_new]))
    last_of_run = ops.segment_max(order, run, count)
    run_of_position = ops.segment_sum(run, order, count)
    return ops.take(last_of_run, run_of_position, axis=0)
