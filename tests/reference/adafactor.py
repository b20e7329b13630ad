"""Adafactor in float64 NumPy, one matrix after the other.

Shazeer, Stern, 2018, arXiv:1804.04235, Algorithms 4 to 6, with Tensor2Tensor's options.
Independent of the library: plain loops over matrices and rows.
"""

import itertools

import numpy as np


def rms(x):
    return np.sqrt(np.mean(np.square(x)))


def weights(
    start,
    gradients,
    rates,
    *,
    decay=-0.8,
    epsilon_1=1e-30,
    epsilon_2=1e-3,
    clip=1.0,
    scale_by_parameter=True,
    cap=True,
    beta_1=0.0,
    least_to_factor=0,
):
    """The variable after every step.

    Args:
        start: Array, the variable before the first step.
        gradients: Sequence of arrays, one a step.
        rates: Sequence of learning rates, one a step.
        decay, epsilon_1, epsilon_2, clip: The paper's; `clip=None` turns it off.
        scale_by_parameter: Whether the rate is multiplied by max(ε₂, RMS(x)).
        cap: Whether the rate is at most 1/√t.
        beta_1: Decay of the average of steps; 0 keeps none.
        least_to_factor: Matrices with a shorter side keep V itself.

    Yields:
        The variable, float64.
    """
    x = np.array(start, np.float64)
    factored = x.ndim >= 2 and min(x.shape[-2:]) >= least_to_factor
    row, column, v = {}, {}, np.zeros(x.shape)
    average = np.zeros(x.shape)
    for t, (gradient, rate) in enumerate(zip(gradients, rates), start=1):
        g = np.asarray(gradient, np.float64)
        beta_2 = 1.0 - t**decay
        squares = g**2 + epsilon_1
        if factored:
            for place in itertools.product(*map(range, x.shape[:-2])):
                m = squares[place]
                old_row = row.get(place, np.zeros(m.shape[0]))
                old_column = column.get(place, np.zeros(m.shape[1]))
                row[place] = beta_2 * old_row + (1 - beta_2) * m.mean(axis=1)
                column[place] = beta_2 * old_column + (1 - beta_2) * m.mean(axis=0)
                product = np.outer(row[place], column[place])
                v[place] = product / row[place].mean()
        else:
            v = beta_2 * v + (1 - beta_2) * squares
        u = g / np.sqrt(v)
        if clip is not None:
            u = u / max(1.0, rms(u) / clip)
        if cap:
            rate = min(rate, 1.0 / np.sqrt(t))
        if scale_by_parameter:
            rate = rate * max(epsilon_2, rms(x))
        step = rate * u
        if beta_1:
            average = beta_1 * average + (1 - beta_1) * step
            step = average
        x = x - step
        yield x
