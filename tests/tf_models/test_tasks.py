"""What runs train, and the numbers that say how well they do."""

import math

import numpy as np
import pytest

from tf_models.data import byte_vocabulary
from tf_models.studies import tasks
from tf_models.studies.tasks import (
    EVALUATED_TOKENS,
    TASKS,
    Convex,
    Images,
    Language,
    error,
    evaluation_windows,
    perplexity,
)

SHORT_TEXT = byte_vocabulary.encode("while True: print(True)\n" * 50)
CONVEX = Convex(examples=400, features=4)
DIGITS = Images(model="mlp", width=8, batch_size=16)


def arrays(batches):
    return [[np.asarray(part) for part in batch] for batch in batches]


def same(some, others):
    return all(
        np.array_equal(one, other)
        for batch, another in zip(some, others, strict=True)
        for one, other in zip(batch, another, strict=True)
    )


def test_evaluation_has_equally_many_tokens_at_every_sequence_length():
    long_text = np.tile(np.arange(256, dtype=np.uint8), 4 * EVALUATED_TOKENS // 256)
    for length in (96, 4096):
        shapes = [y.shape for _, y in evaluation_windows(long_text, length)]
        assert len(set(shapes)) == 1
        predicted = sum(math.prod(shape) for shape in shapes)
        assert 0.9 * EVALUATED_TOKENS <= predicted <= EVALUATED_TOKENS


def test_a_small_split_is_evaluated_completely():
    batches = list(evaluation_windows(SHORT_TEXT, 8))
    assert sum(math.prod(y.shape) for _, y in batches) == 8 * (
        (len(SHORT_TEXT) - 1) // 8
    )


def test_the_perplexity_is_infinite_on_overflow():
    assert perplexity({"loss": math.log(7)}) == pytest.approx(7)
    assert perplexity({"loss": 709.0}) < math.inf
    assert perplexity({"loss": 710.0}) == math.inf
    assert perplexity({"loss": math.inf}) == math.inf
    assert not math.isfinite(perplexity({"loss": math.nan}))


def test_the_error_is_in_percent_and_nan_with_a_nan_loss():
    assert error({"loss": 1.0, "accuracy": 0.75}) == 25.0
    assert error({"loss": 1.0, "accuracy": 1.0}) == 0.0
    assert math.isnan(error({"loss": math.nan, "accuracy": 0.1}))
    assert math.isnan(error({"loss": math.inf, "accuracy": 0.1}))


def test_each_kind_of_task_has_a_name_and_a_model():
    for name, task in TASKS.items():
        assert tasks.kind(task()) == name
    assert [task().model for task in TASKS.values()] == ["tiny", "resnet18", "logistic"]


def test_the_batch_size_does_not_change_the_evaluation_of_language(prepared_data_dir):
    small, large = (
        Language(sequence_length=4096, batch_size=size).load(prepared_data_dir)
        for size in (2, 5)
    )
    assert same(arrays(small.validation), arrays(large.validation))
    assert same(arrays(small.test), arrays(large.test))
    assert not same(arrays(small.test), arrays(small.validation))
    assert (small.measure, small.unit) == ("perplexity", "per byte")
    assert (small.examples_per_step, large.examples_per_step) == (8192, 20480)
    # The seed draws the training batches, of which the evaluation knows nothing.
    drawn = [arrays(small.training_batches(1, seed=seed)) for seed in (0, 1, 0)]
    assert same(drawn[0], drawn[2]) and not same(drawn[0], drawn[1])
    assert Language().for_seed(3) == Language()


@pytest.mark.parametrize("task", [Language(sequence_length=8, batch_size=2), DIGITS])
def test_batches_continue_at_a_later_step(task, prepared_data_dir):
    loaded = task.load(prepared_data_dir)
    whole = arrays(loaded.training_batches(3, seed=4))
    rest = arrays(loaded.training_batches(2, seed=4, first_step=1))
    assert same(whole[1:], rest)


def test_the_batch_size_does_not_change_the_evaluation_of_images(prepared_data_dir):
    loaded = DIGITS.load(prepared_data_dir)
    assert (loaded.measure, loaded.metrics) == ("error", ("accuracy",))
    assert loaded.score is error
    assert loaded.examples_per_step == 16
    other = Images(model="mlp", width=4, batch_size=3).load(prepared_data_dir)
    assert same(arrays(loaded.validation), arrays(other.validation))


def test_the_convex_measure_is_the_objective_minus_its_minimum():
    loaded = CONVEX.load()
    (validated,) = arrays(loaded.validation)
    (tested,) = arrays(loaded.test)
    assert len(validated[0]) == 400 and same([validated], [tested])
    batches = arrays(loaded.training_batches(3, seed=9))
    assert len(batches) == 3
    for batch in batches:
        assert same([batch], [validated])
    assert loaded.measure == "excess loss"
    # No weights at all predict all classes alike: worse than the best ones, which are
    # at least as good as nothing.
    excess = loaded.score({"loss": math.log(10)})
    assert 0 < excess <= math.log(10)
    assert loaded.score({"loss": math.log(10) - excess}) == pytest.approx(0, abs=1e-12)


def test_the_seed_selects_the_convex_data():
    assert CONVEX.for_seed(3).data_seed == 3
    drawn = [arrays(CONVEX.for_seed(seed).load().validation) for seed in (0, 3, 0)]
    assert same(drawn[0], drawn[2]) and not same(drawn[0], drawn[1])
