"""Extreme tensoring (Chen et al., 2020, arXiv:1902.04620, Algorithm 1)."""

import dataclasses
import itertools
import math
import warnings
from collections.abc import Mapping
from dataclasses import InitVar, field
from typing import Any, Literal

import keras
import numpy as np
from keras import ops

from et_optimizer import checks
from et_optimizer.naming import findable_by_name
from et_optimizer.optimizers import rank_one
from et_optimizer.optimizers.levels import LevelledOptimizer
from et_optimizer.optimizers.rule import (
    Rule,
    average_weight,
    mean_over,
    total_weight,
)
from et_optimizer.types import (
    ByPath,
    LearningRate,
    Level,
    RateScale,
    Self,
)


@dataclasses.dataclass(frozen=True)
class ExtremeTensoringRule(Rule):
    """Scales every entry by the product of its slices' statistics.

    With S_i[j] the decayed sum of g² over slice j of mode i, over p modes:

        S_i[j] ← β₂ S_i[j] + Σ_{I: I_i = j} g[I]²
        geometric:  u[I] = g[I] · (ε + Π_i M_i[I_i])^(−1/(2p))
        rank-one:   u[I] = g[I] / (√(m Π_i (M_i[I_i] / m)) + ε)

    M_i is S_i as `statistic` and `beta_2` say: divided by Σ_{s<t} β₂^s, which makes it
    a bias-corrected moving average, and for "mean" by the number of entries in the
    slice. m is the mean over all entries. The slots contain S itself, so that their
    range is that of g²: float32 keeps |g| from about 1e-19 to 1e19 · √((1 − β₂) /
    entries in the slice).

    Args:
        beta_2: Decay of the moving average in [0, 1), or `None` to accumulate.
        statistic: `"mean"` or `"sum"`; the rank-one combination needs means.
        epsilon: ε ≥ 0.
        combination: `"rank_one"` or `"geometric"`.
    """

    beta_2: float | None = 0.999
    statistic: str = "mean"
    epsilon: float = 0.0
    combination: str = "rank_one"

    def __post_init__(self):
        checks.decay("beta_2", self.beta_2, or_none=True)
        checks.choice("statistic", self.statistic, ("mean", "sum"))
        checks.epsilon("epsilon", self.epsilon)
        checks.choice("combination", self.combination, ("rank_one", "geometric"))
        if self.combination == "rank_one" and self.statistic == "sum":
            raise ValueError(
                "The rank-one combination estimates the second moment of single "
                "entries, from means; received statistic='sum' with "
                "combination='rank_one'. Use statistic='mean', or "
                "combination='geometric' for the paper's Algorithm 1."
            )

    def __call__(self, view, slots, step):
        """One step; see `Rule`."""
        decay = 1.0 if self.beta_2 is None else self.beta_2
        sums = view.slice_sums()
        slots = [decay * slot + total for slot, total in zip(slots, sums)]
        weight = total_weight(self.beta_2, step)
        # With one mode and ε = 0, both combinations give the same result.
        is_rank_one = view.index.order > 1 or self.epsilon > 0.0
        if self.combination == "rank_one" and is_rank_one:
            return self._rank_one(view, slots, weight), slots
        if self.epsilon == 0.0:
            return self._geometric(view, slots, weight), slots
        return self._geometric_with_epsilon(view, slots, weight), slots

    def mean_squares(self, view, slots, steps):
        """The mean of g² over all entries, from a mode's sums; see `Rule`."""
        before = ops.sum(slots[0] / view.index.size)
        return before / average_weight(self.beta_2, steps), view.mean_square()

    def _rank_one(self, view, slots, weight):
        """u = g / (√v̂ + ε), with the estimate v̂ of `rank_one`."""
        index = view.index
        # A slice that lies entirely in the padding has no entries, and mean 0.
        entries = [
            n if isinstance(n, int) else ops.convert_to_tensor(np.maximum(n, 1.0))
            for n in index.entries_per_slice
        ]
        means = [slot / ops.cast(n, "float32") for slot, n in zip(slots, entries)]
        # The slices of each mode contain all entries.
        average = mean_over(slots, index.size) / len(slots)
        if self.epsilon == 0.0:
            roots = view.at_slices(rank_one.inverse_roots(means, average))
            factors, scalar = view.product_factors(roots), ops.sqrt(weight)
            return lambda gradient: gradient.times_factors(*factors, scalar)

        def scaled(entries, row_factor, column_factor):
            estimate = row_factor * column_factor
            return entries / (ops.sqrt(estimate / weight) + self.epsilon)

        ratios = view.at_slices(rank_one.ratios(means, average))
        # No factor is infinite: times one of 0 it would give NaN.
        factors = [ops.minimum(f, checks.LARGEST) for f in view.factors(ratios)]
        return lambda gradient: gradient.mapped(scaled, factors)

    def _geometric(self, view, slots, weight):
        """u = g · (Π_i M_i)^(−1/(2p))."""
        totals = view.at_slices(slots)
        most, shares = self._entries(view.index)
        shares = view.at_slices(shares)
        # Each mode's root is taken before anything is multiplied: the product of the
        # statistics themselves overflows float32 easily. A slice whose sum is 0 has
        # the factor 0, because an averaged gradient may not be 0 there.
        power = 1.0 / len(totals)
        is_empty = [total == 0 for total in totals]
        totals = [ops.maximum(total, checks.SMALLEST_FLOAT32) for total in totals]
        roots = [
            root if share is None else root * ops.power(share, power)
            for root, share in zip(_powers(totals, -power), shares)
        ]
        roots = [ops.where(empty, 0.0, root) for empty, root in zip(is_empty, roots)]
        scalar = ops.sqrt(weight * math.prod(n**power for n in most))
        # The square root comes last on purpose. XLA fuses plain products into the pass
        # over the variable, and would multiply the modes' values again at every entry;
        # roots it computes once per row and once per column.
        rows, columns = view.factors(roots)
        factors = ops.sqrt(rows), ops.sqrt(columns)
        return lambda gradient: gradient.times_factors(*factors, scalar)

    def _geometric_with_epsilon(self, view, slots, weight):
        """u = g · (ε + Π_i M_i)^(−1/(2p))."""
        totals = view.at_slices(slots)
        most, shares = self._entries(view.index)
        shares = view.at_slices(shares)
        # With the geometric mean P = Π_i M_i^(1/p) and e = ε^(1/p), both within range,
        # (ε + P^p)^(−1/2p) is computed with the larger one outside the bracket.
        order = len(totals)
        means = [
            total / (weight * n) if share is None else total / (weight * n * share)
            for total, n, share in zip(totals, most, shares)
        ]
        floor = self.epsilon ** (1.0 / order)

        def scaled(entries, row_factor, column_factor):
            product = row_factor * column_factor
            larger, smaller = ops.maximum(product, floor), ops.minimum(product, floor)
            bracket = 1.0 + ops.power(smaller / larger, float(order))
            return entries * ops.rsqrt(larger) * ops.power(bracket, -0.5 / order)

        factors = view.factors(_powers(means, 1.0 / order))
        return lambda gradient: gradient.mapped(scaled, factors)

    def _entries(self, index):
        """The number of entries that each slice's sum is divided by.

        Returns:
            `(most, shares)`: for each mode the number in its fullest slice, and
            each slice's share of that, at most 1, or `None` if all are equal.
        """
        entries = index.entries_per_slice
        if self.statistic == "sum":
            return [1.0] * len(entries), [None] * len(entries)
        most = [float(np.max(n)) for n in entries]
        # A slice that lies entirely in the padding never receives gradient.
        shares = [
            None
            if isinstance(n, int)
            else ops.convert_to_tensor(np.maximum(n, 1) / np.max(n), "float32")
            for n in entries
        ]
        return most, shares


def _powers(vectors, exponent):
    """Raises all vectors to a power, in one operation for all modes of a variable.

    At level 3 that takes a quarter off the number of kernels XLA has to compile.
    """
    sizes = [vector.shape[0] if len(vector.shape) else None for vector in vectors]
    # A scalar, or rows whose number is unknown while tracing, cannot be concatenated.
    if len(vectors) == 1 or None in sizes:
        return [ops.power(vector, exponent) for vector in vectors]
    ends = list(itertools.accumulate(sizes[:-1]))
    return ops.split(ops.power(ops.concatenate(vectors), exponent), ends)


@findable_by_name
@keras.saving.register_keras_serializable(package="et_optimizer")
class ExtremeTensoring(LevelledOptimizer):
    r"""Optimizer that implements extreme tensoring: a few statistics per layer.

    A *tensor index* views the d entries of a variable as a tensor of p modes of
    sizes d₁ … d_p. For slice j of mode i (the entries I with I_i = j) the optimizer
    keeps one element, the sum of squared gradients over the slice, and scales every
    entry by what its slices say together:

        S_i[j] ← β₂ S_i[j] + Σ_{I: I_i = j} g[I]²
        rank-one:   u[I] = g[I] / (√v̂[I] + ε),   v̂[I] = m Π_i (M_i[I_i] / m)
        geometric:  u[I] = g[I] · (ε + Π_i M_i[I_i])^(−1/(2p))

    where M_i is S_i, averaged over time and over the slice as `beta_2` and `statistic`
    say, and m the mean over the whole variable. Then come momentum and the bound b:

        N = momentum of u,   x[I] ← x[I] − η · min(max(N[I], −b), b)

    The momentum of a matrix is kept in a subspace of rank r, spanned by the orthonormal
    columns of P (for U with at most as many rows as columns; otherwise of Uᵀ):

        R = Pᵀ U,   M ← β₁ M + (1 − β₁) R,   N = P M / (1 − β₁^t) + (U − P R)

    and every `refresh_every` steps P ← orth(U (Uᵀ P)), which turns P towards the
    leading singular vectors of U, and M is projected onto the new subspace.

    Memory, besides Keras's iteration and learning rate and one int32 per variable that
    counts skipped steps: d₁ + … + d_p float32 elements, and at rank r
    2·r·(m + n) bytes for an m × n matrix, 2·n for a vector of n. For a 2000 × 512
    kernel (r is 16): 10 048 + 80 384 bytes, 1.1% of Adam's 8 192 000. With `beta_1=0`
    only the former: 2512 elements at level 1, 138 at level 2, 48 at level 3 and 1 at
    level "inf".

    `ExtremeTensoring.algorithm_1` makes the paper's Algorithm 1 to the letter.

    Args:
        learning_rate: A float, a `keras.optimizers.schedules.LearningRateSchedule`,
            or a callable without arguments that returns the learning rate. Learning
            rates are on Adam's scale at every level (with `statistic="mean"`), except
            for embeddings; see `rate_scale`. Defaults to 0.002.
        beta_1: Decay in [0, 1) of a bias-corrected moving average of the update
            (momentum). 0 keeps no momentum. Defaults to 0.9.
        beta_2: Decay in [0, 1) of a bias-corrected moving average of the squared
            gradients; `None` accumulates them, as AdaGrad does, so that steps
            shrink by themselves. Defaults to 0.999.
        statistic: `"mean"` divides each slice's sum by its number of entries: with
            all |g| equal the step is then Adam's. `"sum"`, the paper's, works with the
            geometric combination only. Defaults to `"mean"`.
        epsilon: ε ≥ 0. In the rank-one combination it is added to the root of an
            entry's second moment, as in Adam, where 1e-7 is usual. In the geometric
            one it is the paper's, added to the product of p statistics: no gradient
            then counts as less than ε^(1/2p), which for 1e-8 is 0.01 at level 1 and 0.1
            at level 2, and smaller gradients train slowly; with `statistic="mean"` a
            warning says so. At 0 the update is an outer product, the fast path, and a
            slice whose sum is 0 gives an update of 0; above 0 a root is computed for
            every entry. Defaults to 0.
        combination: `"rank_one"` or `"geometric"`. The rank-one estimate is exact where
            second moments are an outer product over the modes, and its entries add up
            to those of the second moments; with two modes it equals Adafactor's. The
            geometric one is Algorithm 1's: each mode acts with the exponent −1/(2p),
            a blunter estimate, but (accumulating, with sums) one that is never below
            AdaGrad's, which the paper's regret bound needs. That does not hold for
            `"rank_one"`. Defaults to `"rank_one"`.

    Raises:
        ValueError: when constructed, if an argument is out of its range; when
            built, if an argument by path does not fit the variables or a variable is
            not floating-point; when state is loaded, if it has another index or
            another momentum; and as `nonfinite` says. No weight has been changed then.

    Range: slots contain sums of squares in float32. Gradients are exact to 1e-5 from
    |g| = 1e-18 up to about 1e19 · √((1 − β₂)/n), where n is the number of entries in
    a slice (accumulating, n is that number times the steps): 3e14 for a slice of a
    million entries at β₂ = 0.999. A step with larger squares is skipped; see
    `nonfinite`.

    Sparse gradients (`tf.IndexedSlices`, from embeddings on TensorFlow) give the same
    result as dense ones. With momentum, every entry moves at every step, as with Adam,
    and the step takes a dense pass. For large tables `momentum_rank={"embeddings": 0}`
    turns it off there, and the step costs time for the gradient's rows only.

    Example:

    ```python
    model.compile(optimizer=et_optimizer.ExtremeTensoring(), loss=loss)
    model.fit(dataset)
    print(et_optimizer.memory_report(model.optimizer))

    # Least memory: no momentum, and level 2 except for axes of tokens.
    et_optimizer.ExtremeTensoring(
        beta_1=0.0, level={"embeddings|logits": 1, ".*": 2}
    )
    ```

    Reference:
        - [Chen, Agarwal, Hazan, Zhang, Zhang, 2020](
          https://arxiv.org/abs/1902.04620), Extreme Tensoring for Low-Memory
          Preconditioning, Algorithm 1.
        - [Nguyen, Nguyen, 2024](https://arxiv.org/abs/2411.07120), for momentum in a
          subspace.
        - [Shazeer, Stern, 2018](https://arxiv.org/abs/1804.04235), for the rank-one
          combination of two modes.
    """

    rule = ExtremeTensoringRule

    learning_rate: InitVar[LearningRate] = field(default=0.002, kw_only=False)
    beta_1: float = 0.9
    beta_2: float | None = 0.999
    statistic: Literal["mean", "sum"] = "mean"
    epsilon: float = 0.0
    combination: Literal["rank_one", "geometric"] = "rank_one"
    update_bound: float | None = 3.0
    rate_scale: ByPath[RateScale] = "auto"

    @classmethod
    def check_arguments(cls, given: Mapping[str, Any]) -> None:
        """Raises `ValueError` for a bad value; see the base."""
        super().check_arguments(given)
        epsilon = given["epsilon"]
        is_geometric = given["combination"] == "geometric"
        if epsilon and is_geometric and given["statistic"] == "mean":
            warnings.warn(
                f"epsilon={epsilon!r} is Algorithm 1's, added to a product of p "
                "statistics: with combination='geometric' no gradient counts as less "
                f"than epsilon^(1/2p), for p = 4 {epsilon**0.125:.2g}, and smaller "
                "ones train slowly. Use epsilon=0, or combination='rank_one', whose "
                "epsilon is Adam's.",
                stacklevel=3,
            )

    @classmethod
    def algorithm_1(
        cls, learning_rate: LearningRate, level: ByPath[Level] = 2, **arguments: Any
    ) -> Self:
        """The paper's Algorithm 1: accumulated sums, ε = 1e-8, and no momentum.

        Args:
            learning_rate: As above. The slice sums grow with the size of a variable, so
                learning rates do not carry over from Adam.
            level: As above. Defaults to 2, the paper's ET2.
            **arguments: Further arguments of `ExtremeTensoring`.
        """
        algorithm_1: dict[str, Any] = {
            "beta_1": 0.0,
            "beta_2": None,
            "statistic": "sum",
            "epsilon": 1e-8,
            "combination": "geometric",
            "update_bound": None,
            "rate_scale": None,
        }
        return cls(learning_rate, level=level, **algorithm_1 | arguments)
