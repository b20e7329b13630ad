"""Steps of small variables of equal shape, in one batch.

TensorFlow then traces, and XLA compiles, as many steps as there are different shapes
and not as many as there are variables: for ResNet-50 the first step, which compiles,
takes a third less time. The variables are stacked, which copies them, so large
variables go by themselves.
"""

import collections
import functools
import math
from collections.abc import Sequence
from typing import Any

import keras
from keras import ops

from et_optimizer.compilers import batching
from et_optimizer.compilers.bits import positions
from et_optimizer.optimizers.rounding import widen
from et_optimizer.optimizers.step import State, Step, StepContext
from et_optimizer.types import Tensor, Variable
from et_optimizer.views.gradients import is_traced


def batches(
    steps: Sequence[Step],
    gradients: Sequence[Tensor],
    variables: Sequence[Variable],
    contexts: Sequence[StepContext],
) -> list[list[int]]:
    """The indices of variables that are updated together.

    Args:
        steps, gradients, variables, contexts: Lists with one item per variable.

    Returns:
        A list of lists of indices. A variable that goes alone is in a list of one.
    """
    found = collections.defaultdict(list)
    for index, (step, gradient) in enumerate(zip(steps, gradients)):
        key: Any = index
        if _can_be_batched(step, gradient):
            has_decay = contexts[index].weight_decay is not None
            key = (step, has_decay, gradient.dtype, variables[index].dtype)
        found[key].append(index)
    return list(found.values())


def take(
    step: Step,
    gradients: Sequence[Tensor],
    states: Sequence[State],
    contexts: Sequence[StepContext],
) -> list[State]:
    """One step of each of some variables.

    Args:
        step: Their `Step`.
        gradients: List of their gradients, dense.
        states: List of their `State`.
        contexts: List of `StepContext`, which differ only in their seeds.

    Returns:
        A list of `State`.
    """

    def take_one(member: Any) -> Any:
        seed, gradient, *state = member
        context = contexts[0]._replace(seed=seed)
        return tuple(step(gradient, State(*state), context)[0])

    dtype, shape = states[0].value.dtype, step.index.shape
    members = [
        (context.seed, gradient, widen(value), *others)
        for context, gradient, (value, *others) in zip(contexts, gradients, states)
    ]
    stacked = keras.tree.map_structure(lambda *of_all: ops.stack(of_all), *members)
    value, *others = ops.vectorized_map(take_one, stacked)
    # Rounded together: TensorFlow cannot vectorize a bitcast.
    seeds = ops.stack([context.seed for context in contexts])
    seeds = ops.reshape(seeds, (-1, *[1] * len(shape)))
    value = step.rounded(value, dtype, seeds, functools.partial(positions, shape))
    after = value, *others
    flat = [ops.unstack(of_all, len(states)) for of_all in keras.tree.flatten(after)]
    return [keras.tree.pack_sequence_as(states[0], of_one) for of_one in zip(*flat)]


def _can_be_batched(step: Step, gradient: Tensor) -> bool:
    if step.rule.needs_finite_gradients or step.momentum.is_of_matrix:
        return False  # eigenvectors and subspace updates gain nothing
    return is_traced(gradient) and batching.is_small(math.prod(step.index.shape))
