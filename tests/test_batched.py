"""Steps of small variables in batches: which are batched, and that steps are equal."""

import keras
import numpy as np
import pytest
from keras import ops

import et_optimizer
from et_optimizer.compilers import batching
from et_optimizer.optimizers import batched
from et_optimizer.optimizers.extreme_tensoring import ExtremeTensoringRule
from et_optimizer.optimizers.step import StepContext
from tests.optimizers import ALL_CLASSES, OPTIMIZERS
from tests.updates import compiled

pytestmark = pytest.mark.skipif(
    keras.backend.backend() == "torch", reason="PyTorch compiles nothing here"
)
# Twice each of: vectors, scalars, nothing, small matrices with a subspace and without.
SHAPES = [(5,), (300,), (), (0, 3), (2, 1), (12, 16)] * 2
STEPS = 4


def taken(make, monkeypatch, largest, dtype):
    """Weights and state after some steps, and how many variables went together."""
    counts, take = [], batched.take
    entries = dict.fromkeys(batching.MAX_ENTRIES, largest)
    monkeypatch.setattr(batching, "MAX_ENTRIES", entries)
    monkeypatch.setattr(
        batched, "take", lambda *of_all: counts.append(len(of_all[1])) or take(*of_all)
    )
    rng = np.random.default_rng(0)
    variables = [
        keras.Variable(rng.standard_normal(shape), dtype=dtype, name=f"v{place}")
        for place, shape in enumerate(SHAPES)
    ]
    # Some that go together have a rate of their own.
    scales = {"v(0|6)$": 4.0, "v(3|5|9|11)$": 0.5}
    optimizer = make(learning_rate=0.1, weight_decay=0.1, rate_scale=scales)
    optimizer.build(variables)
    own = [variable.value for variable in optimizer.variables]
    values = [variable.value for variable in variables]
    if keras.backend.backend() == "tensorflow":
        step = compiled(lambda gradients: optimizer.apply(gradients, variables))
    else:
        step = compiled(optimizer.stateless_apply)
    for count in range(STEPS):
        gradients = [rng.standard_normal(s) * 10 ** rng.uniform(-3, 3) for s in SHAPES]
        if count == 2:
            gradients[0][1] = np.nan  # a step that only one of its kind does not take
        gradients = [ops.convert_to_tensor(g, dtype) for g in gradients]
        if keras.backend.backend() == "tensorflow":
            step(gradients)
        else:
            values, own = step(own, gradients, values)
    if keras.backend.backend() == "tensorflow":
        values, own = variables, optimizer.variables
    monkeypatch.undo()
    return [
        ops.convert_to_numpy(ops.cast(v, "float32")) for v in [*values, *own]
    ], counts


# Of every class, and those of small matrices that go together as they have no momentum.
WITHOUT_MOMENTUM = (
    "ExtremeTensoring level 1",
    "ExtremeTensoring accumulating",
    "SM3",
    "SubsetNorm",
)
# On JAX variables go alone, unless a test has it otherwise.
NAMES = (
    (*ALL_CLASSES, *WITHOUT_MOMENTUM)
    if keras.backend.backend() == "tensorflow"
    else ["ExtremeTensoring"]
)


@pytest.mark.parametrize(
    ("name", "dtype"), [(n, "float32") for n in NAMES] + [("SM3", "bfloat16")]
)
def test_batched_steps_equal_separate_ones(name, dtype, monkeypatch):
    make = OPTIMIZERS[name]
    found, counts = taken(make, monkeypatch, 2**14, dtype)
    expected, alone = taken(make, monkeypatch, 0, dtype)
    assert not alone
    assert set(counts) <= {2}
    if not make(learning_rate=0.1)._rule.needs_finite_gradients:
        assert len(counts) >= 3
    tolerance = 1e-6 if dtype == "float32" else 2**-7
    for one, other in zip(found, expected, strict=True):
        np.testing.assert_allclose(one, other, rtol=tolerance, atol=1e-7)


def parts(shapes, dtypes=None, **arguments):
    """The batches of variables, by index, in a program that is being traced."""
    variables = [
        keras.Variable(np.ones(shape), dtype=dtype, name=f"v{place}")
        for place, (shape, dtype) in enumerate(
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
    assert parts([(5,), (7,), (5,), (101,), (101,)]) == [[0, 2], [1], [3], [4]]
    # Momenta in a subspace are updated at steps of their own.
    assert parts([(9, 9), (9, 9)], momentum_rank=1) == [[0], [1]]
    assert parts([(9, 9), (9, 9)], beta_1=0.0) == [[0, 1]]
    # Other arguments by path make other steps, of equal shapes too.
    by_path = {"v0": 1, "v1": 2, "v2": 1}
    assert parts([(4, 9)] * 3, beta_1=0.0, level=by_path) == [[0, 2], [1]]
    own_rate = {"v1": 8.0}
    assert parts([(4, 9)] * 3, beta_1=0.0, rate_scale=own_rate) == [[0, 2], [1]]
    assert parts([(5,)] * 3, ["float32", "bfloat16", "float32"]) == [[0, 2], [1]]


def test_an_update_of_a_subclass_is_called():
    called = []

    class Spy(et_optimizer.ExtremeTensoring):
        def update_step(self, gradient, variable, learning_rate):
            called.append(variable.name)
            super().update_step(gradient, variable, learning_rate)

    variables = [keras.Variable(np.ones(5), name=name) for name in "ab"]
    Spy().apply([ops.ones(5)] * 2, variables)
    assert [name.split(":")[0].split("/")[-1] for name in called] == ["a", "b"]


@pytest.mark.parametrize("shapes", [[(20, 30)] * 3, [(20, 30), (20, 30), (30, 20)]])
def test_equal_variables_share_one_trace(shapes, monkeypatch):
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
    if keras.backend.backend() == "tensorflow":
        compiled(lambda given: optimizer.apply(given, variables))(gradients)
    else:
        own = [variable.value for variable in optimizer.variables]
        values = [variable.value for variable in variables]
        compiled(optimizer.stateless_apply)(own, gradients, values)
    assert sorted(calls) == sorted(set(shapes))


def temporaries(shape, count=1, dtype="float32", **arguments):
    """Bytes that a compiled step on JAX needs beside weights, gradients and state."""
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


only_jax = pytest.mark.skipif(
    keras.backend.backend() != "jax", reason="JAX says what XLA needs"
)


@only_jax
def test_temporaries_do_not_grow_with_the_number_of_variables():
    # Of each there are vectors and thin matrices, and of one a product.
    one, many = (temporaries((256, 512), n, momentum_rank=16) for n in (2, 12))
    assert many < 2 * one


@only_jax
@pytest.mark.parametrize(
    "arguments", [{"dtype": "bfloat16"}, {"clipnorm": 1.0}, {"global_clipnorm": 1.0}]
)
def test_a_gradient_is_not_written_out(arguments):
    assert temporaries((1000, 768), beta_1=0.0, **arguments) < 0.05 * 4 * 1000 * 768
