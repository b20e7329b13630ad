"""The rank-one combination in float64 NumPy, entry by entry.

v̂[I] = m · Π_i (M_i[I_i] / m), M_i[j] the mean of v over slice j of mode i and m the
mean over all entries: the product of the marginals of the independence model
(Ghalamkari, Sugiyama, 2021, arXiv:2103.02898). Independent of the library: it works on
entries and slices.
"""

import numpy as np

from tests.reference.extreme_tensoring import coordinates


def estimate(second_moments, lengths_and_modes):
    """log v̂ of every entry, flat; −∞ where a slice has no second moment.

    Args:
        second_moments: Array of numbers ≥ 0, v.
        lengths_and_modes: As for `coordinates`.
    """
    sizes, slices = coordinates(lengths_and_modes)
    flat = np.asarray(second_moments, np.float64).ravel()
    with np.errstate(divide="ignore", invalid="ignore"):
        log_mean = np.log(flat.mean())
        found = np.full(flat.size, log_mean)
        for size, at in zip(sizes, slices):
            entries = np.bincount(at, minlength=size)
            sums = np.bincount(at, weights=flat, minlength=size)
            found += (np.log(sums / np.maximum(entries, 1)) - log_mean)[at]
    return found


def updates(gradients, lengths_and_modes, *, beta_2=None, epsilon=0.0):
    """The update g / (√v̂ + ε) of every step.

    Args:
        gradients: Sequence of arrays, one per step.
        lengths_and_modes: As for `coordinates`.
        beta_2: Decay of the bias-corrected moving average; `None` sums.
        epsilon: ε.

    Yields:
        An array per step, of the gradient's shape.
    """
    moments = 0.0
    for step, gradient in enumerate(gradients, start=1):
        g = np.asarray(gradient, np.float64).ravel()
        if beta_2 is None:
            moments = v = moments + g**2
        else:
            moments = beta_2 * moments + (1 - beta_2) * g**2
            v = moments / (1 - beta_2**step)
        log_root = np.where(g == 0, 0.0, estimate(v, lengths_and_modes) / 2)
        yield (g / (np.exp(log_root) + epsilon)).reshape(np.shape(gradient))
