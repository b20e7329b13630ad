"""The rank-one combination: against a transcription, and where it is exact."""

import warnings

import keras
import numpy as np
import pytest
from hypothesis import assume, given
from hypothesis import strategies as st
from keras import ops

import et_optimizer
from et_optimizer import TensorIndex
from et_optimizer.optimizers.adafactor import AdafactorRule
from et_optimizer.optimizers.extreme_tensoring import ExtremeTensoringRule
from tests.reference import rank_one as reference
from tests.updates import (
    last_update,
    lengths_and_modes,
    random_gradients,
    spread_gradients,
)

LEVELS = [1, 2, 3, "inf"]
BACKEND = keras.backend.backend()
RULES = {
    "moving average": dict(beta_2=0.9, epsilon=0.0),
    "long moving average with epsilon": dict(beta_2=0.999, epsilon=1e-8),
    "accumulating": dict(beta_2=None, epsilon=0.0),
    "accumulating with epsilon": dict(beta_2=None, epsilon=1e-8),
    "no memory": dict(beta_2=0.0, epsilon=0.0),
}
# Where every operation is compiled for every shape, few of them.
COMPILED_LEVELS = LEVELS if BACKEND == "torch" else [1, 3]
COMPILED_RULES = {
    name: rule
    for name, rule in RULES.items()
    if BACKEND == "torch" or name in ("moving average", "accumulating with epsilon")
}
seeds = st.integers(0, 2**32 - 1)
shapes = st.lists(st.sampled_from([1, 2, 3, 4, 5, 7, 8, 11, 12, 13]), max_size=5)


def rank_one(beta_2=0.9, epsilon=0.0):
    return ExtremeTensoringRule(beta_2, "mean", epsilon, "rank_one")


def assert_equals_the_transcription(rule, index, steps, **kwargs):
    update = last_update(rank_one(**rule), index, steps, **kwargs)
    *_, expected = reference.updates(steps, lengths_and_modes(index), **rule)
    assert np.all(np.isfinite(update))
    assert np.all(update[steps[-1] == 0] == 0)
    np.testing.assert_allclose(update, expected, rtol=1e-5)


@pytest.mark.one_backend
@pytest.mark.parametrize("rule", RULES.values(), ids=RULES)
@given(
    shape=shapes,
    level=st.sampled_from(LEVELS),
    exponent=st.integers(-12, 12),
    seed=seeds,
)
def test_updates_equal_the_transcription(rule, shape, level, exponent, seed):
    shape = tuple(shape)
    while np.prod(shape) > 20_000:
        shape = shape[:-1]
    index = TensorIndex.from_shape(shape, level)
    steps = spread_gradients(shape, 10.0**exponent, seed)
    assert_equals_the_transcription(rule, index, steps)


@pytest.mark.two_backends
@pytest.mark.parametrize("level", COMPILED_LEVELS)
@pytest.mark.parametrize(
    "shape", [(997,), (769, 521), (3, 3, 61, 67), (1, 1031), (5, 27127)]
)
def test_compiled_updates_of_large_odd_shapes_equal_the_transcription(shape, level):
    index = TensorIndex.from_shape(shape, level)
    steps = spread_gradients(shape, 1.0, seed=0, steps=3)
    assert_equals_the_transcription(
        RULES["moving average"], index, steps, is_compiled=True
    )


@pytest.mark.parametrize("decades", [(-18, -12), (9, 15)])
@pytest.mark.parametrize("rule", COMPILED_RULES.values(), ids=COMPILED_RULES)
def test_updates_at_both_ends_of_the_documented_range_are_exact(rule, decades):
    rng = np.random.default_rng(0)
    for shape in [(5,), (40, 30), (2, 3, 4, 5, 6)]:
        steps = (10 ** rng.uniform(*decades, (20, *shape))).astype("float32")
        for level in COMPILED_LEVELS:
            index = TensorIndex.from_shape(shape, level)
            assert_equals_the_transcription(rule, index, steps)


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
    index = TensorIndex.from_sizes(shape, sizes)
    steps = spread_gradients(shape, 1.0, seed=1)
    assert_equals_the_transcription(RULES["moving average"], index, steps)


@pytest.mark.one_backend
@pytest.mark.parametrize("level", LEVELS)
def test_the_weights_of_the_optimizer_equal_the_transcription(level):
    rng = np.random.default_rng(0)
    steps = rng.standard_normal((6, 12, 35)).astype("float32")
    variable = keras.Variable(np.zeros((12, 35), "float32"))
    optimizer = et_optimizer.ExtremeTensoring(
        0.1, level=level, beta_1=0.0, beta_2=0.9, update_bound=None
    )
    for gradient in steps:
        optimizer.apply([ops.convert_to_tensor(gradient)], [variable])
    index = lengths_and_modes(TensorIndex.from_shape((12, 35), level))
    expected = -0.1 * sum(reference.updates(steps, index, beta_2=0.9))
    np.testing.assert_allclose(variable.numpy(), expected, rtol=1e-5, atol=1e-6)


@pytest.mark.one_backend
@given(shape=shapes, seed=seeds, level=st.sampled_from([1, 2, 3]))
def test_second_moments_that_are_an_outer_product_are_estimated_exactly(
    shape, seed, level
):
    # An outer product over the modes of the level, so |update| is 1 everywhere.
    shape = tuple(shape)
    while np.prod(shape) > 5000:
        shape = shape[:-1]
    index = TensorIndex.from_shape(shape, level)
    assume(all(axis.cells == axis.length for axis in index.axes))
    rng = np.random.default_rng(seed)
    gradient = np.ones(())
    for size in index.modes:
        factor = 10 ** rng.uniform(-2, 2, size) * rng.choice([-1.0, 1.0], size)
        gradient = np.multiply.outer(gradient, factor)
    gradient = gradient.reshape(shape).astype("float32")
    update = last_update(rank_one(), index, [gradient, gradient])
    np.testing.assert_allclose(np.abs(update), 1.0, rtol=1e-5)


@pytest.mark.one_backend
@given(rows=st.integers(2, 13), columns=st.integers(2, 13), seed=seeds)
def test_with_two_modes_the_estimate_equals_adafactors(rows, columns, seed):
    steps = random_gradients((rows, columns), seed, steps=3)
    assume(np.all(np.abs(steps[-1]) > 1e-6))
    index = TensorIndex.from_shape((rows, columns), 1)
    update = last_update(rank_one(beta_2=0.9), index, steps)
    estimate = (steps[-1] / update) ** 2
    moments = sum(
        0.1 * 0.9 ** (2 - t) * steps[t].astype("float64") ** 2 for t in range(3)
    )
    moments /= 1 - 0.9**3
    row_means, column_means = moments.mean(1), moments.mean(0)
    expected = np.outer(row_means, column_means) / row_means.mean()
    np.testing.assert_allclose(estimate, expected, rtol=3e-5)


@pytest.mark.one_backend
@pytest.mark.parametrize("shape", [(7, 9), (40, 3)])
def test_with_two_modes_the_update_equals_that_of_the_adafactor_rule(shape):
    # At a decay of −1 Adafactor averages all steps with equal weights, as here.
    steps = random_gradients(shape, seed=0, steps=5)
    adafactor = AdafactorRule(-1.0, 1e-30, 1e-3, False, False)
    index = TensorIndex.of_matrices(shape)
    theirs = last_update(adafactor, index, steps)
    ours = last_update(rank_one(beta_2=None), TensorIndex.from_shape(shape, 1), steps)
    np.testing.assert_allclose(theirs / np.sqrt(len(steps)), ours, rtol=1e-5)


@pytest.mark.one_backend
@given(
    shape=shapes,
    level=st.sampled_from(LEVELS),
    seed=seeds,
    factor=st.sampled_from([1e-9, 3e-4, 7.0, 1e9]),
    beta_2=st.sampled_from([None, 0.99]),
)
def test_scaling_all_gradients_leaves_the_update_unchanged(
    shape, level, seed, factor, beta_2
):
    shape = tuple(shape[:3])
    index, steps = TensorIndex.from_shape(shape, level), random_gradients(shape, seed)
    np.testing.assert_allclose(
        last_update(rank_one(beta_2), index, steps * factor),
        last_update(rank_one(beta_2), index, steps),
        rtol=1e-5,
    )


@pytest.mark.one_backend
@given(shape=shapes, level=st.sampled_from(LEVELS), seed=seeds)
def test_the_estimate_has_the_trace_of_the_second_moments(shape, level, seed):
    shape = tuple(shape[:3])
    index = TensorIndex.from_shape(shape, level)
    # Padding would hold part of the trace.
    assume(all(axis.cells == axis.length for axis in index.axes))
    steps = random_gradients(shape, seed, steps=4)
    assume(np.all(np.abs(steps[-1]) > 1e-6))
    update = last_update(rank_one(beta_2=None), index, steps)
    trace = ((steps[-1].astype("float64") / update) ** 2).sum()
    moments = (steps.astype("float64") ** 2).sum()
    np.testing.assert_allclose(trace, moments, rtol=3e-5)


@pytest.mark.one_backend
def test_rank_one_may_be_below_adagrad_where_geometric_is_not():
    # For gradients on a diagonal v̂ = 1/n everywhere, and AdaGrad's estimate is 1.
    index = TensorIndex.from_shape((8, 8), 1)
    update = last_update(rank_one(beta_2=None), index, [np.eye(8, dtype="float32")])
    np.testing.assert_allclose(np.diag(update), np.sqrt(8), rtol=1e-6)
    geometric = ExtremeTensoringRule(None, "sum", 0.0, "geometric")
    update = last_update(geometric, index, [np.eye(8, dtype="float32")])
    np.testing.assert_allclose(np.diag(update), 1.0, rtol=1e-6)


@pytest.mark.one_backend
def test_the_statistic_sum_requires_the_geometric_combination():
    with pytest.raises(ValueError, match="statistic='sum'.*combination='geometric'"):
        et_optimizer.ExtremeTensoring(statistic="sum")


@pytest.mark.one_backend
def test_updates_are_exact_where_only_the_sum_over_slices_overflows():
    # The sum of every slice is within float32, and the sum of all slices is not.
    steps = np.full((1, 64, 300), 7e17, "float32")
    steps[0, 5, 7] = 1e17
    index = TensorIndex.from_shape((64, 300), 1)
    assert_equals_the_transcription(RULES["accumulating"], index, steps)


@pytest.mark.one_backend
def test_an_entry_in_nearly_empty_slices_gives_finite_updates():
    # An infinite factor, times the gradient of 0 beside it, would be NaN.
    gradient = np.zeros((2, 2, 2, 2), "float32")
    gradient[0] = 1e15
    gradient[1, 1, 1, 1] = 1e-18
    index = TensorIndex.from_shape(gradient.shape, 1)
    update = last_update(rank_one(), index, [gradient])
    assert np.all(np.isfinite(update)) and np.all(update[gradient == 0] == 0)


@pytest.mark.one_backend
@pytest.mark.parametrize("level", [1, 2, 3])
@pytest.mark.parametrize("shape", [(24, 18), (40,), (3, 3, 8, 4)])
def test_adams_usual_epsilon_hardly_changes_the_weights(level, shape):
    steps = 1e-3 * random_gradients(shape, seed=0)
    found = []
    for epsilon in (0.0, 1e-8):
        variable = keras.Variable(np.zeros(shape, "float32"))
        optimizer = et_optimizer.ExtremeTensoring(
            0.1, level=level, beta_1=0, epsilon=epsilon
        )
        for gradient in steps:
            optimizer.apply([ops.convert_to_tensor(gradient)], [variable])
        found.append(variable.numpy())
    np.testing.assert_allclose(*found, rtol=1e-3, atol=1e-5)


@pytest.mark.one_backend
def test_adams_epsilon_in_the_geometric_combination_warns():
    with pytest.warns(UserWarning, match="less than .*for p = 4 0.1, .*rank_one"):
        et_optimizer.ExtremeTensoring(combination="geometric", epsilon=1e-8)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        et_optimizer.ExtremeTensoring(
            combination="geometric", statistic="sum", epsilon=1e-8
        )
        et_optimizer.ExtremeTensoring(epsilon=1e-8)
