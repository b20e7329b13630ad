"""One step of a variable, as a pure function: what all the optimizers compute."""

import dataclasses
from collections.abc import Callable
from typing import Any, NamedTuple

from keras import ops

from et_optimizer.compilers import bits
from et_optimizer.momenta import Momentum, SubspaceMomentum
from et_optimizer.optimizers import rounding
from et_optimizer.optimizers.nonfinite import are_finite, are_finite_squares
from et_optimizer.optimizers.rounding import widened
from et_optimizer.preconditioners import Preconditioner
from et_optimizer.types import Tensor
from et_optimizer.views import gradients
from et_optimizer.views.tensor_index import TensorIndex


class State(NamedTuple):
    """A variable and what is held for it, as tensors.

    Attributes:
        value: The variable's value.
        slots: List of what the preconditioner keeps.
        averages: List of what the momentum keeps.
        skipped_steps: How many steps were not taken.
    """

    value: Tensor
    slots: list[Tensor]
    averages: list[Tensor]
    skipped_steps: Tensor


class Clock(NamedTuple):
    """What a step of a variable has in common with those of others, as scalars.

    Attributes:
        rate: The learning rate.
        step: t, float32, from 1.
        weight_decay: In units of the rate, or `None` where the variable does not decay.
        seed: What the random bits begin from, of one variable alone; see `rounding`.
    """

    rate: Tensor
    step: Tensor
    weight_decay: Tensor | None
    seed: Tensor


@dataclasses.dataclass(frozen=True)
class Step:
    """Clips, scales, averages, decays and steps; pure, and equal for equal variables.

    Args:
        index: The variable's `TensorIndex`.
        preconditioner: A `Preconditioner`.
        momentum: A `Momentum`.
        momentum_of: `"update"` or `"gradient"`.
        momentum_of_steps: Whether the rate is in what the momentum averages.
        clip_threshold, update_bound, spike_threshold: As arguments of the optimizer.
        stochastic_rounding: Whether a value in two bytes is rounded so.
        rate_scale: What the rate is multiplied by, but for weight decay.
    """

    index: TensorIndex
    preconditioner: Preconditioner
    momentum: Momentum
    momentum_of: str
    momentum_of_steps: bool
    clip_threshold: float | None
    update_bound: float | None
    spike_threshold: float | None
    stochastic_rounding: bool
    rate_scale: float

    def __call__(
        self, gradient: Tensor, state: State, clock: Clock, is_refresh: Tensor = False
    ) -> tuple[State, Any]:
        """One step.

        Args:
            gradient: The gradient, dense or of some rows.
            state: A `State`.
            clock: A `Clock`.
            is_refresh: Scalar, whether momentum in a subspace is to find another basis.

        Returns:
            `(state, rows)`, the new `State` and `None`; or, where the gradient is of
            some rows and so is the step, what is yet to be subtracted from rows of the
            value; of a value in two bytes, what is to be put in their place.
        """
        gradient, is_taken = self._usable(gradient, state.slots)
        is_matrix = isinstance(self.momentum, SubspaceMomentum)
        seen = gradients.see(gradient, self.index, as_matrix=is_matrix)
        seen = self._without_spike(seen, state, clock.step)
        update, slots = self.preconditioner(seen, state.slots, clock.step)
        if not self.preconditioner.is_of_finite_gradients:
            is_taken = are_finite(slots, self.index.size)
        rate = self.rate_scale * ops.cast(clock.rate, "float32")
        rate = self.preconditioner.rate(
            rate, lambda: _decayed(widened(state.value), clock), clock.step
        )
        is_taken = ops.logical_and(is_taken, ops.isfinite(rate))
        direction, averages = self._averaged(
            self._clipped(update), state.averages, rate, clock.step, is_refresh
        )
        direction = self._bounded(direction, rate).mapped(
            lambda entries: ops.where(is_taken, entries, 0.0)
        )

        def chosen(new: list[Tensor], old: list[Tensor]) -> list[Tensor]:
            return [ops.where(is_taken, *pair) for pair in zip(new, old)]

        def moved(
            value: Tensor, change: Tensor, entries: Callable[[Tensor], Tensor]
        ) -> Tensor:
            wide = widened(value)
            if clock.weight_decay is not None:
                wide = ops.where(is_taken, _decayed(wide, clock), wide)
            wide = wide - ops.cast(change, wide.dtype)
            return self.rounded(wide, value.dtype, clock.seed, entries)

        after = State(
            state.value,
            chosen(slots, state.slots),
            chosen(averages, state.averages),
            state.skipped_steps + (1 - ops.cast(is_taken, "int32")),
        )
        if direction.goes_by_blocks:
            value = direction.taken_from(state.value, moved)
            return after._replace(value=value), None
        change = direction.in_form(direction.entries())
        decays = clock.weight_decay is not None
        value, rows = gradients.take_from(state.value, change, moved, decays)
        return after._replace(value=value), rows

    def rounded(
        self,
        numbers: Tensor,
        dtype: Any,
        seed: Tensor,
        entries: Callable[[Tensor], Tensor],
    ) -> Tensor:
        """What is stored of the value that was computed.

        Args:
            numbers: The value, as wide as `widened` makes it.
            dtype: The dtype that it is stored in.
            seed: As in a `Clock`.
            entries: Of a number gives it plus the number of every entry.
        """
        if bits.is_half(dtype) and self.stochastic_rounding:
            return rounding.stochastic(numbers, dtype, seed, entries(seed))
        return ops.cast(numbers, dtype)

    def _usable(self, gradient: Any, slots: list[Tensor]) -> tuple[Any, Tensor]:
        """The gradient in a form that all can use, and whether it may be used."""
        needs_finite = self.preconditioner.is_of_finite_gradients
        if needs_finite or self.momentum.plan():
            # All entries take part in a step of momentum.
            gradient = gradients.made_dense(gradient, self.index.shape)
        if not needs_finite:
            return gradient, True
        gradient = gradients.multiplied_out(gradient)
        is_taken = are_finite_squares(gradient, slots)
        return ops.where(is_taken, gradient, ops.zeros_like(gradient)), is_taken

    def _without_spike(self, gradient: Any, state: State, step: Tensor) -> Any:
        """The gradient, scaled down where it is far larger than those before it."""
        if self.spike_threshold is None:
            return gradient
        steps = step - 1.0 - ops.cast(state.skipped_steps, "float32")
        before, now = self.preconditioner.sizes(gradient, state.slots, steps)
        # One that is not finite is no spike, but a step not to be taken.
        is_known = ops.logical_and(before > 0.0, ops.isfinite(now))
        # Roots first: the quotient of the squares may leave float32.
        largest = self.spike_threshold * ops.sqrt(before) / ops.sqrt(now)
        return gradient.times(ops.where(is_known, ops.minimum(largest, 1.0), 1.0))

    def _clipped(self, update: Any) -> Any:
        if self.clip_threshold is None:
            return update
        excess = update.root_mean_square() / self.clip_threshold
        return update.scaled(1.0 / ops.maximum(excess, 1.0))

    def _averaged(
        self, update: Any, averages: list[Tensor], rate: Tensor, *when: Tensor
    ) -> tuple[Any, list[Tensor]]:
        """The update times the rate after momentum, and what this keeps now."""
        if self.momentum_of_steps:
            return self.momentum(update.scaled(rate), averages, *when)
        is_of_gradient = self.momentum_of == "gradient"
        average = self.momentum.of_gradient if is_of_gradient else self.momentum
        direction, averages = average(update, averages, *when)
        return direction.scaled(rate), averages

    def _bounded(self, direction: Any, rate: Tensor) -> Any:
        if self.update_bound is None:
            return direction
        limit = self.update_bound * ops.abs(rate)
        return direction.mapped(lambda entries: ops.clip(entries, -limit, limit))


def _decayed(value: Tensor, clock: Clock) -> Tensor:
    """The value after Keras's weight decay, x − η λ x."""
    if clock.weight_decay is None:
        return value
    rate = ops.cast(clock.rate, value.dtype)
    return value - value * ops.cast(clock.weight_decay, value.dtype) * rate
