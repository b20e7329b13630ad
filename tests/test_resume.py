"""A run that is killed and started again ends like one that was not interrupted."""

import pathlib
import signal
import subprocess
import sys

import numpy as np

ROOT = pathlib.Path(__file__).parents[1]


def run(kill_at, *folders):
    command = [sys.executable, "-m", "tests.resumable_training", str(kill_at)]
    return subprocess.run([*command, *folders], cwd=ROOT, capture_output=True)


def test_a_killed_and_resumed_run_is_bit_identical_to_an_uninterrupted_one(tmp_path):
    uninterrupted, interrupted = tmp_path / "uninterrupted", tmp_path / "interrupted"
    uninterrupted.mkdir()
    interrupted.mkdir()
    # Step 20 is in the middle of the third epoch of 8 steps.
    assert run(20, interrupted).returncode == -signal.SIGKILL
    assert not (interrupted / "weights.npz").exists()
    done = run(-1, uninterrupted, interrupted)
    assert done.returncode == 0, done.stderr.decode()
    one = np.load(uninterrupted / "weights.npz")
    other = np.load(interrupted / "weights.npz")
    # The second run resumed from the end of the second epoch.
    assert one["steps_of_this_run"] == 32
    assert other["steps_of_this_run"] == 16
    names = [name for name in one.files if name.startswith("arr_")]
    assert len(names) > 8
    for name in names:
        np.testing.assert_array_equal(one[name], other[name])
