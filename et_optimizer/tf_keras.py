"""The optimizers for tf_keras (Keras 2), on which the TensorFlow Model Garden runs.

They share the code of the Keras 3 optimizers: each class here owns tf_keras's
variables, and has the Keras 3 optimizer of its name plan them and take the steps.
Arguments, memory and weights are those of that optimizer; see its documentation.

    model.compile(optimizer=et_optimizer.tf_keras.ExtremeTensoring(), loss=loss)

`import et_optimizer` does not import this module. It needs `pip install tf_keras`
(which the extra `models` brings) and Keras 3 on TensorFlow. It does not support
`ParameterServerStrategy`.
"""

import functools
import inspect
from collections.abc import Iterable, Sequence
from typing import Any

import keras

import et_optimizer
from et_optimizer import naming
from et_optimizer.optimizers import rounding
from et_optimizer.optimizers.base import of_this_version
from et_optimizer.optimizers.nonfinite import NonfiniteHandling
from et_optimizer.optimizers.options import hint, is_of_keras
from et_optimizer.optimizers.saved_state import SavedState
from et_optimizer.optimizers.slots import (
    SKIPPED_STEPS,
    Slot,
    StatePlan,
    StateVariables,
)
from et_optimizer.optimizers.step import StepContext
from et_optimizer.types import Schedule, Tensor, Variable
from et_optimizer.views import gradients

if keras.backend.backend() != "tensorflow":
    raise ImportError(
        "et_optimizer.tf_keras computes with Keras 3 on TensorFlow; the backend is "
        f"{keras.backend.backend()!r}. Set the environment variable "
        "KERAS_BACKEND=tensorflow before Keras is imported."
    )
try:
    import tf_keras
except ImportError as error:
    raise ImportError(
        "et_optimizer.tf_keras needs tf_keras, which is not installed: "
        "pip install tf_keras"
    ) from error
import tensorflow as tf


def arguments(keras_class: Any) -> dict[str, Any]:
    """The arguments that this library adds to those of every Keras optimizer.

    Args:
        keras_class: The class.

    Returns:
        A dict from name to default.
    """
    parameters = inspect.signature(keras_class).parameters.values()
    return {p.name: p.default for p in parameters if not is_of_keras(p)}


class PreconditionedOptimizer(
    NonfiniteHandling, SavedState, tf_keras.optimizers.Optimizer
):
    """The base class of all optimizers here.

    Args:
        learning_rate: A float or a `tf_keras.optimizers.schedules` schedule. Defaults
            to that of the Keras 3 optimizer.
        weight_decay, clipnorm, clipvalue, global_clipnorm, use_ema, ema_momentum,
            ema_overwrite_frequency, jit_compile, name: As in every tf_keras optimizer.
        **kwargs: The other arguments of the Keras 3 optimizer, such as `level`.

    Raises:
        TypeError: if an argument is unknown.
        ValueError: as the Keras 3 optimizer.
    """

    # The Keras 3 optimizer.
    keras_class: Any = None
    unbuilt_variables = 1  # the iteration

    def __init__(
        self,
        learning_rate: float | Schedule | None = None,
        *,
        weight_decay: float | None = None,
        clipnorm: float | None = None,
        clipvalue: float | None = None,
        global_clipnorm: float | None = None,
        use_ema: bool = False,
        ema_momentum: float = 0.99,
        ema_overwrite_frequency: int | None = None,
        jit_compile: bool = True,
        name: str | None = None,
        **kwargs: Any,
    ):
        kwargs.pop("is_legacy_optimizer", None)  # tf_keras adds it to configurations
        self._check_arguments(kwargs)
        if learning_rate is None:
            parameters = inspect.signature(self.keras_class).parameters
            learning_rate = parameters["learning_rate"].default
        _check_learning_rate(learning_rate)
        # Not a dependency: its own iteration and learning rate are never used.
        self._optimizer = self._no_dependency(self.keras_class(**kwargs))
        super().__init__(
            name=name or type(self).__name__,
            weight_decay=weight_decay,
            clipnorm=clipnorm,
            clipvalue=clipvalue,
            global_clipnorm=global_clipnorm,
            use_ema=use_ema,
            ema_momentum=ema_momentum,
            ema_overwrite_frequency=ema_overwrite_frequency,
            jit_compile=jit_compile,
        )
        self._learning_rate = self._build_learning_rate(learning_rate)
        self._states = self._no_dependency(())
        self._trainable_variables = self._no_dependency(())

    @property
    def nonfinite(self) -> str:
        """What happens to a step that is not finite: `"skip"` or `"raise"`."""
        return self._optimizer.nonfinite

    @property
    def built(self) -> bool:
        """Whether the variables are made."""
        return getattr(self, "_built", False)

    def build(self, var_list: Sequence[Variable]) -> None:
        """Makes the state of the variables.

        Args:
            var_list: List of the `tf.Variable`s to be trained.

        Raises:
            ValueError: as the Keras 3 optimizer. Nothing was made then.
        """
        if self.built:
            return
        plans = self._optimizer.plan_state(var_list)
        self.check_restored(plans)
        super().build(var_list)
        counter = Slot(SKIPPED_STEPS, (), "int32")
        counters = [self._add_slot(variable, counter) for variable in var_list]
        states = [
            StateVariables.make(
                plan, counter, functools.partial(self._add_slot, variable)
            )
            for variable, plan, counter in zip(var_list, plans, counters)
        ]
        self._states = self._no_dependency(tuple(states))
        self._trainable_variables = self._no_dependency(tuple(var_list))
        self._built = True

    def add_variable_from_reference(
        self,
        model_variable: Variable,
        variable_name: str,
        shape: Any = None,
        initial_value: Any = None,
    ) -> Variable:
        """Adds a moving average of weights, named as in Keras 3; see the base."""
        if initial_value is None:
            shape = model_variable.shape if shape is None else shape
            initial_value = tf.zeros(shape, model_variable.dtype)
        return self._add(model_variable, variable_name, initial_value)

    def apply_gradients(
        self,
        grads_and_vars: Iterable[tuple[Tensor | None, Variable]],
        name: str | None = None,
        skip_gradients_aggregation: bool = False,
        **kwargs: Any,
    ) -> Variable:
        """One step; see the base.

        Raises:
            ValueError: as the Keras 3 optimizer. Nothing has been changed then.
        """
        grads_and_vars = list(grads_and_vars)
        if grads_and_vars:
            gradients.check_gradients(*zip(*grads_and_vars))
            self.check_finite(*zip(*grads_and_vars))
        return super().apply_gradients(
            grads_and_vars, name, skip_gradients_aggregation, **kwargs
        )

    def update_step(self, gradient: Tensor, variable: Variable) -> None:
        """Updates a variable and its state.

        Args:
            gradient: Its gradient, dense or `tf.IndexedSlices`.
            variable: The variable.
        """
        index = self._index_dict[self._var_key(variable)]
        state = self._states[index]
        context = StepContext(
            tf.convert_to_tensor(self.learning_rate),
            tf.cast(self.iterations + 1, tf.float32),
            self.weight_decay if self._use_weight_decay(variable) else None,
            self._optimizer.step_seed(variable, state.momentum, self.iterations, index),
        )
        self._optimizer.take_step(state, gradient, variable, context)

    def state_plans(self) -> list[StatePlan]:
        """The plan of the state that was built; empty before."""
        return (
            self._optimizer.plan_state(self._trainable_variables) if self.built else []
        )

    def state_arguments(self) -> dict[str, Any]:
        """The arguments that say what the state means, by name."""
        return self._optimizer.state_arguments()

    def slot_arguments(self) -> dict[str, Any]:
        """The arguments that decide what slots there are, by name."""
        return self._optimizer.slot_arguments()

    def get_config(self) -> dict[str, Any]:
        """The arguments that make an equal optimizer."""
        config = super().get_config()
        paper = self._optimizer.get_config()
        config.update({name: paper[name] for name in arguments(self.keras_class)})
        config["learning_rate"] = self._serialize_hyperparameter(self._learning_rate)
        return config

    @classmethod
    def from_config(cls, config: dict[str, Any], custom_objects: Any = None) -> Any:
        """An optimizer from `get_config`'s dictionary, also of earlier versions."""
        return super().from_config(of_this_version(config), custom_objects)

    def _check_arguments(self, received: Iterable[str]) -> None:
        known = arguments(self.keras_class)
        for name in received:
            if name not in known:
                raise TypeError(
                    f"{type(self).__name__} of et_optimizer.tf_keras takes no argument "
                    f"{name!r}. It takes {', '.join(known)}, and those of every "
                    f"tf_keras optimizer.{hint(name, list(known))}"
                )

    def _apply_weight_decay(self, variables: Sequence[Variable]) -> None:
        """Nothing: a variable decays in its own step, where that is taken."""

    def _update_model_variables_moving_average(
        self, var_list: Sequence[Variable]
    ) -> None:
        """tf_keras's averages of weights; 16-bit ones are rounded as weights are."""
        if not (self.use_ema and self._optimizer.stochastic_rounding):
            super()._update_model_variables_moving_average(var_list)
            return
        for variable in var_list:
            index = self._index_dict[self._var_key(variable)]
            self._distribution_strategy.extended.update(
                self._model_variables_moving_average[index],
                functools.partial(self._average, index=index),
                args=(variable,),
                group=False,
            )

    def _average(self, average: Variable, variable: Variable, index: int) -> None:
        momentum, step = self.ema_momentum, self.iterations
        average.assign(rounding.average(average, variable, momentum, step, index))

    def _deduplicate_sparse_grad(self, grads: Sequence[Tensor]) -> Sequence[Tensor]:
        # The library sums duplicates itself, with static shapes. tf_keras does so with
        # `tf.unique`, whose shapes are dynamic, and compiled programs lost rows.
        return grads

    def _add_slot(
        self, variable: Variable, slot: Slot, initial: Any = None
    ) -> Variable:
        zeros = initial is None
        dtype = slot.dtype
        value = tf.zeros(slot.shape, dtype) if zeros else tf.cast(initial, dtype)
        return self._add(variable, slot.name, value)

    def _add(self, variable: Variable, name: str, value: Tensor) -> Variable:
        with tf.distribute.get_strategy().extended.colocate_vars_with(variable):
            slot = tf.Variable(
                value,
                name=naming.slot_prefix(variable) + name,
                trainable=False,
            )
        self._variables.append(slot)
        return slot


def _check_learning_rate(learning_rate: Any) -> None:
    schedules = tf_keras.optimizers.schedules.LearningRateSchedule
    if not callable(learning_rate) or isinstance(learning_rate, schedules):
        return
    raise ValueError(
        "learning_rate must be a number or a schedule of "
        f"tf_keras.optimizers.schedules; received {learning_rate!r}. Schedules of "
        "Keras 3, such as those of et_optimizer.schedules, are for its optimizers."
    )


register = tf_keras.saving.register_keras_serializable(package="et_optimizer")


@register
class ExtremeTensoring(PreconditionedOptimizer):
    """`et_optimizer.ExtremeTensoring` in tf_keras: the same arguments and weights."""

    keras_class = et_optimizer.ExtremeTensoring


@register
class Muon(PreconditionedOptimizer):
    """`et_optimizer.Muon` in tf_keras: the same arguments and weights."""

    keras_class = et_optimizer.Muon


@register
class SM3(PreconditionedOptimizer):
    """`et_optimizer.SM3` in tf_keras: the same arguments and weights."""

    keras_class = et_optimizer.SM3


@register
class Adafactor(PreconditionedOptimizer):
    """`et_optimizer.Adafactor` in tf_keras: the same arguments and weights."""

    keras_class = et_optimizer.Adafactor


@register
class SubsetNorm(PreconditionedOptimizer):
    """`et_optimizer.SubsetNorm` in tf_keras: the same arguments and weights."""

    keras_class = et_optimizer.SubsetNorm


@register
class Shampoo(PreconditionedOptimizer):
    """`et_optimizer.Shampoo` in tf_keras: the same arguments and weights."""

    keras_class = et_optimizer.Shampoo


@register
class SketchyShampoo(PreconditionedOptimizer):
    """`et_optimizer.SketchyShampoo` in tf_keras: the same arguments and weights."""

    keras_class = et_optimizer.SketchyShampoo


@register
class SketchyAdagrad(PreconditionedOptimizer):
    """`et_optimizer.SketchyAdagrad` in tf_keras: the same arguments and weights."""

    keras_class = et_optimizer.SketchyAdagrad
