"""The SM3 optimizer."""

from typing import Final, Literal

import keras

from et_optimizer import preconditioners
from et_optimizer.optimizers.base import (
    PreconditionedOptimizer,
    argument_of_preconditioner,
)
from et_optimizer.optimizers.tensored import TensoredOptimizer
from et_optimizer.types import (
    ByPath,
    LearningRate,
    Level,
    MomentumDtype,
    MomentumRank,
    Nonfinite,
    OtherArguments,
    StochasticRounding,
    TensorIndices,
    Unpack,
)


@keras.saving.register_keras_serializable(package="et_optimizer")
class SM3(TensoredOptimizer):
    r"""Optimizer that implements SM3, AdaGrad with a number a row and a column.

    A *tensor index* views a variable as a tensor of p modes of sizes d₁ … d_p. For
    slice j of mode i (the entries I with I_i = j) the optimizer keeps one accumulator
    μ_i[j]; together the slices cover every entry p times. Entries are scaled by the
    smallest accumulator that covers them:

        SM3-II:  ν[I] = min_i μ_i[I_i] + g[I]²,   μ_i[j] ← max_{I: I_i = j} ν[I]
        SM3-I:   μ_i[j] ← μ_i[j] + max_{I: I_i = j} g[I]²,   ν[I] = min_i μ_i[I_i]

        x[I] ← x[I] − η g[I] / √(ν[I] + ε),   0/0 = 0

    In both Σ g[I]² ≤ ν[I], and SM3-II is the tighter. On vectors and scalars it is
    AdaGrad.

    Memory: d₁ + … + d_p float32 numbers a variable, and nothing else beside an int32 a
    variable that counts skipped steps and Keras's iteration and learning rate. For a
    2000 × 512 kernel: 2512 at level 1, the paper's own; 138 at level 2; 48 at level 3.
    `momentum > 0` adds, in bfloat16, 2·r·(m + n) bytes for r directions of an m × n
    matrix, or 2·d for full momentum.

    Args:
        learning_rate: A float, a `keras.optimizers.schedules.LearningRateSchedule`,
            or a callable without arguments that returns the rate. Accumulators grow,
            so steps shrink by themselves; the paper only ramps a constant rate up
            over the first 5% of the steps, see `et_optimizer.schedules.Warmup`.
            Defaults to 0.1.
        variant: `"II"` or `"I"`. Defaults to `"II"`.
        level: 1, 2, 3, … or `"inf"`: how finely the tensor index tells entries apart,
            as in `et_optimizer.ExtremeTensoring`. Defaults to 1, the paper's cover of
            rows and columns.
        tensor_index: Modes given by hand, as in `et_optimizer.ExtremeTensoring`.
            Defaults to `None`.
        beta_2: Decay in [0, 1) of a moving average, ν = β₂ min μ + (1 − β₂) g² (and
            SM3-I accordingly), without correction of its start at 0; `None` adds up.
            Defaults to `None`.
        momentum: Decay β in [0, 1) of a moving average of the scaled gradients,
            m ← β m + (1 − β) g / √ν, without correction of its start at 0. 0 keeps
            none; the paper uses 0.9 where memory allows. Defaults to 0.
        epsilon: ε ≥ 0, inside the root. Defaults to 0.
        clip_threshold: The largest root mean square that an update of a variable may
            have before momentum; larger ones are scaled down to it. `None` turns it
            off. Defaults to `None`.
        momentum_dtype: `"float32"`, `"bfloat16"` or `"int8"`, for the momentum.
            Defaults to `"bfloat16"`.
        momentum_rank, refresh_every: The directions of the momentum, and how often they
            are found anew, as in `et_optimizer.ExtremeTensoring`; `None` is full
            momentum. Default to `"auto"` and 50.
        update_bound: The largest absolute value that an entry of the update may have
            after momentum, in units of the learning rate, or `None`. Defaults to
            `None`.
        nonfinite: `"skip"` or `"raise"`, for steps whose gradient is not finite, as in
            `et_optimizer.ExtremeTensoring`. Defaults to `"skip"`.
        spike_threshold: How many times as long as usual a gradient may be, as in
            `et_optimizer.ExtremeTensoring`, or `None`. Its length is here the root mean
            square of the largest entry of every slice of the first mode. Takes a pass
            of its own. Defaults to `None`.
        stochastic_rounding: How weights stored in two bytes are rounded, as in
            `et_optimizer.ExtremeTensoring`. Defaults to `"auto"`.
        **kwargs: As in every Keras optimizer: weight_decay, clipnorm, clipvalue,
            global_clipnorm, use_ema, ema_momentum, ema_overwrite_frequency,
            loss_scale_factor, gradient_accumulation_steps, name; and rate_scale, as in
            `et_optimizer.ExtremeTensoring`, but `None` by default. `use_ema` and
            `gradient_accumulation_steps` make Keras hold d more numbers a variable.

    Raises:
        ValueError: when constructed, if an argument is out of its range; when
            built, if `tensor_index` does not fit the variables or a variable is not
            floating-point; when state is loaded, if it is that of another index; and as
            `nonfinite` says.

    Range: accumulators hold squared gradients in float32, divided by 1 − β₂ when they
    average. Gradients are exact to 1e-5 from |g| = 1e-18 up to about 1e19 · √(1 − β₂),
    or 1e19 / √steps where they add up. A step with squares beyond that is not taken.

    Sparse gradients (`tf.IndexedSlices`, from embeddings on TensorFlow) give the dense
    result. Without momentum the step costs time for their rows alone; with it the step
    takes a dense pass.

    Example:

    ```python
    rate = et_optimizer.schedules.Warmup(0.1, warmup_steps=500, power=2)
    model.compile(optimizer=et_optimizer.SM3(rate), loss=loss)
    model.fit(dataset)

    # A few hundred numbers a layer.
    et_optimizer.SM3(rate, level=3)
    ```

    Reference:
        [Anil, Gupta, Koren, Singer, 2019](https://arxiv.org/abs/1901.11150),
        Memory-Efficient Adaptive Optimization, Algorithms SM3-I and SM3-II.
    """

    momentum_argument = "momentum"
    meaning_arguments = ("variant", "beta_2")
    momentum_is_corrected = False

    momentum: Final[float] = PreconditionedOptimizer.momentum_decay
    variant: Final[Literal["I", "II"]] = argument_of_preconditioner(
        "variant", '`"I"` or `"II"`.'
    )
    beta_2: Final[float | None] = argument_of_preconditioner(
        "beta_2", "The decay of the accumulators, or `None`."
    )
    epsilon: Final[float] = argument_of_preconditioner("epsilon", "ε, inside the root.")

    def __init__(
        self,
        learning_rate: LearningRate = 0.1,
        variant: Literal["I", "II"] = "II",
        level: ByPath[Level] = 1,
        tensor_index: TensorIndices = None,
        beta_2: float | None = None,
        momentum: float = 0.0,
        epsilon: float = 0.0,
        clip_threshold: float | None = None,
        momentum_dtype: MomentumDtype = "bfloat16",
        momentum_rank: ByPath[MomentumRank] = "auto",
        refresh_every: int = 50,
        update_bound: float | None = None,
        nonfinite: Nonfinite = "skip",
        spike_threshold: float | None = None,
        stochastic_rounding: StochasticRounding = "auto",
        **kwargs: Unpack[OtherArguments],
    ):
        super().__init__(
            preconditioners.SM3(variant, beta_2, epsilon),
            learning_rate,
            level=level,
            tensor_index=tensor_index,
            momentum=momentum,
            clip_threshold=clip_threshold,
            momentum_rank=momentum_rank,
            refresh_every=refresh_every,
            momentum_dtype=momentum_dtype,
            update_bound=update_bound,
            nonfinite=nonfinite,
            spike_threshold=spike_threshold,
            stochastic_rounding=stochastic_rounding,
            **kwargs,
        )
