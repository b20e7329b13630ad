"""Subspace momentum in float64 NumPy (Nguyen, Nguyen, 2024, arXiv:2411.07120).

The basis is updated as in the library: by a step of subspace iteration, to which a
ten-thousandth of the old basis is added, instead of by the paper's singular vectors.
The momentum is projected onto the new basis. Compare bases by their projections: signs
of columns, and rotations within the subspace, make no difference.
"""

import numpy as np


class SubspaceMomentum:
    """Momentum of updates, matrices with no more rows than columns.

    Args:
        basis: The basis at the start, of shape (rows, r).
        decay: β₁.
        is_due: A function from a step, counted from 1, to whether it updates the basis.
        is_corrected: Whether the average is corrected for its start at 0.
    """

    def __init__(self, basis, decay, is_due, is_corrected=True):
        self.basis = np.asarray(basis, np.float64)
        self.decay, self.is_due, self.is_corrected = decay, is_due, is_corrected
        self.average, self.step = 0.0, 0

    def direction(self, update):
        """P M + (U − P Pᵀ U), where M includes the update U."""
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
