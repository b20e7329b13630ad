"""One step of one variable, as a pure function: what all optimizers compute."""

import dataclasses
from collections.abc import Callable
from typing import Any, NamedTuple

from keras import ops

from et_optimizer.compilers.bits import is_16_bit
from et_optimizer.momenta import Momentum
from et_optimizer.optimizers import rounding
from et_optimizer.optimizers.nonfinite import are_finite, are_squares_finite
from et_optimizer.optimizers.rounding import widen
from et_optimizer.optimizers.rule import Rule
from et_optimizer.types import Tensor
from et_optimizer.views import gradients
from et_optimizer.views.tensor_index import TensorIndex
from et_optimizer.views.updates import Update


class State(NamedTuple):
    """A variable and its optimizer state, as tensors.

    Attributes:
        value: The variable's value.
        slots: List of the rule's state.
        averages: List of the momentum's state.
        skipped_steps: How many steps were skipped.
    """

    value: Tensor
    slots: list[Tensor]
    averages: list[Tensor]
    skipped_steps: Tensor


class StepContext(NamedTuple):
    """What a step depends on besides the gradient and the state, as scalars.

    Attributes:
        learning_rate: η.
        step: t, float32, from 1.
        weight_decay: Relative to the learning rate, or `None` for a variable that does
            not decay.
        seed: The seed of the variable's random bits, from `random_bits.seed`.
    """

    learning_rate: Tensor
    step: Tensor
    weight_decay: Tensor | None
    seed: Tensor


@dataclasses.dataclass(frozen=True)
class Step:
    """Limits spikes, preconditions, clips, averages, decays and subtracts. Pure.

    Steps that are equal, for variables of equal shape, are traced once.

    Args:
        index: The variable's `TensorIndex`.
        rule: A `Rule`.
        momentum: A `Momentum`.
        momentum_of: `"update"`, `"gradient"`, or `"step"` for updates times the
            learning rate.
        clip_threshold, update_bound, spike_threshold, stochastic_rounding: As arguments
            of the optimizer.
        rate_scale: Multiplies the learning rate, but not weight decay.
    """

    index: TensorIndex
    rule: Rule
    momentum: Momentum
    momentum_of: str
    clip_threshold: float | None
    update_bound: float | None
    spike_threshold: float | None
    stochastic_rounding: bool
    rate_scale: float

    def __call__(
        self,
        gradient: Any,
        state: State,
        context: StepContext,
        is_subspace_update: Tensor = False,
    ) -> tuple[State, Any]:
        """One step.

        Args:
            gradient: The gradient, dense or sparse.
            state: A `State`.
            context: A `StepContext`.
            is_subspace_update: Scalar, whether the momentum updates its basis.

        Returns:
            `(state, rows)`, the new `State` and `None`; or, if the gradient and the
            step are sparse, what is yet to be subtracted from some rows of the value.
            If the value is 16-bit, `rows` has the new values of these rows instead.
        """
        gradient, is_taken = self._usable(gradient, state.slots)
        as_matrix = self.momentum.is_of_matrix
        view = gradients.view(gradient, self.index, as_matrix)
        view = self._limit_spike(view, state, context.step)
        precondition, slots = self.rule(view, state.slots, context.step)
        if not self._needs_finite(state.slots):
            is_taken = are_finite(slots, self.index.size)
        rate = self._learning_rate(state.value, context)
        is_taken = ops.logical_and(is_taken, ops.isfinite(rate))
        change, averages = self._change(
            view,
            precondition,
            state.averages,
            rate,
            context.step,
            is_subspace_update,
            context.seed,
        )
        change = change.mapped(lambda entries: ops.where(is_taken, entries, 0.0))

        def chosen(new: list[Tensor], old: list[Tensor]) -> list[Tensor]:
            return [ops.where(is_taken, *pair) for pair in zip(new, old)]

        def subtract(
            value: Tensor, change: Tensor, positions: Callable[[Tensor], Tensor]
        ) -> Tensor:
            wide = widen(value)
            if context.weight_decay is not None:
                wide = ops.where(is_taken, _decayed(wide, context), wide)
            wide = wide - ops.cast(change, wide.dtype)
            return self.rounded(wide, value.dtype, context.seed, positions)

        after = State(
            state.value,
            chosen(slots, state.slots),
            chosen(averages, state.averages),
            state.skipped_steps + (1 - ops.cast(is_taken, "int32")),
        )
        if change.needs_row_blocks:
            value = change.subtract_by_blocks(state.value, subtract)
            return after._replace(value=value), None
        has_decay = context.weight_decay is not None
        value, rows = gradients.subtract_from(
            state.value, change.evaluate(), subtract, has_decay
        )
        return after._replace(value=value), rows

    def rounded(
        self,
        value: Tensor,
        dtype: Any,
        seed: Tensor,
        positions: Callable[[Tensor], Tensor],
    ) -> Tensor:
        """A computed value in the variable's dtype.

        Args:
            value: The value, as wide as `widen` makes it.
            dtype: The variable's dtype.
            seed: As in a `StepContext`.
            positions: Maps an offset to the position of every entry, plus the offset.
        """
        if is_16_bit(dtype) and self.stochastic_rounding:
            return rounding.stochastic(value, dtype, seed, positions(seed))
        return ops.cast(value, dtype)

    def _needs_finite(self, slots: list[Tensor]) -> bool:
        """Whether the gradient itself must be finite, as no slot would show it."""
        return self.rule.needs_finite_gradients or not slots

    def _usable(self, gradient: Any, slots: list[Tensor]) -> tuple[Any, Tensor]:
        """The gradient in a usable form, and whether it is finite where that counts."""
        needs_finite = self._needs_finite(slots)
        if needs_finite or self.momentum.moves_all_entries:
            gradient = gradients.to_dense(gradient, self.index.shape)
        if not needs_finite:
            return gradient, True
        gradient = gradients.multiply_out(gradient)
        is_finite = are_squares_finite(gradient, slots)
        return ops.where(is_finite, gradient, ops.zeros_like(gradient)), is_finite

    def _limit_spike(self, view: Any, state: State, step: Tensor) -> Any:
        """The gradient, scaled down if its norm is far above its running value."""
        if self.spike_threshold is None:
            return view
        steps = step - 1.0 - ops.cast(state.skipped_steps, "float32")
        before, now = self.rule.mean_squares(view, state.slots, steps)
        # A gradient that is not finite is no spike; its step is skipped.
        is_known = ops.logical_and(before > 0.0, ops.isfinite(now))
        # Roots first: the quotient of the squares may overflow float32.
        largest = self.spike_threshold * ops.sqrt(before) / ops.sqrt(now)
        return view.times(ops.where(is_known, ops.minimum(largest, 1.0), 1.0))

    def _learning_rate(self, value: Tensor, context: StepContext) -> Tensor:
        rate = self.rate_scale * ops.cast(context.learning_rate, "float32")
        return self.rule.learning_rate(
            rate, lambda: _decayed(widen(value), context), context.step
        )

    def _change(
        self,
        view: Any,
        precondition: Callable[[Update], Update],
        averages: list[Tensor],
        rate: Tensor,
        *when: Tensor,
    ) -> tuple[Update, list[Tensor]]:
        """What is subtracted from the value, and the new state of the momentum."""
        if self.momentum_of == "gradient":
            averaged, averages = self.momentum(view.plain(), averages, *when)
            change = precondition(view.from_average(averaged))
            if self.clip_threshold is not None:
                change = change.scaled(self._clip_scale(precondition(view.plain())))
            change = change.scaled(rate)
        else:
            update = precondition(view.plain())
            if self.clip_threshold is not None:
                update = update.scaled(self._clip_scale(update))
            if self.momentum.averages_bounded_updates:
                update = self._bounded(update, 1.0)
            if self.momentum_of == "step":
                change, averages = self.momentum(update.scaled(rate), averages, *when)
            else:
                change, averages = self.momentum(update, averages, *when)
                change = change.scaled(rate)
        return self._bounded(change, ops.abs(rate)), averages

    def _bounded(self, update: Update, scale: Tensor) -> Update:
        """The update with entries of at most `update_bound` times a scale."""
        if self.update_bound is None:
            return update
        limit = self.update_bound * scale
        return update.mapped(lambda entries: ops.clip(entries, -limit, limit))

    def _clip_scale(self, update: Update) -> Tensor:
        """What scales an update down to the largest RMS allowed."""
        excess = update.root_mean_square() / self.clip_threshold
        return 1.0 / ops.maximum(excess, 1.0)


def _decayed(value: Tensor, context: StepContext) -> Tensor:
    """The value after Keras's weight decay, x − η λ x."""
    if context.weight_decay is None:
        return value
    rate = ops.cast(context.learning_rate, value.dtype)
    return value - value * ops.cast(context.weight_decay, value.dtype) * rate
