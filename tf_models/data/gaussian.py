"""Gaussian data with an ill-conditioned covariance, for a convex problem.

Logistic regression on it is the synthetic study of Chen et al. (2020,
arXiv:1902.04620), on the expressiveness that a preconditioner needs.
"""

import math

import numpy as np
from sklearn.linear_model import LogisticRegression

# The standard deviation of the true logits. Larger ones make the classes separable, so
# that the objective has no minimum; smaller ones leave nothing to learn.
LOGIT_DEVIATION = 2.0


def gaussian_classification(
    *, examples=10_000, features=512, classes=10, condition_number=1e4, seed=0
):
    """Draws examples x ~ N(0, Σ) and their labels from a log-linear model.

    Σ is diagonal, so that a diagonal preconditioner such as AdaGrad's can express it.
    Its eigenvalues are log-spaced and have the sum `features`, a mean variance of 1.
    They are randomly assigned to features: in descending order they would be a
    geometric sequence, which is an outer product for every tensor index, so that each
    level of extreme tensoring would express them as well as AdaGrad.

    The labels follow P(y = k | x) = softmax(Wᵀx)ₖ with the entries of W (features ×
    classes) drawn from a Gaussian, of the width that gives every logit a standard
    deviation of `LOGIT_DEVIATION` on average over x and W.

    Args:
        examples: Number of examples, 1 or more.
        features: Length of an example, 2 or more.
        classes: Number of classes, 2 or more.
        condition_number: Largest eigenvalue of Σ over its smallest, 1 or more.
        seed: Integer, 0 or more, that selects the order of Σ, W, examples and labels.

    Returns:
        `x`, `float32` of shape (examples, features), and `y`, `int32` of shape
        (examples,) from 0 to `classes` − 1.

    Raises:
        ValueError: an argument is outside its range.
    """
    for name, value, least in (
        ("examples", examples, 1),
        ("features", features, 2),
        ("classes", classes, 2),
        ("seed", seed, 0),
    ):
        if not isinstance(value, (int, np.integer)) or value < least:
            raise ValueError(
                f"{name} must be a whole number, {least} or more; received {value!r}."
            )
    if not 1 <= condition_number < math.inf:
        raise ValueError(
            "condition_number must be a finite number, 1 or more; received "
            f"{condition_number!r}. It is the largest eigenvalue over the smallest."
        )
    generator = np.random.default_rng(seed)
    variances = generator.permutation(eigenvalues(features, condition_number))
    weights = generator.standard_normal((features, classes))
    weights *= LOGIT_DEVIATION / math.sqrt(features)  # Σ's trace is `features`.
    x = generator.standard_normal((examples, features)) * np.sqrt(variances)
    # The largest of the logits plus Gumbel noise is distributed as their softmax.
    y = np.argmax(x @ weights + generator.gumbel(size=(examples, classes)), axis=1)
    return x.astype(np.float32), y.astype(np.int32)


def eigenvalues(features, condition_number):
    """Returns the eigenvalues of Σ, descending: log-spaced, with sum `features`."""
    spaced = np.geomspace(1, 1 / condition_number, features)
    return spaced * (features / spaced.sum())


def least_loss(x, y):
    """Computes the minimum mean cross-entropy of logistic regression.

    It standardizes the features first, which does not change the minimum and makes the
    problem well-conditioned.

    Args:
        x: Examples, shape (examples, features).
        y: Integer labels, shape (examples,).

    Returns:
        The minimum over all weights, in nats.
    """
    x = x.astype(np.float64)
    x /= x.std(axis=0)
    solver = LogisticRegression(
        C=np.inf, fit_intercept=False, tol=1e-7, max_iter=10_000
    )
    probabilities = solver.fit(x, y).predict_proba(x)
    chosen = probabilities[np.arange(len(y)), np.searchsorted(solver.classes_, y)]
    return float(-np.log(chosen).mean())
