"""Subspace momentum in float64 NumPy (Nguyen, Nguyen, 2024, arXiv:2411.07120).

With the refresh of the library, a step of subspace iteration that carries the momentum
over, in place of the paper's singular vectors, and a ten-thousandth of the old basis in
the new one. A basis is compared by what it does: its
columns may have other signs, or be turned within their space.
"""

import numpy as np


class SubspaceMomentum:
    """Turns updates, matrices with no more rows than columns, into directions.

    Args:
        basis: The basis at the start, of shape (rows, r).
        decay: β₁.
        is_due: From a step, from 1, to whether the basis is refreshed at it.
        is_corrected: Whether for the start at 0.
    """

    def __init__(self, basis, decay, is_due, is_corrected=True):
        self.basis = np.asarray(basis, np.float64)
        self.decay, self.is_due, self.is_corrected = decay, is_due, is_corrected
        self.average, self.step = 0.0, 0

    def direction(self, update):
        """P M + (U − P Pᵀ U) after taking in the update U."""
        update = np.asarray(update, np.float64)
        self.step += 1
        if self.is_due(self.step):
            turned = update @ (update.T @ self.basis)
            turned = turned / np.linalg.norm(turned) + 1e-4 * self.basis
            new, _ = np.linalg.qr(turned)
            self.average = new.T @ self.basis @ self.average if self.step > 1 else 0.0
            self.basis = new
        inside = self.basis.T @ update
        self.average = self.decay * self.average + (1 - self.decay) * inside
        weight = 1 - self.decay**self.step if self.is_corrected else 1.0
        return self.basis @ (self.average / weight) + update - self.basis @ inside
