"""Sparse gradients, as embeddings have them, viewed through a tensor index."""

import dataclasses
import math

from keras import ops

from et_optimizer.compilers.bits import positions
from et_optimizer.views.axes import combine
from et_optimizer.views.dense import DenseView

# Duplicates are found with one integer per row of the table, which is faster than
# sorting the indices until the table has this many times more rows than there are.
MAX_SCRATCH_RATIO = 512


class SparseRowsView(DenseView):
    """Some rows of a gradient; the gradient of every other row is 0."""

    def __init__(self, gradient, index):
        self.index = index
        self._gradient = gradient

    def slice_maxima_above(self, vectors, minima):
        """The largest g² + minimum, as if every row were given; see the base."""
        maxima = super().slice_maxima_above(vectors, minima)
        # In the other rows g = 0: there no entry exceeds its slice's own value, and
        # some entry of the slice reaches it.
        return [ops.maximum(*pair) for pair in zip(vectors, maxima)]

    def restore(self, matrix):
        """Gives a matrix of this gradient's shape the form of the gradient."""
        values = ops.reshape(matrix, (-1, *self.index.shape[1:]))
        return self._gradient.with_values(values)


class SparseView(SparseRowsView):
    """Some rows of a gradient, viewed through an index without a stack.

    Attributes:
        given: Float32, shape (rows given, columns). Duplicates are summed in one of
            them; the others are 0.
        rows: The row of the variable behind each row of the matrix.
    """

    def __init__(self, gradient, index):
        super().__init__(gradient, index)
        width = math.prod(index.shape[1:])
        self.given = _summed(gradient, index.shape[0], width)
        self.rows, cut = gradient.indices, index.leading_axes()
        if cut is None:
            # An axis of the index crosses the end of the first dimension, so that its
            # positions are entries and not rows: each entry becomes a row of its own.
            columns, cut = ops.arange(width, dtype="int64"), len(index.axes)
            first = ops.expand_dims(ops.cast(self.rows, "int64") * width, -1)
            self.rows = ops.reshape(first + columns, (-1,))
            self.given = ops.reshape(self.given, (-1, 1))
        self.row_axes, self.column_axes = index.axes[:cut], index.axes[cut:]

    def at_slices(self, vectors):
        """The values of those slices that this gradient touches; see the base."""
        if self.index.is_one_slice:
            return vectors
        digits = self._digits()
        gathered = [
            None if vector is None else ops.take(vector, digit, axis=0)
            for vector, (digit, _) in zip(vectors, digits)
        ]
        return gathered + vectors[len(digits) :]

    def _over_row_slices(self, rows, reduction):
        return [
            reduction.by_segment(rows, digits, size) for digits, size in self._digits()
        ]

    def _along_rows(self, vectors, combination):
        return combine(vectors, combination)

    def _digits(self):
        """(digits, size) for every row mode: the slice that each row belongs to."""
        rest, digits = self.rows, []
        for axis in reversed(self.row_axes):
            position, rest = rest % axis.length, rest // axis.length
            for size in reversed(axis.modes):
                digits.append((position % size, size))
                position = position // size
        return digits[::-1]


class SparseStackView(SparseRowsView):
    """Some rows of a gradient, viewed through an index that stacks tensors.

    Attributes:
        given: Float32, shape (stacked tensors given, rows, columns). Duplicates are
            summed in one of them; the others are 0.
    """

    def __init__(self, gradient, index):
        super().__init__(gradient, index)
        self._table_rows = index.shape[0]
        width = math.prod(index.shape[1:])
        self.given = self._as_matrix(_summed(gradient, self._table_rows, width))

    def at_slices(self, vectors):
        """The values of those slices that this gradient touches; see the base."""
        return [None if v is None else self._gathered(v) for v in vectors]

    def _gathered(self, vector):
        by_row = ops.reshape(vector, (self._table_rows, -1))
        gathered = ops.take(by_row, self._gradient.indices, axis=0)
        return ops.reshape(gathered, (-1, *vector.shape[1:]))

    def _over_slices(self, reduction, elementwise, factors=()):
        given = super()._over_slices(reduction, elementwise, factors)
        return [
            self._scattered(vector, shape, reduction)
            for vector, shape in zip(given, self.index.slot_shapes)
        ]

    def _scattered(self, vector, shape, reduction):
        by_row = ops.reshape(vector, (-1, math.prod(shape) // self._table_rows))
        indices = self._gradient.indices
        table = reduction.by_segment(by_row, indices, self._table_rows)
        return ops.reshape(table, shape)


def subtract_from_rows(value, rows, subtract):
    """The rows of a table after a step; duplicates get the same value.

    Args:
        value: The table.
        rows: What the step subtracts, `SparseRows`.
        subtract: As in `et_optimizer.views.gradients.subtract_from`.
    """
    width = math.prod(value.shape[1:])
    common = _common_position(rows.indices, value.shape[0])
    change = ops.take(_summed_at(common, rows, width), common, axis=0)
    before = ops.take(value, rows.indices, axis=0)

    def row_positions(first):
        of_rows = ops.expand_dims(ops.cast(rows.indices, "int32") * width, -1)
        return of_rows + positions((1, width), first)

    found = subtract(ops.reshape(before, (-1, width)), change, row_positions)
    return ops.reshape(found, (-1, *value.shape[1:]))


def sum_duplicates(rows, shape):
    """The same gradient, with the sum of duplicates in one of them and 0 in the others.

    Args:
        rows: `SparseRows`.
        shape: The variable's shape.
    """
    total = _summed(rows, shape[0], math.prod(shape[1:]))
    total = ops.reshape(ops.cast(total, rows.dtype), (-1, *shape[1:]))
    return dataclasses.replace(rows, values=total)


def _summed(gradient, table_rows, width):
    """The values as (rows given, width), duplicates summed in one of them."""
    common = _common_position(gradient.indices, table_rows)
    return _summed_at(common, gradient, width)


def _summed_at(common, gradient, width):
    """The same, for duplicates with a known common position."""
    values = ops.reshape(ops.cast(gradient.values, "float32"), (-1, width))
    return ops.segment_sum(values, common, ops.shape(values)[0])


def _common_position(indices, table_rows):
    """For each given row, one position that all rows with its index agree on."""
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
