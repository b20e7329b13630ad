"""SM3 in float64 NumPy, entry by entry and set by set as the paper writes it.

Anil et al., 2019, arXiv:1901.11150, Algorithms SM3-I and SM3-II. Independent of the
library: it works on entries and the sets that cover them, not on rows, columns or axes.
"""

import numpy as np

from tests.reference.extreme_tensoring import coordinates


def nus(gradients, lengths_and_modes, variant, beta_2=None):
    """ν of every step.

    Args:
        gradients: Sequence of arrays, one per step.
        lengths_and_modes: As for `coordinates`; the cover is the slices of all modes.
        variant: `"I"` or `"II"`.
        beta_2: Decay of the moving average; `None` sums.

    Yields:
        `(nu, accumulators)` per step: an array of the gradient's shape, and a list of
        vectors, with one element per set.
    """
    sizes, slices = coordinates(lengths_and_modes)
    old, new = (1.0, 1.0) if beta_2 is None else (beta_2, 1.0 - beta_2)
    mu = [np.zeros(size) for size in sizes]
    for gradient in gradients:
        squares = np.asarray(gradient, np.float64).ravel() ** 2
        if variant == "I":
            for r, at in enumerate(slices):
                largest = np.zeros(sizes[r])
                np.maximum.at(largest, at, squares)
                mu[r] = old * mu[r] + new * largest
            nu = np.min([mu[r][at] for r, at in enumerate(slices)], axis=0)
        else:
            nu = np.min([mu[r][at] for r, at in enumerate(slices)], axis=0)
            nu = old * nu + new * squares
            mu = [np.zeros(size) for size in sizes]
            for r, at in enumerate(slices):
                np.maximum.at(mu[r], at, nu)
        yield nu.reshape(np.shape(gradient)), [m.copy() for m in mu]


def updates(gradients, lengths_and_modes, variant, beta_2=None, epsilon=0.0):
    """g / √(ν + ε) of every step, where 0/0 = 0; arguments as for `nus`."""
    for gradient, (nu, _) in zip(
        gradients, nus(gradients, lengths_and_modes, variant, beta_2)
    ):
        g = np.asarray(gradient, np.float64)
        yield np.where(g == 0, 0.0, g / np.sqrt(np.where(g == 0, 1.0, nu + epsilon)))
