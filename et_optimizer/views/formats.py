"""The forms of a gradient besides a tensor: sparse rows, and a tensor to be scaled."""

import dataclasses
from collections.abc import Callable
from typing import Any, NamedTuple

from keras import ops


@dataclasses.dataclass(frozen=True)
class SparseRows:
    """Some rows of a gradient whose other rows are 0. Duplicates add up.

    Attributes:
        values: Tensor of shape (rows given, …), with the variable's other dimensions.
        indices: Integer tensor of shape (rows given,): the row of the variable.
        with_values: Gives other values for these rows the framework's sparse form.
    """

    values: Any
    indices: Any
    with_values: Callable

    @property
    def shape(self):
        """The shape of the values."""
        return self.values.shape

    @property
    def dtype(self):
        """The dtype of the values."""
        return self.values.dtype

    def to_dense(self, shape):
        """The gradient as a tensor of the variable's shape."""
        return ops.segment_sum(self.values, self.indices, shape[0])


class ScaledTensor(NamedTuple):
    """A tensor times a scalar, as clipping by norm makes it.

    It is not multiplied yet, so that it takes no memory.

    Attributes:
        values: A tensor of the variable's shape.
        scale: A scalar.
    """

    values: Any
    scale: Any

    @property
    def shape(self):
        """The shape of the values."""
        return self.values.shape

    @property
    def dtype(self):
        """The dtype of the values."""
        return self.values.dtype


def as_sparse_rows(gradient):
    """A sparse gradient as `SparseRows`, and a dense one as a tensor.

    Args:
        gradient: A tensor, a `tf.IndexedSlices`, or a `jax.experimental.sparse.BCOO`
            that is sparse in its first dimension only; other sparse tensors of JAX are
            converted to dense ones.
    """
    if isinstance(gradient, SparseRows):
        return gradient
    if hasattr(gradient, "indices") and hasattr(gradient, "dense_shape"):
        return _from_indexed_slices(gradient)
    if type(gradient).__module__.startswith("jax.experimental.sparse"):
        return _from_jax(gradient)
    return gradient


def _from_indexed_slices(gradient):
    values = ops.convert_to_tensor(gradient.values)
    indices = ops.convert_to_tensor(gradient.indices)

    def with_values(values):
        return type(gradient)(values, indices, gradient.dense_shape)

    return SparseRows(values, indices, with_values)


def _from_jax(gradient):
    import jax.numpy as jnp
    from jax.experimental import sparse

    if not isinstance(gradient, sparse.BCOO):
        return gradient.todense()
    shape = tuple(gradient.shape)
    values, pairs = jnp.asarray(gradient.data), jnp.asarray(gradient.indices)
    if pairs.ndim != 2 or pairs.shape[1] != 1:
        return sparse.BCOO((values, pairs), shape=shape).todense()
    indices = pairs[:, 0]
    # JAX pads with rows whose index is out of range.
    is_there = indices < shape[0]
    indices = jnp.where(is_there, indices, 0)
    values = jnp.where(is_there.reshape(-1, *[1] * (values.ndim - 1)), values, 0)

    def with_values(values):
        return sparse.BCOO((values, indices[:, None]), shape=shape)

    return SparseRows(values, indices, with_values)
