"""Adafactor in float64 NumPy, matrix by matrix.

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
    learning_rates,
    *,
    decay=-0.8,
    epsilon_1=1e-30,
    epsilon_2=1e-3,
    clip=1.0,
    scale_by_parameter=True,
    cap=True,
    beta_1=0.0,
    min_side=0,
):
    """The variable after every step.

    Args:
        start: Array, the variable before the first step.
        gradients: Sequence of arrays, one per step.
        learning_rates: Sequence of numbers, one per step.
        decay, epsilon_1, epsilon_2, clip: The paper's; `clip=None` turns clipping off.
        scale_by_parameter: Whether the learning rate is multiplied by max(ε₂, RMS(x)).
        cap: Whether the learning rate is at most 1/√t.
        beta_1: Decay of the average of steps; 0 turns it off.
        min_side: Matrices with a shorter side keep V itself.

    Yields:
        The variable, float64.
    """
    x = np.array(start, np.float64)
    factored = x.ndim >= 2 and min(x.shape[-2:]) >= min_side
    row, column, v = {}, {}, np.zeros(x.shape)
    average = np.zeros(x.shape)
    for t, (gradient, learning_rate) in enumerate(
        zip(gradients, learning_rates), start=1
    ):
        g = np.asarray(gradient, np.float64)
        beta_2 = 1.0 - t**decay
        squares = g**2 + epsilon_1
        if factored:
            for index in itertools.product(*map(range, x.shape[:-2])):
                m = squares[index]
                old_row = row.get(index, np.zeros(m.shape[0]))
                old_column = column.get(index, np.zeros(m.shape[1]))
                row[index] = beta_2 * old_row + (1 - beta_2) * m.mean(axis=1)
                column[index] = beta_2 * old_column + (1 - beta_2) * m.mean(axis=0)
                product = np.outer(row[index], column[index])
                v[index] = product / row[index].mean()
        else:
            v = beta_2 * v + (1 - beta_2) * squares
        u = g / np.sqrt(v)
        if clip is not None:
            u = u / max(1.0, rms(u) / clip)
        if cap:
            learning_rate = min(learning_rate, 1.0 / np.sqrt(t))
        if scale_by_parameter:
            learning_rate = learning_rate * max(epsilon_2, rms(x))
        step = learning_rate * u
        if beta_1:
            average = beta_1 * average + (1 - beta_1) * step
            step = average
        x = x - step
        yield x
