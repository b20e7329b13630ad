"""Adafactor (Shazeer, Stern, 2018, arXiv:1804.04235)."""

import dataclasses

from keras import ops

from et_optimizer import checks
from et_optimizer.optimizers import rank_one
from et_optimizer.optimizers.rule import Preconditioner
from et_optimizer.views import gradients


@dataclasses.dataclass(frozen=True)
class Adafactor(Preconditioner):
    """Scales every entry by its row's and its column's mean of squares.

    With β₂ₜ = 1 − t^decay, for a matrix and for every matrix of a stack:

        R ← β₂ₜ R + (1 − β₂ₜ) · mean over columns of (g² + ε₁),   C likewise over rows
        update = g / √V,   V = R Cᵀ / mean(R)
        rate   = ρₜ · max(ε₂, RMS(x)),   ρₜ = min(η, 1/√t)

    A variable whose index has a single mode keeps V itself.

    Args:
        beta_2_decay: The exponent of t in β₂ₜ, in [-1, 0).
        epsilon_1: ε₁ > 0.
        epsilon_2: ε₂ ≥ 0.
        multiply_by_parameter_scale: Whether the rate is multiplied by max(ε₂, RMS(x)).
        cap_learning_rate: Whether ρₜ is at most 1/√t.
    """

    beta_2_decay: float
    epsilon_1: float
    epsilon_2: float
    multiply_by_parameter_scale: bool
    cap_learning_rate: bool

    def __post_init__(self):
        checks.negative_exponent("beta_2_decay", self.beta_2_decay)
        checks.positive("epsilon_1", self.epsilon_1, example=1e-30)
        checks.epsilon("epsilon_2", self.epsilon_2)
        checks.boolean("multiply_by_parameter_scale", self.multiply_by_parameter_scale)
        checks.boolean("cap_learning_rate", self.cap_learning_rate)

    def slot_shapes(self, index):
        """What is kept: "rows" and "columns", or "entries"; see `Preconditioner`."""
        names = ("rows", "columns") if index.order == 2 else ("entries",)
        return dict(zip(names, index.slot_shapes))

    def __call__(self, gradient, slots, step):
        """One step; see `Preconditioner`."""
        weight = ops.power(step, self.beta_2_decay)  # 1 − β₂ₜ
        sums, entries = gradient.slice_sums(), gradient.index.entries_per_slice
        means = [total / n + self.epsilon_1 for total, n in zip(sums, entries)]
        slots = [
            (1.0 - weight) * slot + weight * mean for slot, mean in zip(slots, means)
        ]
        average = slots[0]
        if len(slots) > 1:
            average = ops.mean(average, axis=-1, keepdims=True)
        roots = rank_one.inverse_roots(slots, average)
        return gradient.scaled_by(gradient.at_slices(roots)), slots

    def sizes(self, gradient, slots, steps):
        """Means over all entries, from those over rows; see `Preconditioner`."""
        before = ops.mean(slots[0])
        # Of gradients of 0 there is ε₁.
        before = ops.where(before > 2.0 * self.epsilon_1, before, 0.0)
        return before, gradient.mean_square()

    def rate(self, learning_rate, value, step):
        """ρₜ · max(ε₂, RMS(x)); see `Preconditioner`."""
        rate = learning_rate
        if self.cap_learning_rate:
            rate = ops.minimum(rate, ops.rsqrt(step))
        if not self.multiply_by_parameter_scale:
            return rate
        scale = gradients.root_mean_square(value())
        return rate * ops.maximum(scale, self.epsilon_2)
