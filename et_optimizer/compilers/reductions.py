"""Numbers for the slices of a matrix, without writing out what they are made of.

What a backend's compiler needs to reduce in a fast pass stands here alone.
"""

import dataclasses
import math
from collections.abc import Callable

import keras
import numpy as np
from keras import ops

from et_optimizer.compilers.bits import integers_of, is_half, numbers_of
from et_optimizer.compilers.layouts import may_be_in_parts
from et_optimizer.views.scaled import Scaled

# XLA's CPU reductions run several times faster on a few slabs added elementwise
# first (measured in benchmarks/); on small tensors that only adds compile time.
SLABS = 8
MIN_SLAB_ENTRIES = 2**17
# Of a small variable of many modes each mode is summed from the entries at once: its
# time goes into the number of operations, not into passes over it.
MAX_ENTRIES_IN_ONE_ROW = 2**12


@dataclasses.dataclass(frozen=True)
class Reduction:
    """How the numbers of a slice become one.

    Attributes:
        along: `(tensor, axis) -> tensor`, over axes of a tensor.
        pairwise: `(tensor, tensor) -> tensor`, entry by entry.
        by_segment: `(vector, segments, count) -> vector`, as `ops.segment_sum`.
    """

    along: Callable
    pairwise: Callable
    by_segment: Callable


def _largest(tensor, axis):
    """The largest of numbers ≥ 0 along axes, and 0 where there is none."""
    return _maximum(tensor, axis, least=0.0)


def _maximum(tensor, axis, least):
    """The largest of numbers along axes, none of which is below `least`."""
    # A sparse gradient may have no rows, and while tracing their number is unknown.
    may_be_empty = 0 in tensor.shape or None in tensor.shape
    return ops.max(tensor, axis=axis, initial=least if may_be_empty else None)


def _largest_by_segment(vector, segments, count):
    return ops.maximum(ops.segment_max(vector, segments, count), 0.0)


SUM = Reduction(ops.sum, ops.add, ops.segment_sum)
MAXIMUM = Reduction(_largest, ops.maximum, _largest_by_segment)


def root_mean_square(tensor):
    """The root mean square of all entries of a tensor, a float32 scalar."""
    return ops.sqrt(sum_of_squares(tensor) / math.prod(tensor.shape))


def sum_of_squares(tensor):
    """The sum of the squares of all entries of a tensor, a float32 scalar."""
    shape = tuple(tensor.shape)
    size = math.prod(shape)
    if size == 0:
        return ops.zeros((), "float32")
    columns = shape[-1] if size > MAX_ENTRIES_IN_ONE_ROW else size
    if not may_be_in_parts():
        tensor = ops.reshape(tensor, (-1, columns))
    return sum_of(_squares, tensor)


def sum_of(numbers, matrix, factors=()):
    """The sum over all of a matrix of numbers made of it; see `reduce_along`."""
    if may_be_in_parts():
        matrix, *factors = apart([matrix, *factors])
        return ops.sum(numbers(matrix, *factors))
    rows, columns = matrix.shape[-2:]
    axis = -1 if rows is None or rows < columns else -2
    sums = reduce_along(matrix, axis, SUM, numbers, factors)
    return ops.sum(apart_from_what_follows(sums))


def past_no_nan(maxima, matrix):
    """Maxima made of a matrix, or infinity where there is NaN in it.

    XLA's maximum looks past NaN on a CPU, as TensorFlow's over segments does. A sum
    does not.
    """
    if keras.backend.backend() == "torch":
        return maxima

    def small(numbers):
        return ops.cast(numbers, "float32") * 2.0**-64

    has_nan = ops.isnan(sum_of(small, matrix))
    return [ops.where(has_nan, math.inf, vector) for vector in maxima]


def reduce_along(matrix, axis, reduction, numbers, factors=(), after=None):
    """Reduces numbers made of a matrix over its columns or over its rows.

    What a backend's compiler needs to do this in a fast pass without writing the
    numbers out is kept in this one function.

    Args:
        matrix: Tensor of shape (..., rows, columns).
        axis: -1 for one result a row, -2 for one a column.
        reduction: A `Reduction`.
        numbers: `(matrix, *factors) -> tensor`, elementwise: float32 of the matrix's
            shape.
        factors: `()`, or a tensor of shape (..., rows or 1, 1) and one of shape
            (..., 1, columns or 1).
        after: A tensor that is to be computed before, if any.

    Returns:
        A tensor of shape (..., rows) or (..., columns).
    """
    # XLA would share the numbers with whatever else they are computed for and, having
    # two users for them, write them out: as much memory as the variable.
    matrix, *factors = apart([matrix, *factors], after)
    length = matrix.shape[axis]
    # Slabs of columns no narrower than the 16 float32 of a vector register, and of
    # rows no fewer than 4.
    count = min(SLABS, (length or 0) // (4 if axis == -2 else 16))
    if keras.backend.backend() == "jax" or not _worth_slabs(matrix, count):
        return reduction.along(numbers(matrix, *factors), axis=axis)

    def slab(start, stop):
        parts = (_part(tensor, axis, start, stop) for tensor in (matrix, *factors))
        return numbers(*parts)

    width = length // count
    merged = slab(0, width)
    for start in range(width, count * width, width):
        merged = reduction.pairwise(merged, slab(start, start + width))
    reduced = reduction.along(merged, axis=axis)
    if count * width < length:
        rest = reduction.along(slab(count * width, length), axis=axis)
        reduced = reduction.pairwise(reduced, rest)
    return reduced


def _squares(matrix):
    return ops.square(ops.cast(matrix, "float32"))


def _part(tensor, axis, start, stop):
    """Rows (axis -2) or columns (axis -1) start to stop, or the one there is."""
    if tensor.shape[axis] == 1:
        return tensor
    return tensor[..., start:stop, :] if axis == -2 else tensor[..., start:stop]


def _worth_slabs(matrix, count):
    # A sparse gradient's number of rows may be unknown while tracing.
    if None in matrix.shape or count < 2:
        return False
    return math.prod(matrix.shape) >= MIN_SLAB_ENTRIES and min(matrix.shape[-2:]) > 1


def apart(tensors, after=None):
    """The same tensors, of which the compiler does not know that they are the same."""
    if keras.backend.backend() != "jax":
        return tensors
    import jax

    # Equal barriers are merged; one that also waits for something else is not equal.
    waiting = tensors if after is None else [*tensors, after]
    return jax.lax.optimization_barrier(waiting)[: len(tensors)]


def in_turn(tensor, after):
    """The same tensor, or `Scaled` one, which is not to be had before another one.

    On JAX, XLA:CPU puts operations in an order in which as many as can could run at
    once, and holds what all of them write out. By then barriers are gone; but that this
    adds 0 it cannot know, nor does it find the one entry by itself, behind the change
    of shape.
    """
    if keras.backend.backend() != "jax":
        return tensor
    if isinstance(tensor, Scaled):
        return tensor._replace(values=in_turn(tensor.values, after))
    first = ops.reshape(after, (-1,))[0]
    zero = ops.minimum(ops.cast(first > 0, "int32"), 0)
    if is_half(tensor.dtype):
        # Of the bits: of numbers in two bytes a float32 copy would be written out.
        waiting = integers_of(tensor) + ops.cast(zero, "int16")
        return numbers_of(waiting, tensor.dtype)
    return tensor + ops.cast(zero, tensor.dtype)


def apart_from_what_follows(reduced):
    """The same tensor, a reduction's result, with nothing fused into the reduction.

    On JAX, XLA:CPU takes up to eighteen times as long for a large reduction with which
    it has fused what follows.
    """
    return written_out(reduced) if keras.backend.backend() == "jax" else reduced


def written_out(tensor):
    """The same tensor, which XLA computes by itself, once and not anew at every use.

    XLA fuses a minimum over modes into the pass over the variable, and would find it
    again for every entry; a reduction it never fuses that way. This one is over the
    tensor and the least number, in a form that XLA does not see through.
    """
    if keras.backend.backend() == "jax":
        import jax

        # Over its bits, as integers: after a reduction of floats XLA:CPU has a library
        # compute what follows, as far as that can, and write it out for the rest.
        bits = jax.lax.bitcast_convert_type(tensor, "int32")
        found = _either(bits, least=-(2**31))
        return jax.lax.bitcast_convert_type(found, "float32")
    return _either(tensor, least=-math.inf)


def _either(tensor, least):
    either = ops.where(np.array([True, False]), tensor[..., None], least)
    return _maximum(either, axis=-1, least=least)
