"""Momenta: against a transcription, what they hold, and what cannot break them."""

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
from tests.optimizers import OPTIMIZERS, slots_of
from tests.reference import rank_one as rank_one_reference
from tests.reference.subspace_momentum import SubspaceMomentum as Reference
from tests.updates import compiled, lengths_and_modes, random_gradients, take_step

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
    """What a momentum holds before the first step."""
    held = []
    for name, (shape, dtype) in momentum.slots().items():
        start = momentum.initial(name)
        held.append(ops.cast(np.zeros(shape) if start is None else start, dtype))
    return held


def is_due(refresh_every, offset):
    return lambda step: step == 1 or (step - 1 + offset) % refresh_every == 0


def directions(momentum, updates, is_compiled=False):
    """The direction and what is held after every step."""

    def step_of(update, held, step):
        update = MaterializedUpdate(update)
        direction, held = momentum(update, held, step)
        return direction.evaluate(), held

    take_step = compiled(step_of) if is_compiled else step_of
    held = start_of(momentum)
    for step, update in enumerate(updates, start=1):
        direction, held = take_step(
            ops.convert_to_tensor(update, "float32"),
            held,
            ops.convert_to_tensor(step, "float32"),
        )
        yield ops.convert_to_numpy(direction), held


def as_wide(matrix):
    return matrix if matrix.shape[0] <= matrix.shape[1] else matrix.T


@pytest.mark.parametrize("is_compiled", [False, True])
@pytest.mark.parametrize("is_corrected", [True, False])
@pytest.mark.parametrize("offset", [0, 2])
@pytest.mark.parametrize(
    ("shape", "rank"), [((6, 9), 1), ((9, 6), 3), ((20, 20), 5), ((7, 300), 2)]
)
def test_directions_equal_the_transcription(
    shape, rank, offset, is_corrected, is_compiled
):
    momentum = subspace(*shape, rank, offset=offset, is_corrected=is_corrected)
    updates = random_gradients(shape, seed=0, steps=8)
    basis = momentum.initial("momentum_basis")
    reference = Reference(basis, 0.9, is_due(3, offset), is_corrected)
    for update, (direction, held) in zip(
        updates, directions(momentum, updates, is_compiled)
    ):
        expected = reference.direction(as_wide(update))
        found = ops.convert_to_numpy(held[0]).astype("float64")
        np.testing.assert_allclose(
            found @ found.T, reference.basis @ reference.basis.T, atol=2e-5
        )
        np.testing.assert_allclose(as_wide(direction), expected, rtol=1e-5, atol=3e-5)


@pytest.mark.two_backends
@pytest.mark.parametrize("level", [1, 2, "inf"])
@pytest.mark.parametrize("shape", [(12, 35), (35, 12), (5, 3, 8, 4)])
def test_extreme_tensoring_takes_the_steps_of_the_papers(shape, level):
    # The rank-one update, momentum of it in a subspace, then the bound on entries.
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


@pytest.mark.two_backends
@pytest.mark.parametrize("shape", [(24, 10), (10, 24), (3, 3, 4, 6)])
@pytest.mark.parametrize("momentum_rank", [3, None])
def test_subset_norm_with_momentum_of_the_gradient_is_snsm(shape, momentum_rank):
    # x ← x − η N/√b, where N has momentum and b is of the raw gradient.
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


@pytest.mark.two_backends
@pytest.mark.parametrize("shape", [(6, 9), (9, 6)])
def test_a_basis_of_all_directions_is_full_momentum(shape):
    updates = random_gradients(shape, seed=0, steps=9)
    full = momenta.FullMomentum(decay=0.9, shape=shape)
    in_subspace = subspace(*shape, rank=6)
    for (one, _), (other, _) in zip(
        directions(in_subspace, updates), directions(full, updates)
    ):
        np.testing.assert_allclose(one, other, rtol=1e-5, atol=1e-5)


def test_matrices_too_small_for_a_basis_and_vectors_have_full_momentum():
    shapes = {"wide": (64, 96), "small": (12, 12), "vector": (50,), "none": (64, 64)}
    variables = [keras.Variable(np.zeros(s), name=n) for n, s in shapes.items()]
    optimizer = et_optimizer.ExtremeTensoring(
        momentum_rank={"none": 0, ".*": 8}, momentum_dtype="int8"
    )
    optimizer.build(variables)
    held = {
        v.name: (tuple(v.shape), v.dtype)
        for v in optimizer.variables
        if "momentum" in v.name
    }
    assert held == {
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


# PyTorch, which is not compiled, takes other code to the same numbers.
UPDATES = {"jax": 10_000, "tensorflow": 3_000, "torch": 3_000}


@pytest.mark.parametrize(
    ("dtype", "tolerance"), [("float32", 1e-5), ("bfloat16", 2e-2), ("int8", 2e-2)]
)
def test_the_basis_stays_orthonormal_over_thousands_of_steps(dtype, tolerance):
    momentum = subspace(8, 14, rank=3, refresh_every=25, dtype=dtype)
    updates = random_gradients((8, 14), seed=0, steps=10)
    endless = itertools.islice(
        itertools.cycle(updates), UPDATES[keras.backend.backend()]
    )
    for step, (direction, held) in enumerate(
        directions(momentum, endless, is_compiled=True)
    ):
        if step % 1000 == 999:
            assert is_orthonormal(held[0], tolerance)
            assert np.all(np.isfinite(direction))


@pytest.mark.parametrize("scale", [1e-15, 1.0, 1e15])
def test_gradients_of_few_directions_complete_the_basis_with_the_old_one(scale):
    rng = np.random.default_rng(0)
    updates = scale * np.einsum(
        "ti,tj->tij", rng.standard_normal((6, 8)), rng.standard_normal((6, 12))
    )
    momentum = subspace(8, 12, rank=3, refresh_every=1)
    for direction, held in directions(momentum, updates):
        assert is_orthonormal(held[0], 1e-5)
        assert np.all(np.isfinite(direction))


def test_gradients_of_zero_keep_the_subspace_and_what_is_in_it():
    momentum = subspace(8, 12, rank=3, refresh_every=1)
    updates = [*random_gradients((8, 12), seed=0, steps=2), np.zeros((8, 12))]
    (_, _), (_, before), (direction, after) = directions(momentum, updates)
    before, after = (
        [ops.convert_to_numpy(tensor) for tensor in held] for held in (before, after)
    )
    np.testing.assert_allclose(
        after[0] @ after[0].T, before[0] @ before[0].T, atol=1e-5
    )
    np.testing.assert_allclose(
        after[0] @ after[1], 0.9 * before[0] @ before[1], atol=1e-5
    )
    np.testing.assert_allclose(direction, after[0] @ after[1] / (1 - 0.9**3), atol=1e-5)


@pytest.mark.two_backends
@given(
    rows=st.integers(4, 12),
    columns=st.integers(4, 12),
    seed=seeds,
    refresh_every=st.integers(1, 3),
)
def test_outside_the_subspace_the_direction_is_the_update(
    rows, columns, seed, refresh_every
):
    updates = random_gradients((rows, columns), seed, steps=4)
    momentum = subspace(rows, columns, 2, refresh_every)
    for update, (direction, held) in zip(updates, directions(momentum, updates)):
        basis = ops.convert_to_numpy(held[0]).astype("float64")
        outside = np.eye(len(basis)) - basis @ basis.T
        np.testing.assert_allclose(
            outside @ as_wide(direction), outside @ as_wide(update), atol=1e-5
        )


@pytest.mark.two_backends
@given(seed=seeds)
def test_a_refresh_carries_over_what_the_new_basis_can_hold(seed):
    updates = random_gradients((8, 12), seed, steps=3)
    momentum = subspace(8, 12, rank=3, refresh_every=2)
    (_, _), (_, before), (_, after) = directions(momentum, updates)
    (old, average), (new, found) = (
        [ops.convert_to_numpy(tensor).astype("float64") for tensor in held]
        for held in (before, after)
    )
    carried = new.T @ old @ average
    expected = 0.9 * carried + 0.1 * new.T @ updates[2]
    np.testing.assert_allclose(found, expected, atol=1e-5)


@pytest.mark.parametrize("along", [(2,), (0,), (1, 2)])
def test_integers_of_8_bits_are_within_half_a_step_of_their_scale(along):
    rng = np.random.default_rng(0)
    tensor = rng.standard_normal((3, 4, 50)) * 10 ** rng.uniform(-9, 9, (3, 4, 1))
    tensor[1, 2] = 0.0
    held = quantization.quantize(
        ops.convert_to_tensor(tensor, "float32"), "int8", along
    )
    assert [keras.backend.standardize_dtype(h.dtype) for h in held] == [
        "int8",
        "float32",
    ]
    plan = quantization.slots("momentum", tensor.shape, "int8", along)
    assert [tuple(h.shape) for h in held] == [shape for shape, _ in plan.values()]
    step = np.max(np.abs(tensor), axis=along, keepdims=True) / 127
    error = np.abs(ops.convert_to_numpy(quantization.dequantize(held)) - tensor)
    assert np.all(error <= step * 0.5 * (1 + 1e-4))


def test_a_variable_is_refreshed_on_its_own_steps():
    shape, every, steps = (6, 7), 4, 9
    variables = [keras.Variable(np.zeros(shape), name=name) for name in "ab"]
    optimizer = et_optimizer.ExtremeTensoring(momentum_rank=2, refresh_every=every)
    optimizer.build(variables)
    offsets = [held.momentum.offset for held in optimizer._states]
    assert offsets == [0, 2]
    bases = [held.averages[0] for held in optimizer._states]
    changed = []
    for gradient in random_gradients((2, *shape), seed=0, steps=steps):
        before = [ops.convert_to_numpy(ops.cast(basis, "float32")) for basis in bases]
        optimizer.apply([ops.convert_to_tensor(g) for g in gradient], variables)
        after = [ops.convert_to_numpy(ops.cast(basis, "float32")) for basis in bases]
        changed.append([np.any(one != other) for one, other in zip(before, after)])
    due = [is_due(every, offset) for offset in offsets]
    assert changed == [[one(step) for one in due] for step in range(1, steps + 1)]


@pytest.mark.parametrize("count", [7, 120])
def test_refreshes_of_different_variables_fall_on_different_steps(count):
    variables = [keras.Variable(np.zeros((20, 20)), name=f"v{i}") for i in range(count)]
    optimizer = et_optimizer.ExtremeTensoring(momentum_rank=2, refresh_every=50)
    due = collections.Counter(
        plan.momentum.offset for plan in optimizer.plan_state(variables)
    )
    assert sum(due.values()) == count
    assert max(due.values()) == -(-count // 50)


@pytest.mark.parametrize("shape", [(10, 37), (6, 5, 12)])
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
    ids=["outer product", "elementwise", "SM3", "written out", "SNSM"],
)
def test_going_by_blocks_of_rows_changes_nothing(make, shape, monkeypatch):
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
            if keras.backend.backend() == "jax":
                take_step(optimizer, [gradient], [variable])
            else:
                step(gradient)
        return variable.numpy()

    # Or a product of rank 2 is added term by term on JAX.
    monkeypatch.setattr(row_blocks, "MAX_FUSED_TERMS", {keras.backend.backend(): 0})
    whole = weights()
    if keras.backend.backend() == "jax":
        import jax

        jax.clear_caches()  # of equal steps, traced before
    monkeypatch.setattr(row_blocks, "MAX_ENTRIES", 64)
    np.testing.assert_allclose(weights(), whole, rtol=1e-5, atol=1e-6)


@pytest.mark.two_backends
@every_optimizer
def test_no_entry_of_an_update_is_beyond_its_bound(make):
    # Adafactor's rate is relative to the weights' size, and 1e-3 · 0.5 for these.
    is_relative = getattr(make(), "multiply_by_parameter_scale", False)
    rate = 5e-4 if is_relative else 0.5
    bounded = largest_change(make(learning_rate=0.5, update_bound=0.01))
    assert 0 < bounded <= 0.01 * rate * (1 + 1e-6)
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


def rows_of(gradient, rows):
    import tensorflow as tf

    return tf.IndexedSlices(
        tf.constant(gradient[rows]), tf.constant(rows), tf.constant(gradient.shape)
    )


@every_optimizer
@pytest.mark.skipif(
    keras.backend.backend() != "tensorflow", reason="gradients of rows are TensorFlow's"
)
def test_rows_of_a_gradient_give_the_dense_result_bounded_too(make):
    rng = np.random.default_rng(0)
    found = []
    for is_sparse in (False, True):
        rng = np.random.default_rng(0)
        table = keras.Variable(np.ones((20, 6), "float32"), name="table")
        optimizer = make(learning_rate=0.1, update_bound=0.7)
        for rows in ([3, 7, 19], [0, 3], [5, 6, 7]):
            gradient = np.zeros((20, 6), "float32")
            gradient[rows] = rng.standard_normal((len(rows), 6))
            given_as = rows_of(gradient, rows) if is_sparse else gradient
            if not is_sparse:
                given_as = ops.convert_to_tensor(gradient)
            optimizer.apply([given_as], [table])
        found.append(table.numpy())
    np.testing.assert_allclose(found[1], found[0], rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("shape", [(20, 12), (12, 40)])
def test_rows_that_never_had_a_gradient_are_not_moved_by_snsm(shape):
    # A trace of other rows' momentum, over the root of a sum of nothing: of a wide
    # matrix a basis has some of it.
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


def test_the_report_says_what_is_momentum():
    variable = keras.Variable(np.zeros((64, 96)), name="kernel")
    optimizer = et_optimizer.ExtremeTensoring(momentum_rank=4)
    optimizer.build([variable])
    report = et_optimizer.memory_report(optimizer)
    assert report.momentum_bytes == 2 * 4 * (64 + 96)
    assert report.bytes == report.momentum_bytes + 4 * (64 + 96)
    assert report.rows[0].momentum_bytes == report.momentum_bytes
    assert "of which momentum" in str(report)
