"""Adafactor (Shazeer, Stern, 2018, arXiv:1804.04235)."""

import dataclasses
from collections.abc import Mapping
from dataclasses import InitVar, field
from typing import Any

import keras
from keras import ops

from et_optimizer import checks
from et_optimizer.compilers.reductions import root_mean_square
from et_optimizer.optimizers import rank_one
from et_optimizer.optimizers.base import PreconditionedOptimizer
from et_optimizer.optimizers.rule import Rule
from et_optimizer.types import LearningRate, NamedShapes, Shape
from et_optimizer.views.tensor_index import TensorIndex


@dataclasses.dataclass(frozen=True)
class AdafactorRule(Rule):
    """Scales every entry by the mean squares of its row and its column.

    With β₂ₜ = 1 − t^decay, for a matrix and for every matrix of a stack:

        R ← β₂ₜ R + (1 − β₂ₜ) · mean over columns of (g² + ε₁),   C likewise over rows
        u = g / √V,   V = R Cᵀ / mean(R)
        learning rate = ρₜ · max(ε₂, RMS(x)),   ρₜ = min(η, 1/√t)

    A variable whose index has a single mode keeps V itself.

    Args:
        beta_2_decay: The exponent of t in β₂ₜ, in [-1, 0).
        epsilon_1: ε₁ > 0.
        epsilon_2: ε₂ ≥ 0.
        multiply_by_parameter_scale: Whether to multiply by max(ε₂, RMS(x)).
        cap_learning_rate: Whether ρₜ is at most 1/√t.
    """

    beta_2_decay: float = -0.8
    epsilon_1: float = 1e-30
    epsilon_2: float = 1e-3
    multiply_by_parameter_scale: bool = True
    cap_learning_rate: bool = True

    def __post_init__(self):
        checks.negative_exponent("beta_2_decay", self.beta_2_decay)
        checks.positive("epsilon_1", self.epsilon_1, example=1e-30)
        checks.epsilon("epsilon_2", self.epsilon_2)
        checks.boolean("multiply_by_parameter_scale", self.multiply_by_parameter_scale)
        checks.boolean("cap_learning_rate", self.cap_learning_rate)

    def slot_shapes(self, index):
        """ "rows" and "columns", or "entries"; see `Rule`."""
        names = ("rows", "columns") if index.order == 2 else ("entries",)
        return dict(zip(names, index.slot_shapes))

    def __call__(self, view, slots, step):
        """One step; see `Rule`."""
        weight = ops.power(step, self.beta_2_decay)  # 1 − β₂ₜ
        sums, entries = view.slice_sums(), view.index.entries_per_slice
        means = [total / n + self.epsilon_1 for total, n in zip(sums, entries)]
        slots = [
            (1.0 - weight) * slot + weight * mean for slot, mean in zip(slots, means)
        ]
        average = slots[0]
        if len(slots) > 1:
            average = ops.mean(average, axis=-1, keepdims=True)
        roots = view.at_slices(rank_one.inverse_roots(slots, average))
        factors = view.product_factors(roots)
        return lambda gradient: gradient.times_factors(*factors), slots

    def mean_squares(self, view, slots, steps):
        """The mean of the row means, and of g²; see `Rule`."""
        before = ops.mean(slots[0])
        # Gradients of 0 leave ε₁.
        before = ops.where(before > 2.0 * self.epsilon_1, before, 0.0)
        return before, view.mean_square()

    def learning_rate(self, learning_rate, value, step):
        """ρₜ · max(ε₂, RMS(x)); see `Rule`."""
        if self.cap_learning_rate:
            learning_rate = ops.minimum(learning_rate, ops.rsqrt(step))
        if not self.multiply_by_parameter_scale:
            return learning_rate
        scale = root_mean_square(value())
        return learning_rate * ops.maximum(scale, self.epsilon_2)


@keras.saving.register_keras_serializable(package="et_optimizer")
class Adafactor(PreconditionedOptimizer):
    r"""Optimizer that implements Adafactor, and keeps only rows and columns.

    It takes the arguments, the defaults and the steps of `keras.optimizers.Adafactor`,
    which it can replace; but beside the row and column means of a matrix it keeps
    nothing of the matrix's size. At step t, with β₂ₜ = 1 − t^`beta_2_decay`, for a
    matrix (for more than two axes: for the last two, at every position of the others):

        R ← β₂ₜ R + (1 − β₂ₜ) · mean over columns of (g² + ε₁);   C likewise over rows
        u = g / √V,   V = R Cᵀ / mean(R)
        x ← x − max(ε₂, RMS(x)) · ρₜ · u / max(1, RMS(u) / clip_threshold)

    with ρₜ = min(η, 1/√t). Vectors and scalars keep V itself.

    Memory, in float32 elements: m + n for an m × n matrix, s·(m + n) for a stack of s
    matrices, n for a vector; nothing else except one int32 per variable that counts
    skipped steps, and Keras's iteration and learning rate. For a 2000 × 512 kernel
    2512, where `keras.optimizers.Adafactor` keeps 1 026 512. `beta_1 > 0` adds, in
    bfloat16, 2·r·(m + n) bytes for an m × n matrix at rank r, or 2·m·n for full
    momentum; the update of a variable of more than two axes is then materialized.

    Args:
        learning_rate: η: a float, a `keras.optimizers.schedules.LearningRateSchedule`,
            or a callable without arguments that returns the learning rate. Defaults to
            0.001, Keras's; the paper's is 0.01.
        beta_2_decay: The exponent of t in β₂ₜ, in [-1, 0). Defaults to -0.8.
        epsilon_1: ε₁ > 0, added to every g². Defaults to 1e-30.
        epsilon_2: ε₂ ≥ 0, the least scale of a variable. Defaults to 1e-3.
        relative_step: As in Keras 3, where it changes nothing: ρₜ is min(η, 1/√t) with
            and without it. Defaults to `True`.
        multiply_by_parameter_scale: `False` leaves max(ε₂, RMS(x)) out. Defaults to
            `True`.
        cap_learning_rate: `False` makes ρₜ = η at every t. Together with
            `multiply_by_parameter_scale=False` this gives a learning rate on Adam's
            scale that your own schedule controls. Defaults to `True`.
        beta_1: Decay in [0, 1) of a moving average of the steps, learning rate included
            and not corrected for its start at 0, as in Tensor2Tensor. 0 keeps no
            momentum. Defaults to 0.
        min_dim_size_to_factor: A matrix with fewer rows or columns than this keeps V
            itself. Defaults to 0, which factors every matrix.

    Raises:
        ValueError: when constructed, if an argument is out of its range; when built,
            if a variable is not floating-point; when state is loaded, if it does not
            fit, such as that of `keras.optimizers.Adafactor`; and as `nonfinite` says.

    It computes in float32 whatever the variable's dtype; Keras's computes in the
    variable's dtype, so the two are equal for float32 variables. `update_bound` is
    relative to the learning rate of the step, which includes the scale of the weights.
    `rate_scale` multiplies η before 1/√t limits it.

    Sparse gradients (`tf.IndexedSlices`, from embeddings on TensorFlow) give the same
    result as dense ones. Without momentum they cost time for their rows, and one pass
    over the variable for RMS(x) unless that is turned off; with momentum the step takes
    a dense pass. Where rows repeat, as those of frequent tokens do, Keras 3.15 squares
    each before it adds them up, and its result differs from that of the same gradient
    in dense form; this one's does not.

    Example:

    ```python
    model.compile(optimizer=et_optimizer.Adafactor(0.01), loss=loss)
    model.fit(dataset)

    # Tensor2Tensor's, with a schedule of your own.
    et_optimizer.Adafactor(
        et_optimizer.schedules.InverseSquareRoot(0.1, warmup_steps=10_000),
        multiply_by_parameter_scale=False,
        cap_learning_rate=False,
    )
    ```

    Reference:
        [Shazeer, Stern, 2018](https://arxiv.org/abs/1804.04235), Adafactor: Adaptive
        Learning Rates with Sublinear Memory Cost, Algorithms 4 to 6.
    """

    rule = AdafactorRule
    momentum_is_corrected = False
    momentum_of = "step"
    slot_argument_names = ("min_dim_size_to_factor",)
    state_argument_names = ()

    learning_rate: InitVar[LearningRate] = field(default=0.001, kw_only=False)
    beta_2_decay: float = -0.8
    epsilon_1: float = 1e-30
    epsilon_2: float = 1e-3
    relative_step: bool = True
    multiply_by_parameter_scale: bool = True
    cap_learning_rate: bool = True
    beta_1: float = 0.0
    min_dim_size_to_factor: int = 0
    clip_threshold: float | None = 1.0

    @classmethod
    def check_arguments(cls, given: Mapping[str, Any]) -> None:
        """Raises `ValueError` for a bad value; see the base."""
        super().check_arguments(given)
        name = "min_dim_size_to_factor"
        checks.whole(name, given[name], least=0)

    def index_variables(self, named_shapes: NamedShapes) -> list[TensorIndex]:
        """Rows and columns of every matrix; see the base."""
        return [self._index(shape) for _, shape in named_shapes]

    def _index(self, shape: Shape) -> TensorIndex:
        index = TensorIndex.of_matrices(shape)
        if index.order == 2 and min(index.modes) < self.min_dim_size_to_factor:
            return TensorIndex.from_sizes(shape, (index.size,))
        return index
