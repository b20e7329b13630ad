"""How a momentum is stored: in float32, in half of that, or in a quarter."""

from keras import ops

DTYPES = ("float32", "bfloat16", "int8")
LARGEST_INT8 = 127.0


def plan(name, shape, dtype, along=()):
    """The names, shapes and dtypes of what stores a tensor.

    Args:
        name: The tensor's name.
        shape: Its shape.
        dtype: One of `DTYPES`. Integers of 8 bits have scales beside them.
        along: The axes along which entries share a scale.
    """
    if dtype != "int8":
        return {name: (tuple(shape), dtype)}
    scales = tuple(1 if axis in along else n for axis, n in enumerate(shape))
    return {name: (tuple(shape), "int8"), f"{name}_scale": (scales, "float32")}


def decode(held):
    """The float32 tensor that was stored."""
    tensor = ops.cast(held[0], "float32")
    return tensor * held[1] if len(held) > 1 else tensor


def encode(tensor, dtype, along=()):
    """What stores a float32 tensor, in the order of `plan`."""
    if dtype != "int8":
        return [ops.cast(tensor, dtype)]
    scale = ops.max(ops.abs(tensor), axis=along, keepdims=True) / LARGEST_INT8
    # Where all is 0 so is the scale.
    steps = ops.round(tensor / ops.where(scale > 0, scale, 1.0))
    return [ops.cast(steps, "int8"), scale]
