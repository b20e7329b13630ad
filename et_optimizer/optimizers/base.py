"""The base class of all optimizers of this library."""

import dataclasses
import types
from collections.abc import Mapping
from dataclasses import InitVar, field
from typing import TYPE_CHECKING, Any, ClassVar, Literal

from et_optimizer import checks
from et_optimizer.momenta.quantization import PACKED
from et_optimizer.momenta.subspace import check_rank
from et_optimizer.optimizers import learning_rates
from et_optimizer.optimizers.averages import Averages
from et_optimizer.optimizers.building import Building
from et_optimizer.optimizers.clipping import Clipping
from et_optimizer.optimizers.nonfinite import NonfiniteHandling
from et_optimizer.optimizers.options import HasArguments
from et_optimizer.optimizers.rule import Rule
from et_optimizer.optimizers.saved_state import SavedState
from et_optimizer.optimizers.slots import (
    StateVariables,
)
from et_optimizer.optimizers.updating import Updating
from et_optimizer.types import (
    ByPath,
    LearningRate,
    MomentumRank,
    NamedShapes,
    RateScale,
    Self,
)
from et_optimizer.views.tensor_index import TensorIndex, matched, values_by_path

if TYPE_CHECKING:
    from et_optimizer.types import KerasOptimizer as KerasBase
else:
    from keras.optimizers import Optimizer as KerasBase


class PreconditionedOptimizer(
    HasArguments,
    Building,
    Updating,
    NonfiniteHandling,
    SavedState,
    Clipping,
    Averages,
    KerasBase,
):
    """A Keras optimizer made of a rule, a tensor index and a momentum.

    A subclass names its rule, declares its arguments as annotated class attributes, and
    may say by `index_variables` how the rule views the variables. A rule's fields are
    taken from the arguments of the same name. See the page "Write your own optimizer".

    Args:
        learning_rate: A float ≥ 0, a `keras.optimizers.schedules.LearningRateSchedule`,
            or a callable without arguments that returns the learning rate.
        momentum_rank: The rank r of the momentum of a matrix. `"auto"` is 1/32 of its
            shorter side, and at least 8. `None` is full momentum, of 2·m·n bytes in
            bfloat16; 0 is no momentum. Variables of more than two axes count as
            matrices, split where rows and columns are fewest. Vectors, and matrices
            with r·(m + n) ≥ m·n, have full momentum. Or a dict from regular expressions
            on paths to these.
        refresh_every: The number of steps from one subspace update of a variable's
            momentum to the next, at least 1. The updates of different variables are
            staggered.
        momentum_dtype: The dtype of the momentum: `"float32"`, `"bfloat16"`, `"int8"`,
            `"int4"` or `"int3"`. `"int8"` adds a float32 scale per basis vector (per
            row for full momentum). `"int4"` and `"int3"` pack full momentum into 4 or 3
            bits per entry, with one scale and one seed per variable and a subtractive
            dither, so that small updates are not lost; momentum in a subspace is in
            int8 then. With all three, bases and the momentum of
            one-dimensional variables are in bfloat16.
        clip_threshold: The largest root mean square of a variable's update before
            momentum, as in Adafactor. A larger update is scaled down to it, which takes
            one more pass over the gradient. `None` turns it off.
        update_bound: The largest absolute value of an entry of the update after
            momentum, relative to the learning rate. It takes no pass of its own. `None`
            turns it off.
        nonfinite: What happens to a variable's step if its gradient contains NaN or
            infinity, if its squares overflow, alone or added to the state, or if its
            learning rate is not finite. `"skip"`: the variable neither moves nor
            decays, its state stays as it is, and `skipped_steps` counts the step.
            `"raise"`: an error before anything changes, for a gradient that is not
            finite or whose squares overflow as Keras hands it over. A compiled step
            cannot raise: it skips, and the error comes at the end of `fit`. Keras's own
            averages do not skip, and `global_clipnorm` spreads a NaN to all variables
            before the optimizer sees them.
        spike_threshold: The largest norm of a variable's gradient relative to the root
            mean square of its earlier ones (steps without a gradient count as gradients
            of 0). A larger gradient is scaled down to that before it enters statistics
            and momentum. While the earlier ones are 0, nothing is scaled. Without it,
            statistics remember a gradient spike until `beta_2` has forgotten it:
            entries that share a slice with it hardly move, and in the rank-one
            combination all others move by up to `update_bound`. `None` turns it off.
        stochastic_rounding: Whether bfloat16 and float16 weights, and their moving
            averages (`use_ema`), are rounded stochastically, so that on average no
            update below half a unit in the last place is lost. `False` rounds to
            nearest. Either way the step, weight decay included, is computed in float32
            and rounded once. The random bits are a function of the iteration, the
            variable's index and the entry: they take no memory, and runs repeat and
            resume bit for bit. Float32 and float64 weights are not affected.
        rate_scale: Multiplies the learning rate of a variable, but not its weight
            decay. `"auto"` is 8 for embeddings, also of positions, and for the output
            projection (LM head), and 1 for all other variables. Embeddings are matrices
            whose own name contains "embedding", as in Keras's and KerasHub's layers,
            except those of LoRA. The output projection is the one other matrix whose
            shape is that of the largest embedding of tokens, transposed; if several
            match, none is treated as one. Language models trained from scratch are best
            at about this ratio; for fine-tuning, start with `None`, which is 1 for all.
            Or a number; or a dict from regular expressions on paths to these.
            Optimizers saved by version 0.2 load with `None`.
        weight_decay, clipnorm, clipvalue, global_clipnorm, use_ema, ema_momentum,
            ema_overwrite_frequency, loss_scale_factor, gradient_accumulation_steps,
            name: As in every Keras optimizer. `use_ema` and
            `gradient_accumulation_steps` make Keras keep the model's size once more.

    Raises:
        ValueError: if an argument is unknown or out of range.
    """

    # A subclass sets the first, and may set the others.
    rule: ClassVar[type[Rule]]
    # The paper's name for the decay of the momentum.
    momentum_argument = "beta_1"
    # Whether the momentum is corrected for its start at 0, as in Adam.
    momentum_is_corrected = True
    # What the momentum averages: "update", "gradient", or "step", which is the update
    # times the learning rate.
    momentum_of = "update"
    # The arguments that decide what slots there are, and what their values mean.
    slot_argument_names: ClassVar[tuple[str, ...]] = ()
    state_argument_names: ClassVar[tuple[str, ...]] = ("beta_2",)

    learning_rate: InitVar[LearningRate] = field(default=0.001, kw_only=False)
    momentum_rank: ByPath[MomentumRank] = "auto"
    refresh_every: int = 50
    momentum_dtype: Literal["float32", "bfloat16", "int8", "int4", "int3"] = "bfloat16"
    clip_threshold: float | None = None
    update_bound: float | None = None
    nonfinite: Literal["skip", "raise"] = "skip"
    spike_threshold: float | None = None
    stochastic_rounding: bool = True
    rate_scale: ByPath[RateScale] = None
    weight_decay: InitVar[float | None] = None
    clipnorm: InitVar[float | None] = None
    clipvalue: InitVar[float | None] = None
    global_clipnorm: InitVar[float | None] = None
    use_ema: InitVar[bool] = False
    ema_momentum: InitVar[float] = 0.99
    ema_overwrite_frequency: InitVar[int | None] = None
    loss_scale_factor: InitVar[float | None] = None
    gradient_accumulation_steps: InitVar[int | None] = None
    name: InitVar[str | None] = None

    def __init__(self, *learning_rate: Any, **arguments: Any):
        of_keras, own = self.bind(learning_rate, arguments)
        self.check_arguments(own | of_keras)
        fields = {one.name for one in dataclasses.fields(self.rule)}
        rule = self.rule(**{k: v for k, v in own.items() if k in fields})
        super().__init__(**of_keras)
        # A namespace, because Keras would replace a dict by one of its own.
        self._arguments = types.SimpleNamespace(**own)
        self._rule = rule
        self._states: tuple[StateVariables | None, ...] = ()
        # Without Keras, which would track it and, on TensorFlow, save it.
        object.__setattr__(self, "_traced_steps", {})

    @classmethod
    def check_arguments(cls, given: Mapping[str, Any]) -> None:
        """Raises `ValueError` for a bad value of an argument that is not the rule's.

        Args:
            given: The values of all arguments, by name.
        """
        if isinstance(given["learning_rate"], (int, float)):
            checks.not_negative("learning_rate", given["learning_rate"])
        checks.decay(cls.momentum_argument, given.get(cls.momentum_argument, 0.0))
        for rank in values_by_path("momentum_rank", given["momentum_rank"]):
            check_rank(rank)
        for scale in values_by_path("rate_scale", given["rate_scale"]):
            learning_rates.check_rate_scale(scale)
        checks.whole("refresh_every", given["refresh_every"], 1)
        for name, example in (
            ("clip_threshold", 1.0),
            ("update_bound", 3.0),
            ("spike_threshold", 10.0),
        ):
            checks.positive(name, given[name], or_none=True, example=example)
        is_limited = given["spike_threshold"] is not None
        if is_limited and cls.rule.mean_squares is Rule.mean_squares:
            raise ValueError(
                "spike_threshold needs the size of earlier gradients, which "
                f"{cls.__name__} does not keep; received "
                f"spike_threshold={given['spike_threshold']!r}. Use None."
            )

    def index_variables(self, named_shapes: NamedShapes) -> list[TensorIndex]:
        """The tensor index of every variable. Defaults to its own axes, level 1.

        Args:
            named_shapes: A list of `(path, shape)`, one per variable.

        Returns:
            A list of `TensorIndex`.

        Raises:
            ValueError: if an argument does not fit the variables.
        """
        return [TensorIndex.from_shape(shape, level=1) for _, shape in named_shapes]

    def momentum_decays(self) -> tuple[float, float | None]:
        """The decay of the momentum's state, and of its direction if another one.

        See `et_optimizer.momenta.Momentum`.
        """
        return getattr(self._arguments, self.momentum_argument, 0.0), None

    def by_path(self, name: str, named_shapes: NamedShapes) -> list[Any]:
        """The value of an argument by path for every variable.

        Args:
            name: The argument. Where it is a dict, variables that no expression matches
                get its default.
            named_shapes: A list of `(path, shape)`, one per variable.

        Raises:
            ValueError: if an expression matches no path.
        """
        default = type(self).__signature__.parameters[name].default
        paths = [path for path, _ in named_shapes]
        return matched(name, self.argument(name), paths, default)

    def state_arguments(self) -> dict[str, Any]:
        """The arguments that say what the state means, by name."""
        names = self.state_argument_names
        if self.momentum_dtype in PACKED:
            # A few entries take as many bytes in one as in the other.
            names = (*names, "momentum_dtype")
        return {name: getattr(self, name) for name in names if hasattr(self, name)}

    def slot_arguments(self) -> dict[str, Any]:
        """The arguments that decide what slots there are, by name."""
        names = [*self.slot_argument_names, self.momentum_argument]
        names += ["momentum_rank", "momentum_dtype"]
        given = vars(self._arguments)
        return {name: self.argument(name) for name in names if name in given}

    def get_config(self) -> dict[str, Any]:
        """The arguments that make an equal optimizer."""
        names = vars(self._arguments)
        return super().get_config() | {name: self.argument(name) for name in names}

    @classmethod
    def from_config(
        cls,
        config: Mapping[str, Any],
        custom_objects: Mapping[str, Any] | None = None,
    ) -> Self:
        """An optimizer from `get_config`'s dictionary, also of earlier versions."""
        config = of_this_version(config)
        return super().from_config(config, custom_objects=custom_objects)


def of_this_version(config: Mapping[str, Any]) -> dict[str, Any]:
    """A copy of a configuration, with what earlier versions called otherwise."""
    config = dict(config)
    if "momentum_dtype" in config:  # as in every whole configuration
        # Until 0.2 all variables had the same learning rate.
        config.setdefault("rate_scale", None)
    if config.get("stochastic_rounding") == "auto":
        config["stochastic_rounding"] = True
    return config
