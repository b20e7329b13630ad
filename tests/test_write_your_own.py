"""The page "Write your own optimizer": its optimizers do what it says."""

import dataclasses
import inspect

import keras
import numpy as np
import pytest
from keras import ops

from et_optimizer import memory_report
from et_optimizer.momenta.selection import for_variables
from et_optimizer.views.updates import MaterializedUpdate
from tests.optimizers import DOCS, WRITTEN
from tests.published import blocks, run
from tests.updates import random_gradients

# Its optimizer is an entry of tests/optimizers.py, which runs on every backend.
pytestmark = pytest.mark.one_backend

Lion = WRITTEN["Lion"]
SHAPES = [(6, 8), (5,), ()]


@pytest.fixture(scope="module")
def page():
    """What the page defines."""
    return run(DOCS / "write-your-own.md")


def weights_after(optimizer, steps=6):
    variables = [keras.Variable(np.ones(shape, "float32")) for shape in SHAPES]
    gradients = [random_gradients(shape, seed=0, steps=steps) for shape in SHAPES]
    for step in zip(*gradients):
        optimizer.apply([ops.convert_to_tensor(g) for g in step], variables)
    return [variable.numpy() for variable in variables]


def test_lion_with_full_momentum_takes_the_steps_of_keras_lion():
    arguments = {"learning_rate": 0.01, "beta_1": 0.8, "beta_2": 0.95}
    full = {"momentum_rank": None, "momentum_dtype": "float32"}
    ours = weights_after(Lion(**arguments, **full))
    theirs = weights_after(keras.optimizers.Lion(**arguments))
    for one, other in zip(ours, theirs):
        np.testing.assert_allclose(one, other, rtol=1e-6, atol=1e-7)


def test_lion_with_momentum_in_a_subspace_equals_the_formula():
    rng = np.random.default_rng(0)
    variable = keras.Variable(np.zeros((5, 7), "float32"), name="kernel")
    own = {"momentum_rank": 2, "momentum_dtype": "float32", "refresh_every": 100}
    optimizer = Lion(0.01, beta_1=0.8, beta_2=0.95, **own)
    expected, momentum = np.zeros((5, 7)), np.zeros((2, 7))
    for _ in range(5):
        gradient = rng.standard_normal((5, 7)).astype("float32")
        optimizer.apply([ops.convert_to_tensor(gradient)], [variable])
        # The basis is updated at the first step only.
        basis = next(
            v for v in optimizer.variables if v.name == "kernel_momentum_basis"
        )
        basis = ops.convert_to_numpy(basis).astype("float64")
        inside = basis.T @ gradient
        average = 0.8 * momentum + 0.2 * inside
        expected -= 0.01 * np.sign(basis @ average + gradient - basis @ inside)
        momentum = 0.95 * momentum + 0.05 * inside
        np.testing.assert_allclose(variable.numpy(), expected, atol=1e-6)


def test_the_page_builds_lion_in_at_most_60_lines_of_code():
    block = next(blocks(DOCS / "write-your-own.md"))
    lines = [line for line in block.splitlines() if line.strip()]
    assert "class Lion" in block and len(lines) <= 60


def test_lion_has_2_mb_of_state_for_a_kernel_of_4096_by_4096():
    variable = keras.Variable(np.zeros((4096, 4096), "float32"), name="kernel")
    optimizer = Lion()
    optimizer.build([variable])
    assert memory_report(optimizer).bytes == 2 * 128 * (4096 + 4096)
    assert 4 * 4096 * 4096 == 64 * 2**20


def test_lions_arguments_are_documented_with_their_defaults():
    parameters = inspect.signature(Lion).parameters
    assert list(parameters)[:3] == ["learning_rate", "beta_1", "beta_2"]
    assert parameters["learning_rate"].default == 1e-4
    text = " ".join(Lion.__doc__.split())
    assert (
        "beta_2: Decay in [0, 1) of the average that is kept. Defaults to `0.99`."
        in text
    )
    assert all(f"{name}:" in text or f"{name}," in text for name in parameters)


def test_lion_refuses_invalid_arguments_with_the_remedy():
    with pytest.raises(ValueError, match="Did you mean beta_1"):
        Lion(beta1=0.9)
    with pytest.raises(ValueError, match=r"beta_1 must be a number in \[0, 1\)"):
        Lion(beta_1=1.0)
    with pytest.raises(ValueError, match="spike_threshold needs the size of earlier"):
        Lion(spike_threshold=10.0)


def test_rows_and_columns_keep_one_accumulator_each(page):
    variable = keras.Variable(np.ones((3, 4), "float32"), name="kernel")
    optimizer = page["RowsAndColumns"](0.5)
    gradient = random_gradients((3, 4), seed=1, steps=1)[0]
    optimizer.apply([ops.convert_to_tensor(gradient)], [variable])
    squares = gradient.astype("float64") ** 2
    scale = np.outer(squares.sum(1), squares.sum(0)) ** -0.25
    np.testing.assert_allclose(variable.numpy(), 1 - 0.5 * gradient * scale, rtol=1e-5)
    assert memory_report(optimizer).slots == 3 + 4


def test_one_accumulator_per_entry_is_adagrad(page):
    variable = keras.Variable(np.ones((3, 4), "float32"), name="kernel")
    optimizer = page["PerEntry"](0.5)
    gradients = random_gradients((3, 4), seed=2, steps=3)
    expected, total = np.ones((3, 4)), 0.0
    for gradient in gradients.astype("float64"):
        step = ops.convert_to_tensor(gradient, "float32")
        optimizer.apply([step], [variable])
        total = total + gradient**2
        expected = expected - 0.5 * gradient / total**0.5
    np.testing.assert_allclose(variable.numpy(), expected, rtol=1e-5)


def test_state_of_another_optimizer_of_ones_own_is_refused(page):
    class OtherRowsAndColumns(page["RowsAndColumns"]):
        rule = dataclasses.dataclass(frozen=True)(
            type("OtherRule", (page["RowsAndColumnsRule"],), {})
        )

    variable = keras.Variable(np.ones((3, 4), "float32"), name="kernel")
    saved, loading = page["RowsAndColumns"](0.1), OtherRowsAndColumns(0.1)
    state = {}
    for optimizer in (saved, loading):
        optimizer.apply([ops.ones((3, 4))], [variable])
    saved.save_own_variables(state)
    with pytest.raises(ValueError, match="saved by RowsAndColumns, here OtherRows"):
        loading.load_own_variables(state)


def test_an_optimizer_without_beta_1_has_no_momentum(page):
    optimizer = page["RowsAndColumns"](0.1)
    assert optimizer.momentum_decays() == (0.0, None)
    assert "beta_1" not in inspect.signature(page["RowsAndColumns"]).parameters


@pytest.mark.parametrize("rank", [None, 2])
def test_a_corrected_average_of_equal_gradients_is_that_gradient(rank):
    own = {"decay": 0.95, "direction_decay": 0.8}
    [momentum] = for_variables([(6, 7)], [rank], "float32", 50, **own)
    state = [
        ops.zeros(shape) if momentum.initial(name) is None else momentum.initial(name)
        for name, (shape, _) in momentum.slots().items()
    ]
    gradient = random_gradients((6, 7), seed=3, steps=1)[0]
    for step in range(1, 6):
        update = MaterializedUpdate(ops.convert_to_tensor(gradient))
        time = ops.convert_to_tensor(float(step))
        direction, state = momentum(update, state, time)
        found = ops.convert_to_numpy(direction.evaluate())
        np.testing.assert_allclose(found, gradient, rtol=1e-4, atol=1e-5)
