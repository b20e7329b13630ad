"""Extreme tensoring in float64 NumPy, entry by entry as the paper writes it.

Chen et al., 2020, arXiv:1902.04620, Algorithm 1. Independent of the library: it works
on entries and slices, not on axes, marginals or matrices.
"""

import numpy as np


def coordinates(lengths_and_modes):
    """For every mode, the slice that contains each entry of the variable.

    Args:
        lengths_and_modes: For each axis of the view its length and the sizes of
            the modes it is split into, in row-major order.

    Returns:
        `(sizes, slices)`: lists with one element per mode: its size, and an integer
        array with the slice of each entry.
    """
    lengths = [length for length, _ in lengths_and_modes]
    count = int(np.prod(lengths))
    positions = np.unravel_index(np.arange(count), lengths) if lengths else ()
    sizes, slices = [], []
    for position, (_, modes) in zip(positions, lengths_and_modes):
        sizes += list(modes)
        slices += list(np.unravel_index(position, modes)) if modes else []
    if not sizes:
        return [1], [np.zeros(count, int)]
    return sizes, slices


def updates(gradients, lengths_and_modes, *, beta_2=None, mean=False, epsilon=0.0):
    """The update δ[I] g[I] of every step.

    Args:
        gradients: Sequence of arrays, one per step.
        lengths_and_modes: As for `coordinates`.
        beta_2: Decay of the bias-corrected moving average; `None` sums.
        mean: Whether slice means replace slice sums.
        epsilon: The paper's ε.

    Yields:
        An array per step, of the gradient's shape.
    """
    sizes, slices = coordinates(lengths_and_modes)
    order = len(sizes)
    entries = [np.bincount(at, minlength=n) for n, at in zip(sizes, slices)]
    sums = [np.zeros(n) for n in sizes]
    for step, gradient in enumerate(gradients, start=1):
        g = np.asarray(gradient, np.float64).ravel()
        log_product = np.zeros(g.size)
        for mode in range(order):
            added = np.bincount(slices[mode], weights=g**2, minlength=sizes[mode])
            if beta_2 is None:
                sums[mode] = sums[mode] + added
                statistic = sums[mode]
            else:
                sums[mode] = beta_2 * sums[mode] + (1 - beta_2) * added
                statistic = sums[mode] / (1 - beta_2**step)
            if mean:
                statistic = statistic / np.maximum(entries[mode], 1)
            # In logarithms, because the product of many modes overflows even float64.
            with np.errstate(divide="ignore"):
                log_product += np.log(statistic)[slices[mode]]
        with np.errstate(divide="ignore"):
            log_delta = -np.logaddexp(np.log(epsilon), log_product) / (2 * order)
        # An entry of an empty slice has g = 0, and an infinite δ when ε = 0.
        delta = np.exp(np.where(g == 0, 0.0, log_delta))
        yield (delta * g).reshape(np.shape(gradient))


def adagrad(gradients):
    """AdaGrad's accumulator Ĥ_T = (Σ_t g_t²)^(1/2), entry by entry."""
    squares = np.asarray([np.asarray(g, np.float64) ** 2 for g in gradients])
    return np.sqrt(squares.sum(axis=0))
