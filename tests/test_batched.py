"""Batched steps of small variables: which are batched, and that results are equal."""

import keras
import numpy as np
import pytest
from keras import ops

import et_optimizer
from et_optimizer.compilers import batching
from et_optimizer.optimizers import batched
from et_optimizer.optimizers.extreme_tensoring import ExtremeTensoringRule
from et_optimizer.optimizers.step import StepContext
from tests.optimizers import OPTIMIZERS
from tests.updates import compiled

BACKEND = keras.backend.backend()
pytestmark = pytest.mark.skipif(
    BACKEND == "torch", reason="steps are batched for compilers only"
)
# Two each of: vectors, scalars, empty variables, matrices with full and subspace
# momentum.
SHAPES = [(5,), (300,), (), (0, 3), (2, 1), (12, 16)] * 2
STEPS = 4


def weights_and_state(make, monkeypatch, largest, dtype):
    """Weights and state after some steps, and the sizes of the batches."""
    counts, take = [], batched.take
    entries = dict.fromkeys(batching.MAX_ENTRIES, largest)
    monkeypatch.setattr(batching, "MAX_ENTRIES", entries)
    monkeypatch.setattr(
        batched, "take", lambda *of_all: counts.append(len(of_all[1])) or take(*of_all)
    )
    rng = np.random.default_rng(0)
    variables = [
        keras.Variable(rng.standard_normal(shape), dtype=dtype, name=f"v{index}")
        for index, shape in enumerate(SHAPES)
    ]
    # Some variables of a batch have another learning rate.
    scales = {"v(0|6)$": 4.0, "v(3|5|9|11)$": 0.5}
    optimizer = make(learning_rate=0.1, weight_decay=0.1, rate_scale=scales)
    optimizer.build(variables)
    own = [variable.value for variable in optimizer.variables]
    values = [variable.value for variable in variables]
    if BACKEND == "tensorflow":
        step = compiled(lambda gradients: optimizer.apply(gradients, variables))
    else:
        step = compiled(optimizer.stateless_apply)
    for count in range(STEPS):
        gradients = [rng.standard_normal(s) * 10 ** rng.uniform(-3, 3) for s in SHAPES]
        if count == 2:
            gradients[0][1] = np.nan  # Only one variable of its batch skips the step.
        gradients = [ops.convert_to_tensor(g, dtype) for g in gradients]
        if BACKEND == "tensorflow":
            step(gradients)
        else:
            values, own = step(own, gradients, values)
    if BACKEND == "tensorflow":
        values, own = variables, optimizer.variables
    monkeypatch.undo()
    return [
        ops.convert_to_numpy(ops.cast(v, "float32")) for v in [*values, *own]
    ], counts


# With momentum, and without, where matrices are batched too. On JAX nothing is batched
# by default.
NAMES = (
    "ExtremeTensoring in a subspace in int8",
    "SM3-I everything on",
    "Adafactor",
    "SketchyShampoo everything on",
    "Muon in 4 bits",
    "ExtremeTensoring in 3 bits",
)
NAMES = NAMES if BACKEND == "tensorflow" else ()


@pytest.mark.parametrize(
    ("name", "dtype"), [*((n, "float32") for n in NAMES), ("SM3", "bfloat16")]
)
def test_batched_steps_equal_separate_ones(name, dtype, monkeypatch):
    make = OPTIMIZERS[name]
    found, counts = weights_and_state(make, monkeypatch, 2**14, dtype)
    expected, none = weights_and_state(make, monkeypatch, 0, dtype)
    assert not none
    assert set(counts) <= {2}
    if not make(learning_rate=0.1)._rule.needs_finite_gradients:
        assert len(counts) >= 3
    tolerance = 1e-6 if dtype == "float32" else 2**-7
    for one, other in zip(found, expected, strict=True):
        np.testing.assert_allclose(one, other, rtol=tolerance, atol=1e-7)


def batches(shapes, dtypes=None, **arguments):
    """The batches of a traced step, as lists of the variables' indices."""
    variables = [
        keras.Variable(np.ones(shape), dtype=dtype, name=f"v{index}")
        for index, (shape, dtype) in enumerate(
            zip(shapes, dtypes or ["float32"] * len(shapes))
        )
    ]
    optimizer = et_optimizer.ExtremeTensoring(**arguments)
    optimizer.build(variables)
    steps = [optimizer._step(state) for state in optimizer._states]
    contexts = [StepContext(0.1, 1.0, None, 0)] * len(variables)
    found = []

    def program(given):
        traced = [g + 0.0 for g in given]
        found.append(batched.batches(steps, traced, variables, contexts))
        return ops.zeros(())

    compiled(program)([ops.ones(shape) for shape in shapes])
    return found[-1]


def test_small_variables_with_equal_steps_are_batched(monkeypatch):
    entries = dict.fromkeys(batching.MAX_ENTRIES, 100)
    monkeypatch.setattr(batching, "MAX_ENTRIES", entries)
    assert batches([(5,), (7,), (5,), (101,), (101,)]) == [[0, 2], [1], [3], [4]]
    # Subspaces are updated at different steps.
    assert batches([(9, 9), (9, 9)], momentum_rank=1) == [[0], [1]]
    assert batches([(9, 9), (9, 9)], beta_1=0.0) == [[0, 1]]
    # With other arguments by path, variables of equal shapes have different steps.
    by_path = {"v0": 1, "v1": 2, "v2": 1}
    assert batches([(4, 9)] * 3, beta_1=0.0, level=by_path) == [[0, 2], [1]]
    scales = {"v1": 8.0}
    assert batches([(4, 9)] * 3, beta_1=0.0, rate_scale=scales) == [[0, 2], [1]]
    assert batches([(5,)] * 3, ["float32", "bfloat16", "float32"]) == [[0, 2], [1]]


def test_update_step_of_a_subclass_is_called_for_each_variable():
    called = []

    class Spy(et_optimizer.ExtremeTensoring):
        def update_step(self, gradient, variable, learning_rate):
            called.append(variable.name)
            super().update_step(gradient, variable, learning_rate)

    variables = [keras.Variable(np.ones(5), name=name) for name in "ab"]
    Spy().apply([ops.ones(5)] * 2, variables)
    assert [name.split(":")[0].split("/")[-1] for name in called] == ["a", "b"]


@pytest.mark.parametrize("shapes", [[(20, 30)] * 3, [(20, 30), (20, 30), (30, 20)]])
def test_variables_of_equal_shape_share_one_trace(shapes, monkeypatch):
    calls, call = [], ExtremeTensoringRule.__call__
    monkeypatch.setattr(
        ExtremeTensoringRule,
        "__call__",
        lambda self, gradient, *of_all: (
            calls.append(gradient.index.shape) or call(self, gradient, *of_all)
        ),
    )
    entries = dict.fromkeys(batching.MAX_ENTRIES, 0)
    monkeypatch.setattr(batching, "MAX_ENTRIES", entries)
    variables = [keras.Variable(np.ones(shape)) for shape in shapes]
    optimizer = et_optimizer.ExtremeTensoring(momentum_rank=2, beta_2=0.987)
    optimizer.build(variables)
    gradients = [ops.ones(shape) for shape in shapes]
    if BACKEND == "tensorflow":
        compiled(lambda given: optimizer.apply(given, variables))(gradients)
    else:
        own = [variable.value for variable in optimizer.variables]
        values = [variable.value for variable in variables]
        compiled(optimizer.stateless_apply)(own, gradients, values)
    assert sorted(calls) == sorted(set(shapes))


def temporaries(shape, count=1, dtype="float32", **arguments):
    """Bytes of a compiled step on JAX besides weights, gradients and state."""
    import jax

    variables = [keras.Variable(np.ones(shape), dtype=dtype) for _ in range(count)]
    optimizer = et_optimizer.ExtremeTensoring(**arguments)
    optimizer.build(variables)
    state = [variable.value for variable in optimizer.variables]
    values = [variable.value for variable in variables]
    step = jax.jit(
        lambda state, gradients, values: optimizer.stateless_apply(
            state, gradients, values
        )[::-1],
        donate_argnums=(0, 2),
    )
    gradients = [ops.ones(shape, dtype)] * count
    program = step.lower(state, gradients, values).compile()
    return program.memory_analysis().temp_size_in_bytes


jax_only = pytest.mark.skipif(
    BACKEND != "jax", reason="JAX reports the memory of a program"
)


@jax_only
def test_temporaries_do_not_grow_with_the_number_of_variables():
    # Each variable needs vectors and thin matrices; only one at a time needs a product.
    one, many = (temporaries((256, 512), n, momentum_rank=16) for n in (2, 12))
    assert many < 2 * one


@jax_only
@pytest.mark.parametrize(
    "arguments", [{"dtype": "bfloat16"}, {"clipnorm": 1.0}, {"global_clipnorm": 1.0}]
)
def test_no_gradient_is_materialized(arguments):
    assert temporaries((1000, 768), beta_1=0.0, **arguments) < 0.05 * 4 * 1000 * 768
