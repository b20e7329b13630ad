"""Extreme tensoring (Chen et al., 2020, arXiv:1902.04620, Algorithm 1)."""

import dataclasses
import itertools
import math

import numpy as np
from keras import ops

from et_optimizer import checks
from et_optimizer.optimizers import rank_one
from et_optimizer.optimizers.rule import (
    Preconditioner,
    sum_over,
    total_weight,
    weight_of_all,
)

COMBINATIONS = ("rank_one", "geometric")


@dataclasses.dataclass(frozen=True)
class ExtremeTensoring(Preconditioner):
    """Scales every entry by the product of its slices' statistics.

    With S_i[j] the discounted sum of g² over slice j of mode i, over p modes:

        S_i[j] ← β₂ S_i[j] + Σ_{I: I_i = j} g[I]²
        geometric:  update[I] = g[I] · (ε + Π_i M_i[I_i])^(−1/(2p))
        rank-one:   update[I] = g[I] / (√(m Π_i M_i[I_i] / m) + ε)

    M_i is S_i as `statistic` and `beta_2` have it: divided by Σ_{s<t} β₂^s, which
    makes it a bias-corrected moving average, and for "mean" by the number of
    entries in the slice. m is the mean of all entries. The slots hold S itself, so
    that its range is that of g²: float32 keeps |g| from about 1e-19 to 1e19 ·
    √((1 − β₂) / entries in the slice).

    Args:
        beta_2: Decay of the moving average in [0, 1), or `None` to accumulate.
        statistic: `"mean"` or `"sum"`; the rank-one combination is of means.
        epsilon: ε ≥ 0.
        combination: `"rank_one"` or `"geometric"`.
    """

    beta_2: float | None
    statistic: str
    epsilon: float
    combination: str

    def __post_init__(self):
        checks.decay("beta_2", self.beta_2, or_none=True)
        checks.choice("statistic", self.statistic, ("mean", "sum"))
        checks.epsilon("epsilon", self.epsilon)
        checks.choice("combination", self.combination, COMBINATIONS)
        if self.combination == "rank_one" and self.statistic == "sum":
            raise ValueError(
                "The rank-one combination estimates the second moment of single "
                "entries, from means; received statistic='sum' with "
                "combination='rank_one'. Use statistic='mean', or "
                "combination='geometric' for the paper's Algorithm 1."
            )

    def __call__(self, gradient, slots, step):
        """One step; see `Preconditioner`."""
        decay = 1.0 if self.beta_2 is None else self.beta_2
        sums = gradient.slice_sums()
        slots = [decay * slot + total for slot, total in zip(slots, sums)]
        weight = total_weight(self.beta_2, step)
        # One mode is its own estimate, whatever combines several.
        is_rank_one = gradient.index.order > 1 or self.epsilon > 0.0
        if self.combination == "rank_one" and is_rank_one:
            return self._rank_one(gradient, slots, weight), slots
        totals = gradient.at_slices(slots)
        most, shares = self._entries(gradient.index)
        shares = gradient.at_slices(shares)
        if self.epsilon == 0.0:
            return self._scale(gradient, totals, most, shares, weight), slots
        return self._scale_with_epsilon(gradient, totals, most, shares, weight), slots

    def sizes(self, gradient, slots, steps):
        """Means over all entries, from sums over slices; see `Preconditioner`."""
        before = ops.sum(slots[0] / gradient.index.size)
        return before / weight_of_all(self.beta_2, steps), gradient.mean_square()

    def _rank_one(self, gradient, slots, weight):
        index = gradient.index
        # Of a slice that lies wholly in the padding 0 is the mean of nothing.
        entries = [
            n if isinstance(n, int) else ops.convert_to_tensor(np.maximum(n, 1.0))
            for n in index.entries_per_slice
        ]
        means = [slot / ops.cast(n, "float32") for slot, n in zip(slots, entries)]
        # Every mode has all entries in it.
        average = sum_over(slots, index.size) / len(slots)
        if self.epsilon == 0.0:
            roots = rank_one.inverse_roots(means, average)
            return gradient.scaled_by(gradient.at_slices(roots), ops.sqrt(weight))

        def scaled(matrix, row_factor, column_factor):
            estimate = row_factor * column_factor
            return matrix / (ops.sqrt(estimate / weight) + self.epsilon)

        ratios = gradient.at_slices(rank_one.ratios(means, average))
        # None is infinite: times one of 0 it would be no number.
        factors = [ops.minimum(f, checks.LARGEST) for f in gradient.factors(ratios)]
        return gradient.elementwise(scaled, factors)

    def _scale(self, gradient, totals, most, shares, weight):
        # Each mode's root is taken before anything is multiplied: the product
        # of the statistics themselves leaves float32 easily. Of an empty slice nothing
        # is scaled: an averaged gradient may have a trace of others in it.
        power = 1.0 / len(totals)
        empty = [total == 0 for total in totals]
        totals = [ops.maximum(total, checks.SMALLEST_FLOAT32) for total in totals]
        roots = [
            root if share is None else root * ops.power(share, power)
            for root, share in zip(_powers(totals, -power), shares)
        ]
        roots = [ops.where(no, 0.0, root) for no, root in zip(empty, roots)]
        constant = math.prod(n**power for n in most)
        return gradient.scaled_by_roots(roots, ops.sqrt(weight * constant))

    def _scale_with_epsilon(self, gradient, totals, most, shares, weight):
        # In terms of the geometric mean P = Π_i M_i^(1/p) and e = ε^(1/p), both
        # within range, (ε + P^p)^(−1/2p) is computed with the larger one taken
        # out of the bracket.
        order = len(totals)
        means = [
            total / (weight * n) if share is None else total / (weight * n * share)
            for total, n, share in zip(totals, most, shares)
        ]
        floor = self.epsilon ** (1.0 / order)

        def scaled(matrix, row_factor, column_factor):
            product = row_factor * column_factor
            larger, smaller = ops.maximum(product, floor), ops.minimum(product, floor)
            bracket = 1.0 + ops.power(smaller / larger, float(order))
            return matrix * ops.rsqrt(larger) * ops.power(bracket, -0.5 / order)

        factors = gradient.factors(_powers(means, 1.0 / order))
        return gradient.elementwise(scaled, factors)

    def _entries(self, index):
        """How many entries each slice's sum is divided by.

        Returns:
            `(most, shares)`: for each mode the number in its fullest slice, and
            each slice's share of that, at most 1, or `None` where all are equal.
        """
        entries = index.entries_per_slice
        if self.statistic == "sum":
            return [1.0] * len(entries), [None] * len(entries)
        most = [float(np.max(n)) for n in entries]
        # A slice that lies wholly in the padding never receives gradient.
        shares = [
            None
            if isinstance(n, int)
            else ops.convert_to_tensor(np.maximum(n, 1) / np.max(n), "float32")
            for n in entries
        ]
        return most, shares


def _powers(vectors, exponent):
    """Raises all vectors to a power.

    In one operation for all modes of a variable, not one a mode: at level 3 that
    takes a quarter off the number of kernels XLA has to compile.
    """
    sizes = [vector.shape[0] if len(vector.shape) else None for vector in vectors]
    # A scalar, or rows whose number is unknown while tracing, cannot be joined.
    if len(vectors) == 1 or None in sizes:
        return [ops.power(vector, exponent) for vector in vectors]
    ends = list(itertools.accumulate(sizes[:-1]))
    return ops.split(ops.power(ops.concatenate(vectors), exponent), ends)
