"""The optimizers that studies compare."""

import functools

import pytest

from et_optimizer import ExtremeTensoring, memory_report
from tf_models.models.transformer import transformer_language_model
from tf_models.studies import optimizers
from tf_models.studies.contenders import CONTENDERS, DEMO


@functools.cache
def demo_model():
    """The model of the demo."""
    return transformer_language_model(256, 96)


@functools.cache
def report(name):
    """The memory report of a contender for that model."""
    optimizer = optimizers.make(CONTENDERS[name].optimizer, 0.1)
    optimizer.build(demo_model().trainable_variables)
    return memory_report(optimizer)


def elements_of(name):
    """The number of state elements of a contender."""
    return report(name).slots


def test_the_demo_lists_its_optimizers_by_memory():
    reports = [report(name) for name in DEMO]
    sizes = [one.bytes for one in reports]
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
    assert sizes == sorted(sizes)
    # Only level 1 and SM3, which have the same slices, need equal memory.
    assert len(set(sizes)) == len(sizes) - 1 and sizes[2] == sizes[3]
    assert sizes[0] == 0
    assert sizes[-1] == reports[0].adam_bytes == 8 * demo_model().count_params()
    # Level 1 has one element for every index of every axis.
    slices = sum(sum(v.shape) for v in demo_model().trainable_variables)
    assert reports[2].slots == slices


def test_et_is_extreme_tensoring_with_its_defaults():
    optimizer_class, arguments = optimizers.parse(CONTENDERS["et"].optimizer)
    assert (optimizer_class, arguments) == (ExtremeTensoring, {})


@pytest.mark.parametrize(
    "name", ["et_inf", "et3", "et2", "et2_tokens", "et1", "et2_geometric"]
)
def test_levels_without_momentum_hold_one_element_per_slice(name):
    optimizer = optimizers.make(CONTENDERS[name].optimizer, 0.1)
    optimizer.build(demo_model().trainable_variables)
    named_shapes = [(v.path, tuple(v.shape)) for v in demo_model().trainable_variables]
    indices = optimizer.index_variables(named_shapes)
    sizes = memory_report(optimizer)
    assert sizes.slots == sum(index.slots for index in indices)
    assert sizes.momentum_bytes == 0


def test_et2_tokens_has_level_1_for_tokens_and_level_2_elsewhere():
    fine, coarse, mixed = (report(name) for name in ("et1", "et2", "et2_tokens"))
    for rows in zip(fine.rows, coarse.rows, mixed.rows, strict=True):
        of_fine, of_coarse, of_mixed = rows
        is_of_tokens = "embeddings" in of_mixed.path or "logits" in of_mixed.path
        assert of_mixed.slots == (of_fine if is_of_tokens else of_coarse).slots
    assert coarse.bytes < mixed.bytes < fine.bytes


def test_geometric_and_rank_one_contenders_hold_equal_state():
    for name in ("et1", "et2"):
        assert elements_of(f"{name}_geometric") == elements_of(name)
        old = optimizers.make(CONTENDERS[f"{name}_geometric"].optimizer, 0.1)
        new = optimizers.make(CONTENDERS[name].optimizer, 0.1)
        assert (old.combination, new.combination) == ("geometric", "rank_one")
        assert (old.update_bound, new.update_bound) == (None, 3.0)
        assert (old.clip_threshold, new.clip_threshold) == (1.0, None)


def test_low_rank_momentum_takes_a_small_part_of_adams_memory():
    names = ("et1", "et_4", "et", "et_16_int8", "et_16", "et1_momentum")
    sizes = [report(name).bytes for name in names]
    assert sizes == sorted(sizes) and len(set(sizes)) == len(sizes)
    adam = report("adam").bytes
    assert 20 * sizes[2] < adam
    for name in ("sm3", "adafactor"):
        momentum = report(f"{name}_momentum").bytes - report(name).bytes
        assert 0 < 20 * momentum < adam
    assert report("snsm").bytes == report("subset_momentum").bytes


def test_variants_of_adam_and_et_differ_in_one_argument():
    for name in ("et_95", "et_99"):
        assert report(name).bytes == report("et").bytes
    decays = {
        name: optimizers.make(CONTENDERS[name].optimizer, 0.1).beta_2
        for name in ("et_95", "et_99", "et", "adam_95", "adam_99", "adam")
    }
    assert list(decays.values()) == [0.95, 0.99, 0.999] * 2
    _, clipped = optimizers.parse(CONTENDERS["adam_clip"].optimizer)
    assert clipped == {"beta_2": 0.99, "global_clipnorm": 1.0}


def test_matrix_preconditioners_are_ordered_by_memory():
    names = ["sketchy2", "sketchy", "sketchy_momentum", "shampoo", "shampoo_momentum"]
    sizes = [elements_of(name) for name in names]
    assert sizes == sorted(sizes) and len(set(sizes)) == len(sizes)
    for name in ("sketchy", "shampoo"):
        momentum = elements_of(f"{name}_momentum") - elements_of(name)
        assert momentum == demo_model().count_params()


def test_full_momentum_holds_one_element_per_weight():
    weights = demo_model().count_params()
    assert elements_of("adam_99") == elements_of("adam") == 2 * weights
    for name in ("rmsprop", "adagrad", "sgd_momentum"):
        assert elements_of(name) == weights
    for name in ("et1", "et2"):
        assert elements_of(f"{name}_momentum") - elements_of(name) == weights


def test_with_arguments_keeps_name_label_and_learning_rate():
    own = CONTENDERS["keras_adafactor"]
    decayed = own.with_arguments(weight_decay=0.1)
    assert decayed.optimizer == "keras.Adafactor(weight_decay=0.1)"
    assert (decayed.name, decayed.label) == (own.name, own.label)
    assert decayed.learning_rate == own.learning_rate
