"""Adam with this library's learning rates for tokens."""

import keras
import numpy as np
import pytest

from et_optimizer.optimizers.learning_rates import TOKEN_SCALE
from tf_models.studies import token_rates


def variables_of_a_language_model():
    rng = np.random.default_rng(0)
    shapes = {"embeddings": (20, 4), "kernel": (4, 6), "bias": (6,)}
    return [
        keras.Variable(rng.standard_normal(shape).astype("float32"), name=name)
        for name, shape in shapes.items()
    ]


def changes(optimizer, gradients):
    """What some steps of an optimizer subtract from each variable."""
    variables = variables_of_a_language_model()
    before = [variable.numpy() for variable in variables]
    for step in gradients:
        optimizer.apply([keras.ops.convert_to_tensor(g) for g in step], variables)
    return [old - new.numpy() for old, new in zip(before, variables)]


def gradients(steps=3):
    rng = np.random.default_rng(1)
    shapes = [v.shape for v in variables_of_a_language_model()]
    return [
        [rng.standard_normal(shape).astype("float32") for shape in shapes]
        for _ in range(steps)
    ]


def test_tokens_take_larger_steps_and_all_others_those_of_keras():
    ours = changes(token_rates.Adam(0.01, beta_2=0.99), gradients())
    table, *others = ours
    of_keras, *expected = changes(keras.optimizers.Adam(0.01, beta_2=0.99), gradients())
    np.testing.assert_allclose(table, TOKEN_SCALE * of_keras, rtol=1e-4, atol=1e-6)
    for one, other in zip(others, expected):
        np.testing.assert_allclose(one, other, rtol=1e-4, atol=1e-6)


def test_the_bound_limits_every_entry_relative_to_the_rate():
    _, kernel, _ = changes(token_rates.Adam(0.01, update_bound=0.5), gradients(1))
    np.testing.assert_allclose(np.abs(kernel), 0.005, rtol=1e-4)


def test_its_configuration_makes_an_equal_optimizer():
    optimizer = token_rates.Adam(0.01, beta_2=0.99, update_bound=3.0)
    again = token_rates.Adam.from_config(optimizer.get_config())
    assert again.get_config() == optimizer.get_config()
    with pytest.raises(ValueError, match="amsgrad"):
        token_rates.Adam(0.01, amsgrad=True)
