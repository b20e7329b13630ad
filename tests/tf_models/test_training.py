"""One run: what it shares with the others, and what it measures."""

import json
import math

import keras
import pytest

from tf_models.studies.tasks import Convex, Images, Language
from tf_models.studies.training import Run, StepClock, segments, train

CONVEX = Convex(examples=400, features=4)
DIGITS = Images(model="mlp", width=4, batch_size=8)


def run_of(task=CONVEX, optimizer="SGD", learning_rate=0.1, **values):
    """A small `Run`, uncompiled, as XLA's compilation is most of its time."""
    defaults = {"schedule": "constant", "steps": 3, "jit_compile": False}
    return Run(
        task=task,
        optimizer=optimizer,
        learning_rate=learning_rate,
        **defaults | values,
    )


@pytest.fixture(scope="module")
def convex():
    return CONVEX.load()


@pytest.fixture(scope="module")
def digits(prepared_data_dir):
    return DIGITS.load(prepared_data_dir)


@pytest.fixture(scope="module")
def still(texts, prepared_data_dir):
    """Two optimizers at rate 0: their models keep the weights they began with."""
    task = Language(
        text="folder", text_dir=str(texts), sequence_length=64, batch_size=2
    )
    loaded = task.load(prepared_data_dir)
    return [
        train(run_of(task, optimizer, 0.0), loaded) for optimizer in ("SGD", "RMSprop")
    ]


def test_runs_begin_with_the_same_weights(still):
    assert still[0].validation == still[1].validation
    assert still[0].test == still[1].test != still[0].validation


def test_a_run_reports_its_steps_and_a_perplexity(still):
    for result in still:
        assert (result.status, result.steps) == ("finished", 3)
        assert (result.measure, result.unit) == ("perplexity", "a byte")
        # Of a model that was never trained, on 256 different bytes.
        assert 128 < result.validation < 512
        assert result.curve == ((3, result.validation),)
        assert result.ms_per_step > 0
        tokens_per_second = 2 * 64 * 1e3 / result.ms_per_step
        assert result.examples_per_second == pytest.approx(tokens_per_second)


def test_a_run_reports_what_its_optimizer_holds(still):
    sgd, rmsprop = still
    assert (sgd.numbers_held, sgd.bytes_held) == (0, 0)
    assert sgd.times_less_than_adam == math.inf
    # RMSprop keeps one moment where Adam keeps two.
    assert rmsprop.times_less_than_adam == 2
    assert rmsprop.bytes_held == 4 * rmsprop.numbers_held
    assert rmsprop.model_bytes == 4 * rmsprop.model_numbers
    assert rmsprop.adam_bytes == 2 * rmsprop.model_bytes
    assert (sgd.percent_of_adam, rmsprop.percent_of_adam) == (0, 50)
    assert rmsprop.numbers_held == rmsprop.model_numbers == sgd.model_numbers


def test_seeds_begin_with_other_weights(digits):
    first, second, again = (
        train(run_of(DIGITS, learning_rate=0.0, steps=1, seed=seed), digits).validation
        for seed in (0, 1, 0)
    )
    assert first == again != second


def test_training_makes_the_objective_less(convex):
    result = train(run_of(steps=8, evaluations=4), convex)
    values = [value for _, value in result.curve]
    assert [step for step, _ in result.curve] == [2, 4, 6, 8]
    assert values == sorted(values, reverse=True)
    assert 0 < result.validation == values[-1] < math.log(10)


def test_how_often_a_run_is_validated_does_not_change_what_it_learns(digits):
    once, thrice = (
        train(run_of(DIGITS, "Adam", 0.01, steps=7, evaluations=count), digits)
        for count in (1, 3)
    )
    assert once.validation == thrice.validation and once.test == thrice.test
    assert [step for step, _ in thrice.curve] == [2, 4, 7]


def test_a_loss_too_large_for_a_perplexity_is_diverged_and_every_step_was_told(
    prepared_data_dir,
):
    # The last step takes the weights to values that are finite and absurd.
    task = Language(sequence_length=64, batch_size=2)
    told = []
    result = train(
        run_of(task, learning_rate=1e6),
        task.load(prepared_data_dir),
        on_step=lambda: told.append(1),
    )
    assert result.status == "diverged" and result.diverged
    assert math.isnan(result.validation) and math.isnan(result.test)
    assert result.steps == len(told)


def test_a_run_stops_at_the_step_whose_loss_is_not_a_number(digits):
    told = []
    wild = run_of(DIGITS, learning_rate=1e30, steps=9, evaluations=3)
    result = train(wild, digits, on_step=lambda: told.append(1))
    assert result.diverged and result.steps == len(told) < 9
    assert math.isnan(result.curve[-1][1])


@pytest.mark.parametrize("policy", ["mixed_bfloat16", "mixed_float16", "bfloat16"])
def test_mixed_precision_trains_and_leaves_the_policy_as_it_was(convex, policy):
    result = train(run_of(optimizer="SM3", dtype_policy=policy), convex)
    assert result.status == "finished" and result.validation < math.log(10)
    # Neither the loss scale nor its counter belongs to what a rule holds.
    assert result.numbers_held == train(run_of(optimizer="SM3"), convex).numbers_held
    assert keras.config.dtype_policy().name == "float32"
    bytes_a_weight = 2 if policy == "bfloat16" else 4
    assert result.model_bytes == bytes_a_weight * result.model_numbers


def test_the_step_time_is_the_median_after_the_step_that_compiles():
    clock = StepClock(on_step=lambda: None)
    assert math.isnan(clock.ms_per_step)
    clock.seconds = [9.0]
    assert math.isnan(clock.ms_per_step)
    clock.seconds = [9.0, 0.010, 0.030, 0.020]
    assert clock.ms_per_step == pytest.approx(20)


@pytest.mark.parametrize(
    ("steps", "evaluations", "first_step", "expected"),
    [
        (6, 1, 0, [(0, 6)]),
        (6, 3, 0, [(0, 2), (2, 4), (4, 6)]),
        (7, 3, 0, [(0, 2), (2, 4), (4, 7)]),
        (7, 3, 4, [(4, 7)]),
        (7, 3, 7, []),
        (2, 50, 0, [(0, 1), (1, 2)]),
    ],
)
def test_a_run_is_cut_where_it_is_evaluated(steps, evaluations, first_step, expected):
    run = run_of(steps=steps, evaluations=evaluations)
    assert segments(run, first_step) == expected


def test_the_identity_of_a_run_is_all_that_decides_it_as_plain_values():
    run = run_of(task=Language(subwords=300), warmup_steps=2)
    identity = run.identity()
    assert json.loads(json.dumps(identity)) == identity
    assert identity["task"]["kind"] == "language"
    assert identity["task"]["subwords"] == 300
    assert run_of(task=Images()).identity()["task"]["kind"] == "images"
