"""What every momentum has in common, and no momentum at all."""

import dataclasses
import math
from typing import Any

from keras import ops

from et_optimizer.types import Self, Shape, Tensor
from et_optimizer.views.updates import Update

# Above any sensible update, and far enough below the largest float32 to be averaged.
LARGEST_UPDATE = 1e30


@dataclasses.dataclass(frozen=True)
class Momentum:
    """No momentum: every update is the direction of its step.

    A momentum is pure: it holds no variable and knows no framework except `keras.ops`.

    Args:
        decay: β in [0, 1), the decay of the moving average that is kept.
        direction_decay: The decay of the average that becomes the direction,
            β₁ M + (1 − β₁) U from the kept average M before the step, as in Lion.
            `None` takes the kept average after the step.
        is_corrected: Whether the average is corrected for its start at 0, as in Adam.
        is_of_gradient: Whether gradients are averaged, to be preconditioned afterwards.
    """

    decay: float = 0.0
    direction_decay: float | None = None
    is_corrected: bool = True
    is_of_gradient: bool = False

    # Whether updates are averaged as matrices, by their products with thin matrices.
    is_of_matrix = False
    # Whether `update_bound` also applies to what it averages.
    averages_bounded_updates = False
    # Whether its temporaries are as large as the variable, so that a program should not
    # have those of several variables at once.
    has_large_temporaries = False

    @property
    def needs_seed(self) -> bool:
        """Whether a step draws random bits."""
        return False

    @property
    def moves_all_entries(self) -> bool:
        """Whether entries move whose gradient is 0, so that sparse steps are dense."""
        return bool(self.slots())

    def slots(self) -> dict[str, tuple[Shape, str]]:
        """The slots of a variable: a dict from name to `(shape, dtype)`."""
        return {}

    def initial(self, name: str) -> Any:
        """The initial value of a slot: an array, or `None` for zeros."""
        return None

    def is_subspace_update(self, step: Tensor) -> Tensor:
        """Whether the basis is updated at a step, t from 1: a scalar."""
        return False

    def staggered(self, position: int, count: int) -> Self:
        """This momentum, as one of `count` whose subspace updates are spread in time.

        Args:
            position: Which of them it is, from 0.
            count: How many there are.
        """
        return self

    def __call__(
        self,
        update: Update,
        state: list[Tensor],
        step: Tensor,
        is_subspace_update: Tensor | None = None,
        seed: Tensor = 0,
    ) -> tuple[Update, list[Tensor]]:
        """One step.

        Args:
            update: An `et_optimizer.views.updates.Update`.
            state: List of tensors, in the order of `slots`.
            step: Scalar float32 tensor, t from 1.
            is_subspace_update: Scalar, whether to update the basis. `None` asks
                `is_subspace_update(step)`.
            seed: Scalar int32, the seed of the variable in this step, from
                `et_optimizer.random_bits.seed`. Used if `needs_seed`.

        Returns:
            `(direction, new_state)`; the direction is an update.
        """
        return update, state

    def averages(self, average: Tensor, new: Tensor) -> tuple[Tensor, Tensor]:
        """The kept average after a step, and the average that is the direction."""
        kept = self.decay * average + (1.0 - self.decay) * new
        if self.direction_decay is None:
            return kept, kept
        beta = self.direction_decay
        return kept, beta * average + (1.0 - beta) * new

    def weight(self, step: Tensor) -> Tensor:
        """The sum of the weights in the direction, or 1 if it is not corrected."""
        if not self.is_corrected:
            return 1.0
        if self.direction_decay is not None:
            return 1.0 - self.direction_decay * ops.power(self.decay, step - 1.0)
        # 1 − β^t without the cancellation at small t.
        return -ops.expm1(step * math.log(self.decay))


def finite(update):
    """An update without NaN or infinities, for an average to take in.

    Where second moments are estimated by an outer product, one huge gradient makes the
    estimates of other entries so small that their updates overflow float32.
    """
    update = ops.where(ops.isnan(update), 0.0, update)
    return ops.clip(update, -LARGEST_UPDATE, LARGEST_UPDATE)
