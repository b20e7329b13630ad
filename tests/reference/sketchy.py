"""Frequent Directions, S-AdaGrad, Shampoo and S-Shampoo in float64 NumPy.

As the papers write them, with d × d matrices and full eigendecompositions: Feinberg,
Chen, Sun, Anil, Hazan, 2023, arXiv:2302.03764, Algorithms 1 to 3 and Observation 6;
Gupta, Koren, Singer, 2018, arXiv:1802.09568, Algorithm 2. Independent of the library.
"""

import numpy as np


def fd_update(covariance, addition, rank):
    """Algorithm 1: (ρ, Ḡ') from Ḡ + M, both of shape (d, d)."""
    values, vectors = np.linalg.eigh(covariance + addition)
    values, vectors = values[::-1], vectors[:, ::-1]
    rho = max(values[rank - 1], 0.0)
    kept = np.maximum(values[:rank] - rho, 0.0)
    return rho, (vectors[:, :rank] * kept) @ vectors[:, :rank].T


def inverse_root(matrix, exponent, epsilon=0.0, relative_epsilon=0.0):
    """(A + εI)^(−α) of a symmetric matrix; the pseudo-inverse on its null space."""
    values, vectors = np.linalg.eigh(matrix)
    largest = max(values[-1], 0.0)
    is_zero = values <= 1e-12 * largest
    values = np.where(is_zero, 0.0, values) + epsilon + relative_epsilon * largest
    powers = np.where(values > 0, np.maximum(values, 1e-300) ** -exponent, 0.0)
    return (vectors * powers) @ vectors.T


def unfolding(tensor, mode):
    """G_(i), of shape (d_i, d / d_i)."""
    return np.moveaxis(tensor, mode, 0).reshape(tensor.shape[mode], -1)


def s_adagrad(gradients, rank, beta_2=None, epsilon=0.0):
    """Algorithm 2: the update of every step, for gradients of any one shape."""
    decay = 1.0 if beta_2 is None else beta_2
    size = np.size(gradients[0])
    sketch, escaped, weight = np.zeros((size, size)), 0.0, 0.0
    for gradient in gradients:
        g = np.asarray(gradient, np.float64).ravel()
        rho, sketch = fd_update(decay * sketch, np.outer(g, g), min(rank, size))
        escaped, weight = decay * escaped + rho, decay * weight + 1.0
        total = sketch + escaped * np.eye(size)
        total = total if beta_2 is None else total / weight
        yield (inverse_root(total, 0.5, epsilon) @ g).reshape(np.shape(gradient))


def s_shampoo(
    gradients,
    rank=None,
    beta_2=None,
    epsilon=0.0,
    relative_epsilon=0.0,
    update_every=1,
    block_size=None,
):
    """Algorithm 3, or Shampoo where `rank` is None: the update of every step.

    Args:
        gradients: Sequence of arrays of one shape; axes of length 1 are no modes.
        rank: Number of eigenvectors of a sketch.
        beta_2: Decay of the covariances' bias-corrected average; `None` sums.
        epsilon, relative_epsilon: As in the library.
        update_every: One gradient in this many enters the covariances.
        block_size: Largest side of a covariance; longer modes are split into blocks of
            nearly equal size.

    Yields:
        Arrays of the gradients' shape.
    """
    decay = 1.0 if beta_2 is None else beta_2
    shape = np.shape(gradients[0])
    modes = [mode for mode, length in enumerate(shape) if length > 1]
    blocks = {mode: _blocks(shape[mode], block_size) for mode in modes}
    sketches = {
        mode: [np.zeros((len(b), len(b))) for b in blocks[mode]] for mode in modes
    }
    escaped = {mode: [0.0] * len(blocks[mode]) for mode in modes}
    weight = 0.0
    for step, gradient in enumerate(gradients):
        g = np.asarray(gradient, np.float64)
        if step % update_every == 0:
            weight = decay * weight + 1.0
            for mode in modes:
                for i, block in enumerate(blocks[mode]):
                    rows = unfolding(g, mode)[block]
                    if rank is None:
                        new = decay * sketches[mode][i] + rows @ rows.T
                        sketches[mode][i] = new
                        continue
                    rho, sketches[mode][i] = fd_update(
                        decay * sketches[mode][i], rows @ rows.T, min(rank, len(block))
                    )
                    escaped[mode][i] = decay * escaped[mode][i] + rho
        update = g
        for mode in modes:
            rows = unfolding(update, mode).copy()
            for i, block in enumerate(blocks[mode]):
                total = sketches[mode][i] + escaped[mode][i] * np.eye(len(block))
                total = total if beta_2 is None else total / weight
                root = inverse_root(total, 0.5 / len(modes), epsilon, relative_epsilon)
                rows[block] = root @ rows[block]
            others = [n for other, n in enumerate(shape) if other != mode]
            update = np.moveaxis(rows.reshape(shape[mode], *others), 0, mode)
        yield update


def _blocks(length, block_size):
    """Index arrays of blocks of ⌈length / count⌉ entries; the last may be shorter."""
    count = 1 if block_size is None else -(-length // block_size)
    size = -(-length // count)
    return [np.arange(length)[i : i + size] for i in range(0, length, size)]
