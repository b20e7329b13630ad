"""The optimizers the comparison compares."""

import pytest

from et_optimizer import memory_report
from tf_models import optimizers
from tf_models.contenders import CONTENDERS, DEMO
from tf_models.transformer import transformer_language_model


@pytest.fixture(scope="module")
def model():
    """The demo's."""
    return transformer_language_model(256, 96)


def held_by(name, model):
    optimizer = optimizers.make(CONTENDERS[name].optimizer, 0.1)
    optimizer.build(model.trainable_variables)
    return memory_report(optimizer).slots


def test_the_demos_contenders_stand_in_the_order_of_the_memory_they_hold(model):
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


def test_the_matrix_contenders_hold_more_the_more_of_the_covariances_they_keep(model):
    names = ["sketchy2", "sketchy", "sketchy_momentum", "shampoo", "shampoo_momentum"]
    held = [held_by(name, model) for name in names]
    assert held == sorted(held) and len(set(held)) == len(held)
    for name in ("sketchy", "shampoo"):
        momentum = held_by(f"{name}_momentum", model) - held_by(name, model)
        assert momentum == model.count_params()


def test_momentum_costs_a_number_a_weight_and_rivals_hold_one_or_two(model):
    weights = model.count_params()
    assert held_by("adam_99", model) == held_by("adam", model) == 2 * weights
    for name in ("rmsprop", "adagrad", "sgd_momentum"):
        assert held_by(name, model) == weights
    for name in ("et1", "et2"):
        assert held_by(f"{name}_momentum", model) - held_by(name, model) == weights


def test_a_contender_takes_more_arguments_and_stays_what_it_is():
    own = CONTENDERS["keras_adafactor"]
    decayed = own.with_arguments(weight_decay=0.1)
    assert decayed.optimizer == "keras.Adafactor(weight_decay=0.1)"
    assert (decayed.name, decayed.label) == (own.name, own.label)
    assert decayed.learning_rate == own.learning_rate
