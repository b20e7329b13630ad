"""Gradients seen through a tensor index: numbers for its slices, and back.

An optimizer here asks two things of a gradient: one number for every slice of every
mode (the sum of g² over it, or a maximum), and to be scaled by what the slices of
each entry say (their product, or their minimum). All of it is written once, for dense
gradients and for the rows of sparse ones.

The gradient is held as a matrix: its rows are the leading axes of the tensor
index, its columns the trailing ones. The slice sums of any number of modes are
marginals of its row sums and column sums, and the product over all modes is a
row vector times a column vector; so it is with maxima and minima. Whatever the level,
the gradient is read for its rows, for its columns and to apply the update, and the
rest is small. Where an index stacks tensors, there is one such matrix for each.

Under `keras.distribution.ModelParallel`, on JAX, a gradient may lie in parts on
several devices. It is not reshaped there, which could bring the parts together: rows
and columns are the positions on some dimensions of the variable. The marginals, which
are small, go to every device.
"""

import dataclasses
import math
from collections.abc import Callable

import keras
import numpy as np
from keras import ops

# XLA's CPU reductions run several times faster on a few slabs added elementwise
# first (measured in benchmarks/); on small tensors that only adds compile time.
SLABS = 8
MIN_SLAB_ENTRIES = 2**17
# Of a small variable of many modes each mode is summed from the entries at once: its
# time goes into the number of operations, not into passes over it.
MAX_ENTRIES_IN_ONE_ROW = 2**12
# Repeated indices are found with one integer a row of the table, which beats
# sorting the indices until the table has this many times more rows than them.
MAX_SCRATCH_RATIO = 512


@dataclasses.dataclass(frozen=True)
class Reduction:
    """How the numbers of a slice become one.

    Attributes:
        along: `(tensor, axis) -> tensor`, over axes of a tensor.
        pairwise: `(tensor, tensor) -> tensor`, entry by entry.
        by_segment: `(vector, segments, count) -> vector`, as `ops.segment_sum`.
    """

    along: Callable
    pairwise: Callable
    by_segment: Callable


def _largest(tensor, axis):
    """The largest of numbers ≥ 0 along axes, and 0 where there is none."""
    # A sparse gradient may have no rows, and while tracing their number is unknown.
    may_be_empty = 0 in tensor.shape or None in tensor.shape
    return ops.max(tensor, axis=axis, initial=0.0 if may_be_empty else None)


def _largest_by_segment(vector, segments, count):
    return ops.maximum(ops.segment_max(vector, segments, count), 0.0)


SUM = Reduction(ops.sum, ops.add, ops.segment_sum)
MAXIMUM = Reduction(_largest, ops.maximum, _largest_by_segment)


@dataclasses.dataclass(frozen=True)
class Combination:
    """How the numbers of an entry's slices become one: `pairwise`, and from what."""

    pairwise: Callable
    start: float


PRODUCT = Combination(ops.multiply, 1.0)
MINIMUM = Combination(ops.minimum, math.inf)


def see(gradient, index):
    """Sees a gradient through a tensor index.

    Args:
        gradient: A tensor of the variable's shape; or rows of it as TensorFlow's
            `tf.IndexedSlices`, where repeated indices add up.
        index: The variable's `TensorIndex`, of at least one slot.

    Returns:
        A `DenseGradient`, or one of its sparse kinds.

    Raises:
        ValueError: if the gradient has another shape than the variable.
    """
    if not _is_sparse(gradient):
        _check_shape(gradient.shape, index.shape)
        return DenseGradient(gradient, index)
    _check_shape(gradient.values.shape[1:], index.shape[1:])
    if index.stack > 1:
        return SparseStackGradient(gradient, index)
    return SparseGradient(gradient, index)


def made_dense(gradient, shape):
    """The gradient as a tensor of the variable's shape, whether or not it is sparse."""
    if _is_sparse(gradient):
        _check_shape(gradient.values.shape[1:], shape[1:])
    else:
        _check_shape(gradient.shape, shape)
    # The shape of one that is or was sparse may be unknown while tracing.
    return ops.reshape(ops.convert_to_tensor(gradient), shape)


def _is_sparse(gradient):
    return hasattr(gradient, "indices") and hasattr(gradient, "dense_shape")


class DenseGradient:
    """A gradient with a value for every entry of its variable.

    Attributes:
        index: The `TensorIndex`.
        matrix: The gradient in float32, of shape (rows, columns), or (stack, rows,
            columns) where the index stacks tensors. Under `ModelParallel` each of
            these is as many dimensions as in the variable.
        row_axes, column_axes: The axes of the index behind rows and columns.
    """

    # The dimensions of stack, rows and columns, where they are not merged.
    _unmerged = None

    def __init__(self, gradient, index):
        self.index = index
        self.matrix = self._as_matrix(gradient)

    def slice_sums(self):
        """Sums g² over every slice of every mode.

        Returns:
            A list of float32 tensors in the shapes of `index.slot_shapes`.
        """
        return self._over_slices(SUM, _squares)

    def slice_maxima(self):
        """The largest g² in every slice of every mode.

        Returns:
            A list of float32 tensors in the shapes of `index.slot_shapes`.
        """
        maxima = self._over_slices(MAXIMUM, _squares)
        return [_apart_from_what_follows(vector) for vector in maxima]

    def slice_maxima_above(self, vectors, minima):
        """The largest, in every slice, of g² + the smallest of its slices' numbers.

        Args:
            vectors: A list of tensors of numbers ≥ 0 in the shapes of
                `index.slot_shapes`: what this returned for another gradient, or zeros,
                times anything ≤ 1. So every slice has an entry at which its own number
                is the smallest, and no result is less than its slice's number.
            minima: What `minima` found for these vectors.

        Returns:
            A list of float32 tensors in the shapes of `index.slot_shapes`.
        """
        return self._over_slices(MAXIMUM, _squares_above_minima, minima)

    def at_slices(self, vectors):
        """Picks from one vector a mode what this gradient touches.

        Args:
            vectors: A list of tensors in the shapes of `index.slot_shapes`, or
                `None` for modes that have nothing to pick.

        Returns:
            A list of tensors for `factors` and `minima`. A dense gradient touches
            every slice; the numbers of a sparse one's row modes come row by row,
            so that what is then computed from them costs no more than the rows.
        """
        return vectors

    def factors(self, picked):
        """One factor for the rows and one for the columns from one vector a mode.

        Args:
            picked: What `at_slices` picked, or elementwise functions of it.

        Returns:
            `(row_factor, column_factor)` of shapes (rows or 1, 1) and (1, columns
            or 1), behind the stack if there is one. Their product is, at every
            entry, the product of its slices' numbers.
        """
        return self._combined(picked, PRODUCT)

    def minima(self, picked):
        """One number for the rows and one for the columns from one vector a mode.

        Args:
            picked: As for `factors`.

        Returns:
            `(row_minima, column_minima)` in the shapes of `factors`. Their minimum is,
            at every entry, the smallest of its slices' numbers.
        """
        rows, columns = self._combined(picked, MINIMUM)
        if _modes(self.row_axes) > 1:
            rows = _written_out(rows)
        if _modes(self.column_axes) > 1:
            columns = _written_out(columns)
        return rows, columns

    def scaled_by(self, picked):
        """The gradient times the product of its slices' numbers: an update.

        Args:
            picked: As for `factors`. Fast with one mode for the rows and one for the
                columns of the matrix; see `scaled_by_roots`.
        """
        return ScaledGradient(self, *self.factors(picked), 1.0)

    def scaled_by_roots(self, picked, scalar):
        """The gradient times √(product of its slices' numbers) · scalar: an update.

        The square root comes last on purpose. XLA fuses plain products into the
        pass over the variable, and would multiply the modes' numbers again at
        every entry; roots it computes once a row and once a column.
        """
        row_factor, column_factor = self.factors(picked)
        return ScaledGradient(
            self, ops.sqrt(row_factor), ops.sqrt(column_factor), scalar
        )

    def elementwise(self, numbers, factors):
        """Numbers made of the gradient and two factors, entry by entry: an update.

        Args:
            numbers: `(matrix, row_factor, column_factor) -> tensor`, elementwise.
            factors: A pair in the shapes of `factors`.
        """
        return ElementwiseUpdate(self, numbers, factors)

    def restore(self, matrix):
        """Gives a matrix of this gradient's shape the form of the gradient."""
        return ops.reshape(matrix, self.index.shape)

    def as_tensor(self):
        """The gradient as a tensor of shape `index.modes`, the padding 0."""
        axes = self.index.axes
        tensor = ops.reshape(self.matrix, [axis.length for axis in axes])
        if any(axis.cells > axis.length for axis in axes):
            tensor = ops.pad(tensor, [(0, axis.cells - axis.length) for axis in axes])
        return ops.reshape(tensor, self.index.modes)

    def from_tensor(self, tensor):
        """An update that is written out as a tensor of shape `index.modes`."""
        axes = self.index.axes
        tensor = ops.reshape(tensor, [axis.cells for axis in axes])
        unpadded = tuple(slice(axis.length) for axis in axes)
        return WrittenUpdate(ops.reshape(tensor[unpadded], self.index.shape))

    def _as_matrix(self, values):
        """The values as float32 matrices, and which axes their rows are."""
        index = self.index
        in_one_row = index.size <= MAX_ENTRIES_IN_ONE_ROW and index.order > 2
        cut = 0 if in_one_row else index.cut
        if _may_be_in_parts():
            cut, dimensions = index.cut_between_dimensions()
            sizes = index.stacked_shape
            stack = index.shape[: len(index.shape) - len(sizes)]
            rows, columns = sizes[:dimensions] or (1,), sizes[dimensions:] or (1,)
            self._unmerged = stack, rows, columns
        self.row_axes, self.column_axes = index.axes[:cut], index.axes[cut:]
        shape = (_length(self.row_axes), _length(self.column_axes))
        if index.stack > 1:
            shape = (-1, *shape)  # a sparse gradient has some of the stack
        if self._unmerged:
            shape = (*stack, *rows, *columns)
        return ops.reshape(ops.cast(values, "float32"), shape)

    def _over_slices(self, reduction, numbers, factors=()):
        """Reduces `numbers` (see `reduce_along`) over every slice of every mode."""
        of_rows = _modes(self.row_axes) > 0
        of_columns = _modes(self.column_axes) > 0 or self.index.is_one_slice
        rows = None
        if of_rows:
            rows = self._reduce_along(-1, reduction, numbers, factors)
        if of_columns:
            columns = self._reduce_along(-2, reduction, numbers, factors, after=rows)
        if self.index.is_one_slice:
            return [reduction.along(columns, axis=-1)]
        reduced = self._over_row_slices(rows, reduction) if of_rows else []
        if of_columns:
            reduced += _over_axes(columns, self.column_axes, reduction)
        return reduced

    def _reduce_along(self, axis, reduction, numbers, factors, after=None):
        """`reduce_along` for the gradient's matrix."""
        if self._unmerged is None:
            return reduce_along(self.matrix, axis, reduction, numbers, factors, after)
        _, rows, columns = map(len, self._unmerged)
        if self.index.is_one_slice:
            over = range(-rows - columns, 0)
        elif axis == -1:
            over = range(-columns, 0)
        else:
            over = range(-rows - columns, -columns)
        matrix, *factors = _apart([self.matrix, *factors], after)
        found = reduction.along(numbers(matrix, *factors), axis=tuple(over))
        stack = (self.index.stack,) if self.index.stack > 1 else ()
        return ops.reshape(_on_every_device(found), (*stack, -1))

    def _over_row_slices(self, rows, reduction):
        return _over_axes(rows, self.row_axes, reduction)

    def _combined(self, picked, combination):
        """What the row modes and what the column modes of an entry combine to."""
        rows = columns = ops.full((1, 1), combination.start, "float32")
        if self.index.is_one_slice:
            return self._unmerge(picked[0][..., None, None], columns)
        cut = _modes(self.row_axes)
        if cut:
            found = self._along_rows(picked[:cut], combination)
            rows = ops.expand_dims(found, -1)
        if picked[cut:]:
            found = _along_axes(picked[cut:], self.column_axes, combination)
            columns = ops.expand_dims(found, -2)
        return self._unmerge(rows, columns)

    def _unmerge(self, rows, columns):
        """Numbers for rows and for columns in a shape that goes with the matrix."""
        if self._unmerged is None:
            return rows, columns
        stack, along_rows, along_columns = self._unmerged
        ones = [1] * len(along_rows), [1] * len(along_columns)
        if rows.shape[-2] == 1:
            along_rows = ones[0]
        if columns.shape[-1] == 1:
            along_columns = ones[1]
        of_rows = stack if len(rows.shape) > 2 else ()
        of_columns = stack if len(columns.shape) > 2 else ()
        rows = ops.reshape(rows, (*of_rows, *along_rows, *ones[1]))
        columns = ops.reshape(columns, (*of_columns, *ones[0], *along_columns))
        # Or else the compiler cuts up all that these are computed from.
        return _on_every_device(rows), _on_every_device(columns)

    def _along_rows(self, vectors, combination):
        return _along_axes(vectors, self.row_axes, combination)


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
        return type(self._like)(values, self._like.indices, self._like.dense_shape)


class SparseGradient(RowsOfGradient):
    """Rows of a gradient whose index tells rows or entries of the variable apart.

    Attributes:
        matrix: Float32, shape (rows given, columns). Rows given for the same row
            of the variable are added up in one of them, the others are 0.
        rows: The variable's row behind each row of the matrix.
    """

    def __init__(self, gradient, index):
        super().__init__(gradient, index)
        width = math.prod(index.shape[1:])
        self.matrix = _added_up(gradient, index.shape[0], width)
        self.rows, cut = gradient.indices, index.leading_axes()
        if cut is None:
            # The index runs across the end of the first dimension, so it tells
            # entries apart and not rows: each entry becomes a row of its own.
            columns, cut = ops.arange(width, dtype="int64"), len(index.axes)
            first = ops.expand_dims(ops.cast(self.rows, "int64") * width, -1)
            self.rows = ops.reshape(first + columns, (-1,))
            self.matrix = ops.reshape(self.matrix, (-1, 1))
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
        return _combine(vectors, combination)

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
        matrix: Float32, shape (stacked tensors given, rows, columns). Of those given
            repeatedly one has the sum, the others are 0.
    """

    def __init__(self, gradient, index):
        super().__init__(gradient, index)
        self._table_rows = index.shape[0]
        width = math.prod(index.shape[1:])
        values = _added_up(gradient, self._table_rows, width)
        self.matrix = self._as_matrix(values)

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


class ScaledGradient:
    """An update that is a gradient times a row factor times a column factor.

    It is never written out: whoever applies it fuses it into that one pass.
    """

    def __init__(self, gradient, row_factor, column_factor, scalar):
        self.gradient = gradient
        self.row_factor = row_factor
        self.column_factor = column_factor
        self.scalar = scalar

    def root_mean_square(self):
        """The root mean square over all entries of the variable."""
        factors = self.row_factor, self.column_factor
        total = _sum_of(_scaled_squares, self.gradient.matrix, factors)
        return self.scalar * ops.sqrt(total / self.gradient.index.size)

    def times(self, scalar):
        """The update times a scalar, in the form of the gradient."""
        rows = self.row_factor * (self.scalar * scalar)
        matrix = self.gradient.matrix * rows * self.column_factor
        return self.gradient.restore(matrix)


class ElementwiseUpdate:
    """An update that is made of a gradient and two factors entry by entry.

    Like a `ScaledGradient` it is never written out.
    """

    def __init__(self, gradient, numbers, factors):
        self.gradient = gradient
        self.numbers = numbers
        self.factors = factors

    def root_mean_square(self):
        """The root mean square over all entries of the variable."""

        def squares(matrix, *factors):
            return ops.square(self.numbers(matrix, *factors))

        total = _sum_of(squares, self.gradient.matrix, self.factors)
        return ops.sqrt(total / self.gradient.index.size)

    def times(self, scalar):
        """The update times a scalar, in the form of the gradient."""
        matrix = self.numbers(self.gradient.matrix, *self.factors)
        return self.gradient.restore(matrix * scalar)


class WrittenUpdate:
    """An update that is a tensor of the variable's shape, times a scalar."""

    def __init__(self, tensor, scalar=1.0):
        self.tensor = tensor
        self.scalar = scalar

    def root_mean_square(self):
        """The root mean square over all entries of the variable."""
        return self.scalar * root_mean_square(self.tensor)

    def times(self, scalar):
        """The update times a scalar, in the form of the gradient."""
        return self.tensor * (self.scalar * scalar)


def root_mean_square(tensor):
    """The root mean square of all entries of a tensor, a float32 scalar."""
    return ops.sqrt(sum_of_squares(tensor) / math.prod(tensor.shape))


def sum_of_squares(tensor):
    """The sum of the squares of all entries of a tensor, a float32 scalar."""
    shape = tuple(tensor.shape)
    size = math.prod(shape)
    columns = shape[-1] if size > MAX_ENTRIES_IN_ONE_ROW else size
    matrix = ops.cast(tensor, "float32")
    if not _may_be_in_parts():
        matrix = ops.reshape(matrix, (-1, columns))
    return _sum_of(_squares, matrix)


def _sum_of(numbers, matrix, factors=()):
    """The sum over all of a matrix of numbers made of it; see `reduce_along`."""
    if _may_be_in_parts():
        matrix, *factors = _apart([matrix, *factors])
        return ops.sum(numbers(matrix, *factors))
    rows, columns = matrix.shape[-2:]
    axis = -1 if rows is None or rows < columns else -2
    sums = reduce_along(matrix, axis, SUM, numbers, factors)
    return ops.sum(_apart_from_what_follows(sums))


def reduce_along(matrix, axis, reduction, numbers, factors=(), after=None):
    """Reduces numbers made of a matrix over its columns or over its rows.

    What a backend's compiler needs to do this in a fast pass without writing the
    numbers out is kept in this one function.

    Args:
        matrix: Float32 tensor of shape (..., rows, columns).
        axis: -1 for one result a row, -2 for one a column.
        reduction: A `Reduction`.
        numbers: `(matrix, *factors) -> tensor` of the matrix's shape, elementwise.
        factors: `()`, or a tensor of shape (..., rows or 1, 1) and one of shape
            (..., 1, columns or 1).
        after: A tensor that is to be computed before, if any.

    Returns:
        A tensor of shape (..., rows) or (..., columns).
    """
    # XLA would share the numbers with whatever else they are computed for and, having
    # two users for them, write them out: as much memory as the variable.
    matrix, *factors = _apart([matrix, *factors], after)
    length = matrix.shape[axis]
    # Slabs of columns no narrower than the 16 float32 of a vector register, and of
    # rows no fewer than 4.
    count = min(SLABS, (length or 0) // (4 if axis == -2 else 16))
    if keras.backend.backend() == "jax" or not _worth_slabs(matrix, count):
        return reduction.along(numbers(matrix, *factors), axis=axis)

    def slab(start, stop):
        parts = (_part(tensor, axis, start, stop) for tensor in (matrix, *factors))
        return numbers(*parts)

    width = length // count
    merged = slab(0, width)
    for start in range(width, count * width, width):
        merged = reduction.pairwise(merged, slab(start, start + width))
    reduced = reduction.along(merged, axis=axis)
    if count * width < length:
        rest = reduction.along(slab(count * width, length), axis=axis)
        reduced = reduction.pairwise(reduced, rest)
    return reduced


def _squares(matrix):
    return ops.square(matrix)


def _scaled_squares(matrix, row_factor, column_factor):
    return ops.square(matrix * row_factor * column_factor)


def _squares_above_minima(matrix, row_minima, column_minima):
    return ops.minimum(row_minima, column_minima) + ops.square(matrix)


def _part(tensor, axis, start, stop):
    """Rows (axis -2) or columns (axis -1) start to stop, or the one there is."""
    if tensor.shape[axis] == 1:
        return tensor
    return tensor[..., start:stop, :] if axis == -2 else tensor[..., start:stop]


def _worth_slabs(matrix, count):
    # A sparse gradient's number of rows may be unknown while tracing.
    if None in matrix.shape or count < 2:
        return False
    return math.prod(matrix.shape) >= MIN_SLAB_ENTRIES and min(matrix.shape[-2:]) > 1


def _apart(tensors, after=None):
    """The same tensors, of which the compiler does not know that they are the same."""
    if keras.backend.backend() != "jax":
        return tensors
    import jax

    # Equal barriers are merged; one that also waits for something else is not equal.
    waiting = tensors if after is None else [*tensors, after]
    return jax.lax.optimization_barrier(waiting)[: len(tensors)]


def _apart_from_what_follows(reduced):
    """The same tensor, a reduction's result, with nothing fused into the reduction.

    On JAX, XLA:CPU takes up to eighteen times as long for a large reduction with which
    it has fused what follows.
    """
    return _written_out(reduced) if keras.backend.backend() == "jax" else reduced


def _written_out(tensor):
    """The same tensor, which XLA computes by itself, once and not anew at every use.

    XLA fuses a minimum over modes into the pass over the variable, and would find it
    again for every entry; a reduction it never fuses that way. This one is over the
    tensor and -inf, in a form that XLA does not see through.
    """
    either = ops.where(np.array([True, False]), tensor[..., None], -math.inf)
    return ops.max(either, axis=-1)


def _over_axes(numbers, axes, reduction):
    """Reduces numbers per position over every slice of the modes of `axes`.

    Args:
        numbers: Shape (positions,) or (stack, positions).
        axes: The axes that index the positions.
        reduction: A `Reduction`.

    Returns:
        A list of tensors of shape (slices,) or (stack, slices), one a mode.
    """
    if not _modes(axes):
        return []
    stack = (-1,) if len(numbers.shape) > 1 else ()
    numbers = ops.reshape(numbers, (*stack, *(axis.length for axis in axes)))
    found = []
    for position, axis in enumerate(axes):
        if not axis.modes:
            continue
        marginal = _marginal(numbers, position + len(stack), stack, reduction)
        if axis.cells > axis.length:
            unpadded = [[0, 0]] * len(stack)
            marginal = ops.pad(marginal, [*unpadded, [0, axis.cells - axis.length]])
        cells = ops.reshape(marginal, (*stack, *axis.modes))
        found += [
            _marginal(cells, mode + len(stack), stack, reduction)
            for mode in range(len(axis.modes))
        ]
    return found


def _marginal(tensor, kept, stack, reduction):
    axes = range(len(stack), len(tensor.shape))
    others = tuple(axis for axis in axes if axis != kept)
    return reduction.along(tensor, axis=others) if others else tensor


def _along_axes(vectors, axes, combination):
    """Combines one number a mode at every position of `axes`, flattened."""
    along_axes, taken = [], 0
    for axis in axes:
        modes = vectors[taken : taken + len(axis.modes)]
        taken += len(axis.modes)
        if not modes:
            along_axes.append(ops.full((axis.length,), combination.start, "float32"))
        elif axis.cells > axis.length:
            along_axes.append(_outer(modes, combination)[..., : axis.length])
        else:
            along_axes.append(modes[0])
    return _outer(along_axes, combination)


def _outer(vectors, combination):
    """Combines vectors at every cell of their grid, flattened in row-major order.

    Args:
        vectors: Tensors of shape (length,) or, all of them, (stack, length).
        combination: A `Combination`.

    Returns:
        A tensor of shape (cells,) or (stack, cells).
    """
    if len(vectors) == 1:
        return vectors[0]
    stack = (-1,) if len(vectors[0].shape) > 1 else ()
    reshaped = []
    for axis, vector in enumerate(vectors):
        shape = [1] * len(vectors)
        shape[axis] = vector.shape[-1]
        reshaped.append(ops.reshape(vector, (*stack, *shape)))
    cells = math.prod(vector.shape[-1] for vector in vectors)
    return ops.reshape(_combine(reshaped, combination), (*stack, cells))


def _combine(tensors, combination):
    combined = tensors[0]
    for tensor in tensors[1:]:
        combined = combination.pairwise(combined, tensor)
    return combined


def _added_up(gradient, table_rows, width):
    """The rows given as (rows given, width), repeated ones added up in one of them."""
    values = ops.reshape(ops.cast(gradient.values, "float32"), (-1, width))
    place = _common_place(gradient.indices, table_rows)
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


def _may_be_in_parts():
    """Whether a tensor may lie in parts on several devices."""
    if keras.backend.backend() != "jax":
        return False
    distribution = keras.distribution.distribution()
    return isinstance(distribution, keras.distribution.ModelParallel)


def _on_every_device(tensor):
    """The same tensor, all of it on every device."""
    mesh = keras.distribution.distribution().device_mesh
    layout = keras.distribution.TensorLayout([None] * len(tensor.shape), mesh)
    return keras.distribution.distribute_tensor(tensor, layout)


def _check_shape(received, expected):
    if None not in received and tuple(received) != expected:
        raise ValueError(
            f"A gradient must have its variable's shape; received {tuple(received)} "
            f"for {expected}. Check the order of gradients and variables."
        )


def _length(axes):
    return math.prod(axis.length for axis in axes)


def _modes(axes):
    return sum(len(axis.modes) for axis in axes)
