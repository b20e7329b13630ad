"""The preset studies."""

import dataclasses
import itertools

import pytest

from et_optimizer import ExtremeTensoring, memory_report
from tf_models.models.classifiers import logistic_regression
from tf_models.models.transformer import SIZES as MODELS
from tf_models.models.transformer import transformer_language_model
from tf_models.studies import optimizers
from tf_models.studies.contenders import CONTENDERS
from tf_models.studies.learning_rates import SCHEDULES
from tf_models.studies.presets import PRESETS, SIZES, WEIGHT_DECAY
from tf_models.studies.tasks import Convex, Images, Language

SUBWORDS = 32_768
ALL = list(itertools.product(PRESETS, SIZES))


def report(entry, model):
    """The memory report of an entry's optimizer for a model."""
    optimizer = optimizers.make(entry.optimizer, 0.1)
    optimizer.build(model.trainable_variables)
    return memory_report(optimizer)


def state_size(entry, model):
    """The number of elements of that optimizer's state."""
    return report(entry, model).slots


def named(study):
    return {entry.name: entry for entry in study.entries}


def model_of(task):
    return transformer_language_model(
        task.subwords, task.sequence_length, **MODELS[task.model]
    )


@pytest.mark.parametrize(("name", "size"), ALL)
def test_the_entries_of_a_preset_compete_on_equal_terms(name, size):
    study = PRESETS[name](size)
    assert study.title and study.steps >= study.evaluations >= 1
    assert study.schedule in SCHEDULES
    entries = study.entries
    for entry in entries:
        optimizers.make(entry.optimizer, entry.rates[0])
        assert min(entry.rates) > 0
        assert len(set(entry.rates)) == len(entry.rates) == len(entries[0].rates)
    for names in ([e.name for e in entries], [e.label for e in entries]):
        assert len(set(names)) == len(names)
    # They train on the same data.
    tasks = [entry.task for entry in entries]
    assert isinstance(tasks[0], (Language, Images, Convex))
    models = {task.model for task in tasks}
    assert len(models) == (2 if name == "depth" else 1)
    assert len(set(tasks)) == len(models)


def test_a_name_means_one_optimizer_in_every_preset():
    named_texts = {}
    for name, size in ALL:
        for entry in PRESETS[name](size).entries:
            if entry.dtype_policy is None:
                text = entry.optimizer
                if name == "images":  # All have weight decay there.
                    decay = {"weight_decay": WEIGHT_DECAY}
                    own = CONTENDERS[entry.name].optimizer
                    assert text == optimizers.with_arguments(own, decay)
                    text = own
                named_texts.setdefault(entry.name, set()).add(text)
    for name, texts in named_texts.items():
        if name in CONTENDERS:
            texts.add(CONTENDERS[name].optimizer)
        assert len(texts) == 1, name


def test_the_paper_sizes_match_the_paper():
    study = PRESETS["language"]("paper")
    task = study.entries[0].task
    assert (task.text, task.model, task.subwords) == ("lm1b", "base", SUBWORDS)
    assert task.batch_size * task.sequence_length == 4096
    assert (study.steps, study.warmup_steps) == (500_000, 10_000)
    assert study.schedule == "inverse_square_root"
    images = PRESETS["images"]("paper").entries[0].task
    assert (images.images, images.width) == ("cifar10", 64)
    convex = PRESETS["convex"]("paper").entries[0].task
    assert (convex.examples, convex.features, convex.classes) == (10_000, 512, 10)
    assert convex.condition_number == 1e4


def test_no_laptop_preset_needs_a_network():
    for preset in PRESETS.values():
        for entry in preset("laptop").entries:
            assert getattr(entry.task, "text", "stdlib") == "stdlib"
            assert getattr(entry.task, "images", "digits") == "digits"


def test_at_paper_size_level_2_holds_a_thousandth_of_the_state_of_rmsprop():
    study = PRESETS["language"]("paper")
    entries = named(study)
    model = model_of(study.entries[0].task)
    assert model.count_params() > 50_000_000
    ours, rmsprop, adam = (
        state_size(entries[name], model) for name in ("et2", "rmsprop", "adam_99")
    )
    assert 1000 * ours <= rmsprop == model.count_params()
    assert adam == 2 * rmsprop


def test_at_laptop_size_level_2_holds_at_most_one_element_per_500_weights():
    study = PRESETS["language"]("laptop")
    model = model_of(study.entries[0].task)
    assert 500 * state_size(named(study)["et2"], model) <= model.count_params()


def test_the_language_study_lists_its_optimizers_by_memory():
    study = PRESETS["language"]("laptop")
    model = model_of(study.entries[0].task)
    reports = [report(entry, model) for entry in study.entries]
    held_bytes = [one.bytes for one in reports]
    assert held_bytes == sorted(held_bytes)
    assert held_bytes[0] == 0
    assert {one.adam_bytes for one in reports} == {held_bytes[-1]}


@pytest.mark.parametrize("size", SIZES)
def test_the_language_study_searches_around_adams_learning_rate(
    size,
):
    for entry in PRESETS["language"](size).entries:
        if entry.name in ("sgd", "sm3", "adafactor", "adagrad"):
            continue
        of_class, arguments = optimizers.parse(entry.optimizer)
        has_more_for_tokens = of_class is ExtremeTensoring and (
            of_class(**arguments).rate_scale == "auto"
        )
        rates = (1e-3, 2e-3, 4e-3) if has_more_for_tokens else (2e-3, 4e-3, 8e-3)
        assert entry.rates == rates, entry.name


@pytest.mark.parametrize("subwords", [300, 5000])
def test_et2_tokens_has_level_1_for_tokens_at_any_vocabulary_size(subwords):
    entry = named(PRESETS["language"]("laptop"))["et2_tokens"]
    model = model_of(dataclasses.replace(entry.task, subwords=subwords))
    slots = {row.path: row.slots for row in report(entry, model).rows}
    width = MODELS[entry.task.model]["width"]
    assert slots["logits/kernel"] == subwords + width
    assert slots["embedding/token/embeddings"] == subwords + width


def test_the_large_language_study_has_a_model_of_over_3_million_weights():
    study, language = (
        PRESETS[name]("laptop") for name in ("language_large", "language")
    )
    assert [entry.name for entry in study.entries] == ["et", "adam_99"]
    assert study.steps == language.steps
    for entry in study.entries:
        other = named(language)[entry.name]
        middle = 1e-3 if entry.name == "et" else 2e-3
        assert entry.rates == (middle / 2, middle, middle * 2)
        assert entry.optimizer == other.optimizer
        assert dataclasses.replace(entry.task, model=other.task.model) == other.task
    assert model_of(study.entries[0].task).count_params() > 3_000_000
    # An added optimizer gets its learning rate of the language study, halved.
    sgd = study.entry_of(CONTENDERS["sgd"])
    assert sgd.rates == (0.25, 0.5, 1.0)


def test_a_deep_model_with_et2_needs_less_memory_than_a_shallow_one_with_adagrad():
    entries = named(PRESETS["depth"]("laptop"))
    deep, shallow = entries["et2_deep"], entries["adagrad"]
    layers = [MODELS[one.task.model]["layers"] for one in (deep, shallow)]
    assert layers[0] == 2 * layers[1]
    totals = []
    for one in (deep, shallow):
        model = model_of(one.task)
        totals.append(model.count_params() + state_size(one, model))
    assert totals[0] < totals[1]


def test_the_depth_study_has_6_and_12_layers_at_paper_size():
    tasks = [entry.task for entry in PRESETS["depth"]("paper").entries]
    assert {MODELS[task.model]["layers"] for task in tasks} == {6, 12}


def test_the_quality_study_is_the_language_study_at_one_learning_rate():
    language, quality = (PRESETS[name]("laptop") for name in ("language", "quality"))
    assert quality.quality_levels == (1, 2, 3, "inf")
    assert language.quality_levels == ()
    for entry in quality.entries:
        other = named(language)[entry.name]
        assert entry.optimizer == other.optimizer and entry.task == other.task
        assert len(entry.rates) == 1 and entry.rates[0] in other.rates


def test_the_convex_study_lists_its_optimizers_by_memory():
    entries = named(PRESETS["convex"]("laptop"))
    task = entries["et1_sums"].task
    model = logistic_regression(task.features, task.classes)
    levels = ("et_inf_sums", "et3_sums", "et2_sums", "et1_sums")
    names = ("sgd_unclipped", *levels, "adagrad")
    rank_one = entries["et1_rank_one_sums"]
    assert set(entries) == {*names, rank_one.name}
    assert state_size(rank_one, model) == state_size(entries["et1_sums"], model)
    numbers = [state_size(entries[name], model) for name in names]
    assert numbers == sorted(numbers) and len(set(numbers)) == len(numbers)
    assert numbers[0] == 0
    assert numbers[2:5] == [8 + 8 + 8 + 10, 16 + 32 + 10, 512 + 10]
    assert numbers[-1] == model.count_params() == 5120


def test_the_convex_levels_are_algorithm_1_with_sums_and_without_momentum():
    for name, entry in named(PRESETS["convex"]("laptop")).items():
        if not name.startswith("et"):
            continue
        _, arguments = optimizers.parse(entry.optimizer)
        assert (arguments["beta_1"], arguments["beta_2"]) == (0.0, None)
        assert arguments["update_bound"] is None
        rule = "rank_one" if name == "et1_rank_one_sums" else "geometric"
        assert arguments["combination"] == rule


@pytest.mark.parametrize("size", SIZES)
def test_the_images_study_has_et_and_its_levels_without_momentum(size):
    entries = named(PRESETS["images"](size))
    assert {"et", "et1", "et2", "et3", "adam"} <= set(entries)
    assert entries["et"].optimizer == "ExtremeTensoring(weight_decay=0.0005)"
