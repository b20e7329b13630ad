"""The Keras shell that all optimizers of this library share."""

import dataclasses
import itertools
import math
import operator
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any, Final, Literal

import keras
from keras import ops

from et_optimizer import checks, momenta, naming
from et_optimizer.compilers import bits, tracing
from et_optimizer.optimizers import batched as together
from et_optimizer.optimizers import learning_rates as rate_scales
from et_optimizer.optimizers import options as given
from et_optimizer.optimizers import rounding
from et_optimizer.optimizers.nonfinite import FiniteSteps, check_nonfinite
from et_optimizer.optimizers.saved_state import SavedForm
from et_optimizer.optimizers.step import Clock, State, Step
from et_optimizer.preconditioners import Preconditioner
from et_optimizer.types import (
    ByPath,
    KerasArguments,
    LearningRate,
    MomentumDtype,
    MomentumRank,
    NamedShapes,
    Nonfinite,
    RateScale,
    Self,
    Shape,
    StochasticRounding,
    Tensor,
    Unpack,
    Variable,
)
from et_optimizer.views import gradients
from et_optimizer.views.tensor_index import (
    TensorIndex,
    by_path,
    checked_values,
    matrix_shape,
)

MOMENTUM_OF = ("update", "gradient")


@dataclasses.dataclass(frozen=True)
class Plan:
    """What the optimizer is to hold for one variable of the model.

    Attributes:
        index: The variable's `TensorIndex`.
        momentum: Its `Momentum`.
        rate_scale: What its learning rate is multiplied by.
        held: The name, shape and dtype of everything to be held.
    """

    index: TensorIndex
    momentum: momenta.Momentum
    rate_scale: float
    held: list[tuple[str, Shape, str]]

    def starts(self) -> list[Any]:
        """What each of these starts at: an array, or `None` for zeros."""
        return [self.momentum.start(name) for name, _, _ in self.held]


@dataclasses.dataclass(frozen=True)
class HeldForVariable:
    """What the optimizer holds for one variable of the model."""

    index: TensorIndex
    momentum: momenta.Momentum
    rate_scale: float
    slots: list[Variable]
    averages: list[Variable]
    skipped_steps: Variable

    @classmethod
    def of(cls, plan: Plan, made: list[Variable], skipped_steps: Variable) -> Self:
        """From a plan, what was made of it in its order, and a counter."""
        named = {name: one for (name, _, _), one in zip(plan.held, made)}
        averages = [named.pop(name) for name in plan.momentum.plan()]
        slots = list(named.values())
        own = plan.index, plan.momentum, plan.rate_scale
        return cls(*own, slots, averages, skipped_steps)

    def state(self, variable: Variable) -> State:
        """The values of the variable and of what is held for it, a `State`."""
        return State(
            _value(variable),
            [_value(slot) for slot in self.slots],
            [_value(average) for average in self.averages],
            _value(self.skipped_steps),
        )


def by_path_to_keep(given: ByPath[Any]) -> Any:
    """An argument as an attribute, where Keras would track a dict."""
    return tuple(given.items()) if isinstance(given, Mapping) else given


def by_path_as_given(kept: Any) -> Any:
    """What `by_path_to_keep` was given."""
    return dict(kept) if isinstance(kept, tuple) else kept


def read_only(value: Callable[[Any], Any], meaning: str) -> Any:
    """A property, for an attribute that is annotated as what it gives, and `Final`."""
    return property(value, doc=meaning)


def argument_of_preconditioner(name: str, meaning: str) -> Any:
    """An optimizer's read-only attribute that its preconditioner has."""
    return read_only(lambda self: getattr(self._preconditioner, name), meaning)


class PreconditionedOptimizer(FiniteSteps, SavedForm, keras.optimizers.Optimizer):
    """Makes the slots, calls the preconditioner, clips, averages, decays and steps.

    A subclass is its arguments, its docstring, the preconditioner it passes on and
    `index_variables`, which says how that sees the variables. The preconditioner's
    fields are arguments of the subclass, of the same names.

    Args:
        preconditioner: What a paper keeps and computes; see
            `et_optimizer.preconditioners`.
        learning_rate: As in `keras.optimizers.Optimizer`.
        momentum: Decay in [0, 1) of a moving average of the updates.
        momentum_of: `"update"`, or `"gradient"` for an average before the scaling.
        momentum_rank, refresh_every, momentum_dtype, clip_threshold, update_bound,
            nonfinite, spike_threshold, stochastic_rounding, rate_scale: As in
            `et_optimizer.ExtremeTensoring`.
        **kwargs: The arguments of `keras.optimizers.Optimizer`.
    """

    # The name that a paper gives the decay of its momentum.
    momentum_argument = "beta_1"
    # Whether the momentum's start at 0 is corrected for, as in Adam.
    momentum_is_corrected = True
    # Whether the rate is in what the momentum averages, or multiplies the average.
    momentum_of_steps = False
    # The arguments that decide which slots there are.
    form_arguments: tuple[str, ...] = ()
    # Those that every subclass takes without naming them.
    shared_arguments: tuple[str, ...] = ("rate_scale",)
    # Those that decide what the numbers in them mean.
    meaning_arguments: tuple[str, ...] = ("beta_2",)

    def __new__(cls, *args: Any, **kwargs: Any) -> Self:
        # Before an argument of another name meets one that a subclass passes on.
        names = given.takes(cls)
        for name, value in kwargs.items():
            if name not in names:
                raise ValueError(
                    f"Argument not recognized by {cls.__name__}: {name}={value!r}."
                    f"{given.hint(name, names)} It takes {', '.join(names)}."
                )
        return super().__new__(cls)

    def __init__(
        self,
        preconditioner: Preconditioner,
        learning_rate: LearningRate,
        *,
        momentum: float,
        momentum_rank: ByPath[MomentumRank],
        refresh_every: int,
        momentum_dtype: MomentumDtype,
        clip_threshold: float | None,
        update_bound: float | None,
        nonfinite: Nonfinite,
        spike_threshold: float | None,
        stochastic_rounding: StochasticRounding,
        momentum_of: Literal["update", "gradient"] = "update",
        rate_scale: ByPath[RateScale] = None,
        **kwargs: Unpack[KerasArguments],
    ):
        checks.decay(self.momentum_argument, momentum)
        _check_ranks(momentum_rank)
        checks.whole("refresh_every", refresh_every, 1)
        checks.choice("momentum_dtype", momentum_dtype, momenta.DTYPES)
        checks.choice("momentum_of", momentum_of, MOMENTUM_OF)
        checks.positive("clip_threshold", clip_threshold, or_none=True)
        checks.positive("update_bound", update_bound, or_none=True, example=3.0)
        check_nonfinite(nonfinite)
        rate_scales.check(rate_scale)
        checks.positive("spike_threshold", spike_threshold, or_none=True, example=10.0)
        choices = rounding.STOCHASTIC
        checks.choice("stochastic_rounding", stochastic_rounding, choices)
        super().__init__(learning_rate=learning_rate, **kwargs)
        self.refresh_every = refresh_every
        self.momentum_dtype = momentum_dtype
        self.momentum_of = momentum_of
        self.clip_threshold = clip_threshold
        self.update_bound = update_bound
        self.nonfinite = nonfinite
        self.spike_threshold = spike_threshold
        self.stochastic_rounding = stochastic_rounding
        self._momentum_rank = by_path_to_keep(momentum_rank)
        self._rate_scale = by_path_to_keep(rate_scale)
        self._momentum_decay = momentum
        self._preconditioner = preconditioner
        self._held: tuple[HeldForVariable | None, ...] = ()
        # Past Keras, which would track it and, on TensorFlow, save it.
        object.__setattr__(self, "_steps", {})

    def index_variables(self, named_shapes: NamedShapes) -> list[TensorIndex]:
        """The tensor index of every variable.

        Args:
            named_shapes: A list of `(path, shape)`, one a variable.

        Returns:
            A list of `TensorIndex`.

        Raises:
            ValueError: if an argument does not fit the variables.
        """
        raise NotImplementedError

    def build(self, var_list: Sequence[Variable]) -> None:
        """Makes what is held for the variables.

        Args:
            var_list: List of the variables to be trained.

        Raises:
            ValueError: if a variable is not of a floating-point dtype, or an
                argument does not fit the variables. Nothing is made then.
        """
        if self.built:
            return
        learned = self._learned(var_list)
        plans = self.plan(learned)
        self.check_restored([plan.held for plan in plans])
        super().build(var_list)
        # Before all that depends on the index: TensorFlow's checkpoints go by places,
        # and would stop at another dtype before they know of another form.
        counters = [self._add(v, "skipped_steps", (), "int32") for v in learned]
        held = {
            id(variable): self._hold(variable, plan, counter)
            for variable, plan, counter in zip(learned, plans, counters)
        }
        self._held = tuple(held.get(id(variable)) for variable in var_list)

    def plan(self, variables: Sequence[Variable]) -> list[Plan]:
        """What is to be held for variables.

        Args:
            variables: List of variables to be trained.

        Returns:
            A list with a `Plan` for each variable.

        Raises:
            ValueError: as `build`.
        """
        for variable in variables:
            _check_floating(variable)
        named_shapes = [(naming.path(v), tuple(v.shape)) for v in variables]
        indices = self.index_variables(named_shapes)
        kinds = self._momenta(named_shapes)
        scales = rate_scales.of_variables(self.rate_scale, named_shapes)
        return [self._plan(*of_one) for of_one in zip(indices, kinds, scales)]

    def apply(
        self,
        grads: Iterable[Tensor | None],
        trainable_variables: Iterable[Variable] | None = None,
    ) -> Tensor:
        """One step; see the base.

        Raises:
            ValueError: if a gradient has not its variable's shape, or is of no
                floating-point dtype; if there are not as many as variables; or if one
                is not finite, `nonfinite` is `"raise"` and the step is not compiled.
                Nothing has been changed then.
        """
        grads, variables = list(grads), self._trainable_variables
        if trainable_variables is not None:
            trainable_variables = variables = list(trainable_variables)
        if grads and (variables or trainable_variables is not None):
            given.check_gradients(grads, variables)
            self.check_finite(grads, variables)
        return super().apply(grads, trainable_variables)

    def update_step(
        self, gradient: Tensor, variable: Variable, learning_rate: Tensor
    ) -> None:
        """Updates a variable and what is held for it.

        Args:
            gradient: Its gradient, dense or `tf.IndexedSlices`.
            variable: The variable.
            learning_rate: Scalar.
        """
        held = self._held[self._get_variable_index(variable)]
        clock = self._clock(variable, learning_rate)
        self.take_step(held, gradient, variable, clock)

    def take_step(
        self,
        held: HeldForVariable,
        gradient: Tensor,
        variable: Variable,
        clock: Clock,
        after: Tensor | None = None,
    ) -> Tensor | None:
        """Updates a variable and what is held for it, whoever holds it.

        Args:
            held: Its `HeldForVariable`.
            gradient: Its gradient, dense or `tf.IndexedSlices`.
            variable: The variable.
            clock: A `Clock`.
            after: What the call for the variable before returned, or `None`.

        Returns:
            A tensor that there is when the steps are taken that write something out.
        """
        if not held.index.slots:
            return after
        before, step = held.state(variable), self._step(held)
        is_refresh = held.momentum.is_refresh(clock.step)
        writes_out = isinstance(held.momentum, momenta.SubspaceMomentum)
        if together.is_possible(gradient):
            step = self._traced_once(step)
            if after is not None and writes_out:
                # So that what is written out is there for one variable at a time.
                before.averages[0] = gradients.in_turn(before.averages[0], after)
                if bits.is_half(before.value.dtype):
                    waiting = gradients.in_turn(before.value, after)
                    before = before._replace(value=waiting)
                if bits.is_half(gradient.dtype):
                    # Small ones are cast as a whole, as soon as they are there.
                    gradient = gradients.in_turn(gradient, after)
        new, rows = step(gradient, before, clock, is_refresh)
        self._put(held, variable, before, new)
        if rows is not None:
            is_new = bits.is_half(variable.dtype)
            (self.assign if is_new else self.assign_sub)(variable, rows)
        return new.value if writes_out else after

    def rounding_seed(self, dtype: Any, iteration: Tensor, place: int) -> Tensor:
        """What a variable's random bits begin from, where it is rounded by them, or 0.

        Args:
            dtype: The variable's.
            iteration: Scalar integer, the number of steps before this one.
            place: The variable's place among those that are trained.
        """
        if not (bits.is_half(dtype) and self.stochastic_rounding):
            return 0
        return rounding.seed(iteration, place)

    momentum_rank: Final[ByPath[MomentumRank]] = read_only(
        lambda self: by_path_as_given(self._momentum_rank),
        'The directions of the momentum: "auto", a number, `None`, or a dict.',
    )
    rate_scale: Final[ByPath[RateScale]] = read_only(
        lambda self: by_path_as_given(self._rate_scale),
        'What rates are multiplied by: "auto", a number, `None`, or a dict.',
    )
    momentum_decay: Final[float] = read_only(
        lambda self: self._momentum_decay,
        "The decay of the momentum; 0 keeps none.",
    )

    def get_config(self) -> dict[str, Any]:
        """The arguments that make an equal optimizer."""
        config = super().get_config()
        config.update(
            dataclasses.asdict(self._preconditioner)
            | {
                self.momentum_argument: self._momentum_decay,
                "momentum_rank": self.momentum_rank,
                "refresh_every": self.refresh_every,
                "momentum_dtype": self.momentum_dtype,
                "clip_threshold": self.clip_threshold,
                "update_bound": self.update_bound,
                "nonfinite": self.nonfinite,
                "spike_threshold": self.spike_threshold,
                "stochastic_rounding": self.stochastic_rounding,
                "rate_scale": self.rate_scale,
            }
        )
        return config

    @classmethod
    def from_config(
        cls,
        config: Mapping[str, Any],
        custom_objects: Mapping[str, Any] | None = None,
    ) -> Self:
        """An optimizer from `get_config`'s dictionary."""
        # A copy, because Keras puts the schedule it makes in the dictionary's place.
        config = dict(config)
        if "momentum_dtype" in config:  # It is a whole one; of 0.2 it has one rate.
            config.setdefault("rate_scale", None)
        return super().from_config(config, custom_objects=custom_objects)

    def _plan(
        self, index: TensorIndex, momentum: momenta.Momentum, rate_scale: float
    ) -> Plan:
        """What is to be held for a variable."""
        shapes = self._preconditioner.slot_shapes(index)
        held = [(slot, shape, "float32") for slot, shape in shapes.items()]
        held += [(name, *of_name) for name, of_name in momentum.plan().items()]
        return Plan(index, momentum, rate_scale, held)

    def _momenta(self, named_shapes: NamedShapes) -> list[momenta.Momentum]:
        """The momentum of every variable."""
        paths = [path for path, _ in named_shapes]
        ranks: list[MomentumRank] = by_path(
            "momentum_rank", self.momentum_rank, paths, momenta.AUTO
        )
        kinds = [
            self._momentum(shape, rank) for (_, shape), rank in zip(named_shapes, ranks)
        ]
        in_subspaces = [
            (place, kind)
            for place, kind in enumerate(kinds)
            if isinstance(kind, momenta.SubspaceMomentum)
        ]
        # Spread over the steps, so that none of them takes much longer than another.
        for count, (place, kind) in enumerate(in_subspaces):
            offset = count * self.refresh_every // len(in_subspaces)
            kinds[place] = dataclasses.replace(kind, offset=offset)
        return kinds

    def _momentum(self, shape: Shape, rank: MomentumRank) -> momenta.Momentum:
        """The momentum of a variable of a shape."""
        own: dict[str, Any] = {
            "decay": self._momentum_decay,
            "is_corrected": self.momentum_is_corrected,
        }
        if not self._momentum_decay or rank == 0 or math.prod(shape) == 0:
            return momenta.Momentum()
        matrix = matrix_shape(shape)
        if matrix is None:
            # Of the few numbers of a vector each is worth two bytes.
            dtype = "bfloat16" if self.momentum_dtype == "int8" else self.momentum_dtype
            return momenta.FullMomentum(**own, shape=shape, dtype=dtype)
        if rank == momenta.AUTO:
            rank = momenta.auto_rank(*matrix)
        rows, columns = matrix
        if rank is None or rank * (rows + columns) >= rows * columns:
            leading = list(itertools.accumulate(shape, operator.mul)).index(rows) + 1
            return momenta.FullMomentum(
                **own, shape=shape, dtype=self.momentum_dtype, rows=leading
            )
        return momenta.SubspaceMomentum(
            **own,
            rows=rows,
            columns=columns,
            rank=int(rank),
            refresh_every=self.refresh_every,
            dtype=self.momentum_dtype,
        )

    def _hold(
        self, variable: Variable, plan: Plan, counter: Variable
    ) -> HeldForVariable:
        made = [
            self._add(variable, *of_one, start)
            for of_one, start in zip(plan.held, plan.starts())
        ]
        return HeldForVariable.of(plan, made, counter)

    def _add(
        self, variable: Variable, name: str, shape: Shape, dtype: str, start: Any = None
    ) -> Variable:
        """Makes something that is held for a variable."""
        return self.add_variable(
            shape=shape,
            dtype=dtype,
            initializer="zeros" if start is None else _constant(start),
            name=naming.slot_prefix(variable) + name,
            layout=_layout(name, shape, variable),
        )

    def _step(self, held: HeldForVariable) -> Step:
        """The function that a step of a variable is."""
        momentum = held.momentum
        if isinstance(momentum, momenta.SubspaceMomentum):
            # When it is refreshed is given, so that equal variables have equal steps.
            momentum = dataclasses.replace(momentum, offset=0)
        return Step(
            index=held.index,
            preconditioner=self._preconditioner,
            momentum=momentum,
            momentum_of=self.momentum_of,
            momentum_of_steps=self.momentum_of_steps,
            clip_threshold=self.clip_threshold,
            update_bound=self.update_bound,
            spike_threshold=self.spike_threshold,
            stochastic_rounding=bool(self.stochastic_rounding),
            rate_scale=held.rate_scale,
        )

    def _traced_once(self, step: Step) -> Step:
        """The step, traced once for all variables of which it is."""
        if step not in self._steps:
            self._steps[step] = tracing.once(step)
        return self._steps[step]

    def _clock(self, variable: Variable, learning_rate: Tensor) -> Clock:
        """What a step of a variable has in common with those of others."""
        decay = self.weight_decay if self._use_weight_decay(variable) else None
        decay = None if decay is None else _value(decay)
        step = ops.cast(self.iterations + 1, "float32")
        place = self._get_variable_index(variable)
        # Keras's own counter, also of steps that only accumulate gradients.
        seed = self.rounding_seed(variable.dtype, self._iterations, place)
        return Clock(_value(learning_rate), step, decay, seed)

    def _put(
        self, held: HeldForVariable, variable: Variable, before: State, after: State
    ) -> None:
        """Gives a variable and what is held for it the values of a `State`."""
        own = [*held.slots, *held.averages, held.skipped_steps, variable]
        old = [*before.slots, *before.averages, before.skipped_steps, before.value]
        new = [*after.slots, *after.averages, after.skipped_steps, after.value]
        for target, was, value in zip(own, old, new):
            if value is not was:
                self.assign(target, value)

    def _apply_weight_decay(self, variables: Sequence[Variable]) -> None:
        """Nothing: a variable decays in its own step, where that is taken."""

    def _clip_gradients(self, grads: Sequence[Tensor]) -> Sequence[Tensor]:
        """The clipped gradients; in a compiled step on JAX without writing them out."""
        is_of_one = self.clipnorm is not None and self.clipnorm > 0
        limit = self.clipnorm if is_of_one else self.global_clipnorm
        is_jax = keras.backend.backend() == "jax"
        can_be_scaled = is_jax and all(map(gradients.is_traced, grads))
        if not can_be_scaled or limit is None or limit <= 0:
            return super()._clip_gradients(grads)
        norms = [ops.sqrt(gradients.sum_of_squares(gradient)) for gradient in grads]
        if not is_of_one:
            total = ops.sqrt(sum(ops.square(norm) for norm in norms))
            # Where it is not finite, no number is: of none a step is taken then.
            norms = [total + (total - total)] * len(grads)
        return [
            gradients.Scaled(gradient, limit / ops.maximum(norm, limit))
            for gradient, norm in zip(grads, norms)
        ]

    def _backend_update_step(
        self,
        grads: Iterable[Tensor],
        trainable_variables: Iterable[Variable],
        learning_rate: Tensor,
    ) -> None:
        """Updates all variables, of which those that are small and alike together."""
        # A subclass with an update of its own expects it to be called.
        is_own = type(self).update_step is PreconditionedOptimizer.update_step
        if not is_own or together.are_in_parts():
            super()._backend_update_step(grads, trainable_variables, learning_rate)
            return
        grads, variables = list(grads), list(trainable_variables)
        held = [self._held[self._get_variable_index(v)] for v in variables]
        clocks = [self._clock(variable, learning_rate) for variable in variables]
        kinds = [(self._step(h), c.weight_decay is None) for h, c in zip(held, clocks)]
        after = None
        # The last first: their gradients are there first, and would stay alive while
        # that of the first is waited for.
        for places in reversed(together.parted(kinds, grads, variables)):
            first = places[0]
            if len(places) == 1:
                of_one = held[first], grads[first], variables[first], clocks[first]
                after = self.take_step(*of_one, after)
                continue
            before = [held[place].state(variables[place]) for place in places]
            of_all = [grads[place] for place in places]
            states = together.take(
                kinds[first][0], of_all, before, [clocks[place] for place in places]
            )
            for place, *pair in zip(places, before, states):
                self._put(held[place], variables[place], *pair)

    def _update_model_variables_moving_average(
        self, trainable_variables: Sequence[Variable]
    ) -> None:
        """Keras's averages of weights; those in two bytes are rounded as these are."""
        halves = (bits.is_half(v.dtype) for v in trainable_variables)
        if not (self.use_ema and self.stochastic_rounding and any(halves)):
            super()._update_model_variables_moving_average(trainable_variables)
            return
        is_later = ops.not_equal(self.iterations, 0)
        momentum = ops.cast(is_later, "float32") * self.ema_momentum
        averages = self._model_variables_moving_average
        for place, (variable, average) in enumerate(zip(trainable_variables, averages)):
            if average is None:
                continue
            # Of the steps between two that accumulate gradients each has its own bits.
            found = rounding.averaged(
                _value(average), _value(variable), momentum, self._iterations, place
            )
            average.assign(found)

    def _backend_reset_gradient_accumulators(self) -> None:
        # Keras multiplies them by 0 on PyTorch, where NaN would stay for ever.
        for accumulator in self._accumulated_gradients:
            if accumulator is not None:
                accumulator.assign(ops.zeros_like(accumulator))

    def state_arguments(self) -> dict[str, Any]:
        """The arguments that say what the numbers held mean, by name."""
        return {name: getattr(self, name) for name in self.meaning_arguments}

    def settings(self) -> dict[str, str]:
        """The arguments that decide what is held, and how: name → value as text."""
        names = [*self.form_arguments, self.momentum_argument]
        names += ["momentum_rank", "momentum_dtype"]
        return {name: repr(getattr(self, name)) for name in names}

    def check_fits(
        self, saved: list[Any], own: list[Any], settings: Mapping[str, str]
    ) -> None:
        """Raises unless what was saved has the form of what this optimizer holds.

        Args:
            saved, own: Lists of what is held.
            settings: What `settings` was when it was saved; empty if not known.
        """
        if not saved or saved == own:
            return
        form = self.settings()
        given = ", ".join(f"{name}={value}" for name, value in form.items())
        others = [
            f"{name}={settings[name]}"
            for name, value in form.items()
            if settings.get(name, value) != value
        ]
        saved_with = f" ({', '.join(others)})" if others else ""
        raise ValueError(
            f"The saved optimizer state does not fit this {type(self).__name__} "
            f"({given}): it has the shapes {saved}, this optimizer {own}. Make the "
            f"optimizer with the {', '.join(form)} that the state was saved with"
            f"{saved_with}, or load the model without the optimizer and start with a "
            "fresh one. Nothing was loaded into this optimizer."
        )

    def _plans(self) -> list[list[tuple[str, Shape, str]]]:
        if not self.built:
            return []
        return [
            plan.held for plan in self.plan(self._learned(self._trainable_variables))
        ]

    def _learned(self, variables: Sequence[Variable]) -> list[Variable]:
        """The variables that are trained, without those that take their gradient."""
        return [v for v in variables if not self._overwrite_variable_with_gradient(v)]


def _value(slot: Any) -> Tensor:
    """A slot's value, a tensor; to Keras a `tf.Variable` is itself one."""
    if isinstance(slot, keras.Variable):
        slot = slot.value
    return slot.read_value() if hasattr(slot, "read_value") else slot


def _layout(name: str, shape: Shape, variable: Variable) -> Any:
    """Where the parts of a slot lie under `keras.distribution`.

    Momentum of the variable's shape lies as the variable does. All else, being small,
    lies on every device; a `LayoutMap` is not asked, whose expressions are meant for
    the variables' axes.
    """
    distribution = keras.distribution.distribution()
    if distribution is None:
        return None
    if name == "momentum" and shape == tuple(variable.shape):
        return getattr(variable, "_layout", None)
    return keras.distribution.TensorLayout(
        [None] * len(shape), distribution.device_mesh
    )


def _constant(start: Any) -> Callable[..., Tensor]:
    """An initializer that gives an array."""
    return lambda shape, dtype: ops.convert_to_tensor(start, dtype)


def _check_ranks(momentum_rank: Any) -> None:
    for rank in checked_values("momentum_rank", momentum_rank):
        is_whole = checks.is_integer(rank) and rank >= 0
        if not is_whole and rank is not None and rank != momenta.AUTO:
            raise ValueError(
                'momentum_rank must be "auto", an integer ≥ 0 (0 for no momentum), '
                "None for full momentum, or a dict from regular expressions on paths "
                f"to these; received momentum_rank={momentum_rank!r}."
            )


def _check_floating(variable: Variable) -> None:
    dtype = keras.backend.standardize_dtype(variable.dtype)
    if "float" not in dtype:
        raise ValueError(
            f"Only floating-point variables can be trained; received variable "
            f"{naming.path(variable)!r} of dtype {dtype}. Set trainable=False on it or "
            "leave it out of the list of variables."
        )
