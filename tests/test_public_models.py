"""The memory table of public models, against published sizes and formulas."""

import math
import resource

import keras
import pytest
from absl import app

pytest.importorskip("keras_hub")

from benchmarks import public_models  # noqa: E402

by_tracing = pytest.mark.skipif(
    keras.backend.backend() != "jax",
    reason="models are counted during tracing with JAX",
)


@pytest.fixture(scope="module")
def counted():
    """The memory reports of every model in float32, without allocating any."""
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    found = {
        name: public_models.reports(model, "float32")
        for name, model in public_models.MODELS.items()
    }
    kibibytes = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before
    assert kibibytes < 2**18, "counting 43 GB of weights took memory"
    return found


@by_tracing
@pytest.mark.parametrize(
    "name, published",
    [
        ("GPT-2 small", 124_439_808),
        ("Gemma 2B", 2_506_172_416),
        ("Llama 3 8B", 8_030_261_248),
    ],
)
def test_the_models_have_the_published_number_of_weights(counted, name, published):
    for report in counted[name].values():
        assert report.model_numbers == published
        assert report.model_bytes == 4 * published


@by_tracing
@pytest.mark.parametrize("name", public_models.MODELS)
def test_state_sizes_follow_the_formulas(counted, name):
    reports = counted[name]
    shapes = [row.shape for row in reports["Adam"].rows]
    elements = sum(map(math.prod, shapes))
    assert reports["Adam"].slots == 2 * elements
    # One element per slice of every axis longer than 1: m + n for a matrix, n for a
    # vector.
    slices = sum(length for shape in shapes for length in shape if length > 1)
    assert reports["SM3 1"].slots == slices
    assert reports["ExtremeTensoring 1"].slots == slices
    # By default each matrix also has low-rank momentum, with 2 bytes per element.
    by_default = reports["ExtremeTensoring()"]
    assert by_default.bytes == by_default.momentum_bytes + 4 * slices
    for row in by_default.rows:
        if len(row.shape) == 2:
            rank = max(8, min(row.shape) // 32)
            elements_of_momentum = min(rank * sum(row.shape), math.prod(row.shape))
            assert row.momentum_bytes == 2 * elements_of_momentum
        elif len(row.shape) == 1:
            assert row.momentum_bytes == 2 * row.model_numbers
    # Rows and columns of each matrix in a stack, and all elements of vectors.
    rows_and_columns = sum(
        math.prod(shape[:-2]) * sum(shape[-2:]) if len(shape) > 1 else shape[0]
        for shape in shapes
    )
    assert reports["Adafactor"].slots == rows_and_columns
    # Keras's also has a full-size slot, and two scalars for every vector.
    vectors = [shape for shape in shapes if len(shape) == 1]
    lone_elements = sum(map(sum, vectors)) - 2 * len(vectors)
    extra = elements - lone_elements
    assert reports["keras Adafactor"].slots == rows_and_columns + extra
    assert all(report.unassigned == 0 for report in reports.values())


@by_tracing
def test_level_2_state_is_about_two_square_roots_per_axis(counted):
    rows = {row.path: row for row in counted["Llama 3 8B"]["ExtremeTensoring 2"].rows}
    # 128 256 = 334 · 384 and 4096 = 64 · 64.
    assert rows["token_embedding/embeddings"].slots == 334 + 384 + 2 * 64
    # 14 336 = 112 · 128.
    kernels = [row.slots for row in rows.values() if row.shape == (4096, 14_336)]
    assert kernels == 64 * [2 * 64 + 112 + 128]


@by_tracing
def test_bfloat16_weights_halve_the_state_of_keras_but_not_of_this_library(counted):
    model = public_models.MODELS["GPT-2 small"]
    for name, report in public_models.reports(model, "bfloat16").items():
        in_float32 = counted["GPT-2 small"][name]
        halved = name in ("Adam", "keras Adafactor")
        assert report.slots == in_float32.slots
        assert report.bytes * (2 if halved else 1) == pytest.approx(
            in_float32.bytes, rel=1e-5
        )


@pytest.mark.one_backend
def test_bytes_are_shown_in_the_largest_fitting_unit():
    shown = [public_models.in_units(n) for n in (1023, 1024, 3 * 2**19, 2**30)]
    assert shown == ["1023 bytes", "1.00 KiB", "1.50 MiB", "1.00 GiB"]


@by_tracing
def test_the_program_prints_a_table_for_each_model(capsys, monkeypatch):
    small = {"GPT-2 small": public_models.MODELS["GPT-2 small"]}
    monkeypatch.setattr(public_models, "MODELS", small)
    public_models.main([])
    printed = capsys.readouterr().out
    assert "GPT-2 small: 124,439,808 weights" in printed
    width = max(map(len, public_models.NAMES))
    for name in public_models.NAMES:
        assert f"│ {name:>{width}} │" in printed


@pytest.mark.one_backend
@pytest.mark.skipif(keras.backend.backend() == "jax", reason="JAX is accepted")
def test_other_backends_are_refused_with_the_remedy():
    with pytest.raises(app.UsageError, match="KERAS_BACKEND=jax"):
        public_models.main([])
