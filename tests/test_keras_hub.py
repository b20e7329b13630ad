"""KerasHub's language models: fine-tuning, LoRA, and resuming after a reload.

The models are tiny versions of KerasHub's own. They read Python's source as bytes.
"""

import argparse
import functools
import pathlib

import keras
import numpy as np
import pytest
from keras import ops

from et_optimizer import SM3, Adafactor, ExtremeTensoring, memory_report

keras_hub = pytest.importorskip("keras_hub")

VOCABULARY, WIDTH, LENGTH = 256, 32, 32


def gpt2():
    backbone = keras_hub.models.GPT2Backbone(
        vocabulary_size=VOCABULARY,
        num_layers=1,
        num_heads=2,
        hidden_dim=WIDTH,
        intermediate_dim=64,
        max_sequence_length=LENGTH,
        # Keras does not save the state of random generators.
        dropout=0.0,
    )
    return keras_hub.models.GPT2CausalLM(backbone=backbone, preprocessor=None)


def gemma():
    backbone = keras_hub.models.GemmaBackbone(
        vocabulary_size=VOCABULARY,
        num_layers=1,
        num_query_heads=2,
        num_key_value_heads=1,
        hidden_dim=WIDTH,
        intermediate_dim=64,
        head_dim=16,
    )
    return keras_hub.models.GemmaCausalLM(backbone=backbone, preprocessor=None)


FAMILIES = {"GPT-2": gpt2, "Gemma": gemma}
# Compiled backends compile one of them.
COMPILED = {"GPT-2": gpt2}
IN_USE = FAMILIES if keras.backend.backend() == "torch" else COMPILED
every_family = pytest.mark.parametrize("make", IN_USE.values(), ids=IN_USE)


def source_text(sequences=32):
    """Input bytes from the standard library, and the next byte of each as target."""
    text = pathlib.Path(argparse.__file__).read_bytes()[: sequences * (LENGTH + 1)]
    tokens = np.frombuffer(text, "uint8").astype("int32").reshape(sequences, -1)
    inputs = {
        "token_ids": tokens[:, :-1],
        "padding_mask": np.ones((sequences, LENGTH), "int32"),
    }
    return inputs, tokens[:, 1:]


def train(model, epochs):
    """The losses of further epochs over the same batches."""
    history = model.fit(
        *source_text(), batch_size=16, epochs=epochs, shuffle=False, verbose=0
    )
    return history.history["loss"]


def values(variables):
    return {v.path: ops.convert_to_numpy(v) for v in variables}


def assert_same_weights(one, other):
    one, other = values(one.weights), values(other.weights)
    assert list(one) == list(other)
    for path, value in one.items():
        np.testing.assert_allclose(other[path], value, rtol=0, atol=1e-6)


without_momentum = functools.partial(ExtremeTensoring, level=2, beta_1=0)


TUNED = [
    (gpt2, without_momentum, 3e-3),
    (gemma, functools.partial(ExtremeTensoring, momentum_rank=2), 3e-3),
    (gemma, without_momentum, 3e-3),
    (gpt2, functools.partial(SM3, momentum=0), 0.1),
    (gemma, functools.partial(Adafactor, beta_1=0), 0.1),
]
# Compiled backends train Gemma in the test of a reloaded model.
TUNED = TUNED if keras.backend.backend() == "torch" else TUNED[:1]


@pytest.mark.parametrize("make, optimizer, learning_rate", TUNED)
def test_full_fine_tuning_lowers_the_loss_with_little_state(
    make, optimizer, learning_rate
):
    model = make()
    model.compile(optimizer(learning_rate))
    losses = train(model, epochs=6)
    assert losses[-1] < 0.8 * losses[0]
    report = memory_report(model.optimizer)
    assert len(report.rows) == len(model.trainable_variables)
    assert report.slots < 0.1 * report.adam_slots


@pytest.mark.two_backends
@every_family
def test_tied_embeddings_have_one_set_of_slots_and_are_trained_as_output_layer(make):
    model = make()
    model.compile(ExtremeTensoring(3e-3, level=2, beta_1=0))
    inputs, targets = source_text()
    unread = VOCABULARY - 1  # not a byte of the corpus
    assert inputs["token_ids"].max() < unread
    embeddings = model.backbone.token_embedding.embeddings
    before = ops.convert_to_numpy(embeddings)[unread]
    model.train_on_batch(inputs, targets)
    # Only the output layer gives a gradient to a token that is never read.
    assert np.all(ops.convert_to_numpy(embeddings)[unread] != before)
    tables = [row for row in memory_report(model.optimizer).rows if 256 in row.shape]
    assert [row.path for row in tables] == ["token_embedding/embeddings"]
    # 256 = 16 · 16 and 32 = 4 · 8.
    assert tables[0].slots == 16 + 16 + 4 + 8


@every_family
def test_with_lora_only_the_lora_variables_have_slots_and_change(make):
    model = make()
    model.backbone.enable_lora(4)
    model.compile(ExtremeTensoring(0.01, level=1, beta_1=0))
    before = values(model.weights)
    losses = train(model, epochs=3)
    assert losses[-1] < losses[0]
    after = values(model.weights)
    changed = {path for path in after if np.any(after[path] != before[path])}
    trained = {v.path for v in model.trainable_variables}
    lora = {path for path in after if "/lora_kernel_" in path}
    assert len(lora) == 2 * 2  # a and b, of query and value
    # KerasHub keeps training the biases of these layers, which GPT-2 has.
    assert {path for path in trained - lora if not path.endswith("/bias")} == set()
    assert changed == trained >= lora
    report = memory_report(model.optimizer)
    assert {row.path for row in report.rows} == trained
    # One element per slice of every axis longer than 1.
    shapes = [v.shape for v in model.trainable_variables]
    assert report.slots == sum(n for shape in shapes for n in shape if n > 1)
    assert report.unassigned == 0


def compiled_and_built(model, beta_1=0.9):
    """The model with an optimizer that can load a saved state."""
    model.compile(ExtremeTensoring(3e-3, beta_1=beta_1))
    model.optimizer.build(model.trainable_variables)
    return model


def save_state(optimizer, path):
    state = {}
    optimizer.save_own_variables(state)
    np.savez(path, **state)


def test_a_reloaded_model_continues_as_if_never_saved(tmp_path):
    model = compiled_and_built(gemma())
    train(model, epochs=2)
    model.save(tmp_path / "model.keras")
    train(model, epochs=2)

    again = keras.models.load_model(tmp_path / "model.keras", compile=False)
    compiled_and_built(again).load_weights(tmp_path / "model.keras")
    train(again, epochs=2)
    assert_same_weights(model, again)


@pytest.mark.two_backends
@every_family
def test_bfloat16_weights_train_and_continue_bit_for_bit_after_a_reload(make, tmp_path):
    keras.config.set_dtype_policy("bfloat16")
    model = compiled_and_built(make(), beta_1=0.0)
    # The normalizations compute in float32, but their weights are bfloat16 too.
    assert {v.dtype for v in model.trainable_variables} == {"bfloat16"}
    losses = train(model, epochs=4)
    assert losses[-1] < 0.9 * losses[0]
    report = memory_report(model.optimizer)
    assert report.model_bytes == 2 * report.model_numbers
    model.save(tmp_path / "model.keras")
    train(model, epochs=2)
    again = keras.models.load_model(tmp_path / "model.keras", compile=False)
    compiled_and_built(again, beta_1=0.0).load_weights(tmp_path / "model.keras")
    train(again, epochs=2)
    for one, other in zip(model.weights, again.weights, strict=True):
        one, other = (ops.cast(v.value, "float32") for v in (one, other))
        np.testing.assert_array_equal(*map(ops.convert_to_numpy, (one, other)))


@pytest.mark.one_backend
def test_a_reloaded_preset_continues_as_if_never_saved(tmp_path):
    model = compiled_and_built(gpt2())
    train(model, epochs=2)
    model.save_to_preset(tmp_path / "preset")
    save_state(model.optimizer, tmp_path / "optimizer.npz")
    train(model, epochs=2)

    again = keras_hub.models.CausalLM.from_preset(str(tmp_path / "preset"))
    with np.load(tmp_path / "optimizer.npz") as state:
        compiled_and_built(again).optimizer.load_own_variables(state)
    train(again, epochs=2)
    assert_same_weights(model, again)


@pytest.mark.one_backend
def test_lora_on_a_reloaded_preset_continues_as_if_never_saved(tmp_path):
    model = gemma()
    model.save_to_preset(tmp_path / "base")
    model.backbone.enable_lora(4)
    train(compiled_and_built(model), epochs=2)
    model.backbone.save_lora_weights(tmp_path / "model.lora.h5")
    save_state(model.optimizer, tmp_path / "optimizer.npz")
    train(model, epochs=2)

    again = keras_hub.models.CausalLM.from_preset(str(tmp_path / "base"))
    again.backbone.load_lora_weights(tmp_path / "model.lora.h5")
    with np.load(tmp_path / "optimizer.npz") as state:
        compiled_and_built(again).optimizer.load_own_variables(state)
    train(again, epochs=2)
    assert_same_weights(model, again)


@pytest.mark.one_backend
def test_load_model_alone_warns_that_the_optimizer_state_is_not_loaded(tmp_path):
    model = compiled_and_built(gemma())
    model.save(tmp_path / "model.keras")
    with pytest.warns(UserWarning, match="Skipping variable loading for optimizer"):
        loaded = keras.models.load_model(tmp_path / "model.keras")
    # KerasHub's models compile themselves with Adam.
    assert isinstance(loaded.optimizer, keras.optimizers.Adam)
