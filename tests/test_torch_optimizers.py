"""PyTorch optimizers on Keras models, and the study that compares them with ours."""

import importlib.util

import keras
import numpy as np
import pytest

if keras.backend.backend() != "torch":
    pytest.skip("these optimizers run on PyTorch", allow_module_level=True)

import torch

from et_optimizer import memory_report
from et_optimizer.optimizers import learning_rates
from tf_models.models.transformer import transformer_language_model
from tf_models.studies import optimizers, presets, torch_optimizers
from tf_models.studies.contenders import CONTENDERS

VOCABULARY, LENGTH, WIDTH = 64, 8, 64
OF_TORCH = [name for name, one in CONTENDERS.items() if one.package]


def model(vocabulary=VOCABULARY):
    keras.utils.set_random_seed(0)
    return transformer_language_model(
        vocabulary, LENGTH, layers=1, width=WIDTH, heads=4, feed_forward_width=128
    )


def trained(optimizer, steps=3, vocabulary=VOCABULARY):
    """A trained model, and its losses in some steps on one batch."""
    made = model(vocabulary)
    made.compile(
        optimizer, keras.losses.SparseCategoricalCrossentropy(from_logits=True)
    )
    tokens = np.random.default_rng(0).integers(0, VOCABULARY, (2, 4, LENGTH))
    losses = [float(made.train_on_batch(*tokens)) for _ in range(steps)]
    return made, losses


def weights(made):
    return [keras.ops.convert_to_numpy(v) for v in made.trainable_variables]


def test_parameters_have_the_layout_of_pytorch_layers_and_convert_back():
    found = {}
    for variable in model().trainable_variables:
        layout = torch_optimizers.Layout(variable)
        there = layout.to_torch(variable.value.detach())
        assert tuple(there.shape) == layout.shape and there.is_contiguous()
        assert torch.equal(layout.to_keras(there), variable.value)
        found[layout.name] = layout.shape
    assert found["embed_tokens.weight"] == (VOCABULARY, WIDTH)
    assert found["embed_positions.weight"] == (LENGTH, WIDTH)
    for name in ("q_proj", "k_proj", "v_proj", "o_proj"):
        assert found[f"layers.0.self_attn.{name}.weight"] == (WIDTH, WIDTH)
        assert found[f"layers.0.self_attn.{name}.bias"] == (WIDTH,)
    assert found["layers.0.mlp.up_proj.weight"] == (128, WIDTH)
    assert found["layers.0.mlp.down_proj.weight"] == (WIDTH, 128)
    assert found["lm_head.weight"] == (VOCABULARY, WIDTH)
    assert found["layers.0.input_layernorm.weight"] == (WIDTH,)
    assert not any("/" in name for name in found)


def test_a_pytorch_layer_with_converted_parameters_gives_the_same_outputs():
    """Also for attention, whose Keras kernels have three axes."""
    x = torch.from_numpy(
        np.random.default_rng(0).standard_normal((2, 3, WIDTH))
    ).float()
    attention = keras.layers.MultiHeadAttention(4, WIDTH // 4, name="attention")
    attention.build(x.shape, x.shape)
    for dense in (attention._query_dense, attention._output_dense):
        kernel = dense.kernel
        name = "attention_output" if dense is attention._output_dense else "query"
        inputs = x if name == "query" else x.reshape(2, 3, 4, WIDTH // 4)
        layout = torch_optimizers.Layout(
            _At(kernel, f"block_0/attention/{name}/kernel")
        )
        there = torch.nn.functional.linear(x, layout.to_torch(kernel.value))
        np.testing.assert_allclose(
            keras.ops.convert_to_numpy(dense(inputs)).reshape(2, 3, WIDTH),
            there.detach(),
            atol=1e-5,
        )


class _At:
    """The shape of a variable with another path."""

    def __init__(self, variable, path):
        self.shape, self.path = variable.shape, path


def test_pytorch_adam_takes_the_same_steps_as_keras_adam():
    ours, losses = trained(keras.optimizers.Adam(0.01, beta_2=0.99), 20)
    theirs, others = trained(torch_optimizers.AdamW(0.01, beta_2=0.99), 20)
    # PyTorch adds ε to the root of the bias-corrected average, Keras before correction.
    np.testing.assert_allclose(losses, others, rtol=2e-3)
    start, one, other = (
        np.concatenate([weight.ravel() for weight in weights(made)])
        for made in (model(), ours, theirs)
    )
    assert np.linalg.norm(one - other) < 0.05 * np.linalg.norm(one - start)
    assert losses[-1] < losses[0]


def test_adam_of_tokens_scales_the_learning_rate_of_tokens_only():
    vocabulary = 3 * WIDTH  # Different from all other sizes.
    plain, _ = trained(torch_optimizers.AdamW(2.0**-10), 1, vocabulary)
    scaled, _ = trained(torch_optimizers.AdamWOfTokens(2.0**-10), 1, vocabulary)
    named = [(v.path, tuple(v.shape)) for v in model(vocabulary).trainable_variables]
    expected = learning_rates.rate_scales(["auto"] * len(named), named)
    assert sorted(set(expected)) == [1.0, learning_rates.TOKEN_SCALE]
    start, one, other = map(weights, (model(vocabulary), plain, scaled))
    for scale, before, *after in zip(expected, start, one, other, strict=True):
        changes = [np.linalg.norm(now - before) for now in after]
        assert changes[1] == pytest.approx(scale * changes[0], rel=1e-2)


def test_a_keras_schedule_sets_the_learning_rate():
    schedule = keras.optimizers.schedules.PiecewiseConstantDecay([1], [0.01, 0.0])
    first, _ = trained(torch_optimizers.AdamW(schedule), 2)
    last, _ = trained(torch_optimizers.AdamW(schedule), 4)
    for one, other in zip(weights(first), weights(last), strict=True):
        np.testing.assert_array_equal(one, other)
    assert last.optimizer.iterations == 4


def test_adam_has_two_state_elements_per_weight():
    made, _ = trained(torch_optimizers.AdamW(0.01))
    report = memory_report(made.optimizer)
    assert report.slots == 0
    assert made.optimizer.torch_state_size() == (report.adam_slots, report.adam_bytes)


# State bytes relative to Adam's, at these sizes: the claims of the papers.
SHARES = {
    "torch_adam": (1.0, 1.0),
    "adam_tokens": (1.0, 1.0),
    "adam_8bit": (0.25, 0.5),  # Vectors and small matrices in float32.
    "adam_4bit": (0.125, 0.4),
    "adam_mini": (0.5, 0.52),
    "galore": (0.4, 0.9),
    "fira": (0.4, 0.9),
    "apollo": (0.4, 0.9),
    "apollo_mini": (0.2, 0.6),
    "muon": (0.5, 0.9),
    "came": (0.5, 0.6),
    "soap": (1.5, 3.5),
    "racs": (0.001, 0.05),
}


@pytest.mark.parametrize("name", OF_TORCH)
def test_each_optimizer_trains_with_the_memory_that_its_paper_claims(name):
    contender = CONTENDERS[name]
    if contender.why_unavailable():
        pytest.skip(contender.why_unavailable())
    optimizer = optimizers.make(contender.optimizer, contender.learning_rate)
    made, losses = trained(optimizer, 4)
    assert np.isfinite(losses).all() and losses[-1] < losses[0]
    for before, after in zip(weights(model()), weights(made), strict=True):
        assert np.isfinite(after).all() and not np.array_equal(before, after)
    elements, state_bytes = optimizer.torch_state_size()
    least, most = SHARES[name]
    assert least <= state_bytes / memory_report(optimizer).adam_bytes <= most
    assert elements > 0


def test_the_study_has_all_installed_optimizers_and_names_the_others(monkeypatch):
    study = presets.peers("laptop")
    names = [entry.name for entry in study.entries]
    assert len(names) == len(set(names))
    assert {"et", "adam_99", "muon", "sketchy_128", "shampoo_low_rank"} <= set(names)
    for entry in study.entries:
        optimizers.parse(entry.optimizer)
        assert len(entry.rates) == 3
    (free,) = (entry for entry in study.entries if entry.name == "schedule_free")
    assert study.run(free, 0.01, 0).schedule == "constant"
    assert study.run(study.entries[0], 0.01, 0).schedule == "cosine"
    assert study.entry_of(CONTENDERS["et3"]).task == study.entries[0].task
    found = importlib.util.find_spec
    monkeypatch.setattr(
        importlib.util, "find_spec", lambda name: name != "came_pytorch" and found(name)
    )
    without = presets.peers("laptop")
    assert "came" not in {entry.name for entry in without.entries}
    left_out = "; ".join(without.left_out)
    assert "CAME: there is no package came_pytorch" in left_out and "SMMF" in left_out


def test_other_backends_are_refused(monkeypatch):
    monkeypatch.setattr(keras.backend, "backend", lambda: "jax")
    with pytest.raises(RuntimeError, match="'jax'. Set KERAS_BACKEND=torch"):
        torch_optimizers.AdamW(0.01)


def test_an_unknown_class_is_refused():
    with pytest.raises(ValueError, match="no optimizer 'torch.Adan'"):
        optimizers.parse("torch.Adan")
    assert optimizers.parse("torch.Came")[0] is torch_optimizers.Came


def test_with_arguments_keeps_the_class_and_its_arguments():
    text = optimizers.with_arguments("torch.AdamW(beta_2=0.9)", {"clipnorm": 1.0})
    assert text == "torch.AdamW(beta_2=0.9, clipnorm=1.0)"
    assert optimizers.parse(text)[0] is torch_optimizers.AdamW
