"""`spike_threshold` bounds a gradient whose norm is far above its running value."""

import keras
import numpy as np
import pytest
from keras import ops

from et_optimizer import Adafactor, ExtremeTensoring, SubsetNorm
from tests.optimizers import LION, ONE_OF_EACH, OPTIMIZERS
from tests.updates import random_gradients

# Lion keeps no statistics, and so has no running norm.
every_optimizer_with_statistics = pytest.mark.parametrize(
    "name", [name for name in OPTIMIZERS if name != LION]
)
one_of_each = pytest.mark.parametrize("make", ONE_OF_EACH.values(), ids=ONE_OF_EACH)

SHAPE = (24, 18)
NOISE = random_gradients(SHAPE, seed=0, steps=140)


def with_spike(gradient, size=1e18):
    gradient = gradient.copy()
    gradient[5, 7] = size
    return gradient


def trained(optimizer, gradients):
    variable = keras.Variable(np.ones(SHAPE, "float32"), name="kernel")
    for gradient in gradients:
        optimizer.apply([ops.convert_to_tensor(gradient)], [variable])
    return variable.numpy(), optimizer


@pytest.mark.one_backend
@every_optimizer_with_statistics
def test_gradients_below_the_threshold_are_unchanged_bit_for_bit(name):
    make = OPTIMIZERS[name]
    weights, bounded = trained(make(0.01, spike_threshold=10.0), NOISE[:8])
    others, free = trained(make(0.01, spike_threshold=None), NOISE[:8])
    np.testing.assert_array_equal(weights, others)
    for one, other in zip(bounded.variables, free.variables, strict=True):
        np.testing.assert_array_equal(one.numpy(), other.numpy())


def distance_after_step_40(make, spike, **arguments):
    """How far 100 steps descend a quadratic after a step with or without a spike."""
    variable = keras.Variable(np.full(SHAPE, 3.0, "float32"), name="kernel")
    arguments = {"spike_threshold": None} | arguments
    optimizer = make(learning_rate=0.01, **arguments)
    for step, noise in enumerate(NOISE):
        gradient = variable.numpy() + 0.1 * noise
        if step == 39 and spike:
            gradient = with_spike(gradient)
        optimizer.apply([ops.convert_to_tensor(gradient)], [variable])
        if step == 39:
            before = variable.numpy()
    return np.mean(before - variable.numpy())


def recovers(make, **arguments):
    """Whether training descends after a spike about as far as without one."""
    with_one = distance_after_step_40(make, spike=True, **arguments)
    ratio = with_one / distance_after_step_40(make, spike=False)
    return 0.7 < ratio < 1.5


@pytest.mark.one_backend
@one_of_each
def test_with_a_threshold_training_recovers_from_a_spike_in_100_steps(make):
    assert recovers(make, spike_threshold=3.0)


HARMED_BY_A_SPIKE = {
    name: OPTIMIZERS[name]
    for name in (
        "ExtremeTensoring",
        "ExtremeTensoring in a subspace in int8",
        "ExtremeTensoring level inf",
        "ExtremeTensoring level 1",
        "SketchyAdagrad averaging",
    )
}


@pytest.mark.one_backend
@pytest.mark.parametrize("make", HARMED_BY_A_SPIKE.values(), ids=HARMED_BY_A_SPIKE)
def test_without_a_threshold_a_spike_stops_or_derails_training(make):
    assert not recovers(make)
    assert recovers(make, spike_threshold=3.0)


def mean_square_over_time(gradients, beta_2):
    """The mean square of gradients, averaged over time in float64."""
    squares = [np.mean(np.float64(g) ** 2) for g in gradients]
    weights = [(beta_2 or 1.0) ** age for age in range(len(squares))][::-1]
    return np.average(squares, weights=weights)


@pytest.mark.one_backend
@pytest.mark.parametrize("beta_2", [None, 0.9, 0.999])
@pytest.mark.parametrize(
    "make", [ExtremeTensoring, SubsetNorm], ids=["ExtremeTensoring", "SubsetNorm"]
)
@pytest.mark.parametrize("size", [1e3, 1e18])
def test_a_spike_is_scaled_to_the_threshold_times_the_running_norm(make, beta_2, size):
    steps = list(NOISE[:6])
    spike = with_spike(steps[-1], size)
    limit = 5.0 * np.sqrt(mean_square_over_time(steps[:-1], beta_2))
    by_hand = spike * (limit / np.sqrt(np.mean(np.float64(spike) ** 2)))
    arguments = {"beta_2": beta_2, "momentum_dtype": "float32"}
    weights, bounded = trained(
        make(0.01, spike_threshold=5.0, **arguments), [*steps[:-1], spike]
    )
    others, free = trained(make(0.01, **arguments), [*steps[:-1], np.float32(by_hand)])
    np.testing.assert_allclose(weights, others, rtol=1e-5)
    for one, other in zip(bounded.variables, free.variables, strict=True):
        np.testing.assert_allclose(one.numpy(), other.numpy(), rtol=2e-5, atol=1e-7)


def is_bounded(make, gradients):
    """Whether a threshold of 10 changes the step of the last gradient."""
    found = []
    for threshold in (10.0, None):
        variable = keras.Variable(np.ones(SHAPE, "float32"), name="kernel")
        before = make(0.01, spike_threshold=10.0)
        for gradient in gradients[:-1]:
            before.apply([ops.convert_to_tensor(gradient)], [variable])
        state = {}
        before.save_own_variables(state)
        optimizer = make(0.01, spike_threshold=threshold)
        optimizer.build([variable])
        optimizer.load_own_variables(state)
        optimizer.apply([ops.convert_to_tensor(gradients[-1])], [variable])
        found.append([v.numpy() for v in (variable, *optimizer.variables)])
    return any(np.any(one != other) for one, other in zip(*found, strict=True))


@pytest.mark.one_backend
@one_of_each
def test_gradients_that_stay_large_are_bounded_only_at_first(make):
    steps = [*NOISE[:20], *(50 * noise for noise in NOISE[20:50])]
    assert is_bounded(make, steps[:21])
    assert not is_bounded(make, steps)


@pytest.mark.one_backend
@one_of_each
def test_skipped_steps_do_not_lower_the_running_norm(make):
    bad = with_spike(NOISE[0], np.nan)
    steps = [NOISE[0], *[bad] * 50, 8 * NOISE[0]]
    assert not is_bounded(make, steps)


@pytest.mark.one_backend
@one_of_each
def test_the_first_nonzero_gradient_is_not_bounded(make):
    none = np.zeros(SHAPE, "float32")
    weights, _ = trained(make(0.01, spike_threshold=2.0), [none, NOISE[0]])
    others, _ = trained(make(0.01, spike_threshold=None), [none, NOISE[0]])
    np.testing.assert_array_equal(weights, others)


@pytest.mark.one_backend
def test_a_nonfinite_spike_is_skipped():
    _, optimizer = trained(
        ExtremeTensoring(0.01, spike_threshold=3.0),
        [NOISE[0], with_spike(NOISE[1], np.inf), with_spike(NOISE[1], 3e38)],
    )
    assert optimizer.skipped_steps == {"kernel": 2}


@pytest.mark.parametrize(
    "make", [ExtremeTensoring, SubsetNorm, Adafactor], ids=lambda make: make.__name__
)
def test_a_sparse_gradient_is_bounded_like_the_dense_one(make):
    if keras.backend.backend() != "tensorflow":
        pytest.skip("tf.IndexedSlices")
    import tensorflow as tf

    rows = [3, 1, 3]
    dense = [np.zeros(SHAPE, "float32") for _ in range(4)]
    values = [NOISE[step][:3] * (1e9 if step == 3 else 1.0) for step in range(4)]
    for gradient, of_rows in zip(dense, values):
        np.add.at(gradient, rows, of_rows)
    arguments = {"spike_threshold": 4.0, "beta_1": 0.0}
    expected, _ = trained(make(0.01, **arguments), dense)
    variable, optimizer = keras.Variable(np.ones(SHAPE)), make(0.01, **arguments)
    for of_rows in values:
        slices = tf.IndexedSlices(of_rows, tf.constant(rows), SHAPE)
        optimizer.apply([slices], [variable])
    np.testing.assert_allclose(variable.numpy(), expected, rtol=1e-5)


@pytest.mark.one_backend
@pytest.mark.parametrize("value", [0, -1.0, "10", np.inf])
def test_an_invalid_threshold_is_refused(value):
    with pytest.raises(ValueError, match="spike_threshold must be"):
        ExtremeTensoring(spike_threshold=value)
