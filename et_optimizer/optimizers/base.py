"""The Keras optimizer that all optimizers of this library are."""

import dataclasses
import functools
import types
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import InitVar, field
from typing import TYPE_CHECKING, Any, ClassVar, Literal

from keras import ops

from et_optimizer import checks, naming
from et_optimizer.compilers.barriers import sequence_after
from et_optimizer.compilers.bits import is_16_bit
from et_optimizer.compilers.layouts import is_distributed
from et_optimizer.compilers.tracing import trace_once
from et_optimizer.momenta.selection import for_variables
from et_optimizer.momenta.subspace import check_rank
from et_optimizer.optimizers import batched, learning_rates, rounding
from et_optimizer.optimizers.averages import Averages
from et_optimizer.optimizers.clipping import Clipping
from et_optimizer.optimizers.nonfinite import NonfiniteHandling
from et_optimizer.optimizers.options import HasArguments
from et_optimizer.optimizers.rule import Rule
from et_optimizer.optimizers.saved_state import SavedState
from et_optimizer.optimizers.slots import (
    SKIPPED_STEPS,
    Slot,
    StatePlan,
    StateVariables,
    add_slot,
    check_floating,
    plan_slots,
    value_of,
)
from et_optimizer.optimizers.step import State, Step, StepContext
from et_optimizer.types import (
    ByPath,
    LearningRate,
    MomentumRank,
    NamedShapes,
    RateScale,
    Self,
    Tensor,
    Variable,
)
from et_optimizer.views import gradients
from et_optimizer.views.tensor_index import TensorIndex, matched, values_by_path

if TYPE_CHECKING:
    from et_optimizer.types import KerasOptimizer as KerasBase
else:
    from keras.optimizers import Optimizer as KerasBase


class PreconditionedOptimizer(
    HasArguments, NonfiniteHandling, SavedState, Clipping, Averages, KerasBase
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
        momentum_dtype: The dtype of the momentum: `"float32"`, `"bfloat16"` or
            `"int8"`. `"int8"` adds a float32 scale per basis vector (per row for full
            momentum), and keeps bases and vectors in bfloat16.
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
            except those of LoRA. The output projection is the only other matrix with
            the transposed shape of the largest embedding that is not of positions, if
            there is exactly one. Language models trained from scratch are best at about
            this ratio; for fine-tuning, start with `None`, which is 1 for all. Or a
            number; or a dict from regular expressions on paths to these. Optimizers
            saved by version 0.2 load with `None`.
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
    momentum_dtype: Literal["float32", "bfloat16", "int8"] = "bfloat16"
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
        return self.argument(self.momentum_argument), None

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

    def plan_state(self, variables: Sequence[Variable]) -> list[StatePlan]:
        """The state that variables will have.

        Args:
            variables: List of variables to be trained.

        Returns:
            A list with a `StatePlan` for each variable.

        Raises:
            ValueError: as `build`.
        """
        for variable in variables:
            check_floating(variable)
        named_shapes = [(naming.path(v), tuple(v.shape)) for v in variables]
        decay, direction_decay = self.momentum_decays()
        kinds = for_variables(
            [shape for _, shape in named_shapes],
            self.by_path("momentum_rank", named_shapes),
            self.momentum_dtype,
            self.refresh_every,
            decay=decay,
            direction_decay=direction_decay,
            is_corrected=self.momentum_is_corrected,
            is_of_gradient=self.momentum_of == "gradient",
        )
        scales = learning_rates.rate_scales(
            self.by_path("rate_scale", named_shapes), named_shapes
        )
        indices = self.index_variables(named_shapes)
        return [
            plan_slots(index, self._rule, momentum, scale)
            for index, momentum, scale in zip(indices, kinds, scales)
        ]

    def build(self, var_list: Sequence[Variable]) -> None:
        """Makes the state of the variables.

        Args:
            var_list: List of the variables to be trained.

        Raises:
            ValueError: if a variable does not have a floating-point dtype, or an
                argument does not fit the variables. Nothing was made then.
        """
        if self.built:
            return
        learned = self._learned(var_list)
        plans = self.plan_state(learned)
        self.check_restored(plans)
        super().build(var_list)
        # First, because TensorFlow's checkpoints go by the order of variables, and
        # would fail at another dtype before they reach the description of the state.
        counter = Slot(SKIPPED_STEPS, (), "int32")
        counters = [add_slot(self, variable, counter) for variable in learned]
        states = {
            id(variable): StateVariables.make(
                plan, counter, functools.partial(add_slot, self, variable)
            )
            for variable, plan, counter in zip(learned, plans, counters)
        }
        self._states = tuple(states.get(id(variable)) for variable in var_list)

    def state_plans(self) -> list[StatePlan]:
        """The plan of the state that was built; empty before."""
        if not self.built:
            return []
        return self.plan_state(self._learned(self._trainable_variables))

    def apply(
        self,
        grads: Iterable[Tensor | None],
        trainable_variables: Iterable[Variable] | None = None,
    ) -> Tensor:
        """One step; see the base.

        Raises:
            ValueError: if the gradients do not fit the variables in number, shape and
                dtype; or if one is not finite, `nonfinite` is `"raise"` and the step is
                not compiled. Nothing has been changed then.
        """
        grads, variables = list(grads), self._trainable_variables
        if trainable_variables is not None:
            trainable_variables = variables = list(trainable_variables)
        if grads and (variables or trainable_variables is not None):
            gradients.check_gradients(grads, variables)
            self.check_finite(grads, variables)
        return super().apply(grads, trainable_variables)

    def update_step(
        self, gradient: Tensor, variable: Variable, learning_rate: Tensor
    ) -> None:
        """Updates a variable and its state.

        Args:
            gradient: Its gradient, dense or sparse.
            variable: The variable.
            learning_rate: Scalar.
        """
        index = self._get_variable_index(variable)
        context = self._context(variable, learning_rate)
        self.take_step(self._states[index], gradient, variable, context)

    def take_step(
        self,
        state: StateVariables,
        gradient: Tensor,
        variable: Variable,
        context: StepContext,
        after: Tensor | None = None,
    ) -> Tensor | None:
        """Updates a variable and its state, whichever framework they belong to.

        Args:
            state: Its `StateVariables`.
            gradient: Its gradient, dense or sparse.
            variable: The variable.
            context: A `StepContext`.
            after: The result of this function for the previous variable, or `None`.

        Returns:
            A tensor that exists once the steps so far have materialized what they do.
        """
        if not state.index.slots:
            return after
        before, step = state.read(variable), self._step(state)
        materializes = state.momentum.is_of_matrix
        if gradients.is_traced(gradient) and not is_distributed():
            step = self._traced_once(step)
            if after is not None and materializes:
                before, gradient = _sequence_after(after, before, gradient)
        is_subspace_update = state.momentum.is_subspace_update(context.step)
        new, rows = step(gradient, before, context, is_subspace_update)
        state.write(variable, before, new, self.assign)
        if rows is not None:
            replace = is_16_bit(variable.dtype)
            (self.assign if replace else self.assign_sub)(variable, rows)
        return new.value if materializes else after

    def rounding_seed(self, dtype: Any, iteration: Tensor, index: int) -> Tensor:
        """The seed of a variable's random bits, or 0 if it is not rounded by them.

        Args:
            dtype: The variable's dtype.
            iteration: Scalar integer, the number of steps before this one.
            index: The variable's index among those that are trained.
        """
        if not (is_16_bit(dtype) and self.stochastic_rounding):
            return 0
        return rounding.seed(iteration, index)

    def state_arguments(self) -> dict[str, Any]:
        """The arguments that say what the state means, by name."""
        return {name: getattr(self, name) for name in self.state_argument_names}

    def slot_arguments(self) -> dict[str, Any]:
        """The arguments that decide what slots there are, by name."""
        names = [*self.slot_argument_names, self.momentum_argument]
        names += ["momentum_rank", "momentum_dtype"]
        return {name: self.argument(name) for name in names}

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
        # A copy, because Keras puts the schedule it makes in the dictionary's place.
        config = dict(config)
        if "momentum_dtype" in config:
            # A whole configuration. Before 0.3 all variables had one learning rate.
            config.setdefault("rate_scale", None)
        if config.get("stochastic_rounding") == "auto":
            config["stochastic_rounding"] = True
        return super().from_config(config, custom_objects=custom_objects)

    def _step(self, state: StateVariables) -> Step:
        """The function that a step of a variable is."""
        return Step(
            index=state.index,
            rule=self._rule,
            momentum=state.momentum,
            momentum_of=self.momentum_of,
            clip_threshold=self.clip_threshold,
            update_bound=self.update_bound,
            spike_threshold=self.spike_threshold,
            stochastic_rounding=self.stochastic_rounding,
            rate_scale=state.rate_scale,
        )

    def _traced_once(self, step: Step) -> Step:
        """The step, traced once for all variables that have it."""
        if step not in self._traced_steps:
            self._traced_steps[step] = trace_once(step)
        return self._traced_steps[step]

    def _context(self, variable: Variable, learning_rate: Tensor) -> StepContext:
        decay = self.weight_decay if self._use_weight_decay(variable) else None
        index = self._get_variable_index(variable)
        return StepContext(
            value_of(learning_rate),
            ops.cast(self.iterations + 1, "float32"),
            None if decay is None else value_of(decay),
            # Keras's own counter also counts steps that only accumulate gradients.
            self.rounding_seed(variable.dtype, self._iterations, index),
        )

    def _backend_update_step(
        self,
        grads: Iterable[Tensor],
        trainable_variables: Iterable[Variable],
        learning_rate: Tensor,
    ) -> None:
        """Updates all variables, small ones of equal shape in batches."""
        # A subclass with an update of its own expects it to be called.
        is_own = type(self).update_step is PreconditionedOptimizer.update_step
        if not is_own or is_distributed():
            super()._backend_update_step(grads, trainable_variables, learning_rate)
            return
        grads, variables = list(grads), list(trainable_variables)
        states = [self._states[self._get_variable_index(v)] for v in variables]
        contexts = [self._context(v, learning_rate) for v in variables]
        steps = [self._step(state) for state in states]
        after = None
        # The gradients of the last variables are ready first, and would stay alive
        # while those of the first are waited for.
        for batch in reversed(batched.batches(steps, grads, variables, contexts)):
            if len(batch) == 1:
                i = batch[0]
                of_one = states[i], grads[i], variables[i], contexts[i]
                after = self.take_step(*of_one, after)
                continue
            before = [states[i].read(variables[i]) for i in batch]
            new = batched.take(
                steps[batch[0]],
                [grads[i] for i in batch],
                before,
                [contexts[i] for i in batch],
            )
            for i, *values in zip(batch, before, new):
                states[i].write(variables[i], *values, self.assign)

    def _apply_weight_decay(self, variables: Sequence[Variable]) -> None:
        """Nothing: a variable decays in its own step, if that is taken."""

    def _learned(self, variables: Sequence[Variable]) -> list[Variable]:
        """The variables that are trained by steps, rather than set to their gradient.

        Keras sets the scales of float8 to their gradient.
        """
        return [v for v in variables if not self._overwrite_variable_with_gradient(v)]


def _sequence_after(after: Tensor, state: State, gradient: Any) -> tuple[State, Any]:
    """A state and a gradient that are available only once `after` is.

    So that what a step materializes exists for one variable at a time.
    """
    first, *rest = state.averages
    state = state._replace(averages=[sequence_after(first, after), *rest])
    if is_16_bit(state.value.dtype):
        state = state._replace(value=sequence_after(state.value, after))
    if is_16_bit(gradient.dtype):
        # Small 16-bit gradients are cast as a whole, as soon as they are ready.
        gradient = gradients.wait_for(gradient, after)
    return state, gradient
