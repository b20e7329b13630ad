"""`memory_report`, and the state that it counts."""

import os
import subprocess
import sys

import keras
import numpy as np
import pytest

import et_optimizer
from et_optimizer import ExtremeTensoring, memory_report
from tests.optimizers import slots_of


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


@pytest.mark.one_backend
@pytest.mark.parametrize("level", [1, 2, 3, "inf"])
def test_without_momentum_the_state_is_one_slot_per_mode_of_the_index(level):
    net = model()
    optimizer = ExtremeTensoring(level=level, beta_1=0)
    optimizer.build(net.trainable_variables)
    state = [(v.name, tuple(v.shape), v.dtype) for v in slots_of(optimizer)]
    expected = []
    for variable in net.trainable_variables:
        index = et_optimizer.TensorIndex.from_shape(variable.shape, level)
        for mode, shape in enumerate(index.slot_shapes):
            name = f"{variable.path.replace('/', '_')}_mode_{mode}"
            expected.append((name, shape, "float32"))
    assert state == expected
    assert [v.name for v in optimizer.variables[:2]] == ["iteration", "learning_rate"]


@pytest.mark.one_backend
def test_the_state_of_each_level_is_the_sum_of_the_papers_modes():
    net = keras.Sequential([keras.Input((2000,)), keras.layers.Dense(512)])
    slots = {}
    for level in (1, 2, 3, "inf"):
        optimizer = ExtremeTensoring(level=level, beta_1=0)
        optimizer.build(net.trainable_variables)
        slots[level] = memory_report(optimizer).slots
    assert slots == {
        1: (2000 + 512) + 512,
        2: (40 + 50 + 16 + 32) + (16 + 32),
        3: (5 + 8 + 5 + 10 + 4 + 4 + 4 + 8) + (4 + 4 + 4 + 8),
        "inf": 2,
    }


@pytest.mark.one_backend
@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_full_momentum_is_the_only_state_of_the_variables_size(dtype):
    variable = keras.Variable(np.zeros((24, 20), "float32"), name="kernel")
    optimizer = ExtremeTensoring(
        level=2, beta_1=0.9, momentum_dtype=dtype, momentum_rank=None
    )
    optimizer.build([variable])
    *others, momentum = slots_of(optimizer)
    assert momentum.name == "kernel_momentum" and momentum.dtype == dtype
    assert tuple(momentum.shape) == (24, 20)
    assert all(np.prod(v.shape) < 24 for v in others)


# A shape, and the shorter and longer side of its matrix.
MATRICES = [
    ((24, 20), 20, 24),
    ((20, 24), 20, 24),
    ((3, 3, 8, 16), 16, 3 * 3 * 8),
    ((48, 4, 12), 48, 4 * 12),
]
BYTES = {"float32": 4, "bfloat16": 2, "int8": 1}


def state_of(shape, **arguments):
    """The bytes of a variable's state by name, and the variable's row of the report."""
    variable = keras.Variable(np.zeros(shape, "float32"), name="kernel")
    optimizer = ExtremeTensoring(level=1, beta_1=0.9, **arguments)
    optimizer.build([variable])
    state = {
        v.name.removeprefix("kernel_"): int(np.prod(v.shape)) * BYTES[v.dtype]
        for v in slots_of(optimizer)
    }
    (row,) = memory_report(optimizer).rows
    assert row.bytes == sum(state.values())
    assert list(row.names) == [f"kernel_{name}" for name in state]
    return state, row


@pytest.mark.one_backend
@pytest.mark.parametrize("dtype", BYTES)
@pytest.mark.parametrize("rank", [1, 7])
@pytest.mark.parametrize(("shape", "shorter", "longer"), MATRICES)
def test_subspace_momentum_is_a_basis_and_one_row_per_rank(
    shape, shorter, longer, rank, dtype
):
    state, row = state_of(shape, momentum_rank=rank, momentum_dtype=dtype)
    expected = {
        # The basis is on the shorter side, in 16 bits even if the momentum is in 8.
        "momentum_basis": shorter * rank * (4 if dtype == "float32" else 2),
        "momentum": rank * longer * BYTES[dtype],
    }
    if dtype == "int8":
        expected["momentum_scale"] = 4 * rank  # one float32 per rank
    modes = {f"mode_{i}": 4 * n for i, n in enumerate(shape)}
    assert state == modes | expected
    assert row.momentum_bytes == sum(expected.values())


@pytest.mark.one_backend
@pytest.mark.parametrize("dtype", BYTES)
@pytest.mark.parametrize(("shape", "rows"), [((24, 20), 24), ((3, 3, 8, 16), 72)])
def test_full_momentum_has_one_element_per_weight(shape, rows, dtype):
    state, _ = state_of(shape, momentum_rank=None, momentum_dtype=dtype)
    assert state["momentum"] == BYTES[dtype] * np.prod(shape)
    assert state.get("momentum_scale", 0) == (4 * rows if dtype == "int8" else 0)
    assert "momentum_basis" not in state


@pytest.mark.one_backend
@pytest.mark.parametrize("shape", [(), (13,), (1, 13), (4, 3)])
def test_vectors_and_small_matrices_have_full_momentum(shape):
    state, _ = state_of(shape, momentum_rank=2, momentum_dtype="int8")
    # The momentum of a vector is in 16 bits instead of 8.
    is_matrix = shape == (4, 3)
    assert state["momentum"] == (1 if is_matrix else 2) * np.prod(shape, dtype=int)
    assert state.get("momentum_scale") == (4 * 4 if is_matrix else None)
    assert "momentum_basis" not in state


@pytest.mark.one_backend
def test_by_default_the_momentum_of_a_matrix_is_of_low_rank_in_bfloat16():
    for shape, shorter, longer in [((2000, 512), 512, 2000), ((512, 2000), 512, 2000)]:
        state, _ = state_of(shape)
        rank, rest = divmod(state["momentum"], 2 * longer)
        assert rest == 0 and 0 < rank < shorter / 4
        assert state == {
            "mode_0": 4 * shape[0],
            "mode_1": 4 * shape[1],
            "momentum_basis": 2 * rank * shorter,
            "momentum": 2 * rank * longer,
        }
    assert state_of((512,))[0] == {"mode_0": 4 * 512, "momentum": 2 * 512}


@pytest.mark.one_backend
def test_momentum_rank_may_differ_by_path_and_rank_0_is_no_momentum():
    net = model()
    ranks = {"embedding": 0, "dense/kernel": 3, "dense_1/kernel": None, "conv": "auto"}
    optimizer = ExtremeTensoring(beta_1=0.9, momentum_rank=ranks)
    optimizer.build(net.trainable_variables)

    def momentum_bytes(optimizer):
        rows = memory_report(optimizer).rows
        return {row.path.removeprefix("net/"): row.momentum_bytes for row in rows}

    found = momentum_bytes(optimizer)
    assert found["embedding/embeddings"] == 0
    assert found["dense/kernel"] == 2 * 3 * (20 + 512)
    assert found["dense_1/kernel"] == 2 * 512 * 512
    # Variables that no expression matches have the default.
    default = momentum_bytes(built(ExtremeTensoring(beta_1=0.9, momentum_rank="auto")))
    for path in ("conv/kernel", "dense/bias", "norm/gamma"):
        assert found[path] == default[path] > 0


EVERY_KERAS_OPTIMIZER = [
    name
    for name in dir(keras.optimizers)
    if isinstance(getattr(keras.optimizers, name), type)
    and issubclass(getattr(keras.optimizers, name), keras.optimizers.Optimizer)
    and name not in ("Optimizer", "LossScaleOptimizer", "MultiOptimizer")
]


@pytest.mark.one_backend
@pytest.mark.parametrize("name", EVERY_KERAS_OPTIMIZER)
def test_the_report_counts_all_variables_of_every_keras_optimizer(name):
    optimizer = built(getattr(keras.optimizers, name)())
    report = memory_report(optimizer)
    counters = ("iteration", "learning_rate")
    slots = [v for v in optimizer.variables if v.name not in counters]
    assert report.slots == sum(int(np.prod(v.shape)) for v in slots)
    assert report.bytes == sum(v.numpy().nbytes for v in slots)
    assert report.slots == sum(row.slots for row in report.rows) + report.unassigned


@pytest.mark.one_backend
def test_the_report_assigns_each_slot_to_its_variable():
    report = memory_report(built(keras.optimizers.Adam()))
    assert all(row.slots == 2 * row.model_numbers for row in report.rows)
    assert report.slots == report.adam_slots and report.unassigned == 0
    assert report.bytes == report.adam_bytes == 2 * report.model_bytes
    report = memory_report(built(keras.optimizers.Adafactor()))
    for row in report.rows:
        factored = 2  # Keras keeps two scalar placeholders for every vector.
        if len(row.shape) > 1:
            lead = int(np.prod(row.shape[:-2]))
            factored = lead * (row.shape[-2] + row.shape[-1])
        assert row.slots == row.model_numbers + factored
    assert report.unassigned == 0


@pytest.mark.one_backend
def test_variables_with_the_same_path_each_get_their_own_slots():
    towers = [
        keras.Sequential(
            [keras.Input((n,)), keras.layers.Dense(4, name="fc")], name="tower"
        )
        for n in (9, 25)
    ]
    variables = [v for tower in towers for v in tower.trainable_variables]
    for make in (keras.optimizers.Adam, lambda: ExtremeTensoring(level=1, beta_1=0)):
        optimizer = make()
        optimizer.build(variables)
        slots = [row.slots for row in memory_report(optimizer).rows]
        expected = {"Adam": [72, 8, 200, 8], "ExtremeTensoring": [13, 4, 29, 4]}
        assert slots == expected[type(optimizer).__name__]


@pytest.mark.one_backend
def test_the_report_looks_inside_loss_scale_and_multi_optimizers():
    scaled = built(keras.optimizers.LossScaleOptimizer(ExtremeTensoring()))
    plain = built(ExtremeTensoring())
    assert memory_report(scaled).slots == memory_report(plain).slots
    mixed = keras.optimizers.MultiOptimizer(
        keras.optimizers.OptimizerMap(
            keras.optimizers.Adam(), {".*dense.*": ExtremeTensoring(level=2, beta_1=0)}
        )
    )
    report = memory_report(built(mixed))
    by_path = {row.path: row for row in report.rows}
    assert by_path["net/embedding/embeddings"].slots == 2 * 997 * 12
    assert by_path["net/dense_1/kernel"].slots == 2 * (16 + 32)


@pytest.mark.one_backend
def test_the_printed_report_has_a_row_per_variable_and_totals():
    text = str(memory_report(built(ExtremeTensoring())))
    for part in ("net/embedding/embeddings", "(997, 12)", "in all", "× less than Adam"):
        assert part in text
    assert "State of ExtremeTensoring" in text and "of Adam's" in text
    assert "no state" in str(memory_report(built(keras.optimizers.SGD())))


@pytest.mark.one_backend
def test_the_printed_report_is_plain_text_even_with_forced_colour(monkeypatch):
    monkeypatch.setenv("FORCE_COLOR", "1")  # Jupyter kernels set it.
    assert "\x1b" not in str(memory_report(built(ExtremeTensoring())))


@pytest.mark.one_backend
def test_counters_of_skipped_steps_are_reported_separately():
    optimizer = built(ExtremeTensoring())
    report = memory_report(optimizer)
    counters = [v for v in optimizer.variables if v.name.endswith("skipped_steps")]
    assert report.counters == len(counters) == len(report.rows)
    assert {(v.shape, v.dtype) for v in counters} == {((), "int32")}
    assert f"{report.counters} counters of skipped steps" in str(report)
    adam = memory_report(built(keras.optimizers.Adam()))
    assert adam.counters == 0 and "skipped" not in str(adam)


@pytest.mark.one_backend
def test_averaged_weights_are_counted():
    report = memory_report(built(ExtremeTensoring(use_ema=True)))
    assert report.slots > report.model_numbers


COMPILED_WITHOUT_TEMPORARIES = """
import jax, keras, et_optimizer
from et_optimizer import SM3, Adafactor, ExtremeTensoring, SubsetNorm
from et_optimizer.compilers import row_blocks
assert keras.backend.backend() == "jax"
shapes = [(5003, 768), (768, 3072), (3, 3, 64, 128), (4096,)]
levels = [{"level": level} for level in ("inf", 1, 2)]
no_momentum = {"beta_1": 0}
rules = [
    (ExtremeTensoring, {"level": "inf", **no_momentum}),
    (ExtremeTensoring, {"level": 1, **no_momentum}),
    (ExtremeTensoring, {"level": 3, **no_momentum}),
    (ExtremeTensoring, {"level": 2, **no_momentum, "combination": "geometric"}),
    (Adafactor, no_momentum),
    (SubsetNorm, no_momentum),
]
rules += [(rule, own | {"clip_threshold": 1.0}) for rule, own in rules[2:]]
# SM3 without clipping: here XLA materializes constants for the norm of its update.
rules += [(SM3, {**level, "momentum": 0}) for level in levels]
rules += [(SM3, {"variant": "I", "momentum": 0})]
in_subspaces = [
    (ExtremeTensoring, {}),
    (ExtremeTensoring, {"momentum_rank": 5, "momentum_dtype": "float32"}),
    (ExtremeTensoring, {"momentum_rank": 40, "momentum_dtype": "int8"}),
    (ExtremeTensoring, {"momentum_rank": 40, "epsilon": 1e-8}),
    (SubsetNorm, {"beta_1": 0.9, "momentum_of": "gradient"}),
]
spikes = [(ExtremeTensoring, no_momentum), (SM3, {"momentum": 0}), in_subspaces[4]]
spikes = [(rule, own | {"spike_threshold": 10.0}) for rule, own in spikes]
for rule, arguments in rules + in_subspaces + spikes:
    optimizer = rule(**arguments)
    variables = [keras.Variable(jax.numpy.ones(s)) for s in shapes]
    optimizer.build(variables)
    state = [v.value for v in optimizer.variables]
    weights = [v.value for v in variables]
    compiled = jax.jit(optimizer.stateless_apply, donate_argnums=(0, 2)).lower(
        state, weights, weights
    ).compile()
    temporary = compiled.memory_analysis().temp_size_in_bytes
    bound = 0.05 * 4 * 5003 * 768
    rank = getattr(optimizer.plan_state(variables)[0].momentum, "rank", None)
    if rank is not None:
        # A block of rows and a few factors of low rank, in float32.
        bound = 4 * (2 * row_blocks.MAX_ENTRIES + 5 * rank * (5003 + 768))
        assert bound < 0.5 * 4 * 5003 * 768
    assert temporary < bound, (rule, arguments, temporary, bound)
import sys
assert "tensorflow" not in sys.modules
"""


@pytest.mark.skipif(keras.backend.backend() != "jax", reason="needs JAX")
def test_the_compiled_step_has_no_temporary_of_a_variables_size():
    subprocess.run(
        [sys.executable, "-c", COMPILED_WITHOUT_TEMPORARIES],
        env=os.environ | {"KERAS_BACKEND": "jax"},
        check=True,
        cwd=et_optimizer.__path__[0] + "/..",
    )
