"""Checkpoints: a stopped run resumes, and ends like an undisturbed one."""

import dataclasses
import json
import math
import shutil

import keras
import numpy as np
import pytest

from tf_models.studies.checkpoints import PROGRESS_NAME, Checkpoint
from tf_models.studies.tasks import Convex, Images
from tf_models.studies.training import Run, train

pytestmark = pytest.mark.usefixtures("eager")
TASK = Images(model="mlp", width=4, batch_size=8)
RUN = Run(
    task=TASK,
    optimizer="ExtremeTensoring(level=2, beta_1=0.9)",
    learning_rate=0.01,
    steps=6,
    evaluations=3,
    jit_compile=False,
)


class KeptModel(keras.callbacks.Callback):
    """Gives access to the weights and the optimizer state of a run."""

    @property
    def numbers(self):
        variables = [*self.model.weights, *self.model.optimizer.variables]
        return [keras.ops.convert_to_numpy(variable).copy() for variable in variables]


@pytest.fixture(scope="module")
def digits(prepared_data_dir):
    return TASK.load(prepared_data_dir)


@pytest.fixture(scope="module")
def stopped_dir(eager, digits, tmp_path_factory):
    """A checkpoint of `RUN` after four of its six steps."""
    directory = tmp_path_factory.mktemp("stopped")
    stop(RUN, digits, directory)
    return directory


@pytest.fixture
def stopped(stopped_dir, tmp_path):
    """A copy of that checkpoint, which a test may change."""
    return shutil.copytree(stopped_dir, tmp_path / "copy")


def stop(run, task, directory, after=5):
    """Trains a run and stops it within a step."""
    steps = iter(range(1, after + 1))

    def on_step():
        if next(steps) == after:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        train(run, task, on_step=on_step, checkpoint=Checkpoint(directory))


def contents(directory):
    return {path.name: path.read_bytes() for path in directory.iterdir()}


def test_a_directory_holds_one_checkpoint_of_two_files(stopped):
    assert contents(stopped).keys() == {PROGRESS_NAME, "checkpoint_step_4.weights.h5"}
    progress = json.loads((stopped / PROGRESS_NAME).read_text())
    assert [step for step, _ in progress["curve"]] == [2, 4]


@pytest.mark.parametrize("policy", ["float32", "mixed_float16"])
def test_a_resumed_run_ends_bit_for_bit_like_an_undisturbed_one(
    digits, tmp_path, policy
):
    # In float16 the loss scale and its step count are part of the state.
    run = dataclasses.replace(RUN, dtype_policy=policy)
    whole, resumed = KeptModel(), KeptModel()
    undisturbed = train(run, digits, callbacks=[whole])

    (tmp_path / "my_best.weights.h5").write_bytes(b"the user's")
    stop(run, digits, tmp_path)
    restored, steps = [], []
    result = train(
        run,
        digits,
        on_step=lambda: steps.append(1),
        on_restore=restored.append,
        checkpoint=Checkpoint(tmp_path),
        callbacks=[resumed],
    )
    assert (restored, len(steps)) == ([4], 2)
    assert result.curve == undisturbed.curve
    assert (result.validation, result.test) == (
        undisturbed.validation,
        undisturbed.test,
    )
    assert len(whole.numbers) == len(resumed.numbers)
    for one, other in zip(whole.numbers, resumed.numbers):
        np.testing.assert_array_equal(one, other)
    left = contents(tmp_path)
    assert left.pop("my_best.weights.h5") == b"the user's"
    assert left.keys() == {PROGRESS_NAME, "checkpoint_step_6.weights.h5"}


def test_a_finished_run_repeats_no_step_and_reports_the_same_result(digits, stopped):
    result = train(RUN, digits, checkpoint=Checkpoint(stopped))
    steps = []
    again = train(
        RUN,
        digits,
        on_step=lambda: steps.append(1),
        checkpoint=Checkpoint(stopped),
    )
    assert steps == []
    assert again.curve == result.curve
    assert (again.test, again.steps) == (result.test, 6)
    assert math.isnan(again.ms_per_step)


def test_a_run_that_diverged_stays_diverged(digits, tmp_path):
    unstable = dataclasses.replace(
        RUN, optimizer="SGD", learning_rate=1e30, schedule="constant"
    )
    first = train(unstable, digits, checkpoint=Checkpoint(tmp_path))
    steps = []
    again = train(
        unstable,
        digits,
        on_step=lambda: steps.append(1),
        checkpoint=Checkpoint(tmp_path),
    )
    assert first.diverged and again.diverged
    assert (again.steps, steps) == (first.steps, [])


@pytest.mark.parametrize(
    ("change", "told"),
    [
        ({"seed": 3}, "its seed is 0, not 3"),
        ({"learning_rate": 0.5}, "its learning_rate is 0.01, not 0.5"),
        (
            {"task": dataclasses.replace(TASK, width=5), "steps": 9},
            "its steps is 6, not 9; its task.width is 4, not 5",
        ),
        ({"task": Convex()}, "its task.kind is 'images', not 'convex'"),
    ],
)
def test_a_checkpoint_of_another_run_is_refused_and_kept(stopped, change, told):
    before = contents(stopped)
    other = dataclasses.replace(RUN, **change)
    with pytest.raises(ValueError, match="of another run") as refusal:
        Checkpoint(stopped).restore(None, other)
    assert told in str(refusal.value)
    assert "Name another directory, or give the flags" in str(refusal.value)
    assert contents(stopped) == before


def test_a_checkpoint_of_a_run_on_other_data_is_refused(stopped):
    other = Checkpoint(stopped, data="other digits")
    with pytest.raises(ValueError, match="its data is None, not 'other digits'"):
        other.restore(None, RUN)


@pytest.mark.parametrize("text", ["", "{", "[]", "{}", '{"run": {}}', "5"])
def test_an_invalid_progress_file_is_refused_with_the_remedy(tmp_path, text):
    (tmp_path / PROGRESS_NAME).write_text(text)
    with pytest.raises(ValueError, match="not the progress of a run .* Remove it"):
        Checkpoint(tmp_path).restore(None, RUN)
    assert (tmp_path / PROGRESS_NAME).read_text() == text


@pytest.mark.parametrize("damage", ["cut off", "missing"])
def test_unreadable_weights_are_refused_with_the_remedy(digits, stopped, damage):
    weights = stopped / "checkpoint_step_4.weights.h5"
    if damage == "missing":
        weights.unlink()
    else:
        weights.write_bytes(weights.read_bytes()[:1000])
    with pytest.raises(ValueError, match="step_4.weights.h5.* to start again"):
        train(RUN, digits, checkpoint=Checkpoint(stopped))


def test_an_interrupted_save_keeps_the_previous_checkpoint(stopped):
    class Stopped:
        def save_weights(self, path, overwrite):
            raise KeyboardInterrupt

    before = contents(stopped)
    with pytest.raises(KeyboardInterrupt):
        Checkpoint(stopped).save(Stopped(), RUN, [(2, 9.0), (4, 8.0), (6, 7.0)])
    assert contents(stopped) == before


def test_the_directory_is_made_with_the_first_checkpoint(tmp_path):
    directory = tmp_path / "made" / "by_the_run"
    assert Checkpoint(directory).restore(None, RUN) == []
    assert not directory.exists()
    task = Convex(examples=400, features=4)
    run = dataclasses.replace(RUN, task=task, steps=1)
    train(run, task.load(), checkpoint=Checkpoint(directory))
    assert contents(directory).keys() == {PROGRESS_NAME, "checkpoint_step_1.weights.h5"}
