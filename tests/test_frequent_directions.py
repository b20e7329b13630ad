"""The papers' inequalities for Frequent Directions, on random and extreme streams."""

import keras
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from keras import ops

from et_optimizer import frequent_directions
from et_optimizer.frequent_directions import Sketch
from tests.reference import sketchy
from tests.updates import compiled

seeds = st.integers(0, 2**32 - 1)
STREAMS = ["gaussian", "decaying", "same direction", "orthogonal", "growing", "sparse"]


def stream(kind, size, columns, steps, seed):
    """Float32 columns of shape (steps, size, columns)."""
    rng = np.random.default_rng(seed)
    found = rng.standard_normal((steps, size, columns))
    if kind == "decaying":  # a spectrum over six decades
        found *= 10.0 ** np.linspace(0, -3, size)[:, None]
    if kind == "same direction":
        found = rng.standard_normal(size)[:, None] * rng.uniform(0.5, 2, (steps, 1, 1))
        found = np.repeat(found, columns, -1)
    if kind == "orthogonal":  # to the previous columns, as long as possible
        found = np.zeros((steps, size, columns))
        for i in range(steps * columns):
            found[i // columns, i % size, i % columns] = 1.0
    if kind == "growing":
        found *= 2.0 ** np.arange(steps)[:, None, None] / 2.0**steps
    if kind == "sparse":
        found *= rng.random((steps, size, 1)) < 0.2
    return found.astype("float32")


def sketched(columns, rank, decay=1.0):
    """The sketch of a stream, as float64 arrays."""
    sketch = frequent_directions.zeros(columns.shape[1], rank)
    for new in columns:
        sketch = frequent_directions.update(sketch, ops.convert_to_tensor(new), decay)
    return Sketch(*(ops.convert_to_numpy(x).astype("float64") for x in sketch))


def covariance(columns, decay=1.0):
    """The exact covariance of a stream."""
    total = np.zeros((columns.shape[1],) * 2)
    for new in columns.astype("float64"):
        total = decay * total + new @ new.T
    return total


def low_rank(sketch):
    """Ḡ, the matrix of a sketch."""
    return (sketch.vectors * sketch.values) @ sketch.vectors.T


streams = given(
    kind=st.sampled_from(STREAMS),
    size=st.integers(1, 12),
    rank=st.integers(1, 12),
    columns=st.integers(1, 14),
    decay=st.sampled_from([1.0, 0.9]),
    seed=seeds,
)


@pytest.mark.one_backend
@settings(max_examples=40)
@streams
def test_the_covariance_is_between_the_sketch_and_the_sketch_plus_escaped_mass(
    kind, size, rank, columns, decay, seed
):
    new = stream(kind, size, columns, 8, seed)
    sketch, exact = sketched(new, rank, decay), covariance(new, decay)
    rounding = 1e-5 * np.linalg.norm(exact, 2)
    below = exact - low_rank(sketch)
    above = low_rank(sketch) + sketch.escaped * np.eye(size) - exact
    assert np.linalg.eigvalsh(below).min() >= -rounding
    assert np.linalg.eigvalsh(above).min() >= -rounding


@pytest.mark.one_backend
@settings(max_examples=40)
@streams
def test_the_escaped_mass_is_bounded_by_the_tail_of_the_spectrum(
    kind, size, rank, columns, decay, seed
):
    del decay  # The bound holds for sums.
    new = stream(kind, size, columns, 8, seed)
    rank = min(rank, size)
    sketch, exact = sketched(new, rank), covariance(new)
    values = np.linalg.eigvalsh(exact)[::-1]
    bound = min(values[k:].sum() / (rank - k) for k in range(rank))
    assert sketch.escaped <= bound + 1e-5 * values[0]
    assert sketch.escaped >= 0


@pytest.mark.one_backend
@streams
def test_an_update_equals_the_transcription_of_algorithm_1(
    kind, size, rank, columns, decay, seed
):
    new = stream(kind, size, columns, 6, seed)
    rank = min(rank, size)
    sketch, expected, escaped = sketched(new, rank, decay), np.zeros((size, size)), 0.0
    for one in new.astype("float64"):
        rho, expected = sketchy.fd_update(decay * expected, one @ one.T, rank)
        escaped = decay * escaped + rho
    # If the rank is the size nothing has to escape, but Ḡ + ρI is the same.
    found = low_rank(sketch) + sketch.escaped * np.eye(size)
    expected += escaped * np.eye(size)
    scale = np.linalg.norm(expected, 2)
    np.testing.assert_allclose(found, expected, atol=1e-5 * scale)
    if rank < size:
        np.testing.assert_allclose(sketch.escaped, escaped, atol=1e-5 * scale)
        assert sketch.values[-1] == 0.0


@pytest.mark.one_backend
@given(
    size=st.integers(2, 20),
    rank=st.integers(2, 10),
    columns=st.integers(1, 8),
    seed=seeds,
)
def test_a_stream_of_rank_below_the_sketchs_is_exact(size, rank, columns, seed):
    rng = np.random.default_rng(seed)
    plane = rng.standard_normal((size, rank - 1))
    new = (plane @ rng.standard_normal((20, rank - 1, columns))).astype("float32")
    sketch, exact = sketched(new, rank), covariance(new)
    # Rounding errors escape too, except with single columns (Jacobi's method).
    largest = np.linalg.norm(exact, 2)
    assert sketch.escaped <= (0.0 if columns == 1 else 1e-5 * largest)
    np.testing.assert_allclose(
        low_rank(sketch), exact, atol=2e-5 * np.linalg.norm(exact, 2)
    )


# As many as take a second on each backend.
UPDATES = {"jax": 10_000, "tensorflow": 1_000, "torch": 1_000}


@pytest.mark.parametrize(
    ("size", "rank", "columns", "decay"),
    [
        (12, 4, 2, 1.0),
        (12, 4, 20, 0.999),
        pytest.param(9, 9, 3, 1.0, marks=pytest.mark.one_backend),
        pytest.param(9, 9, 3, 0.999, marks=pytest.mark.one_backend),
    ],
)
def test_vectors_stay_orthonormal_over_thousands_of_updates(size, rank, columns, decay):
    batch = 16
    rng = np.random.default_rng(0)
    spread = 10.0 ** np.linspace(0, -2, size)[:, None]
    many = rng.standard_normal((50, batch, size, columns)) * spread
    many = [ops.convert_to_tensor(one, "float32") for one in many]
    update = compiled(
        lambda sketch, new: frequent_directions.update(sketch, new, decay)
    )
    sketch = frequent_directions.zeros(size, rank, (batch,))
    for step in range(UPDATES[keras.backend.backend()]):
        sketch = Sketch(*update(sketch, many[step % 50]))
    vectors = ops.convert_to_numpy(sketch.vectors).astype("float64")
    overlap = np.swapaxes(vectors, 1, 2) @ vectors
    np.testing.assert_allclose(overlap, np.tile(np.eye(rank), (batch, 1, 1)), atol=1e-5)
    assert np.all(np.isfinite(ops.convert_to_numpy(sketch.values)))


@pytest.mark.parametrize(
    ("rank", "columns"),
    [
        (3, 2),
        (3, 9),
        *(
            pytest.param(*case, marks=pytest.mark.one_backend)
            for case in ((3, 1), (7, 1), (1, 2), (7, 9))
        ),
    ],
)
def test_a_compiled_batch_equals_its_sketches_one_by_one(rank, columns):
    new = stream("gaussian", 7, columns, 5 * 4, 0).reshape(4, 5, 7, columns)
    batch = frequent_directions.zeros(7, rank, (5,))
    update = compiled(lambda sketch, new: frequent_directions.update(sketch, new, 0.9))
    for step in new:
        batch = Sketch(*update(batch, ops.convert_to_tensor(step)))
    for i in range(5):
        single = sketched(new[:, i], rank, 0.9)
        one = Sketch(*(ops.convert_to_numpy(x)[i] for x in batch))
        np.testing.assert_allclose(low_rank(one), low_rank(single), atol=1e-4)
        np.testing.assert_allclose(one.escaped, single.escaped, rtol=1e-4, atol=1e-5)


@pytest.mark.one_backend
@pytest.mark.parametrize("rank", [2, 5, 9])
@pytest.mark.parametrize("exponent", [0.125, 0.25, 0.5])
@pytest.mark.parametrize(
    ("epsilon", "relative_epsilon"), [(0.0, 0.0), (0.1, 0.0), (0.0, 1e-2), (0.1, 1e-2)]
)
def test_the_inverse_root_equals_that_of_the_full_matrix(
    rank, exponent, epsilon, relative_epsilon
):
    new = stream("gaussian", 9, 4, 6, seed=1)
    sketch = sketched(new, rank)
    tensor = np.random.default_rng(2).standard_normal((9, 5))
    matrix = (low_rank(sketch) + sketch.escaped * np.eye(9)) / 3.0
    root = sketchy.inverse_root(matrix, exponent, epsilon, relative_epsilon)
    found = frequent_directions.apply_inverse_root(
        Sketch(*(ops.convert_to_tensor(x, "float32") for x in sketch)),
        ops.convert_to_tensor(tensor, "float32"),
        exponent,
        epsilon,
        relative_epsilon,
        weight=3.0,
    )
    expected = root @ tensor
    np.testing.assert_allclose(
        ops.convert_to_numpy(found), expected, atol=1e-5 * np.abs(expected).max()
    )


@pytest.mark.one_backend
@pytest.mark.parametrize("rows", [1, 2, 5, 12, 33, 64])
def test_jacobi_finds_singular_values_down_to_a_millionth_of_the_largest(rows):
    # Singular values 1, 0.1, … 1e-4, repeated.
    roots = 10.0 ** -(np.arange(rows) % 5.0)
    rotation, _ = np.linalg.qr(np.random.default_rng(0).standard_normal((rows, rows)))
    factor = (rotation * roots).astype("float32")
    values, vectors = frequent_directions._leading(
        ops.convert_to_tensor(factor), rows, is_exact=True
    )
    expected = np.linalg.svd(factor.astype("float64"), compute_uv=False) ** 2
    found = ops.convert_to_numpy(values).astype("float64")
    is_kept = found > 0
    np.testing.assert_array_equal(is_kept, expected > 1e-12 * expected[0])
    np.testing.assert_allclose(found[is_kept], expected[is_kept], rtol=5e-2)
    vectors = ops.convert_to_numpy(vectors).astype("float64")
    np.testing.assert_allclose(vectors.T @ vectors, np.eye(rows), atol=1e-5)


@pytest.mark.one_backend
def test_the_escaped_mass_is_added_in_the_span_and_in_its_complement():
    sketch = Sketch(
        ops.convert_to_tensor(np.eye(5, 3, dtype="float32")),
        ops.convert_to_tensor(np.array([1e8, 5.0, 0.0], "float32")),
        ops.convert_to_tensor(np.float32(10.0)),
    )
    found = frequent_directions.apply_inverse_root(sketch, ops.eye(5), 0.5)
    expected = np.diag((np.array([1e8, 5.0, 0, 0, 0]) + 10.0) ** -0.5)
    np.testing.assert_allclose(ops.convert_to_numpy(found), expected, atol=1e-6)


@pytest.mark.one_backend
@pytest.mark.parametrize("rank", [3, 6])
def test_eigenvalues_of_0_give_0_as_in_the_pseudo_inverse(rank):
    column = np.array([[1.0], [2.0], [0.0], [0.0], [0.0], [2.0]], "float32")
    sketch = frequent_directions.update(
        frequent_directions.zeros(6, rank), ops.convert_to_tensor(column)
    )
    found = frequent_directions.apply_inverse_root(
        sketch, ops.convert_to_tensor(np.eye(6, dtype="float32")), 0.5
    )
    expected = column @ column.T / 27.0  # (c cᵀ)^(−1/2) is c cᵀ / |c|³
    np.testing.assert_allclose(ops.convert_to_numpy(found), expected, atol=1e-6)


@pytest.mark.one_backend
@pytest.mark.parametrize("scale", [1e-15, 1e-8, 1e8, 1e15])
@pytest.mark.parametrize(("rank", "columns"), [(3, 2), (3, 9), (8, 4)])
def test_scaled_columns_give_the_sketch_times_the_scale_squared(rank, columns, scale):
    new = stream("gaussian", 8, columns, 5, seed=3)
    one = sketched(new, rank)
    other = sketched((new * np.float32(scale)).astype("float32"), rank)
    np.testing.assert_allclose(
        other.values / scale**2, one.values, rtol=1e-4, atol=1e-4
    )
    np.testing.assert_allclose(
        other.escaped / scale**2, one.escaped, rtol=1e-4, atol=1e-5
    )


@pytest.mark.one_backend
@pytest.mark.parametrize(("rank", "columns"), [(3, 2), (3, 9), (8, 4)])
def test_columns_of_zeros_do_not_change_the_sketch(rank, columns):
    zeros = np.zeros((1, 8, columns), "float32")
    new = stream("gaussian", 8, columns, 5, seed=3)
    one = sketched(new, rank)
    other = sketched(np.concatenate([zeros, new, zeros]), rank)
    np.testing.assert_allclose(low_rank(other), low_rank(one), atol=1e-4)
    np.testing.assert_allclose(other.escaped, one.escaped, rtol=1e-4, atol=1e-5)
    empty = sketched(zeros, rank)
    assert not empty.values.any() and empty.escaped == 0.0


@pytest.mark.skipif(keras.backend.backend() != "jax", reason="needs JAX")
def test_no_size_by_size_matrix_is_formed_for_few_columns():
    import jax

    size = 5000
    sketch = frequent_directions.zeros(size, 8)
    new = jax.numpy.ones((size, 3))
    program = jax.jit(frequent_directions.update).lower(sketch, new).compile()
    assert program.memory_analysis().temp_size_in_bytes < 4 * size * 100


@pytest.mark.one_backend
@pytest.mark.parametrize("seed", range(3))
def test_a_factor_with_mostly_zero_rows_is_decomposed(seed):
    # For some of these LAPACK does not converge in float32 as PyTorch calls it.
    rng = np.random.default_rng(seed)
    size = 256
    columns = rng.standard_normal((size, 128))
    columns *= np.exp(-12 * rng.random((size, 1)))  # Rare tokens.
    columns[rng.random(size) < 0.7] = 0.0
    columns = columns.astype("float32")
    found = low_rank(sketched(columns[None], size))
    exact = covariance(columns[None])
    assert np.linalg.norm(found - exact) <= 1e-5 * np.linalg.norm(exact)
