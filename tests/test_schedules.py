"""The schedules equal the papers' formulas and survive saving."""

import keras
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from keras import ops

from et_optimizer import ExtremeTensoring
from et_optimizer.schedules import Cooldown, InverseSquareRoot, Warmup


def learning_rates(schedule, steps):
    return [float(schedule(ops.convert_to_tensor(s, "int32"))) for s in steps]


@given(
    constant=st.floats(1e-4, 10.0),
    warmup=st.integers(1, 20_000),
    step=st.integers(0, 500_000),
)
def test_inverse_square_root_is_the_formula_with_t_from_1(constant, warmup, step):
    t = step + 1
    expected = constant * min(t * warmup**-1.5, t**-0.5)
    found = learning_rates(InverseSquareRoot(constant, warmup), [step])
    np.testing.assert_allclose(found, [expected], rtol=1e-5)


def test_10_000_warmup_steps_give_the_extreme_tensoring_papers_schedule():
    steps = [0, 99, 9_998, 9_999, 10_000, 499_999]
    expected = [0.3 * min(1e-6 * (s + 1), 1 / np.sqrt(s + 1)) for s in steps]
    np.testing.assert_allclose(
        learning_rates(InverseSquareRoot(0.3), steps), expected, rtol=1e-5
    )


@given(
    warmup=st.integers(1, 1000),
    power=st.sampled_from([0.5, 1, 2, 3.0]),
    step=st.integers(0, 2000),
)
def test_warmup_multiplies_by_sm3s_factor(warmup, power, step):
    expected = 0.1 * min(1.0, ((step + 1) / warmup) ** power)
    found = learning_rates(Warmup(0.1, warmup, power), [step])
    np.testing.assert_allclose(found, [expected], rtol=1e-5)


def test_the_wrapped_schedule_starts_when_the_warmup_ends():
    after = keras.optimizers.schedules.PiecewiseConstantDecay([1], [4.0, 1.0])
    found = learning_rates(Warmup(after, warmup_steps=4), range(8))
    np.testing.assert_allclose(found, [1, 2, 3, 4, 4, 4, 1, 1], rtol=1e-6)
    assert learning_rates(Warmup(after, warmup_steps=0), range(4)) == [4, 4, 1, 1]


def test_cooldown_falls_linearly_to_zero_after_the_last_step():
    found = learning_rates(Cooldown(2.0, total_steps=20, fraction=0.25), range(22))
    expected = [2.0] * 16 + [1.6, 1.2, 0.8, 0.4, 0.0, 0.0]
    np.testing.assert_allclose(found, expected, rtol=1e-6)
    whole = learning_rates(Cooldown(1.0, total_steps=4, fraction=1.0), range(5))
    np.testing.assert_allclose(whole, [1.0, 0.75, 0.5, 0.25, 0.0], rtol=1e-6)


def test_cooldown_multiplies_the_schedule_before_it():
    before = keras.optimizers.schedules.ExponentialDecay(1.0, 1, 0.5)
    found = learning_rates(Cooldown(before, total_steps=10, fraction=0.2), [7, 8, 9])
    np.testing.assert_allclose(found, [2**-7, 2**-8, 2**-9 * 0.5], rtol=1e-6)


NESTED = Cooldown(Warmup(InverseSquareRoot(1.0, 5), 3, 2), total_steps=40, fraction=0.5)


@pytest.mark.parametrize(
    "schedule",
    [
        InverseSquareRoot(0.2, 30),
        Warmup(0.1, 7, 2),
        Cooldown(0.1, 50),
        Warmup(keras.optimizers.schedules.ExponentialDecay(1.0, 3, 0.5), 4),
        NESTED,
    ],
)
def test_a_schedule_survives_serialization(schedule):
    revived = keras.optimizers.schedules.deserialize(
        keras.optimizers.schedules.serialize(schedule)
    )
    assert type(revived) is type(schedule)
    assert revived.get_config() == schedule.get_config()
    steps = range(0, 40, 3)
    assert learning_rates(revived, steps) == learning_rates(schedule, steps)
    optimizer = ExtremeTensoring(schedule)
    again = ExtremeTensoring.from_config(optimizer.get_config())
    assert again.get_config() == optimizer.get_config()


def test_a_loaded_model_continues_with_its_schedule(tmp_path):
    model = keras.Sequential([keras.Input((3,)), keras.layers.Dense(2)])
    model.compile(ExtremeTensoring(NESTED), "mse")
    x, y = np.ones((8, 3)), np.zeros((8, 2))
    model.fit(x, y, batch_size=2, verbose=0, shuffle=False)
    model.save(tmp_path / "model.keras")
    loaded = keras.models.load_model(tmp_path / "model.keras")
    for each in (model, loaded):
        each.fit(x, y, batch_size=2, verbose=0, shuffle=False)
    for one, other in zip(model.weights, loaded.weights):
        np.testing.assert_array_equal(
            ops.convert_to_numpy(one), ops.convert_to_numpy(other)
        )


@pytest.mark.parametrize("backend_step", [True, False])
def test_an_optimizers_learning_rate_is_the_schedules_at_its_step(backend_step):
    optimizer = ExtremeTensoring(NESTED)
    variable = keras.Variable(np.ones((2, 2), "float32"))
    for step in range(4):
        given_step = ops.convert_to_tensor(step) if backend_step else step
        assert float(optimizer.learning_rate) == float(NESTED(given_step))
        optimizer.apply([ops.ones((2, 2))], [variable])


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: InverseSquareRoot(0.0, 5), "constant must be .* received constant=0"),
        (lambda: InverseSquareRoot(1.0, 0), "warmup_steps must be .* 1 or more"),
        (lambda: InverseSquareRoot(1.0, 2.5), "received warmup_steps=2.5"),
        (lambda: Warmup(-1.0, 5), "after must be .* received after=-1.0"),
        (lambda: Warmup("adam", 5), "after must be"),
        (lambda: Warmup(0.1, -1), "warmup_steps must be .* 0 or more"),
        (lambda: Warmup(0.1, 5, 0), "power must be"),
        (lambda: Cooldown(None, 5), "before must be"),
        (lambda: Cooldown(0.1, 0), "total_steps must be"),
        (lambda: Cooldown(0.1, 5, 0.0), r"fraction must be .* \(0, 1\]"),
        (lambda: Cooldown(0.1, 5, 1.5), "received fraction=1.5"),
    ],
)
def test_arguments_out_of_range_are_refused(make, message):
    with pytest.raises(ValueError, match=message):
        make()
