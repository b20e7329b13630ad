"""Saved state that knows what it is, and is refused where it is something else."""

import json
from collections import defaultdict
from collections.abc import Mapping
from typing import Any, TypeAlias

import ml_dtypes
import numpy as np

from et_optimizer.types import AnyOptimizer, Variable
from et_optimizer.version import __version__
from et_optimizer.views.tensor_index import TensorIndex

# The key of the form, among those of the variables' places.
FORM = "form"
SLOT = "slot"
SKIPPED_STEPS = "skipped_steps"

Form: TypeAlias = dict[str, Any]


class SavedForm(AnyOptimizer):
    """For an optimizer, in Keras or tf_keras, with `built` and `variables`.

    It says what it holds by `_plans`, what the numbers mean by `state_arguments`, what
    decides which there are by `settings`, and by `check_fits(saved, own, settings)`
    raises a `ValueError` unless something saved, with these settings, has its form.
    """

    # How many variables an optimizer saves that was never built: in Keras 3 its
    # iteration and learning rate.
    unbuilt_variables = 2
    _restored_plans: list[Any] | None = None
    _restored_form: Form | None = None

    def form(self) -> Form:
        """What the state is of: a dict that JSON can hold."""
        return {
            "version": __version__,
            "rule": self._rule(),
            "arguments": self.state_arguments(),
            "settings": self.settings(),
            "kinds": self._kinds(),
            "views": self._views(),
            "accumulation": self._accumulation(),
        }

    def check_form(self, saved: Form | None) -> None:
        """Raises unless a form is that of this optimizer's rule, or `None`.

        Raises:
            ValueError: if it is of another rule, or of an argument that gives the
                numbers held another meaning. The message names the difference.
        """
        if saved is None:
            return
        own = self.form()
        differences = [
            f"saved with {name}={saved['arguments'].get(name)!r}, here {name}={value!r}"
            for name, value in own["arguments"].items()
            if saved["arguments"].get(name) != value
        ]
        if saved["rule"] != own["rule"]:
            differences = [f"saved by {saved['rule']}, here {own['rule']}"]
        if differences:
            raise ValueError(
                f"The saved optimizer state does not fit this {own['rule']}: "
                f"{'; '.join(differences)} (et_optimizer {saved['version']}). The same "
                "numbers mean something else there. Make the optimizer as it was "
                "saved, or load the model without it and start with a fresh one. "
                "Nothing was loaded into this optimizer."
            )

    def check_views(self, saved: Form | None) -> None:
        """Raises unless a form sees all variables as this optimizer, or is `None`.

        Raises:
            ValueError: if the same shapes are those of other slices.
        """
        own = self._views()
        for view, here in zip(own if saved is None else saved["views"], own):
            if view != here:
                raise ValueError(
                    f"The saved optimizer state does not fit this {self._rule()}: it "
                    f"is that of a variable seen as {view}, here {here}. Make the "
                    "optimizer with the arguments that the state was saved with, or "
                    "load the model without it and start with a fresh one. Nothing was "
                    "loaded into this optimizer."
                )

    def _views(self) -> list[str]:
        """How each variable is seen: text, in the order of the variables."""
        return [_view(held.index) for held in self._held if held is not None]

    def _rule(self) -> str:
        """The library's class, of which this may be an instance of a subclass."""
        own = (c for c in type(self).__mro__ if c.__module__.startswith("et_optimizer"))
        return next(own).__name__

    def _accumulation(self) -> int:
        """Every how many of Keras's iterations a step is taken."""
        return getattr(self, "gradient_accumulation_steps", None) or 1

    def check_restored(self, plans: list[Any]) -> None:
        """Raises unless what a checkpoint had before building fits these plans."""
        self.check_form(self._restored_form)
        self.check_fits(self._restored_plans, plans, _settings(self._restored_form))

    def save_own_variables(self, store: Any) -> None:
        """Saves the state, and what it is of."""
        super().save_own_variables(store)
        store[FORM] = np.frombuffer(_text(self.form()).encode(), "uint8")

    def load_own_variables(self, store: Any) -> None:
        """Loads the state; refuses, before changing it, that of something else.

        What Keras adds to it is matched by its kind: a learning rate that was saved is
        left where a schedule gives the rate, and gradient accumulators and averages of
        weights that were not saved begin anew.
        """
        saved = {key: _read(store[key]) for key in store.keys()}
        form = saved.pop(FORM, None)
        form = None if form is None else json.loads(bytes(np.asarray(form, "uint8")))
        values = [saved[str(place)] for place in range(len(saved))]
        if self.built and len(values) > self.unbuilt_variables:
            self.check_form(form)
            values = self._matched(values, form)
        super().load_own_variables({str(i): value for i, value in enumerate(values)})

    def _matched(self, values: list[Any], form: Form | None) -> list[Any]:
        """For each own variable what was saved of it, or what it begins with."""
        kinds = self._kinds()
        if form is None:
            saved_kinds = kinds
            if len(values) != len(kinds):  # before 0.2 no steps were counted
                saved_kinds = [kind for kind in kinds if kind != SKIPPED_STEPS]
            if len(values) != len(saved_kinds):
                saved_kinds = [SLOT] * len(values)
        else:
            saved_kinds = form["kinds"]
        saved = defaultdict(list)
        for kind, value in zip(saved_kinds, values):
            saved[kind].append(value)
        slots = [v for v, kind in zip(self.variables, kinds) if kind == SLOT]
        self.check_fits(
            [tuple(value.shape) for value in saved[SLOT]],
            [tuple(slot.shape) for slot in slots],
            _settings(form),
        )
        self.check_views(form)
        starts = {"average": iter(self._averaged_variables())}
        found = []
        for variable, kind in zip(self.variables, kinds):
            start = next(starts[kind]) if kind in starts else variable
            value = saved[kind].pop(0) if saved[kind] else start.numpy()
            if kind == "iteration" and form is not None:
                value = value * self._accumulation() // form["accumulation"]
            if np.shape(value) != tuple(variable.shape):
                raise ValueError(
                    f"The saved optimizer state has the shape {np.shape(value)} where "
                    f"this {self._rule()} has {tuple(variable.shape)} ({kind}). Make "
                    "the optimizer with the arguments that the state was saved with. "
                    "Nothing was loaded into this optimizer."
                )
            found.append(value)
        return found

    def _kinds(self) -> list[str]:
        """What each variable is: a slot, or of which of the frameworks' kinds."""
        kinds = {id(getattr(self, "_learning_rate", None)): "learning_rate"}
        kinds[id(self._iterations)] = "iteration"
        for name, kind in (
            ("_accumulated_gradients", "accumulator"),
            ("_model_variables_moving_average", "average"),
        ):
            of_kind = getattr(self, name, None) or ()
            kinds |= {id(v): kind for v in of_kind if v is not None}
        counters = [held.skipped_steps for held in self._held if held is not None]
        kinds |= {id(counter): SKIPPED_STEPS for counter in counters}
        return [kinds.get(id(v), SLOT) for v in self.variables]

    def _averaged_variables(self) -> list[Variable]:
        """The model's variables of which Keras keeps an average."""
        averages = getattr(self, "_model_variables_moving_average", None) or ()
        pairs = zip(self._trainable_variables, averages)
        return [variable for variable, average in pairs if average is not None]

    # What `tf.train.Checkpoint` saves of an object itself and restores before any
    # variable below it: here the form of the slots, so that a checkpoint of another
    # level is refused while nothing has been changed, or, if it is restored before
    # the optimizer is built, when that is about to happen.

    def _serialize_to_tensors(self) -> dict[str, Any]:
        import tensorflow as tf

        held = {"form": self.form(), "plans": self._plans()}
        return {"plans": tf.constant(_text(held))}

    def _restore_from_tensors(self, restored_tensors: Mapping[str, Any]) -> Any:
        import tensorflow as tf

        if tf.executing_eagerly():
            held = json.loads(restored_tensors["plans"].numpy().decode())
            # Before 0.2 a list of plans was all.
            held = {"form": None, "plans": held} if isinstance(held, list) else held
            plans = [[(n, tuple(s), d) for n, s, d in plan] for plan in held["plans"]]
            if self.built:
                self.check_form(held["form"])
                self.check_fits(plans, self._plans(), _settings(held["form"]))
                self.check_views(held["form"])
            # Past the frameworks, which would put a list of their own in its place.
            object.__setattr__(self, "_restored_plans", plans)
            object.__setattr__(self, "_restored_form", held["form"])
        return tf.no_op()

    def _copy_trackable_to_cpu(self, object_map: Any) -> None:
        """Nothing: the form, unlike the variables, does not change while saved."""


def _view(index: TensorIndex) -> str:
    """A tensor index in words: which modes each axis of the shape has."""
    modes = [tuple(axis.modes) for axis in index.axes]
    return f"{index.shape} with the modes {modes} of its axes"


def _text(held: Any) -> str:
    """As JSON, of NumPy's numbers too."""
    return json.dumps(held, default=float)


def _settings(form: Form | None) -> dict[str, str]:
    """The settings in a form, or none where there is no form."""
    return {} if form is None else form["settings"]


def _read(saved: Any) -> np.ndarray:
    """An array that was saved; NumPy's files do not say what bfloat16 is."""
    array = np.asarray(saved)
    return array.view(ml_dtypes.bfloat16) if array.dtype == np.dtype("V2") else array
