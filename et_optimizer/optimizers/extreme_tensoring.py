"""The extreme tensoring optimizer."""

import keras

from et_optimizer import preconditioners
from et_optimizer.optimizers.preconditioned import (
    PreconditionedOptimizer,
    argument_of_preconditioner,
)
from et_optimizer.optimizers.tensored import TensoredOptimizer


@keras.saving.register_keras_serializable(package="et_optimizer")
class ExtremeTensoring(TensoredOptimizer):
    r"""Optimizer that implements extreme tensoring, of a few numbers a layer.

    A *tensor index* views the d numbers of a variable as a tensor of p modes of
    sizes d₁ … d_p. For slice j of mode i (the entries I with I_i = j) the optimizer
    keeps one number, the sum of squared gradients over the slice, and scales every
    entry by the product over its slices:

        S_i[j] ← β₂ S_i[j] + Σ_{I: I_i = j} g[I]²
        x[I]   ← x[I] − η g[I] · (ε + Π_i M_i[I_i])^(−1/(2p))

    where M_i is S_i, averaged over time and over the slice as `beta_2` and
    `statistic` say.

    Memory: d₁ + … + d_p float32 numbers a variable and nothing else, beside Keras's
    iteration and learning rate. For a 2000 × 512 kernel: 2512 at level 1, 138 at
    level 2, 48 at level 3 and 1 at level "inf", where Adam holds 2 048 000.
    `beta_1 > 0` adds d numbers.

    The paper's Algorithm 1 to the letter is

        ExtremeTensoring(lr, level=k, beta_2=None, statistic="sum", epsilon=1e-8,
                         clip_threshold=None)

    Args:
        learning_rate: A float, a `keras.optimizers.schedules.LearningRateSchedule`,
            or a callable without arguments that returns the rate. With
            `statistic="mean"` rates are on Adam's scale, whatever the level.
            Defaults to 0.002.
        level: 1, 2, 3, … or `"inf"`. Level 1 has one mode an axis; each further
            level splits every factor once more, near-equally, padding sizes without
            good divisors; `"inf"` keeps one number a variable. Higher levels hold
            less and adapt more coarsely. Defaults to 2.
        tensor_index: Modes given by hand, for variables that `level` does not suit:
            a dict from regular expressions, searched for in a variable's path (the
            first match wins), to tuples of mode sizes; or a callable `(path, shape)
            -> sizes or None`. Sizes may reshape the variable in any way, or pad its
            axes. For serialization a callable must be registered with
            `keras.saving.register_keras_serializable`. Defaults to `None`.
        beta_1: Decay in [0, 1) of a bias-corrected moving average of the update
            (momentum). 0 keeps none. Defaults to 0.
        beta_2: Decay in [0, 1) of a bias-corrected moving average of the squared
            gradients; `None` accumulates them, as AdaGrad does, so that steps
            shrink by themselves. Defaults to 0.99.
        statistic: `"mean"` divides each slice's sum by its number of entries: with
            all |g| equal the step is then Adam's. `"sum"` is the paper's. Defaults
            to `"mean"`.
        epsilon: The paper's ε ≥ 0, inside the root. At 0 the update is an outer
            product, the fast path, and an empty slice gives an update of 0; above 0
            every entry takes a power. Defaults to 0.
        clip_threshold: The largest root mean square an update of a variable may
            have, as in Adafactor; larger ones are scaled down to it. Takes one more
            pass over the gradient. `None` turns it off. Defaults to `None`.
        momentum_dtype: `"float32"` or `"bfloat16"`, for the momentum that `beta_1`
            asks for. Defaults to `"float32"`.
        **kwargs: As in every Keras optimizer: weight_decay, clipnorm, clipvalue,
            global_clipnorm, use_ema, ema_momentum, ema_overwrite_frequency,
            loss_scale_factor, gradient_accumulation_steps, name. `use_ema` and
            `gradient_accumulation_steps` make Keras hold d more numbers a variable.

    Raises:
        ValueError: when constructed, if an argument is out of its range; when
            built, if `tensor_index` does not fit the variables or a variable is not
            floating-point; when state is loaded, if it is that of another index. No
            weight has been changed then.

    Range: slots hold sums of squares in float32. Gradients are exact to 1e-5 from
    |g| = 1e-18 up to about 1e19 · √((1 − β₂)/n), where n is the number of entries in
    a slice (accumulating, n is that number times the steps): 1e15 for a slice of a
    million entries at β₂ = 0.99. Squares beyond that are lost.

    Sparse gradients (`tf.IndexedSlices`, from embeddings on TensorFlow) are used as
    they are: the result equals the dense one and costs time for their rows alone.

    Example:

    ```python
    model.compile(optimizer=et_optimizer.ExtremeTensoring(), loss=loss)
    model.fit(dataset)
    print(et_optimizer.memory_report(model.optimizer))

    # One slot a row and a column of the embeddings, level 3 for all else.
    et_optimizer.ExtremeTensoring(
        level=3, tensor_index={r"token/embeddings$": (50257, 768)}
    )
    ```

    Reference:
        [Chen, Agarwal, Hazan, Zhang, Zhang, 2020](
        https://arxiv.org/abs/1902.04620), Extreme Tensoring for Low-Memory
        Preconditioning, Algorithm 1.
    """

    beta_1 = PreconditionedOptimizer.momentum_decay
    beta_2 = argument_of_preconditioner(
        "beta_2", "The decay of the squared gradients' average, or `None`."
    )
    statistic = argument_of_preconditioner("statistic", '`"mean"` or `"sum"`.')
    epsilon = argument_of_preconditioner("epsilon", "The paper's ε.")

    combination = argument_of_preconditioner(
        "combination", '`"rank_one"` or `"geometric"`.'
    )

    def __init__(
        self,
        learning_rate=0.002,
        level=1,
        tensor_index=None,
        beta_1=0.9,
        beta_2=0.99,
        statistic="mean",
        epsilon=0.0,
        clip_threshold=None,
        momentum_dtype="bfloat16",
        combination="rank_one",
        update_bound=3.0,
        momentum_rank="auto",
        refresh_every=50,
        **kwargs,
    ):
        super().__init__(
            preconditioners.ExtremeTensoring(beta_2, statistic, epsilon, combination),
            learning_rate,
            level=level,
            tensor_index=tensor_index,
            momentum=beta_1,
            momentum_rank=momentum_rank,
            refresh_every=refresh_every,
            momentum_dtype=momentum_dtype,
            clip_threshold=clip_threshold,
            update_bound=update_bound,
            **kwargs,
        )
