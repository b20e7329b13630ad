"""A gradient with a value for every entry, seen through a tensor index."""

import copy

from keras import ops

from et_optimizer.compilers import row_blocks
from et_optimizer.compilers.layouts import may_be_in_parts, on_every_device
from et_optimizer.compilers.reductions import (
    MAX_ENTRIES_IN_ONE_ROW,
    MAXIMUM,
    SUM,
    apart,
    apart_from_what_follows,
    past_no_nan,
    reduce_along,
    written_out,
)
from et_optimizer.views.axes import (
    MINIMUM,
    PRODUCT,
    along_axes,
    length_of,
    modes_of,
    over_axes,
)
from et_optimizer.views.updates import (
    ElementwiseUpdate,
    PlainGradient,
    ScaledGradient,
    WrittenUpdate,
)

# No product of factors is infinite: times a gradient of 0 it would be no number.
LARGEST = 2.0**120


class DenseGradient:
    """A gradient with a value for every entry of its variable.

    Attributes:
        index: The `TensorIndex`.
        given: The gradient in its own dtype, of shape (rows, columns), or (stack,
            rows, columns) where the index stacks tensors. Under `ModelParallel` each of
            these is as many dimensions as in the variable.
        scale: A scalar that it is multiplied by, or `None`.
        row_axes, column_axes: The axes of the index behind rows and columns.
    """

    # The dimensions of stack, rows and columns, where they are not merged.
    _unmerged = None
    # Whether the matrix is cut between two dimensions of the variable.
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
        """The gradient, scaled, as a matrix in the shape of `given`."""
        return self.part()

    def part(self, rows=None):
        """The matrix in float32, or `(start, count)` of its rows."""
        found = ops.cast(row_blocks.take(self.given, rows), "float32")
        return found if self.scale is None else found * self.scale

    def of_given(self, numbers, factors):
        """What a function of the matrix and of factors is as one of `given`.

        For reductions: a matrix in another dtype or scaled would be written out.

        Returns:
            `(numbers, factors)` for `reduce_along`, or `sum_of`, on `given`.
        """
        if self.scale is None:

            def in_float32(given, *others):
                return numbers(ops.cast(given, "float32"), *others)

            return in_float32, factors

        def of_given(given, scale, *others):
            return numbers(ops.cast(given, "float32") * scale, *others)

        return of_given, (ops.reshape(self.scale, (1, 1)), *factors)

    @property
    def row_shape(self):
        """The dimensions of the matrix that are rows: one, or under `ModelParallel`
        the variable's own."""
        return self._unmerged[1] if self._unmerged else (length_of(self.row_axes),)

    @property
    def column_shape(self):
        """The dimensions of the matrix that are columns; see `row_shape`."""
        return self._unmerged[2] if self._unmerged else (length_of(self.column_axes),)

    def slice_sums(self):
        """Sums g² over every slice of every mode.

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
        """The largest g² in every slice of every mode; not finite where one is not.

        Returns:
            A list of float32 tensors in the shapes of `index.slot_shapes`.
        """
        maxima = self._over_slices(MAXIMUM, _squares)
        maxima = [apart_from_what_follows(vector) for vector in maxima]
        return past_no_nan(maxima, self.given)

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
        maxima = self._over_slices(MAXIMUM, _squares_above_minima, minima)
        return past_no_nan(maxima, self.given)

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
        if modes_of(self.row_axes) > 1:
            rows = written_out(rows)
        if modes_of(self.column_axes) > 1:
            columns = written_out(columns)
        return rows, columns

    def scaled_by(self, picked, scalar=1.0):
        """The gradient times the product of its slices' numbers: an update.

        Args:
            picked: As for `factors`.
            scalar: What the update is multiplied by.
        """
        rows, columns = self.factors(picked)
        # As in `scaled_by_roots`; with one mode there is nothing to multiply.
        if modes_of(self.row_axes) > 1:
            rows = written_out(rows)
        if modes_of(self.column_axes) > 1:
            columns = written_out(columns)
        rows, columns = ops.minimum(rows, LARGEST), ops.minimum(columns, LARGEST)
        return ScaledGradient(self, rows, columns, scalar)

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

    def plain(self):
        """The gradient itself, as an update."""
        return PlainGradient(self)

    def with_values(self, values):
        """Another gradient, of the variable's shape, seen in the same way."""
        other = self.as_given()
        other.given = ops.reshape(values, self.given.shape)
        return other

    def times(self, scalar):
        """The gradient times a scalar, seen in the same way."""
        other = copy.copy(self)
        other.scale = scalar if self.scale is None else self.scale * scalar
        if self._sums is not None:  # which need not be found again
            other._sums = [total * scalar * scalar for total in self._sums]
        return other

    def as_given(self):
        """The gradient without its scale."""
        other = copy.copy(self)
        other.scale = other._sums = None
        return other

    def from_tensor(self, tensor):
        """An update that is written out as a tensor of shape `index.modes`."""
        axes = self.index.axes
        tensor = ops.reshape(tensor, [axis.cells for axis in axes])
        unpadded = tuple(slice(axis.length) for axis in axes)
        return WrittenUpdate(ops.reshape(tensor[unpadded], self.index.shape))

    def _as_matrix(self, values):
        """The values as matrices; finds, too, which axes their rows are."""
        index = self.index
        in_one_row = index.size <= MAX_ENTRIES_IN_ONE_ROW and index.order > 2
        cut = 0 if in_one_row else index.cut
        if may_be_in_parts() or self._between_dimensions:
            cut, dimensions = index.cut_between_dimensions()
        if may_be_in_parts():
            sizes = index.stacked_shape
            stack = index.shape[: len(index.shape) - len(sizes)]
            rows, columns = sizes[:dimensions] or (1,), sizes[dimensions:] or (1,)
            self._unmerged = stack, rows, columns
        self.row_axes, self.column_axes = index.axes[:cut], index.axes[cut:]
        shape: tuple = (length_of(self.row_axes), length_of(self.column_axes))
        if index.stack > 1:
            shape = (-1, *shape)  # a sparse gradient has some of the stack
        if self._unmerged:
            shape = (*stack, *rows, *columns)
        return ops.reshape(values, shape)

    def _over_slices(self, reduction, numbers, factors=()):
        """Reduces `numbers` (see `reduce_along`) over every slice of every mode."""
        of_rows = modes_of(self.row_axes) > 0
        of_columns = modes_of(self.column_axes) > 0 or self.index.is_one_slice
        rows = None
        if of_rows:
            rows = self._reduce_along(-1, reduction, numbers, factors)
        if of_columns:
            columns = self._reduce_along(-2, reduction, numbers, factors, after=rows)
        if self.index.is_one_slice:
            return [reduction.along(columns, axis=-1)]
        reduced = self._over_row_slices(rows, reduction) if of_rows else []
        if of_columns:
            reduced += over_axes(columns, self.column_axes, reduction)
        return reduced

    def _reduce_along(self, axis, reduction, numbers, factors, after=None):
        """`reduce_along` for the gradient's matrix."""
        numbers, factors = self.of_given(numbers, factors)
        if self._unmerged is None:
            return reduce_along(self.given, axis, reduction, numbers, factors, after)
        _, rows, columns = map(len, self._unmerged)
        if self.index.is_one_slice:
            over = range(-rows - columns, 0)
        elif axis == -1:
            over = range(-columns, 0)
        else:
            over = range(-rows - columns, -columns)
        given, *factors = apart([self.given, *factors], after)
        found = reduction.along(numbers(given, *factors), axis=tuple(over))
        stack = (self.index.stack,) if self.index.stack > 1 else ()
        return ops.reshape(on_every_device(found), (*stack, -1))

    def _over_row_slices(self, rows, reduction):
        return over_axes(rows, self.row_axes, reduction)

    def _combined(self, picked, combination):
        """What the row modes and what the column modes of an entry combine to."""
        rows = columns = ops.full((1, 1), combination.start, "float32")
        if self.index.is_one_slice:
            return self._unmerge(picked[0][..., None, None], columns)
        cut = modes_of(self.row_axes)
        if cut:
            found = self._along_rows(picked[:cut], combination)
            rows = ops.expand_dims(found, -1)
        if picked[cut:]:
            found = along_axes(picked[cut:], self.column_axes, combination)
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
        return on_every_device(rows), on_every_device(columns)

    def _along_rows(self, vectors, combination):
        return along_axes(vectors, self.row_axes, combination)


def _squares(matrix):
    return ops.square(matrix)


def _squares_above_minima(matrix, row_minima, column_minima):
    return ops.minimum(row_minima, column_minima) + ops.square(matrix)
