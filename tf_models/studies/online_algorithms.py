"""Online algorithms at all rates of a grid at once: descent, AdaGrad, and sketches.

The rivals of S-AdaGrad in the convex study of the Sketchy paper, in NumPy and float64.

Reference:
    [Feinberg, Chen, Sun, Anil, Hazan, 2023](https://arxiv.org/abs/2302.03764), Sketchy:
    Memory-efficient Adaptive Regularization with Frequent Directions, the appendix.
"""

import keras
import numpy as np
from keras import ops

from et_optimizer import frequent_directions

# Ada-FD and FD-SON divide by α outside their sketch and cannot do without one. RFD-SON
# can, and has 0 to choose from as well.
ALPHAS = (0.01, 0.1, 1.0, 10.0, 100.0)
# Eigenvalues below this share of the largest are float64's rounding, and taken for 0.
NOISE = 1e-24


class Algorithm:
    """What turns gradients into updates, at all pairs of a rate and an α at once.

    Args:
        rates: Float64 array of shape (n,), the rates η.
        alphas: Array of shape (n,), the α that each of them goes with: numbers of the
            algorithms that have one, and None of the others.
        size: The length d of a gradient.
        rank: The rank ℓ of the sketch, of the algorithms that have one.

    Attributes:
        ALPHAS: The α to choose from, ascending; (None,) where there is none.
    """

    ALPHAS = (None,)

    def __init__(self, rates, alphas, size, rank):
        del size, rank
        self.rates, self.alphas = rates, alphas

    def __call__(self, gradients, t):
        """One round.

        Args:
            gradients: Float64 array of shape (n, d), the gradient g at every pair.
            t: The round, 1, 2, 3, …

        Returns:
            A float64 array of shape (n, d), to be subtracted from the weights.
        """
        raise NotImplementedError

    @staticmethod
    def numbers_held(size, rank):
        """How many numbers are kept between rounds for one pair, the pair aside."""
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

    It is what `et_optimizer.SketchyAdagrad` does, for a batch of rates.
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
    """A function of tensors as a program, where the backend has programs."""
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
        self._sketch.take_in(gradients)
        within = 1 / (self.alphas[:, None] + np.sqrt(self._sketch.values))
        scaled = self._sketch.scale(gradients, within, 1 / self.alphas)
        return self.rates[:, None] * scaled

    @staticmethod
    def numbers_held(size, rank):
        return (size + 1) * rank


class FDSON(Algorithm):
    """FD-SON, a sketched online Newton step: (αI + Ḡ)⁻¹ g.

    Ḡ is a sketch of Σ g gᵀ / (η √t). The paper weights g gᵀ by η_t ∝ 1/√t where losses
    are no more than convex; its constant of proportion is 1/η here, so that a larger
    rate makes longer steps, as elsewhere and as in the public code of Sketchy's
    authors. Outside the sketch the step is g / α.

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
        self._sketch.take_in(gradients / np.sqrt(self.rates * np.sqrt(t))[:, None])
        within = 1 / (self.alphas[:, None] + self._sketch.values)
        return self._sketch.scale(gradients, within, 1 / self.alphas)

    @staticmethod
    def numbers_held(size, rank):
        return (size + 1) * rank + 1  # and t


class RFDSON(Algorithm):
    """RFD-SON: α ← α + ρ/2;  (αI + Ḡ)⁺ g, with the pseudo-inverse, from a given α₀.

    Ḡ is a sketch of Σ g gᵀ / (η t), from which a round takes ρ; the weights 1 / (η t)
    are those of the public code of Sketchy's authors. With α₀ = 0 the step is η times
    that of rate 1.

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
        shrinkage = self._sketch.take_in(gradients / np.sqrt(self.rates * t)[:, None])
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
    """A batch of sketches in NumPy and float64, for the rivals of the library.

    Attributes:
        vectors: Orthonormal eigenvectors as rows, of shape (batch, rank, size).
        values: Their eigenvalues, of shape (batch, rank), descending; the last is 0.
    """

    def __init__(self, batch, size, rank):
        self.vectors = np.zeros((batch, rank, size))
        self.values = np.zeros((batch, rank))

    def take_in(self, columns):
        """Adds c cᵀ to every covariance and shrinks it to the rank again.

        Args:
            columns: Array of shape (batch, size), a column c for every sketch.

        Returns:
            An array of shape (batch,): the ρ that the eigenvalues were shrunk by.
        """
        factor = self.vectors * np.sqrt(self.values)[..., None]
        factor[:, -1] = columns  # Its last row was 0.
        _, roots, self.vectors = np.linalg.svd(factor, full_matrices=False)
        values = np.where(roots**2 > NOISE * roots[:, :1] ** 2, roots**2, 0)
        shrinkage = values[:, -1]
        self.values = values - shrinkage[:, None]
        return shrinkage

    def scale(self, columns, within, outside):
        """Multiplies columns in the eigenvectors' span, and what they have outside it.

        Args:
            columns: Array of shape (batch, size).
            within: Array of shape (batch, rank), a factor for every eigenvector.
            outside: Array of shape (batch,).

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
