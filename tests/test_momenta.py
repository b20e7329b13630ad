"""Momenta: against a transcription, their state, and their numerical stability."""

import collections
import itertools

import keras
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from keras import ops

import et_optimizer
from et_optimizer import TensorIndex, momenta
from et_optimizer.compilers import row_blocks
from et_optimizer.momenta import quantization
from et_optimizer.views.updates import MaterializedUpdate
from tests.optimizers import OPTIMIZERS, momentum_forms, slots_of
from tests.reference import rank_one as rank_one_reference
from tests.reference.subspace_momentum import SubspaceMomentum as Reference
from tests.updates import compiled, lengths_and_modes, random_gradients, take_step

BACKEND = keras.backend.backend()
every_optimizer = pytest.mark.parametrize("make", OPTIMIZERS.values(), ids=OPTIMIZERS)
seeds = st.integers(0, 2**32 - 1)


def subspace(rows, columns, rank, refresh_every=3, offset=0, dtype="float32", **kwargs):
    return momenta.SubspaceMomentum(
        decay=kwargs.pop("decay", 0.9),
        rows=rows,
        columns=columns,
        rank=rank,
        refresh_every=refresh_every,
        offset=offset,
        dtype=dtype,
        **kwargs,
    )


def start_of(momentum):
    """The state of a momentum before the first step."""
    state = []
    for name, (shape, dtype) in momentum.slots().items():
        start = momentum.initial(name)
        state.append(ops.cast(np.zeros(shape) if start is None else start, dtype))
    return state


def is_due(refresh_every, offset):
    """A function from a step to whether the subspace is updated at it."""
    return lambda step: step == 1 or (step - 1 + offset) % refresh_every == 0


def directions(momentum, updates, is_compiled=False):
    """The direction and the state after every step."""

    def step_of(update, state, step):
        update = MaterializedUpdate(update)
        direction, state = momentum(update, state, step)
        return direction.evaluate(), state

    take_step = compiled(step_of) if is_compiled else step_of
    state = start_of(momentum)
    for step, update in enumerate(updates, start=1):
        direction, state = take_step(
            ops.convert_to_tensor(update, "float32"),
            state,
            ops.convert_to_tensor(step, "float32"),
        )
        yield ops.convert_to_numpy(direction), state


def as_wide(matrix):
    return matrix if matrix.shape[0] <= matrix.shape[1] else matrix.T


# PyTorch compiles nothing, and the other backends compile each case.
ALL_OR_FIRST = slice(None) if BACKEND == "torch" else slice(1)


@pytest.mark.parametrize("is_corrected", [True, False][ALL_OR_FIRST])
@pytest.mark.parametrize("offset", [2, 0][ALL_OR_FIRST])
@pytest.mark.parametrize(
    ("shape", "rank"), [((6, 9), 1), ((9, 6), 3), ((20, 20), 5), ((7, 300), 2)]
)
def test_directions_equal_the_transcription(shape, rank, offset, is_corrected):
    momentum = subspace(*shape, rank, offset=offset, is_corrected=is_corrected)
    updates = random_gradients(shape, seed=0, steps=8)
    basis = momentum.initial("momentum_basis")
    reference = Reference(basis, 0.9, is_due(3, offset), is_corrected)
    for update, (direction, state) in zip(
        updates, directions(momentum, updates, is_compiled=True)
    ):
        expected = reference.direction(as_wide(update))
        found = ops.convert_to_numpy(state[0]).astype("float64")
        np.testing.assert_allclose(
            found @ found.T, reference.basis @ reference.basis.T, atol=2e-5
        )
        np.testing.assert_allclose(as_wide(direction), expected, rtol=1e-5, atol=3e-5)


@pytest.mark.one_backend
@pytest.mark.parametrize("level", [1, 2, "inf"])
@pytest.mark.parametrize("shape", [(12, 35), (35, 12), (5, 3, 8, 4)])
def test_extreme_tensoring_in_a_subspace_equals_the_transcriptions(shape, level):
    # The rank-one update, its momentum in a subspace, and the bound on entries.
    steps = random_gradients(shape, seed=1, steps=7)
    variable = keras.Variable(np.zeros(shape, "float32"), name="weights")
    optimizer = et_optimizer.ExtremeTensoring(
        0.1,
        level=level,
        beta_2=0.99,
        momentum_rank=3,
        refresh_every=2,
        momentum_dtype="float32",
        update_bound=1.5,
    )
    optimizer.build([variable])
    basis = next(v for v in optimizer.variables if v.name == "weights_momentum_basis")
    reference = Reference(ops.convert_to_numpy(basis), 0.9, is_due(2, 0))
    rows, columns = TensorIndex.from_merged_axes(shape, 1).modes
    index = lengths_and_modes(TensorIndex.from_shape(shape, level))
    expected = 0.0
    updates = rank_one_reference.updates(steps, index, beta_2=0.99)
    for gradient, update in zip(steps, updates):
        optimizer.apply([ops.convert_to_tensor(gradient)], [variable])
        matrix = update.reshape(rows, columns)
        direction = reference.direction(as_wide(matrix))
        direction = direction if rows <= columns else direction.T
        expected = expected - 0.1 * np.clip(direction, -1.5, 1.5).reshape(shape)
    assert np.max(np.abs(direction)) > 1.5
    np.testing.assert_allclose(variable.numpy(), expected, rtol=1e-5, atol=1e-5)


@pytest.mark.one_backend
@pytest.mark.parametrize("shape", [(24, 10), (10, 24), (3, 3, 4, 6)])
@pytest.mark.parametrize("momentum_rank", [3, None])
def test_subset_norm_with_momentum_of_the_gradient_is_snsm(shape, momentum_rank):
    # x ← x − η N/√b with the momentum N of the gradient and b of the raw gradient.
    steps = random_gradients(shape, seed=2, steps=6)
    variable = keras.Variable(np.zeros(shape, "float32"), name="weights")
    optimizer = et_optimizer.SubsetNorm(
        0.1,
        beta_1=0.9,
        beta_2=None,
        statistic="sum",
        momentum_of="gradient",
        momentum_rank=momentum_rank,
        refresh_every=2,
        momentum_dtype="float32",
        update_bound=None,
    )
    optimizer.build([variable])
    rows, columns = TensorIndex.from_merged_axes(shape, 1).modes
    index = TensorIndex.with_one_mode(shape, "auto")
    kept = [axis.length for axis in index.axes]
    along = tuple(i for i, axis in enumerate(index.axes) if not axis.modes)
    full, basis = 0.0, None
    if momentum_rank:
        basis = ops.convert_to_numpy(slots_of(optimizer)[1])
        reference = Reference(basis, 0.9, is_due(2, 0))
    sums, expected = 0.0, 0.0
    for step, gradient in enumerate(steps, start=1):
        optimizer.apply([ops.convert_to_tensor(gradient)], [variable])
        exact = gradient.astype("float64")
        if momentum_rank:
            averaged = reference.direction(as_wide(exact.reshape(rows, columns)))
            averaged = averaged if rows <= columns else averaged.T
        else:
            full = 0.9 * full + 0.1 * exact
            averaged = full / (1 - 0.9**step)
        sums = sums + (exact.reshape(kept) ** 2).sum(along, keepdims=True)
        scaled = averaged.reshape(kept) / np.sqrt(sums)
        expected = expected - 0.1 * scaled.reshape(shape)
    np.testing.assert_allclose(variable.numpy(), expected, rtol=1e-5, atol=1e-5)


@pytest.mark.one_backend
@pytest.mark.parametrize("shape", [(6, 9), (9, 6)])
def test_momentum_of_full_rank_equals_full_momentum(shape):
    updates = random_gradients(shape, seed=0, steps=9)
    full = momenta.FullMomentum(decay=0.9, shape=shape)
    in_subspace = subspace(*shape, rank=6)
    for (one, _), (other, _) in zip(
        directions(in_subspace, updates), directions(full, updates)
    ):
        np.testing.assert_allclose(one, other, rtol=1e-5, atol=1e-5)


@pytest.mark.one_backend
def test_vectors_and_matrices_too_small_for_a_basis_have_full_momentum():
    shapes = {"wide": (64, 96), "small": (12, 12), "vector": (50,), "none": (64, 64)}
    variables = [keras.Variable(np.zeros(s), name=n) for n, s in shapes.items()]
    optimizer = et_optimizer.ExtremeTensoring(
        momentum_rank={"none": 0, ".*": 8}, momentum_dtype="int8"
    )
    optimizer.build(variables)
    assert momentum_forms(optimizer) == {
        "wide_momentum_basis": ((64, 8), "bfloat16"),
        "wide_momentum": ((8, 96), "int8"),
        "wide_momentum_scale": ((8, 1), "float32"),
        "small_momentum": ((12, 12), "int8"),
        "small_momentum_scale": ((12, 1), "float32"),
        "vector_momentum": ((50,), "bfloat16"),
    }


def is_orthonormal(basis, tolerance):
    basis = ops.convert_to_numpy(ops.cast(basis, "float32")).astype("float64")
    identity = np.eye(basis.shape[1])
    return np.max(np.abs(basis.T @ basis - identity)) <= tolerance


@pytest.mark.parametrize(
    ("dtype", "tolerance"),
    [("float32", 1e-5), ("int8", 2e-2), ("bfloat16", 2e-2)][
        : 3 if BACKEND == "torch" else 2
    ],
)
def test_the_basis_stays_orthonormal_over_3000_steps(dtype, tolerance):
    momentum = subspace(8, 14, rank=3, refresh_every=25, dtype=dtype)
    updates = random_gradients((8, 14), seed=0, steps=10)
    many = itertools.islice(itertools.cycle(updates), 3000)
    for step, (direction, state) in enumerate(
        directions(momentum, many, is_compiled=True)
    ):
        if step % 1000 == 999:
            assert is_orthonormal(state[0], tolerance)
            assert np.all(np.isfinite(direction))


@pytest.mark.parametrize("scale", [1e-15, 1.0, 1e15])
def test_the_basis_stays_orthonormal_under_gradients_of_rank_1(scale):
    rng = np.random.default_rng(0)
    updates = scale * np.einsum(
        "ti,tj->tij", rng.standard_normal((6, 8)), rng.standard_normal((6, 12))
    )
    momentum = subspace(8, 12, rank=3, refresh_every=1)
    for direction, state in directions(momentum, updates, is_compiled=True):
        assert is_orthonormal(state[0], 1e-5)
        assert np.all(np.isfinite(direction))


@pytest.mark.one_backend
def test_zero_gradients_keep_the_subspace_and_its_momentum():
    momentum = subspace(8, 12, rank=3, refresh_every=1)
    updates = [*random_gradients((8, 12), seed=0, steps=2), np.zeros((8, 12))]
    (_, _), (_, before), (direction, after) = directions(momentum, updates)
    before, after = (
        [ops.convert_to_numpy(tensor) for tensor in state] for state in (before, after)
    )
    np.testing.assert_allclose(
        after[0] @ after[0].T, before[0] @ before[0].T, atol=1e-5
    )
    np.testing.assert_allclose(
        after[0] @ after[1], 0.9 * before[0] @ before[1], atol=1e-5
    )
    np.testing.assert_allclose(direction, after[0] @ after[1] / (1 - 0.9**3), atol=1e-5)


@pytest.mark.one_backend
@given(
    rows=st.integers(4, 12),
    columns=st.integers(4, 12),
    seed=seeds,
    refresh_every=st.integers(1, 3),
)
def test_outside_the_subspace_the_direction_equals_the_update(
    rows, columns, seed, refresh_every
):
    updates = random_gradients((rows, columns), seed, steps=4)
    momentum = subspace(rows, columns, 2, refresh_every)
    for update, (direction, state) in zip(updates, directions(momentum, updates)):
        basis = ops.convert_to_numpy(state[0]).astype("float64")
        outside = np.eye(len(basis)) - basis @ basis.T
        np.testing.assert_allclose(
            outside @ as_wide(direction), outside @ as_wide(update), atol=1e-5
        )


@pytest.mark.one_backend
@given(seed=seeds)
def test_a_subspace_update_projects_the_momentum_onto_the_new_basis(seed):
    updates = random_gradients((8, 12), seed, steps=3)
    momentum = subspace(8, 12, rank=3, refresh_every=2)
    (_, _), (_, before), (_, after) = directions(momentum, updates)
    (old, average), (new, found) = (
        [ops.convert_to_numpy(tensor).astype("float64") for tensor in state]
        for state in (before, after)
    )
    projected = new.T @ old @ average
    expected = 0.9 * projected + 0.1 * new.T @ updates[2]
    np.testing.assert_allclose(found, expected, atol=1e-5)


@pytest.mark.parametrize("along", [(2,), (0,), (1, 2)])
def test_int8_quantization_errs_by_at_most_half_a_step(along):
    rng = np.random.default_rng(0)
    tensor = rng.standard_normal((3, 4, 50)) * 10 ** rng.uniform(-9, 9, (3, 4, 1))
    tensor[1, 2] = 0.0
    int8 = quantization.of_dtype("int8", tensor.shape, along)
    quantized = int8.quantize(ops.convert_to_tensor(tensor, "float32"))
    dtypes = [keras.backend.standardize_dtype(q.dtype) for q in quantized]
    assert dtypes == ["int8", "float32"]
    plan = int8.slots("momentum").values()
    assert [tuple(q.shape) for q in quantized] == [shape for shape, _ in plan]
    step = np.max(np.abs(tensor), axis=along, keepdims=True) / 127
    error = np.abs(ops.convert_to_numpy(int8.dequantize(quantized)) - tensor)
    assert np.all(error <= step * 0.5 * (1 + 1e-4))


@pytest.mark.one_backend
def test_the_subspace_updates_of_two_variables_are_staggered():
    shape, every, steps = (6, 7), 4, 9
    variables = [keras.Variable(np.zeros(shape), name=name) for name in "ab"]
    optimizer = et_optimizer.ExtremeTensoring(momentum_rank=2, refresh_every=every)
    optimizer.build(variables)
    offsets = [state.momentum.offset for state in optimizer._states]
    assert offsets == [0, 2]
    bases = [state.averages[0] for state in optimizer._states]
    changed = []
    for gradient in random_gradients((2, *shape), seed=0, steps=steps):
        before = [ops.convert_to_numpy(ops.cast(basis, "float32")) for basis in bases]
        optimizer.apply([ops.convert_to_tensor(g) for g in gradient], variables)
        after = [ops.convert_to_numpy(ops.cast(basis, "float32")) for basis in bases]
        changed.append([np.any(one != other) for one, other in zip(before, after)])
    due = [is_due(every, offset) for offset in offsets]
    assert changed == [[one(step) for one in due] for step in range(1, steps + 1)]


@pytest.mark.one_backend
@pytest.mark.parametrize("count", [7, 120])
def test_subspace_updates_are_staggered_evenly_over_the_interval(count):
    variables = [keras.Variable(np.zeros((20, 20)), name=f"v{i}") for i in range(count)]
    optimizer = et_optimizer.ExtremeTensoring(momentum_rank=2, refresh_every=50)
    due = collections.Counter(
        plan.momentum.offset for plan in optimizer.plan_state(variables)
    )
    assert sum(due.values()) == count
    assert max(due.values()) == -(-count // 50)


@pytest.mark.parametrize("shape", [(10, 37), (6, 5, 12)][ALL_OR_FIRST])
@pytest.mark.parametrize(
    "make",
    [
        et_optimizer.ExtremeTensoring,
        lambda **kwargs: et_optimizer.ExtremeTensoring(epsilon=1e-8, **kwargs),
        lambda **kwargs: et_optimizer.SM3(momentum=0.9, **kwargs),
        lambda **kwargs: et_optimizer.Adafactor(beta_1=0.9, **kwargs),
        lambda **kwargs: et_optimizer.SubsetNorm(
            beta_1=0.9,
            momentum_of="gradient",
            epsilon=1e-8,
            clip_threshold=0.5,
            **kwargs,
        ),
    ],
    ids=["outer product", "elementwise", "SM3", "materialized", "SNSM"],
)
def test_a_step_by_blocks_of_rows_equals_one_of_the_whole_matrix(
    make, shape, monkeypatch
):
    steps = random_gradients(shape, seed=0, steps=3)

    def weights():
        variable = keras.Variable(np.ones(shape, "float32"))
        optimizer = make(
            learning_rate=0.1,
            momentum_rank=2,
            refresh_every=2,
            momentum_dtype="float32",
            update_bound=1.0,
        )
        optimizer.build([variable])
        step = compiled(lambda g: optimizer.apply([g], [variable]))
        for gradient in steps:
            gradient = ops.convert_to_tensor(gradient)
            if BACKEND == "jax":
                take_step(optimizer, [gradient], [variable])
            else:
                step(gradient)
        return variable.numpy()

    # Otherwise JAX adds a product of rank 2 term by term, without blocks.
    monkeypatch.setattr(row_blocks, "MAX_FUSED_TERMS", {BACKEND: 0})
    whole = weights()
    if BACKEND == "jax":
        import jax

        jax.clear_caches()  # The steps above have equal traces.
    monkeypatch.setattr(row_blocks, "MAX_ENTRIES", 64)
    np.testing.assert_allclose(weights(), whole, rtol=1e-5, atol=1e-6)


@pytest.mark.one_backend
@every_optimizer
def test_update_bound_bounds_every_entry_of_the_update(make):
    # Adafactor multiplies the learning rate by the weights' scale, here by 1e-3.
    is_relative = getattr(make(), "multiply_by_parameter_scale", False)
    learning_rate = 5e-4 if is_relative else 0.5
    bounded = largest_change(make(learning_rate=0.5, update_bound=0.01))
    assert 0 < bounded <= 0.01 * learning_rate * (1 + 1e-6)
    assert largest_change(make(learning_rate=0.5, update_bound=None)) > 2 * bounded


def largest_change(optimizer):
    variable = keras.Variable(np.zeros((16, 12), "float32"))
    rng = np.random.default_rng(0)
    largest = 0.0
    for _ in range(3):
        before = variable.numpy()
        gradient = rng.standard_normal((16, 12)) * 10 ** rng.uniform(-2, 2, (16, 12))
        optimizer.apply([ops.convert_to_tensor(gradient, "float32")], [variable])
        largest = max(largest, np.abs(variable.numpy() - before).max())
    return largest


def indexed_slices(gradient, rows):
    import tensorflow as tf

    return tf.IndexedSlices(
        tf.constant(gradient[rows]), tf.constant(rows), tf.constant(gradient.shape)
    )


@every_optimizer
@pytest.mark.skipif(BACKEND != "tensorflow", reason="IndexedSlices are TensorFlow's")
def test_a_sparse_gradient_gives_the_bounded_dense_result(make):
    rng = np.random.default_rng(0)
    found = []
    for is_sparse in (False, True):
        rng = np.random.default_rng(0)
        table = keras.Variable(np.ones((20, 6), "float32"), name="table")
        optimizer = make(learning_rate=0.1, update_bound=0.7)
        for rows in ([3, 7, 19], [0, 3], [5, 6, 7]):
            gradient = np.zeros((20, 6), "float32")
            gradient[rows] = rng.standard_normal((len(rows), 6))
            given_as = indexed_slices(gradient, rows) if is_sparse else gradient
            if not is_sparse:
                given_as = ops.convert_to_tensor(gradient)
            optimizer.apply([given_as], [table])
        found.append(table.numpy())
    np.testing.assert_allclose(found[1], found[0], rtol=1e-5, atol=1e-6)


@pytest.mark.one_backend
@pytest.mark.parametrize("shape", [(20, 12), (12, 40)])
def test_snsm_does_not_move_rows_without_any_gradient(shape):
    # The basis of a wide matrix may give them a trace of other rows' momentum, which is
    # divided by the root of a sum of 0.
    variable = keras.Variable(np.ones(shape, "float32"))
    optimizer = et_optimizer.SubsetNorm(
        0.1, axis={"": 0}, momentum_of="gradient", momentum_rank=3, refresh_every=1
    )
    steps = random_gradients(shape, seed=0, steps=4)
    steps[:, 5:] = 0
    for gradient in steps:
        optimizer.apply([ops.convert_to_tensor(gradient)], [variable])
    np.testing.assert_array_equal(variable.numpy()[5:], 1.0)
    assert np.all(variable.numpy()[:5] != 1.0)


@pytest.mark.one_backend
def test_the_memory_report_shows_the_momentum():
    variable = keras.Variable(np.zeros((64, 96)), name="kernel")
    optimizer = et_optimizer.ExtremeTensoring(momentum_rank=4)
    optimizer.build([variable])
    report = et_optimizer.memory_report(optimizer)
    assert report.momentum_bytes == 2 * 4 * (64 + 96)
    assert report.bytes == report.momentum_bytes + 4 * (64 + 96)
    assert report.rows[0].momentum_bytes == report.momentum_bytes
    assert "of which momentum" in str(report)
