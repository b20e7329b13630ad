"""Updates: what a step subtracts from a variable, made where it is subtracted.

An update is a rule that makes entries from a gradient and small vectors. It is not
materialized: whoever applies it fuses it into one pass over the variable. As a matrix
it also gives its products with thin matrices, for a momentum in a subspace.
"""

import math

from keras import ops

from et_optimizer.compilers import row_blocks
from et_optimizer.compilers.barriers import barrier
from et_optimizer.compilers.bits import (
    bits_of,
    from_bits,
    is_16_bit,
    positions,
    wrap_int32,
)
from et_optimizer.compilers.layouts import is_sharded, replicate
from et_optimizer.compilers.reductions import root_mean_square, sum_of


class Update:
    """What all updates have in common.

    Attributes:
        row_shape, column_shape: The dimensions of the matrix of its entries that are
            rows and columns: one each, or the variable's own if it is sharded.
    """

    row_shape = column_shape = ()

    def entries(self, rows=None):
        """The entries, a float32 tensor in the shape of the gradient's matrix.

        Args:
            rows: `(start, count)` for a block of rows of a matrix, or `None` for all.
        """
        raise NotImplementedError

    def restore(self, entries):
        """Gives the result of `entries` the form of the gradient or of the variable."""
        raise NotImplementedError

    def evaluate(self, scalar=None):
        """The update, times a scalar if given, in the form of the gradient."""
        return self.restore((self if scalar is None else self.scaled(scalar)).entries())

    def mapped(self, function, factors=()):
        """The update whose entries are an elementwise function of this one's.

        Args:
            function: `(entries, *factors) -> entries`.
            factors: `()`, or a pair of a row and a column vector, as those of
                `DenseView.factors`.
        """
        return MappedUpdate(self, function, factors)

    def scaled(self, scalar):
        """The update times a scalar, an update."""
        return self.mapped(lambda entries: entries * scalar)

    def times_factors(self, row_factor, column_factor, scalar=1.0):
        """The update times a row vector, a column vector and a scalar, an update."""

        def product(entries, row_factor, column_factor):
            return entries * (row_factor * scalar) * column_factor

        return self.mapped(product, (row_factor, column_factor))

    def root_mean_square(self):
        """The root mean square over all entries of the variable."""
        return root_mean_square(self.entries())

    def root_mean_square_of(self, function, factors):
        """The root mean square of an elementwise function of the entries."""
        return root_mean_square(function(self.entries(), *factors))

    def as_matrix(self, rows, columns):
        """The same update as a matrix with these numbers of rows and columns."""
        if (math.prod(self.row_shape), math.prod(self.column_shape)) == (rows, columns):
            return self
        tensor = self.evaluate()
        return MaterializedUpdate(
            ops.reshape(tensor, (rows, columns)), shape=tensor.shape
        )

    @property
    def needs_row_blocks(self):
        """Whether its entries would be materialized, and are too many for that."""
        return False

    def subtract_by_blocks(self, value, subtract):
        """A variable's value after this update, made one block of rows at a time.

        Args:
            value: The value before.
            subtract: `(value, change, positions) -> value`; see
                `et_optimizer.views.gradients.subtract_from`.
        """
        rows, columns = math.prod(self.row_shape), math.prod(self.column_shape)
        matrix, as_bits = ops.reshape(value, (rows, columns)), is_16_bit(value.dtype)
        if as_bits:
            # XLA:CPU updates a slice in place for integers, but not for 16-bit floats.
            matrix = bits_of(matrix)

        def subtract_block(matrix, start, count):
            def positions_from(first):
                first = first + wrap_int32(start * columns)
                return positions((count, columns), first)

            block = row_blocks.take(matrix, (start, count))
            block = from_bits(block, value.dtype) if as_bits else block
            block = subtract(block, self.entries((start, count)), positions_from)
            block = bits_of(block) if as_bits else block
            return row_blocks.put(matrix, start, block)

        matrix = row_blocks.loop(rows, columns, subtract_block, matrix)
        matrix = from_bits(matrix, value.dtype) if as_bits else matrix
        return ops.reshape(matrix, value.shape)

    def left_product(self, thin):
        """thinᵀ · U, for a matrix of shape (rows, r): float32, shape (r, columns)."""

        def add(total, start, count):
            rows = (start, count) if self._is_in_blocks else None
            part = ops.reshape(row_blocks.take(thin, rows), (*self._rows(rows), -1))
            axes = list(range(len(self.row_shape)))
            found = ops.tensordot(part, self.entries(rows), axes=[axes, axes])
            return total + _replicated(ops.reshape(found, (thin.shape[1], -1)))

        total = ops.zeros((thin.shape[1], math.prod(self.column_shape)), "float32")
        return self._over_rows(add, total)

    def right_product(self, thin):
        """U · thin, for a matrix of shape (columns, r): float32, shape (rows, r)."""
        part = ops.reshape(thin, (*self.column_shape, -1))
        axes = list(range(len(self.column_shape)))

        def fill(filled, start, count):
            rows = (start, count) if self._is_in_blocks else None
            entries = self.entries(rows)
            columns = [len(self.row_shape) + axis for axis in axes]
            found = ops.tensordot(entries, part, axes=[columns, axes])
            found = _replicated(ops.reshape(found, (-1, thin.shape[1])))
            return found if rows is None else row_blocks.put(filled, start, found)

        filled = ops.zeros((math.prod(self.row_shape), thin.shape[1]), "float32")
        return self._over_rows(fill, filled)

    @property
    def _is_in_blocks(self):
        rows, columns = math.prod(self.row_shape), math.prod(self.column_shape)
        return row_blocks.are_needed(rows, columns)

    def _over_rows(self, body, carry):
        rows, columns = math.prod(self.row_shape), math.prod(self.column_shape)
        return row_blocks.loop(rows, columns, body, carry)

    def _rows(self, rows):
        """The dimensions of all rows, or of a block of rows."""
        return self.row_shape if rows is None else (rows[1],)


class GradientUpdate(Update):
    """A gradient, as an update.

    Attributes:
        view: A gradient viewed through its tensor index.
    """

    def __init__(self, view):
        self.view = view
        self.row_shape, self.column_shape = view.row_shape, view.column_shape

    def entries(self, rows=None):
        """The entries; see the base."""
        return self.view.part(rows)

    def restore(self, entries):
        """Gives the result of `entries` the form of the gradient."""
        return self.view.restore(entries)

    def times_factors(self, row_factor, column_factor, scalar=1.0):
        """The gradient times vectors and a scalar; see the base."""
        return ScaledGradient(self.view, row_factor, column_factor, scalar)

    def root_mean_square_of(self, function, factors):
        """Without materializing the entries; see the base."""

        def squares(matrix, *factors):
            return ops.square(function(matrix, *factors))

        squares, factors = self.view.on_given(squares, factors)
        total = sum_of(squares, self.view.given, factors)
        return ops.sqrt(total / self.view.index.size)

    def left_product(self, thin):
        """thinᵀ · U; see the base."""
        return self._product("left_product", thin)

    def right_product(self, thin):
        """U · thin; see the base."""
        return self._product("right_product", thin)

    def _product(self, name, thin):
        # With the gradient as it lies in memory, so that nothing is materialized.
        scale, unscaled = self.view.scale, GradientUpdate(self.view.as_given())
        found = getattr(super(GradientUpdate, unscaled), name)(thin)
        return found if scale is None else found * scale

    @property
    def _is_in_blocks(self):
        # A matrix product takes float32 as it is.
        return super()._is_in_blocks and is_16_bit(self.view.given.dtype)

    def _over_rows(self, body, carry):
        if self._is_in_blocks:
            return super()._over_rows(body, carry)
        return body(carry, 0, None)


class ScaledGradient(Update):
    """A gradient times a row factor, a column factor and a scalar.

    Attributes:
        view: A gradient viewed through its tensor index.
    """

    def __init__(self, view, row_factor, column_factor, scalar):
        self.view = view
        self.row_shape, self.column_shape = view.row_shape, view.column_shape
        self.row_factor = row_factor
        self.column_factor = column_factor
        self.scalar = scalar

    def entries(self, rows=None):
        """The entries; see the base."""
        matrix = self.view.part(rows)
        row_factor = row_blocks.take(self.row_factor, rows)
        column_factor = row_blocks.take(self.column_factor, rows)
        return matrix * (row_factor * self.scalar) * column_factor

    def restore(self, entries):
        """Gives the result of `entries` the form of the gradient."""
        return self.view.restore(entries)

    def scaled(self, scalar):
        """The update times a scalar, an update."""
        return ScaledGradient(
            self.view, self.row_factor, self.column_factor, self.scalar * scalar
        )

    def root_mean_square(self):
        """The root mean square over all entries of the variable."""

        def product(matrix, row_factor, column_factor):
            return matrix * row_factor * column_factor

        factors = self.row_factor, self.column_factor
        return self.scalar * self.view.plain().root_mean_square_of(product, factors)

    # The factors multiply the thin matrix, so that only the gradient is read.

    def left_product(self, thin):
        """thinᵀ · U; see the base."""
        thin = thin * ops.reshape(self.row_factor, (-1, 1)) * self.scalar
        found = self.view.plain().left_product(thin)
        return found * ops.reshape(self.column_factor, (1, -1))

    def right_product(self, thin):
        """U · thin; see the base."""
        thin = thin * ops.reshape(self.column_factor, (-1, 1)) * self.scalar
        found = self.view.plain().right_product(thin)
        return found * ops.reshape(self.row_factor, (-1, 1))


class MappedUpdate(Update):
    """An update whose entries are an elementwise function of another one's."""

    def __init__(self, update, function, factors=()):
        self.update = update
        self.function = function
        self.factors = factors
        self.row_shape, self.column_shape = update.row_shape, update.column_shape

    def entries(self, rows=None):
        """The entries; see the base."""
        factors = (row_blocks.take(factor, rows) for factor in self.factors)
        return self.function(self.update.entries(rows), *factors)

    def restore(self, entries):
        """Gives the result of `entries` the form of the other update."""
        return self.update.restore(entries)

    def root_mean_square(self):
        """The root mean square over all entries of the variable."""
        return self.update.root_mean_square_of(self.function, self.factors)

    @property
    def needs_row_blocks(self):
        """As the other update."""
        return self.update.needs_row_blocks


class MaterializedUpdate(Update):
    """An update that is a tensor, times a scalar.

    Args:
        tensor: A tensor of the variable's shape, or a matrix of its entries.
        scalar: What it is multiplied by.
        shape: The variable's shape, where the tensor is a matrix.
    """

    def __init__(self, tensor, scalar=1.0, shape=None):
        self.tensor = tensor
        self.scalar = scalar
        self._shape = tensor.shape if shape is None else shape
        if len(tensor.shape) == 2:
            self.row_shape, self.column_shape = tensor.shape[:1], tensor.shape[1:]

    def entries(self, rows=None):
        """The entries; see the base."""
        tensor = self.tensor if rows is None else row_blocks.take(self.tensor, rows)
        return ops.cast(tensor, "float32") * self.scalar

    def restore(self, entries):
        """Gives the result of `entries` the form of the variable."""
        return ops.reshape(entries, self._shape)

    def scaled(self, scalar):
        """The update times a scalar, an update."""
        return MaterializedUpdate(self.tensor, self.scalar * scalar, self._shape)

    def root_mean_square(self):
        """The root mean square over all entries of the variable."""
        return self.scalar * root_mean_square(self.tensor)


class UpdatePlusProduct(Update):
    """An update plus a product of two thin matrices.

    Args:
        update: An update, viewed as a matrix.
        left, right: Float32, of shapes (rows, r) and (r, columns).
    """

    def __init__(self, update, left, right):
        self.update = update
        self.left, self.right = left, right
        self.row_shape, self.column_shape = update.row_shape, update.column_shape

    def entries(self, rows=None):
        """The entries; see the base."""
        left = row_blocks.take(self.left, rows)
        left = ops.reshape(left, (*self._rows(rows), -1))
        right = ops.reshape(self.right, (-1, *self.column_shape))
        entries = self.update.entries(rows)
        if not self._is_fused:
            return entries + ops.tensordot(left, right, axes=1)
        ones = [1] * len(self.column_shape)
        for column, row in zip(ops.unstack(left, axis=-1), ops.unstack(right)):
            entries = entries + ops.reshape(column, (*column.shape, *ones)) * row
        return entries

    def restore(self, entries):
        """Gives the result of `entries` the form of the other update."""
        return self.update.restore(entries)

    def scaled(self, scalar):
        """The update times a scalar, an update."""
        return UpdatePlusProduct(
            self.update.scaled(scalar), self.left * scalar, self.right
        )

    def times_factors(self, row_factor, column_factor, scalar=1.0):
        """With the vectors multiplied into the thin matrices; see the base."""
        return UpdatePlusProduct(
            self.update.times_factors(row_factor, column_factor, scalar),
            self.left * ops.reshape(row_factor, (-1, 1)) * scalar,
            self.right * ops.reshape(column_factor, (1, -1)),
        )

    @property
    def _is_fused(self):
        return row_blocks.is_product_fused(self.left.shape[-1])

    @property
    def needs_row_blocks(self):
        """Whether the product would be materialized, and is too large for that."""
        return self._is_in_blocks and not self._is_fused


def _replicated(product):
    """A thin product, which is small, on every device."""
    if not is_sharded():
        return product
    # Behind a barrier: XLA would propagate the layout of the product's result to its
    # operands, and gather all of an update before it multiplies it.
    return replicate(*barrier([product]))
