"""Frequent Directions: a low-rank sketch of a running covariance.

The covariance of a stream of columns c is G = Σ c cᵀ, of size d × d. The sketch keeps
its leading ℓ eigenvectors, d·ℓ elements, and the *escaped mass*, an upper bound on
everything that it has dropped:

    FD-update(Ḡ, M):  U diag(λ) Uᵀ = Ḡ + M, λ descending;   ρ = λ_ℓ
                      Ḡ' = U diag(max(λ − ρ, 0)) Uᵀ,   escaped' = escaped + ρ

so that Ḡ ≼ G ≼ Ḡ + escaped · I. With a decay β, βḠ is updated and the escaped mass
decays too. All functions are pure, use `keras.ops`, work inside compiled programs on
every backend, and treat leading axes as a batch of sketches.

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

import functools
from collections.abc import Callable
from typing import NamedTuple

import numpy as np
from keras import ops

from et_optimizer import checks
from et_optimizer.compilers.linear_algebra import eigh
from et_optimizer.types import Shape, Tensor

# Singular values below this share of the largest are rounding errors of float32.
NOISE = 1e-6
# A sweep of Jacobi's method takes as many rounds as a factor has rows, and each round
# reads the whole factor. With more rows the Gram matrix is decomposed instead.
MAX_JACOBI_ROWS = 64
# In one sweep each row meets every other row once. A random factor of 64 rows was
# orthogonal to rounding after 7 sweeps, a sketch with one more column after 5.
SWEEPS = 9


class Sketch(NamedTuple):
    """The sketch of a covariance, or of a batch of them.

    Attributes:
        vectors: Orthonormal eigenvectors, of shape (..., size, rank); zeros before the
            first update.
        values: Their eigenvalues in descending order, of shape (..., rank). If the rank
            is less than the size, the last eigenvalue is 0 and its vector has no
            effect.
        escaped: The escaped mass, of shape (...); 0 if the rank equals the size.
    """

    vectors: Tensor
    values: Tensor
    escaped: Tensor


def shapes(size: int, rank: int, batch: Shape = ()) -> Sketch:
    """The shapes of a sketch's three tensors.

    Args:
        size: The length d of a column.
        rank: ℓ, the number of eigenvectors; at most `size` are kept.
        batch: The shape of a batch of sketches. Defaults to a single one.

    Returns:
        A `Sketch` of tuples, with (d + 1)·ℓ + 1 elements in total.
    """
    rank = min(rank, size)
    return Sketch((*batch, size, rank), (*batch, rank), tuple(batch))


def zeros(size: int, rank: int, batch: Shape = ()) -> Sketch:
    """The sketch without any column, in float32; arguments as for `shapes`."""
    return Sketch(*(ops.zeros(shape, "float32") for shape in shapes(size, rank, batch)))


def update(sketch: Sketch, columns: Tensor, decay: float = 1.0) -> Sketch:
    """Adds columns to a sketch.

    The work is O(size · (rank + columns)²). A size × size matrix is formed only if rank
    + columns ≥ size. A sketch whose rank equals its size is exact and has no escaped
    mass.

    Args:
        sketch: A `Sketch`.
        columns: Float32 tensor of shape (..., size, columns), any number of columns.
        decay: β in [0, 1], which multiplies the covariance first. Defaults to 1.

    Returns:
        A `Sketch`.
    """
    vectors, values, escaped = sketch
    columns = ops.convert_to_tensor(columns)
    size, rank = vectors.shape[-2:]
    values = decay * values
    # Divided by its trace, the covariance stays within float32's range.
    trace = ops.sum(values, axis=-1) + ops.sum(ops.square(columns), axis=(-2, -1))
    scale = _power_or_0(trace, 0.5)[..., None]
    roots = ops.sqrt(values) * scale
    columns = columns * scale[..., None]
    if rank == size:
        # The covariance is nearly diagonal in the basis of the last eigenvectors, which
        # halves the time of Jacobi's method.
        basis = _or_identity(vectors)
        columns = ops.matmul(_transposed(basis), columns)
        diagonal = roots[..., None] * ops.eye(size, dtype="float32")
        factor = ops.concatenate([diagonal, columns], axis=-1)
    else:
        basis = None
        factor = ops.concatenate([vectors * roots[..., None, :], columns], axis=-1)
        if factor.shape[-1] < size:
            basis, factor = ops.qr(factor)
    found, leading = _leading(factor, rank, is_exact=columns.shape[-1] == 1)
    vectors = leading if basis is None else ops.matmul(basis, leading)
    if rank < size:
        least = found[..., -1]
        escaped = decay * escaped + least * trace
        found = ops.maximum(found - least[..., None], 0.0)
    return Sketch(_orthonormal(vectors), found * trace[..., None], escaped)


def trace(sketch: Sketch) -> Tensor:
    """The sum of the traces of a batch of covariances, a scalar.

    Exact if the columns were added one at a time: then each update subtracts the
    escaped mass from `rank` eigenvalues. Updates with several columns lose more, and
    the result is too small.
    """
    rank = sketch.values.shape[-1]
    return ops.sum(sketch.values) + rank * ops.sum(sketch.escaped)


def _leading(factor: Tensor, rank: int, is_exact: bool) -> tuple[Tensor, Tensor]:
    """The leading eigenvalues and eigenvectors of F Fᵀ, in descending order.

    Float32 resolves eigenvalues of F Fᵀ down to 1e-7 of the largest, and the singular
    values of F, their roots, down to 1e-7 of the largest singular value. A single
    column may be that short compared with the sketch, and must not be lost.
    """
    if not is_exact or factor.shape[-2] > MAX_JACOBI_ROWS:
        values, vectors = eigh(ops.matmul(factor, _transposed(factor)))
        values, vectors = ops.flip(values, axis=-1), ops.flip(vectors, axis=-1)
        return ops.maximum(values[..., :rank], 0.0), vectors[..., :rank]
    values, vectors = _jacobi(factor)
    order = ops.argsort(-values, axis=-1)[..., :rank]
    values = ops.take_along_axis(values, order, axis=-1)
    vectors = ops.take_along_axis(vectors, order[..., None], axis=-2)
    values = ops.where(values > NOISE**2 * values[..., :1], values, 0.0)
    # The rounding of hundreds of rotations has lengthened the vectors.
    return values, _orthonormal(_transposed(vectors))


def _jacobi(factor: Tensor) -> tuple[Tensor, Tensor]:
    """The squared singular values of F, and its left singular vectors as rows.

    Jacobi's one-sided method rotates pairs of rows until all are orthogonal. It finds
    singular values of very different sizes with the same relative precision.

    Returns:
        `(values, rotation)` of shapes (..., rows) and (..., rows, rows), where
        rotation · F has orthogonal rows of these squared lengths.
    """
    rows, columns = factor.shape[-2:]
    eye = ops.zeros_like(factor[..., :1]) + ops.eye(rows, dtype="float32")
    work = ops.concatenate([factor, eye], axis=-1)
    even = rows + rows % 2
    if even > rows:
        unpadded = [[0, 0]] * (len(work.shape) - 2)
        work = ops.pad(work, [*unpadded, [0, 1], [0, 0]])
    rotate = _jacobi_round(even, columns)
    work = ops.fori_loop(0, SWEEPS * (even - 1), rotate, work)[..., :rows, :]
    return ops.sum(ops.square(work[..., :columns]), axis=-1), work[..., columns:]


@functools.cache
def _jacobi_round(rows: int, columns: int) -> Callable[[Tensor, Tensor], Tensor]:
    """One round of a tournament: each row of one half meets a row of the other.

    The first row stays and the others move on by one position. After rows − 1 rounds
    every pair has met, and every row is back at its position.
    """
    half = rows // 2
    top, bottom = list(range(half)), list(range(half, rows))
    following = [top[0], bottom[0], *top[1:-1], *bottom[1:], top[-1]]
    # Keras would convert a list element by element, in every round.
    order = np.array(following if half > 1 else [0, 1])

    def rotate(_: Tensor, work: Tensor) -> Tensor:
        top, bottom = work[..., :half, :], work[..., half:, :]
        a, b = top[..., :columns], bottom[..., :columns]
        product = ops.sum(a * b, axis=-1, keepdims=True)
        difference = ops.sum(ops.square(b) - ops.square(a), axis=-1, keepdims=True)
        safe = ops.where(product == 0.0, 1.0, product)
        ratio = difference / (2.0 * safe)
        tangent = ops.where(ratio < 0, -1.0, 1.0) / (
            ops.abs(ratio) + ops.sqrt(1.0 + ops.square(ratio))
        )
        tangent = ops.where(product == 0.0, 0.0, tangent)
        cosine = ops.rsqrt(1.0 + ops.square(tangent))
        sine = cosine * tangent
        rotated = [cosine * top - sine * bottom, sine * top + cosine * bottom]
        return ops.take(ops.concatenate(rotated, axis=-2), order, axis=-2)

    return rotate


def apply_inverse_root(
    sketch: Sketch,
    tensor: Tensor,
    exponent: float,
    epsilon: float = 0.0,
    relative_epsilon: float = 0.0,
    weight: Tensor = 1.0,
) -> Tensor:
    """Multiplies a tensor by a negative power of a sketched covariance.

    (G̃/w + εI)^(−α) X, where G̃ = Ḡ + ρI with the escaped mass ρ. Eigenvalues of 0 give
    0, as in the pseudo-inverse. Takes 4·rank multiplications per element of the tensor.

    Args:
        sketch: A `Sketch`.
        tensor: Float32 tensor X of shape (..., size, n).
        exponent: α > 0.
        epsilon: ε ≥ 0. Defaults to 0.
        relative_epsilon: A share of the covariance's largest eigenvalue, which is added
            to ε. Defaults to 0.
        weight: A scalar w > 0 that divides the covariance. Defaults to 1.

    Returns:
        A tensor of the shape of `tensor`.
    """
    vectors, values, escaped = sketch
    size, rank = vectors.shape[-2:]
    values, escaped = values / weight, escaped / weight
    floor = escaped + relative_epsilon * (values[..., 0] + escaped) + epsilon
    within = _power_or_0(values + floor[..., None], exponent)[..., None]
    projected = ops.matmul(_transposed(vectors), tensor)
    if rank == size:
        return ops.matmul(vectors, within * projected)
    # The whole tensor gets the complement's factor, and its projection the difference:
    # two products, where computing the complement would take three.
    outside = _power_or_0(floor, exponent)[..., None, None]
    return outside * tensor + ops.matmul(vectors, (within - outside) * projected)


def _power_or_0(base: Tensor, exponent: float) -> Tensor:
    """base^(−exponent), and 0 for 0."""
    safe = ops.maximum(base, checks.SMALLEST_FLOAT32)
    return ops.where(base > 0, ops.power(safe, -exponent), 0.0)


def _transposed(matrix: Tensor) -> Tensor:
    return ops.swapaxes(matrix, -2, -1)


def _or_identity(vectors: Tensor) -> Tensor:
    """The vectors, or the identity before the first update."""
    is_empty = ops.all(vectors == 0, axis=(-2, -1), keepdims=True)
    return ops.where(is_empty, ops.eye(vectors.shape[-1], dtype="float32"), vectors)


def _orthonormal(vectors: Tensor) -> Tensor:
    """Removes the rounding errors of nearly orthonormal columns.

    One step of Newton and Schulz's iteration, V (3I − VᵀV) / 2, which squares their
    distance from orthonormality. Without it the errors would add up over updates.
    """
    overlap = ops.matmul(_transposed(vectors), vectors)
    eye = ops.eye(vectors.shape[-1], dtype="float32")
    return ops.matmul(vectors, 1.5 * eye - 0.5 * overlap)
