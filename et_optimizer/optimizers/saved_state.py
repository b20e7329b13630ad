"""Saved state that describes itself, and is refused where it does not fit."""

import json
from collections import defaultdict
from collections.abc import Callable, Mapping, Sequence
from typing import Any, TypeAlias

import ml_dtypes
import numpy as np

from et_optimizer.optimizers.slots import SKIPPED_STEPS, StatePlan
from et_optimizer.types import KerasOptimizer, Variable
from et_optimizer.version import __version__
from et_optimizer.views.tensor_index import TensorIndex

# The key of the description, among those of the variables.
DESCRIPTION = "form"
SLOT = "slot"

Description: TypeAlias = dict[str, Any]


class SavedState(KerasOptimizer):
    """Mixed into an optimizer of Keras or tf_keras.

    The optimizer has `built`, `variables`, `_states`, `state_plans()`, and two methods
    that return arguments by name: `state_arguments`, which change what the state means,
    and `slot_arguments`, which decide what slots there are.
    """

    # The number of variables that an unbuilt optimizer saves: in Keras 3 its iteration
    # and learning rate.
    unbuilt_variables = 2
    # The description and slots of a checkpoint that was restored before building.
    _restored: tuple[Description | None, list[Any]] | None = None

    def describe_state(self, plans: Sequence[StatePlan]) -> Description:
        """What the state is, as a dict that JSON can store."""
        return {
            "version": __version__,
            "rule": self._rule_name(),
            "arguments": self.state_arguments(),
            "settings": {k: repr(v) for k, v in self.slot_arguments().items()},
            "kinds": self._kinds(),
            "views": [_view(plan.index) for plan in plans],
            "accumulation": self._accumulation(),
        }

    def check_state(
        self,
        saved: Description | None,
        saved_slots: list[Any],
        own_slots: list[Any],
        plans: Sequence[StatePlan],
    ) -> None:
        """Raises unless saved state fits this optimizer.

        Args:
            saved: Its description; `None` before version 0.2.
            saved_slots, own_slots: Lists of what slots there are, in the same form.
            plans: A `StatePlan` for every variable of this optimizer.

        Raises:
            ValueError: if it belongs to another rule, has other slots, views variables
                in another way, or was saved with arguments that give the state another
                meaning. The message names the difference.
        """
        own = self.describe_state(plans)
        before = own | {"version": "before 0.2"} if saved is None else saved
        found = []
        if before["rule"] != own["rule"]:
            found = [f"saved by {before['rule']}, here {own['rule']}"]
        else:
            found = _differences(before["arguments"], own["arguments"], repr)
        if not found and saved_slots and saved_slots != own_slots:
            found = _differences(before["settings"], own["settings"], str)
            found.append(f"it has the shapes {saved_slots}, this optimizer {own_slots}")
        if not found and saved_slots and before["views"] != own["views"]:
            view, here = next(
                pair for pair in zip(before["views"], own["views"]) if len({*pair}) > 1
            )
            found = [f"a variable is viewed as {view}, here as {here}"]
        if found:
            raise ValueError(
                f"The saved optimizer state does not fit this {own['rule']}: "
                f"{'; '.join(found)} (et_optimizer {before['version']}). Make the "
                "optimizer with the arguments that the state was saved with, or load "
                "the model without the optimizer and start with a fresh one. Nothing "
                "was loaded into this optimizer."
            )

    def check_restored(self, plans: Sequence[StatePlan]) -> None:
        """Raises unless a checkpoint that was restored before building fits."""
        if self._restored is not None:
            saved, slots = self._restored
            own = [[tuple(slot) for slot in plan.slots] for plan in plans]
            self.check_state(saved, slots, own, plans)

    def save_own_variables(self, store: Any) -> None:
        """Saves the state and its description."""
        super().save_own_variables(store)
        text = _json(self.describe_state(self.state_plans()))
        store[DESCRIPTION] = np.frombuffer(text.encode(), "uint8")

    def load_own_variables(self, store: Any) -> None:
        """Loads the state that was saved.

        Raises:
            ValueError: if it does not fit this optimizer. Nothing was loaded then.

        Variables are matched by kind: a saved learning rate is ignored where a schedule
        gives it, and gradient accumulators and averages of weights that were not saved
        start anew.
        """
        saved = {key: _array(store[key]) for key in store.keys()}
        description = saved.pop(DESCRIPTION, None)
        if description is not None:
            description = json.loads(bytes(np.asarray(description, "uint8")))
        values = [saved[str(index)] for index in range(len(saved))]
        if self.built and len(values) > self.unbuilt_variables:
            values = self._matched(values, description)
        super().load_own_variables({str(i): value for i, value in enumerate(values)})

    def _matched(self, values: list[Any], saved: Description | None) -> list[Any]:
        """The saved value of each variable, or its initial one."""
        kinds = self._kinds()
        of_kind = defaultdict(list)
        for kind, value in zip(_saved_kinds(saved, kinds, len(values)), values):
            of_kind[kind].append(value)
        slots = [v for v, kind in zip(self.variables, kinds) if kind == SLOT]
        self.check_state(
            saved,
            [tuple(value.shape) for value in of_kind[SLOT]],
            [tuple(slot.shape) for slot in slots],
            self.state_plans(),
        )
        averaged = iter(self._averaged_variables())
        found = []
        for variable, kind in zip(self.variables, kinds):
            initial = next(averaged) if kind == "average" else variable
            value = of_kind[kind].pop(0) if of_kind[kind] else initial.numpy()
            if kind == "iteration" and saved is not None:
                value = value * self._accumulation() // saved["accumulation"]
            if np.shape(value) != tuple(variable.shape):
                raise ValueError(
                    f"The saved optimizer state has the shape {np.shape(value)} where "
                    f"this {self._rule_name()} has {tuple(variable.shape)} ({kind}). "
                    "Make the optimizer with the arguments that the state was saved "
                    "with. Nothing was loaded into this optimizer."
                )
            found.append(value)
        return found

    def _kinds(self) -> list[str]:
        """What each variable is: a slot, or a kind of the frameworks'."""
        kinds = {id(getattr(self, "_learning_rate", None)): "learning_rate"}
        kinds[id(self._iterations)] = "iteration"
        for name, kind in (
            ("_accumulated_gradients", "accumulator"),
            ("_model_variables_moving_average", "average"),
        ):
            of_kind = getattr(self, name, None) or ()
            kinds |= {id(v): kind for v in of_kind if v is not None}
        counters = [state.skipped_steps for state in self._states if state is not None]
        kinds |= {id(counter): SKIPPED_STEPS for counter in counters}
        return [kinds.get(id(v), SLOT) for v in self.variables]

    def _averaged_variables(self) -> list[Variable]:
        """The model's variables of which Keras keeps a moving average."""
        averages = getattr(self, "_model_variables_moving_average", None) or ()
        pairs = zip(self._trainable_variables, averages)
        return [variable for variable, average in pairs if average is not None]

    def _rule_name(self) -> str:
        """The name of the class that defines the rule, also for a subclass of it."""
        return next(
            c.__name__
            for c in type(self).__mro__
            if "rule" in vars(c) or c.__module__.startswith("et_optimizer.")
        )

    def _accumulation(self) -> int:
        """How many of Keras's iterations make a step."""
        return getattr(self, "gradient_accumulation_steps", None) or 1

    # `tf.train.Checkpoint` saves these tensors of an object, and restores them before
    # its variables: so a checkpoint of another rule is refused before anything changes,
    # or, if it is restored before the optimizer is built, when it is built.

    def _serialize_to_tensors(self) -> dict[str, Any]:
        import tensorflow as tf

        plans = self.state_plans()
        slots = [plan.slots for plan in plans]
        saved = {"form": self.describe_state(plans), "plans": slots}
        return {"plans": tf.constant(_json(saved))}

    def _restore_from_tensors(self, restored_tensors: Mapping[str, Any]) -> Any:
        import tensorflow as tf

        if tf.executing_eagerly():
            saved = json.loads(restored_tensors["plans"].numpy().decode())
            # Before 0.2 a list of slots was all.
            saved = {"form": None, "plans": saved} if isinstance(saved, list) else saved
            slots = [
                [(n, tuple(s), d) for n, s, d in of_one] for of_one in saved["plans"]
            ]
            # Without the frameworks, which would replace it by a list of their own.
            object.__setattr__(self, "_restored", (saved["form"], slots))
            if self.built:
                self.check_restored(self.state_plans())
        return tf.no_op()

    def _copy_trackable_to_cpu(self, object_map: Any) -> None:
        """Nothing: the description does not change while it is saved."""


def _saved_kinds(
    saved: Description | None, kinds: list[str], count: int
) -> Sequence[str]:
    """The kind of each saved value, by what is known of it."""
    if saved is not None:
        return saved["kinds"]
    if count != len(kinds):  # before 0.2 skipped steps were not counted
        kinds = [kind for kind in kinds if kind != SKIPPED_STEPS]
    return kinds if count == len(kinds) else [SLOT] * count


def _differences(
    saved: Mapping[str, Any], own: Mapping[str, Any], show: Callable[[Any], str]
) -> list[str]:
    """The arguments that differ, in words."""
    return [
        f"saved with {name}={show(saved[name])}, here {name}={show(value)}"
        for name, value in own.items()
        if saved.get(name, value) != value
    ]


def _view(index: TensorIndex) -> str:
    """A tensor index in words: the modes of each axis of the shape."""
    modes = [tuple(axis.modes) for axis in index.axes]
    return f"{index.shape} with the modes {modes} of its axes"


def _json(description: Any) -> str:
    """As JSON, also with NumPy's numbers."""
    return json.dumps(description, default=float)


def _array(saved: Any) -> np.ndarray:
    """A saved array; NumPy's files do not say what bfloat16 is."""
    array = np.asarray(saved)
    return array.view(ml_dtypes.bfloat16) if array.dtype == np.dtype("V2") else array
