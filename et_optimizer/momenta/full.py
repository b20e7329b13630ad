"""Momentum of a whole variable."""

import dataclasses

from keras import ops

from et_optimizer.momenta import quantization as stored
from et_optimizer.momenta.momentum import Momentum
from et_optimizer.views.gradients import WrittenUpdate


@dataclasses.dataclass(frozen=True)
class FullMomentum(Momentum):
    """A moving average of the update, a number an entry.

        m ← β₁ m + (1 − β₁) u,   direction = m / (1 − β₁^t)

    Args:
        shape: The variable's shape.
        dtype: `"float32"`, `"bfloat16"`, or `"int8"`: integers of 8 bits, with a scale
            a row of the variable seen as a matrix.
        rows: How many of the leading dimensions are the rows of that matrix.
    """

    shape: tuple = ()
    dtype: str = "float32"
    rows: int = 1

    def plan(self):
        """What is kept: "momentum", and its scales; see `Momentum`."""
        return stored.plan("momentum", self.shape, self.dtype, self._along_row)

    def __call__(self, update, held, step, is_refresh=None):
        """One step; see `Momentum`."""
        average, held = self._average(update.times(1.0 - self.decay), held)
        return WrittenUpdate(average, 1.0 / self.weight(step)), held

    def of_gradient(self, update, held, step, is_refresh=None):
        """One step whose average is of the gradient; see `Momentum`."""
        gradient = update.gradient.plain().times(1.0 - self.decay)
        average, held = self._average(gradient, held)
        return update.of_gradient(average / self.weight(step)), held

    @property
    def _along_row(self):
        return tuple(range(self.rows, len(self.shape)))

    def _average(self, addition, held):
        addition = self.taken_in(ops.cast(addition, "float32"))
        average = self.decay * stored.decode(held) + addition
        return average, stored.encode(average, self.dtype, self._along_row)
