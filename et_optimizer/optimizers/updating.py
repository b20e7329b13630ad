"""What an optimizer does in a step, with Keras's variables around the pure `Step`."""

from collections.abc import Iterable, Sequence
from typing import Any

from keras import ops

from et_optimizer import random_bits
from et_optimizer.compilers.barriers import sequence_after
from et_optimizer.compilers.bits import is_16_bit
from et_optimizer.compilers.layouts import is_distributed
from et_optimizer.compilers.tracing import trace_once
from et_optimizer.momenta import Momentum
from et_optimizer.optimizers import batched
from et_optimizer.optimizers.slots import StateVariables, value_of
from et_optimizer.optimizers.step import State, Step, StepContext
from et_optimizer.types import KerasOptimizer, Tensor, Variable
from et_optimizer.views import gradients


class Updating(KerasOptimizer):
    """Mixed into a Keras optimizer that has a rule and state."""

    def apply(
        self,
        grads: Iterable[Tensor | None],
        trainable_variables: Iterable[Variable] | None = None,
    ) -> Tensor:
        """One step; see the base.

        Raises:
            ValueError: if the gradients do not fit the variables in number, shape and
                dtype; or if one is not finite, `nonfinite` is `"raise"` and the step is
                not compiled. Nothing has been changed then.
        """
        grads, variables = list(grads), self._trainable_variables
        if trainable_variables is not None:
            trainable_variables = variables = list(trainable_variables)
        if grads and (variables or trainable_variables is not None):
            gradients.check_gradients(grads, variables)
            self.check_finite(grads, variables)
        return super().apply(grads, trainable_variables)

    def update_step(
        self, gradient: Tensor, variable: Variable, learning_rate: Tensor
    ) -> None:
        """Updates a variable and its state.

        Args:
            gradient: Its gradient, dense or sparse.
            variable: The variable.
            learning_rate: Scalar.
        """
        index = self._get_variable_index(variable)
        context = self._context(variable, learning_rate)
        self.take_step(self._states[index], gradient, variable, context)

    def take_step(
        self,
        state: StateVariables,
        gradient: Tensor,
        variable: Variable,
        context: StepContext,
        after: Tensor | None = None,
    ) -> Tensor | None:
        """Updates a variable and its state, whichever framework they belong to.

        Args:
            state: Its `StateVariables`.
            gradient: Its gradient, dense or sparse.
            variable: The variable.
            context: A `StepContext`.
            after: The result of this function for the previous variable, or `None`.

        Returns:
            A tensor that is available once all steps so far have been computed.
        """
        if not state.index.slots:
            return after
        before, step = state.read(variable), self._step(state)
        is_sequenced = state.momentum.has_large_temporaries
        if gradients.is_traced(gradient) and not is_distributed():
            step = self._traced_once(step)
            if after is not None and is_sequenced:
                before, gradient = _sequence_after(after, before, gradient)
        is_subspace_update = state.momentum.is_subspace_update(context.step)
        new, rows = step(gradient, before, context, is_subspace_update)
        state.write(variable, before, new, self.assign)
        if rows is not None:
            replace = is_16_bit(variable.dtype)
            (self.assign if replace else self.assign_sub)(variable, rows)
        return new.value if is_sequenced else after

    def step_seed(
        self, variable: Variable, momentum: Momentum, iteration: Tensor, index: int
    ) -> Tensor:
        """The seed of a variable's random bits, or 0 if its step draws none.

        Args:
            variable: The variable.
            momentum: Its momentum.
            iteration: Scalar integer, the number of steps before this one.
            index: The variable's index among those that are trained.
        """
        is_rounded = is_16_bit(variable.dtype) and self.stochastic_rounding
        if not (is_rounded or momentum.needs_seed):
            return 0
        return random_bits.seed(iteration, index)

    def _step(self, state: StateVariables) -> Step:
        """The function that a step of a variable is."""
        return Step(
            index=state.index,
            rule=self._rule,
            momentum=state.momentum,
            momentum_of=self.momentum_of,
            clip_threshold=self.clip_threshold,
            update_bound=self.update_bound,
            spike_threshold=self.spike_threshold,
            stochastic_rounding=self.stochastic_rounding,
            rate_scale=state.rate_scale,
        )

    def _traced_once(self, step: Step) -> Step:
        """The step, traced once for all variables that have it."""
        if step not in self._traced_steps:
            self._traced_steps[step] = trace_once(step)
        return self._traced_steps[step]

    def _context(self, variable: Variable, learning_rate: Tensor) -> StepContext:
        decay = self.weight_decay if self._use_weight_decay(variable) else None
        index = self._get_variable_index(variable)
        momentum = self._states[index].momentum
        return StepContext(
            value_of(learning_rate),
            ops.cast(self.iterations + 1, "float32"),
            None if decay is None else value_of(decay),
            # Keras's own counter also counts steps that only accumulate gradients.
            self.step_seed(variable, momentum, self._iterations, index),
        )

    def _backend_update_step(
        self,
        grads: Iterable[Tensor],
        trainable_variables: Iterable[Variable],
        learning_rate: Tensor,
    ) -> None:
        """Updates all variables, small ones of equal shape in batches."""
        # A subclass with an update of its own expects it to be called.
        is_own = type(self).update_step is Updating.update_step
        if not is_own or is_distributed():
            super()._backend_update_step(grads, trainable_variables, learning_rate)
            return
        grads, variables = list(grads), list(trainable_variables)
        states = [self._states[self._get_variable_index(v)] for v in variables]
        contexts = [self._context(v, learning_rate) for v in variables]
        steps = [self._step(state) for state in states]
        after = None
        # The gradients of the last variables are ready first, and would stay alive
        # while those of the first are waited for.
        for batch in reversed(batched.batches(steps, grads, variables, contexts)):
            if len(batch) == 1:
                i = batch[0]
                of_one = states[i], grads[i], variables[i], contexts[i]
                after = self.take_step(*of_one, after)
                continue
            before = [states[i].read(variables[i]) for i in batch]
            new = batched.take(
                steps[batch[0]],
                [grads[i] for i in batch],
                before,
                [contexts[i] for i in batch],
            )
            for i, *values in zip(batch, before, new):
                states[i].write(variables[i], *values, self.assign)

    def _apply_weight_decay(self, variables: Sequence[Variable]) -> None:
        """Does nothing: weight decay is part of each variable's step."""


def _sequence_after(after: Tensor, state: State, gradient: Any) -> tuple[State, Any]:
    """A state and a gradient that are available only once `after` is.

    This keeps the temporaries of only one variable alive at a time.
    """
    if state.averages:
        first, *rest = state.averages
        state = state._replace(averages=[sequence_after(first, after), *rest])
    if is_16_bit(state.value.dtype) or not state.averages:
        state = state._replace(value=sequence_after(state.value, after))
    if is_16_bit(gradient.dtype):
        # Small 16-bit gradients are cast as a whole, as soon as they are ready.
        gradient = gradients.wait_for(gradient, after)
    return state, gradient
