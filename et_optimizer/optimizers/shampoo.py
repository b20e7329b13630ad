"""The Shampoo and Sketchy optimizers."""

from typing import Any, Final

import keras

from et_optimizer import checks, preconditioners
from et_optimizer.optimizers.base import (
    PreconditionedOptimizer,
    argument_of_preconditioner,
)
from et_optimizer.optimizers.tensored import TensoredOptimizer
from et_optimizer.preconditioners import Preconditioner
from et_optimizer.types import (
    ByPath,
    Graft,
    LearningRate,
    Level,
    MomentumDtype,
    MomentumRank,
    NamedShapes,
    Nonfinite,
    OtherArguments,
    StochasticRounding,
    TensorIndices,
    Unpack,
)
from et_optimizer.views.tensor_index import TensorIndex, index_variables


class ModeCovarianceOptimizer(TensoredOptimizer):
    """What `Shampoo` and `SketchyShampoo` share.

    Args:
        preconditioner, learning_rate: As in `PreconditionedOptimizer`.
        merge_axes: As in `et_optimizer.SketchyShampoo`.
        **kwargs: The other arguments of `TensoredOptimizer`.
    """

    form_arguments: tuple[str, ...] = (
        "level",
        "tensor_index",
        "merge_axes",
        "block_size",
        "graft",
    )
    meaning_arguments = ("beta_2", "update_every")

    beta_1: Final[float] = PreconditionedOptimizer.momentum_decay
    beta_2: Final[float | None] = argument_of_preconditioner(
        "beta_2", "The decay of the covariances' average, or `None`."
    )
    block_size: Final[int] = argument_of_preconditioner(
        "block_size", "The longest side of a covariance."
    )
    update_every: Final[int] = argument_of_preconditioner(
        "update_every", "Every how many steps the covariances take in a gradient."
    )
    start_preconditioning_step: Final[int] = argument_of_preconditioner(
        "start_preconditioning_step", "The first step that is preconditioned."
    )
    graft: Final[Graft] = argument_of_preconditioner(
        "graft", "The rule whose norm an update has, or `None`."
    )
    epsilon: Final[float] = argument_of_preconditioner("epsilon", "The papers' ε.")
    relative_epsilon: Final[float] = argument_of_preconditioner(
        "relative_epsilon", "Added to ε, a share of the largest eigenvalue."
    )

    def __init__(
        self,
        preconditioner: Preconditioner,
        learning_rate: LearningRate,
        *,
        merge_axes: bool,
        **kwargs: Any,
    ):
        checks.boolean("merge_axes", merge_axes)
        super().__init__(preconditioner, learning_rate, **kwargs)
        self.merge_axes = merge_axes

    def index_variables(self, named_shapes: NamedShapes) -> list[TensorIndex]:
        """The tensor index of every variable; see the base."""
        return index_variables(
            named_shapes, self.level, self.tensor_index, self.merge_axes
        )

    def get_config(self) -> dict[str, Any]:
        """The arguments that make an equal optimizer."""
        return super().get_config() | {"merge_axes": self.merge_axes}


@keras.saving.register_keras_serializable(package="et_optimizer")
class SketchyShampoo(ModeCovarianceOptimizer):
    r"""Optimizer that implements Sketchy, Shampoo in a fraction of its memory.

    Shampoo turns a gradient along every axis by a root of the axis's inverse
    covariance, so that directions matter and not just entries. Sketchy keeps of each
    covariance its leading `rank` eigenvectors and a bound on the rest, the escaped mass
    ρ, by the method of Frequent Directions. With G_(i) the unfolding of the gradient G
    along mode i, over p modes:

        ρ, L̄_i ← FD-update(β₂ L̄_i, G_(i) G_(i)ᵀ),   ρ_i ← β₂ ρ_i + ρ
        D = G ×₁ L̃₁^(−1/2p) ×₂ … ×_p L̃_p^(−1/2p),   L̃_i = L̄_i + (ρ_i + ε) I
        x ← x − η D · ‖U‖ / ‖D‖

    where U is the update of the *grafting* rule: Sketchy gives the direction, extreme
    tensoring the length. With a β₂ the L̃_i are bias-corrected moving averages.

    Memory, in numbers: for a mode of length d, cut into b blocks of s = ⌈d/b⌉, the
    sketches hold b·((s + 1)·min(rank, s) + 1), and grafting from extreme tensoring d
    more: rank·(m + n) + O(m + n) for an m × n matrix, beside an int32 a variable that
    counts skipped steps. For 2000 × 512 and rank 32: 82 995, where Shampoo holds
    2 267 171 and Adam 2 048 000. At level 2: 4 414. `beta_1 > 0` adds, in bfloat16,
    2·r·(m + n) bytes for r directions of momentum, or 2·m·n for full momentum;
    `graft="rmsprop"` adds a number an entry.

    What is not a matrix: variables with fewer than two axes longer than 1 (biases,
    scales) are updated by extreme tensoring alone, which keeps at level 1 one number an
    entry; or by the grafting rule RMSprop. Axes of length 1 are ignored. With
    `merge_axes`, variables of more axes are seen as matrices.

    Args:
        learning_rate: A float, a `keras.optimizers.schedules.LearningRateSchedule`,
            or a callable without arguments that returns the rate. With the default
            grafting, rates are on the scale of `ExtremeTensoring`'s and Adam's.
            Defaults to 0.002.
        rank: How many eigenvectors are kept of a covariance, ℓ ≥ 1. From a block's
            size on nothing escapes, and the optimizer is `Shampoo`. Defaults to 256,
            the paper's.
        beta_2: Decay in [0, 1), a gradient taken in, of the covariances' moving average
            and of the grafting rule's, or `None` to add up, as in the paper's
            Algorithm 3: the escaped mass then only grows. Defaults to 0.999.
        level: 1, 2, 3, …: which modes have covariances. Level 1 takes the variable's
            axes; each further level splits each of them once more, as in
            `ExtremeTensoring`, so that the covariances are small and hold little.
            `"inf"` leaves all to the grafting rule. Defaults to 1.
        tensor_index: Modes given by hand, as in `ExtremeTensoring`: a dict from regular
            expressions on variable paths to tuples of sizes, or a callable `(path,
            shape) -> sizes or None`. Defaults to `None`.
        block_size: The longest side of a covariance, at least 1. A longer mode is cut
            into near-equal blocks, each with a covariance of its own. Defaults to 1024.
        update_every: Every how many steps a gradient enters the covariances and their
            eigenvectors are found anew, at least 1; the steps in between only apply
            them. The paper's algorithm has 1. Defaults to 10.
        start_preconditioning_step: The first step, from 1, that takes the direction
            above. Steps before it are the grafting rule's own and only fill the
            covariances, which say little after a few gradients; with `graft=None` they
            are plain gradient steps. Defaults to 1.
        graft: Whose norm the update of a variable has. `"extreme_tensoring"`, with
            this `beta_2` and the same tensor index; `"rmsprop"`, which holds a number
            an entry; `"sgd"`, the gradient's own norm; or `None`, the norm of D itself.
            Defaults to `"extreme_tensoring"`.
        epsilon: ε ≥ 0. Defaults to 0.
        relative_epsilon: Added to ε, as a share of each covariance's largest
            eigenvalue, at least 0. Float32 cannot tell eigenvalues below 1e-6 of the
            largest from 0. Defaults to 1e-6.
        merge_axes: Whether a variable of more than two axes is seen as a matrix, its
            first axes as rows and the others as columns, cut where they are fewest:
            (128, 4, 32) as 128 × 128, a convolution's (3, 3, 64, 128) as 576 × 128.
            Otherwise each axis is a mode. Defaults to `True`.
        beta_1: Decay in [0, 1) of a bias-corrected moving average of the update
            (momentum). 0 keeps none. Defaults to 0.
        clip_threshold: The largest root mean square an update of a variable may have;
            larger ones are scaled down to it. `None` turns it off. Defaults to `None`.
        momentum_dtype: `"float32"`, `"bfloat16"` or `"int8"`. Defaults to
            `"bfloat16"`.
        momentum_rank, refresh_every: The directions of the momentum, and how often they
            are found anew, as in `et_optimizer.ExtremeTensoring`; `None` is full
            momentum. Default to `"auto"` and 50.
        update_bound: The largest absolute value that an entry of the update may have
            after momentum, in units of the learning rate, or `None`. Defaults to
            `None`.
        nonfinite: `"skip"` or `"raise"`, for steps whose gradient is not finite, as in
            `et_optimizer.ExtremeTensoring`. Defaults to `"skip"`.
        spike_threshold: How many times as long as usual a gradient may be, as in
            `et_optimizer.ExtremeTensoring`, or `None`. Defaults to `None`.
        stochastic_rounding: How weights stored in two bytes are rounded, as in
            `et_optimizer.ExtremeTensoring`. Defaults to `"auto"`.
        **kwargs: As in every Keras optimizer: weight_decay, clipnorm, clipvalue,
            global_clipnorm, use_ema, ema_momentum, ema_overwrite_frequency,
            loss_scale_factor, gradient_accumulation_steps, name; and rate_scale, as in
            `et_optimizer.ExtremeTensoring`, but `None` by default.

    Raises:
        ValueError: when constructed, if an argument is out of its range; when built,
            if `tensor_index` does not fit the variables or a variable is not
            floating-point; when state is loaded, if it is that of another form; and as
            `nonfinite` says.

    Range: sums of squared gradients are held in float32, which covers |g| from 1e-18 to
    about 1e19 · √((1 − β₂)/n) for a variable of n entries.

    Sparse gradients (`tf.IndexedSlices`) are made dense.

    Example:

    ```python
    model.compile(optimizer=et_optimizer.SketchyShampoo(rank=32), loss=loss)
    model.fit(dataset)
    print(model.optimizer.skipped_steps)
    ```

    Reference:
        [Feinberg, Chen, Sun, Anil, Hazan, 2023](https://arxiv.org/abs/2302.03764),
        Sketchy: Memory-efficient Adaptive Regularization with Frequent Directions,
        Algorithm 3 and Observation 6;
        [Anil, Gupta, Koren, Regan, Singer, 2020](https://arxiv.org/abs/2002.09018),
        Scalable Second Order Optimization for Deep Learning, for blocks and grafting;
        [Chen, Agarwal, Hazan, Zhang, Zhang, 2020](https://arxiv.org/abs/1902.04620)
        for tensor indices.
    """

    form_arguments = ("rank", *ModeCovarianceOptimizer.form_arguments)

    rank: Final[int] = argument_of_preconditioner(
        "rank", "How many eigenvectors are kept of a covariance."
    )

    def __init__(
        self,
        learning_rate: LearningRate = 0.002,
        rank: int = 256,
        beta_2: float | None = 0.999,
        level: ByPath[Level] = 1,
        tensor_index: TensorIndices = None,
        block_size: int = 1024,
        update_every: int = 10,
        start_preconditioning_step: int = 1,
        graft: Graft = "extreme_tensoring",
        epsilon: float = 0.0,
        relative_epsilon: float = 1e-6,
        merge_axes: bool = True,
        beta_1: float = 0.0,
        clip_threshold: float | None = None,
        momentum_dtype: MomentumDtype = "bfloat16",
        momentum_rank: ByPath[MomentumRank] = "auto",
        refresh_every: int = 50,
        update_bound: float | None = None,
        nonfinite: Nonfinite = "skip",
        spike_threshold: float | None = None,
        stochastic_rounding: StochasticRounding = "auto",
        **kwargs: Unpack[OtherArguments],
    ):
        super().__init__(
            preconditioners.SketchyShampoo(
                rank=rank,
                beta_2=beta_2,
                epsilon=epsilon,
                relative_epsilon=relative_epsilon,
                block_size=block_size,
                update_every=update_every,
                start_preconditioning_step=start_preconditioning_step,
                graft=graft,
            ),
            learning_rate,
            level=level,
            tensor_index=tensor_index,
            merge_axes=merge_axes,
            momentum=beta_1,
            clip_threshold=clip_threshold,
            momentum_rank=momentum_rank,
            refresh_every=refresh_every,
            momentum_dtype=momentum_dtype,
            update_bound=update_bound,
            nonfinite=nonfinite,
            spike_threshold=spike_threshold,
            stochastic_rounding=stochastic_rounding,
            **kwargs,
        )


@keras.saving.register_keras_serializable(package="et_optimizer")
class Shampoo(ModeCovarianceOptimizer):
    r"""Optimizer that implements Shampoo, with the whole covariance of every mode.

    With G_(i) the unfolding of the gradient G along mode i, over p modes:

        L_i ← β₂ L_i + G_(i) G_(i)ᵀ
        D = G ×₁ L̃₁^(−1/2p) ×₂ … ×_p L̃_p^(−1/2p),   L̃_i = L_i + εI
        x ← x − η D · ‖U‖ / ‖D‖

    which for a matrix is L^(−1/4) G R^(−1/4), of the norm of the grafting rule's update
    U. It is the optimizer that `SketchyShampoo` approximates, and on the same code.

    Memory, in numbers: for a mode of length d, cut into b blocks of s = ⌈d/b⌉,
    b·(s² + s + 1), and grafting from extreme tensoring d more, beside an int32 a
    variable that counts skipped steps. For a 2000 × 512 kernel: 2 267 171, where Adam
    holds 2 048 000. The covariances are held as eigenvectors and eigenvalues, which
    takes half of what a matrix and its root would.

    The paper's algorithm to the letter is

        Shampoo(lr, beta_2=None, graft=None, update_every=1, block_size=10**9,
                epsilon=1e-4, relative_epsilon=0.0, merge_axes=False)

    Args:
        learning_rate, beta_2, level, tensor_index, block_size, update_every,
            start_preconditioning_step, graft, epsilon, relative_epsilon, merge_axes,
            beta_1, clip_threshold, momentum_dtype, momentum_rank, refresh_every,
            update_bound, nonfinite, spike_threshold, stochastic_rounding, **kwargs: As
            in `et_optimizer.SketchyShampoo`, with the same defaults.

    Raises:
        ValueError: as in `et_optimizer.SketchyShampoo`.

    Example:

    ```python
    model.compile(optimizer=et_optimizer.Shampoo(update_every=20), loss=loss)
    model.fit(dataset)
    ```

    Reference:
        [Gupta, Koren, Singer, 2018](https://arxiv.org/abs/1802.09568), Shampoo:
        Preconditioned Stochastic Tensor Optimization;
        [Anil, Gupta, Koren, Regan, Singer, 2020](https://arxiv.org/abs/2002.09018),
        Scalable Second Order Optimization for Deep Learning, for blocks and grafting.
    """

    def __init__(
        self,
        learning_rate: LearningRate = 0.002,
        beta_2: float | None = 0.999,
        level: ByPath[Level] = 1,
        tensor_index: TensorIndices = None,
        block_size: int = 1024,
        update_every: int = 10,
        start_preconditioning_step: int = 1,
        graft: Graft = "extreme_tensoring",
        epsilon: float = 0.0,
        relative_epsilon: float = 1e-6,
        merge_axes: bool = True,
        beta_1: float = 0.0,
        clip_threshold: float | None = None,
        momentum_dtype: MomentumDtype = "bfloat16",
        momentum_rank: ByPath[MomentumRank] = "auto",
        refresh_every: int = 50,
        update_bound: float | None = None,
        nonfinite: Nonfinite = "skip",
        spike_threshold: float | None = None,
        stochastic_rounding: StochasticRounding = "auto",
        **kwargs: Unpack[OtherArguments],
    ):
        super().__init__(
            preconditioners.Shampoo(
                beta_2=beta_2,
                epsilon=epsilon,
                relative_epsilon=relative_epsilon,
                block_size=block_size,
                update_every=update_every,
                start_preconditioning_step=start_preconditioning_step,
                graft=graft,
            ),
            learning_rate,
            level=level,
            tensor_index=tensor_index,
            merge_axes=merge_axes,
            momentum=beta_1,
            clip_threshold=clip_threshold,
            momentum_rank=momentum_rank,
            refresh_every=refresh_every,
            momentum_dtype=momentum_dtype,
            update_bound=update_bound,
            nonfinite=nonfinite,
            spike_threshold=spike_threshold,
            stochastic_rounding=stochastic_rounding,
            **kwargs,
        )


@keras.saving.register_keras_serializable(package="et_optimizer")
class SketchyAdagrad(PreconditionedOptimizer):
    r"""Optimizer that implements S-AdaGrad, full-matrix AdaGrad on a sketch.

    Full-matrix AdaGrad turns a gradient g of d entries by the inverse root of the d × d
    sum of all g gᵀ. S-AdaGrad keeps the leading `rank` eigenvectors of that matrix, and
    the escaped mass ρ for the rest:

        ρ_t, Ḡ ← FD-update(Ḡ, g gᵀ),   ρ ← ρ + ρ_t
        x ← x − η (Ḡ + ρI)^(−1/2) g

    with the pseudo-inverse root while that matrix is singular. Its regret is that of
    full-matrix AdaGrad plus a term in the spectrum beyond `rank`. Meant for convex
    problems and small models: every variable is flattened.

    Memory: (d + 1)·min(rank, d) + 1 numbers for a variable of d, and nothing else
    beside an int32 that counts skipped steps and Keras's iteration and learning rate.
    `beta_1 > 0` adds, in bfloat16, 2·r·(m + n) bytes for r directions of an m × n
    matrix, or 2·d for full momentum.

    Args:
        learning_rate: A float, a `keras.optimizers.schedules.LearningRateSchedule`,
            or a callable without arguments that returns the rate. Defaults to 0.1.
        rank: How many eigenvectors are kept, ℓ ≥ 1. From a variable's size on it is
            full-matrix AdaGrad. Defaults to 10.
        beta_2: Decay in [0, 1) of a bias-corrected moving average in place of the sum,
            or `None` to add up. Defaults to `None`.
        epsilon: ε ≥ 0, what is added to ρ. Defaults to 0.
        beta_1: Decay in [0, 1) of a bias-corrected moving average of the update
            (momentum). 0 keeps none. Defaults to 0.
        clip_threshold: The largest root mean square an update of a variable may have;
            larger ones are scaled down to it. `None` turns it off. Defaults to `None`.
        momentum_dtype: `"float32"`, `"bfloat16"` or `"int8"`. Defaults to
            `"bfloat16"`.
        momentum_rank, refresh_every: The directions of the momentum, and how often they
            are found anew, as in `et_optimizer.ExtremeTensoring`; `None` is full
            momentum. Default to `"auto"` and 50.
        update_bound: The largest absolute value that an entry of the update may have
            after momentum, in units of the learning rate, or `None`. Defaults to
            `None`.
        nonfinite: `"skip"` or `"raise"`, for steps whose gradient is not finite, as in
            `et_optimizer.ExtremeTensoring`. Defaults to `"skip"`.
        spike_threshold: How many times as long as usual a gradient may be, as in
            `et_optimizer.ExtremeTensoring`, or `None`. Defaults to `None`.
        stochastic_rounding: How weights stored in two bytes are rounded, as in
            `et_optimizer.ExtremeTensoring`. Defaults to `"auto"`.
        **kwargs: As in every Keras optimizer: weight_decay, clipnorm, clipvalue,
            global_clipnorm, use_ema, ema_momentum, ema_overwrite_frequency,
            loss_scale_factor, gradient_accumulation_steps, name; and rate_scale, as in
            `et_optimizer.ExtremeTensoring`, but `None` by default.

    Raises:
        ValueError: as in `et_optimizer.SketchyShampoo`.

    Sparse gradients (`tf.IndexedSlices`) are made dense.

    Example:

    ```python
    model.compile(optimizer=et_optimizer.SketchyAdagrad(0.1, rank=20), loss=loss)
    model.fit(dataset)
    ```

    Reference:
        [Feinberg, Chen, Sun, Anil, Hazan, 2023](https://arxiv.org/abs/2302.03764),
        Sketchy: Memory-efficient Adaptive Regularization with Frequent Directions,
        Algorithm 2.
    """

    form_arguments = ("rank",)

    beta_1: Final[float] = PreconditionedOptimizer.momentum_decay
    rank: Final[int] = argument_of_preconditioner(
        "rank", "How many eigenvectors are kept."
    )
    beta_2: Final[float | None] = argument_of_preconditioner(
        "beta_2", "The decay of the covariance's average, or `None`."
    )
    epsilon: Final[float] = argument_of_preconditioner(
        "epsilon", "ε, added to the escaped mass."
    )

    def __init__(
        self,
        learning_rate: LearningRate = 0.1,
        rank: int = 10,
        beta_2: float | None = None,
        epsilon: float = 0.0,
        beta_1: float = 0.0,
        clip_threshold: float | None = None,
        momentum_dtype: MomentumDtype = "bfloat16",
        momentum_rank: ByPath[MomentumRank] = "auto",
        refresh_every: int = 50,
        update_bound: float | None = None,
        nonfinite: Nonfinite = "skip",
        spike_threshold: float | None = None,
        stochastic_rounding: StochasticRounding = "auto",
        **kwargs: Unpack[OtherArguments],
    ):
        super().__init__(
            preconditioners.SketchyAdagrad(rank, beta_2, epsilon),
            learning_rate,
            momentum=beta_1,
            clip_threshold=clip_threshold,
            momentum_rank=momentum_rank,
            refresh_every=refresh_every,
            momentum_dtype=momentum_dtype,
            update_bound=update_bound,
            nonfinite=nonfinite,
            spike_threshold=spike_threshold,
            stochastic_rounding=stochastic_rounding,
            **kwargs,
        )

    def index_variables(self, named_shapes: NamedShapes) -> list[TensorIndex]:
        """The tensor index of every variable; see the base."""
        return [TensorIndex.of_entries(shape) for _, shape in named_shapes]
