"""The program that trains one model, from its flags to the JSON it prints."""

import functools
import io
import json
import pathlib
import shutil
import signal
import subprocess
import sys

import pytest
from absl import app, flags
from rich.console import Console

import tf_models
from et_optimizer import memory_report
from tf_models import train
from tf_models.models.classifiers import mlp
from tf_models.studies import optimizers
from tf_models.studies.study import result_from_json
from tf_models.studies.tasks import Convex, Images, Language
from tf_models.studies.training import train as make_run

REPOSITORY = pathlib.Path(tf_models.__file__).parents[1]
SMALL = ["--steps=6", "--evaluations=3", "--batch_size=8", "--nojit"]
DIGITS = ["--task=images", "--model=mlp", "--width=4", *SMALL]
CONVEX = ["--task=convex", "--steps=2", "--evaluations=1", "--nojit"]
MOMENTUM = ["--optimizer=ExtremeTensoring", "--level=2", "--beta_1=0.9"]
# The program, killed after it has written the weights of its second checkpoint and
# before it writes the progress that belongs to them.
KILLED = """
import os, pathlib, runpy, signal, sys

write_text = pathlib.Path.write_text

def write_or_die(path, text, **options):
    checkpoints = list(path.parent.glob("checkpoint_step_*"))
    if path.name.endswith("progress.json") and len(checkpoints) > 1:
        os.kill(os.getpid(), signal.SIGKILL)
    return write_text(path, text, **options)

pathlib.Path.write_text = write_or_die
runpy.run_module("tf_models.train", run_name="__main__")
"""


def parsed(*arguments):
    """Parses flags as the program does, and refuses what it refuses."""
    values = flags.FlagValues()
    train.define_flags(values)
    values(["train", *arguments])
    return values


def chosen(*arguments):
    return train.chosen_run(parsed(*arguments))


@pytest.fixture
def trained(eager, capsys, prepared_data_dir):
    """Runs the program in this process.

    Returns:
        The exit status, the parsed line of JSON or `None`, and the messages.
    """

    def call(*arguments):
        if "--task=convex" not in arguments:
            arguments = (*arguments, f"--data_dir={prepared_data_dir}")
        values = parsed(*arguments)
        console = Console(file=io.StringIO(), width=120)
        status = train.make(train.chosen_run(values), values, console)
        printed = capsys.readouterr().out.splitlines()
        assert len(printed) == (status == 0)
        line = json.loads(printed[0]) if printed else None
        return status, line, console.file.getvalue()

    return call


def measures(line):
    """What a run measured, without the times."""
    result = line["result"]
    names = ("status", "steps", "curve", "validation", "test", "numbers_held")
    return {name: result[name] for name in names} | {"run": line["run"]}


@pytest.fixture(scope="module")
def killed(prepared_data_dir, tmp_path_factory):
    """The process of the killed program, and its checkpoint directory."""
    directory = tmp_path_factory.mktemp("killed")
    process = subprocess.run(
        [
            *(sys.executable, "-c", KILLED, *DIGITS, *MOMENTUM),
            f"--checkpoint_dir={directory}",
            f"--data_dir={prepared_data_dir}",
        ],
        cwd=REPOSITORY,
        capture_output=True,
        text=True,
        check=False,
    )
    return process, directory


# Results.


def test_a_run_on_images_measures_its_error(trained):
    status, line, messages = trained(
        *DIGITS, "--optimizer=Adam", "--learning_rate=0.01"
    )
    assert status == 0
    assert (line["result"]["measure"], line["result"]["unit"]) == (
        "error",
        "% of images",
    )
    assert 0 < line["result"]["validation"] == line["result"]["curve"][-1][1] < 95
    assert [step for step, _ in line["result"]["curve"]] == [2, 4, 6]
    assert "Optimizer: Adam." in messages


def test_a_convex_run_measures_its_distance_to_the_minimum(trained, monkeypatch):
    small = functools.partial(Convex, examples=400, features=4)
    monkeypatch.setattr(train.tasks, "Convex", small)
    status, line, _ = trained(*CONVEX, "--optimizer=SGD", "--seed=3")
    assert status == 0
    assert line["result"]["measure"] == "excess loss"
    assert line["run"]["task"]["data_seed"] == 3


def test_a_run_that_diverges_prints_its_result(trained):
    status, line, _ = trained(*DIGITS, "--optimizer=SGD", "--learning_rate=1e30")
    assert status == 0
    assert line["result"]["status"] == "diverged"
    assert line["result"]["validation"] == "nan"


def test_results_are_appended_to_a_file_and_tensorboard_gets_its_logs(
    trained, tmp_path
):
    results = tmp_path / "made" / "results.jsonl"
    logs = tmp_path / "logs"
    lines = []
    for policy in ("float32", "mixed_bfloat16"):
        _, line, _ = trained(
            *DIGITS,
            "--steps=2",
            "--evaluations=1",
            f"--dtype_policy={policy}",
            f"--results={results}",
            f"--tensorboard_dir={logs}",
        )
        lines.append(line)
    assert list(map(json.loads, results.read_text().splitlines())) == lines
    assert list(logs.rglob("events.out.tfevents.*"))
    single, mixed = (line["run"] for line in lines)
    assert mixed["dtype_policy"] == "mixed_bfloat16"
    assert mixed | {"dtype_policy": "float32"} == single


# Checkpoints.


def test_the_program_resumes_a_killed_run_and_prints_one_line_of_json(
    trained, graphs, killed, prepared_data_dir, tmp_path
):
    process, left = killed
    assert process.returncode == -signal.SIGKILL, process.stderr
    assert process.stdout == ""
    directory = shutil.copytree(left, tmp_path / "copy")
    progress = json.loads((directory / "progress.json").read_text())
    assert [step for step, _ in progress["curve"]] == [2]

    process = subprocess.run(
        [
            *(sys.executable, "-m", "tf_models.train", *DIGITS, *MOMENTUM),
            f"--checkpoint_dir={directory}",
            f"--data_dir={prepared_data_dir}",
        ],
        cwd=REPOSITORY,
        capture_output=True,
        text=True,
        check=False,
    )
    assert process.returncode == 0, process.stderr
    (line,) = process.stdout.splitlines()
    line = json.loads(line)
    result = result_from_json(line["result"])
    assert (result.status, result.steps) == ("finished", 6)
    # A model that has learned nothing gets nine tenths of ten digits wrong.
    assert 0 < result.validation < 95 and result.validation == result.curve[-1][1]
    assert "digits" in process.stderr
    assert "Optimizer: ExtremeTensoring(beta_1=0.9, level=2)." in process.stderr

    _, undisturbed, _ = trained(*DIGITS, *MOMENTUM)
    assert measures(line) == measures(undisturbed)
    # The finished run can be resumed too.
    _, again, _ = trained(*DIGITS, *MOMENTUM, f"--checkpoint_dir={directory}")
    assert measures(again) == measures(undisturbed)
    weights = [path.name for path in directory.glob("*.h5")]
    assert weights == ["checkpoint_step_6.weights.h5"]


def test_a_checkpoint_of_another_command_is_refused_and_kept(trained, killed, tmp_path):
    directory = shutil.copytree(killed[1], tmp_path / "copy")
    before = {path.name: path.read_bytes() for path in directory.iterdir()}
    status, line, messages = trained(
        *DIGITS, *MOMENTUM, "--seed=5", f"--checkpoint_dir={directory}"
    )
    assert (status, line) == (1, None)
    assert "of another run: its seed is 0, not 5" in " ".join(messages.split())
    assert {p.name: p.read_bytes() for p in directory.iterdir()} == before


@pytest.mark.parametrize("keeps", [True, False])
def test_ctrl_c_ends_a_run_and_says_whether_a_checkpoint_is_kept(
    trained, monkeypatch, tmp_path, keeps
):
    checkpoint = [f"--checkpoint_dir={tmp_path}"] if keeps else []

    def interrupted(run, task, *, on_step, **keywords):
        steps = iter(range(1, 7))

        def on_step_or_ctrl_c():
            if next(steps) == 3:
                signal.raise_signal(signal.SIGINT)
            on_step()

        return make_run(run, task, on_step=on_step_or_ctrl_c, **keywords)

    with monkeypatch.context() as patch:
        patch.setattr(train, "train", interrupted)
        before = signal.signal(signal.SIGINT, signal.default_int_handler)
        try:
            status, line, messages = trained(*DIGITS, *checkpoint)
        finally:
            signal.signal(signal.SIGINT, before)
    assert (status, line) == (130, None)
    assert ("its last checkpoint is kept" if keeps else "it is lost") in messages
    assert (tmp_path / "checkpoint_step_2.weights.h5").exists() == keeps


# Flags.


def test_the_help_describes_every_flag():
    values = flags.FlagValues()
    train.define_flags(values)
    text = " ".join(values.get_help().split())
    for flag in values:
        assert values[flag].help.endswith("."), flag
    assert "ExtremeTensoring, Muon, SM3" in text and "RMSprop" in text
    assert "cosine: Linear from 0 to the peak" in text
    for name in ("level", "momentum_rank", "update_bound", "combination"):
        assert f"--{name}: The optimizer's {name}: " in text
    assert "{'embeddings|logits': 1, '.*': 2}" in text


def test_the_default_run_is_the_demos_at_the_optimizers_default_learning_rate():
    run = chosen()
    assert run.task == Language()
    assert (run.optimizer, run.learning_rate) == ("ExtremeTensoring", 2e-3)
    assert (run.steps, run.seed, run.schedule) == (1200, 0, "cosine")


def test_flags_define_the_task():
    assert chosen("--text=folder", "--text_dir=notes", "--model=small").task == (
        Language(text="folder", text_dir="notes", model="small")
    )
    assert chosen("--task=images", "--image_size=32", "--noaugment").task == (
        Images(size=32, augment=False)
    )
    assert chosen("--task=convex", "--seed=4").task == Convex(data_seed=4)


def test_optimizer_flags_become_arguments_of_the_optimizer():
    assert chosen(*MOMENTUM).optimizer == "ExtremeTensoring(beta_1=0.9, level=2)"
    infinite = chosen("--level=inf", "--weight_decay=0.1")
    assert infinite.optimizer == "ExtremeTensoring(weight_decay=0.1, level='inf')"
    adam = chosen("--optimizer=Adam(beta_2=0.99)", "--clipnorm=1", "--beta_2=0.9")
    assert adam.optimizer == "Adam(beta_2=0.9, clipnorm=1.0)"
    assert chosen("--optimizer=keras.Adafactor").optimizer == "keras.Adafactor"


@pytest.mark.parametrize(
    ("flag", "expected"),
    [
        ("--level=2", {"level": 2}),
        ("--level=inf", {"level": "inf"}),
        ("--level='inf'", {"level": "inf"}),
        (
            "--level={'embeddings|logits': 1, '.*': 2}",
            {"level": {"embeddings|logits": 1, ".*": 2}},
        ),
        ("--momentum_rank=auto", {"momentum_rank": "auto"}),
        ("--momentum_rank=16", {"momentum_rank": 16}),
        ("--momentum_rank=None", {"momentum_rank": None}),
        (
            "--momentum_rank={'logits': None, '.*': 4}",
            {"momentum_rank": {"logits": None, ".*": 4}},
        ),
        ("--momentum_dtype=int8", {"momentum_dtype": "int8"}),
        ("--refresh_every=7", {"refresh_every": 7}),
        ("--combination=geometric", {"combination": "geometric"}),
        ("--update_bound=2.5", {"update_bound": 2.5}),
        ("--update_bound=None", {"update_bound": None}),
        ("--rate_scale={'embeddings': 4}", {"rate_scale": {"embeddings": 4}}),
    ],
)
def test_a_flag_passes_its_python_value_to_the_optimizer(flag, expected):
    run = chosen(flag)
    assert optimizers.parse(run.optimizer)[1] == expected
    made = optimizers.make(run.optimizer, run.learning_rate).get_config()
    assert made | expected == made
    # The flag overrides the argument in the optimizer's text.
    longer = chosen(f"--optimizer={run.optimizer}", flag, "--beta_1=0.5")
    assert optimizers.parse(longer.optimizer)[1] == expected | {"beta_1": 0.5}


def test_levels_and_ranks_by_path_reach_the_optimizer():
    model = mlp((8, 8, 1), 10, hidden=(4, 4))

    def report(*arguments):
        run = chosen("--optimizer=ExtremeTensoring(beta_1=0.0, level=1)", *arguments)
        optimizer = optimizers.make(run.optimizer, 0.1)
        optimizer.build(model.trainable_variables)
        return memory_report(optimizer)

    fine = report()
    coarse = report("--level={'hidden_0/kernel': 2, '.*': 1}")
    # The 64 pixels become 8 × 8, the 4 units stay.
    assert fine.slots - coarse.slots == 64 - (8 + 8)
    full = report("--beta_1=0.9", "--momentum_rank=None")
    assert full.bytes - fine.bytes == 2 * full.model_numbers
    ranks = "--momentum_rank={'hidden_0/kernel': None, '.*': 0}"
    some = report("--beta_1=0.9", ranks)
    assert some.bytes - fine.bytes == 2 * 64 * 4


@pytest.mark.parametrize(
    ("argument", "rule"),
    [
        ("--steps=0", "--steps must be a whole number, at least 1; received 0"),
        ("--evaluations=0", "--evaluations must be"),
        ("--batch_size=0", "--batch_size must be a whole number, at least 1"),
        ("--sequence_length=4097", "from 1 to 4096; received 4097"),
        ("--subwords=3", "from 257 to 1048576; received 3"),
        ("--image_size=7", "from 8 to 1024; received 7"),
        ("--width=0", "from 1 to 4096; received 0"),
        ("--seed=-1", "from 0 to 4294967295; received -1"),
        ("--warmup_steps=0", "at least 1; received 0. Leave it out"),
        ("--learning_rate=0", "--learning_rate must be a positive number; received 0"),
        ("--learning_rate=nan", "a positive number; received nan"),
        ("--optimizer=Lino", "--optimizer: There is no optimizer 'Lino'.* Choose from"),
        ("--optimizer=Adam(level=2)", "Adam has no argument 'level'"),
        ("--optimizer=ExtremeTensoring(level=0)", "level must be"),
        ("--optimizer=LossScaleOptimizer", "no optimizer 'LossScaleOptimizer'"),
    ],
)
def test_a_bad_flag_is_refused_with_the_reason(argument, rule):
    with pytest.raises(flags.IllegalFlagValueError, match=rule):
        parsed(argument)


@pytest.mark.parametrize(
    "name", ["data_dir", "checkpoint_dir", "tensorboard_dir", "results"]
)
def test_an_unwritable_path_is_refused_before_training(name, tmp_path):
    (tmp_path / "file").write_text("")
    path = tmp_path / "file" / "below" / "it"
    with pytest.raises(
        flags.IllegalFlagValueError, match=f"--{name} must be .*Name another"
    ):
        parsed(f"--{name}={path}")


def test_the_results_file_cannot_be_a_directory(tmp_path):
    with pytest.raises(flags.IllegalFlagValueError, match="--results must be a file"):
        parsed(f"--results={tmp_path}")


@pytest.mark.parametrize(
    ("arguments", "told"),
    [
        (["--optimizer=Adam", "--level=2"], "Adam has no argument 'level'"),
        (["--level=0"], "level must be"),
        (["--level=high"], "level must be"),
        (["--level={'a': 1"], "level must be"),
        (["--level={'(': 1}"], "level"),
        (["--momentum_rank=all"], "momentum_rank must be"),
        (["--momentum_rank=-1"], "momentum_rank must be"),
        (["--momentum_dtype=float16"], "momentum_dtype must be"),
        (["--refresh_every=0"], "refresh_every must be"),
        (["--refresh_every=often"], "refresh_every must be"),
        (["--combination=mean"], "combination must be"),
        (["--update_bound=0"], "update_bound must be"),
        (["--update_bound=far"], "update_bound must be"),
        (["--optimizer=Adam", "--update_bound=None"], "no argument 'update_bound'"),
        (["--beta_1=1.5"], "beta_1 must be"),
        (["--text=folder"], "--text_dir must be given with --text=folder"),
        (["--text_dir=notes"], "received text_dir='notes' with text='stdlib'"),
        (["--task=images", "--images=folder"], "--image_dir must be given"),
        (["--task=images", "--model=tiny"], "--model must be one of resnet18, mlp"),
        (["--model=mlp"], "--model must be one of tiny, .* for --task=language"),
        (["--task=images", "--subwords=300"], "--subwords cannot be used with"),
        (["--task=convex", "--batch_size=3"], "--batch_size cannot be used with"),
        (["--task=convex", "--model=tiny"], "--model cannot be used with"),
        (
            ["--task=convex", "--data_dir=new"],
            "--data_dir is only for .*received 'new'",
        ),
        (["--on_bad_file=refuse"], "--on_bad_file is only for .*received 'refuse'"),
        (["--width=3"], "--width cannot be used with --task=language"),
    ],
)
def test_incompatible_flags_are_refused(arguments, told):
    with pytest.raises(ValueError, match=told):
        chosen(*arguments)


def test_bad_usage_ends_the_program_with_a_usage_error(monkeypatch):
    def call(*arguments, rest=()):
        values = parsed(*arguments)
        values["verbosity"] = flags.FLAGS["verbosity"]
        monkeypatch.setattr(train, "FLAGS", values)
        return train.main(["train", *rest])

    with pytest.raises(app.UsageError, match="takes flags only; received 'Adam'"):
        call(rest=["Adam"])
    with pytest.raises(app.UsageError, match="no argument .level."):
        call("--optimizer=SGD", "--level=2")
