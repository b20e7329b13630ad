"""Frequent Directions: a running covariance kept as a few eigenvectors.

A stream of columns c adds up to a covariance G = Σ c cᵀ of size d × d. The sketch
keeps its leading ℓ eigenvectors, d·ℓ numbers, and the *escaped mass*, a bound on all
that it has dropped:

    FD-update(Ḡ, M):  U diag(λ) Uᵀ = Ḡ + M, λ descending;   ρ = λ_ℓ
                      Ḡ' = U diag(max(λ − ρ, 0)) Uᵀ,   escaped' = escaped + ρ

so that Ḡ ≼ G ≼ Ḡ + escaped · I. With a decay β the update is that of βḠ, and the
escaped mass decays too. Everything here is a pure function on `keras.ops`, works inside
a compiled program on every backend, and takes leading axes as a batch of sketches.

Example:

>>> import numpy as np
>>> sketch = frequent_directions.zeros(size=4, rank=2)
>>> columns = np.diag([3.0, 2.0, 1.0, 0.0]).astype("float32")
>>> sketch = frequent_directions.update(sketch, columns)
>>> np.asarray(sketch.values).round(4).tolist()
[5.0, 0.0]
>>> round(float(sketch.escaped), 4)
4.0

Reference:
    [Ghashami, Liberty, Phillips, Woodruff, 2016](https://arxiv.org/abs/1501.01711),
    Frequent Directions: Simple and Deterministic Matrix Sketching;
    [Feinberg, Chen, Sun, Anil, Hazan, 2023](https://arxiv.org/abs/2302.03764), Sketchy:
    Memory-efficient Adaptive Regularization with Frequent Directions, Algorithm 1 and
    Observation 6.
"""

from typing import Any, NamedTuple

from keras import ops

from et_optimizer import checks

# Eigenvalues below this share of the largest are float32 rounding, and taken for 0.
NOISE = 3e-7


class Sketch(NamedTuple):
    """What is kept of a covariance, or of a batch of them.

    Attributes:
        vectors: Orthonormal eigenvectors, of shape (..., size, rank); zeros before the
            first update.
        values: Their eigenvalues in descending order, of shape (..., rank). Where the
            rank is less than the size, the last is 0 and its column without effect.
        escaped: The escaped mass, of shape (...); 0 where the rank is the size.
    """

    vectors: Any
    values: Any
    escaped: Any


def shapes(size, rank, batch=()):
    """The shapes of a sketch's three tensors.

    Args:
        size: The length d of a column.
        rank: How many eigenvectors are kept, ℓ; more than `size` count as `size`.
        batch: The shape of a batch of sketches. Defaults to a single one.

    Returns:
        A `Sketch` of tuples. They hold (d + 1)·ℓ + 1 numbers in all.
    """
    rank = min(rank, size)
    return Sketch((*batch, size, rank), (*batch, rank), tuple(batch))


def zeros(size, rank, batch=()):
    """The sketch of no columns, in float32; arguments as for `shapes`."""
    return Sketch(*(ops.zeros(shape, "float32") for shape in shapes(size, rank, batch)))


def update(sketch, columns, decay=1.0):
    """Takes columns into a sketch.

    A size × size matrix is formed only where rank + number of columns reach the size.
    Otherwise the work is O(size · (rank + columns)²). A sketch whose rank is its size
    loses nothing and has no escaped mass.

    Args:
        sketch: A `Sketch`.
        columns: Float32 tensor of shape (..., size, any number of columns).
        decay: β in [0, 1], what the covariance is multiplied by first. Defaults to 1.

    Returns:
        A `Sketch`.
    """
    vectors, values, escaped = sketch
    columns = ops.convert_to_tensor(columns)
    size, rank = vectors.shape[-2:]
    values = decay * values
    # In terms of the covariance over its trace, the products stay in float32's range.
    trace = ops.sum(values, axis=-1) + ops.sum(ops.square(columns), axis=(-2, -1))
    root = _power_or_0(trace, 0.5)[..., None, None]
    values = values * _power_or_0(trace, 1.0)[..., None]
    columns = columns * root
    if rank == size:
        # In the basis of the last eigenvectors the covariance is nearly diagonal, which
        # halves the time that Jacobi's method takes.
        basis = _started(vectors)
        columns = _product(basis, columns, transpose=True)
        gram = _gram(columns) + _diagonal(values)
    elif rank + columns.shape[-1] < size:
        kept = vectors * ops.sqrt(values)[..., None, :]
        basis, triangle = ops.qr(ops.concatenate([kept, columns], axis=-1))
        gram = _gram(triangle)
    else:
        basis = None
        gram = _gram(vectors * ops.sqrt(values)[..., None, :]) + _gram(columns)
    found, directions = ops.eigh(gram)
    # In descending order, and the leading ones.
    found = ops.flip(found, axis=-1)[..., :rank]
    directions = ops.flip(directions, axis=-1)[..., :rank]
    vectors = directions if basis is None else _product(basis, directions)
    found = ops.maximum(found, 0.0)
    if rank < size:
        found = ops.where(found > NOISE * found[..., :1], found, 0.0)
        least = found[..., -1]
        escaped = decay * escaped + least * trace
        found = ops.maximum(found - least[..., None], 0.0)
    return Sketch(_orthonormal(vectors), found * trace[..., None], escaped)


def apply_inverse_root(
    sketch, tensor, exponent, epsilon=0.0, relative_epsilon=0.0, weight=1.0
):
    """Multiplies a tensor by a negative power of a sketched covariance.

    (G̃/w + εI)^(−α) X, where G̃ = Ḡ + ρI. Directions in which that is 0 give 0, as in
    the pseudo-inverse. Takes 4·rank multiplications for every number of the tensor.

    Args:
        sketch: A `Sketch`.
        tensor: Float32 tensor X of shape (..., size, n).
        exponent: α > 0.
        epsilon: ε ≥ 0. Defaults to 0.
        relative_epsilon: What is added to ε, as a share of the covariance's largest
            eigenvalue. Defaults to 0.
        weight: w > 0, what the covariance is divided by: a scalar. Defaults to 1.

    Returns:
        A tensor of the shape of `tensor`.
    """
    vectors, values, escaped = sketch
    size, rank = vectors.shape[-2:]
    values, escaped = values / weight, escaped / weight
    floor = escaped + relative_epsilon * (values[..., 0] + escaped) + epsilon
    shifted = values + floor[..., None]
    if epsilon == 0.0 and relative_epsilon == 0.0:
        shifted = ops.where(shifted > NOISE * shifted[..., :1], shifted, 0.0)
    within = _power_or_0(shifted, exponent)[..., None]
    projected = _product(vectors, tensor, transpose=True)
    if rank == size:
        return _product(vectors, within * projected)
    # All of the tensor as the complement is treated, and its part along the vectors by
    # the difference: two products where the complement by itself would take three.
    outside = _power_or_0(floor, exponent)[..., None, None]
    return outside * tensor + _product(vectors, (within - outside) * projected)


def _power_or_0(numbers, exponent):
    """numbers^(−exponent), and 0 for 0."""
    safe = ops.maximum(numbers, checks.SMALLEST_FLOAT32)
    return ops.where(numbers > 0, ops.power(safe, -exponent), 0.0)


def _product(one, other, transpose=False):
    return ops.matmul(ops.swapaxes(one, -2, -1) if transpose else one, other)


def _gram(factor):
    return ops.matmul(factor, ops.swapaxes(factor, -2, -1))


def _diagonal(values):
    return values[..., None] * ops.eye(values.shape[-1], dtype="float32")


def _started(vectors):
    """The vectors, or those of the identity where there are none yet."""
    is_empty = ops.all(vectors == 0, axis=(-2, -1), keepdims=True)
    return ops.where(is_empty, ops.eye(vectors.shape[-1], dtype="float32"), vectors)


def _orthonormal(vectors):
    """Takes the rounding out of nearly orthonormal columns.

    One step of Newton and Schulz's iteration, V (3I − VᵀV) / 2, which squares their
    distance from orthonormal ones: it would otherwise add up over updates.
    """
    overlap = _product(vectors, vectors, transpose=True)
    eye = ops.eye(vectors.shape[-1], dtype="float32")
    return _product(vectors, 1.5 * eye - 0.5 * overlap)
