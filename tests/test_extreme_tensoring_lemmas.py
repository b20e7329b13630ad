"""The paper's lemmas on extreme tensoring, as properties of the library."""

import keras
import numpy as np
import pytest
from hypothesis import assume, given
from hypothesis import strategies as st
from keras import ops

import et_optimizer
from et_optimizer import TensorIndex
from et_optimizer.optimizers.extreme_tensoring import ExtremeTensoringRule
from tests.reference import extreme_tensoring as reference
from tests.updates import last_update, lengths_and_modes, random_gradients

pytestmark = pytest.mark.one_backend

levels = st.sampled_from([1, 2, 3, "inf"])
shapes = st.lists(st.integers(1, 13), max_size=3).map(tuple)
seeds = st.integers(0, 2**32 - 1)


ACCUMULATED = ExtremeTensoringRule(None, "sum", 0.0, "geometric")
# The lemmas hold for the paper's steps: without momentum and bound.
PAPERS = dict(combination="geometric", beta_1=0, update_bound=None)


@given(shape=shapes, level=levels, seed=seeds)
def test_the_preconditioner_is_at_least_adagrads_in_every_entry(shape, level, seed):
    steps = random_gradients(shape, seed)
    assume(np.all(np.abs(steps[-1]) > 1e-6))
    update = last_update(ACCUMULATED, TensorIndex.from_shape(shape, level), steps)
    preconditioner = steps[-1] / update
    assert np.all(preconditioner >= reference.adagrad(steps) * (1 - 1e-5))


@given(size=st.integers(1, 50), seed=seeds)
def test_with_one_mode_the_update_is_adagrads(size, seed):
    steps = random_gradients((size,), seed)
    update = last_update(ACCUMULATED, TensorIndex.from_shape((size,), 1), steps)
    np.testing.assert_allclose(update, steps[-1] / reference.adagrad(steps), rtol=1e-5)


@given(
    shape=shapes, level=levels, seed=seeds, beta_2=st.sampled_from([0.9, 0.99, 0.999])
)
def test_gradients_of_equal_size_give_adams_step(shape, level, seed, beta_2):
    # At every level and with padding, so Adam's learning rate can be used.
    rng = np.random.default_rng(seed)
    sizes = 10.0 ** rng.uniform(-2, 2, 5)
    ours = keras.Variable(np.zeros(shape, "float32"))
    adams = keras.Variable(np.zeros(shape, "float32"))
    optimizer = et_optimizer.ExtremeTensoring(
        0.1, level=level, beta_2=beta_2, clip_threshold=None, **PAPERS
    )
    adam = keras.optimizers.Adam(0.1, beta_1=0.0, beta_2=beta_2, epsilon=0.0)
    for size in sizes:
        signs = rng.choice([-1.0, 1.0], shape)
        gradient = ops.convert_to_tensor(size * signs, "float32")
        optimizer.apply([gradient], [ours])
        adam.apply([gradient], [adams])
    # Adam's bias correction in float32 has the larger rounding error.
    np.testing.assert_allclose(ours.numpy(), adams.numpy(), rtol=2e-4, atol=1e-5)


@given(
    shape=shapes,
    level=levels,
    seed=seeds,
    factor=st.sampled_from([1e-9, 3e-4, 7.0, 1e9]),
    statistic=st.sampled_from(["mean", "sum"]),
    beta_2=st.sampled_from([None, 0.99]),
)
def test_scaling_all_gradients_leaves_the_update_unchanged(
    shape, level, seed, factor, statistic, beta_2
):
    rule = ExtremeTensoringRule(beta_2, statistic, 0.0, "geometric")
    index, steps = TensorIndex.from_shape(shape, level), random_gradients(shape, seed)
    np.testing.assert_allclose(
        last_update(rule, index, steps * factor),
        last_update(rule, index, steps),
        rtol=1e-5,
    )


def traces(steps, index):
    """Tr H_T and Tr Ĥ_T, where entries without any gradient count 0."""
    sizes, slices = reference.coordinates(lengths_and_modes(index))
    squares = (np.asarray(steps, "float64") ** 2).sum(0).ravel()
    product = 1.0
    for size, at in zip(sizes, slices):
        sums = np.bincount(at, weights=squares, minlength=size)
        product = product * sums[at] ** (1 / (2 * len(sizes)))
    return product.sum(), np.sqrt(squares).sum()


@pytest.mark.parametrize("level", [1, 2, 3, "inf"])
@given(seed=seeds, shape=st.sampled_from([(9,), (4, 6), (7, 5), (3, 4, 5)]))
def test_regret_on_linear_losses_is_within_the_papers_bound(level, seed, shape):
    # The gradients of online linear losses over the box [-1, 1]^d do not depend on the
    # iterates, so D∞ = 2 and the lemma's learning rate are known before the first step.
    rng = np.random.default_rng(seed)
    drift = rng.standard_normal(shape) * rng.choice([0.0, 1.0])
    steps = drift + rng.standard_normal((30, *shape)) * 10 ** rng.uniform(-2, 2, shape)
    steps = steps.astype("float32")
    index = TensorIndex.from_shape(shape, level)
    trace, adagrad_trace = traces(steps, index)
    diameter = 2.0
    learning_rate = diameter * np.sqrt(trace / (2 * adagrad_trace))
    x = keras.Variable(np.zeros(shape, "float32"))
    x.constraint = lambda w: ops.clip(w, -1.0, 1.0)
    optimizer = et_optimizer.ExtremeTensoring(
        float(learning_rate),
        level=level,
        beta_2=None,
        statistic="sum",
        clip_threshold=None,
        **PAPERS,
    )
    loss = 0.0
    for gradient in steps:
        loss += np.sum(x.numpy().astype("float64") * gradient)
        optimizer.apply([ops.convert_to_tensor(gradient)], [x])
        assert np.abs(x.numpy()).max() <= 1.0
    best = -np.abs(steps.astype("float64").sum(0)).sum()
    assert loss - best <= diameter * np.sqrt(2 * trace * adagrad_trace)


@pytest.mark.parametrize("level", [1, 2, 3, "inf"])
@given(seed=seeds)
def test_regret_on_least_squares_is_within_the_bound_at_the_measured_diameter(
    level, seed
):
    # Here gradients depend on the iterates, and η is any learning rate: the paper's
    # proof gives D∞² Tr H_T / (2η) + η Tr Ĥ_T before η is optimized.
    rng = np.random.default_rng(seed)
    shape, count, learning_rate = (4, 6), 40, 0.5
    features = rng.standard_normal((count, 24)) * 10 ** rng.uniform(-1, 1, 24)
    targets = features @ rng.standard_normal(24) + rng.standard_normal(count)
    best = np.linalg.lstsq(features, targets, rcond=None)[0]
    x = keras.Variable(np.zeros(shape, "float32"))
    optimizer = et_optimizer.ExtremeTensoring(
        learning_rate,
        level=level,
        beta_2=None,
        statistic="sum",
        clip_threshold=None,
        **PAPERS,
    )
    regret, diameter, steps = 0.0, 0.0, []
    for row, target in zip(features, targets):
        at = x.numpy().astype("float64").ravel()
        regret += (row @ at - target) ** 2 - (row @ best - target) ** 2
        diameter = max(diameter, np.abs(at - best).max())
        steps.append((2 * (row @ at - target) * row).reshape(shape))
        optimizer.apply([ops.convert_to_tensor(steps[-1], "float32")], [x])
    trace, adagrad_trace = traces(steps, TensorIndex.from_shape(shape, level))
    bound = diameter**2 * trace / (2 * learning_rate) + learning_rate * adagrad_trace
    assert regret <= bound * (1 + 1e-5)
