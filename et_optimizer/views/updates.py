"""Updates: what a step subtracts from a variable, made where it is subtracted.

An update is a rule that makes entries from a gradient and small vectors. It is never
written out by itself: whoever applies it fuses it into one pass over the variable. Seen
as a matrix it also gives its products with thin matrices, for a momentum that lives in
a subspace.
"""

import copy

import keras
from keras import ops

from et_optimizer.compilers import row_blocks
from et_optimizer.compilers.bits import (
    entries_of,
    integers_of,
    is_half,
    numbers_of,
    wrapped,
)
from et_optimizer.compilers.layouts import may_be_in_parts, on_every_device
from et_optimizer.compilers.reductions import apart, root_mean_square, sum_of

# Up to this rank a product of thin matrices is added term by term, in the pass over the
# variable, and not written out. With more terms the pass takes longer than a product.
MAX_FUSED_TERMS = {"jax": 8, "tensorflow": 0, "torch": 0}


class Update:
    """What all updates have in common.

    Attributes:
        row_shape, column_shape: The dimensions of the matrix of its entries that are
            rows and columns: one each, or under `ModelParallel` the variable's own.
    """

    row_shape = column_shape = ()

    def entries(self, rows=None):
        """The entries, a float32 tensor as the gradient's matrix.

        Args:
            rows: `(start, count)` for some rows of a matrix, or `None` for all.
        """
        raise NotImplementedError

    def in_form(self, entries):
        """What `entries` gave, in the form of the gradient or of the variable."""
        raise NotImplementedError

    def root_mean_square(self):
        """The root mean square over all entries of the variable."""
        return root_mean_square(self.entries())

    def times(self, scalar):
        """The update times a scalar, in the form of the gradient."""
        return self.in_form(self.scaled(scalar).entries())

    def scaled(self, scalar):
        """The update times a scalar, an update."""
        return self.mapped(lambda entries: entries * scalar)

    def mapped(self, function):
        """The update whose entries are an elementwise function of this one's."""
        return MappedUpdate(self, function)

    def as_matrix(self, rows, columns):
        """The same update, of which rows and columns are those of a matrix."""
        if (_size(self.row_shape), _size(self.column_shape)) == (rows, columns):
            return self
        written = self.times(1.0)
        return WrittenUpdate(ops.reshape(written, (rows, columns)), shape=written.shape)

    @property
    def goes_by_blocks(self):
        """Whether it is to be applied by `taken_from`, as it is written out."""
        return False

    def taken_from(self, value, moved):
        """A variable's value after this update, made of some rows at a time.

        Args:
            value: The value before.
            moved: `(value, change, entries) -> value`; see `take_from`.
        """
        rows, columns = _size(self.row_shape), _size(self.column_shape)
        matrix, is_of_bits = ops.reshape(value, (rows, columns)), is_half(value.dtype)
        if is_of_bits:
            # Of these XLA:CPU changes some rows where they lie.
            matrix = integers_of(matrix)

        def move(matrix, start, count):
            def entries(first):
                return entries_of((count, columns), first + wrapped(start * columns))

            block = row_blocks.take(matrix, (start, count))
            block = numbers_of(block, value.dtype) if is_of_bits else block
            block = moved(block, self.entries((start, count)), entries)
            block = integers_of(block) if is_of_bits else block
            return row_blocks.put(matrix, start, block)

        matrix = row_blocks.over(rows, columns, move, matrix)
        matrix = numbers_of(matrix, value.dtype) if is_of_bits else matrix
        return ops.reshape(matrix, value.shape)

    def left_product(self, thin):
        """thinᵀ · U, for a matrix of shape (rows, r): float32, shape (r, columns)."""

        def add(total, start, count):
            rows = (start, count) if self._is_in_blocks else None
            part = ops.reshape(row_blocks.take(thin, rows), (*self._rows(rows), -1))
            axes = list(range(len(self.row_shape)))
            found = ops.tensordot(part, self.entries(rows), axes=[axes, axes])
            return total + _whole(ops.reshape(found, (thin.shape[1], -1)))

        total = ops.zeros((thin.shape[1], _size(self.column_shape)), "float32")
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
            found = _whole(ops.reshape(found, (-1, thin.shape[1])))
            return found if rows is None else row_blocks.put(filled, start, found)

        filled = ops.zeros((_size(self.row_shape), thin.shape[1]), "float32")
        return self._over_rows(fill, filled)

    @property
    def _is_in_blocks(self):
        return row_blocks.are_needed(_size(self.row_shape), _size(self.column_shape))

    def _over_rows(self, body, carry):
        rows, columns = _size(self.row_shape), _size(self.column_shape)
        return row_blocks.over(rows, columns, body, carry)

    def _rows(self, rows):
        """The dimensions of rows, of all or of some."""
        return self.row_shape if rows is None else (rows[1],)


class GradientUpdate(Update):
    """An update made of a gradient and two factors.

    Attributes:
        gradient: A gradient seen through its tensor index.
    """

    def __init__(self, gradient):
        self.gradient = gradient
        self.row_shape, self.column_shape = gradient.row_shape, gradient.column_shape

    def in_form(self, entries):
        """What `entries` gave, in the form of the gradient."""
        return self.gradient.restore(entries)

    def of_gradient(self, values):
        """The same rule for another gradient, a tensor of the variable's shape."""
        other = copy.copy(self)
        other.gradient = self.gradient.with_values(values)
        return other

    def of_gradient_plus(self, left, right):
        """The same rule for the gradient plus a product of two thin matrices."""
        raise NotImplementedError


class ScaledGradient(GradientUpdate):
    """An update that is a gradient times a row factor times a column factor."""

    def __init__(self, gradient, row_factor, column_factor, scalar):
        super().__init__(gradient)
        self.row_factor = row_factor
        self.column_factor = column_factor
        self.scalar = scalar

    def entries(self, rows=None):
        """The entries; see the base."""
        matrix = self.gradient.part(rows)
        row_factor = row_blocks.take(self.row_factor, rows)
        column_factor = row_blocks.take(self.column_factor, rows)
        return matrix * (row_factor * self.scalar) * column_factor

    def scaled(self, scalar):
        """The update times a scalar, an update."""
        return ScaledGradient(
            self.gradient, self.row_factor, self.column_factor, self.scalar * scalar
        )

    def root_mean_square(self):
        """The root mean square over all entries of the variable."""
        factors = self.row_factor, self.column_factor
        squares, factors = self.gradient.of_given(_scaled_squares, factors)
        total = sum_of(squares, self.gradient.given, factors)
        return self.scalar * ops.sqrt(total / self.gradient.index.size)

    # The factors go to the thin side, so that only the gradient is read.

    def left_product(self, thin):
        """thinᵀ · U; see the base."""
        thin = thin * ops.reshape(self.row_factor, (-1, 1)) * self.scalar
        found = self.gradient.plain().left_product(thin)
        return found * ops.reshape(self.column_factor, (1, -1))

    def right_product(self, thin):
        """U · thin; see the base."""
        thin = thin * ops.reshape(self.column_factor, (-1, 1)) * self.scalar
        found = self.gradient.plain().right_product(thin)
        return found * ops.reshape(self.row_factor, (-1, 1))

    def of_gradient_plus(self, left, right):
        """The same rule for the gradient plus a product of two thin matrices."""
        left = left * ops.reshape(self.row_factor, (-1, 1)) * self.scalar
        right = right * ops.reshape(self.column_factor, (1, -1))
        return UpdatePlusProduct(self, left, right)


class PlainGradient(GradientUpdate):
    """The gradient itself, as an update."""

    def entries(self, rows=None):
        """The entries; see the base."""
        return self.gradient.part(rows)

    def left_product(self, thin):
        """thinᵀ · U; see the base."""
        return self._product("left_product", thin)

    def right_product(self, thin):
        """U · thin; see the base."""
        return self._product("right_product", thin)

    def _product(self, name, thin):
        # With the gradient as it lies in memory, so that nothing is written out.
        scale, plain = self.gradient.scale, PlainGradient(self.gradient.as_given())
        found = getattr(super(PlainGradient, plain), name)(thin)
        return found if scale is None else found * scale

    @property
    def _is_in_blocks(self):
        # In float32 the product takes it as it is.
        return super()._is_in_blocks and is_half(self.gradient.given.dtype)

    def _over_rows(self, body, carry):
        if self._is_in_blocks:
            return super()._over_rows(body, carry)
        return body(carry, 0, None)


class ElementwiseUpdate(GradientUpdate):
    """An update that is made of a gradient and two factors entry by entry."""

    def __init__(self, gradient, numbers, factors):
        super().__init__(gradient)
        self.numbers = numbers
        self.factors = factors

    def entries(self, rows=None):
        """The entries; see the base."""
        factors = (row_blocks.take(factor, rows) for factor in self.factors)
        return self.numbers(self.gradient.part(rows), *factors)

    def scaled(self, scalar):
        """The update times a scalar, an update."""

        def numbers(matrix, *factors):
            return self.numbers(matrix, *factors) * scalar

        return ElementwiseUpdate(self.gradient, numbers, self.factors)

    def root_mean_square(self):
        """The root mean square over all entries of the variable."""

        def squares(matrix, *factors):
            return ops.square(self.numbers(matrix, *factors))

        squares, factors = self.gradient.of_given(squares, self.factors)
        total = sum_of(squares, self.gradient.given, factors)
        return ops.sqrt(total / self.gradient.index.size)

    def of_gradient_plus(self, left, right):
        """The same rule for the gradient plus a product of two thin matrices."""
        plain = UpdatePlusProduct(PlainGradient(self.gradient), left, right)
        return _ElementwiseOf(plain, self)


class WrittenUpdate(Update):
    """An update that is written out, times a scalar.

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

    def in_form(self, entries):
        """What `entries` gave, in the form of the variable."""
        return ops.reshape(entries, self._shape)

    def scaled(self, scalar):
        """The update times a scalar, an update."""
        return WrittenUpdate(self.tensor, self.scalar * scalar, self._shape)

    def root_mean_square(self):
        """The root mean square over all entries of the variable."""
        return self.scalar * root_mean_square(self.tensor)


class MappedUpdate(Update):
    """An update whose entries are an elementwise function of another one's."""

    def __init__(self, update, function):
        self.update = update
        self.function = function
        self.row_shape, self.column_shape = update.row_shape, update.column_shape

    def entries(self, rows=None):
        """The entries; see the base."""
        return self.function(self.update.entries(rows))

    def in_form(self, entries):
        """What `entries` gave, in the form of the other update."""
        return self.update.in_form(entries)

    @property
    def goes_by_blocks(self):
        """As of the other update."""
        return self.update.goes_by_blocks


class UpdatePlusProduct(Update):
    """An update plus a product of two thin matrices.

    Args:
        update: An update, seen as a matrix.
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
        if self._is_fused:
            entries = self.update.entries(rows)
            ones = [1] * len(self.column_shape)
            for column, row in zip(ops.unstack(left, axis=-1), ops.unstack(right)):
                entries = entries + ops.reshape(column, (*column.shape, *ones)) * row
            return entries
        return self.update.entries(rows) + ops.tensordot(left, right, axes=1)

    def in_form(self, entries):
        """What `entries` gave, in the form of the other update."""
        return self.update.in_form(entries)

    def scaled(self, scalar):
        """The update times a scalar, an update."""
        return UpdatePlusProduct(
            self.update.scaled(scalar), self.left * scalar, self.right
        )

    @property
    def _is_fused(self):
        return self.left.shape[-1] <= MAX_FUSED_TERMS[keras.backend.backend()]

    @property
    def goes_by_blocks(self):
        """Whether the product is too large to be written out."""
        return self._is_in_blocks and not self._is_fused


class _ElementwiseOf(MappedUpdate):
    """An `ElementwiseUpdate`'s rule for other entries than its gradient's."""

    def __init__(self, entries, rule):
        super().__init__(entries, rule.numbers)
        self._factors = rule.factors

    def entries(self, rows=None):
        """The entries; see the base."""
        factors = (row_blocks.take(tensor, rows) for tensor in self._factors)
        return self.function(self.update.entries(rows), *factors)


def _size(shape):
    size = 1
    for length in shape:
        size *= length
    return size


def _whole(product):
    """A thin product, which is small, on every device."""
    if not may_be_in_parts():
        return product
    # What is asked of the product's own operation, XLA asks of what it is made of, and
    # would gather all of an update before it multiplies it.
    return on_every_device(*apart([product]))


def _scaled_squares(matrix, row_factor, column_factor):
    return ops.square(matrix * row_factor * column_factor)
