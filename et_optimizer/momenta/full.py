"""Momentum of a whole variable."""

import dataclasses

from keras import ops

from et_optimizer.compilers.barriers import barrier
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
        dtype: Of the average: `"float32"`, `"bfloat16"`, `"int8"` with one scale per
            row of the variable as a matrix, or `"int4"` or `"int3"`, packed, with one
            scale and one seed; see `quantization`.
        rows: How many of the leading dimensions are the rows of that matrix.
    """

    shape: tuple = ()
    dtype: str = "float32"
    rows: int = 1

    def slots(self) -> dict[str, tuple[Shape, str]]:
        """The average, and its scales; see `Momentum`."""
        return self._quantization.slots("momentum")

    @property
    def needs_seed(self) -> bool:
        """Whether the average is dithered; see `Momentum`."""
        return self._quantization.needs_seed

    def __call__(
        self,
        update: Update,
        state: list[Tensor],
        step: Tensor,
        is_subspace_update: Tensor | None = None,
        seed: Tensor = 0,
    ) -> tuple[Update, list[Tensor]]:
        """One step; see `Momentum`."""
        scale = None
        if self.needs_seed:
            # In a pass of its own, so that the average is not materialized.
            scale = self._quantization.scale(self._averages(update, state)[0])
            state = barrier(state, after=scale)
        kept, direction = self._averages(update, state)
        state = self._quantization.quantize(kept, scale, seed)
        # A quotient and a product with the reciprocal differ in the last bit. Each is
        # kept, so that runs of earlier versions resume exactly.
        if self.is_of_gradient:
            return MaterializedUpdate(direction / self.weight(step)), state
        return MaterializedUpdate(direction, 1.0 / self.weight(step)), state

    def _averages(self, update, state):
        """The average after a step, and that which is the direction."""
        average = self._quantization.dequantize(state)
        if self.direction_decay is None:
            # Scaled within the pass that makes the update.
            new = update.evaluate(1.0 - self.decay)
            kept = self.decay * average + finite(ops.cast(new, "float32"))
            return kept, kept
        return self.averages(average, finite(ops.cast(update.evaluate(), "float32")))

    @property
    def _quantization(self):
        scale_axes = tuple(range(self.rows, len(self.shape)))
        return quantization.of_dtype(self.dtype, self.shape, scale_axes)
