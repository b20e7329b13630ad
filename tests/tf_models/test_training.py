"""One run: what it shares with the others, and what it measures."""

import math

import keras
import numpy as np
import pytest

from tf_models.contenders import Contender
from tf_models.data import byte_vocabulary
from tf_models.training import (
    VALIDATION_BYTES,
    Setting,
    StepClock,
    train_and_measure,
    training_batches,
    validation_batches,
)

SETTING = Setting(steps=3, batch_size=2, sequence_length=8, seed=0)
TRAIN = byte_vocabulary.encode("for number in range(10): print(number)\n" * 50)
VALIDATION = byte_vocabulary.encode("while True: print(True)\n" * 50)
SGD = Contender("sgd", "SGD", 0.1, keras.optimizers.SGD)
RMSPROP = Contender("rmsprop", "RMSprop", 0.1, keras.optimizers.RMSprop)


def run(contender, on_step=lambda: None):
    return train_and_measure(contender, SETTING, TRAIN, VALIDATION, on_step)


def at_rate(contender, learning_rate):
    return Contender(contender.name, contender.label, learning_rate, contender.make)


@pytest.fixture(scope="module")
def still():
    """Two optimizers at rate 0: their models keep the weights they began with."""
    return run(at_rate(SGD, 0.0)), run(at_rate(RMSPROP, 0.0))


def test_runs_begin_with_the_same_weights(still):
    assert still[0].perplexity == still[1].perplexity


def test_a_run_reports_its_steps_and_a_perplexity(still):
    for result in still:
        assert result.status == "finished"
        assert result.steps == SETTING.steps
        # Of a model that was never trained, on 256 different bytes.
        assert 128 < result.perplexity < 512
        assert result.ms_per_step > 0


def test_a_run_reports_what_its_optimizer_holds(still):
    sgd, rmsprop = still
    assert (sgd.numbers_held, sgd.bytes_held) == (0, 0)
    assert sgd.times_less_than_adam == math.inf
    # RMSprop keeps one moment where Adam keeps two.
    assert rmsprop.times_less_than_adam == 2
    assert rmsprop.bytes_held == 4 * rmsprop.numbers_held


def test_a_loss_too_large_for_a_perplexity_is_diverged_and_every_step_was_told():
    # The last step takes the weights to values that are finite and absurd.
    told = []
    result = run(at_rate(SGD, 1e6), on_step=lambda: told.append(1))
    assert result.status == "diverged"
    assert math.isnan(result.perplexity)
    assert result.steps == len(told)


def test_the_step_time_is_the_median_after_the_step_that_compiles():
    clock = StepClock(on_step=lambda: None)
    assert math.isnan(clock.ms_per_step)
    clock.seconds = [9.0]
    assert math.isnan(clock.ms_per_step)
    clock.seconds = [9.0, 0.010, 0.030, 0.020]
    assert clock.ms_per_step == pytest.approx(20)


def test_training_batches_depend_on_the_seed():
    first, second = (
        next(iter(training_batches(TRAIN, Setting(1, 8, 8, seed))))[0].numpy()
        for seed in (0, 1)
    )
    assert not np.array_equal(first, second)


def test_the_validation_slice_is_the_same_at_every_batch_size_and_seed():
    long_text = np.tile(np.arange(256, dtype=np.uint8), 4 * VALIDATION_BYTES // 256)
    for length in (8, 96, 4096):
        shapes = [y.shape for _, y in validation_batches(long_text, length)]
        assert len(set(shapes)) == 1
        predicted = sum(math.prod(shape) for shape in shapes)
        assert 0.9 * VALIDATION_BYTES <= predicted <= VALIDATION_BYTES


def test_a_validation_text_smaller_than_the_slice_is_used_whole():
    batches = list(validation_batches(VALIDATION, 8))
    assert sum(math.prod(y.shape) for _, y in batches) == 8 * (
        (len(VALIDATION) - 1) // 8
    )
