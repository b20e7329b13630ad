"""What all momenta have in common, and none at all."""

import dataclasses
import math

from keras import ops

# Above any update that is meant, and far enough from the end of float32 to be averaged.
LARGEST_UPDATE = 1e30


@dataclasses.dataclass(frozen=True)
class Momentum:
    """No momentum: every update is the direction.

    Args:
        decay: β₁ in [0, 1).
        is_corrected: Whether the average's start at 0 is corrected for, as in Adam.
    """

    decay: float = 0.0
    is_corrected: bool = True

    @staticmethod
    def taken_in(update):
        """What an average takes in of an update, whose entries may be infinite.

        Where second moments are estimated by an outer product, one huge gradient makes
        the estimates of others so small that their updates leave float32.
        """
        update = ops.where(ops.isnan(update), 0.0, update)
        return ops.clip(update, -LARGEST_UPDATE, LARGEST_UPDATE)

    def plan(self):
        """What is kept for a variable.

        Returns:
            A dict from name to `(shape, dtype)`.
        """
        return {}

    def start(self, name):
        """What one of the names of `plan` starts at: an array, or `None` for zeros."""
        return None

    def is_refresh(self, step):
        """Whether a step, t from 1, is one that refreshes what is held: a scalar."""
        return False

    def __call__(self, update, held, step, is_refresh=None):
        """One step.

        Args:
            update: An update; see `et_optimizer.views.updates`.
            held: List of tensors, in the order of `plan`.
            step: Scalar float32 tensor, t from 1.
            is_refresh: Whether what is held is refreshed; as `is_refresh` says, where
                it is `None`.

        Returns:
            `(direction, new_held)`; the direction is an update.
        """
        return update, held

    def of_gradient(self, update, held, step, is_refresh=None):
        """One step whose average is of the gradient, before it is scaled.

        Args:
            update: An update made of a gradient; see `GradientUpdate`.
            held, step, is_refresh: As for a call.

        Returns:
            As a call: the update's rule, for the averaged gradient.
        """
        return update, held

    def weight(self, step):
        """What the weights of the averaged updates add up to, where it matters."""
        if not self.is_corrected:
            return 1.0
        # 1 − β₁^t without the cancellation at small t.
        return -ops.expm1(step * math.log(self.decay))
