"""Integers behind numbers: of their bits, and of their places in a tensor."""

import keras
from keras import ops

INTEGERS = {"float32": "int32", "bfloat16": "int16", "float16": "int16"}


def is_half(dtype):
    """Whether numbers of a dtype take two bytes."""
    return INTEGERS.get(keras.backend.standardize_dtype(dtype)) == "int16"


def integers_of(numbers):
    """The integers of a tensor's bits, of float32, bfloat16 or float16."""
    dtype = keras.backend.standardize_dtype(numbers.dtype)
    return _seen_as(numbers, INTEGERS[dtype])


def numbers_of(integers, dtype):
    """The numbers of a dtype that have the bits of integers as wide."""
    return _seen_as(integers, keras.backend.standardize_dtype(dtype))


def entries_of(shape, first=0):
    """The numbers of the entries of a tensor, in their order in memory.

    Args:
        shape: The tensor's shape.
        first: Scalar, the number of its first entry.

    Returns:
        Int32, of that shape. Above 2³¹ they go on from −2³¹, as integers of 32 bits do.
    """
    first = _signed(first) if isinstance(first, int) else first
    found, stride = ops.convert_to_tensor(first, "int32"), 1
    for axis, length in reversed(list(enumerate(shape))):
        along = [1] * len(shape)
        along[axis] = length
        positions = ops.reshape(ops.arange(length, dtype="int32"), along)
        found = found + positions * _signed(stride)
        stride *= length
    return found


def _seen_as(tensor, dtype):
    backend = keras.backend.backend()
    if backend == "tensorflow":
        import tensorflow as tf

        return tf.bitcast(tensor, dtype)
    if backend == "jax":
        import jax

        return jax.lax.bitcast_convert_type(tensor, dtype)
    import torch

    return tensor.view(getattr(torch, dtype))


def _signed(number):
    """The number that 32 bits hold of one that may need more."""
    return (number + 2**31) % 2**32 - 2**31
