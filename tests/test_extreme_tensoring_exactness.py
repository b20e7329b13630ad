"""Extreme tensoring against a float64 transcription of the paper's Algorithm 1."""

import keras
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from keras import ops

import et_optimizer
from et_optimizer import TensorIndex
from et_optimizer.optimizers.extreme_tensoring import ExtremeTensoringRule
from tests.optimizers import slots_of
from tests.reference import extreme_tensoring as reference
from tests.updates import last_update, lengths_and_modes, spread_gradients

STEPS = 20
LEVELS = [1, 2, 3, "inf"]
BACKEND = keras.backend.backend()
# The paper's steps: the geometric combination, without momentum and bound.
PAPERS = dict(combination="geometric", beta_1=0, update_bound=None)
RULES = {
    "algorithm 1": dict(beta_2=None, statistic="sum", epsilon=1e-8),
    "algorithm 1 without epsilon": dict(beta_2=None, statistic="sum", epsilon=0.0),
    "moving average of sums": dict(beta_2=0.999, statistic="sum", epsilon=1e-8),
    "moving average of means": dict(beta_2=0.9, statistic="mean", epsilon=0.0),
    "means with epsilon": dict(beta_2=0.99, statistic="mean", epsilon=1e-8),
    "accumulated means": dict(beta_2=None, statistic="mean", epsilon=0.0),
    "no memory": dict(beta_2=0.0, statistic="mean", epsilon=0.0),
}


# Where every operation is compiled for every shape, few of them.
COMPILED_LEVELS = LEVELS if BACKEND == "torch" else [2]
COMPILED_RULES = {
    name: rule
    for name, rule in RULES.items()
    if BACKEND == "torch" or name in ("algorithm 1", "moving average of means")
}


def library_update(rule, index, steps):
    return last_update(
        ExtremeTensoringRule(**rule, combination="geometric"), index, steps
    )


def reference_update(rule, index, steps):
    *_, update = reference.updates(
        steps,
        lengths_and_modes(index),
        beta_2=rule["beta_2"],
        mean=rule["statistic"] == "mean",
        epsilon=rule["epsilon"],
    )
    return update


shapes = st.lists(st.sampled_from([1, 2, 3, 4, 5, 7, 8, 11, 12, 13]), max_size=5)


@pytest.mark.one_backend
@pytest.mark.parametrize("rule", RULES.values(), ids=RULES)
@given(
    shape=shapes,
    level=st.sampled_from(LEVELS),
    exponent=st.integers(-12, 12),
    seed=st.integers(0, 2**32 - 1),
)
def test_updates_equal_the_transcription(rule, shape, level, exponent, seed):
    shape = tuple(shape)
    while np.prod(shape) > 20_000:
        shape = shape[:-1]
    index = TensorIndex.from_shape(shape, level)
    steps = spread_gradients(shape, 10.0**exponent, seed)
    update = library_update(rule, index, steps)
    assert np.all(np.isfinite(update))
    assert np.all(update[steps[-1] == 0] == 0)
    np.testing.assert_allclose(update, reference_update(rule, index, steps), rtol=1e-5)


# Large enough for the sums over slabs, with remainders on both axes.
@pytest.mark.two_backends
@pytest.mark.parametrize("level", COMPILED_LEVELS)
@pytest.mark.parametrize(
    "shape", [(997,), (769, 521), (3, 3, 61, 67), (1, 1031), (5, 27127), (27127, 5)]
)
def test_large_odd_shapes_equal_the_transcription(shape, level):
    rule = RULES["moving average of means"]
    index = TensorIndex.from_shape(shape, level)
    steps = spread_gradients(shape, 1.0, seed=0, steps=3)
    np.testing.assert_allclose(
        library_update(rule, index, steps),
        reference_update(rule, index, steps),
        rtol=1e-5,
    )


@pytest.mark.one_backend
@pytest.mark.parametrize("rule", RULES.values(), ids=RULES)
@pytest.mark.parametrize("level", LEVELS)
def test_zero_gradients_give_zero_updates_and_leave_later_ones_exact(rule, level):
    for shape in [(), (50257,), (13, 7), (2, 3, 4), (1, 769, 521)]:
        index = TensorIndex.from_shape(shape, level)
        steps = np.zeros((3, *shape), "float32")
        assert np.all(library_update(rule, index, steps[:1]) == 0)
        steps[1] = 1e-15
        assert np.all(library_update(rule, index, steps) == 0)
        # Later updates are exact.
        steps[2] = np.random.default_rng(0).uniform(-2, 2, shape).round(2) * 1e-15
        np.testing.assert_allclose(
            library_update(rule, index, steps),
            reference_update(rule, index, steps),
            rtol=1e-5,
        )


@pytest.mark.parametrize("decades", [(-18, -12), (9, 15)])
@pytest.mark.parametrize("rule", COMPILED_RULES.values(), ids=COMPILED_RULES)
def test_updates_at_both_ends_of_the_documented_range_are_exact(rule, decades):
    rng = np.random.default_rng(0)
    for shape in [(5,), (40, 30), (2, 3, 4, 5, 6)]:
        steps = 10 ** rng.uniform(*decades, (STEPS, *shape))
        for level in COMPILED_LEVELS:
            index = TensorIndex.from_shape(shape, level)
            np.testing.assert_allclose(
                library_update(rule, index, steps.astype("float32")),
                reference_update(rule, index, steps.astype("float32")),
                rtol=1e-5,
            )


@pytest.mark.one_backend
@pytest.mark.parametrize(
    ("shape", "sizes"),
    [
        ((20, 12), (15, 16)),
        ((20, 12), (2, 10, 3, 4)),
        ((20, 12), (3, 8, 10)),
        ((6, 10, 8), (15, 4, 8)),
        ((7,), (1, 7)),
    ],
)
def test_updates_with_an_explicit_tensor_index_equal_the_transcription(shape, sizes):
    rule = RULES["moving average of means"]
    index = TensorIndex.from_sizes(shape, sizes)
    assert index.modes == sizes
    steps = spread_gradients(shape, 1.0, seed=1)
    np.testing.assert_allclose(
        library_update(rule, index, steps),
        reference_update(rule, index, steps),
        rtol=1e-5,
    )


@pytest.mark.one_backend
@pytest.mark.parametrize("level", LEVELS)
def test_the_documented_arguments_give_algorithm_1(level):
    rng = np.random.default_rng(0)
    start = rng.standard_normal((12, 10)).astype("float32")
    steps = rng.standard_normal((STEPS, 12, 10)).astype("float32")
    variable = keras.Variable(start, name="weights")
    optimizer = et_optimizer.ExtremeTensoring(
        0.1,
        level=level,
        beta_2=None,
        statistic="sum",
        epsilon=1e-8,
        clip_threshold=None,
        **PAPERS,
    )
    for gradient in steps:
        optimizer.apply([ops.convert_to_tensor(gradient)], [variable])
    index = TensorIndex.from_shape((12, 10), level)
    expected = start.astype("float64")
    for update in reference.updates(steps, lengths_and_modes(index), epsilon=1e-8):
        expected = expected - 0.1 * update
    np.testing.assert_allclose(
        ops.convert_to_numpy(variable), expected, rtol=1e-5, atol=1e-6
    )


@pytest.mark.one_backend
def test_clip_threshold_bounds_the_root_mean_square_of_the_update():
    rng = np.random.default_rng(0)
    shape, threshold = (33, 70), 0.4
    steps = rng.standard_normal((5, *shape)).astype("float32")
    for epsilon in (0.0, 1e-8):
        variable = keras.Variable(np.zeros(shape, "float32"))
        optimizer = et_optimizer.ExtremeTensoring(
            1.0,
            level=2,
            beta_2=0.9,
            epsilon=epsilon,
            clip_threshold=threshold,
            **PAPERS,
        )
        expected = np.zeros(shape)
        index = lengths_and_modes(TensorIndex.from_shape(shape, 2))
        raw = reference.updates(steps, index, beta_2=0.9, mean=True, epsilon=epsilon)
        for gradient, update in zip(steps, raw):
            optimizer.apply([ops.convert_to_tensor(gradient)], [variable])
            rms = np.sqrt(np.mean(update**2))
            assert rms > threshold
            expected -= update / max(1.0, rms / threshold)
        np.testing.assert_allclose(variable.numpy(), expected, rtol=2e-5, atol=1e-6)


@pytest.mark.one_backend
@pytest.mark.parametrize("momentum_dtype", ["float32", "bfloat16"])
def test_momentum_is_the_bias_corrected_average_of_updates(momentum_dtype):
    rng = np.random.default_rng(0)
    steps = rng.standard_normal((8, 6, 9)).astype("float32")
    variable = keras.Variable(np.zeros((6, 9), "float32"))
    optimizer = et_optimizer.ExtremeTensoring(
        0.5,
        level=2,
        beta_2=0.99,
        momentum_dtype=momentum_dtype,
        momentum_rank=None,
        clip_threshold=None,
        **PAPERS | {"beta_1": 0.9},
    )
    index = lengths_and_modes(TensorIndex.from_shape((6, 9), 2))
    average, expected = 0.0, 0.0
    raw = reference.updates(steps, index, beta_2=0.99, mean=True)
    for step, (gradient, update) in enumerate(zip(steps, raw), start=1):
        optimizer.apply([ops.convert_to_tensor(gradient)], [variable])
        average = 0.9 * average + 0.1 * update
        expected -= 0.5 * average / (1 - 0.9**step)
    tolerance = 1e-5 if momentum_dtype == "float32" else 2e-2
    np.testing.assert_allclose(
        variable.numpy(), expected, rtol=tolerance, atol=tolerance
    )


@pytest.mark.two_backends
@pytest.mark.parametrize("dtype", ["bfloat16", "float16", "float64"])
@pytest.mark.parametrize("level", COMPILED_LEVELS)
def test_weights_in_other_float_dtypes_have_float32_slots(dtype, level):
    if dtype == "float64" and BACKEND == "jax":
        pytest.skip("JAX has no float64 unless it is switched on for everything")
    rng = np.random.default_rng(0)
    start = rng.standard_normal((24, 9))
    gradient = ops.cast(rng.standard_normal((24, 9)), dtype)
    variable = keras.Variable(start, dtype=dtype, name="weights")
    before = ops.convert_to_numpy(ops.cast(variable, "float32")).astype("float64")
    optimizer = et_optimizer.ExtremeTensoring(0.125, level=level, beta_2=0.9, **PAPERS)
    optimizer.apply([gradient], [variable])
    slots = slots_of(optimizer)
    assert {keras.backend.standardize_dtype(v.dtype) for v in slots} == {"float32"}
    index = lengths_and_modes(TensorIndex.from_shape((24, 9), level))
    exact = ops.convert_to_numpy(ops.cast(gradient, "float32"))
    (update,) = reference.updates([exact], index, beta_2=0.9, mean=True)
    after = ops.convert_to_numpy(ops.cast(variable, "float32"))
    bits = {"bfloat16": 8, "float16": 11, "float64": 24}[dtype]
    np.testing.assert_allclose(
        after, before - 0.125 * update, rtol=0, atol=4 * 2**-bits
    )


@pytest.mark.skipif(
    BACKEND == "jax", reason="JAX has no float64 unless it is switched on"
)
@pytest.mark.parametrize("beta_1", [0.0, 0.9])
def test_weights_in_float64_keep_their_precision(beta_1):
    start = 1.0 + 1e-12 * np.arange(24.0).reshape(4, 6)
    gradient = np.zeros((4, 6))
    variable = keras.Variable(start, dtype="float64")
    optimizer = et_optimizer.ExtremeTensoring(0.125, beta_1=beta_1)
    optimizer.apply([ops.convert_to_tensor(gradient, "float64")], [variable])
    np.testing.assert_array_equal(variable.numpy(), start)
    gradient[1, 2] = 2.0
    optimizer.apply([ops.convert_to_tensor(gradient, "float64")], [variable])
    moved = variable.numpy() != start
    assert moved[1, 2] and moved.sum() == 1
