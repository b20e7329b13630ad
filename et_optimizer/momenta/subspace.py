"""Momentum in a subspace (Nguyen, Nguyen, 2024, arXiv:2411.07120, Section 4)."""

import dataclasses
import functools
from typing import Any, Final

import numpy as np
from keras import ops

from et_optimizer import checks
from et_optimizer.compilers import symbolic
from et_optimizer.compilers.tracing import is_concrete
from et_optimizer.momenta import quantization
from et_optimizer.momenta.momentum import Momentum, finite
from et_optimizer.types import Self, Shape, Tensor
from et_optimizer.views.updates import Update, UpdatePlusProduct

AUTO: Final = "auto"
# "auto" is this share of a matrix's shorter side, and at least this rank.
WIDTH_PER_RANK, LEAST_RANK = 32, 8
# The share of the old basis in the new one. It completes the basis where the gradient
# has a lower rank, and is small enough not to choose directions itself.
SHARE_OF_OLD_BASIS = 1e-4
# Steps of the Newton-Schulz iteration that makes a basis orthonormal, a few more than
# it needs.
NEWTON_SCHULZ_STEPS = 32


def auto_rank(rows: int, columns: int) -> int:
    """The rank that `momentum_rank="auto"` gives a matrix."""
    return max(LEAST_RANK, min(rows, columns) // WIDTH_PER_RANK)


def check_rank(rank: object) -> None:
    """Raises `ValueError` unless this can be `momentum_rank` for a variable."""
    is_whole = checks.is_integer(rank) and rank >= 0
    if not is_whole and rank is not None and rank != AUTO:
        raise ValueError(
            'momentum_rank must be "auto", an integer ≥ 0 (0 for no momentum), '
            "None for full momentum, or a dict from regular expressions on paths "
            f"to these; received momentum_rank={rank!r}."
        )


@dataclasses.dataclass(frozen=True)
class SubspaceMomentum(Momentum):
    """A moving average of the update inside a subspace; outside it, the update itself.

    For an m × n update U with m ≤ n and an orthonormal basis P of rank r, m × r:

        R = Pᵀ U,   M ← β M + (1 − β) R
        direction = P M / (1 − β^t) + (U − P R)

    (for m > n the same with Uᵀ). Before that, at every `refresh_every`-th step,

        P' = orth(U (Uᵀ P)),   M ← (P'ᵀ P) M,   P ← P'

    which is a step of subspace iteration towards the leading left singular vectors, and
    carries over the momentum that the new basis can represent. (One ten-thousandth of P
    is added to the normalized U (Uᵀ P), for gradients of a rank below r.)

    Args:
        decay, direction_decay, is_corrected, is_of_gradient: As in `Momentum`.
        rows, columns: The variable's shape as a matrix, m and n.
        rank: r, less than m and n.
        refresh_every: The number of steps from one subspace update to the next.
        offset: Subspace updates are at step 1 and at steps t where t − 1 + offset is a
            multiple of `refresh_every`.
        dtype: Of M: `"float32"`, `"bfloat16"`, or `"int8"` with one scale per basis
            vector. The basis is in float32 if M is, and in bfloat16 otherwise.
    """

    rows: int = 0
    columns: int = 0
    rank: int = 0
    refresh_every: int = 50
    # Not compared: whether to update is an argument of the step, so that variables with
    # different offsets share one traced step.
    offset: int = dataclasses.field(default=0, compare=False)
    dtype: str = "bfloat16"

    def __post_init__(self):
        if self.dtype in quantization.PACKED:
            raise ValueError(
                "The average in a subspace is float32, bfloat16 or int8: its vectors "
                f"have scales of their own; received dtype={self.dtype!r}. Use int8, "
                "or a FullMomentum."
            )

    is_of_matrix = True
    has_large_temporaries = True

    def slots(self) -> dict[str, tuple[Shape, str]]:
        """The basis, the average and its scales; see `Momentum`."""
        shorter = min(self.rows, self.columns)
        basis = {"momentum_basis": ((shorter, self.rank), self._basis_dtype)}
        return basis | self._quantization.slots("momentum")

    def initial(self, name: str) -> Any:
        """A random orthonormal basis; see `Momentum`."""
        # A plan of the memory has no use for the values.
        if name != "momentum_basis" or symbolic.is_active():
            return None
        return _random_basis(min(self.rows, self.columns), self.rank)

    def is_subspace_update(self, step: Tensor) -> Tensor:
        """Whether the basis is updated at a step; see `Momentum`."""
        since_start = ops.cast(step, "int32") - 1
        is_due = (since_start + self.offset) % self.refresh_every == 0
        return ops.logical_or(is_due, since_start == 0)

    def staggered(self, position: int, count: int) -> Self:
        """With the updates of `count` variables spread in time; see `Momentum`."""
        offset = position * self.refresh_every // count
        return dataclasses.replace(self, offset=offset)

    def __call__(
        self,
        update: Update,
        state: list[Tensor],
        step: Tensor,
        is_subspace_update: Tensor | None = None,
        seed: Tensor = 0,
    ) -> tuple[Update, list[Tensor]]:
        """One step; see `Momentum`."""
        if is_subspace_update is None:
            is_subspace_update = self.is_subspace_update(step)
        update = update.as_matrix(self.rows, self.columns)
        state = self._with_new_basis(update, state, is_subspace_update)
        basis, average = self._dequantized(state)
        inside = finite(self._project(update, basis))
        kept, direction = self.averages(average, inside)
        change = direction / self.weight(step) - inside
        left, right = (
            (basis, change) if self._is_wide else (change, ops.transpose(basis))
        )
        return UpdatePlusProduct(update, left, right), self._quantized(basis, kept)

    @property
    def _basis_dtype(self):
        return "float32" if self.dtype == "float32" else "bfloat16"

    @property
    def _is_wide(self):
        return self.rows <= self.columns

    @property
    def _quantization(self):
        longer = max(self.rows, self.columns)
        if self._is_wide:
            return quantization.of_dtype(self.dtype, (self.rank, longer), (1,))
        return quantization.of_dtype(self.dtype, (longer, self.rank), (0,))

    def _project(self, update, basis):
        """Pᵀ U, or U P if U has more rows than columns."""
        if self._is_wide:
            return update.left_product(basis)
        return update.right_product(basis)

    def _with_new_basis(self, update, state, is_due):
        """The state after a subspace update, if one is due."""

        def updated():
            basis, average = self._dequantized(state)
            new = self._iterate(update, basis)
            turn = ops.matmul(ops.transpose(new), basis)
            if self._is_wide:
                return self._quantized(new, ops.matmul(turn, average))
            return self._quantized(new, ops.matmul(average, ops.transpose(turn)))

        if is_concrete(is_due):
            # JAX would compile both branches again at every step.
            return updated() if bool(is_due) else state
        return ops.cond(is_due, updated, lambda: list(state))

    def _iterate(self, update, basis):
        """The basis after a step of subspace iteration."""
        inside = _over_largest(self._project(update, basis))
        if self._is_wide:
            turned = update.right_product(ops.transpose(inside))
        else:
            turned = ops.transpose(update.left_product(inside))
        return _orthonormal(_normalized(turned) + SHARE_OF_OLD_BASIS * basis)

    def _dequantized(self, state):
        average = self._quantization.dequantize(state[1:])
        return ops.cast(state[0], "float32"), average

    def _quantized(self, basis, average):
        average = self._quantization.quantize(average)
        return [ops.cast(basis, self._basis_dtype), *average]


def _orthonormal(matrix):
    """The nearest matrix with orthonormal columns to one with a norm of about 1.

    Its columns span the same space. Newton-Schulz iteration needs only products: each
    step multiplies a small singular value by 1.5, which takes it from
    `SHARE_OF_OLD_BASIS` to about 1 in 23 steps, and six more make it exact. With XLA's
    QR, TensorFlow programs take a third longer to compile.
    """
    identity = ops.eye(matrix.shape[1])

    def nearer(_, found):
        gram = ops.matmul(ops.transpose(found), found)
        return ops.matmul(found, 1.5 * identity - 0.5 * gram)

    steps = NEWTON_SCHULZ_STEPS
    if is_concrete(matrix):
        return functools.reduce(lambda found, _: nearer(_, found), range(steps), matrix)
    return ops.fori_loop(0, steps, nearer, matrix)


def _over_largest(matrix):
    """The matrix divided by its largest absolute entry; 0 if that is 0, inf or NaN."""
    largest = ops.max(ops.abs(matrix))
    is_usable = ops.logical_and(ops.isfinite(largest), largest > 0)
    return ops.where(is_usable, matrix, 0.0) / ops.where(is_usable, largest, 1.0)


def _normalized(matrix):
    """The matrix divided by its Frobenius norm; 0 if that is 0 or not finite."""
    scaled = _over_largest(matrix)
    return scaled / ops.sqrt(ops.maximum(ops.sum(ops.square(scaled)), 1.0))


@functools.lru_cache(maxsize=64)
def _random_basis(size, rank):
    """The same random orthonormal matrix every time."""
    gaussian = np.random.default_rng(0).standard_normal((size, rank))
    return np.linalg.qr(gaussian)[0].astype("float32")
