"""The optimizers the comparison compares."""

import pytest

from et_optimizer import ExtremeTensoring, memory_report
from tf_models.models.transformer import transformer_language_model
from tf_models.studies import optimizers
from tf_models.studies.contenders import CONTENDERS, DEMO


@pytest.fixture(scope="module")
def model():
    """The demo's."""
    return transformer_language_model(256, 96)


def report(name, model):
    optimizer = optimizers.make(CONTENDERS[name].optimizer, 0.1)
    optimizer.build(model.trainable_variables)
    return memory_report(optimizer)


def held_by(name, model):
    return report(name, model).slots


def test_the_demos_contenders_stand_in_the_order_of_the_bytes_they_hold(model):
    reports = [report(name, model) for name in DEMO]
    held = [one.bytes for one in reports]
    assert list(DEMO) == [
        "sgd",
        "et2",
        "et1",
        "sm3",
        "et",
        "adafactor",
        "keras_adafactor",
        "adam",
    ]
    assert held == sorted(held)
    # Only level 1 and SM3, which keeps the same slices, hold equally much.
    assert len(set(held)) == len(held) - 1 and held[2] == held[3]
    assert held[0] == 0
    assert held[-1] == reports[0].adam_bytes == 8 * model.count_params()
    # At level 1 one number for every index of every axis.
    slices = sum(sum(v.shape) for v in model.trainable_variables)
    assert reports[2].slots == slices


def test_et_is_extreme_tensoring_as_it_is_by_default():
    optimizer_class, arguments = optimizers.parse(CONTENDERS["et"].optimizer)
    assert (optimizer_class, arguments) == (ExtremeTensoring, {})


@pytest.mark.parametrize(
    "name", ["et_inf", "et3", "et2", "et2_tokens", "et1", "et2_geometric"]
)
def test_levels_without_momentum_hold_their_slices_and_nothing_else(name, model):
    optimizer = optimizers.make(CONTENDERS[name].optimizer, 0.1)
    optimizer.build(model.trainable_variables)
    named_shapes = [(v.path, tuple(v.shape)) for v in model.trainable_variables]
    indices = optimizer.index_variables(named_shapes)
    held = memory_report(optimizer)
    assert held.slots == sum(index.slots for index in indices)
    assert held.momentum_bytes == 0


def test_tokens_are_at_level_1_where_they_are_told_apart_and_all_else_at_2(model):
    fine, coarse, mixed = (report(name, model) for name in ("et1", "et2", "et2_tokens"))
    for rows in zip(fine.rows, coarse.rows, mixed.rows, strict=True):
        of_fine, of_coarse, of_mixed = rows
        is_of_tokens = "embeddings" in of_mixed.path or "logits" in of_mixed.path
        assert of_mixed.slots == (of_fine if is_of_tokens else of_coarse).slots
    assert coarse.bytes < mixed.bytes < fine.bytes


def test_geometric_and_rank_one_keep_the_same_numbers_and_combine_them_otherwise(model):
    for name in ("et1", "et2"):
        assert held_by(f"{name}_geometric", model) == held_by(name, model)
        old = optimizers.make(CONTENDERS[f"{name}_geometric"].optimizer, 0.1)
        new = optimizers.make(CONTENDERS[name].optimizer, 0.1)
        assert (old.combination, new.combination) == ("geometric", "rank_one")
        assert (old.update_bound, new.update_bound) == (None, 3.0)
        assert (old.clip_threshold, new.clip_threshold) == (1.0, None)


def test_momentum_in_a_subspace_costs_a_small_part_of_a_full_one(model):
    names = ("et1", "et_4", "et", "et_16_int8", "et_16", "et1_momentum")
    held = [report(name, model).bytes for name in names]
    assert held == sorted(held) and len(set(held)) == len(held)
    adam = report("adam", model).bytes
    assert 20 * held[2] < adam
    for name in ("sm3", "adafactor"):
        momentum = report(f"{name}_momentum", model).bytes - report(name, model).bytes
        assert 0 < 20 * momentum < adam
    assert report("snsm", model).bytes == report("subset_momentum", model).bytes


def test_rivals_of_the_same_name_differ_in_one_argument_alone(model):
    for name in ("et_95", "et_99"):
        assert report(name, model).bytes == report("et", model).bytes
    decays = {
        name: optimizers.make(CONTENDERS[name].optimizer, 0.1).beta_2
        for name in ("et_95", "et_99", "et", "adam_95", "adam_99", "adam")
    }
    assert list(decays.values()) == [0.95, 0.99, 0.999] * 2
    _, clipped = optimizers.parse(CONTENDERS["adam_clip"].optimizer)
    assert clipped == {"beta_2": 0.99, "global_clipnorm": 1.0}


def test_the_matrix_contenders_hold_more_the_more_of_the_covariances_they_keep(model):
    names = ["sketchy2", "sketchy", "sketchy_momentum", "shampoo", "shampoo_momentum"]
    held = [held_by(name, model) for name in names]
    assert held == sorted(held) and len(set(held)) == len(held)
    for name in ("sketchy", "shampoo"):
        momentum = held_by(f"{name}_momentum", model) - held_by(name, model)
        assert momentum == model.count_params()


def test_full_momentum_costs_a_number_a_weight_and_rivals_hold_one_or_two(model):
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
