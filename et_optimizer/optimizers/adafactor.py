"""The Adafactor optimizer."""

from typing import Any, Final

import keras

from et_optimizer import checks, preconditioners
from et_optimizer.optimizers.base import (
    PreconditionedOptimizer,
    argument_of_preconditioner,
)
from et_optimizer.types import (
    ByPath,
    LearningRate,
    MomentumDtype,
    MomentumRank,
    NamedShapes,
    Nonfinite,
    Shape,
    SharedArguments,
    StochasticRounding,
    Unpack,
)
from et_optimizer.views.tensor_index import TensorIndex


@keras.saving.register_keras_serializable(package="et_optimizer")
class Adafactor(PreconditionedOptimizer):
    r"""Optimizer that implements Adafactor, and holds rows and columns alone.

    The arguments, the defaults and the numbers of `keras.optimizers.Adafactor`, for
    which it can be put in place; but of the second moment of a matrix nothing is kept
    beside its row and column means. At step t, with β₂ₜ = 1 − t^`beta_2_decay`, for a
    matrix (of more than two axes: for the last two, at every position of the others):

        R ← β₂ₜ R + (1 − β₂ₜ) · mean over columns of (g² + ε₁);   C likewise over rows
        u = g / √V,   V = R Cᵀ / mean(R)
        x ← x − max(ε₂, RMS(x)) · ρₜ · u / max(1, RMS(u) / clip_threshold)

    with ρₜ = min(η, 1/√t). Vectors and scalars keep V itself.

    Memory, in float32 numbers: m + n for an m × n matrix, s·(m + n) for s of them
    stacked, n for a vector; nothing else beside an int32 a variable that counts skipped
    steps and Keras's iteration and learning rate. For a 2000 × 512 kernel 2512, where
    `keras.optimizers.Adafactor` holds 1 026 512. `beta_1 > 0` adds, in bfloat16,
    2·r·(m + n) bytes for r directions of an m × n matrix, or 2·m·n for full momentum;
    of a variable of more than two axes the update is then written out.

    Args:
        learning_rate: η: a float, a `keras.optimizers.schedules.LearningRateSchedule`,
            or a callable without arguments that returns the rate. Defaults to 0.001,
            Keras's; the paper's is 0.01.
        beta_2_decay: The exponent of t in β₂ₜ, in [-1, 0). Defaults to -0.8.
        epsilon_1: ε₁ > 0, added to every g². Defaults to 1e-30.
        epsilon_2: ε₂ ≥ 0, the least scale of a variable. Defaults to 1e-3.
        clip_threshold: The largest root mean square of u; larger ones are scaled down
            to it. `None` turns it off and saves a pass. Defaults to 1.
        relative_step: As in Keras 3, where it does not change anything: ρₜ is
            min(η, 1/√t) with and without it. Defaults to `True`.
        weight_decay, clipnorm, clipvalue, global_clipnorm, use_ema, ema_momentum,
            ema_overwrite_frequency, loss_scale_factor, gradient_accumulation_steps,
            name: As in every Keras optimizer, and in Keras's order. `use_ema` and
            `gradient_accumulation_steps` make Keras hold the model's size once more.
        multiply_by_parameter_scale: By keyword, as all that follow. `False` leaves
            max(ε₂, RMS(x)) out. Defaults to `True`.
        cap_learning_rate: `False` makes ρₜ = η, whatever t: with
            `multiply_by_parameter_scale=False`, a rate on Adam's scale that a schedule
            of your own controls. Defaults to `True`.
        beta_1: Decay in [0, 1) of a moving average of the steps, rate included and
            without correction of its start at 0, as in Tensor2Tensor. 0 keeps none.
            Defaults to 0.
        min_dim_size_to_factor: A matrix with fewer rows or columns than this keeps V
            itself. Defaults to 0, which factors every one.
        momentum_dtype: `"float32"`, `"bfloat16"` or `"int8"`, for the momentum that
            `beta_1` asks for. Defaults to `"bfloat16"`.
        momentum_rank, refresh_every: The directions of the momentum, and how often they
            are found anew, as in `et_optimizer.ExtremeTensoring`; `None` is full
            momentum. Default to `"auto"` and 50.
        update_bound: The largest absolute value that an entry of the update may have
            after momentum, in units of the rate that the step is taken with (with the
            scale of the weights in it), or `None`. Defaults to `None`.
        nonfinite: `"skip"` or `"raise"`, for steps whose gradient is not finite, as in
            `et_optimizer.ExtremeTensoring`. Defaults to `"skip"`.
        spike_threshold: How many times as long as usual a gradient may be, as in
            `et_optimizer.ExtremeTensoring`, or `None`. Defaults to `None`.
        stochastic_rounding: How weights stored in two bytes are rounded, as in
            `et_optimizer.ExtremeTensoring`. Defaults to `"auto"`.
        rate_scale: What η is multiplied by, before 1/√t limits it: a number, `"auto"`,
            `None` for 1, or a dict by path, as in `et_optimizer.ExtremeTensoring`.
            Defaults to `None`.

    Raises:
        ValueError: when constructed, if an argument is out of its range; when built,
            if a variable is not floating-point; when state is loaded, if it has
            another form, such as that of `keras.optimizers.Adafactor`; and as
            `nonfinite` says.

    Computed in float32 whatever the variable's dtype; Keras's computes in the
    variable's dtype, so that the two are equal for float32 variables.

    Sparse gradients (`tf.IndexedSlices`, from embeddings on TensorFlow) are used as
    they are, and the result equals the dense one. Without momentum their cost is that
    of their rows, and one pass over the variable for RMS(x) unless that is turned off;
    with it the step takes a dense pass. Where rows
    repeat, as those of frequent tokens do, Keras 3.15 squares each before it adds them
    up, and its result is not that of the same gradient given densely; this one's is.

    Example:

    ```python
    model.compile(optimizer=et_optimizer.Adafactor(0.01), loss=loss)
    model.fit(dataset)

    # Tensor2Tensor with a rate of one's own.
    et_optimizer.Adafactor(
        et_optimizer.schedules.InverseSquareRoot(0.1, warmup_steps=10_000),
        multiply_by_parameter_scale=False,
        cap_learning_rate=False,
    )
    ```

    Reference:
        [Shazeer, Stern, 2018](https://arxiv.org/abs/1804.04235), Adafactor: Adaptive
        Learning Rates with Sublinear Memory Cost, Algorithms 4 to 6.
    """

    momentum_is_corrected = False
    momentum_of_steps = True
    form_arguments = ("min_dim_size_to_factor",)
    meaning_arguments = ()

    beta_1: Final[float] = PreconditionedOptimizer.momentum_decay
    beta_2_decay: Final[float] = argument_of_preconditioner(
        "beta_2_decay", "The exponent of t in β₂ₜ."
    )
    epsilon_1: Final[float] = argument_of_preconditioner(
        "epsilon_1", "ε₁, added to every g²."
    )
    epsilon_2: Final[float] = argument_of_preconditioner(
        "epsilon_2", "ε₂, the least scale of a variable."
    )
    multiply_by_parameter_scale: Final[bool] = argument_of_preconditioner(
        "multiply_by_parameter_scale",
        "Whether the rate is multiplied by max(ε₂, RMS(x)).",
    )
    cap_learning_rate: Final[bool] = argument_of_preconditioner(
        "cap_learning_rate", "Whether ρₜ is at most 1/√t."
    )

    def __init__(
        self,
        learning_rate: LearningRate = 0.001,
        beta_2_decay: float = -0.8,
        epsilon_1: float = 1e-30,
        epsilon_2: float = 1e-3,
        clip_threshold: float | None = 1.0,
        relative_step: bool = True,
        weight_decay: float | None = None,
        clipnorm: float | None = None,
        clipvalue: float | None = None,
        global_clipnorm: float | None = None,
        use_ema: bool = False,
        ema_momentum: float = 0.99,
        ema_overwrite_frequency: int | None = None,
        loss_scale_factor: float | None = None,
        gradient_accumulation_steps: int | None = None,
        name: str | None = "adafactor",
        *,
        multiply_by_parameter_scale: bool = True,
        cap_learning_rate: bool = True,
        beta_1: float = 0.0,
        min_dim_size_to_factor: int = 0,
        momentum_dtype: MomentumDtype = "bfloat16",
        momentum_rank: ByPath[MomentumRank] = "auto",
        refresh_every: int = 50,
        update_bound: float | None = None,
        nonfinite: Nonfinite = "skip",
        spike_threshold: float | None = None,
        stochastic_rounding: StochasticRounding = "auto",
        **kwargs: Unpack[SharedArguments],
    ):
        checks.boolean("relative_step", relative_step)
        checks.whole("min_dim_size_to_factor", min_dim_size_to_factor, least=0)
        super().__init__(
            preconditioners.Adafactor(
                beta_2_decay,
                epsilon_1,
                epsilon_2,
                multiply_by_parameter_scale,
                cap_learning_rate,
            ),
            learning_rate,
            momentum=beta_1,
            clip_threshold=clip_threshold,
            momentum_rank=momentum_rank,
            refresh_every=refresh_every,
            momentum_dtype=momentum_dtype,
            update_bound=update_bound,
            nonfinite=nonfinite,
            spike_threshold=spike_threshold,
            stochastic_rounding=stochastic_rounding,
            weight_decay=weight_decay,
            clipnorm=clipnorm,
            clipvalue=clipvalue,
            global_clipnorm=global_clipnorm,
            use_ema=use_ema,
            ema_momentum=ema_momentum,
            ema_overwrite_frequency=ema_overwrite_frequency,
            loss_scale_factor=loss_scale_factor,
            gradient_accumulation_steps=gradient_accumulation_steps,
            name=name,
            **kwargs,
        )
        self.relative_step = relative_step
        self.min_dim_size_to_factor = min_dim_size_to_factor

    def index_variables(self, named_shapes: NamedShapes) -> list[TensorIndex]:
        """The tensor index of every variable; see the base."""
        return [self._index(shape) for _, shape in named_shapes]

    def get_config(self) -> dict[str, Any]:
        """The arguments that make an equal optimizer."""
        config = super().get_config()
        config.update(
            relative_step=self.relative_step,
            min_dim_size_to_factor=self.min_dim_size_to_factor,
        )
        return config

    def _index(self, shape: Shape) -> TensorIndex:
        index = TensorIndex.of_matrices(shape)
        if index.order == 2 and min(index.modes) < self.min_dim_size_to_factor:
            return TensorIndex.from_sizes(shape, (index.size,))
        return index
