"""What becomes of a step whose gradient is not finite, in Keras and in tf_keras."""

from collections.abc import Sequence
from typing import Any

from keras import ops

from et_optimizer import checks, naming
from et_optimizer.compilers import tracing
from et_optimizer.optimizers.rule import sum_over
from et_optimizer.types import AnyOptimizer, Nonfinite, Tensor, Variable
from et_optimizer.views import gradients

NONFINITE = ("skip", "raise")


class FiniteSteps(AnyOptimizer):
    """For an optimizer, in Keras or tf_keras, that takes no step that is not finite.

    Statistics remember every gradient they have seen, so that a single NaN would stay
    in them, and momentum would spread it. A variable's step is therefore skipped where
    its gradient is not finite, or its squares, added to what is held, are not: slots
    and momentum stay as they are, weights are neither moved nor decayed, and the step
    is counted.
    """

    nonfinite: Nonfinite = "skip"
    _reported: dict[str, int] | None = None

    @property
    def skipped_steps(self) -> dict[str, int]:
        """How many steps were skipped: a dict from a variable's path, without zeros."""
        counts = {
            naming.path(variable): int(held.skipped_steps.numpy())
            for variable, held in zip(self._trainable_variables, self._held)
            if held is not None
        }
        return {path: count for path, count in counts.items() if count}

    def check_finite(
        self, grads: Sequence[Tensor | None], variables: Sequence[Variable]
    ) -> None:
        """Raises where that is asked for, and the step is not compiled.

        Args:
            grads: List of gradients, or `None` for some of them.
            variables: List of their variables.

        Raises:
            ValueError: if one of them is not finite.
        """
        if self.nonfinite != "raise":
            return
        for gradient, variable in zip(grads, variables):
            if gradient is None or 0 in variable.shape:
                continue
            dense = gradients.made_dense(gradient, tuple(variable.shape))
            is_finite = are_finite_squares(dense)
            if tracing.is_known(is_finite) and not bool(is_finite):
                raise ValueError(_message({naming.path(variable): 1}))

    def finalize_variable_values(self, var_list: Sequence[Variable]) -> None:
        """What is called at the end of `fit`; raises there what a step could not."""
        super().finalize_variable_values(var_list)
        if self.nonfinite != "raise":
            return
        skipped, before = self.skipped_steps, self._reported or {}
        self._take_as_reported()
        new = {path: count - before.get(path, 0) for path, count in skipped.items()}
        if any(new.values()):
            raise ValueError(_message({path: n for path, n in new.items() if n}))

    def load_own_variables(self, store: Any) -> None:
        """Loads the state; see the base. Steps skipped before are no news then."""
        super().load_own_variables(store)
        self._take_as_reported()

    def _take_as_reported(self) -> None:
        # Past the frameworks, which would put a dict of their own in its place.
        object.__setattr__(self, "_reported", self.skipped_steps)


def check_nonfinite(nonfinite: object) -> None:
    """Raises unless `nonfinite` says what becomes of a step that is not finite."""
    checks.choice("nonfinite", nonfinite, NONFINITE)


def are_finite_squares(gradient: Tensor, slots: Sequence[Tensor] = ()) -> Tensor:
    """Whether the sum of squares, and what it makes of the slots, stay in range."""
    total = gradients.sum_of_squares(gradient)
    for slot in slots:
        total = total + ops.sum(ops.abs(slot))
    return ops.isfinite(total)


def are_finite(slots: Sequence[Tensor], size: int) -> Tensor:
    """Whether no slot has taken in a gradient with NaN or infinity in it.

    Args:
        slots: List of what is kept for a variable.
        size: How many entries the variable has.
    """
    return ops.isfinite(sum_over(slots, size))


def _message(skipped: dict[str, int]) -> str:
    counted = ", ".join(f"{path!r} ({count})" for path, count in skipped.items())
    return (
        "Every gradient must be finite, and so must the sum of its squares and the "
        f"rate; received NaN, infinity or an overflow for {counted} (variable and "
        "number of steps). "
        "These steps were not taken for these variables. Lower the learning rate, clip "
        'the gradients, or pass nonfinite="skip" to go on without such steps.'
    )
