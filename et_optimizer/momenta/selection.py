"""Which momentum every variable gets, by its shape and rank."""

import itertools
import math
import operator
from collections.abc import Sequence

from et_optimizer.momenta.full import FullMomentum
from et_optimizer.momenta.momentum import Momentum
from et_optimizer.momenta.polar import PolarMomentum
from et_optimizer.momenta.quantization import PACKED
from et_optimizer.momenta.subspace import AUTO, SubspaceMomentum, auto_rank
from et_optimizer.types import MomentumRank, Shape
from et_optimizer.views.tensor_index import matrix_shape


def for_variables(
    shapes: Sequence[Shape],
    ranks: Sequence[MomentumRank],
    dtype: str,
    refresh_every: int,
    **own,
) -> list[Momentum]:
    """The momentum of every variable, with their subspace updates staggered.

    Args:
        shapes: The variables' shapes.
        ranks: `momentum_rank` for each of them.
        dtype, refresh_every: `momentum_dtype` and `refresh_every`.
        **own: The arguments of `Momentum`.

    Returns:
        A list of `Momentum`.
    """
    found = [
        _for_variable(shape, rank, dtype, refresh_every, own)
        for shape, rank in zip(shapes, ranks)
    ]
    # Staggered, so that no step takes much longer than another.
    count = sum(momentum.is_of_matrix for momentum in found)
    position = itertools.count()
    return [
        momentum.staggered(next(position), count) if momentum.is_of_matrix else momentum
        for momentum in found
    ]


def polar(shape: Shape, stack: int, dtype: str, decay: float) -> PolarMomentum:
    """The polar factor of the momentum of one variable, with Nesterov's direction.

    Args:
        shape: The variable's shape.
        stack: How many leading dimensions stack matrices.
        dtype: `momentum_dtype`.
        decay: β.
    """
    rows = _leading(shape[stack:])
    average = Momentum()
    if decay:
        # β M' + (1 − β) U, with the new average M', is β² M + (1 − β²) U.
        average = FullMomentum(
            decay=decay,
            direction_decay=decay**2,
            shape=shape,
            dtype=dtype,
            rows=stack + rows,
        )
    return PolarMomentum(momentum=average, shape=shape, rows=rows, stack=stack)


def _leading(shape):
    """How many of the leading dimensions are the rows of a variable as a matrix."""
    matrix = matrix_shape(shape)
    assert matrix is not None
    rows, _ = matrix
    return list(itertools.accumulate(shape, operator.mul)).index(rows) + 1


def _for_variable(shape, rank, dtype, refresh_every, own):
    if not own["decay"] or rank == 0 or math.prod(shape) == 0:
        return Momentum()
    matrix = matrix_shape(shape)
    if matrix is None:
        # Vectors are small, so fewer bits would save little.
        dtype = dtype if dtype == "float32" else "bfloat16"
        return FullMomentum(**own, shape=shape, dtype=dtype)
    rows, columns = matrix
    if rank == AUTO:
        rank = auto_rank(rows, columns)
    if rank is None or rank * (rows + columns) >= rows * columns:
        return FullMomentum(**own, shape=shape, dtype=dtype, rows=_leading(shape))
    # Vectors of a basis have scales of their own, which a packed tensor has not.
    dtype = "int8" if dtype in PACKED else dtype
    return SubspaceMomentum(
        **own,
        rows=rows,
        columns=columns,
        rank=int(rank),
        refresh_every=refresh_every,
        dtype=dtype,
    )
