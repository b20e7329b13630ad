"""The learning rates of the papers, as Keras schedules.

They combine with each other and with `keras.optimizers.schedules`:

    schedule = InverseSquareRoot(0.2, warmup_steps=10_000)
    schedule = Cooldown(Warmup(0.1, warmup_steps=500, power=2), total_steps=10_000)

A schedule is called with the number of completed steps. The papers count steps from 1:
below, t is that number plus 1.
"""

from collections.abc import Mapping
from typing import Any

import keras
from keras import ops
from keras.optimizers.schedules import LearningRateSchedule

from et_optimizer import checks
from et_optimizer.types import Schedule, Self, Tensor


@keras.saving.register_keras_serializable(package="et_optimizer")
class InverseSquareRoot(LearningRateSchedule):
    """A linear warmup, then inverse square root decay: c·min(t·w^(−3/2), t^(−1/2)).

    Tensor2Tensor's "constant * linear_warmup * rsqrt_decay". The learning rate is
    highest, c/√w, at t = w. With w = 10 000 it is extreme tensoring's
    c·min(10⁻⁶·t, 1/√t).

    Args:
        constant: c > 0.
        warmup_steps: w ≥ 1, the length of the warmup. Defaults to 10 000.

    Raises:
        ValueError: if an argument is out of range.

    Example:

    >>> schedule = et_optimizer.schedules.InverseSquareRoot(1.0, warmup_steps=100)
    >>> [f"{float(schedule(step)):.3g}" for step in (0, 99, 399)]
    ['0.001', '0.1', '0.05']

    Reference:
        [Chen, Agarwal, Hazan, Zhang, Zhang, 2020](https://arxiv.org/abs/1902.04620),
        Section 5.1.
    """

    def __init__(self, constant: float, warmup_steps: int = 10_000):
        checks.positive("constant", constant)
        checks.whole("warmup_steps", warmup_steps, least=1)
        self.constant = constant
        self.warmup_steps = warmup_steps

    def __call__(self, step: Tensor) -> Tensor:
        t = ops.cast(step, "float32") + 1.0
        ramp = t * self.warmup_steps**-1.5
        return self.constant * ops.minimum(ramp, ops.rsqrt(t))

    def get_config(self) -> dict[str, Any]:
        """The arguments that recreate the schedule."""
        return {"constant": self.constant, "warmup_steps": self.warmup_steps}


class _Wrapper(LearningRateSchedule):
    """A schedule that takes a learning rate or another schedule as an argument."""

    argument: str  # The name of that argument.

    def _wrap(self, wrapped: float | Schedule) -> None:
        if not isinstance(wrapped, LearningRateSchedule):
            checks.positive(self.argument, wrapped)
        setattr(self, self.argument, wrapped)

    def _wrapped_at(self, step: Tensor) -> Tensor:
        wrapped = getattr(self, self.argument)
        is_schedule = isinstance(wrapped, LearningRateSchedule)
        return ops.cast(wrapped(step) if is_schedule else wrapped, "float32")

    def get_config(self) -> dict[str, Any]:
        """The arguments that recreate the schedule."""
        wrapped = getattr(self, self.argument)
        if isinstance(wrapped, LearningRateSchedule):
            wrapped = keras.saving.serialize_keras_object(wrapped)
        return {self.argument: wrapped}

    @classmethod
    def from_config(cls, config: Mapping[str, Any]) -> Self:
        """A schedule from `get_config`'s dictionary."""
        wrapped = config[cls.argument]
        if isinstance(wrapped, dict):
            wrapped = keras.saving.deserialize_keras_object(wrapped)
        return cls(**{**config, cls.argument: wrapped})


@keras.saving.register_keras_serializable(package="et_optimizer")
class Warmup(_Wrapper):
    """A warmup of a learning rate or schedule by SM3's factor min(1, (t/w)^p).

    Args:
        after: The learning rate after the warmup: a float > 0, or a
            `LearningRateSchedule`, which starts at its step 0 when the warmup ends. The
            warmup rises to its first value.
        warmup_steps: w ≥ 0, the length of the warmup; the SM3 paper uses about 5% of
            all steps.
        power: p > 0: 1 for a linear warmup, 2 for a quadratic one. Defaults to 1.

    Raises:
        ValueError: if an argument is out of range.

    Example:

    >>> schedule = et_optimizer.schedules.Warmup(0.1, warmup_steps=10, power=2)
    >>> [f"{float(schedule(step)):.3g}" for step in (0, 4, 9, 500)]
    ['0.001', '0.025', '0.1', '0.1']

    Reference:
        [Anil, Gupta, Koren, Singer, 2019](https://arxiv.org/abs/1901.11150).
    """

    argument = "after"

    def __init__(self, after: float | Schedule, warmup_steps: int, power: float = 1):
        self._wrap(after)
        checks.whole("warmup_steps", warmup_steps, least=0)
        checks.positive("power", power)
        self.warmup_steps = warmup_steps
        self.power = power

    def __call__(self, step: Tensor) -> Tensor:
        after = self._wrapped_at(ops.maximum(step - self.warmup_steps, 0))
        t = ops.cast(step, "float32") + 1.0
        share = ops.minimum(t / max(self.warmup_steps, 1), 1.0)
        return after * ops.power(share, self.power)

    def get_config(self) -> dict[str, Any]:
        """The arguments that recreate the schedule."""
        config = {"warmup_steps": self.warmup_steps, "power": self.power}
        return super().get_config() | config


@keras.saving.register_keras_serializable(package="et_optimizer")
class Cooldown(_Wrapper):
    """A learning rate or schedule that falls linearly to zero at the end of training.

    It multiplies `before` by min(1, (T − t + 1) / (f·T)), where T is the number of all
    steps. The cooldown takes f·T steps: the last one has 1/(f·T) of the learning rate,
    and later steps have none. Like averaging the weights, the cooldown removes the
    noise of the last steps, but it needs no memory.

    Args:
        before: The learning rate before the cooldown, which the cooldown scales down: a
            float > 0 or a `LearningRateSchedule`.
        total_steps: T ≥ 1, the number of training steps.
        fraction: f in (0, 1], the fraction of the steps that the cooldown takes.
            Defaults to 0.1.

    Raises:
        ValueError: if an argument is out of range.

    Example:

    >>> schedule = et_optimizer.schedules.Cooldown(1.0, total_steps=100)
    >>> [f"{float(schedule(step)):.3g}" for step in (90, 95, 99, 100)]
    ['1', '0.5', '0.1', '0']

    Reference:
        [Anil, Gupta, Koren, Singer, 2019](https://arxiv.org/abs/1901.11150).
    """

    argument = "before"

    def __init__(
        self, before: float | Schedule, total_steps: int, fraction: float = 0.1
    ):
        self._wrap(before)
        checks.whole("total_steps", total_steps, least=1)
        checks.fraction("fraction", fraction)
        self.total_steps = total_steps
        self.fraction = fraction

    def __call__(self, step: Tensor) -> Tensor:
        remaining = ops.cast(self.total_steps - step, "float32")
        share = remaining / (self.fraction * self.total_steps)
        return self._wrapped_at(step) * ops.clip(share, 0.0, 1.0)

    def get_config(self) -> dict[str, Any]:
        """The arguments that recreate the schedule."""
        config = {"total_steps": self.total_steps, "fraction": self.fraction}
        return super().get_config() | config
