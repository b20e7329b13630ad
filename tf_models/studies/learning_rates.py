"""The course of the learning rate over a run, by name."""

import keras

from et_optimizer.schedules import Cooldown, InverseSquareRoot, Warmup

WARMUP_SHARE = 0.1


def cosine(peak, steps, warmup_steps):
    """Linear from 0 to the peak, then half a cosine down to 0 at the end."""
    return keras.optimizers.schedules.CosineDecay(
        initial_learning_rate=0.0,
        warmup_target=peak,
        warmup_steps=warmup_steps,
        decay_steps=max(1, steps - warmup_steps),
    )


def inverse_square_root(peak, steps, warmup_steps):
    """Extreme tensoring's own: linear to the peak, then as the root of the step."""
    del steps  # It has no end.
    return InverseSquareRoot(peak * warmup_steps**0.5, warmup_steps)


def warmup(peak, steps, warmup_steps):
    """SM3's: linear to the peak, which stays."""
    del steps
    return Warmup(peak, warmup_steps)


def cooldown(peak, steps, warmup_steps):
    """Linear to the peak, which stays until the last tenth goes linearly to 0."""
    return Cooldown(Warmup(peak, warmup_steps), total_steps=steps)


def constant(peak, steps, warmup_steps):
    """One rate for all steps."""
    del steps, warmup_steps
    return peak


SCHEDULES = {
    course.__name__: course
    for course in (cosine, inverse_square_root, warmup, cooldown, constant)
}


def schedule(name, peak, steps, warmup_steps=None):
    """Makes the learning rate of a run.

    Args:
        name: One of `SCHEDULES`.
        peak: The highest learning rate.
        steps: Number of training steps of the run.
        warmup_steps: Steps until the peak; `None` for a tenth of all.

    Returns:
        A Keras schedule, or `peak` itself for `"constant"`.
    """
    if warmup_steps is None:
        warmup_steps = max(1, round(WARMUP_SHARE * steps))
    return SCHEDULES[name](peak, steps, warmup_steps)
