"""Steps of small variables that are alike, taken together.

What a framework traces and XLA compiles is then as many steps as there are different
ones, and not as many as there are variables: a model's vectors are of a few lengths.
They are stacked, which copies them, so that large variables go by themselves.
"""

import collections
import functools
import math
from collections.abc import Sequence
from typing import Any

import keras
from keras import ops

from et_optimizer.compilers.bits import entries_of
from et_optimizer.compilers.layouts import may_be_in_parts
from et_optimizer.momenta import SubspaceMomentum
from et_optimizer.optimizers.rounding import widened
from et_optimizer.optimizers.step import Clock, State, Step
from et_optimizer.types import Tensor, Variable
from et_optimizer.views import gradients

# Up to so many entries. Most of a compiler's work on larger variables is on the passes
# over them, and copies would be passes too. On JAX XLA:CPU compiles equal kernels once,
# and what stacks takes it longer than that saves.
MAX_ENTRIES = {"tensorflow": 2**14, "jax": 0, "torch": 0}


def parted(
    kinds: Sequence[tuple[Step, bool]],
    gradients: Sequence[Tensor],
    variables: Sequence[Variable],
) -> list[list[int]]:
    """Parts places into those to go together.

    Args:
        kinds: List of pairs of a variable's `Step` and whether it does not decay.
        gradients: List of gradients.
        variables: List of variables.

    Returns:
        A list of lists of places. Those that go alone are in lists of one.
    """
    found = collections.defaultdict(list)
    for place, (kind, gradient) in enumerate(zip(kinds, gradients)):
        key: Any = place
        if _goes_together(kind[0], gradient):
            key = (*kind, gradient.dtype, variables[place].dtype)
        found[key].append(place)
    return list(found.values())


def take(
    step: Step,
    gradients: Sequence[Tensor],
    states: Sequence[State],
    clocks: Sequence[Clock],
) -> list[State]:
    """One step of each of some variables.

    Args:
        step: Their `Step`.
        gradients: List of their gradients, dense.
        states: List of their `State`.
        clocks: List of `Clock`, which differ in their seeds alone.

    Returns:
        A list of `State`.
    """

    def one(member: Any) -> Any:
        gradient, *state = member
        return tuple(step(gradient, State(*state), clocks[0])[0])

    dtype, shape = states[0].value.dtype, step.index.shape
    members = [
        (gradient, widened(value), *held)
        for gradient, (value, *held) in zip(gradients, states)
    ]
    stacked = keras.tree.map_structure(lambda *of_all: ops.stack(of_all), *members)
    value, *held = ops.vectorized_map(one, stacked)
    # Of all at once: TensorFlow would go through them to see the bits of numbers.
    seeds = ops.stack([clock.seed for clock in clocks])
    seeds = ops.reshape(seeds, (-1, *[1] * len(shape)))
    value = step.rounded(value, dtype, seeds, functools.partial(entries_of, shape))
    after = value, *held
    flat = [ops.unstack(of_all, len(states)) for of_all in keras.tree.flatten(after)]
    return [keras.tree.pack_sequence_as(states[0], of_one) for of_one in zip(*flat)]


def are_in_parts() -> bool:
    """Whether variables, or copies of them, may lie on several devices."""
    if keras.backend.backend() == "tensorflow":
        import tensorflow as tf

        return tf.distribute.has_strategy()
    return may_be_in_parts()


def is_possible(gradient: Tensor) -> bool:
    """Whether a gradient is a tensor of a program being traced, for one device."""
    return gradients.is_traced(gradient) and not are_in_parts()


def _goes_together(step: Step, gradient: Tensor) -> bool:
    if step.preconditioner.is_of_finite_gradients:
        return False  # finds eigenvectors, which gain nothing
    if isinstance(step.momentum, SubspaceMomentum) or not is_possible(gradient):
        return False
    # Of no slots there are no entries, and nothing to do.
    return 0 < math.prod(step.index.shape) <= MAX_ENTRIES[keras.backend.backend()]
