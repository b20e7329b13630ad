"""The extreme tensoring optimizer."""

import keras

from et_optimizer import preconditioners
from et_optimizer.optimizers.preconditioned import PreconditionedOptimizer


@keras.saving.register_keras_serializable(package="et_optimizer")
class ExtremeTensoring(PreconditionedOptimizer):
    """doc"""

    def __init__(
        self,
        learning_rate=0.003,
        level=2,
        tensor_index=None,
        beta_1=0.0,
        beta_2=0.99,
        statistic="mean",
        epsilon=0.0,
        clip_threshold=None,
        momentum_dtype="float32",
        weight_decay=None,
        clipnorm=None,
        clipvalue=None,
        global_clipnorm=None,
        use_ema=False,
        ema_momentum=0.99,
        ema_overwrite_frequency=None,
        loss_scale_factor=None,
        gradient_accumulation_steps=None,
        name="extreme_tensoring",
        **kwargs,
    ):
        super().__init__(
            preconditioners.ExtremeTensoring(beta_2, statistic, epsilon),
            learning_rate,
            level=level,
            tensor_index=tensor_index,
            beta_1=beta_1,
            clip_threshold=clip_threshold,
            momentum_dtype=momentum_dtype,
            weight_decay=weight_decay,
            clipnorm=clipnorm,
            clipvalue=clipvalue,
            global_clipnorm=global_clipnorm,
            use_ema=use_ema,
            ema_momentum=ema_momentum,
            ema_overwrite_frequency=ema_overwrite_frequency,
            loss_scale_factor=loss_scale_factor,
            gradient_accumulation_steps=gradient_accumulation_steps,
            name=name,
            **kwargs,
        )
        self.beta_2 = beta_2
        self.statistic = statistic
        self.epsilon = epsilon

    def get_config(self):
        config = super().get_config()
        config.update(
            beta_2=self.beta_2, statistic=self.statistic, epsilon=self.epsilon
        )
        return config
