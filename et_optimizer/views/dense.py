"""A gradient with a value for every entry, viewed through a tensor index."""

import copy

from keras import ops

from et_optimizer.compilers import row_blocks
from et_optimizer.compilers.barriers import barrier, isolate_reduction, materialize
from et_optimizer.compilers.layouts import is_sharded, replicate
from et_optimizer.compilers.reductions import (
    MAX_ENTRIES_IN_ONE_ROW,
    MAXIMUM,
    SUM,
    propagate_nan,
    reduce_along,
)
from et_optimizer.views.axes import (
    MINIMUM,
    PRODUCT,
    broadcast_from_modes,
    count_modes,
    count_positions,
    reduce_to_modes,
)
from et_optimizer.views.updates import GradientUpdate, MaterializedUpdate

LARGEST_FACTOR = 2.0**120


class DenseView:
    """A gradient with a value for every entry of its variable.

    The gradient is a matrix: its rows are the leading axes of the tensor index, its
    columns the trailing ones. The slice sums of any number of modes are marginals of
    its row sums and column sums, and the product over all modes is a row vector times a
    column vector; so are maxima and minima. At every level the gradient is read once
    for its rows, once for its columns and once to apply the update. Where an index
    stacks tensors, there is one such matrix for each.

    Under `keras.distribution.ModelParallel`, on JAX, a gradient may be sharded. It is
    not reshaped then, which could gather it: rows and columns are positions along some
    dimensions of the variable. The marginals, which are small, are replicated.

    Args:
        gradient: A tensor of the variable's shape.
        index: The `TensorIndex`.
        as_matrix: Whether rows and columns are those of the variable as a matrix, if
            the axes of the index allow it.

    Attributes:
        index: The `TensorIndex`.
        given: The gradient in its own dtype, of shape (rows, columns), or (stack,
            rows, columns) where the index stacks tensors. If sharded, each of these
            keeps the variable's own dimensions.
        scale: A scalar that multiplies it, or `None`.
        row_axes, column_axes: The axes of the index behind rows and columns.
    """

    # The dimensions of stack, rows and columns, where they are not merged.
    _unmerged = None
    # Whether rows and columns are split between two dimensions of the variable.
    _between_dimensions = False
    scale = None
    # What `slice_sums` found.
    _sums = None

    def __init__(self, gradient, index, as_matrix=False):
        self.index = index
        self._between_dimensions = as_matrix and index.stack == 1
        self.given = self._as_matrix(gradient)

    @property
    def matrix(self):
        """The scaled gradient as a float32 matrix in the shape of `given`."""
        return self.part()

    def part(self, rows=None):
        """The matrix in float32, or the block `(start, count)` of its rows."""
        found = ops.cast(row_blocks.take(self.given, rows), "float32")
        return found if self.scale is None else found * self.scale

    def on_given(self, elementwise, factors):
        """An elementwise function of the matrix, as one of `given`.

        For reductions, which would materialize a matrix that is converted or scaled
        outside of them.

        Returns:
            `(elementwise, factors)` for `reduce_along` or `sum_of` on `given`.
        """
        if self.scale is None:

            def in_float32(given, *others):
                return elementwise(ops.cast(given, "float32"), *others)

            return in_float32, factors

        def scaled(given, scale, *others):
            return elementwise(ops.cast(given, "float32") * scale, *others)

        return scaled, (ops.reshape(self.scale, (1, 1)), *factors)

    @property
    def row_shape(self):
        """The dimensions of the matrix that are rows."""
        return (
            self._unmerged[1] if self._unmerged else (count_positions(self.row_axes),)
        )

    @property
    def column_shape(self):
        """The dimensions of the matrix that are columns."""
        if self._unmerged:
            return self._unmerged[2]
        return (count_positions(self.column_axes),)

    def slice_sums(self):
        """The sum of g² over every slice of every mode.

        Returns:
            A list of float32 tensors in the shapes of `index.slot_shapes`.
        """
        if self._sums is None:
            self._sums = self._over_slices(SUM, _squares)
        return self._sums

    def mean_square(self):
        """The mean of g² over all entries of the variable, a float32 scalar."""
        return ops.sum(self.slice_sums()[0] / self.index.size)

    def slice_maxima(self):
        """The largest g² of every slice of every mode; not finite if g is not.

        Returns:
            A list of float32 tensors in the shapes of `index.slot_shapes`.
        """
        maxima = self._over_slices(MAXIMUM, _squares)
        maxima = [isolate_reduction(vector) for vector in maxima]
        return propagate_nan(maxima, self.given)

    def slice_maxima_above(self, vectors, minima):
        """The largest, over every slice, of g² + the minimum over an entry's slices.

        Args:
            vectors: A list of tensors ≥ 0 in the shapes of `index.slot_shapes`: what
                this returned for an earlier gradient, or zeros, times anything ≤ 1. So
                every slice has an entry whose minimum is the slice's own value, and no
                result is below that value.
            minima: The result of `minima` for these vectors.

        Returns:
            A list of float32 tensors in the shapes of `index.slot_shapes`.
        """
        maxima = self._over_slices(MAXIMUM, _squares_above_minima, minima)
        return propagate_nan(maxima, self.given)

    def at_slices(self, vectors):
        """The values of those slices that this gradient touches.

        Args:
            vectors: A list of tensors in the shapes of `index.slot_shapes`, or
                `None` for modes that have no values.

        Returns:
            A list of tensors for `factors` and `minima`. A dense gradient touches
            every slice. For the row modes of a sparse one, values are gathered row by
            row, so that whatever is computed from them costs no more than the rows.
        """
        return vectors

    def factors(self, values):
        """One factor for the rows and one for the columns, from one vector per mode.

        Args:
            values: The result of `at_slices`, or elementwise functions of it.

        Returns:
            `(row_factor, column_factor)` of shapes (rows or 1, 1) and (1, columns
            or 1), behind the stack if there is one. Their product at an entry is the
            product of the values of the entry's slices.
        """
        return self._combined(values, PRODUCT)

    def minima(self, values):
        """One minimum for the rows and one for the columns, from one vector per mode.

        Args:
            values: As for `factors`.

        Returns:
            `(row_minima, column_minima)` in the shapes of `factors`. The smaller one at
            an entry is the smallest value of the entry's slices.
        """
        return self._materialized(*self._combined(values, MINIMUM))

    def product_factors(self, values):
        """As `factors`, for gradients that are multiplied by the product directly.

        XLA would otherwise multiply the modes' values again at every entry. No factor
        is infinite: times an entry of 0 it would give NaN.
        """
        rows, columns = self._materialized(*self.factors(values))
        return ops.minimum(rows, LARGEST_FACTOR), ops.minimum(columns, LARGEST_FACTOR)

    def plain(self):
        """The gradient itself, as an update."""
        return GradientUpdate(self)

    def from_average(self, averaged):
        """The update that is an averaged gradient, viewed as this gradient is."""
        is_same_matrix = averaged.row_shape == self.row_shape
        if is_same_matrix and not isinstance(averaged, MaterializedUpdate):
            return averaged
        other = self.as_given()
        other.given = ops.reshape(averaged.evaluate(), self.given.shape)
        return other.plain()

    def restore(self, matrix):
        """Gives a matrix of this gradient's shape the form of the gradient."""
        return ops.reshape(matrix, self.index.shape)

    def to_modes(self, tensor):
        """A tensor of the variable's shape in the shape `index.modes`, 0 in padding."""
        axes = self.index.axes
        tensor = ops.reshape(tensor, [axis.length for axis in axes])
        if any(axis.cells > axis.length for axis in axes):
            tensor = ops.pad(tensor, [(0, axis.cells - axis.length) for axis in axes])
        return ops.reshape(tensor, self.index.modes)

    def from_modes(self, tensor):
        """The update that is a tensor of shape `index.modes`."""
        axes = self.index.axes
        tensor = ops.reshape(tensor, [axis.cells for axis in axes])
        unpadded = tuple(slice(axis.length) for axis in axes)
        return MaterializedUpdate(ops.reshape(tensor[unpadded], self.index.shape))

    def times(self, scalar):
        """The gradient times a scalar, viewed in the same way."""
        other = copy.copy(self)
        other.scale = scalar if self.scale is None else self.scale * scalar
        if self._sums is not None:  # not to be computed again
            other._sums = [total * scalar * scalar for total in self._sums]
        return other

    def as_given(self):
        """The gradient without its scale."""
        other = copy.copy(self)
        other.scale = other._sums = None
        return other

    def _as_matrix(self, values):
        """The values as matrices; also sets the axes of rows and columns."""
        index = self.index
        in_one_row = index.size <= MAX_ENTRIES_IN_ONE_ROW and index.order > 2
        cut = 0 if in_one_row else index.cut
        if is_sharded() or self._between_dimensions:
            cut, dimensions = index.cut_between_dimensions()
        if is_sharded():
            sizes = index.stacked_shape
            stack = index.shape[: len(index.shape) - len(sizes)]
            rows, columns = sizes[:dimensions] or (1,), sizes[dimensions:] or (1,)
            self._unmerged = stack, rows, columns
        self.row_axes, self.column_axes = index.axes[:cut], index.axes[cut:]
        shape: tuple = (
            count_positions(self.row_axes),
            count_positions(self.column_axes),
        )
        if index.stack > 1:
            shape = (-1, *shape)  # a sparse gradient has a part of the stack
        if self._unmerged:
            shape = (*stack, *rows, *columns)
        return ops.reshape(values, shape)

    def _over_slices(self, reduction, elementwise, factors=()):
        """Reduces `elementwise` (see `reduce_along`) over every slice of every mode."""
        has_row_modes = count_modes(self.row_axes) > 0
        has_column_modes = count_modes(self.column_axes) > 0 or self.index.is_one_slice
        rows = None
        if has_row_modes:
            rows = self._reduce_along(-1, reduction, elementwise, factors)
        if has_column_modes:
            columns = self._reduce_along(-2, reduction, elementwise, factors, rows)
        if self.index.is_one_slice:
            return [reduction.along(columns, axis=-1)]
        reduced = self._over_row_slices(rows, reduction) if has_row_modes else []
        if has_column_modes:
            reduced += reduce_to_modes(columns, self.column_axes, reduction)
        return reduced

    def _reduce_along(self, axis, reduction, elementwise, factors, after=None):
        """`reduce_along` for the gradient's matrix, which may be sharded."""
        elementwise, factors = self.on_given(elementwise, factors)
        if self._unmerged is None:
            return reduce_along(
                self.given, axis, reduction, elementwise, factors, after
            )
        _, rows, columns = map(len, self._unmerged)
        if self.index.is_one_slice:
            over = range(-rows - columns, 0)
        elif axis == -1:
            over = range(-columns, 0)
        else:
            over = range(-rows - columns, -columns)
        given, *factors = barrier([self.given, *factors], after)
        found = reduction.along(elementwise(given, *factors), axis=tuple(over))
        stack = (self.index.stack,) if self.index.stack > 1 else ()
        return ops.reshape(replicate(found), (*stack, -1))

    def _over_row_slices(self, rows, reduction):
        return reduce_to_modes(rows, self.row_axes, reduction)

    def _combined(self, values, combination):
        """What the row modes and the column modes of every entry combine to."""
        rows = columns = ops.full((1, 1), combination.neutral, "float32")
        if self.index.is_one_slice:
            return self._unmerge(values[0][..., None, None], columns)
        cut = count_modes(self.row_axes)
        if cut:
            found = self._along_rows(values[:cut], combination)
            rows = ops.expand_dims(found, -1)
        if values[cut:]:
            found = broadcast_from_modes(values[cut:], self.column_axes, combination)
            columns = ops.expand_dims(found, -2)
        return self._unmerge(rows, columns)

    def _materialized(self, rows, columns):
        """Row and column vectors, materialized where they combine several modes."""
        if count_modes(self.row_axes) > 1:
            rows = materialize(rows)
        if count_modes(self.column_axes) > 1:
            columns = materialize(columns)
        return rows, columns

    def _unmerge(self, rows, columns):
        """Row and column vectors in a shape that broadcasts with the matrix."""
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
        # Otherwise the compiler shards everything that these are computed from.
        return replicate(rows), replicate(columns)

    def _along_rows(self, vectors, combination):
        return broadcast_from_modes(vectors, self.row_axes, combination)


def _squares(matrix):
    return ops.square(matrix)


def _squares_above_minima(matrix, row_minima, column_minima):
    return ops.minimum(row_minima, column_minima) + ops.square(matrix)
