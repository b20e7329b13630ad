"""Subset-Norm: one step size per row or per column."""

import functools

import keras
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from keras import ops

from et_optimizer import SubsetNorm, TensorIndex, memory_report
from tests.updates import random_gradients

pytestmark = pytest.mark.one_backend

# The paper's steps: without momentum and without a bound on the update.
without_momentum = functools.partial(SubsetNorm, beta_1=0, update_bound=None)
# Shape, axis, and the axes that the paper's rule sums over; `None` for one step size
# per entry.
CASES = [
    ((6, 4), "auto", (0,)),
    ((4, 6), "auto", (1,)),
    ((5, 5), "auto", (0,)),
    ((3, 3, 2, 7), "auto", (0, 1, 2)),
    ((2, 2, 50), "auto", (2,)),
    ((6, 4), 0, (1,)),
    ((6, 4), -1, (0,)),
    ((3, 4, 5), 1, (0, 2)),
    ((7,), "auto", None),
    ((7,), 1, None),
    ((1, 7), "auto", None),
    ((7, 1), "auto", None),
    ((), "auto", None),
]


def reference_updates(gradients, axes, *, beta_2, mean, epsilon):
    """The paper's rule in float64: g / √(ε + subset's sum or mean of g²)."""
    total = 0.0
    for step, gradient in enumerate(np.asarray(gradients, "float64"), start=1):
        squares = gradient**2
        if axes is not None:
            reduce = np.mean if mean else np.sum
            squares = reduce(squares, axis=axes, keepdims=True)
        if beta_2 is None:
            total = total + squares
            yield gradient / np.sqrt(epsilon + total)
        else:
            total = beta_2 * total + (1 - beta_2) * squares
            yield gradient / np.sqrt(epsilon + total / (1 - beta_2**step))


@pytest.mark.parametrize(("shape", "axis", "axes"), CASES)
@pytest.mark.parametrize("beta_2", [None, 0.9])
@pytest.mark.parametrize(
    ("statistic", "epsilon"), [("sum", 0.0), ("mean", 0.0), ("sum", 1e-2)]
)
def test_weights_equal_those_of_the_papers_rule(
    shape, axis, axes, beta_2, statistic, epsilon
):
    steps = random_gradients(shape, seed=0)
    variable = keras.Variable(np.zeros(shape, "float32"))
    optimizer = without_momentum(
        0.1, axis=axis, beta_2=beta_2, statistic=statistic, epsilon=epsilon
    )
    expected = np.zeros(shape)
    rule = dict(beta_2=beta_2, mean=statistic == "mean", epsilon=epsilon)
    for gradient, update in zip(steps, reference_updates(steps, axes, **rule)):
        optimizer.apply([ops.convert_to_tensor(gradient)], [variable])
        expected = expected - 0.1 * update
    np.testing.assert_allclose(
        ops.convert_to_numpy(variable), expected, rtol=1e-5, atol=1e-6
    )


@given(
    shape=st.lists(st.integers(2, 9), min_size=2, max_size=4),
    axis=st.integers(-4, 3),
)
def test_an_axis_has_one_accumulator_per_index(shape, axis):
    if not -len(shape) <= axis < len(shape):
        with pytest.raises(ValueError, match=f"received axis={axis}"):
            TensorIndex.with_one_mode(shape, axis)
        return
    index = TensorIndex.with_one_mode(shape, axis)
    assert index.slots == shape[axis]
    assert index.entries_per_slice == (np.prod(shape) // shape[axis],)


@given(shape=st.lists(st.integers(2, 30), min_size=2, max_size=2))
def test_the_auto_axis_of_a_matrix_is_the_shorter_one(shape):
    assert TensorIndex.with_one_mode(shape, "auto").slots == min(shape)


def test_weights_of_a_large_matrix_equal_those_of_the_papers_rule():
    steps = random_gradients((769, 521), seed=0, steps=2)
    variable = keras.Variable(np.zeros((769, 521), "float32"))
    optimizer = without_momentum(1.0, beta_2=None)
    for gradient in steps:
        optimizer.apply([ops.convert_to_tensor(gradient)], [variable])
    rule = dict(beta_2=None, mean=True, epsilon=0.0)
    expected = -sum(reference_updates(steps, (0,), **rule))
    np.testing.assert_allclose(
        ops.convert_to_numpy(variable), expected, rtol=1e-5, atol=1e-6
    )


def test_an_axis_by_path_leaves_other_variables_at_auto():
    net = keras.Sequential(
        [
            keras.Input((5,), dtype="int32"),
            keras.layers.Embedding(50, 8, name="embedding"),
            keras.layers.Dense(30, name="dense"),
        ]
    )
    optimizer = without_momentum(axis={"embedding": 0})
    optimizer.build(net.trainable_variables)
    assert [row.slots for row in memory_report(optimizer).rows] == [50, 8, 30]
    again = SubsetNorm.from_config(optimizer.get_config())
    assert again.axis == {"embedding": 0}


@pytest.mark.parametrize("axis", ["rows", None, 1.0, True, {"a": "b"}, {3: 0}, (0,)])
def test_an_axis_of_the_wrong_type_is_refused_by_the_constructor(axis):
    with pytest.raises(ValueError, match="axis"):
        SubsetNorm(axis=axis)


def test_an_axis_that_a_variable_lacks_is_refused_before_any_state_is_created():
    variables = [keras.Variable(np.zeros((4, 5)), name="kernel")]
    optimizer = SubsetNorm(axis=2)
    with pytest.raises(ValueError, match="'kernel'.*received axis=2.*Use \"auto\""):
        optimizer.build(variables)
    assert not optimizer.built
    with pytest.raises(ValueError, match="axis .*matches no variable: 'embedding'"):
        SubsetNorm(axis={"embedding": 0}).build(variables)
