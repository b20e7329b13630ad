"""The program, from its flags to what it leaves behind."""

import csv
import io
import pathlib
import signal
import subprocess
import sys
import time

import keras
import matplotlib.image
import numpy as np
import pytest
from absl import flags
from absl.testing import flagsaver
from rich.console import Console

import tf_models
from tf_models import compare
from tf_models.contenders import CONTENDERS, DEMO, Contender
from tf_models.training import Setting

REPOSITORY = pathlib.Path(tf_models.__file__).parents[1]
SMALL = ["--steps=3", "--batch_size=2", "--sequence_length=8"]
SETTING = Setting(steps=3, batch_size=2, sequence_length=8, seed=0)
DEADLINE_SECONDS = 120


def command(*arguments):
    return [sys.executable, "-m", "tf_models.compare", *arguments]


def rows(output_dir):
    with (output_dir / compare.CSV_NAME).open(newline="", encoding="utf-8") as file:
        return list(csv.DictReader(file))


def compare_in_process(contenders, data_dir, output_dir):
    """Runs the comparison without the program around it; returns what it printed."""
    console = Console(file=io.StringIO(), width=120)
    tokens = compare.load_tokens(data_dir, console)
    status = compare.compare(contenders, SETTING, *tokens, output_dir, console)
    assert status == 0
    return console.file.getvalue()


@pytest.fixture(scope="module")
def finished(prepared_data_dir, tmp_path_factory):
    """The program, run on two optimizers, and the directory it wrote into."""
    output_dir = tmp_path_factory.mktemp("compare") / "made" / "by_the_program"
    process = subprocess.run(
        command(
            *SMALL,
            "--optimizers=et2,adam",
            f"--data_dir={prepared_data_dir}",
            f"--output_dir={output_dir}",
        ),
        cwd=REPOSITORY,
        capture_output=True,
        text=True,
        check=False,
    )
    return process, output_dir


def test_the_program_succeeds_and_writes_a_row_for_each_optimizer(finished):
    process, output_dir = finished
    assert process.returncode == 0, process.stderr
    et2, adam = rows(output_dir)
    assert (et2["optimizer"], adam["optimizer"]) == ("et2", "adam")
    assert {et2["status"], adam["status"]} == {"finished"}
    assert 1 < float(et2["perplexity"]) < 1000
    assert int(adam["numbers_held"]) > 100 * int(et2["numbers_held"])
    assert float(et2["times_less_than_adam"]) == pytest.approx(
        int(adam["numbers_held"]) / int(et2["numbers_held"])
    )


def test_the_program_shows_a_table_and_names_what_it_wrote(finished):
    process, output_dir = finished
    assert "numbers" in process.stdout and "ms a step" in process.stdout
    for row in rows(output_dir):
        assert f"{int(row['numbers_held']):,}" in process.stdout
        assert f"{float(row['perplexity']):.3f}" in process.stdout
    assert compare.PLOT_NAME in process.stdout.replace("\n", "")


def test_the_program_draws_a_plot(finished):
    _, output_dir = finished
    pixels = matplotlib.image.imread(output_dir / compare.PLOT_NAME)
    assert min(pixels.shape[:2]) >= 500
    assert len(np.unique(pixels)) > 10
    assert sorted(path.name for path in output_dir.iterdir()) == sorted(
        [compare.CSV_NAME, compare.PLOT_NAME]
    )


def test_a_second_comparison_measures_the_same_perplexities_bit_for_bit(
    finished, prepared_data_dir, tmp_path
):
    # Another process and the other order: neither may matter, as each run begins
    # with the same weights and sees the same batches whatever ran before it.
    contenders = [CONTENDERS["adam"], CONTENDERS["et2"]]
    compare_in_process(contenders, prepared_data_dir, tmp_path)
    first = {row["optimizer"]: row["perplexity"] for row in rows(finished[1])}
    second = {row["optimizer"]: row["perplexity"] for row in rows(tmp_path)}
    assert first == second


def test_a_run_that_diverges_is_recorded_and_the_next_is_run(
    prepared_data_dir, tmp_path
):
    wild = Contender("wild", "Wild", 1e30, keras.optimizers.SGD)
    tame = Contender("tame", "Tame", 1e-2, keras.optimizers.SGD)
    printed = compare_in_process([wild, tame], prepared_data_dir, tmp_path)
    first, second = rows(tmp_path)
    assert (first["status"], first["perplexity"]) == ("diverged", "nan")
    assert (second["status"], second["optimizer"]) == ("finished", "tame")
    assert "diverged at step" in printed
    assert (tmp_path / compare.PLOT_NAME).exists()


def test_ctrl_c_keeps_the_finished_runs_and_says_so(prepared_data_dir, tmp_path):
    process = subprocess.Popen(
        command(*SMALL, f"--data_dir={prepared_data_dir}", f"--output_dir={tmp_path}"),
        cwd=REPOSITORY,
        stdout=subprocess.PIPE,
        text=True,
        # A shell's background jobs ignore the signal, and so would their children.
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.default_int_handler),
    )
    with process:
        wait_for_file(tmp_path / compare.CSV_NAME, process)
        process.send_signal(signal.SIGINT)
        printed, _ = process.communicate(timeout=DEADLINE_SECONDS)
    kept = [row["optimizer"] for row in rows(tmp_path)]
    assert process.returncode == 130
    assert kept == list(DEMO)[: len(kept)] != list(DEMO)
    assert f"kept the {len(kept)} of {len(DEMO)} runs" in printed
    assert (tmp_path / compare.PLOT_NAME).exists()


def wait_for_file(path, process):
    deadline = time.monotonic() + DEADLINE_SECONDS
    while not path.exists():
        assert process.poll() is None, "the program ended before a run was finished"
        assert time.monotonic() < deadline, "no run was finished in time"
        time.sleep(0.05)


def test_ctrl_c_before_any_run_is_finished_leaves_nothing(tmp_path):
    def interrupted(learning_rate):
        raise KeyboardInterrupt

    console = Console(file=io.StringIO(), width=120)
    contender = Contender("slow", "Slow", 1.0, interrupted)
    tokens = np.zeros(1000, np.uint8)
    status = compare.compare([contender], SETTING, tokens, tokens, tmp_path, console)
    assert status == 130
    assert "Interrupted before any run was finished" in console.file.getvalue()
    assert list(tmp_path.iterdir()) == []


def test_a_learning_rate_given_takes_the_place_of_the_contenders_own():
    own = compare.chosen(["et2", "adam"], None)
    assert own == [CONTENDERS["et2"], CONTENDERS["adam"]]
    given = compare.chosen(["et2", "adam"], 0.004)
    assert [contender.learning_rate for contender in given] == [0.004, 0.004]
    assert [contender.make for contender in given] == [c.make for c in own]


@pytest.mark.parametrize(
    ("argument", "value", "rule"),
    [
        ("--steps=0", "0", "at least 1"),
        ("--batch_size=-4", "-4", "at least 1"),
        ("--sequence_length=0", "0", "from 1 to 4096"),
        ("--sequence_length=4097", "4097", "from 1 to 4096"),
        ("--seed=-1", "-1", "from 0"),
        ("--learning_rate=0", "0", "a positive number"),
        ("--learning_rate=-0.1", "-0.1", "each optimizer's own"),
        ("--learning_rate=inf", "inf", "a positive number"),
        ("--optimizers=adam,lion", "'lion'", "Choose from sgd,"),
        ("--optimizers=adam,adam", "'adam' 2 times", "Leave out the repeats"),
        ("--optimizers=", "none", "Choose from sgd,"),
    ],
)
def test_a_bad_flag_is_refused_with_its_value_and_the_rule(argument, value, rule):
    name = argument.partition("=")[0]
    with flagsaver.flagsaver(), pytest.raises(flags.IllegalFlagValueError) as refusal:
        compare.FLAGS(["compare", argument])
    message = str(refusal.value)
    assert f"{name} must" in message
    assert f"received {value}" in message
    assert rule in message


@pytest.mark.parametrize("name", ["data_dir", "output_dir"])
def test_a_directory_that_cannot_be_made_is_refused(name, tmp_path):
    (tmp_path / "file").write_text("")
    path = tmp_path / "file" / "below"
    with (
        flagsaver.flagsaver(),
        pytest.raises(
            flags.IllegalFlagValueError,
            match=f"--{name} must be .*file/below.* Name another",
        ),
    ):
        compare.FLAGS(["compare", f"--{name}={path}"])


def test_a_bad_flag_ends_the_program_before_anything_is_prepared(tmp_path):
    process = subprocess.run(
        command("--steps=none", f"--data_dir={tmp_path}", f"--output_dir={tmp_path}"),
        cwd=REPOSITORY,
        capture_output=True,
        text=True,
        check=False,
    )
    assert process.returncode == 1
    assert "--steps=none" in process.stderr
    assert list(tmp_path.iterdir()) == []
