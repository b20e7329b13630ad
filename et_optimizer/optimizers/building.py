"""What an optimizer builds: the state of every variable, planned before it is made."""

import functools
from collections.abc import Sequence

from et_optimizer import naming
from et_optimizer.momenta import Momentum
from et_optimizer.momenta.selection import for_variables
from et_optimizer.optimizers import learning_rates
from et_optimizer.optimizers.slots import (
    SKIPPED_STEPS,
    Slot,
    StatePlan,
    StateVariables,
    add_slot,
    check_floating,
    plan_slots,
)
from et_optimizer.types import KerasOptimizer, NamedShapes, Variable


class Building(KerasOptimizer):
    """Mixed into a Keras optimizer that has a rule and arguments."""

    def plan_state(self, variables: Sequence[Variable]) -> list[StatePlan]:
        """The state that variables will have.

        Args:
            variables: List of variables to be trained.

        Returns:
            A list with a `StatePlan` for each variable.

        Raises:
            ValueError: as `build`.
        """
        for variable in variables:
            check_floating(variable)
        named_shapes = [(naming.path(v), tuple(v.shape)) for v in variables]
        kinds = self.momenta(named_shapes)
        scales = learning_rates.rate_scales(
            self.by_path("rate_scale", named_shapes), named_shapes
        )
        indices = self.index_variables(named_shapes)
        return [
            plan_slots(index, self._rule, momentum, scale)
            for index, momentum, scale in zip(indices, kinds, scales)
        ]

    def momenta(self, named_shapes: NamedShapes) -> list[Momentum]:
        """The momentum of every variable.

        Args:
            named_shapes: A list of `(path, shape)`, one per variable.

        Returns:
            A list of `Momentum`.
        """
        decay, direction_decay = self.momentum_decays()
        return for_variables(
            [shape for _, shape in named_shapes],
            self.by_path("momentum_rank", named_shapes),
            self.momentum_dtype,
            self.refresh_every,
            decay=decay,
            direction_decay=direction_decay,
            is_corrected=self.momentum_is_corrected,
            is_of_gradient=self.momentum_of == "gradient",
        )

    def build(self, var_list: Sequence[Variable]) -> None:
        """Makes the state of the variables.

        Args:
            var_list: List of the variables to be trained.

        Raises:
            ValueError: if a variable does not have a floating-point dtype, or an
                argument does not fit the variables. Nothing was made then.
        """
        if self.built:
            return
        learned = self._learned(var_list)
        plans = self.plan_state(learned)
        self.check_restored(plans)
        super().build(var_list)
        # First, because TensorFlow's checkpoints go by the order of variables, and
        # would fail at another dtype before they reach the description of the state.
        counter = Slot(SKIPPED_STEPS, (), "int32")
        counters = [add_slot(self, variable, counter) for variable in learned]
        states = {
            id(variable): StateVariables.make(
                plan, counter, functools.partial(add_slot, self, variable)
            )
            for variable, plan, counter in zip(learned, plans, counters)
        }
        self._states = tuple(states.get(id(variable)) for variable in var_list)

    def state_plans(self) -> list[StatePlan]:
        """The plan of the state that was built; empty before."""
        if not self.built:
            return []
        return self.plan_state(self._learned(self._trainable_variables))

    def _learned(self, variables: Sequence[Variable]) -> list[Variable]:
        """The variables that are trained by steps, rather than set to their gradient.

        Keras sets the scales of float8 to their gradient.
        """
        return [v for v in variables if not self._overwrite_variable_with_gradient(v)]
