"""How a momentum is stored: in float32, in half of that, or in a quarter."""

from keras import ops

DTYPES = ("float32", "bfloat16", "int8")
LARGEST_INT8 = 127.0


def plan(name, shape, dtype, rows=1):
    """The names, shapes and dtypes of what stores a tensor.

    Args:
        name: The tensor's name.
        shape: Its shape.
        dtype: One of `DTYPES`. As integers of 8 bits each row has a scale of its own.
        rows: How many of the leading dimensions are rows.
    """
    if dtype != "int8":
        return {name: (shape, dtype)}
    return {name: (shape, "int8"), f"{name}_scale": (shape[:rows], "float32")}


def decode(held):
    """The float32 tensor that was stored."""
    tensor = ops.cast(held[0], "float32")
    if len(held) == 1:
        return tensor
    return tensor * _per_row(held[1], tensor)


def encode(tensor, dtype, rows=1):
    """What stores a float32 tensor, in the order of `plan`."""
    if dtype != "int8":
        return [ops.cast(tensor, dtype)]
    along_row = tuple(range(rows, len(tensor.shape)))
    scale = ops.max(ops.abs(tensor), axis=along_row) / LARGEST_INT8
    # A row of zeros has a scale of 0.
    steps = tensor / _per_row(ops.where(scale > 0, scale, 1.0), tensor)
    return [ops.cast(ops.round(steps), "int8"), scale]


def _per_row(scale, tensor):
    missing = len(tensor.shape) - len(scale.shape)
    return ops.reshape(scale, (*scale.shape, *[1] * missing))
