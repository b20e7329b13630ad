"""The Subset-Norm optimizer."""

from typing import Any, Final, Literal

import keras

from et_optimizer import preconditioners
from et_optimizer.optimizers.base import (
    PreconditionedOptimizer,
    argument_of_preconditioner,
    by_path_as_given,
    by_path_to_keep,
)
from et_optimizer.types import (
    ByPath,
    KeptAxis,
    LearningRate,
    MomentumDtype,
    MomentumRank,
    NamedShapes,
    Nonfinite,
    OtherArguments,
    StochasticRounding,
    Unpack,
)
from et_optimizer.views.tensor_index import TensorIndex, check_axis, index_one_mode


@keras.saving.register_keras_serializable(package="et_optimizer")
class SubsetNorm(PreconditionedOptimizer):
    r"""Optimizer that implements Subset-Norm: one step size a row or a column.

    The entries of a variable that share their position j on one axis share one
    number, the sum of their squared gradients, and with it their step size:

        S[j] ← β₂ S[j] + Σ_{I at j} g[I]²
        x[I] ← x[I] − η g[I] / √(ε + M[j])

    where M is S, averaged over time and over the subset as `beta_2` and `statistic`
    say. It is extreme tensoring with a tensor index of which one mode is kept.

    Memory, beside Keras's iteration and learning rate and an int32 a variable that
    counts skipped steps: as many float32 numbers as the axis has positions, with
    `axis="auto"` min(m, n) for an m × n matrix, and in bfloat16 2·r·(m + n) bytes for r
    directions of momentum; 2048 + 80 384 bytes for a 2000 × 512 kernel. Variables with
    at most one axis longer than 1 keep a number an entry, as in AdaGrad or RMSprop, and
    2 bytes an entry of momentum. With `beta_1=0` nothing is held but the former.

    The paper's rule with accumulation, and with the momentum in a subspace that it
    calls SNSM, are

        SubsetNorm(lr, beta_1=0, beta_2=None, statistic="sum", update_bound=None)
        SubsetNorm(lr, beta_2=None, statistic="sum", update_bound=None,
                   momentum_rank=r, refresh_every=k, momentum_of="gradient")

    with `momentum_dtype="float32"`, but for three things: a basis is refreshed by a
    step of subspace iteration in place of singular vectors, the momentum is carried
    over into it instead of set to 0, and vectors and matrices too small for a basis
    have full momentum.

    Args:
        learning_rate: A float, a `keras.optimizers.schedules.LearningRateSchedule`,
            or a callable without arguments that returns the rate. With
            `statistic="mean"` rates are on Adam's scale. Defaults to 0.002.
        axis: The axis whose positions keep a number each: an integer, negative ones
            from the last; or `"auto"`, which reduces along the larger axis of a matrix
            and keeps the shorter (the columns, where they are equal), and sees a
            variable of more axes as a matrix of the last by all the others. Or a dict
            from regular expressions, searched for in a variable's path (the first match
            wins), to either; variables that none matches get `"auto"`. Defaults to
            `"auto"`.
        beta_1: Decay in [0, 1) of a bias-corrected moving average of the update
            (momentum). 0 keeps none. Defaults to 0.9.
        beta_2: Decay in [0, 1) of a bias-corrected moving average of the squared
            gradients; `None` accumulates them. Defaults to 0.99.
        statistic: `"mean"` divides each subset's sum by its number of entries, so that
            rates carry over from Adam; `"sum"` is the paper's, whose rates are larger
            by the root of that number. Defaults to `"mean"`.
        epsilon: ε ≥ 0, inside the root. Defaults to 0.
        clip_threshold: The largest root mean square that an update of a variable may
            have before momentum; larger ones are scaled down to it. `None` turns it
            off. Defaults to `None`.
        momentum_dtype: `"float32"`, `"bfloat16"` or `"int8"`, for the momentum that
            `beta_1` asks for. Defaults to `"bfloat16"`.
        momentum_rank, refresh_every: The directions of the momentum, and how often they
            are found anew, as in `et_optimizer.ExtremeTensoring`; `None` is full
            momentum. Default to `"auto"` and 50.
        update_bound: The largest absolute value that an entry of the update may have
            after momentum, in units of the learning rate, or `None`. Defaults to 3.
        momentum_of: What the momentum averages: `"update"`, the gradient scaled by
            Subset-Norm, or `"gradient"`, which is scaled after that. Defaults to
            `"update"`.
        nonfinite: `"skip"` or `"raise"`, for steps whose gradient is not finite, as in
            `et_optimizer.ExtremeTensoring`. Defaults to `"skip"`.
        spike_threshold: How many times as long as usual a gradient may be, as in
            `et_optimizer.ExtremeTensoring`, or `None`. Defaults to `None`.
        stochastic_rounding: How weights stored in two bytes are rounded, as in
            `et_optimizer.ExtremeTensoring`. Defaults to `"auto"`.
        **kwargs: As in every Keras optimizer: weight_decay, clipnorm, clipvalue,
            global_clipnorm, use_ema, ema_momentum, ema_overwrite_frequency,
            loss_scale_factor, gradient_accumulation_steps, name; and rate_scale, as in
            `et_optimizer.ExtremeTensoring`, but `None` by default. `use_ema` and
            `gradient_accumulation_steps` make Keras hold the model's size once more.

    Raises:
        ValueError: when constructed, if an argument is out of its range; when built,
            if a variable lacks the axis, an expression matches no variable or a
            variable is not floating-point; when state is loaded, if it is that of
            another axis; and as `nonfinite` says.

    Sparse gradients (`tf.IndexedSlices`, from embeddings on TensorFlow) give the dense
    result. With momentum, which is the default, the step takes a dense pass; without,
    as with `momentum_rank={"embeddings": 0}`, it costs time for their rows alone.

    Example:

    ```python
    # One step size a token, and the paper's choice for all else.
    optimizer = et_optimizer.SubsetNorm(axis={"embeddings": 0})
    model.compile(optimizer=optimizer, loss=loss)
    model.fit(dataset)
    ```

    Reference:
        [Nguyen, Nguyen, 2024](https://arxiv.org/abs/2411.07120), Lean and Mean
        Adaptive Optimization via Subset-Norm and Subspace-Momentum with Convergence
        Guarantees.
    """

    form_arguments = ("axis",)
    meaning_arguments = ("beta_2", "momentum_of")

    beta_1: Final[float] = PreconditionedOptimizer.momentum_decay
    beta_2: Final[float | None] = argument_of_preconditioner(
        "beta_2", "The decay of the squared gradients' average, or `None`."
    )
    statistic: Final[Literal["mean", "sum"]] = argument_of_preconditioner(
        "statistic", '`"mean"` or `"sum"`.'
    )
    epsilon: Final[float] = argument_of_preconditioner("epsilon", "ε, inside the root.")

    def __init__(
        self,
        learning_rate: LearningRate = 0.002,
        axis: ByPath[KeptAxis] = "auto",
        beta_1: float = 0.9,
        beta_2: float | None = 0.99,
        statistic: Literal["mean", "sum"] = "mean",
        epsilon: float = 0.0,
        clip_threshold: float | None = None,
        momentum_dtype: MomentumDtype = "bfloat16",
        momentum_rank: ByPath[MomentumRank] = "auto",
        refresh_every: int = 50,
        update_bound: float | None = 3.0,
        momentum_of: Literal["update", "gradient"] = "update",
        nonfinite: Nonfinite = "skip",
        spike_threshold: float | None = None,
        stochastic_rounding: StochasticRounding = "auto",
        **kwargs: Unpack[OtherArguments],
    ):
        check_axis(axis)
        super().__init__(
            preconditioners.ExtremeTensoring(
                beta_2, statistic, epsilon, combination="geometric"
            ),
            learning_rate,
            momentum=beta_1,
            clip_threshold=clip_threshold,
            momentum_rank=momentum_rank,
            refresh_every=refresh_every,
            momentum_dtype=momentum_dtype,
            update_bound=update_bound,
            momentum_of=momentum_of,
            nonfinite=nonfinite,
            spike_threshold=spike_threshold,
            stochastic_rounding=stochastic_rounding,
            **kwargs,
        )
        self._axis = by_path_to_keep(axis)

    @property
    def axis(self) -> ByPath[KeptAxis]:
        """The axis that keeps a number a position, or a dict of them by path."""
        return by_path_as_given(self._axis)

    def index_variables(self, named_shapes: NamedShapes) -> list[TensorIndex]:
        """The tensor index of every variable; see the base."""
        return index_one_mode(named_shapes, self.axis)

    def get_config(self) -> dict[str, Any]:
        """The arguments that make an equal optimizer."""
        config = super().get_config()
        del config["combination"]  # Of one mode there is nothing to combine.
        return config | {"axis": self.axis, "momentum_of": self.momentum_of}
