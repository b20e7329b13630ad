"""Which momentum every variable gets, by its shape and rank."""

import itertools
import math
import operator
from collections.abc import Sequence

from et_optimizer.momenta.full import FullMomentum
from et_optimizer.momenta.momentum import Momentum
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


def _for_variable(shape, rank, dtype, refresh_every, own):
    if not own["decay"] or rank == 0 or math.prod(shape) == 0:
        return Momentum()
    matrix = matrix_shape(shape)
    if matrix is None:
        # Vectors are small, so int8 would save little.
        dtype = "bfloat16" if dtype == "int8" else dtype
        return FullMomentum(**own, shape=shape, dtype=dtype)
    rows, columns = matrix
    if rank == AUTO:
        rank = auto_rank(rows, columns)
    if rank is None or rank * (rows + columns) >= rows * columns:
        leading = list(itertools.accumulate(shape, operator.mul)).index(rows) + 1
        return FullMomentum(**own, shape=shape, dtype=dtype, rows=leading)
    return SubspaceMomentum(
        **own,
        rows=rows,
        columns=columns,
        rank=int(rank),
        refresh_every=refresh_every,
        dtype=dtype,
    )
