"""Running a preconditioner of the library on a list of gradients."""

import numpy as np
from keras import ops

from et_optimizer import gradients


def lengths_and_modes(index):
    """A tensor index as `tests.reference` takes it."""
    return [(axis.length, axis.modes) for axis in index.axes]


def library_updates(rule, index, steps):
    """The update of every step and the slots after it, in float32.

    Args:
        rule: A preconditioner.
        index: A `TensorIndex`.
        steps: Sequence of arrays.

    Yields:
        `(update, slots)` as NumPy arrays.
    """
    slots = [ops.zeros(s, "float32") for s in rule.slot_shapes(index).values()]
    for step, gradient in enumerate(steps, start=1):
        seen = gradients.see(ops.convert_to_tensor(gradient, "float32"), index)
        update, slots = rule(seen, slots, ops.convert_to_tensor(step, "float32"))
        yield (
            ops.convert_to_numpy(update.times(1.0)),
            [ops.convert_to_numpy(slot) for slot in slots],
        )


def last_update(rule, index, steps):
    """The update after all steps."""
    *_, (update, _) = library_updates(rule, index, steps)
    return update


def spread_gradients(shape, scale, seed, steps=20):
    """Gradients over six decades around `scale`, with a slice of zeros a mode."""
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
