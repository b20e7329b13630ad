"""Floats as the integers of their bits, and the position of every entry."""

import keras
from keras import ops

INTEGERS = {"float32": "int32", "bfloat16": "int16", "float16": "int16"}


def is_16_bit(dtype):
    """Whether a dtype is bfloat16 or float16."""
    return INTEGERS.get(keras.backend.standardize_dtype(dtype)) == "int16"


def bits_of(tensor):
    """The bits of a float32, bfloat16 or float16 tensor, as integers."""
    dtype = keras.backend.standardize_dtype(tensor.dtype)
    return _bitcast(tensor, INTEGERS[dtype])


def from_bits(integers, dtype):
    """The floats of a dtype whose bits are these integers of the same width."""
    return _bitcast(integers, keras.backend.standardize_dtype(dtype))


def positions(shape, first=0):
    """The row-major position of every entry of a tensor, plus an offset.

    Args:
        shape: The tensor's shape.
        first: The offset: a scalar, or a tensor with as many axes.

    Returns:
        An int32 tensor of that shape. Above 2³¹ − 1 it wraps around.
    """
    first = wrap_int32(first)
    found, stride = ops.convert_to_tensor(first, "int32"), 1
    for axis, length in reversed(list(enumerate(shape))):
        along = [1] * len(shape)
        along[axis] = length
        steps = ops.reshape(ops.arange(length, dtype="int32"), along)
        found = found + steps * wrap_int32(stride)
        stride *= length
    return found


def wrap_int32(number):
    """A Python integer modulo 2³², as a signed one; a tensor is returned as it is."""
    return (number + 2**31) % 2**32 - 2**31 if isinstance(number, int) else number


def _bitcast(tensor, dtype):
    backend = keras.backend.backend()
    if backend == "tensorflow":
        import tensorflow as tf

        return tf.bitcast(tensor, dtype)
    if backend == "jax":
        import jax

        return jax.lax.bitcast_convert_type(tensor, dtype)
    import torch

    return tensor.view(getattr(torch, dtype))
