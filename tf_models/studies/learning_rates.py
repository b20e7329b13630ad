"""Learning rate schedules by name."""

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
    """That of extreme tensoring: linear to the peak, then as 1/√step."""
    del steps  # It has no end.
    return InverseSquareRoot(peak * warmup_steps**0.5, warmup_steps)


def warmup(peak, steps, warmup_steps):
    """That of SM3: linear to the peak, then constant."""
    del steps
    return Warmup(peak, warmup_steps)


def cooldown(peak, steps, warmup_steps):
    """Linear to the peak, then constant, and linear to 0 in the last tenth."""
    return Cooldown(Warmup(peak, warmup_steps), total_steps=steps)


def constant(peak, steps, warmup_steps):
    """The same learning rate for all steps."""
    del steps, warmup_steps
    return peak


SCHEDULES = {
    schedule.__name__: schedule
    for schedule in (cosine, inverse_square_root, warmup, cooldown, constant)
}


def schedule(name, peak, steps, warmup_steps=None):
    """Makes the learning rate schedule of a run.

    Args:
        name: One of `SCHEDULES`.
        peak: The highest learning rate.
        steps: Number of training steps of the run.
        warmup_steps: Steps until the peak; `None` for a tenth of all steps.

    Returns:
        A Keras schedule, or `peak` itself for `"constant"`.
    """
    if warmup_steps is None:
        warmup_steps = max(1, round(WARMUP_SHARE * steps))
    return SCHEDULES[name](peak, steps, warmup_steps)
