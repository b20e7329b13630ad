"""The optimizers the comparison compares."""

import pytest

from et_optimizer import memory_report
from tf_models.contenders import CONTENDERS, DEMO, warmup_and_decay
from tf_models.transformer import transformer_language_model


def test_the_rate_warms_up_over_a_tenth_of_the_steps_and_decays_to_nothing():
    schedule = warmup_and_decay(0.5, steps=100)
    rates = [float(schedule(step)) for step in range(101)]
    assert rates[0] == 0
    assert rates[5] == pytest.approx(0.25)
    assert max(rates) == rates[10] == pytest.approx(0.5)
    assert rates[55] == pytest.approx(0.25, abs=1e-3)
    assert rates[10:] == sorted(rates[10:], reverse=True)
    assert rates[100] == pytest.approx(0, abs=1e-6)


def test_even_a_run_of_one_step_has_a_schedule():
    schedule = warmup_and_decay(0.5, steps=1)
    assert float(schedule(1)) == pytest.approx(0.5)


def held_by(name, model):
    optimizer = CONTENDERS[name].optimizer(steps=10)
    optimizer.build(model.trainable_variables)
    return memory_report(optimizer).slots


def test_the_demos_contenders_stand_in_the_order_of_the_memory_they_hold():
    model = transformer_language_model(256, 96)
    held = [held_by(name, model) for name in DEMO]
    assert list(DEMO) == [
        "sgd",
        "et_inf",
        "et3",
        "et2",
        "et1",
        "sm3",
        "adafactor",
        "keras_adafactor",
        "adam",
    ]
    assert held == sorted(held)
    # Only level 1 and SM3, which keeps the same slices, hold equally much.
    assert len(set(held)) == len(held) - 1 and held[4] == held[5]
    assert held[0] == 0
    assert held[-1] == 2 * model.count_params()
    # One number a variable, and at level 1 one number for every index of every axis.
    assert held[1] == len(model.trainable_variables)
    assert held[4] == sum(sum(v.shape) for v in model.trainable_variables)


def test_the_matrix_contenders_hold_more_the_more_of_the_covariances_they_keep():
    model = transformer_language_model(256, 96)
    names = ["sketchy2", "sketchy", "sketchy_momentum", "shampoo", "shampoo_momentum"]
    held = [held_by(name, model) for name in names]
    assert held == sorted(held) and len(set(held)) == len(held)
    for name in ("sketchy", "shampoo"):
        momentum = held_by(f"{name}_momentum", model) - held_by(name, model)
        assert momentum == model.count_params()
    assert held_by("adam_99", model) == held_by("adam", model)
