"""Online algorithms at all learning rates of a grid: OGD, AdaGrad and sketches.

The baselines of S-AdaGrad in the convex study of the Sketchy paper, in float64 NumPy.

Reference:
    [Feinberg, Chen, Sun, Anil, Hazan, 2023](https://arxiv.org/abs/2302.03764), Sketchy:
    Memory-efficient Adaptive Regularization with Frequent Directions, the appendix.
"""

import keras
import numpy as np
from keras import ops

from et_optimizer import frequent_directions

# Ada-FD and FD-SON divide by α outside their sketch, so that it must be positive. For
# RFD-SON it can also be 0.
ALPHAS = (0.01, 0.1, 1.0, 10.0, 100.0)
# Relative to the largest eigenvalue, smaller ones are rounding errors of float64.
NOISE = 1e-24


class Algorithm:
    """An online algorithm, run at all pairs of a learning rate and an α at once.

    Args:
        rates: Float64 array of shape (n,), the learning rates η.
        alphas: Array of shape (n,), the α of each pair; None for algorithms without α.
        size: The length d of a gradient.
        rank: The rank ℓ of the sketch, for algorithms with a sketch.

    Attributes:
        ALPHAS: The values of α to choose from, ascending; (None,) if there is no α.
    """

    ALPHAS = (None,)

    def __init__(self, rates, alphas, size, rank):
        del size, rank
        self.rates, self.alphas = rates, alphas

    def __call__(self, gradients, t):
        """One round.

        Args:
            gradients: Float64 array of shape (n, d), the gradient g of each pair.
            t: The round, from 1.

        Returns:
            A float64 array of shape (n, d), the updates to subtract from the weights.
        """
        raise NotImplementedError

    @staticmethod
    def numbers_held(size, rank):
        """The number of state elements of one pair, without the pair itself."""
        raise NotImplementedError


class OGD(Algorithm):
    """Online gradient descent: η g / √t."""

    def __call__(self, gradients, t):
        return self.rates[:, None] * gradients / np.sqrt(t)

    @staticmethod
    def numbers_held(size, rank):
        return 1  # t


class AdaGrad(Algorithm):
    """Diagonal AdaGrad: h ← h + g²;  η g / √h, and 0 for 0 / 0."""

    def __init__(self, rates, alphas, size, rank):
        super().__init__(rates, alphas, size, rank)
        self._squares = np.zeros((len(rates), size))

    def __call__(self, gradients, t):
        self._squares += gradients**2
        return self.rates[:, None] * gradients * inverse_or_0(np.sqrt(self._squares))

    @staticmethod
    def numbers_held(size, rank):
        return size


class SAdaGrad(Algorithm):
    """The library's S-AdaGrad, in float32: η (Ḡ + ρI)^(−1/2) g.

    The algorithm of `et_optimizer.SketchyAdagrad` for a batch of learning rates.
    """

    def __init__(self, rates, alphas, size, rank):
        super().__init__(rates, alphas, size, rank)
        self._sketch = frequent_directions.zeros(size, rank, batch=rates.shape)
        self._round = _compiled(_sketchy_round)

    def __call__(self, gradients, t):
        columns = ops.convert_to_tensor(gradients[..., None], "float32")
        self._sketch, directions = self._round(self._sketch, columns)
        return self.rates[:, None] * ops.convert_to_numpy(directions)[..., 0]

    @staticmethod
    def numbers_held(size, rank):
        return (size + 1) * rank + 1


def _sketchy_round(sketch, columns):
    sketch = frequent_directions.update(sketch, columns)
    return sketch, frequent_directions.apply_inverse_root(sketch, columns, 0.5)


def _compiled(function):
    """Compiles a function of tensors, if the backend can."""
    if keras.backend.backend() == "tensorflow":
        import tensorflow as tf

        return tf.function(function, autograph=False)
    if keras.backend.backend() == "jax":
        import jax

        return jax.jit(function)
    return function


class AdaFD(Algorithm):
    """Ada-FD: η (αI + Ḡ^(1/2))⁻¹ g, with Ḡ a sketch of Σ g gᵀ.

    Reference:
        [Wan, Wei, Zhang, 2018](https://www.ijcai.org/proceedings/2018/381), Efficient
        Adaptive Online Learning via Frequent Directions.
    """

    ALPHAS = ALPHAS

    def __init__(self, rates, alphas, size, rank):
        super().__init__(rates, alphas, size, rank)
        self._sketch = NumpySketch(len(rates), size, rank)

    def __call__(self, gradients, t):
        self._sketch.update(gradients)
        within = 1 / (self.alphas[:, None] + np.sqrt(self._sketch.values))
        scaled = self._sketch.scale(gradients, within, 1 / self.alphas)
        return self.rates[:, None] * scaled

    @staticmethod
    def numbers_held(size, rank):
        return (size + 1) * rank


class FDSON(Algorithm):
    """FD-SON, a sketched online Newton step: (αI + Ḡ)⁻¹ g.

    Ḡ is a sketch of Σ g gᵀ / (η √t). The paper weights g gᵀ by η_t ∝ 1/√t for losses
    that are convex but not strongly convex. The constant is 1/η here, so that a larger
    learning rate makes longer steps, as in the public code of Sketchy's authors.
    Outside the sketch the step is g / α.

    Reference:
        [Luo, Agarwal, Cesa-Bianchi, Langford, 2016](https://arxiv.org/abs/1602.02202),
        Efficient Second Order Online Learning by Sketching;
        [Sketchy's code](https://github.com/google-research/precondition),
        precondition/oco/algorithms.py.
    """

    ALPHAS = ALPHAS

    def __init__(self, rates, alphas, size, rank):
        super().__init__(rates, alphas, size, rank)
        self._sketch = NumpySketch(len(rates), size, rank)

    def __call__(self, gradients, t):
        self._sketch.update(gradients / np.sqrt(self.rates * np.sqrt(t))[:, None])
        within = 1 / (self.alphas[:, None] + self._sketch.values)
        return self._sketch.scale(gradients, within, 1 / self.alphas)

    @staticmethod
    def numbers_held(size, rank):
        return (size + 1) * rank + 1  # and t


class RFDSON(Algorithm):
    """RFD-SON: α ← α + ρ/2;  (αI + Ḡ)⁺ g, with the pseudo-inverse, from a given α₀.

    Ḡ is a sketch of Σ g gᵀ / (η t), and ρ is its shrinkage in a round. The weights
    1 / (η t) are those of the public code of Sketchy's authors. With α₀ = 0 the step is
    η times that at learning rate 1.

    Reference:
        [Luo, Chen, Zhang, Li, Zhang, 2019](https://arxiv.org/abs/1705.05067), Robust
        Frequent Directions with Application in Online Learning;
        [Sketchy's code](https://github.com/google-research/precondition),
        precondition/oco/algorithms.py.
    """

    ALPHAS = (0.0, *ALPHAS)

    def __init__(self, rates, alphas, size, rank):
        super().__init__(rates, alphas, size, rank)
        self._sketch = NumpySketch(len(rates), size, rank)
        self._alpha = alphas.copy()

    def __call__(self, gradients, t):
        shrinkage = self._sketch.update(gradients / np.sqrt(self.rates * t)[:, None])
        self._alpha += shrinkage / 2
        within = inverse_or_0(self._alpha[:, None] + self._sketch.values)
        return self._sketch.scale(gradients, within, inverse_or_0(self._alpha))

    @staticmethod
    def numbers_held(size, rank):
        return (size + 1) * rank + 2  # α and t


ALGORITHMS = {
    "OGD": OGD,
    "AdaGrad": AdaGrad,
    "S-AdaGrad": SAdaGrad,
    "Ada-FD": AdaFD,
    "FD-SON": FDSON,
    "RFD-SON": RFDSON,
}


class NumpySketch:
    """A batch of sketches in float64 NumPy, for the baselines.

    Attributes:
        vectors: Orthonormal eigenvectors as rows, of shape (batch, rank, size).
        values: Their eigenvalues, of shape (batch, rank), descending; the last is 0.
    """

    def __init__(self, batch, size, rank):
        self.vectors = np.zeros((batch, rank, size))
        self.values = np.zeros((batch, rank))

    def update(self, columns):
        """Adds c cᵀ to every covariance and reduces it to the rank.

        Args:
            columns: Array of shape (batch, size), a column c for each sketch.

        Returns:
            An array of shape (batch,): ρ, by which the eigenvalues were reduced.
        """
        factor = self.vectors * np.sqrt(self.values)[..., None]
        factor[:, -1] = columns  # Its last row was 0.
        _, roots, self.vectors = np.linalg.svd(factor, full_matrices=False)
        values = np.where(roots**2 > NOISE * roots[:, :1] ** 2, roots**2, 0)
        shrinkage = values[:, -1]
        self.values = values - shrinkage[:, None]
        return shrinkage

    def scale(self, columns, within, outside):
        """Scales columns within and outside the span of the eigenvectors.

        Args:
            columns: Array of shape (batch, size).
            within: Array of shape (batch, rank), a factor for each eigenvector.
            outside: Array of shape (batch,), the factor of the complement.

        Returns:
            An array of shape (batch, size).
        """
        projected = np.matmul(self.vectors, columns[..., None])
        inside = np.matmul(
            np.swapaxes(self.vectors, 1, 2),
            (within - outside[:, None])[..., None] * projected,
        )
        return inside[..., 0] + outside[:, None] * columns


def inverse_or_0(numbers):
    """1 / numbers, and 0 for 0."""
    return np.where(numbers > 0, 1 / np.where(numbers > 0, numbers, 1), 0)
