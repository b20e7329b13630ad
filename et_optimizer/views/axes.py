"""Values along the axes of a tensor index: to the slices of its modes, and back."""

import dataclasses
import math
from collections.abc import Callable

from keras import ops


@dataclasses.dataclass(frozen=True)
class Combination:
    """How the values of an entry's slices become one.

    Attributes:
        pairwise: `(tensor, tensor) -> tensor`, entry by entry.
        neutral: The value that changes nothing.
    """

    pairwise: Callable
    neutral: float


PRODUCT = Combination(ops.multiply, 1.0)
MINIMUM = Combination(ops.minimum, math.inf)


def reduce_to_modes(values, axes, reduction):
    """Reduces one value per position over every slice of the modes of `axes`.

    Args:
        values: Shape (positions,) or (stack, positions).
        axes: The axes that index the positions.
        reduction: A `Reduction`.

    Returns:
        A list of tensors of shape (slices,) or (stack, slices), one per mode.
    """
    if not count_modes(axes):
        return []
    stack = (-1,) if len(values.shape) > 1 else ()
    values = ops.reshape(values, (*stack, *(axis.length for axis in axes)))
    found = []
    for position, axis in enumerate(axes):
        if not axis.modes:
            continue
        marginal = _marginal(values, position + len(stack), stack, reduction)
        if axis.cells > axis.length:
            unpadded = [[0, 0]] * len(stack)
            marginal = ops.pad(marginal, [*unpadded, [0, axis.cells - axis.length]])
        cells = ops.reshape(marginal, (*stack, *axis.modes))
        found += [
            _marginal(cells, mode + len(stack), stack, reduction)
            for mode in range(len(axis.modes))
        ]
    return found


def _marginal(tensor, kept, stack, reduction):
    axes = range(len(stack), len(tensor.shape))
    others = tuple(axis for axis in axes if axis != kept)
    return reduction.along(tensor, axis=others) if others else tensor


def broadcast_from_modes(vectors, axes, combination):
    """Combines one vector per mode at every position of `axes`, flattened."""
    along_axes, taken = [], 0
    for axis in axes:
        modes = vectors[taken : taken + len(axis.modes)]
        taken += len(axis.modes)
        if not modes:
            neutral = ops.full((axis.length,), combination.neutral, "float32")
            along_axes.append(neutral)
        elif len(modes) > 1:
            along_axes.append(_outer(modes, combination)[..., : axis.length])
        else:
            along_axes.append(modes[0])
    return _outer(along_axes, combination)


def _outer(vectors, combination):
    """Combines vectors at every cell of their grid, flattened in row-major order.

    Args:
        vectors: Tensors of shape (length,) or, all of them, (stack, length).
        combination: A `Combination`.

    Returns:
        A tensor of shape (cells,) or (stack, cells).
    """
    if len(vectors) == 1:
        return vectors[0]
    stack = (-1,) if len(vectors[0].shape) > 1 else ()
    reshaped = []
    for axis, vector in enumerate(vectors):
        shape = [1] * len(vectors)
        shape[axis] = vector.shape[-1]
        reshaped.append(ops.reshape(vector, (*stack, *shape)))
    cells = math.prod(vector.shape[-1] for vector in vectors)
    return ops.reshape(combine(reshaped, combination), (*stack, cells))


def combine(tensors, combination):
    """Combines tensors entry by entry."""
    combined = tensors[0]
    for tensor in tensors[1:]:
        combined = combination.pairwise(combined, tensor)
    return combined


def count_positions(axes):
    """The number of positions that axes index."""
    return math.prod(axis.length for axis in axes)


def count_modes(axes):
    """The number of modes of some axes."""
    return sum(len(axis.modes) for axis in axes)
