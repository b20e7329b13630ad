"""The extreme tensoring optimizer."""

import warnings
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
    KerasArguments,
    LearningRate,
    Level,
    MomentumDtype,
    MomentumRank,
    Nonfinite,
    RateScale,
    StochasticRounding,
    TensorIndices,
    Unpack,
)


@keras.saving.register_keras_serializable(package="et_optimizer")
class ExtremeTensoring(TensoredOptimizer):
    r"""Optimizer that implements extreme tensoring, of a few numbers a layer.

    A *tensor index* views the d numbers of a variable as a tensor of p modes of
    sizes d₁ … d_p. For slice j of mode i (the entries I with I_i = j) the optimizer
    keeps one number, the sum of squared gradients over the slice, and scales every
    entry by what its slices say together:

        S_i[j] ← β₂ S_i[j] + Σ_{I: I_i = j} g[I]²
        rank-one:   u[I] = g[I] / (√v̂[I] + ε),   v̂[I] = m Π_i (M_i[I_i] / m)
        geometric:  u[I] = g[I] · (ε + Π_i M_i[I_i])^(−1/(2p))

    where M_i is S_i, averaged over time and over the slice as `beta_2` and `statistic`
    say, and m the mean over the whole variable. Then comes momentum, and the bound:

        N = momentum of u,   x[I] ← x[I] − η · min(max(N[I], −b), b)

    The momentum of a matrix lives in the subspace of a few directions, the orthonormal
    columns of P (for U of more columns than rows; of Uᵀ otherwise):

        R = Pᵀ U,   M ← β₁ M + (1 − β₁) R,   N = P M / (1 − β₁^t) + (U − P R)

    and every `refresh_every` steps P ← orth(U (Uᵀ P)), which turns P towards the
    leading directions of U, and M is carried over into the new ones.

    Memory, beside Keras's iteration and learning rate and an int32 a variable that
    counts skipped steps: d₁ + … + d_p float32 numbers, and with r directions
    2·r·(m + n) bytes for an m × n matrix, 2·n for a vector of n. For a 2000 × 512
    kernel (r is 16): 10 048 + 80 384 bytes, 1.1% of Adam's 8 192 000. With `beta_1=0`
    only the former: 2512 numbers at level 1, 138 at level 2, 48 at level 3 and 1 at
    level "inf".

    The paper's Algorithm 1 to the letter is

        ExtremeTensoring(lr, level=k, combination="geometric", statistic="sum",
                         beta_1=0, beta_2=None, epsilon=1e-8, update_bound=None,
                         rate_scale=None)

    Args:
        learning_rate: A float, a `keras.optimizers.schedules.LearningRateSchedule`,
            or a callable without arguments that returns the rate. Rates are on Adam's
            scale, whatever the level (with `statistic="mean"`), but for embeddings; see
            `rate_scale`. Defaults to 0.002.
        level: 1, 2, 3, … or `"inf"`. Level 1 has one mode an axis; each further
            level splits every factor once more, near-equally, padding sizes without
            good divisors; `"inf"` keeps one number a variable. Higher levels hold
            less and adapt more coarsely. Or a dict from regular expressions, searched
            for in a variable's path (the first match wins), to levels, such as
            `{"embeddings|logits": 1, ".*": 2}`; variables that none matches get level
            1. Defaults to 1.
        tensor_index: Modes given by hand: a dict from regular expressions on variable
            paths (the first match wins) to tuples of sizes, or a callable
            `(path, shape) -> sizes or None`. Sizes multiply to the number of entries,
            or to more, at most twice as much: the rest is padding. Variables that are
            not named follow `level`. Defaults to `None`.
        beta_1: Decay in [0, 1) of a bias-corrected moving average of the update
            (momentum). 0 keeps none. Defaults to 0.9.
        beta_2: Decay in [0, 1) of a bias-corrected moving average of the squared
            gradients; `None` accumulates them, as AdaGrad does, so that steps
            shrink by themselves. Defaults to 0.999.
        statistic: `"mean"` divides each slice's sum by its number of entries: with
            all |g| equal the step is then Adam's. `"sum"`, the paper's, is for the
            geometric combination alone. Defaults to `"mean"`.
        epsilon: ε ≥ 0. In the rank-one combination it is added to the root of an
            entry's second moment, as in Adam, where 1e-7 is usual. In the geometric
            one it is the paper's, added to the product of p statistics: no gradient is
            then taken for less than ε^(1/2p), which for 1e-8 is 0.01 at level 1 and 0.1
            at level 2, and slows all that is smaller; with `statistic="mean"` it warns
            of that. At 0 the update is an outer product, the fast path, and an empty
            slice gives an update of 0; above 0 every entry takes a root. Defaults to 0.
        clip_threshold: The largest root mean square an update of a variable may
            have before momentum, as in Adafactor; larger ones are scaled down to it.
            Takes one more pass over the gradient. `None` turns it off. Defaults to
            `None`.
        momentum_dtype: `"float32"`, `"bfloat16"` or `"int8"`, for the momentum. With
            `"int8"` it is integers of 8 bits, with a float32 scale a direction (or,
            of full momentum, a row), and bases and vectors are in bfloat16. Defaults to
            `"bfloat16"`.
        combination: `"rank_one"` or `"geometric"`. The rank-one estimate is exact where
            second moments are an outer product over the modes, and its entries add up
            to those of the second moments; of two modes it is Adafactor's. The
            geometric one is Algorithm 1's: each mode acts with the exponent −1/(2p),
            a blunter estimate, but (accumulating, with sums) one that is never below
            AdaGrad's, which the paper's regret bound needs. That does not hold for
            `"rank_one"`. Defaults to `"rank_one"`.
        update_bound: The largest absolute value that an entry of the update may have
            after momentum, in units of the learning rate. It costs no pass of its own.
            `None` turns it off. Defaults to 3.
        momentum_rank: How many directions the momentum of a matrix has, r. `"auto"`
            takes 1/32 of its shorter side, and 8 at least; `None` is full momentum, of
            2·m·n bytes in bfloat16; or an integer, 0 for no momentum. Variables of more
            than two axes are seen as matrices, cut where rows and columns are fewest.
            Vectors, and matrices for which r·(m + n) ≥ m·n, have full momentum. Or a
            dict from regular expressions on paths to these; variables that none matches
            get `"auto"`. Defaults to `"auto"`.
        refresh_every: The number of steps from one refresh of a basis to the next, at
            least 1. Those of different variables are spread over as many steps.
            Defaults to 50.
        nonfinite: What becomes of a variable's step whose gradient has NaN or infinity
            in it, or squares that overflow, also together with what is held, or whose
            rate is not finite. `"skip"`:
            the variable is neither moved nor decayed, all that is held for it stays as
            it is, and `skipped_steps` counts it. `"raise"`: an error, before anything
            changes, where a gradient as it is given, before Keras clips or unscales it,
            is not finite or has squares that overflow. A compiled step cannot raise; it
            skips, and the error comes at the end of `fit`. Keras's averages go on by
            themselves, and `global_clipnorm` spreads a NaN to all variables before the
            optimizer sees them. Defaults to `"skip"`.
        spike_threshold: How many times as long as usual a variable's gradient may be:
            a longer one is scaled down to that before it enters the statistics and the
            momentum. Usual is the root mean square of the gradients before it, as the
            slots have it (steps without a gradient count as gradients of 0); where that
            is 0 nothing is scaled. Without it statistics remember a gradient of 1e18
            for tens of thousands of steps, until `beta_2` has forgotten it: what shares
            a slice with it hardly moves, and by the rank-one combination all else of
            the variable moves by up to `update_bound`. `None` turns it off. Defaults
            to `None`.
        stochastic_rounding: How a weight stored in bfloat16 or float16 is rounded. The
            step, weight decay included, is computed in float32 from the gradient that
            Keras hands over, and the weight rounded once. `"auto"`, or `True`, which is
            the same: stochastically, so that a step of less than half a unit in the
            last place moves the weight with the probability of its share of that unit,
            and on average none is lost. Random bits are a function of the iteration,
            the variable's place among the optimizer's and the entry: nothing is held,
            and runs repeat and resume bit for bit. Averages of weights (`use_ema`) are
            rounded in the same way. `False`: to nearest, as in other optimizers.
            Weights in float32 and float64 are not touched by it. Defaults to `"auto"`.
        rate_scale: What the learning rate of a variable is multiplied by, but for its
            weight decay. `"auto"`: 8 for embeddings, of positions too, and for what
            leads back to tokens; 1 for all else. Embeddings are the matrices whose own
            name has "embedding" in it, as in Keras's and KerasHub's layers, but those
            of LoRA. What leads back is the one other matrix, if there is one alone,
            that has the shape of the largest of them, not of positions, with its axes
            exchanged. Language models that train from scratch are best at such a ratio:
            one rate for all is too high for the kernels between, or too low for these.
            For fine-tuning begin with `None`, which is 1 for all. Or a number; or a
            dict from regular expressions on paths to these, of which variables that
            none matches get 1. Defaults to `"auto"`; optimizers that were saved by
            version 0.2 have `None`.
        **kwargs: As in every Keras optimizer: weight_decay, clipnorm, clipvalue,
            global_clipnorm, use_ema, ema_momentum, ema_overwrite_frequency,
            loss_scale_factor, gradient_accumulation_steps, name. `use_ema` and
            `gradient_accumulation_steps` make Keras hold d more numbers a variable.

    Raises:
        ValueError: when constructed, if an argument is out of its range; when
            built, if an argument by path does not fit the variables or a variable is
            not floating-point; when state is loaded, if it is that of another index or
            another momentum; and as `nonfinite` says. No weight has been changed then.

    Range: slots hold sums of squares in float32. Gradients are exact to 1e-5 from
    |g| = 1e-18 up to about 1e19 · √((1 − β₂)/n), where n is the number of entries in
    a slice (accumulating, n is that number times the steps): 3e14 for a slice of a
    million entries at β₂ = 0.999. A step with squares beyond that is not taken; see
    `nonfinite`.

    Sparse gradients (`tf.IndexedSlices`, from embeddings on TensorFlow) give the dense
    result. With momentum every entry moves at every step, as with Adam, and the step
    takes a dense pass. For large tables `momentum_rank={"embeddings": 0}` turns it off
    there, and the step costs time for the gradient's rows alone.

    Example:

    ```python
    model.compile(optimizer=et_optimizer.ExtremeTensoring(), loss=loss)
    model.fit(dataset)
    print(et_optimizer.memory_report(model.optimizer))

    # As little as can be: no momentum, level 2, and level 1 where tokens differ.
    et_optimizer.ExtremeTensoring(
        beta_1=0.0, level={"embeddings|logits": 1, ".*": 2}
    )
    ```

    Reference:
        - [Chen, Agarwal, Hazan, Zhang, Zhang, 2020](
          https://arxiv.org/abs/1902.04620), Extreme Tensoring for Low-Memory
          Preconditioning, Algorithm 1.
        - [Nguyen, Nguyen, 2024](https://arxiv.org/abs/2411.07120), for momentum in a
          subspace.
        - [Shazeer, Stern, 2018](https://arxiv.org/abs/1804.04235), for the rank-one
          combination of two modes.
    """

    beta_1: Final[float] = PreconditionedOptimizer.momentum_decay
    beta_2: Final[float | None] = argument_of_preconditioner(
        "beta_2", "The decay of the squared gradients' average, or `None`."
    )
    statistic: Final[Literal["mean", "sum"]] = argument_of_preconditioner(
        "statistic", '`"mean"` or `"sum"`.'
    )
    epsilon: Final[float] = argument_of_preconditioner(
        "epsilon", "ε: Adam's, or in the geometric combination the paper's."
    )
    combination: Final[Literal["rank_one", "geometric"]] = argument_of_preconditioner(
        "combination", '`"rank_one"` or `"geometric"`.'
    )

    def __init__(
        self,
        learning_rate: LearningRate = 0.002,
        level: ByPath[Level] = 1,
        tensor_index: TensorIndices = None,
        beta_1: float = 0.9,
        beta_2: float | None = 0.999,
        statistic: Literal["mean", "sum"] = "mean",
        epsilon: float = 0.0,
        clip_threshold: float | None = None,
        momentum_dtype: MomentumDtype = "bfloat16",
        combination: Literal["rank_one", "geometric"] = "rank_one",
        update_bound: float | None = 3.0,
        momentum_rank: ByPath[MomentumRank] = "auto",
        refresh_every: int = 50,
        nonfinite: Nonfinite = "skip",
        spike_threshold: float | None = None,
        stochastic_rounding: StochasticRounding = "auto",
        rate_scale: ByPath[RateScale] = "auto",
        **kwargs: Unpack[KerasArguments],
    ):
        preconditioner = preconditioners.ExtremeTensoring(
            beta_2, statistic, epsilon, combination
        )
        if epsilon > 0 and combination == "geometric" and statistic == "mean":
            warnings.warn(
                f"epsilon={epsilon!r} is Algorithm 1's, added to a product of p "
                "statistics: with combination='geometric' no gradient is taken for "
                f"less than epsilon^(1/2p), for p = 4 {epsilon**0.125:.2g}, and "
                "smaller ones train slowly. Use epsilon=0, or combination='rank_one', "
                "whose epsilon is Adam's.",
                stacklevel=2,
            )
        super().__init__(
            preconditioner,
            learning_rate,
            level=level,
            tensor_index=tensor_index,
            momentum=beta_1,
            momentum_rank=momentum_rank,
            refresh_every=refresh_every,
            momentum_dtype=momentum_dtype,
            clip_threshold=clip_threshold,
            update_bound=update_bound,
            nonfinite=nonfinite,
            spike_threshold=spike_threshold,
            stochastic_rounding=stochastic_rounding,
            rate_scale=rate_scale,
            **kwargs,
        )
