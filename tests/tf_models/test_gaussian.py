"""The data of the convex study."""

import numpy as np
import pytest

from tf_models.data.gaussian import eigenvalues, gaussian_classification


def test_the_data_has_the_requested_shape_and_every_class():
    x, y = gaussian_classification(examples=500, features=12, classes=4)
    assert x.shape == (500, 12) and x.dtype == np.float32
    assert y.shape == (500,) and y.dtype == np.int32
    assert set(y.tolist()) == {0, 1, 2, 3}


def test_the_eigenvalues_are_log_spaced_with_the_requested_condition_number():
    spectrum = eigenvalues(512, 1e4)
    assert spectrum[0] / spectrum[-1] == pytest.approx(1e4)
    assert spectrum.sum() == pytest.approx(512)
    np.testing.assert_allclose(spectrum[1:] / spectrum[:-1], 1e-4 ** (1 / 511))


def test_the_features_are_independent_and_have_these_variances():
    x, _ = gaussian_classification(examples=200_000, features=6, condition_number=100)
    covariance = np.cov(x, rowvar=False)
    variances = np.diag(covariance)
    expected = eigenvalues(6, 100)
    np.testing.assert_allclose(sorted(variances), sorted(expected), rtol=0.02)
    correlation = covariance / np.sqrt(np.outer(variances, variances))
    np.testing.assert_allclose(correlation, np.eye(6), atol=0.01)


def test_no_tensor_index_expresses_the_variances_exactly():
    # In order, their logarithms in a 16 × 32 grid would be a sum of rows and columns.
    x, _ = gaussian_classification()
    logarithms = np.log(x.var(axis=0)).reshape(16, 32)
    rows = logarithms.mean(axis=1, keepdims=True)
    columns = logarithms.mean(axis=0, keepdims=True)
    unexplained = logarithms - rows - columns + logarithms.mean()
    assert unexplained.var() > 0.8 * logarithms.var()


def test_the_labels_follow_a_log_linear_model():
    # Between two classes the log odds are linear in x: the mean difference of the
    # classes, less Σ's scaling, then points along w, and half the plane is a class.
    x, y = gaussian_classification(
        examples=200_000, features=4, classes=2, condition_number=1
    )
    w = x[y == 1].mean(axis=0) - x[y == 0].mean(axis=0)
    margin = x @ (w / np.linalg.norm(w))
    edges = np.quantile(margin, np.linspace(0, 1, 41))
    bins = np.clip(np.searchsorted(edges, margin) - 1, 0, 39)
    share = np.bincount(bins, y) / np.bincount(bins)
    center = np.bincount(bins, margin) / np.bincount(bins)
    log_odds = np.log(share / (1 - share))
    assert np.corrcoef(log_odds[3:-3], center[3:-3])[0, 1] > 0.995
    # And what is left of x, across w, says nothing.
    across = x - np.outer(margin, w / np.linalg.norm(w))
    gap = across[y == 1].mean(axis=0) - across[y == 0].mean(axis=0)
    np.testing.assert_allclose(gap, 0, atol=0.02)


def test_the_data_is_a_function_of_the_seed():
    def drawn(seed):
        return gaussian_classification(examples=20, features=5, seed=seed)

    for first, again in zip(drawn(3), drawn(3)):
        np.testing.assert_array_equal(first, again)
    assert not np.array_equal(drawn(3)[0], drawn(4)[0])


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"examples": 0}, "examples must be a whole number, 1 or more; received 0"),
        ({"features": 1}, "features must be a whole number, 2 or more; received 1"),
        ({"classes": 1}, "classes must be a whole number, 2 or more; received 1"),
        ({"seed": -1}, "seed must be a whole number, 0 or more; received -1"),
        ({"seed": 0.5}, "seed must be a whole number, 0 or more; received 0.5"),
        ({"condition_number": 0.5}, "condition_number must be .* received 0.5"),
        ({"condition_number": np.nan}, "condition_number must be .* received nan"),
        ({"condition_number": np.inf}, "condition_number must be .* received inf"),
    ],
)
def test_an_argument_out_of_range_is_refused(arguments, message):
    with pytest.raises(ValueError, match=message):
        gaussian_classification(**arguments)
