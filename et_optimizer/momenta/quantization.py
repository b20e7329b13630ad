"""How the state of a momentum is quantized: float32, bfloat16 or int8."""

from keras import ops

LARGEST_INT8 = 127.0


def slots(name, shape, dtype, scale_axes=()):
    """The slots that store a tensor.

    Args:
        name: The tensor's name.
        shape: Its shape.
        dtype: `"float32"`, `"bfloat16"`, or `"int8"`, which has a second slot of
            float32 scales.
        scale_axes: The axes along which entries share a scale.

    Returns:
        A dict from name to `(shape, dtype)`.
    """
    if dtype != "int8":
        return {name: (tuple(shape), dtype)}
    scales = tuple(1 if axis in scale_axes else n for axis, n in enumerate(shape))
    return {name: (tuple(shape), "int8"), f"{name}_scale": (scales, "float32")}


def dequantize(state):
    """The float32 tensor that `quantize` stored.

    Args:
        state: List of tensors, in the order of `slots`.
    """
    tensor = ops.cast(state[0], "float32")
    return tensor * state[1] if len(state) > 1 else tensor


def quantize(tensor, dtype, scale_axes=()):
    """A float32 tensor in a dtype, rounded to nearest; arguments as for `slots`."""
    if dtype != "int8":
        return [ops.cast(tensor, dtype)]
    scale = ops.max(ops.abs(tensor), axis=scale_axes, keepdims=True) / LARGEST_INT8
    # Where all entries are 0, so is the scale.
    steps = ops.round(tensor / ops.where(scale > 0, scale, 1.0))
    return [ops.cast(steps, "int8"), scale]
