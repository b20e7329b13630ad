"""The Keras shell that all optimizers of this library share."""

import dataclasses
import math
from typing import Any

import keras
from keras import ops

from et_optimizer import checks, gradients, naming
from et_optimizer.optimizers.saved_form import SavedForm
from et_optimizer.tensor_index import TensorIndex

MOMENTUM_DTYPES = ("float32", "bfloat16")


@dataclasses.dataclass(frozen=True)
class HeldForVariable:
    """What the optimizer holds for one variable of the model."""

    index: TensorIndex
    slots: list[Any]
    momentum: Any = None
    skipped_steps: Any = None

    @classmethod
    def of(cls, index, made):
        """From a dict of what was made of a plan, in its order."""
        slots = dict(made)
        momentum = slots.pop("momentum", None)
        skipped_steps = slots.pop("skipped_steps", None)
        return cls(index, list(slots.values()), momentum, skipped_steps)


def argument_of_preconditioner(name, meaning):
    """An optimizer's read-only attribute that its preconditioner has."""
    return property(lambda self: getattr(self._preconditioner, name), doc=meaning)


class PreconditionedOptimizer(SavedForm, keras.optimizers.Optimizer):
    """Makes the slots, calls the preconditioner, clips, averages and steps.

    A subclass is its arguments, its docstring, the preconditioner it passes on and
    `index_variables`, which says how that sees the variables. The preconditioner's
    fields are arguments of the subclass, of the same names.

    Args:
        preconditioner: What a paper keeps and computes; see
            `et_optimizer.preconditioners`.
        learning_rate: As in `keras.optimizers.Optimizer`.
        momentum: Decay in [0, 1) of a moving average of the updates.
        clip_threshold, momentum_dtype: As in `et_optimizer.ExtremeTensoring`.
        **kwargs: The arguments of `keras.optimizers.Optimizer`.
    """

    # The name that a paper gives the decay of its momentum.
    momentum_argument = "beta_1"
    # Whether the momentum's start at 0 is corrected for, as in Adam.
    momentum_is_corrected = True
    # Whether the rate is in what the momentum averages, or multiplies the average.
    momentum_of_steps = False
    # The arguments that decide which slots there are.
    form_arguments = ()

    def __init__(
        self,
        preconditioner,
        learning_rate,
        *,
        momentum,
        clip_threshold,
        momentum_dtype,
        **kwargs,
    ):
        checks.decay(self.momentum_argument, momentum)
        checks.positive("clip_threshold", clip_threshold, or_none=True)
        checks.choice("momentum_dtype", momentum_dtype, MOMENTUM_DTYPES)
        super().__init__(learning_rate=learning_rate, **kwargs)
        self.clip_threshold = clip_threshold
        self.momentum_dtype = momentum_dtype
        self._momentum_decay = momentum
        self._preconditioner = preconditioner
        self._held = ()

    def index_variables(self, named_shapes):
        """The tensor index of every variable.

        Args:
            named_shapes: A list of `(path, shape)`, one a variable.

        Returns:
            A list of `TensorIndex`.

        Raises:
            ValueError: if an argument does not fit the variables.
        """
        raise NotImplementedError

    def build(self, var_list):
        """Makes what is held for the variables.

        Args:
            var_list: List of the variables to be trained.

        Raises:
            ValueError: if a variable is not of a floating-point dtype, or an
                argument does not fit the variables. Nothing is made then.
        """
        if self.built:
            return
        learned = [v for v in var_list if not self._overwrite_variable_with_gradient(v)]
        indices, plans = self.plan(learned)
        self.check_fits(self._restored_plans, plans)
        super().build(var_list)
        held = {
            id(variable): self._hold(variable, index, plan)
            for variable, index, plan in zip(learned, indices, plans)
        }
        self._held = tuple(held.get(id(variable)) for variable in var_list)

    def plan(self, variables):
        """What is to be held for variables.

        Args:
            variables: List of variables to be trained.

        Returns:
            `(indices, plans)`: for each variable its `TensorIndex`, and a list of the
            name, shape and dtype of everything to be held for it.

        Raises:
            ValueError: as `build`.
        """
        for variable in variables:
            _check_floating(variable)
        named_shapes = [(naming.path(v), tuple(v.shape)) for v in variables]
        indices = self.index_variables(named_shapes)
        return indices, [self._plan(v, index) for v, index in zip(variables, indices)]

    def update_step(self, gradient, variable, learning_rate):
        """Updates a variable and what is held for it.

        Args:
            gradient: Its gradient, dense or `tf.IndexedSlices`.
            variable: The variable.
            learning_rate: Scalar.
        """
        held = self._held[self._get_variable_index(variable)]
        step = ops.cast(self.iterations + 1, "float32")
        self.take_step(held, gradient, variable, learning_rate, step)

    def take_step(self, held, gradient, variable, learning_rate, step):
        """Updates a variable and what is held for it, whoever holds it.

        Args:
            held: Its `HeldForVariable`.
            gradient: Its gradient, dense or `tf.IndexedSlices`.
            variable: The variable.
            learning_rate: Scalar.
            step: Scalar float32 tensor, t from 1.
        """
        if held.index.slots:
            self._take_step(held, gradient, variable, learning_rate, step)

    def _take_step(self, held, gradient, variable, learning_rate, step, is_taken=None):
        """The step of a variable; nothing changes where `is_taken`, if given, is false.

        A gradient for a step that may not be taken is finite all the same.
        """
        before = [_value(slot) for slot in held.slots]
        seen = gradients.see(gradient, held.index)
        update, slots = self._preconditioner(seen, before, step)
        if is_taken is not None:
            slots = [ops.where(is_taken, *pair) for pair in zip(slots, before)]
        for slot, value in zip(held.slots, slots):
            self.assign(slot, value)
        scale = self._clip_scale(update)
        rate = self._preconditioner.rate(
            ops.cast(learning_rate, "float32"), variable, step
        )
        if is_taken is not None:
            rate = ops.where(is_taken, rate, 0.0)
        if held.momentum is None:
            self.assign_sub(variable, update.times(scale * rate))
            return
        if self.momentum_of_steps:
            scale, rate = scale * rate, 1.0
        decay = self._momentum_decay
        addition = update.times(scale * (1.0 - decay))
        if is_taken is not None:
            decay = ops.where(is_taken, decay, 1.0)
            addition = ops.where(is_taken, addition, 0.0)
        self._average(held.momentum, decay, addition)
        momentum = ops.cast(held.momentum, "float32")
        self.assign_sub(variable, momentum * (rate / self._momentum_weight(step)))

    momentum_decay = property(
        lambda self: self._momentum_decay,
        doc="The decay of the momentum; 0 keeps none.",
    )

    def get_config(self):
        """The arguments that make an equal optimizer."""
        config = super().get_config()
        config.update(
            dataclasses.asdict(self._preconditioner)
            | {
                self.momentum_argument: self._momentum_decay,
                "clip_threshold": self.clip_threshold,
                "momentum_dtype": self.momentum_dtype,
            }
        )
        return config

    @classmethod
    def from_config(cls, config, custom_objects=None):
        """An optimizer from `get_config`'s dictionary."""
        # A copy, because Keras puts the schedule it makes in the dictionary's place.
        return super().from_config(dict(config), custom_objects=custom_objects)

    def _plan(self, variable, index):
        """Name, shape and dtype of everything to be held for a variable."""
        shapes = self._preconditioner.slot_shapes(index)
        plan = [(slot, shape, "float32") for slot, shape in shapes.items()]
        if self._momentum_decay:
            plan.append(("momentum", tuple(variable.shape), self.momentum_dtype))
        return plan

    def _hold(self, variable, index, plan):
        made = {
            name: self.add_variable(
                shape=shape,
                dtype=dtype,
                name=naming.slot_prefix(variable) + name,
                layout=_layout(name, shape, variable),
            )
            for name, shape, dtype in plan
        }
        return HeldForVariable.of(index, made)

    def _clip_scale(self, update):
        if self.clip_threshold is None:
            return 1.0
        excess = update.root_mean_square() / self.clip_threshold
        return 1.0 / ops.maximum(excess, 1.0)

    def _momentum_weight(self, step):
        """What the weights of the averaged updates add up to, where it matters."""
        if not self.momentum_is_corrected:
            return 1.0
        # 1 − β₁^t without the cancellation at small t.
        return -ops.expm1(step * math.log(self._momentum_decay))

    def _average(self, momentum, decay, addition):
        """momentum ← decay · momentum + addition, where the addition may be sparse."""
        decayed = ops.cast(momentum, "float32") * decay
        if hasattr(addition, "indices"):
            self.assign(momentum, decayed)
            self.assign_add(momentum, addition)
        else:
            self.assign(momentum, decayed + addition)

    def check_fits(self, saved, own):
        """Raises unless what was saved has the form of what this optimizer holds."""
        if not saved or saved == own:
            return
        form = [*self.form_arguments, self.momentum_argument]
        given = ", ".join(f"{name}={getattr(self, name)!r}" for name in form)
        raise ValueError(
            f"The saved optimizer state does not fit this {type(self).__name__} "
            f"({given}): it has the shapes {saved}, this optimizer {own}. Make the "
            f"optimizer with the {', '.join(form)} that the state was saved with, or "
            "load the model without the optimizer and start with a fresh one. Nothing "
            "was loaded into this optimizer."
        )

    def _plans(self):
        held = [
            (variable, held.index)
            for variable, held in zip(self._trainable_variables, self._held)
            if held is not None
        ]
        return [self._plan(variable, index) for variable, index in held]


def _value(slot):
    """A slot's value; to Keras a `tf.Variable` is itself a tensor."""
    if hasattr(slot, "read_value"):
        return slot.read_value()
    return ops.convert_to_tensor(slot)


def _layout(slot, shape, variable):
    """Where the parts of a slot lie under `keras.distribution`.

    Momentum lies as its variable does. All else, being small, lies on every device; a
    `LayoutMap` is not asked, whose expressions are meant for the variables' axes.
    """
    distribution = keras.distribution.distribution()
    if distribution is None:
        return None
    if slot == "momentum":
        return getattr(variable, "_layout", None)
    return keras.distribution.TensorLayout(
        [None] * len(shape), distribution.device_mesh
    )


def _check_floating(variable):
    dtype = keras.backend.standardize_dtype(variable.dtype)
    if "float" not in dtype:
        raise ValueError(
            f"Only floating-point variables can be trained; received variable "
            f"{naming.path(variable)!r} of dtype {dtype}. Set trainable=False on it or "
            "leave it out of the list of variables."
        )
