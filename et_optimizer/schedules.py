"""Learning rates of the papers, as Keras schedules.

They combine with each other and with `keras.optimizers.schedules`:

    rate = InverseSquareRoot(0.2, warmup_steps=10_000)
    rate = Cooldown(Warmup(0.1, warmup_steps=500, power=2), total_steps=10_000)

A schedule is called with the number of steps made so far; the papers count from 1, and
t below is that number plus 1.
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
    """A linear ramp, then decay with the root of the step: c·min(t·w^(−3/2), t^(−1/2)).

    Tensor2Tensor's "constant * linear_warmup * rsqrt_decay". The highest rate, at
    t = w, is c/√w. With w = 10 000 it is extreme tensoring's c·min(10⁻⁶·t, 1/√t).

    Args:
        constant: c > 0.
        warmup_steps: w ≥ 1, the length of the ramp.

    Raises:
        ValueError: if an argument is out of its range.

    Example:

    >>> rate = et_optimizer.schedules.InverseSquareRoot(1.0, warmup_steps=100)
    >>> [f"{float(rate(step)):.3g}" for step in (0, 99, 399)]
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
        """The arguments that make an equal schedule."""
        return {"constant": self.constant, "warmup_steps": self.warmup_steps}


class _AroundAnother(LearningRateSchedule):
    """What the schedules share that take another, or a float, as an argument."""

    around: str  # The name of that argument.

    def _set_around(self, rate: float | Schedule) -> None:
        if not isinstance(rate, LearningRateSchedule):
            checks.positive(self.around, rate)
        setattr(self, self.around, rate)

    def _rate(self, step: Tensor) -> Tensor:
        rate = getattr(self, self.around)
        rate = rate(step) if isinstance(rate, LearningRateSchedule) else rate
        return ops.cast(rate, "float32")

    def get_config(self) -> dict[str, Any]:
        """The arguments that make an equal schedule."""
        rate = getattr(self, self.around)
        if isinstance(rate, LearningRateSchedule):
            rate = keras.saving.serialize_keras_object(rate)
        return {self.around: rate}

    @classmethod
    def from_config(cls, config: Mapping[str, Any]) -> Self:
        """A schedule from `get_config`'s dictionary."""
        config = dict(config)
        if isinstance(config[cls.around], dict):
            config[cls.around] = keras.saving.deserialize_keras_object(
                config[cls.around]
            )
        return cls(**config)


@keras.saving.register_keras_serializable(package="et_optimizer")
class Warmup(_AroundAnother):
    """A ramp up to a rate, then that rate or schedule: SM3's min(1, (t/w)^p).

    Args:
        after: The rate after the ramp: a float > 0, or a `LearningRateSchedule`, which
            begins when the ramp has ended. The ramp leads up to its first rate.
        warmup_steps: w ≥ 0, the length of the ramp; SM3's paper takes about 5% of all
            steps.
        power: p > 0; 1 is a linear ramp, 2 a quadratic one. Defaults to 1.

    Raises:
        ValueError: if an argument is out of its range.

    Example:

    >>> rate = et_optimizer.schedules.Warmup(0.1, warmup_steps=10, power=2)
    >>> [f"{float(rate(step)):.3g}" for step in (0, 4, 9, 500)]
    ['0.001', '0.025', '0.1', '0.1']

    Reference:
        [Anil, Gupta, Koren, Singer, 2019](https://arxiv.org/abs/1901.11150).
    """

    around = "after"

    def __init__(
        self,
        after: float | Schedule,
        warmup_steps: int,
        power: float = 1,
    ):
        self._set_around(after)
        checks.whole("warmup_steps", warmup_steps, least=0)
        checks.positive("power", power)
        self.warmup_steps = warmup_steps
        self.power = power

    def __call__(self, step: Tensor) -> Tensor:
        rate = self._rate(ops.maximum(step - self.warmup_steps, 0))
        t = ops.cast(step, "float32") + 1.0
        share = ops.minimum(t / max(self.warmup_steps, 1), 1.0)
        return rate * ops.power(share, self.power)

    def get_config(self) -> dict[str, Any]:
        """The arguments that make an equal schedule."""
        config = {"warmup_steps": self.warmup_steps, "power": self.power}
        return super().get_config() | config


@keras.saving.register_keras_serializable(package="et_optimizer")
class Cooldown(_AroundAnother):
    """A rate or schedule that goes linearly to zero at the end of training.

    Multiplies `before` by min(1, (T − t + 1) / (f·T)) for T steps in all, of which f·T
    are the cool-down: the last of them has 1/(f·T) of the rate, and later ones none.
    Like averaging the weights it quiets the noise of the last steps; it holds nothing.

    Args:
        before: The rate before the cool-down, and which it scales down: a float > 0
            or a `LearningRateSchedule`.
        total_steps: T ≥ 1, how many steps the training makes.
        fraction: f in (0, 1], the share of them in which the rate falls. Defaults to
            0.1.

    Raises:
        ValueError: if an argument is out of its range.

    Example:

    >>> rate = et_optimizer.schedules.Cooldown(1.0, total_steps=100)
    >>> [f"{float(rate(step)):.3g}" for step in (90, 95, 99, 100)]
    ['1', '0.5', '0.1', '0']

    Reference:
        [Anil, Gupta, Koren, Singer, 2019](https://arxiv.org/abs/1901.11150).
    """

    around = "before"

    def __init__(
        self,
        before: float | Schedule,
        total_steps: int,
        fraction: float = 0.1,
    ):
        self._set_around(before)
        checks.whole("total_steps", total_steps, least=1)
        checks.fraction("fraction", fraction)
        self.total_steps = total_steps
        self.fraction = fraction

    def __call__(self, step: Tensor) -> Tensor:
        left = ops.cast(self.total_steps - step, "float32")
        share = left / (self.fraction * self.total_steps)
        return self._rate(step) * ops.clip(share, 0.0, 1.0)

    def get_config(self) -> dict[str, Any]:
        """The arguments that make an equal schedule."""
        config = {"total_steps": self.total_steps, "fraction": self.fraction}
        return super().get_config() | config
