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
    """The numbers of the entries of a tensor in their order in memory, plus the first.

    Args:
        shape: The tensor's shape.
        first: What the first entry has: a scalar, or of as many axes as the tensor.

    Returns:
        Int32, of that shape. Above 2³¹ they go on from −2³¹, as integers of 32 bits do.
    """
    first = wrapped(first)
    found, stride = ops.convert_to_tensor(first, "int32"), 1
    for axis, length in reversed(list(enumerate(shape))):
        along = [1] * len(shape)
        along[axis] = length
        positions = ops.reshape(ops.arange(length, dtype="int32"), along)
        found = found + positions * wrapped(stride)
        stride *= length
    return found


def wrapped(number):
    """What 32 bits hold of an integer; a tensor as it is."""
    return (number + 2**31) % 2**32 - 2**31 if isinstance(number, int) else number


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
