"""The Keras shell that all optimizers of this library share."""

import dataclasses
import json
import math
from collections.abc import Mapping
from typing import Any

import keras
from keras import ops

from et_optimizer import checks, gradients
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
            [(_path(v), tuple(v.shape)) for v in learned],
            self.level,
            self.tensor_index,
        )
        super().build(var_list)
        indices = iter(indices)
        self._held = tuple(
            None
            if self._overwrite_variable_with_gradient(variable)
            else self._hold(variable, next(indices))
            for variable in var_list
        )

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
        self._check_fits([tuple(store[str(i)].shape) for i in range(len(store.keys()))])
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

    def _hold(self, variable, index):
        name = _path(variable).replace("/", "_").replace(":", "_")
        shapes = self._preconditioner.slot_shapes(index)
        slots = [
            self.add_variable(shape=shape, dtype="float32", name=f"{name}_{slot}")
            for slot, shape in shapes.items()
        ]
        if not self.beta_1:
            return HeldForVariable(index, slots)
        momentum = self.add_variable(
            shape=variable.shape, dtype=self.momentum_dtype, name=f"{name}_momentum"
        )
        return HeldForVariable(index, slots, momentum)

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

    def _check_fits(self, saved):
        """Raises unless the saved shapes are those of this optimizer's variables."""
        own = self._shapes()
        if not self.built or len(saved) <= UNBUILT_VARIABLES or saved == own:
            return
        raise ValueError(
            f"The saved optimizer state does not fit this {type(self).__name__}: "
            f"it has {len(saved)} variables of {_numbers(saved)} numbers in all, this "
            f"optimizer (level={self.level!r}, beta_1={self.beta_1}) has {len(own)} "
            f"of {_numbers(own)}. Make the optimizer with the level, tensor_index and "
            "other arguments that the state was saved with, or load the model without "
            "the optimizer and start with a fresh one. Nothing was loaded into this "
            "optimizer."
        )

    def _shapes(self):
        return [tuple(variable.shape) for variable in self.variables]

    # What `tf.train.Checkpoint` saves of an object itself and restores before any
    # variable below it: here the shapes of the state, so that a checkpoint of
    # another level is refused while nothing has been changed yet.

    def _serialize_to_tensors(self):
        import tensorflow as tf

        return {"state_shapes": tf.constant(json.dumps(self._shapes()))}

    def _restore_from_tensors(self, restored_tensors):
        import tensorflow as tf

        shapes = restored_tensors["state_shapes"]
        if tf.executing_eagerly():
            self._check_fits([tuple(s) for s in json.loads(shapes.numpy().decode())])
        return tf.no_op()


def _numbers(shapes):
    return sum(math.prod(shape) for shape in shapes)


def _path(variable):
    # A plain tf.Variable has a name but no path.
    return getattr(variable, "path", variable.name)


def _check_floating(variable):
    dtype = keras.backend.standardize_dtype(variable.dtype)
    if "float" not in dtype:
        raise ValueError(
            f"Only floating-point variables can be trained; received variable "
            f"{_path(variable)!r} of dtype {dtype}. Set trainable=False on it or "
            "leave it out of the list of variables."
        )


def _is_serialized(config):
    return isinstance(config, Mapping) and "class_name" in config
