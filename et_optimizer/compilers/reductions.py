"""Sums and maxima along the axes of a matrix, without materializing their operand."""

import dataclasses
import math
from collections.abc import Callable

import keras
from keras import ops

from et_optimizer.compilers.barriers import barrier, isolate_reduction
from et_optimizer.compilers.layouts import is_sharded

# XLA:CPU under TensorFlow reduces several times faster once a few slabs have been
# added elementwise (measured in benchmarks/). On small tensors this only takes longer
# to compile.
SLABS = 8
MIN_SLAB_ENTRIES = 2**17
# Each mode of a small variable with many modes is summed from the entries at once: its
# cost is the number of operations, not the passes over it.
MAX_ENTRIES_IN_ONE_ROW = 2**12


@dataclasses.dataclass(frozen=True)
class Reduction:
    """How the entries of a slice become one value.

    Attributes:
        along: `(tensor, axis) -> tensor`, over axes of a tensor.
        pairwise: `(tensor, tensor) -> tensor`, entry by entry.
        by_segment: `(vector, segments, count) -> vector`, as `ops.segment_sum`.
    """

    along: Callable
    pairwise: Callable
    by_segment: Callable


def _largest(tensor, axis):
    """The largest of values ≥ 0 along axes, and 0 where there is none."""
    # A sparse gradient may have no rows, and their number is unknown while tracing.
    may_be_empty = 0 in tensor.shape or None in tensor.shape
    return ops.max(tensor, axis=axis, initial=0.0 if may_be_empty else None)


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
    if not is_sharded():
        tensor = ops.reshape(tensor, (-1, columns))
    return sum_of(_squares, tensor)


def sum_of(elementwise, matrix, factors=()):
    """The sum over a matrix of an elementwise function of it; see `reduce_along`."""
    if is_sharded():
        matrix, *factors = barrier([matrix, *factors])
        return ops.sum(elementwise(matrix, *factors))
    rows, columns = matrix.shape[-2:]
    axis = -1 if rows is None or rows < columns else -2
    sums = reduce_along(matrix, axis, SUM, elementwise, factors)
    return ops.sum(isolate_reduction(sums))


def sum_in_one_pass(tensor):
    """The sum of all entries ≥ 0 of a tensor, which is not materialized.

    XLA:CPU calls a library for sums of float32, which does not do the integer
    operations before it, so those were materialized; it does not know conditional sums.
    Reductions of more than 32 entries are split in two, the first of which is fused
    with nothing.
    """
    if keras.backend.backend() != "jax" or not tensor.shape or is_sharded():
        return ops.sum(tensor)
    import jax

    def add(total, entry):
        return jax.numpy.where(entry > 0, total + entry, total)

    missing = -tensor.shape[-1] % 32
    tensor = ops.pad(tensor, [(0, 0)] * (tensor.ndim - 1) + [(0, missing)])
    grouped = ops.reshape(tensor, (*tensor.shape[:-1], -1, 32))
    sums = jax.lax.reduce(grouped, 0.0, add, (tensor.ndim,))
    return ops.sum(isolate_reduction(sums))


def propagate_nan(maxima, matrix):
    """Maxima over a matrix, or infinity if the matrix contains NaN.

    The maximum of XLA:CPU ignores NaN, and so does TensorFlow's over segments. A sum
    does not.
    """
    if keras.backend.backend() == "torch":
        return maxima

    def small(entries):
        return ops.cast(entries, "float32") * 2.0**-64

    has_nan = ops.isnan(sum_of(small, matrix))
    return [ops.where(has_nan, math.inf, vector) for vector in maxima]


def reduce_along(matrix, axis, reduction, elementwise, factors=(), after=None):
    """Reduces an elementwise function of a matrix over its columns or its rows.

    Args:
        matrix: Tensor of shape (..., rows, columns).
        axis: -1 for one result per row, -2 for one per column.
        reduction: A `Reduction`.
        elementwise: `(matrix, *factors) -> tensor`: float32 of the matrix's shape.
        factors: `()`, or a tensor of shape (..., rows or 1, 1) and one of shape
            (..., 1, columns or 1).
        after: A tensor to compute first, or `None`.

    Returns:
        A tensor of shape (..., rows) or (..., columns).
    """
    matrix, *factors = barrier([matrix, *factors], after)
    length = matrix.shape[axis]
    # A slab is at least as wide as the 16 float32 of a vector register, or 4 rows high.
    count = min(SLABS, (length or 0) // (4 if axis == -2 else 16))
    if keras.backend.backend() == "jax" or not _is_worth_slabs(matrix, count):
        return reduction.along(elementwise(matrix, *factors), axis=axis)

    def slab(start, stop):
        parts = (_part(tensor, axis, start, stop) for tensor in (matrix, *factors))
        return elementwise(*parts)

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
    """Rows (axis -2) or columns (axis -1) start to stop, or the only one."""
    if tensor.shape[axis] == 1:
        return tensor
    return tensor[..., start:stop, :] if axis == -2 else tensor[..., start:stop]


def _is_worth_slabs(matrix, count):
    # The number of rows of a sparse gradient may be unknown while tracing.
    if None in matrix.shape or count < 2:
        return False
    return math.prod(matrix.shape) >= MIN_SLAB_ENTRIES and min(matrix.shape[-2:]) > 1
