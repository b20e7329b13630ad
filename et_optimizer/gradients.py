"""Gradients seen through a tensor index: sums over slices, and back.

An optimizer here asks two things of a gradient: sum its squares over the slices
of every mode, and multiply it by one number a slice of every mode. Both are
written once, for dense gradients and for the rows of sparse ones.

The gradient is held as a matrix: its rows are the leading axes of the tensor
index, its columns the trailing ones. The slice sums of any number of modes are
marginals of its row sums and column sums, and the product over all modes is a
row vector times a column vector. So whatever the level, the gradient is read for
its row sums, for its column sums and to apply the update, and the rest is small.
"""

import math

import keras
from keras import ops

# XLA's CPU reductions run several times faster on a few slabs added elementwise
# first (measured in benchmarks/); on small tensors that only adds compile time.
SLABS = 8
MIN_SLAB_ENTRIES = 2**17
# Of a small variable each mode is summed from the entries at once: its time goes
# into the number of operations, not into passes over it.
MAX_ENTRIES_IN_ONE_ROW = 2**12
# Repeated indices are found with one integer a row of the table, which beats
# sorting the indices until the table has this many times more rows than them.
MAX_SCRATCH_RATIO = 512


def see(gradient, index):
    """Sees a gradient through a tensor index.

    Args:
        gradient: A tensor of the variable's shape; or rows of it as TensorFlow's
            `tf.IndexedSlices`, where repeated indices add up.
        index: The variable's `TensorIndex`, of at least one slot.

    Returns:
        A `DenseGradient` or a `SparseGradient`.

    Raises:
        ValueError: if the gradient has another shape than the variable.
    """
    if hasattr(gradient, "indices") and hasattr(gradient, "dense_shape"):
        _check_shape(gradient.values.shape[1:], index.shape[1:])
        return SparseGradient(gradient, index)
    _check_shape(gradient.shape, index.shape)
    return DenseGradient(gradient, index)


class DenseGradient:
    """A gradient with a value for every entry of its variable.

    Attributes:
        index: The `TensorIndex`.
        matrix: The gradient in float32, of shape (rows, columns).
        row_axes, column_axes: The axes of the index behind rows and columns.
    """

    def __init__(self, gradient, index):
        self.index = index
        cut = index.cut if index.size > MAX_ENTRIES_IN_ONE_ROW else 0
        self.row_axes, self.column_axes = index.axes[:cut], index.axes[cut:]
        shape = (_length(self.row_axes), _length(self.column_axes))
        self.matrix = ops.reshape(ops.cast(gradient, "float32"), shape)

    def slice_sums(self):
        """Sums g² over every slice of every mode.

        Returns:
            A list of float32 tensors in the shapes of `index.slot_shapes`.
        """
        in_one_slice = self.index.slot_shapes == ((),)
        of_rows = _modes(self.row_axes) > 0
        of_columns = _modes(self.column_axes) > 0 or in_one_slice
        row_sums, column_sums = sums_of_squares(self.matrix, of_rows, of_columns)
        if in_one_slice:
            return [ops.sum(column_sums)]
        sums = self._row_slice_sums(row_sums) if of_rows else []
        return sums + _slice_sums(column_sums, self.column_axes)

    def at_slices(self, vectors):
        """Picks from one vector a mode what this gradient touches.

        Args:
            vectors: A list of tensors in the shapes of `index.slot_shapes`, or
                `None` for modes that have nothing to pick.

        Returns:
            A list of tensors for `factors`. A dense gradient touches
            every slice; the numbers of a sparse one's row modes come row by row,
            so that what is then computed from them costs no more than the rows.
        """
        return vectors

    def factors(self, picked):
        """One factor for the rows and one for the columns from one vector a mode.

        Args:
            picked: What `at_slices` picked, or elementwise functions of it.

        Returns:
            `(row_factor, column_factor)` of shapes (rows, 1) or () and (columns,)
            or (1,). Their product is, at every entry, the product of its slices'
            numbers.
        """
        if self.index.slot_shapes == ((),):
            return picked[0], ops.ones((1,), "float32")
        cut = _modes(self.row_axes)
        row_factor, column_factor = ops.ones((), "float32"), ops.ones((1,), "float32")
        if cut:
            row_factor = ops.expand_dims(self._row_factor(picked[:cut]), -1)
        if picked[cut:]:
            column_factor = _outer(picked[cut:], self.column_axes)
        return row_factor, column_factor

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

    def times(self, tensor):
        """The gradient times one number an entry, as a matrix: an update."""
        return ElementwiseUpdate(self, self.matrix * tensor)

    def restore(self, matrix):
        """Gives a matrix of this gradient's shape the form of the gradient."""
        return ops.reshape(matrix, self.index.shape)

    def _row_slice_sums(self, row_sums):
        return _slice_sums(row_sums, self.row_axes)

    def _row_factor(self, vectors):
        return _outer(vectors, self.row_axes)


class SparseGradient(DenseGradient):
    """Rows of a gradient; every other row of the variable has gradient 0.

    Attributes:
        matrix: Float32, shape (rows given, columns). Rows given for the same row
            of the variable are added up in one of them, the others are 0.
        rows: The variable's row behind each row of the matrix.
    """

    def __init__(self, gradient, index):
        self.index = index
        self._like = gradient
        width = math.prod(index.shape[1:])
        values = ops.reshape(ops.cast(gradient.values, "float32"), (-1, width))
        place = _common_place(gradient.indices, index.shape[0])
        self.matrix = ops.segment_sum(values, place, ops.shape(values)[0])
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
        if self.index.slot_shapes == ((),):
            return vectors
        digits = self._digits()
        picked = [
            None if vector is None else ops.take(vector, digit, axis=0)
            for vector, (digit, _) in zip(vectors, digits)
        ]
        return picked + vectors[len(digits) :]

    def restore(self, matrix):
        """Gives a matrix of this gradient's shape the form of the gradient."""
        values = ops.reshape(matrix, (-1, *self.index.shape[1:]))
        return type(self._like)(values, self._like.indices, self._like.dense_shape)

    def _row_slice_sums(self, row_sums):
        return [
            ops.segment_sum(row_sums, digits, size) for digits, size in self._digits()
        ]

    def _row_factor(self, vectors):
        return math.prod(vectors[1:], start=vectors[0])

    def _digits(self):
        """(digits, size) a row mode: the slice of that mode each row lies in."""
        rest, digits = self.rows, []
        for axis in reversed(self.row_axes):
            position, rest = rest % axis.length, rest // axis.length
            for size in reversed(axis.modes):
                digits.append((position % size, size))
                position = position // size
        return digits[::-1]


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
        width = self.gradient.matrix.shape[1:]
        columns = _barrier(ops.broadcast_to(self.column_factor, width))
        matrix = _barrier(self.gradient.matrix)
        sums, _ = sums_of_squares(matrix, True, False, columns)
        rows = ops.reshape(self.row_factor, (-1,))
        mean_square = ops.sum(rows * rows * sums) / self.gradient.index.size
        return self.scalar * ops.sqrt(mean_square)

    def times(self, scalar):
        """The update times a scalar, in the form of the gradient."""
        rows = self.row_factor * (self.scalar * scalar)
        matrix = self.gradient.matrix * rows * self.column_factor
        return self.gradient.restore(matrix)


class ElementwiseUpdate:
    """An update that is written out as a matrix."""

    def __init__(self, gradient, matrix):
        self.gradient = gradient
        self.matrix = matrix

    def root_mean_square(self):
        """The root mean square over all entries of the variable."""
        sums, _ = sums_of_squares(self.matrix, True, False)
        return ops.sqrt(ops.sum(sums) / self.gradient.index.size)

    def times(self, scalar):
        """The update times a scalar, in the form of the gradient."""
        return self.gradient.restore(self.matrix * scalar)


def sums_of_squares(matrix, of_rows, of_columns, column_scale=None):
    """Sums the squares of a matrix over its rows, its columns, or both.

    What a backend's compiler needs to do this in fast passes without writing the
    squares out is kept in this one function.

    Args:
        matrix: Float32 tensor of shape (rows, columns).
        of_rows, of_columns: Which sums are wanted.
        column_scale: Multiplies the matrix before it is squared: a tensor of
            shape (columns,).

    Returns:
        `(row_sums, column_sums)` of shapes (rows,) and (columns,); `None` for
        the one not wanted.
    """
    row_sums = column_sums = None
    if of_rows:
        row_sums = _sum_squares(matrix, 1, column_scale)
    if of_columns:
        # XLA would share the squares between the two sums and, having two
        # users for them, write them out: as much memory as the variable.
        matrix = _barrier(matrix) if of_rows else matrix
        column_sums = _sum_squares(matrix, 0, column_scale)
    return row_sums, column_sums


def _sum_squares(matrix, axis, column_scale=None):
    length = matrix.shape[axis]
    # Slabs of columns no narrower than the 16 float32 of a vector register, and of
    # rows no fewer than 4.
    count = min(SLABS, (length or 0) // (4 if axis == 0 else 16))
    if keras.backend.backend() == "jax" or not _worth_slabs(matrix, count):
        return ops.sum(_squares(matrix, 0, length, axis, column_scale), axis=axis)
    width = length // count
    starts = range(0, count * width, width)
    slabs = [_squares(matrix, s, s + width, axis, column_scale) for s in starts]
    sums = ops.sum(sum(slabs[1:], slabs[0]), axis=axis)
    if count * width < length:
        rest = _squares(matrix, count * width, length, axis, column_scale)
        sums = sums + ops.sum(rest, axis=axis)
    return sums


def _squares(matrix, start, stop, axis, column_scale):
    """The squares of rows (axis 0) or columns (axis 1) start to stop."""
    slab = matrix[start:stop] if axis == 0 else matrix[:, start:stop]
    if column_scale is not None:
        slab = slab * (column_scale if axis == 0 else column_scale[start:stop])
    return ops.square(slab)


def _worth_slabs(matrix, count):
    # A sparse gradient's number of rows may be unknown while tracing.
    if None in matrix.shape or count < 2:
        return False
    return math.prod(matrix.shape) >= MIN_SLAB_ENTRIES and min(matrix.shape) > 1


def _barrier(tensor):
    """Keeps a compiler from sharing work between the tensor and its copy."""
    if keras.backend.backend() != "jax":
        return tensor
    import jax

    return jax.lax.optimization_barrier(tensor)


def _slice_sums(sums, axes):
    """The sums over every slice of the modes of `axes` from those per position."""
    if not _modes(axes):
        return []
    sums = ops.reshape(sums, [axis.length for axis in axes])
    found = []
    for position, axis in enumerate(axes):
        if not axis.modes:
            continue
        marginal = _marginal(sums, position)
        if axis.cells > axis.length:
            marginal = ops.pad(marginal, [[0, axis.cells - axis.length]])
        cells = ops.reshape(marginal, axis.modes)
        found += [_marginal(cells, mode) for mode in range(len(axis.modes))]
    return found


def _marginal(tensor, kept):
    others = [axis for axis in range(len(tensor.shape)) if axis != kept]
    return ops.sum(tensor, axis=others) if others else tensor


def _outer(vectors, axes):
    """The product of one number a mode, for every position of `axes`, flattened."""
    along_axes, taken = [], 0
    for axis in axes:
        modes = vectors[taken : taken + len(axis.modes)]
        taken += len(axis.modes)
        if not modes:
            along_axes.append(ops.ones((axis.length,), "float32"))
        elif axis.cells > axis.length:
            along_axes.append(_outer_product(modes)[: axis.length])
        else:
            along_axes.append(modes[0])
    return _outer_product(along_axes)


def _outer_product(vectors):
    """The outer product of vectors, flattened in row-major order."""
    if len(vectors) == 1:
        return vectors[0]
    product = 1.0
    for axis, vector in enumerate(vectors):
        shape = [1] * len(vectors)
        shape[axis] = -1
        product = product * ops.reshape(vector, shape)
    return ops.reshape(product, (-1,))


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
