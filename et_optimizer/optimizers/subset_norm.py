"""Subset-Norm (Nguyen, Nguyen, 2024, arXiv:2411.07120)."""

import dataclasses
from collections.abc import Mapping
from dataclasses import InitVar, field
from typing import Any, Literal

import keras

from et_optimizer.naming import findable_by_name
from et_optimizer.optimizers.base import PreconditionedOptimizer
from et_optimizer.optimizers.extreme_tensoring import ExtremeTensoringRule
from et_optimizer.types import (
    ByPath,
    KeptAxis,
    LearningRate,
    NamedShapes,
)
from et_optimizer.views.tensor_index import TensorIndex, check_axis, index_one_mode


@dataclasses.dataclass(frozen=True)
class SubsetNormRule(ExtremeTensoringRule):
    """Extreme tensoring with a single mode: every entry is scaled by its subset.

        S[j] ← β₂ S[j] + Σ_{I at j} g[I]²,   u[I] = g[I] / √(ε + M[j])

    Args:
        beta_2, statistic, epsilon: As in `ExtremeTensoringRule`.
        combination: No effect, because there is only one mode.
    """

    beta_2: float | None = 0.99
    combination: str = "geometric"


@findable_by_name
@keras.saving.register_keras_serializable(package="et_optimizer")
class SubsetNorm(PreconditionedOptimizer):
    r"""Optimizer that implements Subset-Norm: one step size per row or column.

    The entries of a variable that share their position j on one axis share one
    element, the sum of their squared gradients, and with it their step size:

        S[j] ← β₂ S[j] + Σ_{I at j} g[I]²
        x[I] ← x[I] − η g[I] / √(ε + M[j])

    where M is S, averaged over time and over the subset as `beta_2` and `statistic`
    say. It is extreme tensoring with a tensor index that keeps one mode.

    Memory, besides Keras's iteration and learning rate and one int32 per variable that
    counts skipped steps: as many float32 elements as the axis has positions, with
    `axis="auto"` min(m, n) for an m × n matrix, and in bfloat16 2·r·(m + n) bytes for a
    momentum of rank r; 2048 + 80 384 bytes for a 2000 × 512 kernel. Variables with
    at most one axis longer than 1 keep one element per entry, as in AdaGrad or RMSprop,
    and 2 bytes per entry of momentum. With `beta_1=0` only the statistics are kept.

    The paper's rule with accumulation, and with the momentum in a subspace that it
    calls SNSM, are

        SubsetNorm(lr, beta_1=0, beta_2=None, statistic="sum", update_bound=None)
        SubsetNorm(lr, beta_2=None, statistic="sum", update_bound=None,
                   momentum_rank=r, refresh_every=k, momentum_of="gradient",
                   momentum_dtype="float32")

    Three differences to the paper remain: a basis is updated by a
    step of subspace iteration instead of singular vectors, the momentum is projected
    onto the new basis instead of reset to 0, and vectors and matrices too small for a
    basis have full momentum.

    Args:
        learning_rate: A float, a `keras.optimizers.schedules.LearningRateSchedule`,
            or a callable without arguments that returns the learning rate. With
            `statistic="mean"` learning rates are on Adam's scale. Defaults to 0.002.
        axis: The axis whose positions keep one element each: an integer, negative ones
            from the last; or `"auto"`, which reduces along the longer axis of a matrix
            and keeps the shorter (the columns, if they are equal), and views a variable
            of more axes as a matrix of the last axis by all others. Or a dict from
            regular expressions, searched for in a variable's path (the first match
            wins), to either; variables that none matches get `"auto"`. Defaults to
            `"auto"`.
        beta_1: Decay in [0, 1) of a bias-corrected moving average of the update
            (momentum). 0 keeps no momentum. Defaults to 0.9.
        beta_2: Decay in [0, 1) of a bias-corrected moving average of the squared
            gradients; `None` accumulates them. Defaults to 0.99.
        statistic: `"mean"` divides each subset's sum by its number of entries, so that
            learning rates carry over from Adam; `"sum"` is the paper's, whose learning
            rates are larger by the root of that number. Defaults to `"mean"`.
        epsilon: ε ≥ 0, inside the root. Defaults to 0.
        momentum_of: What the momentum averages: `"update"`, the gradient scaled by
            Subset-Norm, or `"gradient"`, which is scaled after that. Defaults to
            `"update"`.

    Raises:
        ValueError: when constructed, if an argument is out of its range; when built,
            if a variable lacks the axis, an expression matches no variable or a
            variable is not floating-point; when state is loaded, if it has another
            axis; and as `nonfinite` says.

    Sparse gradients (`tf.IndexedSlices`, from embeddings on TensorFlow) give the same
    result as dense ones. With momentum, which is the default, the step takes a dense
    pass; without, as with `momentum_rank={"embeddings": 0}`, it costs time for their
    rows only.

    Example:

    ```python
    # One step size per token, and the paper's choice for all else.
    optimizer = et_optimizer.SubsetNorm(axis={"embeddings": 0})
    model.compile(optimizer=optimizer, loss=loss)
    model.fit(dataset)
    ```

    Reference:
        [Nguyen, Nguyen, 2024](https://arxiv.org/abs/2411.07120), Lean and Mean
        Adaptive Optimization via Subset-Norm and Subspace-Momentum with Convergence
        Guarantees.
    """

    rule = SubsetNormRule
    slot_argument_names = ("axis",)
    state_argument_names = ("beta_2", "momentum_of")

    learning_rate: InitVar[LearningRate] = field(default=0.002, kw_only=False)
    axis: ByPath[KeptAxis] = "auto"
    beta_1: float = 0.9
    beta_2: float | None = 0.99
    statistic: Literal["mean", "sum"] = "mean"
    epsilon: float = 0.0
    momentum_of: Literal["update", "gradient"] = "update"
    update_bound: float | None = 3.0

    @classmethod
    def check_arguments(cls, given: Mapping[str, Any]) -> None:
        """Raises `ValueError` for a bad value; see the base."""
        super().check_arguments(given)
        check_axis(given["axis"])

    def index_variables(self, named_shapes: NamedShapes) -> list[TensorIndex]:
        """One mode of every variable; see the base."""
        return index_one_mode(named_shapes, self.by_path("axis", named_shapes))
