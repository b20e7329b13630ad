"""Adafactor against Keras's, against a float64 transcription, and its state."""

import functools
import inspect

import keras
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from keras import ops

from et_optimizer import Adafactor, TensorIndex, memory_report, schedules
from et_optimizer.views import gradients
from tests.optimizers import slots_of
from tests.reference import adafactor as reference
from tests.updates import random_gradients, spread_gradients

# The paper's steps: no momentum, and no bound but that of clipping.
papers = functools.partial(Adafactor, beta_1=0, update_bound=None)
RANKS = [(), (1,), (7,), (6, 9), (1, 8), (8, 1), (3, 4, 5), (3, 1, 5), (2, 3, 4, 5)]


def weights_after(optimizer, start, steps):
    variable = keras.Variable(start, name="weights")
    for gradient in steps:
        optimizer.apply([ops.convert_to_tensor(gradient)], [variable])
    return ops.convert_to_numpy(variable)


def start_of(shape, seed=1):
    return np.random.default_rng(seed).standard_normal(shape).astype("float32")


@pytest.mark.one_backend
@pytest.mark.parametrize("relative_step", [True, False])
@pytest.mark.parametrize(
    "learning_rate",
    [0.001, 0.5, keras.optimizers.schedules.ExponentialDecay(0.3, 4, 0.5)],
)
@pytest.mark.parametrize("shape", RANKS)
def test_weights_equal_those_of_keras_adafactor(shape, learning_rate, relative_step):
    steps, start = random_gradients(shape, seed=0, steps=20), start_of(shape)
    arguments = dict(learning_rate=learning_rate, relative_step=relative_step)
    theirs = weights_after(keras.optimizers.Adafactor(**arguments), start, steps)
    ours = weights_after(papers(**arguments), start, steps)
    assert np.any(theirs != start)
    np.testing.assert_allclose(ours, theirs, rtol=1e-5, atol=1e-6)


@pytest.mark.one_backend
def test_it_is_a_drop_in_replacement_for_keras_adafactor():
    shape = (12, 30)
    steps, start = 100 * random_gradients(shape, seed=0, steps=20), start_of(shape)
    arguments = dict(
        learning_rate=0.2,
        beta_2_decay=-0.6,
        epsilon_1=1e-3,
        epsilon_2=10.0,
        clip_threshold=0.3,
        weight_decay=0.1,
        clipnorm=50.0,
    )
    theirs = weights_after(keras.optimizers.Adafactor(**arguments), start, steps)
    ours = weights_after(papers(**arguments), start, steps)
    np.testing.assert_allclose(ours, theirs, rtol=1e-5, atol=1e-5)
    theirs, ours = (
        {n: p.default for n, p in inspect.signature(optimizer).parameters.items()}
        for optimizer in (keras.optimizers.Adafactor, Adafactor)
    )
    del theirs["kwargs"], theirs["name"]  # Keras's default name is the class's.
    assert {name: ours[name] for name in theirs} == theirs
    config = keras.optimizers.Adafactor(**arguments).get_config()
    again = Adafactor.from_config(config).get_config()
    assert {name: again[name] for name in config} == config


FULL = dict(momentum_rank=None, momentum_dtype="float32")
OPTIONS = {
    "the paper's": (dict(), dict()),
    "without clipping": (dict(clip_threshold=None), dict(clip=None)),
    "without parameter scale": (
        dict(multiply_by_parameter_scale=False),
        dict(scale_by_parameter=False),
    ),
    "without the cap on the learning rate": (
        dict(cap_learning_rate=False),
        dict(cap=False),
    ),
    "with momentum": (dict(beta_1=0.9, **FULL), dict(beta_1=0.9)),
    "factoring only large matrices": (
        dict(min_dim_size_to_factor=5),
        dict(min_side=5),
    ),
    "all options of Tensor2Tensor": (
        dict(
            beta_1=0.8,
            cap_learning_rate=False,
            multiply_by_parameter_scale=False,
            min_dim_size_to_factor=4,
            beta_2_decay=-1.0,
            **FULL,
        ),
        dict(
            beta_1=0.8,
            cap=False,
            scale_by_parameter=False,
            min_side=4,
            decay=-1.0,
        ),
    ),
}


@pytest.mark.one_backend
@pytest.mark.parametrize(("ours", "theirs"), OPTIONS.values(), ids=OPTIONS)
@settings(max_examples=10)
@given(
    shape=st.lists(st.sampled_from([1, 2, 3, 4, 5, 7, 11, 13]), max_size=4),
    exponent=st.integers(-9, 9),
    seed=st.integers(0, 2**32 - 1),
)
def test_weights_equal_the_transcription(ours, theirs, shape, exponent, seed):
    while np.prod(shape) > 3000:
        shape = shape[:-1]
    steps = spread_gradients(shape, 10.0**exponent, seed, steps=8)
    # Starting at 0, the weights have the precision of the steps.
    start = np.zeros(shape, "float32")
    learning_rates = 0.3 * 0.9 ** np.arange(8)
    schedule = keras.optimizers.schedules.ExponentialDecay(0.3, 1, 0.9)
    found = weights_after(papers(schedule, **ours), start, steps)
    *_, expected = reference.weights(start, steps, learning_rates, **theirs)
    scale = np.max(np.abs(expected), initial=0.0)
    np.testing.assert_allclose(found, expected, rtol=1e-5, atol=1e-5 * scale)


# Large enough for the sums over slabs, with remainders on both axes.
@pytest.mark.two_backends
@pytest.mark.parametrize(
    "shape", [(769, 521), (3, 3, 61, 67), (1, 1031), (5, 27127), (27127, 5)]
)
def test_large_odd_shapes_equal_the_transcription(shape):
    steps, start = spread_gradients(shape, 1.0, seed=0, steps=3), start_of(shape)
    found = weights_after(papers(0.1), start, steps)
    *_, expected = reference.weights(start, steps, [0.1] * 3)
    np.testing.assert_allclose(found, expected, rtol=1e-5, atol=1e-5)


@pytest.mark.one_backend
@pytest.mark.parametrize("shape", [(), (13,), (13, 7), (2, 3, 4)])
def test_zero_gradients_move_nothing_and_leave_later_steps_exact(shape):
    start = start_of(shape)
    steps = np.zeros((3, *shape), "float32")
    np.testing.assert_array_equal(weights_after(papers(), start, steps), start)
    steps[2] = random_gradients(shape, seed=0, steps=1)[0]
    found = weights_after(papers(0.1), start, steps)
    *_, expected = reference.weights(start, steps, [0.1] * 3)
    np.testing.assert_allclose(found, expected, rtol=1e-5, atol=1e-6)


@pytest.mark.one_backend
@pytest.mark.parametrize("epsilon_1", [1.2e-38, 1e-36, 1e-30])
def test_a_row_without_gradient_does_not_move_in_100_000_steps(epsilon_1):
    rule = papers(epsilon_1=epsilon_1)._rule
    index = TensorIndex.of_matrices((3, 4))
    gradient = np.ones((3, 4), "float32")
    gradient[1] = 0
    view = gradients.view(ops.convert_to_tensor(gradient), index)
    slots = [ops.zeros(shape) for shape in index.slot_shapes]
    for step in [*range(1, 100), *range(1000, 100_000, 500)]:
        precondition, slots = rule(view, slots, ops.convert_to_tensor(float(step)))
        update = precondition(view.plain())
        assert np.all(ops.convert_to_numpy(update.evaluate())[1] == 0)
    assert np.all(np.isfinite(ops.convert_to_numpy(update.evaluate())))


@pytest.mark.two_backends
@pytest.mark.parametrize("dtype", ["bfloat16", "float16"])
def test_16_bit_weights_have_float32_state_and_float32_steps(dtype):
    variable = keras.Variable(start_of((24, 9)), dtype=dtype)
    start = ops.convert_to_numpy(ops.cast(variable, "float32"))
    gradient = ops.cast(start_of((24, 9), seed=2), dtype)
    optimizer = papers(0.5)
    optimizer.apply([gradient], [variable])
    slots = slots_of(optimizer)
    assert {keras.backend.standardize_dtype(v.dtype) for v in slots} == {"float32"}
    exact = ops.convert_to_numpy(ops.cast(gradient, "float32"))
    (expected,) = reference.weights(start, [exact], [0.5])
    bits = {"bfloat16": 8, "float16": 11}[dtype]
    np.testing.assert_allclose(
        ops.convert_to_numpy(ops.cast(variable, "float32")),
        expected,
        rtol=0,
        atol=4 * 2**-bits,
    )


@pytest.mark.one_backend
@pytest.mark.parametrize("shape", RANKS)
def test_the_state_is_row_and_column_statistics_and_nothing_else(shape):
    variable = keras.Variable(np.zeros(shape, "float32"), name="kernel")
    optimizer = papers()
    optimizer.build([variable])
    state = {v.name: tuple(v.shape) for v in slots_of(optimizer)}
    matrix = [n for n in shape[-2:] if n > 1]
    stack = int(np.prod(shape[:-2]))
    lead = (stack,) if stack > 1 else ()
    if len(matrix) == 2:
        expected = {
            "kernel_rows": (*lead, matrix[0]),
            "kernel_columns": (*lead, matrix[1]),
        }
    else:
        # A single row or column: V itself is no larger than R and C.
        expected = {"kernel_entries": (*lead, *matrix)}
    assert state == expected


@pytest.mark.one_backend
def test_matrices_below_min_dim_size_to_factor_are_not_factored():
    variables = [keras.Variable(np.zeros(s, "float32")) for s in [(8, 9), (7, 90)]]
    optimizer = papers(min_dim_size_to_factor=8)
    optimizer.build(variables)
    assert [row.slots for row in memory_report(optimizer).rows] == [17, 630]


@pytest.mark.one_backend
def test_keras_adafactor_keeps_a_full_copy_that_ours_does_not():
    net = keras.Sequential([keras.Input((2000,)), keras.layers.Dense(512)])
    reports = {}
    for make in (papers, keras.optimizers.Adafactor):
        optimizer = make()
        optimizer.build(net.trainable_variables)
        reports[make] = memory_report(optimizer).rows[0].slots
    assert reports[papers] == 2512
    assert reports[keras.optimizers.Adafactor] == 2512 + 2000 * 512


@pytest.mark.one_backend
def test_the_state_of_keras_adafactor_is_refused():
    variable = keras.Variable(np.zeros((6, 9), "float32"))
    theirs, ours = keras.optimizers.Adafactor(), papers()
    for optimizer in (theirs, ours):
        optimizer.apply([ops.ones((6, 9))], [variable])
    store = {}
    theirs.save_own_variables(store)
    with pytest.raises(ValueError, match="does not fit this Adafactor"):
        ours.load_own_variables(store)


@pytest.mark.one_backend
def test_the_schedule_of_the_paper_sets_the_learning_rates():
    schedule = schedules.InverseSquareRoot(0.5, warmup_steps=3)
    steps, start = random_gradients((4, 5), seed=0), start_of((4, 5))
    found = weights_after(papers(schedule, cap_learning_rate=False), start, steps)
    learning_rates = [0.5 * min(t * 3**-1.5, t**-0.5) for t in range(1, 7)]
    *_, expected = reference.weights(start, steps, learning_rates, cap=False)
    np.testing.assert_allclose(found, expected, rtol=1e-5, atol=1e-6)
