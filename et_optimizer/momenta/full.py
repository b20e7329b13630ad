"""Momentum of a whole variable."""

import dataclasses

from keras import ops

from et_optimizer.momenta import quantization
from et_optimizer.momenta.momentum import Momentum, finite
from et_optimizer.types import Shape, Tensor
from et_optimizer.views.updates import MaterializedUpdate, Update


@dataclasses.dataclass(frozen=True)
class FullMomentum(Momentum):
    """A moving average of the update, one element per entry.

        M ← β M + (1 − β) U,   direction = M / (1 − β^t)

    Args:
        decay, direction_decay, is_corrected, is_of_gradient: As in `Momentum`.
        shape: The variable's shape.
        dtype: Of the average: `"float32"`, `"bfloat16"`, or `"int8"` with one scale per
            row of the variable as a matrix.
        rows: How many of the leading dimensions are the rows of that matrix.
    """

    shape: tuple = ()
    dtype: str = "float32"
    rows: int = 1

    def slots(self) -> dict[str, tuple[Shape, str]]:
        """The average, and its scales; see `Momentum`."""
        return quantization.slots("momentum", self.shape, self.dtype, self._scale_axes)

    def __call__(
        self,
        update: Update,
        state: list[Tensor],
        step: Tensor,
        is_subspace_update: Tensor | None = None,
    ) -> tuple[Update, list[Tensor]]:
        """One step; see `Momentum`."""
        average = quantization.dequantize(state)
        if self.direction_decay is None:
            # Scaled within the pass that makes the update.
            new = update.evaluate(1.0 - self.decay)
            kept = self.decay * average + finite(ops.cast(new, "float32"))
            direction = kept
        else:
            new = finite(ops.cast(update.evaluate(), "float32"))
            kept, direction = self.averages(average, new)
        state = quantization.quantize(kept, self.dtype, self._scale_axes)
        # A quotient and a product with the reciprocal differ in the last bit. Each is
        # kept, so that runs of earlier versions resume exactly.
        if self.is_of_gradient:
            return MaterializedUpdate(direction / self.weight(step)), state
        return MaterializedUpdate(direction, 1.0 / self.weight(step)), state

    @property
    def _scale_axes(self):
        return tuple(range(self.rows, len(self.shape)))
