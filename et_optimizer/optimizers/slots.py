"""The state of an optimizer: planned from shapes, and made as Keras variables."""

import dataclasses
from collections.abc import Callable
from typing import Any, NamedTuple

import keras
from keras import ops

from et_optimizer import naming
from et_optimizer.compilers.layouts import slot_layout
from et_optimizer.momenta import Momentum
from et_optimizer.optimizers.step import State
from et_optimizer.types import Self, Shape, Tensor, Variable
from et_optimizer.views.tensor_index import TensorIndex

SKIPPED_STEPS = "skipped_steps"


class Slot(NamedTuple):
    """One tensor of a variable's state: its name, shape and dtype."""

    name: str
    shape: Shape
    dtype: str


@dataclasses.dataclass(frozen=True)
class StatePlan:
    """The state that a variable will have.

    Attributes:
        index: The variable's `TensorIndex`.
        momentum: Its `Momentum`.
        rate_scale: Multiplies its learning rate.
        slots: List of `Slot`: those of the rule, then those of the momentum.
    """

    index: TensorIndex
    momentum: Momentum
    rate_scale: float
    slots: list[Slot]


@dataclasses.dataclass(frozen=True)
class StateVariables:
    """The state of a variable, as variables of Keras or tf_keras.

    Attributes:
        index, momentum, rate_scale: As in the `StatePlan`.
        slots: List of the rule's variables.
        averages: List of the momentum's variables.
        skipped_steps: An int32 scalar.
    """

    index: TensorIndex
    momentum: Momentum
    rate_scale: float
    slots: list[Variable]
    averages: list[Variable]
    skipped_steps: Variable

    @classmethod
    def make(
        cls, plan: StatePlan, skipped_steps: Variable, add: Callable[..., Variable]
    ) -> Self:
        """Makes the variables of a plan.

        Args:
            plan: A `StatePlan`.
            skipped_steps: The counter, which is there already.
            add: `(slot, initial) -> variable`; `initial` is an array, or `None` for
                zeros.
        """
        made = [add(slot, plan.momentum.initial(slot.name)) for slot in plan.slots]
        of_rule = len(made) - len(plan.momentum.slots())
        own = plan.index, plan.momentum, plan.rate_scale
        return cls(*own, made[:of_rule], made[of_rule:], skipped_steps)

    def read(self, variable: Variable) -> State:
        """The values of the variable and its state."""
        return State(
            value_of(variable),
            [value_of(slot) for slot in self.slots],
            [value_of(average) for average in self.averages],
            value_of(self.skipped_steps),
        )

    def write(
        self,
        variable: Variable,
        before: State,
        after: State,
        assign: Callable[[Variable, Tensor], None],
    ) -> None:
        """Assigns those values of a `State` that differ from the one before."""
        own = [*self.slots, *self.averages, self.skipped_steps, variable]
        old = [*before.slots, *before.averages, before.skipped_steps, before.value]
        new = [*after.slots, *after.averages, after.skipped_steps, after.value]
        for target, was, value in zip(own, old, new):
            if value is not was:
                assign(target, value)


def plan_slots(
    index: TensorIndex, rule: Any, momentum: Momentum, rate_scale: float
) -> StatePlan:
    """The state that a variable with this index, rule and momentum will have."""
    shapes = rule.slot_shapes(index)
    slots = [Slot(name, shape, "float32") for name, shape in shapes.items()]
    slots += [Slot(name, *of_one) for name, of_one in momentum.slots().items()]
    return StatePlan(index, momentum, rate_scale, slots)


def add_slot(
    optimizer: Any, variable: Variable, slot: Slot, initial: Any = None
) -> Variable:
    """Adds a slot of a variable to a Keras optimizer."""
    shape = tuple(variable.shape)
    # Packed along its last axis, it is still sharded as the variable is.
    is_packed = slot.dtype == "uint8" and slot.shape[:-1] == shape[:-1]
    is_like_variable = slot.name == "momentum" and (slot.shape == shape or is_packed)
    return optimizer.add_variable(
        shape=slot.shape,
        dtype=slot.dtype,
        initializer="zeros" if initial is None else _constant(initial),
        name=naming.slot_prefix(variable) + slot.name,
        layout=slot_layout(variable, slot.shape, is_like_variable),
    )


def value_of(variable: Any) -> Tensor:
    """A variable's value as a tensor; Keras passes a `tf.Variable` for one."""
    if isinstance(variable, keras.Variable):
        variable = variable.value
    return variable.read_value() if hasattr(variable, "read_value") else variable


def check_floating(variable: Variable) -> None:
    """Raises `ValueError` unless a variable can be trained."""
    dtype = keras.backend.standardize_dtype(variable.dtype)
    if "float" not in dtype:
        raise ValueError(
            f"Only floating-point variables can be trained; received variable "
            f"{naming.path(variable)!r} of dtype {dtype}. Set trainable=False on it or "
            "leave it out of the list of variables."
        )


def _constant(initial: Any) -> Callable[..., Tensor]:
    """An initializer that gives an array."""
    return lambda shape, dtype: ops.convert_to_tensor(initial, dtype)
