"""Muon for the kernel of a hidden layer, in float64 NumPy.

With the rank-one update u of extreme tensoring at level 1, clipped to [−bound, bound],
for the kernel as a matrix:

    M ← β₁ M + (1 − β₁) u,   N = β₁ M + (1 − β₁) u
    x ← x − η · clip(0.2 √max(m, n) · polar factor of N, −bound, bound)
"""

import math

import numpy as np

from tests.reference import rank_one

# a, b, c of the two steps of X ← a X + b (X Xᵀ) X + c (X Xᵀ)² X.
STEPS = ((7.3625, -20.7434, 15.1606), (2.9175, -2.1824, 0.4755))


def exact(matrix):
    """The polar factor U Vᵀ of U Σ Vᵀ."""
    left, _, right = np.linalg.svd(matrix, full_matrices=False)
    return left @ right


def newton_schulz(matrix):
    """Two steps of Newton–Schulz iteration, from X / ‖(X Xᵀ)²‖^(1/4)."""
    gram = matrix @ matrix.T
    found = matrix / np.sqrt(np.sqrt(np.linalg.norm(gram @ gram)))
    for a, b, c in STEPS:
        gram = found @ found.T
        found = a * found + b * gram @ found + c * gram @ gram @ found
    return found


def changes(
    gradients,
    lengths_and_modes,
    rows,
    *,
    beta_1,
    beta_2,
    update_bound=math.inf,
    factor=newton_schulz,
):
    """What every step subtracts from the kernel, over the learning rate.

    Args:
        gradients: Sequence of arrays, one per step.
        lengths_and_modes: Of the kernel at level 1; see `extreme_tensoring`.
        rows: How many rows the kernel has as a matrix.
        beta_1, beta_2: Decays of momentum and statistics.
        update_bound: The largest absolute value of an entry, before and after.
        factor: `newton_schulz` or `exact`.

    Yields:
        An array per step, of the gradient's shape.
    """
    average = 0.0
    for update in rank_one.updates(gradients, lengths_and_modes, beta_2=beta_2):
        update = np.clip(update, -update_bound, update_bound)
        average = beta_1 * average + (1 - beta_1) * update
        ahead = beta_1 * average + (1 - beta_1) * update
        matrix = ahead.reshape(rows, -1)
        change = 0.2 * math.sqrt(max(matrix.shape)) * factor(matrix)
        yield np.clip(change, -update_bound, update_bound).reshape(update.shape)
