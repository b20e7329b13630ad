"""The polar factor of a momentum (Jordan et al., 2024: Muon)."""

import dataclasses
import math

from keras import ops

from et_optimizer.checks import SMALLEST_FLOAT32
from et_optimizer.compilers.linear_algebra import in_fast_precision
from et_optimizer.momenta.full import FullMomentum
from et_optimizer.momenta.momentum import Momentum
from et_optimizer.types import Shape, Tensor
from et_optimizer.views.updates import MaterializedUpdate, Update

# a, b, c of each step of the iteration. Each is the odd polynomial of degree five that
# comes closest to 1 on the interval to which the steps before it have taken the
# singular values from [LEAST, 1] (as in Amsel et al., 2025, arXiv:2505.16932).
LEAST = 0.03
STEPS = ((7.3625, -20.7434, 15.1606), (2.9175, -2.1824, 0.4755))
# Where these take singular values from [LEAST, 1].
RANGE = (0.62, 1.38)
# The root mean square of an update's entries, about that of Adam's updates (Liu et al.,
# 2025, arXiv:2502.16982).
RMS_OF_ADAM = 0.2
# So that a matrix of zeros is not divided by 0. With ‖X‖ = 1, the norm of (X Xᵀ)² is
# at least the shorter side to the power −1.5.
SMALLEST = 1e-24


@dataclasses.dataclass(frozen=True)
class PolarMomentum(Momentum):
    """The polar factor of a full momentum: all its singular values are made equal.

    For the direction N of that momentum, m × n, with the singular value decomposition
    N = U Σ Vᵀ:

        direction = 0.2 √max(m, n) · U Vᵀ

    It is the limit of Shampoo's step with nothing accumulated,
    (N Nᵀ)^(−1/4) N (Nᵀ N)^(−1/4) = U Vᵀ.

    Args:
        decay, direction_decay, is_corrected, is_of_gradient: No effect; those of the
            other momentum count.
        momentum: The other momentum: a `FullMomentum`, or `Momentum()` for none.
        shape: The variable's shape.
        rows: How many of the leading dimensions, after the stack, are the rows of the
            matrix.
        stack: How many leading dimensions stack matrices, such as those of experts.
    """

    momentum: Momentum = Momentum()
    shape: Shape = ()
    rows: int = 1
    stack: int = 0

    averages_bounded_updates = True
    has_large_temporaries = True

    def __post_init__(self):
        if not isinstance(self.momentum, FullMomentum) and self.momentum.slots():
            raise ValueError(
                "PolarMomentum takes a FullMomentum, or Momentum() for none: outside "
                "of a subspace nothing is averaged, and the polar factor would make "
                f"that noise as large as the average; received {self.momentum!r}."
            )

    @property
    def moves_all_entries(self) -> bool:
        """Always; see `Momentum`."""
        return True

    def slots(self) -> dict[str, tuple[Shape, str]]:
        """The slots of the other momentum; see `Momentum`."""
        return self.momentum.slots()

    @property
    def needs_seed(self) -> bool:
        """As the other momentum; see `Momentum`."""
        return self.momentum.needs_seed

    def __call__(
        self,
        update: Update,
        state: list[Tensor],
        step: Tensor,
        is_subspace_update: Tensor | None = None,
        seed: Tensor = 0,
    ) -> tuple[Update, list[Tensor]]:
        """One step; see `Momentum`."""
        average, state = self.momentum(update, state, step, is_subspace_update, seed)
        stack, split = self.shape[: self.stack], self.stack + self.rows
        rows = math.prod(self.shape[self.stack : split])
        columns = math.prod(self.shape[split:])
        matrix = ops.reshape(average.evaluate(), (*stack, rows, columns))
        found = ops.reshape(polar_factor(matrix), self.shape)
        return MaterializedUpdate(
            found, RMS_OF_ADAM * math.sqrt(max(rows, columns))
        ), state


def polar_factor(matrix: Tensor) -> Tensor:
    """U Vᵀ for a matrix U Σ Vᵀ, with singular values about 1 in place of 1.

    Newton–Schulz iteration X ← a X + b (X Xᵀ) X + c (X Xᵀ)² X, with the coefficients
    `STEPS`. It starts from X / ‖(X Xᵀ)²‖^(1/4), an upper bound of the largest singular
    value that is closer to it than ‖X‖. The first step computes (X Xᵀ)² anyway.

    Args:
        matrix: Float32, of shape (..., rows, columns).

    Returns:
        A tensor of that shape. Singular values of at least `LEAST` times that bound are
        within `RANGE`, and smaller ones grow by a factor of 20. In bfloat16, on
        accelerators, those below a tenth are rounded: to 0.46 at the least where 0.62
        is due. A matrix of zeros stays one.
    """
    is_tall = matrix.shape[-2] > matrix.shape[-1]
    wide = ops.swapaxes(matrix, -1, -2) if is_tall else matrix

    def iterate(found: Tensor) -> Tensor:
        bound = None
        for a, b, c in STEPS:
            gram = ops.matmul(found, ops.swapaxes(found, -1, -2))
            square = ops.matmul(gram, gram)
            if bound is None:
                bound = _norm(square) ** 0.25
                a, b, c = a / bound, b / bound**3, c / bound**5
            found = a * found + ops.matmul(b * gram + c * square, found)
        return found

    # Squares of its entries may leave float32's range.
    largest = ops.max(ops.abs(wide), axis=(-2, -1), keepdims=True)
    wide = wide / ops.maximum(largest, SMALLEST_FLOAT32)
    wide = wide / ops.maximum(_norm(wide), 1.0)
    found = in_fast_precision(iterate, wide)
    return ops.swapaxes(found, -1, -2) if is_tall else found


def _norm(matrix):
    """The Frobenius norm of each matrix, at least a number that can be divided by."""
    squares = ops.square(ops.cast(matrix, "float32"))
    total = ops.sum(squares, axis=(-2, -1), keepdims=True)
    return ops.cast(ops.sqrt(ops.maximum(total, SMALLEST)), matrix.dtype)
