"""What optimizers hold, counted variable by variable."""

import subprocess
import sys

import keras
import numpy as np
import pytest

import et_optimizer
from et_optimizer import ExtremeTensoring, memory_report


def model():
    return keras.Sequential(
        [
            keras.Input((7,), dtype="int32"),
            keras.layers.Embedding(997, 12, name="embedding"),
            keras.layers.Conv1D(20, 3, name="conv"),
            keras.layers.GlobalAveragePooling1D(),
            keras.layers.LayerNormalization(name="norm"),
            keras.layers.Dense(512, name="dense"),
            keras.layers.Dense(512, name="dense_1"),
        ],
        name="net",
    )


def built(optimizer):
    optimizer.build(model().trainable_variables)
    return optimizer


@pytest.mark.parametrize("level", [1, 2, 3, "inf"])
def test_every_variable_held_is_a_mode_of_the_index(level):
    net = model()
    optimizer = ExtremeTensoring(level=level)
    optimizer.build(net.trainable_variables)
    held = [(v.name, tuple(v.shape), v.dtype) for v in optimizer.variables[2:]]
    expected = []
    for variable in net.trainable_variables:
        index = et_optimizer.TensorIndex.from_shape(variable.shape, level)
        for mode, shape in enumerate(index.slot_shapes):
            name = f"{variable.path.replace('/', '_')}_mode_{mode}"
            expected.append((name, shape, "float32"))
    assert held == expected
    assert [v.name for v in optimizer.variables[:2]] == ["iteration", "learning_rate"]


def test_levels_hold_what_the_formula_says():
    net = keras.Sequential([keras.Input((2000,)), keras.layers.Dense(512)])
    held = {}
    for level in (1, 2, 3, "inf"):
        optimizer = ExtremeTensoring(level=level)
        optimizer.build(net.trainable_variables)
        held[level] = memory_report(optimizer).slots
    assert held == {
        1: (2000 + 512) + 512,
        2: (40 + 50 + 16 + 32) + (16 + 32),
        3: (5 + 8 + 5 + 10 + 4 + 4 + 4 + 8) + (4 + 4 + 4 + 8),
        "inf": 2,
    }


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_only_momentum_keeps_a_tensor_of_the_variables_size(dtype):
    variable = keras.Variable(np.zeros((24, 20), "float32"), name="kernel")
    optimizer = ExtremeTensoring(beta_1=0.9, momentum_dtype=dtype)
    optimizer.build([variable])
    momentum = optimizer.variables[-1]
    assert momentum.name == "kernel_momentum" and momentum.dtype == dtype
    assert tuple(momentum.shape) == (24, 20)
    assert all(np.prod(v.shape) < 24 for v in optimizer.variables[:-1])


EVERY_KERAS_OPTIMIZER = [
    name
    for name in dir(keras.optimizers)
    if isinstance(getattr(keras.optimizers, name), type)
    and issubclass(getattr(keras.optimizers, name), keras.optimizers.Optimizer)
    and name not in ("Optimizer", "LossScaleOptimizer", "MultiOptimizer")
]


@pytest.mark.parametrize("name", EVERY_KERAS_OPTIMIZER)
def test_the_report_counts_all_that_any_keras_optimizer_holds(name):
    optimizer = built(getattr(keras.optimizers, name)())
    report = memory_report(optimizer)
    counters = ("iteration", "learning_rate")
    slots = [v for v in optimizer.variables if v.name not in counters]
    assert report.slots == sum(int(np.prod(v.shape)) for v in slots)
    assert report.bytes == sum(v.numpy().nbytes for v in slots)
    assert report.slots == sum(row.slots for row in report.rows) + report.unassigned


def test_the_report_deals_slots_out_to_their_variables():
    report = memory_report(built(keras.optimizers.Adam()))
    assert all(row.slots == 2 * row.model_numbers for row in report.rows)
    assert report.slots == report.adam_slots and report.unassigned == 0
    assert report.bytes == report.adam_bytes == 2 * report.model_bytes
    report = memory_report(built(keras.optimizers.Adafactor()))
    for row in report.rows:
        factored = 2  # two placeholders that Keras keeps for every vector
        if len(row.shape) > 1:
            lead = int(np.prod(row.shape[:-2]))
            factored = lead * (row.shape[-2] + row.shape[-1])
        assert row.slots == row.model_numbers + factored
    assert report.unassigned == 0


def test_variables_that_share_a_path_each_get_their_slots():
    towers = [
        keras.Sequential(
            [keras.Input((n,)), keras.layers.Dense(4, name="fc")], name="tower"
        )
        for n in (9, 25)
    ]
    variables = [v for tower in towers for v in tower.trainable_variables]
    for make in (keras.optimizers.Adam, lambda: ExtremeTensoring(level=1)):
        optimizer = make()
        optimizer.build(variables)
        held = [row.slots for row in memory_report(optimizer).rows]
        expected = {"Adam": [72, 8, 200, 8], "ExtremeTensoring": [13, 4, 29, 4]}
        assert held == expected[type(optimizer).__name__]


def test_the_report_sees_through_wrappers():
    scaled = built(keras.optimizers.LossScaleOptimizer(ExtremeTensoring()))
    plain = built(ExtremeTensoring())
    assert memory_report(scaled).slots == memory_report(plain).slots
    mixed = keras.optimizers.MultiOptimizer(
        keras.optimizers.OptimizerMap(
            keras.optimizers.Adam(), {".*dense.*": ExtremeTensoring()}
        )
    )
    report = memory_report(built(mixed))
    by_path = {row.path: row for row in report.rows}
    assert by_path["net/embedding/embeddings"].slots == 2 * 997 * 12
    assert by_path["net/dense_1/kernel"].slots == 2 * (16 + 32)


def test_the_printed_report_is_a_table_with_totals():
    text = str(memory_report(built(ExtremeTensoring())))
    for part in ("net/embedding/embeddings", "(997, 12)", "in all", "× less than Adam"):
        assert part in text
    assert "Adam would hold" in text
    assert "all of it" in str(memory_report(built(keras.optimizers.SGD())))


def test_the_printed_report_has_no_codes_of_a_terminal(monkeypatch):
    monkeypatch.setenv("FORCE_COLOR", "1")  # As Jupyter's kernels do.
    assert "\x1b" not in str(memory_report(built(ExtremeTensoring())))


def test_an_averaged_model_is_counted():
    report = memory_report(built(ExtremeTensoring(use_ema=True)))
    assert report.slots > report.model_numbers


COMPILED_WITHOUT_TEMPORARIES = """
import jax, keras, et_optimizer
from et_optimizer import SM3, Adafactor, ExtremeTensoring, SubsetNorm
assert keras.backend.backend() == "jax"
shapes = [(5003, 768), (768, 3072), (3, 3, 64, 128), (4096,)]
levels = [{"level": level} for level in ("inf", 1, 2, 3)]
rules = [(ExtremeTensoring, level) for level in levels]
rules += [(Adafactor, {}), (SubsetNorm, {})]
rules += [(rule, own | {"clip_threshold": 1.0}) for rule, own in rules]
# SM3 is not clipped here: on this backend XLA writes out constants for its norm.
rules += [(SM3, level) for level in levels] + [(SM3, {"variant": "I"})]
for rule, arguments in rules:
    optimizer = rule(**arguments)
    variables = [keras.Variable(jax.numpy.ones(s)) for s in shapes]
    optimizer.build(variables)
    state = [v.value for v in optimizer.variables]
    weights = [v.value for v in variables]
    compiled = jax.jit(optimizer.stateless_apply, donate_argnums=(0, 2)).lower(
        state, weights, weights
    ).compile()
    temporary = compiled.memory_analysis().temp_size_in_bytes
    assert temporary < 0.05 * 4 * 5003 * 768, (rule, arguments, temporary)
import sys
assert "tensorflow" not in sys.modules
"""


def test_the_compiled_step_makes_no_temporary_of_a_variables_size():
    pytest.importorskip("jax")
    environment = {"KERAS_BACKEND": "jax", "PATH": "/usr/bin:/bin"}
    subprocess.run(
        [sys.executable, "-c", COMPILED_WITHOUT_TEMPORARIES],
        env=environment,
        check=True,
        cwd=et_optimizer.__path__[0] + "/..",
    )
