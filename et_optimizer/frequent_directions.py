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

import functools
from collections.abc import Callable
from typing import NamedTuple

import numpy as np
from keras import ops

from et_optimizer import checks
from et_optimizer.compilers.linear_algebra import eigh
from et_optimizer.types import Shape, Tensor

# Singular values below this share of the largest are float32's rounding.
NOISE = 1e-6
# The rotations of Jacobi take as many rounds as a factor has rows, and each goes over
# all of it: of more rows the eigenvalues of the Gram matrix are found.
MOST_ROWS_TURNED = 64
# In a sweep each row meets each other once. A random factor of 64 rows was orthogonal
# to rounding after 7 sweeps, that of a sketch and one more column after 5.
SWEEPS = 9


class Sketch(NamedTuple):
    """What is kept of a covariance, or of a batch of them.

    Attributes:
        vectors: Orthonormal eigenvectors, of shape (..., size, rank); zeros before the
            first update.
        values: Their eigenvalues in descending order, of shape (..., rank). Where the
            rank is less than the size, the last is 0 and its column without effect.
        escaped: The escaped mass, of shape (...); 0 where the rank is the size.
    """

    vectors: Tensor
    values: Tensor
    escaped: Tensor


def shapes(size: int, rank: int, batch: Shape = ()) -> Sketch:
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


def zeros(size: int, rank: int, batch: Shape = ()) -> Sketch:
    """The sketch of no columns, in float32; arguments as for `shapes`."""
    return Sketch(*(ops.zeros(shape, "float32") for shape in shapes(size, rank, batch)))


def update(sketch: Sketch, columns: Tensor, decay: float = 1.0) -> Sketch:
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
    scale = _power_or_0(trace, 0.5)[..., None]
    roots = ops.sqrt(values) * scale
    columns = columns * scale[..., None]
    if rank == size:
        # In the basis of the last eigenvectors the covariance is nearly diagonal, which
        # halves the time that Jacobi's method takes.
        basis = _started(vectors)
        columns = _product(basis, columns, transpose=True)
        factor = ops.concatenate([_diagonal(roots), columns], axis=-1)
    else:
        basis = None
        factor = ops.concatenate([vectors * roots[..., None, :], columns], axis=-1)
        if factor.shape[-1] < size:
            basis, factor = ops.qr(factor)
    found, directions = _leading(factor, rank, is_exact=columns.shape[-1] == 1)
    vectors = directions if basis is None else _product(basis, directions)
    if rank < size:
        least = found[..., -1]
        escaped = decay * escaped + least * trace
        found = ops.maximum(found - least[..., None], 0.0)
    return Sketch(_orthonormal(vectors), found * trace[..., None], escaped)


def trace(sketch: Sketch) -> Tensor:
    """The sum of the traces of a batch of covariances, a scalar.

    Exact for columns that came one at a time: each then took the escaped mass from as
    many eigenvalues as there are. Of several at once more is lost, and it is less.
    """
    rank = sketch.values.shape[-1]
    return ops.sum(sketch.values) + rank * ops.sum(sketch.escaped)


def _leading(factor: Tensor, rank: int, is_exact: bool) -> tuple[Tensor, Tensor]:
    """The leading eigenvalues and eigenvectors of F Fᵀ, in descending order.

    Float32 tells the eigenvalues of F Fᵀ apart down to 1e-7 of the largest, and the
    singular values of F, their roots, down to 1e-7 of theirs. A single column may be
    that short beside what has been summed up, and is not to be lost.
    """
    if not is_exact or factor.shape[-2] > MOST_ROWS_TURNED:
        values, vectors = eigh(_gram(factor))
        values, vectors = ops.flip(values, axis=-1), ops.flip(vectors, axis=-1)
        return ops.maximum(values[..., :rank], 0.0), vectors[..., :rank]
    values, vectors = _turned(factor)
    order = ops.argsort(-values, axis=-1)[..., :rank]
    values = ops.take_along_axis(values, order, axis=-1)
    vectors = ops.take_along_axis(vectors, order[..., None], axis=-2)
    values = ops.where(values > NOISE**2 * values[..., :1], values, 0.0)
    # Each of hundreds of turns has lengthened the vectors by its rounding.
    return values, _orthonormal(ops.swapaxes(vectors, -2, -1))


def _turned(factor: Tensor) -> tuple[Tensor, Tensor]:
    """The squared lengths of F's rows once they are orthogonal, and what turns them so.

    Jacobi's one-sided method: rows are turned two by two until all are orthogonal. It
    finds singular values of very different sizes to as many digits each.

    Returns:
        `(values, turns)` of shapes (..., rows) and (..., rows, rows), where turns · F
        has the orthogonal rows.
    """
    rows, columns = factor.shape[-2:]
    eye = ops.zeros_like(factor[..., :1]) + ops.eye(rows, dtype="float32")
    work = ops.concatenate([factor, eye], axis=-1)
    even = rows + rows % 2
    if even > rows:
        unpadded = [[0, 0]] * (len(work.shape) - 2)
        work = ops.pad(work, [*unpadded, [0, 1], [0, 0]])
    turn = _round_of_turns(even, columns)
    work = ops.fori_loop(0, SWEEPS * (even - 1), turn, work)[..., :rows, :]
    return ops.sum(ops.square(work[..., :columns]), axis=-1), work[..., columns:]


@functools.cache
def _round_of_turns(rows: int, columns: int) -> Callable[[Tensor, Tensor], Tensor]:
    """One round of a tournament: the rows of one half meet those of the other.

    The first row stays and the others move on by one place, so that after rows − 1
    rounds each has met each, and all are in their places again.
    """
    half = rows // 2
    top, bottom = list(range(half)), list(range(half, rows))
    places = [top[0], bottom[0], *top[1:-1], *bottom[1:], top[-1]]
    # Of a list Keras takes each number by itself, at every turn.
    moved = np.array(places if half > 1 else [0, 1])

    def turn(_: Tensor, work: Tensor) -> Tensor:
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
        turned = [cosine * top - sine * bottom, sine * top + cosine * bottom]
        return ops.take(ops.concatenate(turned, axis=-2), moved, axis=-2)

    return turn


def apply_inverse_root(
    sketch: Sketch,
    tensor: Tensor,
    exponent: float,
    epsilon: float = 0.0,
    relative_epsilon: float = 0.0,
    weight: Tensor = 1.0,
) -> Tensor:
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
    within = _power_or_0(values + floor[..., None], exponent)[..., None]
    projected = _product(vectors, tensor, transpose=True)
    if rank == size:
        return _product(vectors, within * projected)
    # All of the tensor as the complement is treated, and its part along the vectors by
    # the difference: two products where the complement by itself would take three.
    outside = _power_or_0(floor, exponent)[..., None, None]
    return outside * tensor + _product(vectors, (within - outside) * projected)


def _power_or_0(numbers: Tensor, exponent: float) -> Tensor:
    """numbers^(−exponent), and 0 for 0."""
    safe = ops.maximum(numbers, checks.SMALLEST_FLOAT32)
    return ops.where(numbers > 0, ops.power(safe, -exponent), 0.0)


def _product(one: Tensor, other: Tensor, transpose: bool = False) -> Tensor:
    return ops.matmul(ops.swapaxes(one, -2, -1) if transpose else one, other)


def _gram(factor: Tensor) -> Tensor:
    return ops.matmul(factor, ops.swapaxes(factor, -2, -1))


def _diagonal(values: Tensor) -> Tensor:
    return values[..., None] * ops.eye(values.shape[-1], dtype="float32")


def _started(vectors: Tensor) -> Tensor:
    """The vectors, or those of the identity where there are none yet."""
    is_empty = ops.all(vectors == 0, axis=(-2, -1), keepdims=True)
    return ops.where(is_empty, ops.eye(vectors.shape[-1], dtype="float32"), vectors)


def _orthonormal(vectors: Tensor) -> Tensor:
    """Takes the rounding out of nearly orthonormal columns.

    One step of Newton and Schulz's iteration, V (3I − VᵀV) / 2, which squares their
    distance from orthonormal ones: it would otherwise add up over updates.
    """
    overlap = _product(vectors, vectors, transpose=True)
    eye = ops.eye(vectors.shape[-1], dtype="float32")
    return _product(vectors, 1.5 * eye - 0.5 * overlap)
