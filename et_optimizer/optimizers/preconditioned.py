"""The Keras shell that all optimizers of this library share."""

import dataclasses
import json
import math
from collections.abc import Mapping
from typing import Any

import keras
from keras import ops

from et_optimizer import checks, gradients, naming
from et_optimizer.tensor_index import (
    TensorIndex,
    check_level,
    check_overrides,
    index_variables,
)

MOMENTUM_DTYPES = ("float32", "bfloat16")
# What an optimizer that was never built saves: its iteration and learning rate.
UNBUILT_VARIABLES = 2


@dataclasses.dataclass(frozen=True)
class HeldForVariable:
    """What the optimizer holds for one variable of the model."""

    index: TensorIndex
    slots: list[Any]
    momentum: Any = None


class PreconditionedOptimizer(keras.optimizers.Optimizer):
    """Makes the slots, calls the preconditioner, clips, averages and steps.

    A subclass is its arguments, its docstring and the preconditioner it passes on.

    Args:
        preconditioner: What a paper keeps and computes; see
            `et_optimizer.preconditioners`.
        learning_rate, level, tensor_index, beta_1, clip_threshold,
            momentum_dtype: As in `et_optimizer.ExtremeTensoring`.
        **kwargs: The arguments of `keras.optimizers.Optimizer`.
    """

    def __init__(
        self,
        preconditioner,
        learning_rate,
        *,
        level,
        tensor_index,
        beta_1,
        clip_threshold,
        momentum_dtype,
        **kwargs,
    ):
        check_level(level)
        check_overrides(tensor_index)
        checks.decay("beta_1", beta_1)
        checks.positive("clip_threshold", clip_threshold, or_none=True)
        checks.choice("momentum_dtype", momentum_dtype, MOMENTUM_DTYPES)
        super().__init__(learning_rate=learning_rate, **kwargs)
        self.level = level
        self.beta_1 = beta_1
        self.clip_threshold = clip_threshold
        self.momentum_dtype = momentum_dtype
        self._preconditioner = preconditioner
        # As a tuple, because Keras would put a tracking dict in a dict's place.
        self._tensor_index = tensor_index
        if isinstance(tensor_index, Mapping):
            self._tensor_index = tuple(tensor_index.items())
        self._held = ()
        self._restored_plans = None

    @property
    def tensor_index(self):
        """The indices given by hand: a dict, a callable or `None`."""
        if isinstance(self._tensor_index, tuple):
            return {pattern: tuple(sizes) for pattern, sizes in self._tensor_index}
        return self._tensor_index

    def build(self, var_list):
        """Makes what is held for the variables.

        Args:
            var_list: List of the variables to be trained.

        Raises:
            ValueError: if a variable is not of a floating-point dtype, or
                `tensor_index` does not fit the variables. Nothing is made then.
        """
        if self.built:
            return
        learned = [v for v in var_list if not self._overwrite_variable_with_gradient(v)]
        for variable in learned:
            _check_floating(variable)
        indices = index_variables(
            [(naming.path(v), tuple(v.shape)) for v in learned],
            self.level,
            self.tensor_index,
        )
        plans = [self._plan(v, index) for v, index in zip(learned, indices)]
        self._check_fits(self._restored_plans, plans)
        super().build(var_list)
        held = {
            id(variable): self._hold(variable, index, plan)
            for variable, index, plan in zip(learned, indices, plans)
        }
        self._held = tuple(held.get(id(variable)) for variable in var_list)

    def update_step(self, gradient, variable, learning_rate):
        """Updates a variable and what is held for it.

        Args:
            gradient: Its gradient, dense or `tf.IndexedSlices`.
            variable: The variable.
            learning_rate: Scalar.
        """
        held = self._held[self._get_variable_index(variable)]
        if not held.index.slots:
            return
        step = ops.cast(self.iterations + 1, "float32")
        update, slots = self._preconditioner(
            gradients.see(gradient, held.index),
            [ops.convert_to_tensor(slot) for slot in held.slots],
            step,
        )
        for slot, value in zip(held.slots, slots):
            self.assign(slot, value)
        scale = self._clip_scale(update)
        rate = ops.cast(learning_rate, "float32")
        if held.momentum is None:
            self.assign_sub(variable, update.times(scale * rate))
            return
        self._average(held.momentum, update.times(scale * (1.0 - self.beta_1)))
        # 1 − β₁^t without the cancellation at small t.
        bias = -ops.expm1(step * math.log(self.beta_1))
        momentum = ops.cast(held.momentum, "float32")
        self.assign_sub(variable, momentum * (rate / bias))

    def load_own_variables(self, store):
        """Loads the state; refuses, before changing it, that of another index."""
        saved = [tuple(store[str(i)].shape) for i in range(len(store.keys()))]
        if self.built and len(saved) > UNBUILT_VARIABLES:
            self._check_fits(saved, [tuple(v.shape) for v in self.variables])
        super().load_own_variables(store)

    def get_config(self):
        """The arguments that make an equal optimizer."""
        config = super().get_config()
        indices = self.tensor_index
        if isinstance(indices, dict):
            indices = {pattern: list(sizes) for pattern, sizes in indices.items()}
        config.update(
            level=self.level,
            tensor_index=indices,
            beta_1=self.beta_1,
            clip_threshold=self.clip_threshold,
            momentum_dtype=self.momentum_dtype,
        )
        return config

    @classmethod
    def from_config(cls, config, custom_objects=None):
        """An optimizer from `get_config`'s dictionary."""
        config = dict(config)
        if _is_serialized(config.get("tensor_index")):
            config["tensor_index"] = keras.saving.deserialize_keras_object(
                config["tensor_index"], custom_objects=custom_objects
            )
        return super().from_config(config, custom_objects=custom_objects)

    def _plan(self, variable, index):
        """Name, shape and dtype of everything to be held for a variable."""
        shapes = self._preconditioner.slot_shapes(index)
        plan = [(slot, shape, "float32") for slot, shape in shapes.items()]
        if self.beta_1:
            plan.append(("momentum", tuple(variable.shape), self.momentum_dtype))
        return plan

    def _hold(self, variable, index, plan):
        made = [
            self.add_variable(
                shape=shape, dtype=dtype, name=naming.slot_prefix(variable) + name
            )
            for name, shape, dtype in plan
        ]
        if self.beta_1:
            return HeldForVariable(index, made[:-1], made[-1])
        return HeldForVariable(index, made)

    def _clip_scale(self, update):
        if self.clip_threshold is None:
            return 1.0
        excess = update.root_mean_square() / self.clip_threshold
        return 1.0 / ops.maximum(excess, 1.0)

    def _average(self, momentum, addition):
        """momentum ← β₁ · momentum + addition, where the addition may be sparse."""
        decayed = ops.cast(momentum, "float32") * self.beta_1
        if hasattr(addition, "indices"):
            self.assign(momentum, decayed)
            self.assign_add(momentum, addition)
        else:
            self.assign(momentum, decayed + addition)

    def _check_fits(self, saved, own):
        """Raises unless what was saved has the form of what this optimizer holds."""
        if not saved or saved == own:
            return
        raise ValueError(
            f"The saved optimizer state does not fit this {type(self).__name__} "
            f"(level={self.level!r}, beta_1={self.beta_1}): it has the shapes "
            f"{saved}, this optimizer {own}. Make the optimizer with the level, "
            "tensor_index and other arguments that the state was saved with, or load "
            "the model without the optimizer and start with a fresh one. Nothing was "
            "loaded into this optimizer."
        )

    # What `tf.train.Checkpoint` saves of an object itself and restores before any
    # variable below it: here the form of the slots, so that a checkpoint of another
    # level is refused while nothing has been changed, or, if it is restored before
    # the optimizer is built, when that is about to happen.

    def _serialize_to_tensors(self):
        import tensorflow as tf

        return {"plans": tf.constant(json.dumps(self._plans()))}

    def _restore_from_tensors(self, restored_tensors):
        import tensorflow as tf

        if tf.executing_eagerly():
            saved = json.loads(restored_tensors["plans"].numpy().decode())
            saved = [[(n, tuple(s), d) for n, s, d in plan] for plan in saved]
            if self.built:
                self._check_fits(saved, self._plans())
            self._restored_plans = saved
        return tf.no_op()

    def _plans(self):
        held = [
            (variable, held.index)
            for variable, held in zip(self._trainable_variables, self._held)
            if held is not None
        ]
        return [self._plan(variable, index) for variable, index in held]


def _check_floating(variable):
    dtype = keras.backend.standardize_dtype(variable.dtype)
    if "float" not in dtype:
        raise ValueError(
            f"Only floating-point variables can be trained; received variable "
            f"{naming.path(variable)!r} of dtype {dtype}. Set trainable=False on it or "
            "leave it out of the list of variables."
        )


def _is_serialized(config):
    return isinstance(config, Mapping) and "class_name" in config
