"""A single training run: what all runs have in common, and what a run measures."""

import json
import math

import keras
import pytest

from tf_models.studies.tasks import Convex, Images, Language
from tf_models.studies.training import Run, StepClock, segments, train

pytestmark = pytest.mark.usefixtures("eager")
CONVEX = Convex(examples=400, features=4)
DIGITS = Images(model="mlp", width=4, batch_size=8)


def run_of(task=CONVEX, optimizer="SGD", learning_rate=0.1, **values):
    """A small `Run`, which XLA does not compile."""
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
def language(texts):
    """A language task with little text."""
    return Language(
        text="folder", text_dir=str(texts), sequence_length=64, batch_size=2
    )


@pytest.fixture(scope="module")
def untrained(eager, language, prepared_data_dir):
    """Results of two optimizers at learning rate 0: the initial weights remain."""
    loaded = language.load(prepared_data_dir)
    return [
        train(run_of(language, optimizer, 0.0), loaded)
        for optimizer in ("SGD", "RMSprop")
    ]


def test_all_optimizers_start_from_the_same_weights(untrained):
    assert untrained[0].validation == untrained[1].validation
    assert untrained[0].test == untrained[1].test != untrained[0].validation


def test_a_run_reports_its_steps_and_a_perplexity(untrained):
    for result in untrained:
        assert (result.status, result.steps) == ("finished", 3)
        assert (result.measure, result.unit) == ("perplexity", "per byte")
        # The model is untrained and there are 256 bytes.
        assert 128 < result.validation < 512
        assert result.curve == ((3, result.validation),)
        assert result.ms_per_step > 0
        tokens_per_second = 2 * 64 * 1e3 / result.ms_per_step
        assert result.examples_per_second == pytest.approx(tokens_per_second)


def test_a_run_reports_the_memory_of_its_optimizer(untrained):
    sgd, rmsprop = untrained
    assert (sgd.numbers_held, sgd.bytes_held) == (0, 0)
    assert sgd.times_less_than_adam == math.inf
    # RMSprop keeps one moment, Adam two.
    assert rmsprop.times_less_than_adam == 2
    assert rmsprop.bytes_held == 4 * rmsprop.numbers_held
    assert rmsprop.model_bytes == 4 * rmsprop.model_numbers
    assert rmsprop.adam_bytes == 2 * rmsprop.model_bytes
    assert (sgd.percent_of_adam, rmsprop.percent_of_adam) == (0, 50)
    assert rmsprop.numbers_held == rmsprop.model_numbers == sgd.model_numbers


def test_the_seed_selects_the_initial_weights(digits):
    first, second, again = (
        train(run_of(DIGITS, learning_rate=0.0, steps=1, seed=seed), digits).validation
        for seed in (0, 1, 0)
    )
    assert first == again != second


def test_training_lowers_the_objective(convex):
    result = train(run_of(steps=8, evaluations=4), convex)
    values = [value for _, value in result.curve]
    assert [step for step, _ in result.curve] == [2, 4, 6, 8]
    assert values == sorted(values, reverse=True)
    assert 0 < result.validation == values[-1] < math.log(10)


def test_the_number_of_evaluations_does_not_change_the_trained_model(digits):
    once, thrice = (
        train(run_of(DIGITS, "Adam", 0.01, steps=7, evaluations=count), digits)
        for count in (1, 3)
    )
    assert once.validation == thrice.validation and once.test == thrice.test
    assert [step for step, _ in thrice.curve] == [2, 4, 7]


def test_a_run_whose_perplexity_overflows_has_diverged(language, prepared_data_dir):
    # The last step makes the weights finite but huge.
    counted = []
    result = train(
        run_of(language, learning_rate=1e6),
        language.load(prepared_data_dir),
        on_step=lambda: counted.append(1),
    )
    assert result.status == "diverged" and result.diverged
    assert math.isnan(result.validation) and math.isnan(result.test)
    assert result.steps == len(counted)


def test_a_run_stops_at_the_first_step_with_a_nan_loss(digits):
    counted = []
    unstable = run_of(DIGITS, learning_rate=1e30, steps=9, evaluations=3)
    result = train(unstable, digits, on_step=lambda: counted.append(1))
    assert result.diverged and result.steps == len(counted) < 9
    assert math.isnan(result.curve[-1][1])


@pytest.mark.parametrize("policy", ["mixed_bfloat16", "mixed_float16", "bfloat16"])
def test_a_run_with_a_dtype_policy_restores_the_previous_policy(convex, policy):
    result = train(run_of(optimizer="SM3", dtype_policy=policy), convex)
    assert result.status == "finished" and result.validation < math.log(10)
    # The loss scale and its counter do not count as optimizer state.
    assert result.numbers_held == train(run_of(optimizer="SM3"), convex).numbers_held
    assert keras.config.dtype_policy().name == "float32"
    bytes_a_weight = 2 if policy == "bfloat16" else 4
    assert result.model_bytes == bytes_a_weight * result.model_numbers


def test_the_step_time_is_the_median_without_the_first_step():
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
def test_the_evaluations_divide_a_run_into_segments(
    steps, evaluations, first_step, expected
):
    run = run_of(steps=steps, evaluations=evaluations)
    assert segments(run, first_step) == expected


def test_the_identity_of_a_run_holds_all_its_settings_as_json():
    run = run_of(task=Language(subwords=300), warmup_steps=2)
    identity = run.identity()
    assert json.loads(json.dumps(identity)) == identity
    assert identity["task"]["kind"] == "language"
    assert identity["task"]["subwords"] == 300
    assert run_of(task=Images()).identity()["task"]["kind"] == "images"
