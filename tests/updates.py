"""Run an optimizer or a rule of the library on a list of gradients."""

import functools

import keras
import numpy as np
from keras import ops

from et_optimizer.views import gradients


def lengths_and_modes(index):
    """A tensor index in the form that `tests.reference` takes."""
    return [(axis.length, axis.modes) for axis in index.axes]


def compiled(function):
    """The function, compiled by XLA if the backend has it."""
    if keras.backend.backend() == "tensorflow":
        import tensorflow as tf

        return tf.function(function, jit_compile=True, autograph=False)
    if keras.backend.backend() == "jax":
        import jax

        return jax.jit(function)
    return function


def take_step(optimizer, gradients, variables):
    """`optimizer.apply`; on JAX stateless and compiled, as its users call it."""
    if keras.backend.backend() != "jax":
        optimizer.apply(gradients, variables)
        return
    optimizer.build(variables)
    state = [v.value for v in optimizer.variables]
    weights = [v.value for v in variables]
    weights, state = _stateless_step(optimizer)(state, gradients, weights)
    for variable, value in zip(
        [*variables, *optimizer.variables], [*weights, *state], strict=True
    ):
        variable.assign(value)


@functools.lru_cache(maxsize=4)
def _stateless_step(optimizer):
    return compiled(optimizer.stateless_apply)


def library_updates(rule, index, steps, is_compiled=None):
    """The update of every step and the slots after it, in float32.

    Args:
        rule: A `Rule`.
        index: A `TensorIndex`.
        steps: Sequence of arrays.
        is_compiled: Whether XLA compiles the step, if the backend has it. Defaults to
            `True` on JAX, which otherwise compiles every operation separately.

    Yields:
        `(update, slots)` as NumPy arrays.
    """
    if is_compiled is None:
        is_compiled = keras.backend.backend() == "jax"
    slots = [ops.zeros(s, "float32") for s in rule.slot_shapes(index).values()]

    def step_of(gradient, slots, step):
        view = gradients.view(gradient, index)
        precondition, slots = rule(view, slots, step)
        return precondition(view.plain()).evaluate(), slots

    take_step = compiled(step_of) if is_compiled else step_of
    for step, gradient in enumerate(steps, start=1):
        update, slots = take_step(
            ops.convert_to_tensor(gradient, "float32"),
            slots,
            ops.convert_to_tensor(step, "float32"),
        )
        yield (
            ops.convert_to_numpy(update),
            [ops.convert_to_numpy(slot) for slot in slots],
        )


def last_update(rule, index, steps, is_compiled=None):
    """The update after all steps."""
    *_, (update, _) = library_updates(rule, index, steps, is_compiled)
    return update


def spread_gradients(shape, scale, seed, steps=20):
    """Gradients over six decades around `scale`; half of the axes get a zero slice."""
    rng = np.random.default_rng(seed)
    sizes = 10.0 ** rng.uniform(-3, 3, (steps, *shape))
    found = scale * sizes * rng.choice([-1.0, 1.0], (steps, *shape))
    for axis, n in enumerate(shape):
        if n > 1 and rng.random() < 0.5:
            np.moveaxis(found, axis + 1, 0)[rng.integers(n)] = 0
    return found.astype("float32")


def random_gradients(shape, seed, steps=6):
    """Gradients of independent normal entries."""
    rng = np.random.default_rng(seed)
    return rng.standard_normal((steps, *shape)).astype("float32")
