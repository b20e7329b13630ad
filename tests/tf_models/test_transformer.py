"""The language model."""

import math

import keras
import numpy as np
import pytest

from tf_models.models.transformer import transformer_language_model

LENGTH = 12


@pytest.fixture(scope="module")
def model():
    keras.utils.set_random_seed(0)
    return transformer_language_model(256, LENGTH, width=32, feed_forward_width=64)


def some_tokens(rows=2):
    return np.random.default_rng(0).integers(0, 256, (rows, LENGTH))


@pytest.mark.parametrize("position", [0, 1, 5, LENGTH - 1])
def test_logits_do_not_depend_on_later_bytes(model, position):
    tokens = some_tokens()
    changed = tokens.copy()
    changed[:, position] = (changed[:, position] + 1) % 256
    before, after = model(tokens).numpy(), model(changed).numpy()
    np.testing.assert_array_equal(before[:, :position], after[:, :position])
    # Every later position does see the change, so the test above is not empty.
    assert np.abs(before - after)[:, position:].max(axis=-1).min() > 0


def test_logits_depend_on_the_order_of_earlier_bytes(model):
    tokens = some_tokens()
    swapped = tokens.copy()
    swapped[:, [0, 1]] = tokens[:, [1, 0]]
    last = model(tokens).numpy()[:, -1], model(swapped).numpy()[:, -1]
    assert not np.allclose(*last)


def test_every_position_has_logits_for_every_token(model):
    assert model(some_tokens(rows=3)).shape == (3, LENGTH, 256)


def test_the_default_model_has_almost_half_a_million_parameters():
    numbers = transformer_language_model(256, 96).count_params()
    assert 400_000 <= numbers <= 500_000


def test_the_initial_loss_is_about_that_of_random_guessing(model):
    loss = keras.losses.SparseCategoricalCrossentropy(from_logits=True)
    tokens = some_tokens(rows=8)
    assert float(loss(tokens, model(tokens))) == pytest.approx(math.log(256), rel=0.3)


def test_a_saved_model_computes_the_same_logits(model, tmp_path):
    model.save(tmp_path / "model.keras")
    loaded = keras.saving.load_model(tmp_path / "model.keras")
    tokens = some_tokens()
    np.testing.assert_array_equal(model(tokens).numpy(), loaded(tokens).numpy())


def test_a_width_that_is_no_multiple_of_the_heads_is_refused():
    with pytest.raises(ValueError, match="received width=30 and heads=4. Change one"):
        transformer_language_model(256, LENGTH, width=30)
