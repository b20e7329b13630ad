"""The optimizers that take no step on a gradient with NaN or infinity in it."""

import dataclasses

from keras import ops

from et_optimizer import checks, gradients, naming, tracing
from et_optimizer.optimizers.preconditioned import PreconditionedOptimizer

NONFINITE = ("skip", "raise")


class SkippedSteps:
    """For an optimizer, in Keras or tf_keras, that counts what it skips."""

    @property
    def skipped_steps(self):
        """How many steps were skipped: a dict from a variable's path, without zeros."""
        counts = {
            naming.path(variable): int(held.skipped_steps.numpy())
            for variable, held in zip(self._trainable_variables, self._held)
            if held is not None
        }
        return {path: count for path, count in counts.items() if count}


class FiniteOptimizer(SkippedSteps, PreconditionedOptimizer):
    """A `PreconditionedOptimizer` on dense gradients that are finite.

    A covariance remembers every gradient it has seen, so that a single NaN would stay
    in it. A variable's step is therefore skipped where its gradient is not finite, or
    its squares, added to what is held, are not: slots and momentum stay as they are,
    the weights are not moved, and the step is counted.

    Args:
        preconditioner, learning_rate: As in `PreconditionedOptimizer`.
        nonfinite: As in `et_optimizer.SketchyShampoo`.
        **kwargs: The other arguments of `PreconditionedOptimizer`.
    """

    def __init__(self, preconditioner, learning_rate, *, nonfinite, **kwargs):
        checks.choice("nonfinite", nonfinite, NONFINITE)
        super().__init__(preconditioner, learning_rate, **kwargs)
        self.nonfinite = nonfinite
        self._reported = {}

    def apply(self, grads, trainable_variables=None):
        """One step; see the base.

        Raises:
            ValueError: if a gradient is not finite, `nonfinite` is `"raise"` and the
                step is not compiled. Nothing has been changed then.
        """
        if self.nonfinite == "raise":
            grads = list(grads)
            variables = trainable_variables or self._trainable_variables
            for gradient, variable in zip(grads, variables):
                if gradient is not None:
                    self._refuse_nonfinite(gradient, variable)
        return super().apply(grads, trainable_variables)

    def finalize_variable_values(self, var_list):
        """What Keras calls at the end of `fit`; raises there what a step could not."""
        super().finalize_variable_values(var_list)
        if self.nonfinite != "raise":
            return
        skipped, before = self.skipped_steps, self._reported
        self._reported = skipped
        new = {path: count - before.get(path, 0) for path, count in skipped.items()}
        if any(new.values()):
            raise ValueError(_message({path: n for path, n in new.items() if n}))

    def load_own_variables(self, store):
        """Loads the state; see the base. Steps skipped before are no news then."""
        super().load_own_variables(store)
        self._reported = self.skipped_steps

    def get_config(self):
        """The arguments that make an equal optimizer."""
        return super().get_config() | {"nonfinite": self.nonfinite}

    def _plan(self, index, momentum):
        plan = super()._plan(index, momentum)
        held = [*plan.held, ("skipped_steps", (), "int32")]
        return dataclasses.replace(plan, held=held)

    def _take_step(self, held, gradient, variable, learning_rate, step):
        gradient = gradients.made_dense(gradient, held.index.shape)
        is_finite = _is_finite(gradient, held.slots)
        super()._take_step(
            held,
            ops.where(is_finite, gradient, ops.zeros_like(gradient)),
            variable,
            learning_rate,
            step,
            is_taken=is_finite,
        )
        self.assign_add(held.skipped_steps, 1 - ops.cast(is_finite, "int32"))

    def _refuse_nonfinite(self, gradient, variable):
        is_finite = _is_finite(ops.convert_to_tensor(gradient))
        if tracing.is_known(is_finite) and not bool(is_finite):
            raise ValueError(_message({naming.path(variable): 1}))


def _is_finite(gradient, slots=()):
    """Whether the sum of squares, and what it makes of the slots, stay in range."""
    total = gradients.sum_of_squares(gradient)
    for slot in slots:
        total = total + ops.sum(ops.abs(slot))
    return ops.isfinite(total)


def _message(skipped):
    counted = ", ".join(f"{path!r} ({count})" for path, count in skipped.items())
    return (
        "Every gradient must be finite, and so must the sum of its squares; received "
        f"NaN, infinity or an overflow for {counted} (variable and number of steps). "
        "These steps were not taken for these variables. Lower the learning rate, clip "
        'the gradients, or pass nonfinite="skip" to go on without such steps.'
    )
