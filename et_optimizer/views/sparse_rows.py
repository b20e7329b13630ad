"""The forms in which frameworks give some rows of a gradient."""

import dataclasses
from collections.abc import Callable
from typing import Any

import keras
from keras import ops


@dataclasses.dataclass(frozen=True)
class Rows:
    """Some rows of a gradient, whose other rows are 0; repeated ones add up.

    Attributes:
        values: Tensor of shape (rows given, …), with the variable's other dimensions.
        indices: Integer tensor of shape (rows given,): the variable's row behind each.
        in_form: Gives values for these rows the form that the rows were given in.
    """

    values: Any
    indices: Any
    in_form: Callable

    @property
    def shape(self):
        """The values' shape."""
        return self.values.shape

    @property
    def dtype(self):
        """The values' dtype."""
        return self.values.dtype

    def dense(self, shape):
        """The gradient as a tensor of the variable's shape."""
        return ops.segment_sum(self.values, self.indices, shape[0])


def rows_of(gradient):
    """A gradient as `Rows`, or as a tensor where it is not given by rows.

    Args:
        gradient: A tensor; TensorFlow's `tf.IndexedSlices`; or JAX's
            `jax.experimental.sparse.BCOO`, of which the first dimension, if any, may
            be sparse: others are made dense.
    """
    if isinstance(gradient, Rows):
        return gradient
    if hasattr(gradient, "indices") and hasattr(gradient, "dense_shape"):
        return _of_indexed_slices(gradient)
    if keras.backend.backend() == "jax" and hasattr(gradient, "todense"):
        return _of_jax(gradient)
    return gradient


def _of_indexed_slices(gradient):
    values = ops.convert_to_tensor(gradient.values)
    indices = ops.convert_to_tensor(gradient.indices)

    def in_form(values):
        return type(gradient)(values, indices, gradient.dense_shape)

    return Rows(values, indices, in_form)


def _of_jax(gradient):
    import jax.numpy as jnp
    from jax.experimental import sparse

    if not isinstance(gradient, sparse.BCOO):
        return gradient.todense()
    shape = tuple(gradient.shape)
    values, pairs = jnp.asarray(gradient.data), jnp.asarray(gradient.indices)
    if pairs.ndim != 2 or pairs.shape[1] != 1:
        return sparse.BCOO((values, pairs), shape=shape).todense()
    indices = pairs[:, 0]
    # JAX fills up what it pads with rows that are not there.
    is_there = indices < shape[0]
    indices = jnp.where(is_there, indices, 0)
    values = jnp.where(is_there.reshape(-1, *[1] * (values.ndim - 1)), values, 0)

    def in_form(values):
        return sparse.BCOO((values, indices[:, None]), shape=shape)

    return Rows(values, indices, in_form)
