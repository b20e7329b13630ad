"""Momentum in a subspace (Nguyen, Nguyen, 2024, arXiv:2411.07120, Section 4)."""

import dataclasses
import functools
from typing import Final

import numpy as np
from keras import ops

from et_optimizer.compilers import tracing
from et_optimizer.momenta import quantization as stored
from et_optimizer.momenta.momentum import Momentum
from et_optimizer.views.updates import UpdatePlusProduct

AUTO: Final = "auto"
# "auto" keeps a direction for so many of a matrix's shorter side, and so many at least.
WIDTH_A_DIRECTION, LEAST_DIRECTIONS = 32, 8
# The share of the old basis in the new one. It completes the basis where the gradient
# has fewer directions, and is so far above rounding that this does not choose them.
SHARE_OF_OLD_BASIS = 1e-4
# Of the iteration that makes a basis orthonormal.
STEPS = 32


def auto_rank(rows: int, columns: int) -> int:
    """How many directions `"auto"` keeps of a matrix."""
    return max(LEAST_DIRECTIONS, min(rows, columns) // WIDTH_A_DIRECTION)


@dataclasses.dataclass(frozen=True)
class SubspaceMomentum(Momentum):
    """A moving average of the update inside a few directions; outside, the update.

    For an m × n update U with m ≤ n and an orthonormal basis P of r directions, m × r:

        R = Pᵀ U,   M ← β₁ M + (1 − β₁) R
        direction = P M / (1 − β₁^t) + (U − P R)

    (for m > n the same of Uᵀ). Every so many steps, before that,

        P' = orth(U (Uᵀ P)),   M ← (P'ᵀ P) M,   P ← P'

    a step of subspace iteration towards the leading left singular vectors, by which
    the momentum that the new basis can hold is carried over. (To U (Uᵀ P), of length 1,
    a ten-thousandth of P is added, for gradients of fewer directions than r.)

    Args:
        rows, columns: The variable's shape as a matrix, m and n.
        rank: r, less than m and n.
        refresh_every: The number of steps from one refresh to the next.
        offset: Which of them: refreshes are at steps t with (t − 1 + offset) a
            multiple of `refresh_every`; and at the first.
        dtype: Of M: `"float32"`, `"bfloat16"`, or `"int8"`, with a scale a direction.
            The basis is in bfloat16 but for the first.
    """

    rows: int = 0
    columns: int = 0
    rank: int = 0
    refresh_every: int = 50
    offset: int = 0
    dtype: str = "bfloat16"

    def plan(self):
        """What is kept: basis, momentum, and its scales; see `Momentum`."""
        shorter, longer = sorted((self.rows, self.columns))
        basis = {"momentum_basis": ((shorter, self.rank), self._basis_dtype)}
        shape = (self.rank, longer) if self._is_wide else (longer, self.rank)
        return basis | stored.plan("momentum", shape, self.dtype, self._along_direction)

    def start(self, name):
        """The basis starts at random directions; see `Momentum`."""
        if name != "momentum_basis":
            return None
        return _random_basis(min(self.rows, self.columns), self.rank)

    def is_refresh(self, step):
        """Whether a step is one that finds another basis; see `Momentum`."""
        place = ops.cast(step, "int32") - 1
        return ops.logical_or(
            (place + self.offset) % self.refresh_every == 0, place == 0
        )

    def __call__(self, update, held, step, is_refresh=None):
        """One step; see `Momentum`."""
        update = update.as_matrix(self.rows, self.columns)
        left, right, held = self._correction(update, held, step, is_refresh)
        return UpdatePlusProduct(update, left, right), held

    def of_gradient(self, update, held, step, is_refresh=None):
        """One step whose average is of the gradient; see `Momentum`."""
        plain = update.gradient.plain()
        gradient = plain.as_matrix(self.rows, self.columns)
        left, right, held = self._correction(gradient, held, step, is_refresh)
        if gradient is plain:
            return update.of_gradient_plus(left, right), held
        averaged = UpdatePlusProduct(gradient, left, right)
        return update.of_gradient(averaged.times(1.0)), held

    @property
    def _basis_dtype(self):
        return "float32" if self.dtype == "float32" else "bfloat16"

    @property
    def _is_wide(self):
        return self.rows <= self.columns

    @property
    def _along_direction(self):
        return (1,) if self._is_wide else (0,)

    def _correction(self, update, held, step, is_refresh):
        """What turns an update into the direction: a product of two thin matrices."""
        if is_refresh is None:
            is_refresh = self.is_refresh(step)
        basis, average = self._decoded(self._refreshed(update, held, is_refresh))
        inside = self.taken_in(self._inside(update, basis))
        average = self.decay * average + (1.0 - self.decay) * inside
        held = self._encoded(basis, average)
        change = average / self.weight(step) - inside
        if self._is_wide:
            return basis, change, held
        return change, ops.transpose(basis), held

    def _inside(self, update, basis):
        """Pᵀ U, or of a tall one U P."""
        if self._is_wide:
            return update.left_product(basis)
        return update.right_product(basis)

    def _refreshed(self, update, held, is_due):
        """The basis and the momentum in it, where it is time for another basis."""

        def refreshed():
            basis, average = self._decoded(held)
            new = self._iterated(update, basis)
            turn = ops.matmul(ops.transpose(new), basis)
            if self._is_wide:
                return self._encoded(new, ops.matmul(turn, average))
            return self._encoded(new, ops.matmul(average, ops.transpose(turn)))

        if tracing.is_known(is_due):
            # JAX would compile both ways anew at every step.
            return refreshed() if bool(is_due) else held
        return ops.cond(is_due, refreshed, lambda: list(held))

    def _iterated(self, update, basis):
        """The basis after a step of subspace iteration."""
        inside = _over_largest(self._inside(update, basis))
        if self._is_wide:
            turned = update.right_product(ops.transpose(inside))
        else:
            turned = ops.transpose(update.left_product(inside))
        return _orthonormal(_of_length_1(turned) + SHARE_OF_OLD_BASIS * basis)

    def _decoded(self, held):
        return ops.cast(held[0], "float32"), stored.decode(held[1:])

    def _encoded(self, basis, average):
        average = stored.encode(average, self.dtype, self._along_direction)
        return [ops.cast(basis, self._basis_dtype), *average]


def _orthonormal(matrix):
    """The matrix of orthonormal columns that is nearest to one of length about 1.

    Its columns span the same space. By the iteration of Newton and Schulz, whose steps
    are products alone: a small singular value grows by half in each of them, from
    `SHARE_OF_OLD_BASIS` to 1 in 23, and is then exact in six more. Of XLA's own QR on
    TensorFlow the program takes a third longer to compile.
    """
    identity = ops.eye(matrix.shape[1])

    def nearer(_, found):
        gram = ops.matmul(ops.transpose(found), found)
        return ops.matmul(found, 1.5 * identity - 0.5 * gram)

    if tracing.is_known(matrix):
        return functools.reduce(lambda found, _: nearer(_, found), range(STEPS), matrix)
    return ops.fori_loop(0, STEPS, nearer, matrix)


def _over_largest(matrix):
    """The matrix over its largest entry; of zeros, or with NaN or infinity, it is 0."""
    largest = ops.max(ops.abs(matrix))
    is_usable = ops.logical_and(ops.isfinite(largest), largest > 0)
    return ops.where(is_usable, matrix, 0.0) / ops.where(is_usable, largest, 1.0)


def _of_length_1(matrix):
    """The matrix over its norm; one of zeros, or with NaN or infinity, is 0."""
    scaled = _over_largest(matrix)
    return scaled / ops.sqrt(ops.maximum(ops.sum(ops.square(scaled)), 1.0))


@functools.lru_cache(maxsize=64)
def _random_basis(size, rank):
    """The same random orthonormal directions every time."""
    gaussian = np.random.default_rng(0).standard_normal((size, rank))
    return np.linalg.qr(gaussian)[0].astype("float32")
