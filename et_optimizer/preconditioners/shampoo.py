"""Shampoo and Sketchy: a covariance for every mode of a gradient.

Gupta, Koren, Singer, 2018, arXiv:1802.09568; Feinberg, Chen, Sun, Anil, Hazan, 2023,
arXiv:2302.03764.
"""

import dataclasses
import itertools
import math

from keras import ops

from et_optimizer import checks, frequent_directions
from et_optimizer.compilers import tracing
from et_optimizer.frequent_directions import Sketch
from et_optimizer.optimizers.rule import (
    Preconditioner,
    total_weight,
    weight_of_all,
)
from et_optimizer.preconditioners.extreme_tensoring import ExtremeTensoring
from et_optimizer.views.gradients import DenseGradient, WrittenUpdate
from et_optimizer.views.tensor_index import TensorIndex

GRAFTS = ("extreme_tensoring", "rmsprop", "sgd")


@dataclasses.dataclass(frozen=True)
class Shampoo(Preconditioner):
    """Multiplies every mode of the gradient by a root of the mode's inverse covariance.

    With G_(i) the unfolding of the gradient G along mode i, over p modes longer than 1:

        L_i ← β₂ L_i + G_(i) G_(i)ᵀ
        update = G ×₁ L̃₁^(−1/2p) ×₂ … ×_p L̃_p^(−1/2p),   L̃_i = M_i + εI

    M_i is L_i, divided by Σ_s β₂^s where there is a β₂: a bias-corrected average. A
    mode longer than `block_size` has one covariance for each of its blocks, which sees
    the block's unfolding. Only every `update_every`-th gradient enters the L_i. They
    are held as eigenvectors and eigenvalues.

    The update has the norm of the grafting rule's. That rule alone updates variables of
    fewer than two axes, and all of them before `start_preconditioning_step`.

    Args:
        beta_2: Decay in [0, 1) of a moving average, or `None` to add up.
        epsilon: ε ≥ 0.
        relative_epsilon: What is added to ε, as a share of a covariance's largest
            eigenvalue; at least 0.
        block_size: The longest side of a covariance.
        update_every: k ≥ 1.
        start_preconditioning_step: The first step, from 1, whose direction is this
            rule's.
        graft: One of `GRAFTS`, or `None`.
    """

    # Not every gradient enters the covariances, and no eigenvectors are found of NaN.
    is_of_finite_gradients = True

    beta_2: float | None
    epsilon: float
    relative_epsilon: float
    block_size: int
    update_every: int
    start_preconditioning_step: int
    graft: str | None

    def __post_init__(self):
        checks.decay("beta_2", self.beta_2, or_none=True)
        checks.epsilon("epsilon", self.epsilon)
        checks.epsilon("relative_epsilon", self.relative_epsilon)
        checks.whole("block_size", self.block_size, 1)
        checks.whole("update_every", self.update_every, 1)
        checks.whole("start_preconditioning_step", self.start_preconditioning_step, 1)
        if self.graft is not None:
            checks.choice("graft", self.graft, GRAFTS)

    def rank_of(self, size):
        """How many eigenvectors are kept of a covariance of this size."""
        return size

    def is_diagonal(self, index):
        """Whether a variable is left to the grafting rule alone."""
        axes = sum(length > 1 for length in index.shape)
        return axes < 2 or len(_long_modes(index)) < 2

    def slot_shapes(self, index):
        """A sketch a mode, and the grafting rule's slots; see `Preconditioner`."""
        found = {}
        for mode in self._modes(index):
            size, count = _blocks(index.modes[mode], self.block_size)
            batch = (count,) if count > 1 else ()
            held = frequent_directions.shapes(size, self.rank_of(size), batch)
            for name, shape in held._asdict().items():
                found[f"mode_{mode}_{name}"] = shape
        for name, shape in self._grafting(index).items():
            found[f"graft_{name}"] = shape
        return found

    def __call__(self, gradient, slots, step):
        """One step; see `Preconditioner`. The gradient is a dense one."""
        modes = self._modes(gradient.index)
        held, grafted_slots = slots[: 3 * len(modes)], slots[3 * len(modes) :]
        grafted, grafted_slots = self._grafted(gradient, grafted_slots, step)
        if not modes:
            return grafted, grafted_slots
        tensor = gradient.as_tensor()
        held = self._take_in(held, modes, tensor, step)
        direction, weight = tensor, self._total_weight(step)
        for mode, sketch in zip(modes, _sketches(held)):
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
        update = gradient.from_tensor(direction)
        return self._with_norm_of(grafted, update, step), held + grafted_slots

    def sizes(self, gradient, slots, steps):
        """By the grafting rule, or by a covariance's trace; see `Preconditioner`."""
        index, places = gradient.index, 3 * len(self._modes(gradient.index))
        if slots[places:]:
            grafting = DenseGradient(gradient.matrix, self._grafting_index(index))
            return self._diagonal.sizes(grafting, slots[places:], steps)
        before = frequent_directions.trace(Sketch(*slots[:3])) / index.size
        taken = ops.ceil(steps / self.update_every)
        return before / weight_of_all(self.beta_2, taken), gradient.mean_square()

    def _modes(self, index):
        """The modes that have covariances."""
        return [] if self.is_diagonal(index) else _long_modes(index)

    def _take_in(self, held, modes, tensor, step):
        """The sketches after the gradient, where it is one that enters them."""
        decay = 1.0 if self.beta_2 is None else self.beta_2

        def updated():
            found = [
                frequent_directions.update(
                    sketch, _unfold(tensor, mode, self.block_size), decay
                )
                for mode, sketch in zip(modes, _sketches(held))
            ]
            return list(itertools.chain.from_iterable(found))

        if self.update_every == 1:
            return updated()
        is_due = (ops.cast(step, "int32") - 1) % self.update_every == 0
        if tracing.is_known(is_due):
            # JAX would compile both ways anew at every step.
            return updated() if bool(is_due) else list(held)
        return ops.cond(is_due, updated, lambda: list(held))

    def _total_weight(self, step):
        """Σ_s β₂^s over the gradients taken in so far, or 1 where they are added up."""
        taken = ops.floor((step - 1.0) / self.update_every) + 1.0
        return total_weight(self.beta_2, taken)

    @property
    def _diagonal(self):
        return ExtremeTensoring(self.beta_2, "mean", 0.0, "geometric")

    def _grafting_index(self, index):
        """What the grafting rule sees the variable through; `None` if it has none."""
        if self.graft == "rmsprop":
            return TensorIndex.of_entries(index.shape)
        if self.graft == "extreme_tensoring" or self.is_diagonal(index):
            return index
        return None

    def _grafting(self, index):
        """The slots of the grafting rule."""
        own = self._grafting_index(index)
        return {} if own is None else self._diagonal.slot_shapes(own)

    def _grafted(self, gradient, slots, step):
        """The grafting rule's update and slots."""
        index = self._grafting_index(gradient.index)
        if index is None:
            return gradient.from_tensor(gradient.as_tensor()), slots
        return self._diagonal(DenseGradient(gradient.matrix, index), slots, step)

    def _with_norm_of(self, grafted, update, step):
        if self.graft is None and self.start_preconditioning_step == 1:
            return update
        is_directed = step >= self.start_preconditioning_step
        if self.graft is not None:
            norm = update.root_mean_square()
            # Covariances that have seen only zeros have no direction to give.
            is_directed = ops.logical_and(is_directed, norm > 0)
            ratio = grafted.root_mean_square() / ops.where(norm > 0, norm, 1.0)
            update = WrittenUpdate(update.tensor, ratio)
        return WrittenUpdate(
            ops.where(is_directed, update.times(1.0), grafted.times(1.0))
        )


@dataclasses.dataclass(frozen=True)
class SketchyShampoo(Shampoo):
    """Shampoo on sketches (Feinberg et al., 2023, Algorithm 3 and Observation 6).

        ρ, L̄_i ← FD-update(β₂ L̄_i, G_(i) G_(i)ᵀ),   ρ_i ← β₂ ρ_i + ρ
        L̃_i = L̄_i + (ρ_i + ε) I

    in place of Shampoo's L_i; see `et_optimizer.frequent_directions`.

    Args:
        rank: ℓ ≥ 1.
    """

    rank: int

    def __post_init__(self):
        super().__post_init__()
        checks.whole("rank", self.rank, 1)

    def rank_of(self, size):
        """How many eigenvectors are kept of a covariance of this size, at most it."""
        return self.rank


@dataclasses.dataclass(frozen=True)
class SketchyAdagrad(Preconditioner):
    """Full-matrix AdaGrad on a sketch (Feinberg et al., 2023, Algorithm 2).

        ρ, Ḡ ← FD-update(β₂ Ḡ, g gᵀ),   ρ_sum ← β₂ ρ_sum + ρ
        update = (M + εI)^(−1/2) g,   M = Ḡ + ρ_sum I

    with the pseudo-inverse root where that is singular. With a β₂, M is divided by
    Σ_s β₂^s.

    Args:
        rank: ℓ ≥ 1.
        beta_2: Decay in [0, 1) of a moving average, or `None` to add up.
        epsilon: ε ≥ 0.
    """

    is_of_finite_gradients = True

    rank: int
    beta_2: float | None
    epsilon: float

    def __post_init__(self):
        checks.whole("rank", self.rank, 1)
        checks.decay("beta_2", self.beta_2, or_none=True)
        checks.epsilon("epsilon", self.epsilon)

    def slot_shapes(self, index):
        """The sketch; see `Preconditioner`."""
        return frequent_directions.shapes(index.size, self.rank)._asdict()

    def __call__(self, gradient, slots, step):
        """One step; see `Preconditioner`. The gradient is a dense one."""
        column = ops.reshape(gradient.matrix, (-1, 1))
        decay = 1.0 if self.beta_2 is None else self.beta_2
        sketch = frequent_directions.update(Sketch(*slots), column, decay)
        weight = total_weight(self.beta_2, step)
        update = frequent_directions.apply_inverse_root(
            sketch, column, 0.5, self.epsilon, weight=weight
        )
        return WrittenUpdate(ops.reshape(update, gradient.index.shape)), list(sketch)

    def sizes(self, gradient, slots, steps):
        """Means over all entries, by the covariance's trace; see `Preconditioner`."""
        before = frequent_directions.trace(Sketch(*slots)) / gradient.index.size
        return before / weight_of_all(self.beta_2, steps), gradient.mean_square()


def _long_modes(index):
    """The modes that can tell entries apart."""
    return [mode for mode, length in enumerate(index.modes) if length > 1]


def _sketches(slots):
    """The slots of all modes, three to a sketch."""
    return [Sketch(*slots[i : i + 3]) for i in range(0, len(slots), 3)]


def _blocks(length, block_size):
    """(size, count) of the near-equal blocks that a mode is cut into."""
    count = math.ceil(length / block_size)
    return math.ceil(length / count), count


def _unfold(tensor, mode, block_size):
    """The unfolding of a tensor along a mode, cut into blocks of its rows.

    Returns:
        A tensor of shape (blocks, block's size, all other entries), without the first
        axis where one block is all, and with rows of zeros where the last is not full.
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
