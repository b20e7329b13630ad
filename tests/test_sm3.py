"""SM3 against a float64 transcription, against optax, and the paper's lemmas."""

import keras
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from keras import ops

from et_optimizer import SM3, TensorIndex, memory_report
from et_optimizer.optimizers.sm3 import SM3Rule
from tests.optimizers import slots_of
from tests.reference import extreme_tensoring, sm3
from tests.updates import (
    last_update,
    lengths_and_modes,
    library_updates,
    random_gradients,
    spread_gradients,
)

pytestmark = pytest.mark.one_backend

LEVELS = [1, 2, 3, "inf"]
RULES = {
    "SM3-II": dict(variant="II", beta_2=None, epsilon=0.0),
    "SM3-I": dict(variant="I", beta_2=None, epsilon=0.0),
    "SM3-II averaging": dict(variant="II", beta_2=0.99, epsilon=0.0),
    "SM3-I averaging": dict(variant="I", beta_2=0.9, epsilon=0.0),
    "SM3-II with epsilon": dict(variant="II", beta_2=None, epsilon=1e-8),
    "SM3-I without memory": dict(variant="I", beta_2=0.0, epsilon=1e-8),
}
every_rule = pytest.mark.parametrize("rule", RULES.values(), ids=RULES)
levels = st.sampled_from(LEVELS)
seeds = st.integers(0, 2**32 - 1)


def reference_update(rule, index, steps):
    *_, update = sm3.updates(steps, lengths_and_modes(index), **rule)
    return update


@every_rule
@settings(max_examples=12)
@given(
    shape=st.lists(st.sampled_from([1, 2, 3, 4, 5, 7, 8, 11, 12, 13]), max_size=5),
    level=levels,
    exponent=st.integers(-12, 12),
    seed=seeds,
)
def test_updates_equal_the_papers_formula(rule, shape, level, exponent, seed):
    while np.prod(shape) > 20_000:
        shape = shape[:-1]
    index = TensorIndex.from_shape(shape, level)
    steps = spread_gradients(shape, 10.0**exponent, seed)
    update = last_update(SM3Rule(**rule), index, steps)
    assert np.all(update[steps[-1] == 0] == 0)
    np.testing.assert_allclose(update, reference_update(rule, index, steps), rtol=1e-5)


@pytest.mark.parametrize("variant", ["I", "II"])
@pytest.mark.parametrize("level", LEVELS)
@pytest.mark.parametrize(
    "shape", [(997,), (769, 521), (3, 3, 61, 67), (1, 1031), (5, 27127), (27127, 5)]
)
def test_updates_of_large_odd_shapes_equal_the_papers_formula(shape, level, variant):
    # Large enough for maxima in slabs, with remainders on both axes.
    rule = dict(variant=variant, beta_2=0.9, epsilon=0.0)
    index = TensorIndex.from_shape(shape, level)
    steps = spread_gradients(shape, 1.0, seed=0, steps=3)
    update = last_update(SM3Rule(**rule), index, steps)
    np.testing.assert_allclose(update, reference_update(rule, index, steps), rtol=1e-5)


@pytest.mark.parametrize(
    ("shape", "sizes"),
    [
        ((20, 12), (15, 16)),
        ((20, 12), (3, 8, 10)),
        ((7,), (1, 7)),
    ],
)
def test_updates_with_hand_written_sizes_equal_the_papers_formula(shape, sizes):
    index = TensorIndex.from_sizes(shape, sizes)
    steps = spread_gradients(shape, 1.0, seed=1)
    for rule in RULES.values():
        update = last_update(SM3Rule(**rule), index, steps)
        np.testing.assert_allclose(
            update, reference_update(rule, index, steps), rtol=1e-5
        )


@every_rule
@pytest.mark.parametrize("level", LEVELS)
def test_zero_gradients_give_zero_updates_before_and_after_others(rule, level):
    for shape in [(), (50257,), (13, 7), (2, 3, 4), (1, 769, 521)]:
        index = TensorIndex.from_shape(shape, level)
        steps = np.zeros((3, *shape), "float32")
        steps[1] = 1e-15
        for update, _ in library_updates(SM3Rule(**rule), index, steps[[0, 1, 0]]):
            assert np.all(np.isfinite(update))
        assert np.all(update == 0)


@every_rule
@pytest.mark.parametrize("decades", [(-18, -12), (9, 15)])
def test_updates_are_exact_at_the_ends_of_the_range_of_float32(rule, decades):
    rng = np.random.default_rng(0)
    for shape in [(5,), (40, 30), (2, 3, 4, 5, 6)]:
        steps = (10 ** rng.uniform(*decades, (20, *shape))).astype("float32")
        for level in LEVELS:
            index = TensorIndex.from_shape(shape, level)
            np.testing.assert_allclose(
                last_update(SM3Rule(**rule), index, steps),
                reference_update(rule, index, steps),
                rtol=1e-5,
            )


@pytest.mark.parametrize("variant", ["I", "II"])
@pytest.mark.parametrize("beta_2", [None, 0.0, 0.99, 0.999])
@pytest.mark.parametrize("size", [1e-18, 1e15])
def test_the_first_update_is_exact_for_the_smallest_and_largest_gradients(
    variant, beta_2, size
):
    rule = dict(variant=variant, beta_2=beta_2, epsilon=0.0)
    index = TensorIndex.from_shape((4, 5), 1)
    steps = np.full((1, 4, 5), size, "float32")
    update = last_update(SM3Rule(**rule), index, steps)
    np.testing.assert_allclose(update, reference_update(rule, index, steps), rtol=1e-5)


@given(
    shape=st.lists(st.integers(1, 9), max_size=4),
    level=levels,
    seed=seeds,
    scale=st.sampled_from([1e-6, 1.0, 1e6]),
)
def test_nu_of_sm3_ii_lies_between_the_sum_of_squares_and_nu_of_sm3_i(
    shape, level, seed, scale
):
    index = TensorIndex.from_shape(shape, level)
    steps = scale * spread_gradients(shape, 1.0, seed, steps=6)
    steps = np.where(steps == 0, scale, steps)  # ν shows in g / √ν
    found = {
        variant: library_updates(SM3Rule(variant, None, 0.0), index, steps)
        for variant in ("I", "II")
    }
    total = np.zeros(shape)
    for step, (one, _), (two, _) in zip(steps, found["I"], found["II"]):
        total += step.astype("float64") ** 2
        nu_1, nu_2 = (np.square(step / u.astype("float64")) for u in (one, two))
        assert np.all(total <= nu_2 * (1 + 1e-5))
        assert np.all(nu_2 <= nu_1 * (1 + 1e-5))


@pytest.mark.parametrize("variant", ["I", "II"])
@given(shape=st.lists(st.integers(1, 9), max_size=4), level=levels, seed=seeds)
def test_accumulators_never_decrease_without_beta_2(variant, shape, level, seed):
    index = TensorIndex.from_shape(shape, level)
    steps = spread_gradients(shape, 1.0, seed, steps=8)
    before = [np.zeros(s) for s in index.slot_shapes]
    for _, slots in library_updates(SM3Rule(variant, None, 0.0), index, steps):
        for old, new in zip(before, slots):
            assert np.all(new >= old)
        before = slots


@pytest.mark.parametrize("variant", ["I", "II"])
@given(size=st.integers(1, 50), seed=seeds)
def test_sm3_on_vectors_equals_adagrad(variant, size, seed):
    steps = random_gradients((size,), seed)
    index = TensorIndex.from_shape((size,), 1)
    update = last_update(SM3Rule(variant, None, 0.0), index, steps)
    expected = steps[-1] / extreme_tensoring.adagrad(steps)
    np.testing.assert_allclose(update, expected, rtol=1e-5)


@given(
    shape=st.lists(st.integers(1, 9), min_size=2, max_size=3), level=levels, seed=seeds
)
def test_every_accumulator_equals_the_nu_of_one_of_its_entries(shape, level, seed):
    # Therefore a sparse step need not read the rows without a gradient.
    index = TensorIndex.from_shape(shape, level)
    steps = spread_gradients(shape, 1.0, seed, steps=4)
    *_, (_, slots) = library_updates(SM3Rule("II", 0.9, 0.0), index, steps)
    _, slices = extreme_tensoring.coordinates(lengths_and_modes(index))
    slots = [np.reshape(slot, -1) for slot in slots]
    smallest = np.min([slot[at] for slot, at in zip(slots, slices)], axis=0)
    for slot, at in zip(slots, slices):
        largest = np.zeros(slot.size, "float32")
        np.maximum.at(largest, at, smallest)
        np.testing.assert_array_equal(largest, slot)


@pytest.mark.parametrize("momentum", [0.0, 0.9])
@pytest.mark.parametrize("beta_2", [None, 0.95])
@pytest.mark.parametrize("shape", [(7,), (6, 9), (3, 4, 5), (1, 8), ()])
def test_sm3_equals_optax(shape, beta_2, momentum):
    optax = pytest.importorskip("optax")
    steps = random_gradients(shape, seed=0, steps=12)
    variable = keras.Variable(np.ones(shape, "float32"))
    optimizer = SM3(
        0.1,
        beta_2=beta_2,
        momentum=momentum,
        epsilon=1e-8,
        momentum_rank=None,
        momentum_dtype="float32",
    )
    theirs = optax.scale_by_sm3(
        b1=momentum, b2=1.0 if beta_2 is None else beta_2, eps=1e-8
    )
    # optax takes no scalars, but a vector of one entry.
    weights = np.ones(shape or (1,), "float32")
    state = theirs.init(weights)
    for gradient in steps:
        optimizer.apply([ops.convert_to_tensor(gradient)], [variable])
        update, state = theirs.update(gradient.reshape(weights.shape), state)
        weights = weights - 0.1 * np.asarray(update)
    np.testing.assert_allclose(
        ops.convert_to_numpy(variable), weights.reshape(shape), rtol=1e-5, atol=1e-6
    )


@pytest.mark.parametrize("momentum_dtype", ["float32", "bfloat16"])
def test_momentum_averages_the_updates_without_bias_correction(momentum_dtype):
    steps = random_gradients((6, 9), seed=0, steps=8)
    variable = keras.Variable(np.zeros((6, 9), "float32"))
    optimizer = SM3(
        0.5,
        level=2,
        momentum=0.9,
        momentum_dtype=momentum_dtype,
        momentum_rank=None,
    )
    index = lengths_and_modes(TensorIndex.from_shape((6, 9), 2))
    average, expected = 0.0, 0.0
    for gradient, update in zip(steps, sm3.updates(steps, index, "II")):
        optimizer.apply([ops.convert_to_tensor(gradient)], [variable])
        average = 0.9 * average + 0.1 * update
        expected -= 0.5 * average
    tolerance = 1e-5 if momentum_dtype == "float32" else 2e-2
    np.testing.assert_allclose(
        ops.convert_to_numpy(variable), expected, rtol=tolerance, atol=tolerance
    )


@pytest.mark.parametrize("dtype", ["bfloat16", "float16"])
def test_state_of_16_bit_weights_is_float32(dtype):
    rng = np.random.default_rng(0)
    variable = keras.Variable(rng.standard_normal((24, 9)), dtype=dtype)
    before = ops.convert_to_numpy(ops.cast(variable, "float32")).astype("float64")
    gradient = ops.cast(rng.standard_normal((24, 9)), dtype)
    optimizer = SM3(0.125, level=2, momentum=0)
    optimizer.apply([gradient], [variable])
    slots = slots_of(optimizer)
    assert {keras.backend.standardize_dtype(v.dtype) for v in slots} == {"float32"}
    index = lengths_and_modes(TensorIndex.from_shape((24, 9), 2))
    exact = ops.convert_to_numpy(ops.cast(gradient, "float32"))
    (update,) = sm3.updates([exact], index, "II")
    after = ops.convert_to_numpy(ops.cast(variable, "float32"))
    bits = {"bfloat16": 8, "float16": 11}[dtype]
    np.testing.assert_allclose(
        after, before - 0.125 * update, rtol=0, atol=4 * 2**-bits
    )


def test_state_is_one_element_per_row_and_column_and_less_at_higher_levels():
    net = keras.Sequential([keras.Input((2000,)), keras.layers.Dense(512)])
    elements = {}
    for level in (1, 2, 3):
        optimizer = SM3(level=level, momentum=0)
        optimizer.build(net.trainable_variables)
        elements[level] = memory_report(optimizer).slots
        counted = sum(int(np.prod(v.shape)) for v in slots_of(optimizer))
        assert counted == elements[level]
    assert elements == {1: 2000 + 512 + 512, 2: 40 + 50 + 2 * (16 + 32), 3: 28 + 2 * 20}
    with_momentum = SM3(level=1, momentum=0.9, momentum_rank=None)
    with_momentum.build(net.trainable_variables)
    assert memory_report(with_momentum).slots == elements[1] + 2000 * 512 + 512
