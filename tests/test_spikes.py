"""A finite gradient far longer than those before it is bounded where that is asked."""

import keras
import numpy as np
import pytest
from keras import ops

from et_optimizer import Adafactor, ExtremeTensoring, SubsetNorm
from tests.optimizers import ONE_OF_EACH, OPTIMIZERS
from tests.updates import random_gradients

every_optimizer = pytest.mark.parametrize("make", OPTIMIZERS.values(), ids=OPTIMIZERS)
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


@pytest.mark.two_backends
@every_optimizer
def test_ordinary_gradients_are_left_alone_bit_for_bit(make):
    weights, bounded = trained(make(0.01, spike_threshold=10.0), NOISE[:8])
    others, free = trained(make(0.01, spike_threshold=None), NOISE[:8])
    np.testing.assert_array_equal(weights, others)
    for one, other in zip(bounded.variables, free.variables, strict=True):
        np.testing.assert_array_equal(one.numpy(), other.numpy())


def way(make, spike, **arguments):
    """How far down a quadratic 100 steps go after a step with a spike or without."""
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


def goes_on(make, **arguments):
    """Whether training goes on, after a spike, about as it does without one."""
    ratio = way(make, spike=True, **arguments) / way(make, spike=False)
    return 0.7 < ratio < 1.5


@pytest.mark.one_backend
@one_of_each
def test_training_goes_on_within_a_hundred_steps_of_one(make):
    assert goes_on(make, spike_threshold=3.0)


STOPPED_OR_DRIVEN_BY_ONE = {
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
@pytest.mark.parametrize(
    "make", STOPPED_OR_DRIVEN_BY_ONE.values(), ids=STOPPED_OR_DRIVEN_BY_ONE
)
def test_without_the_threshold_it_does_not(make):
    assert not goes_on(make)
    assert goes_on(make, spike_threshold=3.0)


def usual(gradients, beta_2):
    """The mean square of gradients, averaged over time in float64."""
    squares = [np.mean(np.float64(g) ** 2) for g in gradients]
    weights = [(beta_2 or 1.0) ** age for age in range(len(squares))][::-1]
    return np.average(squares, weights=weights)


@pytest.mark.two_backends
@pytest.mark.parametrize("beta_2", [None, 0.9, 0.999])
@pytest.mark.parametrize(
    "make", [ExtremeTensoring, SubsetNorm], ids=["ExtremeTensoring", "SubsetNorm"]
)
@pytest.mark.parametrize("size", [1e3, 1e18])
def test_the_gradient_is_scaled_to_so_many_times_the_usual_norm(make, beta_2, size):
    steps = list(NOISE[:6])
    spike = with_spike(steps[-1], size)
    limit = 5.0 * np.sqrt(usual(steps[:-1], beta_2))
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
    """Whether the last of some gradients is, after the others."""
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
def test_gradients_that_stay_large_become_the_usual_ones(make):
    steps = [*NOISE[:20], *(50 * noise for noise in NOISE[20:50])]
    assert is_bounded(make, steps[:21])
    assert not is_bounded(make, steps)


@pytest.mark.one_backend
@one_of_each
def test_steps_that_were_skipped_are_no_gradients(make):
    bad = with_spike(NOISE[0], np.nan)
    steps = [NOISE[0], *[bad] * 50, 8 * NOISE[0]]
    assert not is_bounded(make, steps)


@pytest.mark.two_backends
@one_of_each
def test_where_nothing_came_before_nothing_is_bounded(make):
    none = np.zeros(SHAPE, "float32")
    weights, _ = trained(make(0.01, spike_threshold=2.0), [none, NOISE[0]])
    others, _ = trained(make(0.01, spike_threshold=None), [none, NOISE[0]])
    np.testing.assert_array_equal(weights, others)


@pytest.mark.two_backends
def test_a_spike_that_is_not_finite_is_still_skipped():
    _, optimizer = trained(
        ExtremeTensoring(0.01, spike_threshold=3.0),
        [NOISE[0], with_spike(NOISE[1], np.inf), with_spike(NOISE[1], 3e38)],
    )
    assert optimizer.skipped_steps == {"kernel": 2}


@pytest.mark.parametrize(
    "make", [ExtremeTensoring, SubsetNorm, Adafactor], ids=lambda make: make.__name__
)
def test_rows_of_a_gradient_are_bounded_as_the_dense_one_is(make):
    if keras.backend.backend() != "tensorflow":
        pytest.skip("TensorFlow's form of rows")
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


@pytest.mark.parametrize("value", [0, -1.0, "10", np.inf])
def test_a_bad_threshold_is_refused(value):
    with pytest.raises(ValueError, match="spike_threshold must be"):
        ExtremeTensoring(spike_threshold=value)
