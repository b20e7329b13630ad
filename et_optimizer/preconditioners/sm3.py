"""SM3 (Anil, Gupta, Koren, Singer, 2019, arXiv:1901.11150)."""

import dataclasses

from keras import ops

from et_optimizer import checks
from et_optimizer.optimizers.rule import Preconditioner, weight_of_all


@dataclasses.dataclass(frozen=True)
class SM3(Preconditioner):
    """Scales every entry by the smallest accumulator of its slices.

    With μ_i[j] for slice j of mode i (the entries I with I_i = j):

        I:   μ_i[j] ← μ_i[j] + max_{I: I_i = j} g[I]²     ν[I] = min_i μ_i[I_i]
        II:  ν[I] = min_i μ_i[I_i] + g[I]²                μ_i[j] ← max_{I: I_i = j} ν[I]

        update[I] = g[I] / √(ν[I] + ε),   0/0 = 0

    With β₂ the right sides read β₂ μ + (1 − β₂) g². The slots hold μ / (1 − β₂)
    then, which takes the factor 1 − β₂ out of the pass over the entries.

    Args:
        variant: `"I"` or `"II"`.
        beta_2: Decay in [0, 1) of a moving average, or `None` to add up.
        epsilon: ε ≥ 0.
    """

    variant: str
    beta_2: float | None
    epsilon: float

    def __post_init__(self):
        checks.choice("variant", self.variant, ("I", "II"))
        checks.decay("beta_2", self.beta_2, or_none=True)
        checks.epsilon("epsilon", self.epsilon)

    def slot_shapes(self, index):
        """What is kept, one accumulator a mode; see `Preconditioner`."""
        shapes = index.slot_shapes
        return {f"accumulator_{i}": shape for i, shape in enumerate(shapes)}

    def __call__(self, gradient, slots, step):
        """One step; see `Preconditioner`."""
        decay = 1.0 if self.beta_2 is None else self.beta_2
        decayed = [decay * slot for slot in slots]
        if self.variant == "I":
            maxima = gradient.slice_maxima()
            slots = [slot + largest for slot, largest in zip(decayed, maxima)]
            minima = gradient.minima(gradient.at_slices(slots))
        else:
            minima = gradient.minima(gradient.at_slices(decayed))
            slots = gradient.slice_maxima_above(decayed, minima)
        return gradient.elementwise(self._scaled, minima), slots

    def sizes(self, gradient, slots, steps):
        """Means of the largest g² in each slice of a mode; see `Preconditioner`."""
        before = ops.mean(slots[0]) / weight_of_all(self.beta_2, steps)
        return before, ops.mean(gradient.slice_maxima()[0])

    def _scaled(self, matrix, row_minima, column_minima):
        """g / √(ν + ε), entry by entry."""
        nu = ops.minimum(row_minima, column_minima)
        if self.variant == "II":
            nu = nu + ops.square(matrix)
        weight = 1.0 if self.beta_2 is None else 1.0 - self.beta_2
        # ε joins what the slots hold, ν / (1 − β₂), so that no small ν is lost. Where ν
        # is 0 so is g, and any finite root will do.
        nu = nu + min(self.epsilon / weight, checks.LARGEST)
        root = ops.rsqrt(ops.maximum(nu, checks.SMALLEST_FLOAT32))
        return matrix * root * weight**-0.5
