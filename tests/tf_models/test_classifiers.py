"""The small classifiers."""

import math

import keras
import numpy as np
import pytest
import tensorflow as tf
from sklearn.linear_model import LogisticRegression

from tf_models.data.gaussian import gaussian_classification
from tf_models.models.classifiers import logistic_regression, mlp

CROSS_ENTROPY = keras.losses.SparseCategoricalCrossentropy(from_logits=True)


def train(model, x, y, *, rate, steps):
    """Adam on the whole data set, as a program of XLA; returns the last loss."""
    model.compile(keras.optimizers.Adam(rate), CROSS_ENTROPY, jit_compile=True)
    batches = tf.data.Dataset.from_tensors((x, y)).repeat(steps)
    options = tf.data.Options()
    options.autotune.enabled = False
    model.fit(batches.with_options(options), shuffle=False, verbose=0)
    return float(CROSS_ENTROPY(y, model(x)))


def test_the_mlp_has_the_requested_hidden_layers():
    model = mlp((8, 8, 1), 10, hidden=(16, 12))
    assert model.count_params() == 65 * 16 + 17 * 12 + 13 * 10
    assert model(np.ones((3, 8, 8, 1))).shape == (3, 10)
    assert mlp((32, 32, 3), 10).count_params() == 3073 * 512 + 513 * 512 + 5130


def test_the_mlp_computes_what_its_weights_say():
    model = mlp((2, 3), 4, hidden=(5,))
    generator = np.random.default_rng(0)
    w, b, v, c = (generator.normal(size=v.shape) for v in model.trainable_variables)
    model.set_weights([w, b, v, c])
    x = generator.normal(size=(7, 2, 3))
    expected = np.maximum(x.reshape(7, 6) @ w + b, 0) @ v + c
    np.testing.assert_allclose(model(x), expected, rtol=1e-4, atol=1e-5)


def test_logistic_regression_starts_at_zero_for_every_seed():
    model = logistic_regression(6, 3)
    assert [v.shape for v in model.trainable_variables] == [(6, 3)]
    x, y = gaussian_classification(examples=50, features=6, classes=3)
    assert float(CROSS_ENTROPY(y, model(x))) == pytest.approx(math.log(3))


def test_logistic_regression_trains_to_the_minimum_under_xla():
    x, y = gaussian_classification(
        examples=400, features=4, classes=3, condition_number=10
    )
    # An oracle: scikit-learn's minimum of the same loss, with next to no ridge.
    oracle = LogisticRegression(C=1e8, fit_intercept=False, tol=1e-8, max_iter=1000)
    minimum = -np.log(oracle.fit(x, y).predict_proba(x)[np.arange(400), y]).mean()
    model = logistic_regression(4, 3)
    loss = train(model, x, y, rate=0.1, steps=300)
    assert minimum - 1e-5 < loss < minimum + 1e-3


def test_the_mlp_learns_under_xla():
    x, y = gaussian_classification(examples=256, features=8, classes=3)
    model = mlp((8,), 3, hidden=(16,))
    before = float(CROSS_ENTROPY(y, model(x)))
    assert train(model, x, y, rate=0.01, steps=60) < 0.6 * before
