"""Shampoo and Sketchy: a covariance for every mode of a gradient.

Gupta, Koren, Singer, 2018, arXiv:1802.09568; Feinberg, Chen, Sun, Anil, Hazan, 2023,
arXiv:2302.03764.
"""

import dataclasses
import itertools
import math
from collections.abc import Mapping
from dataclasses import InitVar, field
from typing import Any, ClassVar, Literal

import keras
from keras import ops

from et_optimizer import checks, frequent_directions
from et_optimizer.compilers.tracing import is_concrete
from et_optimizer.frequent_directions import Sketch
from et_optimizer.naming import findable_by_name
from et_optimizer.optimizers.base import PreconditionedOptimizer
from et_optimizer.optimizers.extreme_tensoring import ExtremeTensoringRule
from et_optimizer.optimizers.levels import LevelledOptimizer
from et_optimizer.optimizers.rule import Rule, average_weight, total_weight
from et_optimizer.types import LearningRate, NamedShapes
from et_optimizer.views.dense import DenseView
from et_optimizer.views.tensor_index import TensorIndex, index_variables
from et_optimizer.views.updates import MaterializedUpdate


@dataclasses.dataclass(frozen=True)
class ShampooRule(Rule):
    """Multiplies every mode of the gradient by a root of its inverse covariance.

    With G_(i) the unfolding of the gradient G along mode i, over p modes longer than 1:

        L_i ← β₂ L_i + G_(i) G_(i)ᵀ
        u = G ×₁ L̃₁^(−1/2p) ×₂ … ×_p L̃_p^(−1/2p),   L̃_i = M_i + εI

    M_i is L_i, divided by Σ_s β₂^s where there is a β₂: a bias-corrected average. With
    a rank, L_i is a sketch (Feinberg et al., 2023, Algorithm 3 and Observation 6):

        ρ, L̄_i ← FD-update(β₂ L̄_i, G_(i) G_(i)ᵀ),   ρ_i ← β₂ ρ_i + ρ
        L̃_i = L̄_i + (ρ_i + ε) I

    A mode longer than `block_size` has one covariance for each of its blocks, of the
    block's unfolding. Only every `update_every`-th gradient enters the L_i. They are
    kept as eigenvectors and eigenvalues; see `et_optimizer.frequent_directions`.

    The update has the norm of the grafting rule's. The grafting rule alone updates
    variables with fewer than two axes, and all variables before
    `start_preconditioning_step`.

    Args:
        rank: ℓ ≥ 1, or `None` for whole covariances.
        beta_2: Decay in [0, 1) of a moving average, or `None` to accumulate.
        epsilon: ε ≥ 0.
        relative_epsilon: Added to ε, as a share of a covariance's largest eigenvalue;
            at least 0.
        block_size: The longest side of a covariance.
        update_every: k ≥ 1.
        start_preconditioning_step: The first step, from 1, with this rule's direction.
        graft: `"extreme_tensoring"`, `"rmsprop"`, `"sgd"` or `None`.
    """

    # Not every gradient enters the covariances, and NaN has no eigenvectors.
    needs_finite_gradients = True

    rank: int | None = None
    beta_2: float | None = 0.999
    epsilon: float = 0.0
    relative_epsilon: float = 1e-6
    block_size: int = 1024
    update_every: int = 10
    start_preconditioning_step: int = 1
    graft: str | None = "extreme_tensoring"

    def __post_init__(self):
        if self.rank is not None:
            checks.whole("rank", self.rank, 1)
        checks.decay("beta_2", self.beta_2, or_none=True)
        checks.epsilon("epsilon", self.epsilon)
        checks.epsilon("relative_epsilon", self.relative_epsilon)
        checks.whole("block_size", self.block_size, 1)
        checks.whole("update_every", self.update_every, 1)
        checks.whole("start_preconditioning_step", self.start_preconditioning_step, 1)
        if self.graft is not None:
            grafts = ("extreme_tensoring", "rmsprop", "sgd")
            checks.choice("graft", self.graft, grafts)

    def is_diagonal(self, index):
        """Whether the grafting rule alone updates a variable."""
        axes = sum(length > 1 for length in index.shape)
        return axes < 2 or len(_long_modes(index)) < 2

    def slot_shapes(self, index):
        """A sketch for every mode, and the grafting rule's slots; see `Rule`."""
        found = {}
        for mode in self._modes(index):
            size, count = _blocks(index.modes[mode], self.block_size)
            batch = (count,) if count > 1 else ()
            rank = size if self.rank is None else self.rank
            sketch = frequent_directions.shapes(size, rank, batch)
            for name, shape in sketch._asdict().items():
                found[f"mode_{mode}_{name}"] = shape
        graft_index = self._graft_index(index)
        if graft_index is not None:
            for name, shape in self._diagonal.slot_shapes(graft_index).items():
                found[f"graft_{name}"] = shape
        return found

    def __call__(self, view, slots, step):
        """One step; see `Rule`. The view is a dense one."""
        modes = self._modes(view.index)
        sketches, graft_slots = slots[: 3 * len(modes)], slots[3 * len(modes) :]
        graft, graft_slots = self._graft(view, graft_slots, step)
        if not modes:
            return graft, graft_slots
        sketches = self._take_in(sketches, modes, _tensor(view, view.plain()), step)
        weight = self._total_weight(step)

        def precondition(gradient):
            direction = _tensor(view, gradient)
            for mode, sketch in zip(modes, _sketches(sketches)):
                blocks = _unfold(direction, mode, self.block_size)
                blocks = frequent_directions.apply_inverse_root(
                    sketch,
                    blocks,
                    0.5 / len(modes),
                    self.epsilon,
                    self.relative_epsilon,
                    weight,
                )
                direction = _fold(blocks, mode, direction.shape)
            update = view.from_modes(direction)
            if self.graft is None and self.start_preconditioning_step == 1:
                return update
            return self._with_norm_of(graft(gradient), update, step)

        return precondition, sketches + graft_slots

    def mean_squares(self, view, slots, steps):
        """By the grafting rule, or by a covariance's trace; see `Rule`."""
        index, first = view.index, 3 * len(self._modes(view.index))
        if slots[first:]:
            graft_view = DenseView(view.matrix, self._graft_index(index))
            return self._diagonal.mean_squares(graft_view, slots[first:], steps)
        before = frequent_directions.trace(Sketch(*slots[:3])) / index.size
        taken = ops.ceil(steps / self.update_every)
        return before / average_weight(self.beta_2, taken), view.mean_square()

    def _modes(self, index):
        """The modes that have covariances."""
        return [] if self.is_diagonal(index) else _long_modes(index)

    def _take_in(self, slots, modes, tensor, step):
        """The sketches after the gradient, if it is one that enters them."""
        decay = 1.0 if self.beta_2 is None else self.beta_2

        def updated():
            found = [
                frequent_directions.update(
                    sketch, _unfold(tensor, mode, self.block_size), decay
                )
                for mode, sketch in zip(modes, _sketches(slots))
            ]
            return list(itertools.chain.from_iterable(found))

        if self.update_every == 1:
            return updated()
        is_due = (ops.cast(step, "int32") - 1) % self.update_every == 0
        if is_concrete(is_due):
            # JAX would compile both branches again at every step.
            return updated() if bool(is_due) else list(slots)
        return ops.cond(is_due, updated, lambda: list(slots))

    def _total_weight(self, step):
        """Σ_s β₂^s over the gradients taken in so far, or 1 if they accumulate."""
        taken = ops.floor((step - 1.0) / self.update_every) + 1.0
        return total_weight(self.beta_2, taken)

    @property
    def _diagonal(self):
        return ExtremeTensoringRule(self.beta_2, "mean", 0.0, "geometric")

    def _graft_index(self, index):
        """The index of the grafting rule, or `None` if it keeps nothing."""
        if self.graft == "rmsprop":
            return TensorIndex.of_entries(index.shape)
        if self.graft == "extreme_tensoring" or self.is_diagonal(index):
            return index
        return None

    def _graft(self, view, slots, step):
        """The grafting rule's step, as that of a `Rule`."""
        index = self._graft_index(view.index)
        if index is None:
            return lambda gradient: MaterializedUpdate(gradient.evaluate()), slots
        graft_view = DenseView(view.matrix, index)
        precondition, slots = self._diagonal(graft_view, slots, step)

        def graft(gradient):
            average = MaterializedUpdate(gradient.evaluate())
            return precondition(graft_view.from_average(average))

        return graft, slots

    def _with_norm_of(self, graft, update, step):
        is_directed = step >= self.start_preconditioning_step
        if self.graft is not None:
            norm = update.root_mean_square()
            # Covariances of zeros have no direction.
            is_directed = ops.logical_and(is_directed, norm > 0)
            ratio = graft.root_mean_square() / ops.where(norm > 0, norm, 1.0)
            update = update.scaled(ratio)
        return MaterializedUpdate(
            ops.where(is_directed, update.evaluate(), graft.evaluate())
        )


@dataclasses.dataclass(frozen=True)
class SketchyAdagradRule(Rule):
    """Full-matrix AdaGrad on a sketch (Feinberg et al., 2023, Algorithm 2).

        ρ, Ḡ ← FD-update(β₂ Ḡ, g gᵀ),   ρ_sum ← β₂ ρ_sum + ρ
        u = (M + εI)^(−1/2) g,   M = Ḡ + ρ_sum I

    with the pseudo-inverse root where that is singular. With a β₂, M is divided by
    Σ_s β₂^s.

    Args:
        rank: ℓ ≥ 1.
        beta_2: Decay in [0, 1) of a moving average, or `None` to accumulate.
        epsilon: ε ≥ 0.
    """

    needs_finite_gradients = True

    rank: int = 10
    beta_2: float | None = None
    epsilon: float = 0.0

    def __post_init__(self):
        checks.whole("rank", self.rank, 1)
        checks.decay("beta_2", self.beta_2, or_none=True)
        checks.epsilon("epsilon", self.epsilon)

    def slot_shapes(self, index):
        """The sketch; see `Rule`."""
        return frequent_directions.shapes(index.size, self.rank)._asdict()

    def __call__(self, view, slots, step):
        """One step; see `Rule`. The view is a dense one."""
        column = ops.reshape(view.matrix, (-1, 1))
        decay = 1.0 if self.beta_2 is None else self.beta_2
        sketch = frequent_directions.update(Sketch(*slots), column, decay)
        weight = total_weight(self.beta_2, step)

        def precondition(gradient):
            update = frequent_directions.apply_inverse_root(
                sketch,
                ops.reshape(gradient.entries(), (-1, 1)),
                0.5,
                self.epsilon,
                weight=weight,
            )
            return MaterializedUpdate(ops.reshape(update, view.index.shape))

        return precondition, list(sketch)

    def mean_squares(self, view, slots, steps):
        """Means over all entries, by the covariance's trace; see `Rule`."""
        before = frequent_directions.trace(Sketch(*slots)) / view.index.size
        return before / average_weight(self.beta_2, steps), view.mean_square()


def _tensor(view, gradient):
    """A gradient as a tensor of shape `index.modes`."""
    return view.to_modes(gradient.entries())


def _long_modes(index):
    """The modes longer than 1."""
    return [mode for mode, length in enumerate(index.modes) if length > 1]


def _sketches(slots):
    """The slots of all modes, three for each sketch."""
    return [Sketch(*slots[i : i + 3]) for i in range(0, len(slots), 3)]


def _blocks(length, block_size):
    """(size, count) of the near-equal blocks that a mode is cut into."""
    count = math.ceil(length / block_size)
    return math.ceil(length / count), count


def _unfold(tensor, mode, block_size):
    """The unfolding of a tensor along a mode, cut into blocks of rows.

    Returns:
        A tensor of shape (blocks, rows of a block, all other entries), without the
        first axis if there is one block, and with rows of zeros if the last block is
        not full.
    """
    length = tensor.shape[mode]
    size, count = _blocks(length, block_size)
    rows = ops.reshape(ops.moveaxis(tensor, mode, 0), (length, -1))
    if count == 1:
        return rows
    if size * count > length:
        rows = ops.pad(rows, [(0, size * count - length), (0, 0)])
    return ops.reshape(rows, (count, size, -1))


def _fold(blocks, mode, shape):
    """The tensor of a shape whose unfolding `_unfold` cut into these blocks."""
    others = [n for other, n in enumerate(shape) if other != mode]
    rows = ops.reshape(blocks, (-1, blocks.shape[-1]))[: shape[mode]]
    return ops.moveaxis(ops.reshape(rows, (shape[mode], *others)), 0, mode)


@findable_by_name
@keras.saving.register_keras_serializable(package="et_optimizer")
class Shampoo(LevelledOptimizer):
    r"""Optimizer that implements Shampoo, with the whole covariance of every mode.

    With G_(i) the unfolding of the gradient G along mode i, over p modes:

        L_i ← β₂ L_i + G_(i) G_(i)ᵀ
        D = G ×₁ L̃₁^(−1/2p) ×₂ … ×_p L̃_p^(−1/2p),   L̃_i = L_i + εI
        x ← x − η D · ‖U‖ / ‖D‖

    which for a matrix is L^(−1/4) G R^(−1/4), with the norm of the grafting rule's
    update U. It is the optimizer that `SketchyShampoo` approximates, with the same
    code.

    Memory, in elements: for a mode of length d, cut into b blocks of s = ⌈d/b⌉,
    b·(s² + s + 1), and grafting from extreme tensoring d more, besides one int32 per
    variable that counts skipped steps. For a 2000 × 512 kernel: 2 267 171, where Adam
    keeps 2 048 000. The covariances are kept as eigenvectors and eigenvalues, which
    takes half of what a matrix and its root would. `beta_1 > 0` adds, in bfloat16,
    2·r·(m + n) bytes for a momentum of rank r, or 2·m·n for full momentum;
    `graft="rmsprop"` adds one element per entry.

    Variables with fewer than two axes longer than 1 (biases, scales) are updated by
    extreme tensoring alone, which keeps at level 1 one element per entry; or by the
    grafting rule RMSprop. Axes of length 1 are ignored. With `merge_axes`, variables of
    more axes are viewed as matrices.

    The paper's algorithm to the letter is

        Shampoo(lr, beta_2=None, graft=None, update_every=1, block_size=10**9,
                epsilon=1e-4, relative_epsilon=0.0, merge_axes=False)

    Args:
        learning_rate: A float, a `keras.optimizers.schedules.LearningRateSchedule`,
            or a callable without arguments that returns the learning rate. With the
            default grafting, learning rates are on the scale of `ExtremeTensoring`'s
            and Adam's. Defaults to 0.002.
        beta_2: Decay in [0, 1), per gradient taken in, of the moving average of the
            covariances and of the grafting rule, or `None` to accumulate, as in the
            papers. Defaults to 0.999.
        level: 1, 2, 3, …: which modes have covariances. Level 1 takes the variable's
            axes; each further level splits each of them once more, as in
            `ExtremeTensoring`, so that the covariances are small. `"inf"` leaves all to
            the grafting rule. Or a dict by path, as there.
        block_size: The longest side of a covariance, at least 1. A longer mode is cut
            into near-equal blocks with a covariance each. Defaults to 1024.
        update_every: Every how many steps a gradient enters the covariances and their
            eigenvectors are computed again, at least 1; the steps in between only apply
            them. The papers' algorithms have 1. Defaults to 10.
        start_preconditioning_step: The first step, from 1, that takes the direction
            above. Earlier steps are the grafting rule's and only fill the covariances,
            which say little after a few gradients; with `graft=None` they are plain
            gradient steps. Defaults to 1.
        graft: Whose norm the update of a variable has. `"extreme_tensoring"`, with
            this `beta_2` and the same tensor index; `"rmsprop"`, which keeps one
            element per entry; `"sgd"`, the gradient's own norm; or `None`, the norm of
            D itself. Defaults to `"extreme_tensoring"`.
        epsilon: ε ≥ 0. Defaults to 0.
        relative_epsilon: Added to ε, as a share of each covariance's largest
            eigenvalue, at least 0. Float32 cannot tell eigenvalues below 1e-6 of the
            largest from 0. Defaults to 1e-6.
        merge_axes: Whether a variable of more than two axes is viewed as a matrix, its
            first axes as rows and the others as columns, split where they are fewest:
            (128, 4, 32) as 128 × 128, a convolution's (3, 3, 64, 128) as 576 × 128.
            Otherwise each axis is a mode. Defaults to `True`.
        beta_1: Decay in [0, 1) of a bias-corrected moving average of the update
            (momentum). 0 keeps no momentum. Defaults to 0.

    Raises:
        ValueError: when constructed, if an argument is out of its range; when built,
            if `tensor_index` does not fit the variables or a variable is not
            floating-point; when state is loaded, if it does not fit; and as
            `nonfinite` says.

    Range: sums of squared gradients are kept in float32, which covers |g| from 1e-18 to
    about 1e19 · √((1 − β₂)/n) for a variable of n entries.

    Sparse gradients (`tf.IndexedSlices`) are converted to dense ones.

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

    rule = ShampooRule
    slot_argument_names: ClassVar[tuple[str, ...]] = (
        *LevelledOptimizer.slot_argument_names,
        "merge_axes",
        "block_size",
        "graft",
    )
    state_argument_names = ("beta_2", "update_every")

    learning_rate: InitVar[LearningRate] = field(default=0.002, kw_only=False)
    beta_2: float | None = 0.999
    block_size: int = 1024
    update_every: int = 10
    start_preconditioning_step: int = 1
    graft: Literal["extreme_tensoring", "rmsprop", "sgd"] | None = "extreme_tensoring"
    epsilon: float = 0.0
    relative_epsilon: float = 1e-6
    merge_axes: bool = True
    beta_1: float = 0.0

    def index_variables(self, named_shapes: NamedShapes) -> list[TensorIndex]:
        """The tensor index of every variable; see the base."""
        levels = self.by_path("level", named_shapes)
        return index_variables(named_shapes, levels, self.tensor_index, self.merge_axes)


@findable_by_name
@keras.saving.register_keras_serializable(package="et_optimizer")
class SketchyShampoo(Shampoo):
    r"""Optimizer that implements Sketchy, Shampoo in a fraction of its memory.

    Shampoo multiplies a gradient along every axis by a root of the axis's inverse
    covariance. Sketchy keeps the leading `rank` eigenvectors of each covariance and a
    bound on the rest, the escaped mass ρ, by the method of Frequent Directions. With
    G_(i) the unfolding of the gradient G along mode i, over p modes:

        ρ, L̄_i ← FD-update(β₂ L̄_i, G_(i) G_(i)ᵀ),   ρ_i ← β₂ ρ_i + ρ
        D = G ×₁ L̃₁^(−1/2p) ×₂ … ×_p L̃_p^(−1/2p),   L̃_i = L̄_i + (ρ_i + ε) I
        x ← x − η D · ‖U‖ / ‖D‖

    where U is the update of the *grafting* rule: Sketchy gives the direction, extreme
    tensoring the length. With a β₂ the L̃_i are bias-corrected moving averages; with
    `beta_2=None`, as in the paper's Algorithm 3, the escaped mass only grows.

    Memory, in elements: for a mode of length d, cut into b blocks of s = ⌈d/b⌉, the
    sketches take b·((s + 1)·min(rank, s) + 1), and grafting from extreme tensoring d
    more: rank·(m + n) + O(m + n) for an m × n matrix, besides one int32 per variable
    that counts skipped steps. For 2000 × 512 and rank 32: 82 995, where Shampoo keeps
    2 267 171 and Adam 2 048 000. At level 2: 4 414. Momentum and `graft="rmsprop"` add
    to it as in `Shampoo`.

    Args:
        rank: How many eigenvectors of a covariance are kept, ℓ ≥ 1. From the size of a
            block on nothing escapes, and the optimizer is `Shampoo`. Defaults to 256,
            the paper's.

    Raises:
        ValueError: as in `et_optimizer.Shampoo`.

    Sparse gradients (`tf.IndexedSlices`) are converted to dense ones.

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

    slot_argument_names = ("rank", *Shampoo.slot_argument_names)

    rank: int = 256

    @classmethod
    def check_arguments(cls, given: Mapping[str, Any]) -> None:
        """Raises `ValueError` for a bad value; see the base."""
        super().check_arguments(given)
        checks.whole("rank", given["rank"], 1)


@keras.saving.register_keras_serializable(package="et_optimizer")
class SketchyAdagrad(PreconditionedOptimizer):
    r"""Optimizer that implements S-AdaGrad, full-matrix AdaGrad on a sketch.

    Full-matrix AdaGrad multiplies a gradient g of d entries by the inverse root of the
    d × d sum of all g gᵀ. S-AdaGrad keeps the leading `rank` eigenvectors of that
    matrix, and the escaped mass ρ for the rest:

        ρ_t, Ḡ ← FD-update(Ḡ, g gᵀ),   ρ ← ρ + ρ_t
        x ← x − η (Ḡ + ρI)^(−1/2) g

    with the pseudo-inverse root while that matrix is singular. Its regret is that of
    full-matrix AdaGrad plus a term in the spectrum beyond `rank`. It is meant for
    convex problems and small models: every variable is flattened.

    Memory: (d + 1)·min(rank, d) + 1 elements for a variable of d entries, and nothing
    else except one int32 that counts skipped steps and Keras's iteration and learning
    rate. `beta_1 > 0` adds, in bfloat16, 2·r·(m + n) bytes for an m × n matrix at
    rank r, or 2·d for full momentum.

    Args:
        learning_rate: A float, a `keras.optimizers.schedules.LearningRateSchedule`,
            or a callable without arguments that returns the learning rate.
        rank: How many eigenvectors are kept, ℓ ≥ 1. From a variable's size on it is
            full-matrix AdaGrad.
        beta_2: Decay in [0, 1) of a bias-corrected moving average instead of the sum,
            or `None` to accumulate.
        epsilon: ε ≥ 0, added to ρ.
        beta_1: Decay in [0, 1) of a bias-corrected moving average of the update
            (momentum). 0 keeps no momentum.

    Raises:
        ValueError: as in `et_optimizer.Shampoo`.

    Sparse gradients (`tf.IndexedSlices`) are converted to dense ones.

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

    rule = SketchyAdagradRule
    slot_argument_names: ClassVar[tuple[str, ...]] = ("rank",)

    learning_rate: InitVar[LearningRate] = field(default=0.1, kw_only=False)
    rank: int = 10
    beta_2: float | None = None
    epsilon: float = 0.0
    beta_1: float = 0.0

    def index_variables(self, named_shapes: NamedShapes) -> list[TensorIndex]:
        """One mode of all entries; see the base."""
        return [TensorIndex.of_entries(shape) for _, shape in named_shapes]
