"""Keras's moving averages of weights and accumulated gradients, made exact."""

from collections.abc import Sequence

from keras import ops

from et_optimizer.compilers.bits import is_16_bit
from et_optimizer.optimizers import rounding
from et_optimizer.optimizers.slots import value_of
from et_optimizer.types import KerasOptimizer, Variable


class Averages(KerasOptimizer):
    """Mixed into a Keras optimizer that has `stochastic_rounding`."""

    def _update_model_variables_moving_average(
        self, trainable_variables: Sequence[Variable]
    ) -> None:
        """Keras's averages of weights; 16-bit ones are rounded as the weights are."""
        has_16_bit = any(is_16_bit(v.dtype) for v in trainable_variables)
        if not (self.use_ema and self.stochastic_rounding and has_16_bit):
            super()._update_model_variables_moving_average(trainable_variables)
            return
        is_later = ops.not_equal(self.iterations, 0)
        momentum = ops.cast(is_later, "float32") * self.ema_momentum
        averages = self._model_variables_moving_average
        for index, (variable, average) in enumerate(zip(trainable_variables, averages)):
            if average is None:
                continue
            # Keras's own counter: steps between two updates have bits of their own.
            new = rounding.average(
                value_of(average), value_of(variable), momentum, self._iterations, index
            )
            average.assign(new)

    def _backend_reset_gradient_accumulators(self) -> None:
        # Keras multiplies them by 0 on PyTorch, where NaN would stay forever.
        for accumulator in self._accumulated_gradients:
            if accumulator is not None:
                accumulator.assign(ops.zeros_like(accumulator))
