"""SM3 (Anil, Gupta, Koren, Singer, 2019, arXiv:1901.11150)."""

import dataclasses
from dataclasses import InitVar, field
from typing import Literal

import keras
from keras import ops

from et_optimizer import checks
from et_optimizer.naming import findable_by_name
from et_optimizer.optimizers.levels import LevelledOptimizer
from et_optimizer.optimizers.rule import Rule, average_weight
from et_optimizer.types import (
    ByPath,
    LearningRate,
    Level,
    TensorIndices,
)


@dataclasses.dataclass(frozen=True)
class SM3Rule(Rule):
    """Scales every entry by the smallest accumulator of its slices.

    With μ_i[j] for slice j of mode i (the entries I with I_i = j):

        I:   μ_i[j] ← μ_i[j] + max_{I: I_i = j} g[I]²     ν[I] = min_i μ_i[I_i]
        II:  ν[I] = min_i μ_i[I_i] + g[I]²                μ_i[j] ← max_{I: I_i = j} ν[I]

        u[I] = g[I] / √(ν[I] + ε),   0/0 = 0

    With β₂ the right sides are β₂ μ + (1 − β₂) g². The slots then contain μ / (1 − β₂),
    which takes the factor 1 − β₂ out of the pass over the entries.

    Args:
        variant: `"I"` or `"II"`.
        beta_2: Decay in [0, 1) of a moving average, or `None` to accumulate.
        epsilon: ε ≥ 0.
    """

    variant: str = "II"
    beta_2: float | None = None
    epsilon: float = 0.0

    def __post_init__(self):
        checks.choice("variant", self.variant, ("I", "II"))
        checks.decay("beta_2", self.beta_2, or_none=True)
        checks.epsilon("epsilon", self.epsilon)

    def slot_shapes(self, index):
        """One accumulator per mode; see `Rule`."""
        shapes = index.slot_shapes
        return {f"accumulator_{i}": shape for i, shape in enumerate(shapes)}

    def __call__(self, view, slots, step):
        """One step; see `Rule`."""
        decay = 1.0 if self.beta_2 is None else self.beta_2
        decayed = [decay * slot for slot in slots]
        if self.variant == "I":
            maxima = view.slice_maxima()
            slots = [slot + largest for slot, largest in zip(decayed, maxima)]
            minima = view.minima(view.at_slices(slots))
        else:
            minima = view.minima(view.at_slices(decayed))
            slots = view.slice_maxima_above(decayed, minima)
        return lambda gradient: gradient.mapped(self._scaled, minima), slots

    def mean_squares(self, view, slots, steps):
        """The mean over the first mode of the largest g² of a slice; see `Rule`."""
        before = ops.mean(slots[0]) / average_weight(self.beta_2, steps)
        return before, ops.mean(view.slice_maxima()[0])

    def _scaled(self, gradient, row_minima, column_minima):
        """g / √(ν + ε), entry by entry."""
        nu = ops.minimum(row_minima, column_minima)
        if self.variant == "II":
            nu = nu + ops.square(gradient)
        weight = 1.0 if self.beta_2 is None else 1.0 - self.beta_2
        # ε is added to ν / (1 − β₂), which the slots contain, so that no small ν is
        # lost. Where ν is 0, so is g, and any finite root will do.
        nu = nu + min(self.epsilon / weight, checks.LARGEST)
        root = ops.rsqrt(ops.maximum(nu, checks.SMALLEST_FLOAT32))
        return gradient * root * weight**-0.5


@findable_by_name
@keras.saving.register_keras_serializable(package="et_optimizer")
class SM3(LevelledOptimizer):
    r"""Optimizer that implements SM3: AdaGrad with one accumulator per row and column.

    A *tensor index* views a variable as a tensor of p modes of sizes d₁ … d_p. For
    slice j of mode i (the entries I with I_i = j) the optimizer keeps one accumulator
    μ_i[j]; together the slices cover every entry p times. Entries are scaled by the
    smallest accumulator that covers them:

        SM3-II:  ν[I] = min_i μ_i[I_i] + g[I]²,   μ_i[j] ← max_{I: I_i = j} ν[I]
        SM3-I:   μ_i[j] ← μ_i[j] + max_{I: I_i = j} g[I]²,   ν[I] = min_i μ_i[I_i]

        x[I] ← x[I] − η g[I] / √(ν[I] + ε),   0/0 = 0

    Without β₂, both have Σ g[I]² ≤ ν[I], and SM3-II is tighter. For vectors and scalars
    it is AdaGrad.

    Memory: d₁ + … + d_p float32 elements per variable, and nothing else except one
    int32 per variable that counts skipped steps, and Keras's iteration and learning
    rate. For a 2000 × 512 kernel: 2512 at level 1, the paper's; 138 at level 2; 48 at
    level 3. `momentum > 0` adds, in bfloat16, 2·r·(m + n) bytes for an m × n matrix at
    rank r, or 2·d for full momentum.

    Args:
        learning_rate: A float, a `keras.optimizers.schedules.LearningRateSchedule`,
            or a callable without arguments that returns the learning rate. Accumulators
            grow, so steps shrink by themselves; the paper only ramps a constant
            learning rate up over the first 5% of the steps, see
            `et_optimizer.schedules.Warmup`. Defaults to 0.1.
        variant: `"II"` or `"I"`. Defaults to `"II"`.
        level: 1, 2, 3, … or `"inf"`: how finely the tensor index resolves entries,
            as in `et_optimizer.ExtremeTensoring`. Defaults to 1, the paper's cover of
            rows and columns.
        tensor_index: Modes given by hand, as in `et_optimizer.ExtremeTensoring`.
            Defaults to `None`.
        beta_2: Decay in [0, 1) of a moving average, ν = β₂ min μ + (1 − β₂) g² (and
            SM3-I accordingly), not corrected for its start at 0; `None` accumulates.
            Defaults to `None`.
        momentum: Decay β in [0, 1) of a moving average of the scaled gradients,
            m ← β m + (1 − β) g / √ν, not corrected for its start at 0. 0 keeps no
            momentum; the paper uses 0.9 where memory allows. Defaults to 0.
        epsilon: ε ≥ 0, inside the root. Defaults to 0.

    Raises:
        ValueError: when constructed, if an argument is out of its range; when
            built, if `tensor_index` does not fit the variables or a variable is not
            floating-point; when state is loaded, if it has another index; and as
            `nonfinite` says.

    Range: accumulators contain squared gradients in float32, divided by 1 − β₂ when
    they average. Gradients are exact to 1e-5 from |g| = 1e-18 up to about
    1e19 · √(1 − β₂), or 1e19 / √steps when they accumulate. A step with larger squares
    is skipped. `spike_threshold` compares, in a pass of its own, the root mean square
    of the largest entries of the slices of the first mode.

    Sparse gradients (`tf.IndexedSlices`, from embeddings on TensorFlow) give the same
    result as dense ones. Without momentum, the step costs time for their rows only;
    with momentum it takes a dense pass.

    Example:

    ```python
    schedule = et_optimizer.schedules.Warmup(0.1, warmup_steps=500, power=2)
    model.compile(optimizer=et_optimizer.SM3(schedule), loss=loss)
    model.fit(dataset)

    # A few hundred elements per layer.
    et_optimizer.SM3(schedule, level=3)
    ```

    Reference:
        [Anil, Gupta, Koren, Singer, 2019](https://arxiv.org/abs/1901.11150),
        Memory-Efficient Adaptive Optimization, Algorithms SM3-I and SM3-II.
    """

    rule = SM3Rule
    momentum_argument = "momentum"
    momentum_is_corrected = False
    state_argument_names = ("variant", "beta_2")

    learning_rate: InitVar[LearningRate] = field(default=0.1, kw_only=False)
    variant: Literal["I", "II"] = "II"
    level: ByPath[Level] = 1
    tensor_index: TensorIndices = None
    beta_2: float | None = None
    momentum: float = 0.0
    epsilon: float = 0.0
