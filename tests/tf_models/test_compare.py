"""The program that compares optimizers, from its flags to the files it writes."""

import csv
import dataclasses
import io
import pathlib
import signal
import subprocess
import sys

import matplotlib.image
import numpy as np
import pytest
from absl import app, flags
from rich.console import Console

import tf_models
from tests.tf_models.measured import entry
from tf_models import compare
from tf_models.studies.contenders import CONTENDERS, DEMO
from tf_models.studies.presets import PRESETS
from tf_models.studies.study import Study
from tf_models.studies.tasks import Convex, Images
from tf_models.studies.training import train

pytestmark = pytest.mark.usefixtures("eager")
REPOSITORY = pathlib.Path(tf_models.__file__).parents[1]
SMALL = ["--steps=2", "--batch_size=2", "--sequence_length=64", "--nojit"]
CONVEX = Convex(examples=400, features=4)
DIGITS = Images(model="mlp", width=4, batch_size=8)
# Two optimizers, two rates each, two seeds: six runs.
STUDY = Study(
    title="A small study",
    entries=(
        entry("adam", rates=(0.01, 0.1), task=CONVEX),
        entry("et2", optimizer="ExtremeTensoring", rates=(0.01, 0.1), task=CONVEX),
    ),
    seeds=(0, 1),
    steps=3,
    evaluations=2,
    schedule="constant",
    jit_compile=False,
)


def command(*arguments):
    return [sys.executable, "-m", "tf_models.compare", *arguments]


def parsed(*arguments):
    """Parses flags as the program does, and refuses what it refuses."""
    values = flags.FlagValues()
    compare.define_flags(values)
    values(["compare", *arguments])
    return values


def rows(output_dir):
    with (output_dir / compare.CSV_NAME).open(newline="", encoding="utf-8") as file:
        return list(csv.DictReader(file))


def measures(output_dir):
    """What a comparison measured, without the times."""
    return {
        (row["entry"], row["learning_rate"], row["seed"]): (
            row["status"],
            row["is_best_rate"],
            row["validation"],
            row["test"],
        )
        for row in rows(output_dir)
    }


def compare_in_process(study, output_dir, data_dir=None):
    """Runs a comparison in this process.

    Returns:
        The exit status and the output.
    """
    console = Console(file=io.StringIO(), width=140)
    load = compare.TaskLoader(data_dir, "skip", console)
    status = compare.compare(study, load, output_dir, console)
    return status, console.file.getvalue()


def counted_runs(patch):
    """A list to which each trained run is added, until the patch is undone."""
    runs = []

    def counted(run, *arguments, **keywords):
        runs.append(run)
        return train(run, *arguments, **keywords)

    patch.setattr(compare, "train", counted)
    return runs


@pytest.fixture
def made(monkeypatch):
    """The runs that are trained during a test, in order."""
    return counted_runs(monkeypatch)


@pytest.fixture
def ctrl_c():
    """A function that presses Ctrl-C, which this process does not ignore."""
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    yield lambda: signal.raise_signal(signal.SIGINT)
    signal.signal(signal.SIGINT, before)


# The program.


@pytest.fixture(scope="module")
def small(texts):
    """Flags of a small study."""
    return [*SMALL, "--text=folder", f"--text_dir={texts}"]


@pytest.fixture(scope="module")
def finished(small, prepared_data_dir, tmp_path_factory):
    """The program's process, run with two optimizers, and its output directory."""
    output_dir = tmp_path_factory.mktemp("compare") / "made" / "by_the_program"
    process = subprocess.run(
        command(
            *small,
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


def test_the_program_writes_a_row_for_each_optimizer(finished):
    process, output_dir = finished
    assert process.returncode == 0, process.stderr
    et2, adam = rows(output_dir)
    assert (et2["entry"], adam["entry"]) == ("et2", "adam")
    assert {et2["status"], adam["status"]} == {"finished"}
    assert 1 < float(et2["validation"]) < 1000
    assert int(adam["numbers_held"]) > 100 * int(et2["numbers_held"])
    assert adam["bytes_held"] == adam["adam_bytes"] == et2["adam_bytes"]
    assert int(et2["bytes_held"]) == 4 * int(et2["numbers_held"])
    assert float(et2["times_less_than_adam"]) == pytest.approx(
        int(adam["numbers_held"]) / int(et2["numbers_held"])
    )


def test_the_program_shows_a_table_and_names_the_files_it_wrote(finished, texts):
    process, output_dir = finished
    assert "bytes" in process.stdout and "Adam's" in process.stdout
    assert f"the folder {texts.name}" in process.stdout
    for row in rows(output_dir):
        assert f"{int(row['bytes_held']):,}" in process.stdout
        assert f"{float(row['validation']):.4g}" in process.stdout
    for name in (compare.CSV_NAME, compare.MEMORY_PLOT_NAME):
        assert name in process.stdout.replace("\n", "")


def test_the_program_draws_a_plot(finished):
    _, output_dir = finished
    pixels = matplotlib.image.imread(output_dir / compare.MEMORY_PLOT_NAME)
    assert min(pixels.shape[:2]) >= 500
    assert len(np.unique(pixels)) > 10
    # With one learning rate each and one evaluation there is no other plot.
    assert {path.name for path in output_dir.iterdir()} == {
        compare.CSV_NAME,
        compare.JOURNAL_NAME,
        compare.MEMORY_PLOT_NAME,
    }


def test_a_second_comparison_measures_the_same_bit_for_bit(
    finished, small, graphs, prepared_data_dir, tmp_path
):
    # Each run starts from the same weights and sees the same batches, in whichever
    # process and after whichever other runs.
    study = compare.chosen_study(parsed(*small, "--optimizers=adam"))
    status, _ = compare_in_process(study, tmp_path, prepared_data_dir)
    assert status == 0
    ((run, measured),) = measures(tmp_path).items()
    assert measures(finished[1])[run] == measured


# Finished, interrupted and diverged runs.


@pytest.fixture(scope="module")
def whole(eager, tmp_path_factory):
    """The undisturbed small study: its runs, its output and its directory."""
    output_dir = tmp_path_factory.mktemp("whole")
    with pytest.MonkeyPatch.context() as patch:
        runs = counted_runs(patch)
        status, printed = compare_in_process(STUDY, output_dir)
    assert status == 0
    return runs, printed, output_dir


def test_all_learning_rates_run_on_the_first_seed_and_the_best_on_the_others(whole):
    runs, printed, output_dir = whole
    tried = [(run.optimizer, run.learning_rate, run.seed) for run in runs]
    best = {
        row["entry"]: float(row["learning_rate"])
        for row in rows(output_dir)
        if row["is_best_rate"] == "True" and row["seed"] == "0"
    }
    assert tried == [
        ("Adam", 0.01, 0),
        ("Adam", 0.1, 0),
        ("ExtremeTensoring", 0.01, 0),
        ("ExtremeTensoring", 0.1, 0),
        ("Adam", best["adam"], 1),
        ("ExtremeTensoring", best["et2"], 1),
    ]
    assert "6/6 et2" in printed and "seeds 0, 1" in printed
    assert {path.name for path in output_dir.iterdir()} == {
        compare.CSV_NAME,
        compare.JOURNAL_NAME,
        compare.MEMORY_PLOT_NAME,
        compare.CURVES_PLOT_NAME,
        compare.RATES_PLOT_NAME,
    }


def test_after_ctrl_c_the_same_command_runs_only_the_unfinished_runs(
    whole, made, ctrl_c, monkeypatch, tmp_path
):
    planned, _, undisturbed_dir = whole
    counted = compare.train

    def interrupted(run, task, on_step, **keywords):
        if len(made) == 3:  # In the first step of the fourth run.
            ctrl_c()
        return counted(run, task, on_step=on_step, **keywords)

    monkeypatch.setattr(compare, "train", interrupted)
    status, printed = compare_in_process(STUDY, tmp_path)
    assert status == 130
    assert "kept the 3 of 6 runs" in printed and "resumes the study" in printed
    assert len(rows(tmp_path)) == 3
    assert (tmp_path / compare.MEMORY_PLOT_NAME).exists()

    monkeypatch.setattr(compare, "train", counted)
    made.clear()
    status, printed = compare_in_process(STUDY, tmp_path)
    assert status == 0
    assert made == planned[3:]
    assert printed.count("found in runs.jsonl") == 3
    assert measures(tmp_path) == measures(undisturbed_dir)

    made.clear()
    compare_in_process(STUDY, tmp_path)
    assert made == []


def test_ctrl_c_before_the_first_finished_run_leaves_no_files(ctrl_c, tmp_path):
    def load(task):
        ctrl_c()
        return task.load()

    console = Console(file=io.StringIO(), width=120)
    status = compare.compare(STUDY, load, tmp_path, console)
    assert status == 130
    assert "Interrupted before the first run was finished" in console.file.getvalue()
    assert list(tmp_path.iterdir()) == []


def test_a_diverged_run_is_recorded_and_the_study_continues(
    made, prepared_data_dir, tmp_path
):
    study = dataclasses.replace(
        STUDY,
        entries=(
            entry("unstable", optimizer="SGD", rates=(1e30,), task=DIGITS),
            entry("stable", optimizer="SGD", rates=(1e-2,), task=DIGITS),
        ),
        seeds=(0,),
    )
    status, printed = compare_in_process(study, tmp_path, prepared_data_dir)
    first, second = rows(tmp_path)
    assert status == 0
    assert (first["status"], first["validation"]) == ("diverged", "nan")
    assert (second["status"], second["entry"]) == ("finished", "stable")
    assert "diverged at step" in printed
    assert (tmp_path / compare.MEMORY_PLOT_NAME).exists()
    # The same command does not run it again.
    made.clear()
    compare_in_process(study, tmp_path, prepared_data_dir)
    assert made == []


def test_the_quality_study_records_and_plots_the_trace_ratios(
    made, prepared_data_dir, tmp_path
):
    study = compare.chosen_study(parsed("--preset=quality", "--steps=3"))
    unstable = entry("unstable", optimizer="SGD", rates=(1e30,), task=DIGITS)
    small = dataclasses.replace(
        study,
        entries=(
            *(dataclasses.replace(e, task=DIGITS) for e in study.entries),
            unstable,
        ),
        evaluations=1,
        jit_compile=False,
    )
    status, printed = compare_in_process(small, tmp_path, prepared_data_dir)
    assert status == 0
    journal = compare.Journal(tmp_path / compare.JOURNAL_NAME)
    for one in study.entries:
        name = compare.QUALITY_PLOT_NAME.format(one.name)
        assert name in printed.replace("\n", "") and (tmp_path / name).exists()
    diverged, _ = journal.find(made[-1], "digits")
    assert diverged.diverged
    _, quality = journal.find(made[0], "digits")
    assert [step for step, _ in quality] == [1, 2, 3]
    last = quality[-1][1]
    ratios = [last[f"level_{level}/trace_ratio"] for level in (1, 2, 3, "inf")]
    assert 1 <= ratios[0] <= ratios[-1]
    # A second call reads them from the journal.
    made.clear()
    compare_in_process(small, tmp_path, prepared_data_dir)
    assert made == []


@pytest.fixture
def program(monkeypatch):
    """Calls `main` with flags; returns its status and its arguments of `compare`."""
    handed = []
    monkeypatch.setattr(compare, "compare", lambda *a: handed.append(a) or 0)

    def call(*arguments, rest=()):
        values = parsed(*arguments)
        values["verbosity"] = flags.FLAGS["verbosity"]
        monkeypatch.setattr(compare, "FLAGS", values)
        status = compare.main(["compare", *rest])
        return status, *handed[-1][:3]

    return call


def test_only_restart_deletes_the_finished_runs(program, tmp_path):
    journal = tmp_path / compare.JOURNAL_NAME
    journal.write_text("a run\n")
    program(f"--output_dir={tmp_path}")
    assert journal.read_text() == "a run\n"
    status, study, _, output_dir = program(f"--output_dir={tmp_path}", "--restart")
    assert (status, output_dir) == (0, tmp_path)
    assert not journal.exists()
    assert study == PRESETS["demo"]("laptop")


def test_bad_usage_ends_the_program_with_a_usage_error(program, tmp_path):
    with pytest.raises(app.UsageError, match="takes flags only; received 'et2'"):
        program(f"--output_dir={tmp_path}", rest=["et2"])
    with pytest.raises(app.UsageError, match="--subwords cannot be used with"):
        program("--preset=images", "--subwords=300", f"--output_dir={tmp_path}/new")
    assert list(tmp_path.iterdir()) == []


# Flags.


def test_the_help_describes_every_flag_and_every_preset():
    values = flags.FlagValues()
    compare.define_flags(values)
    text = values.get_help()
    # The help text is wrapped, also after hyphens.
    unwrapped = "".join(text.split())
    for name, preset in PRESETS.items():
        first_line = preset.__doc__.partition("\n")[0].rstrip(".")
        assert "".join(f"{name}: {first_line}".split()) in unwrapped
    for name in CONTENDERS:
        assert name in text
    for flag in values:
        assert values[flag].help.endswith("."), flag
    assert "python -m tf_models.compare --preset=language --seeds=0,1,2" in (
        compare.__doc__
    )


def test_the_default_study_is_the_demo():
    assert compare.chosen_study(parsed()) == PRESETS["demo"]("laptop")
    assert [e.name for e in PRESETS["demo"]("laptop").entries] == list(DEMO)


def test_nojit_turns_compilation_off():
    for flag, expected in (("--jit", True), ("--nojit", False)):
        study = compare.chosen_study(parsed(flag))
        assert study.run(study.entries[0], 0.1, seed=0).jit_compile is expected


def test_flags_override_the_values_of_the_preset():
    study = compare.chosen_study(
        parsed(
            "--preset=language",
            "--size=paper",
            "--steps=7",
            "--evaluations=2",
            "--schedule=warmup",
            "--seeds=4,5",
            "--searched_seeds=2",
            "--batch_size=3",
            "--subwords=300",
            "--sequence_length=5",
            "--text=stdlib",
        )
    )
    assert (study.steps, study.evaluations, study.schedule) == (7, 2, "warmup")
    assert (study.seeds, study.searched_seeds) == ((4, 5), 2)
    for one in study.entries:
        task = one.task
        assert (task.text, task.batch_size) == ("stdlib", 3)
        assert (task.subwords, task.sequence_length) == (300, 5)
        assert task.model == "base"


def test_the_dtype_policy_comes_from_the_flag_or_from_the_entry():
    def policies(*arguments):
        study = compare.chosen_study(parsed(*arguments))
        return {e.name: study.run(e, 0.1, 0).dtype_policy for e in study.entries}

    own = ("--preset=demo", "--optimizers=adam,et")
    assert set(policies(*own).values()) == {"float32"}
    assert set(policies(*own, "--dtype_policy=bfloat16").values()) == {"bfloat16"}
    assert policies("--preset=bfloat16") == {
        "et": "float32",
        "et_nearest": "bfloat16",
        "et_bfloat16": "bfloat16",
        "adam_99": "float32",
        "adam_bfloat16": "bfloat16",
    }


def test_the_learning_rates_flag_overrides_those_of_every_entry():
    own = compare.chosen_study(parsed("--optimizers=et2,adam")).entries
    assert [e.optimizer for e in own] == [
        CONTENDERS[name].optimizer for name in ("et2", "adam")
    ]
    assert [e.rates for e in own] == [
        (CONTENDERS[name].learning_rate,) for name in ("et2", "adam")
    ]
    given = compare.chosen_study(
        parsed("--optimizers=et2,adam", "--learning_rates=0.004,1e-3")
    ).entries
    assert [e.rates for e in given] == [(0.004, 0.001)] * 2
    assert [e.optimizer for e in given] == [e.optimizer for e in own]


@pytest.mark.parametrize("preset", PRESETS)
def test_an_added_optimizer_tries_as_many_learning_rates_as_the_others(preset):
    own = PRESETS[preset]("laptop").entries[0]
    name = "shampoo_momentum"
    study = compare.chosen_study(
        parsed(f"--preset={preset}", f"--optimizers={own.name},{name}")
    )
    first, second = study.entries
    assert (first, second.name) == (own, name)
    assert len(first.rates) == len(second.rates)
    assert second.task == own.task


def test_an_added_optimizer_gets_the_settings_of_the_preset():
    def entries(preset, names):
        return compare.chosen_study(
            parsed(f"--preset={preset}", f"--optimizers={names}")
        ).entries

    # It has its own learning rates where the preset's optimizers have their own.
    (sgd,) = entries("quality", "sgd")
    assert sgd.rates == (1.0,)
    (et1,) = entries("quality", "et1_geometric")
    language = {one.name: one for one in PRESETS["language"]("laptop").entries}
    assert et1.optimizer == language["et1_geometric"].optimizer
    assert "clip_threshold=1.0" in et1.optimizer
    # It has the weight decay and the learning rates that all others have.
    (rmsprop,) = entries("images", "rmsprop")
    assert rmsprop.optimizer == "RMSprop(rho=0.99, weight_decay=0.0005)"
    (adam,) = entries("convex", "adam")
    assert adam.rates == PRESETS["convex"]("laptop").entries[0].rates


def test_a_shortened_study_warms_up_over_a_tenth_of_its_steps():
    flags_of = ["--preset=language", "--size=paper"]
    assert compare.chosen_study(parsed(*flags_of)).warmup_steps == 10_000
    short = compare.chosen_study(parsed(*flags_of, "--steps=300"))
    assert short.warmup_steps is None
    own = compare.chosen_study(parsed(*flags_of, "--steps=300", "--warmup_steps=7"))
    assert own.warmup_steps == 7


@pytest.mark.parametrize(
    ("argument", "value", "rule"),
    [
        ("--steps=0", "0", "at least 1"),
        ("--evaluations=0", "0", "at least 1"),
        ("--batch_size=-4", "-4", "at least 1"),
        ("--searched_seeds=0", "0", "at least 1"),
        ("--sequence_length=0", "0", "from 1 to 4096"),
        ("--sequence_length=4097", "4097", "from 1 to 4096"),
        ("--subwords=256", "256", "from 257"),
        ("--seeds=-1", "-1", "from 0"),
        ("--seeds=0,1.5", "1.5", "a whole number"),
        ("--seeds=3,3", "'3' 2 times", "Leave out the repeats"),
        ("--seeds=", "none", "Leave it out for the default"),
        ("--learning_rates=0", "0", "a positive number"),
        ("--learning_rates=0.1,-0.1", "-0.1", "Leave it out for the default"),
        ("--learning_rates=inf", "inf", "a positive number"),
        ("--learning_rates=fast", "fast", "a positive number"),
        ("--learning_rates=0.1,0.1", "'0.1' 2 times", "Leave out the repeats"),
        ("--optimizers=adam,adam", "'adam' 2 times", "Leave out the repeats"),
        ("--optimizers=", "none", "must not be empty"),
    ],
)
def test_a_bad_flag_is_refused_with_its_value_and_the_reason(argument, value, rule):
    name = argument.partition("=")[0]
    with pytest.raises(flags.IllegalFlagValueError) as refusal:
        parsed(argument)
    message = str(refusal.value)
    assert f"{name} must" in message
    assert f"received {value}" in message
    assert rule in message


@pytest.mark.parametrize("name", ["data_dir", "output_dir"])
def test_a_directory_that_cannot_be_created_is_refused(name, tmp_path):
    (tmp_path / "file").write_text("")
    path = tmp_path / "file" / "below"
    with pytest.raises(
        flags.IllegalFlagValueError,
        match=f"--{name} must be .*file/below.* Name another",
    ):
        parsed(f"--{name}={path}")


@pytest.mark.parametrize(
    ("arguments", "told"),
    [
        (["--optimizers=adam,adan"], "received 'adan'. Choose from sgd,"),
        (["--preset=images", "--subwords=300"], "--subwords cannot be used with"),
        (["--preset=images", "--text=stdlib"], "whose task is Images. Leave it out"),
        (["--preset=language", "--images=digits"], "--images cannot be used with"),
        (["--preset=convex", "--batch_size=3"], "--batch_size cannot be used with"),
        (["--text=folder"], "--text_dir must be given with --text=folder"),
        (["--text_dir=notes"], "received text_dir='notes' with text='stdlib'"),
        (["--preset=images", "--images=folder"], "--image_dir must be given with"),
        (["--preset=images", "--text_dir=notes"], "--text_dir cannot be used with"),
        (["--preset=convex", "--data_dir=new"], "--data_dir is only for a task that"),
        (
            ["--on_bad_file=skip"],
            "--on_bad_file is only for a task that reads a folder",
        ),
        (["--preset=bfloat16", "--dtype_policy=float32"], "have their own policies"),
    ],
)
def test_incompatible_flags_are_refused(arguments, told):
    with pytest.raises(ValueError) as refusal:
        compare.chosen_study(parsed(*arguments))
    assert told in str(refusal.value)
