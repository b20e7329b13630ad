"""Keras's Adam with this library's learning rates for tokens.

It separates what a rule gains from what the rates gain that it comes with.
"""

import keras
from keras import ops

from et_optimizer.optimizers.learning_rates import AUTO, rate_scales


class Adam(keras.optimizers.Adam):
    """Adam whose embeddings and output projection have 8 times the learning rate.

    Args:
        learning_rate: A float or a Keras schedule.
        update_bound: The largest absolute value of an entry of the update, relative to
            the learning rate; `None` for no bound.
        beta_1, beta_2, epsilon, **keywords: Arguments of `keras.optimizers.Adam`.
    """

    def __init__(
        self,
        learning_rate=1e-3,
        beta_1=0.9,
        beta_2=0.999,
        epsilon=1e-7,
        update_bound=None,
        **keywords,
    ):
        super().__init__(learning_rate, beta_1, beta_2, epsilon, **keywords)
        if self.amsgrad:
            raise ValueError("amsgrad is not supported here; received amsgrad=True.")
        self.update_bound = update_bound

    def get_config(self):
        """The arguments that make an equal optimizer."""
        return super().get_config() | {"update_bound": self.update_bound}

    def build(self, variables):
        """Makes the state, and finds the variables of tokens; see Keras."""
        super().build(variables)
        named = [(variable.path, tuple(variable.shape)) for variable in variables]
        self._scales = rate_scales([AUTO] * len(named), named)

    def update_step(self, gradient, variable, learning_rate):
        """Updates a variable; see Keras."""
        index = self._get_variable_index(variable)
        step = ops.cast(self.iterations + 1, "float32")
        averages = (
            (self._momentums[index], gradient, self.beta_1),
            (self._velocities[index], ops.square(gradient), self.beta_2),
        )
        for average, new, decay in averages:
            self.assign(average, decay * average + (1.0 - decay) * new)
        first, second = (1.0 - ops.power(decay, step) for *_, decay in averages)
        # With ε where Keras has it: added to the root that is not yet corrected.
        root = ops.sqrt(self._velocities[index]) + self.epsilon
        update = self._momentums[index] / root * (ops.sqrt(second) / first)
        if self.update_bound is not None:
            update = ops.clip(update, -self.update_bound, self.update_bound)
        rate = ops.cast(learning_rate, "float32") * self._scales[index]
        self.assign_sub(variable, rate * update)
