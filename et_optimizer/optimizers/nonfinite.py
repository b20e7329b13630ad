"""Steps with a gradient that is not finite, in Keras and in tf_keras."""

from collections.abc import Sequence
from typing import Any

from keras import ops

from et_optimizer import naming
from et_optimizer.compilers.reductions import sum_of_squares
from et_optimizer.compilers.tracing import is_concrete
from et_optimizer.optimizers.rule import mean_over
from et_optimizer.types import KerasOptimizer, Tensor, Variable
from et_optimizer.views import gradients


class NonfiniteHandling(KerasOptimizer):
    """Skips, counts and reports steps that are not finite.

    Statistics remember every gradient, so that a single NaN would stay in them and
    momentum would spread it. A variable's step is therefore skipped if its gradient, or
    the sum of its squares and the slots, is not finite: slots and momentum stay as they
    are, weights neither move nor decay, and the step is counted.

    The class is mixed into an optimizer with `nonfinite`, `_trainable_variables` and
    `_states`.
    """

    # The skipped steps that an error has already named.
    _reported: dict[str, int] | None = None

    @property
    def skipped_steps(self) -> dict[str, int]:
        """The number of skipped steps of each variable that skipped any, by path."""
        counts = {
            naming.path(variable): int(state.skipped_steps.numpy())
            for variable, state in zip(self._trainable_variables, self._states)
            if state is not None
        }
        return {path: count for path, count in counts.items() if count}

    def check_finite(
        self, grads: Sequence[Tensor | None], variables: Sequence[Variable]
    ) -> None:
        """Raises for a gradient that is not finite, if asked to and not compiled.

        Args:
            grads: List of gradients, or `None` for some of them.
            variables: List of their variables.

        Raises:
            ValueError: if one of them is not finite and `nonfinite` is `"raise"`.
        """
        if self.nonfinite != "raise":
            return
        for gradient, variable in zip(grads, variables):
            if gradient is None or 0 in variable.shape:
                continue
            dense = gradients.to_dense(gradient, tuple(variable.shape))
            is_finite = are_squares_finite(dense)
            if is_concrete(is_finite) and not bool(is_finite):
                raise ValueError(_message({naming.path(variable): 1}))

    def finalize_variable_values(self, var_list: Sequence[Variable]) -> None:
        """Called at the end of `fit`: raises there what a compiled step could not."""
        super().finalize_variable_values(var_list)
        if self.nonfinite != "raise":
            return
        skipped, before = self.skipped_steps, self._reported or {}
        self._mark_as_reported()
        new = {path: count - before.get(path, 0) for path, count in skipped.items()}
        if any(new.values()):
            raise ValueError(_message({path: n for path, n in new.items() if n}))

    def load_own_variables(self, store: Any) -> None:
        """Loads the state; see the base. Its skipped steps are not reported again."""
        super().load_own_variables(store)
        self._mark_as_reported()

    def _mark_as_reported(self) -> None:
        # Without Keras, which would replace the dict by one of its own.
        object.__setattr__(self, "_reported", self.skipped_steps)


def are_squares_finite(gradient: Tensor, slots: Sequence[Tensor] = ()) -> Tensor:
    """Whether the sum of squares, and of it and the slots, is finite."""
    total = sum_of_squares(gradient)
    for slot in slots:
        total = total + ops.sum(ops.abs(slot))
    return ops.isfinite(total)


def are_finite(slots: list[Tensor], size: int) -> Tensor:
    """Whether no slot contains NaN or infinity.

    Args:
        slots: List of the slots of a variable.
        size: How many entries the variable has.
    """
    return ops.isfinite(mean_over(slots, size))


def _message(skipped: dict[str, int]) -> str:
    counted = ", ".join(f"{path!r} ({count})" for path, count in skipped.items())
    return (
        "Every gradient, the sum of its squares and the learning rate must be finite; "
        f"received NaN, infinity or an overflow for {counted} (variable and number of "
        "steps). These variables skipped these steps. Lower the learning rate, clip "
        'the gradients, or pass nonfinite="skip" to continue without such steps.'
    )
