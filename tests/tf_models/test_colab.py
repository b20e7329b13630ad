"""The notebooks of colab/: each runs from top to bottom, and what it says is so."""

import os
import pathlib
import re
import shutil
import subprocess
import sys
import sysconfig

import matplotlib.pyplot as plt
import nbformat
import pytest
import tensorflow as tf
import tensorflow_datasets as tfds
from IPython.core.interactiveshell import InteractiveShell

from tests import notebooks

ROOT = pathlib.Path(__file__).parents[2]
# The longest first.
NAMES = (
    "bigger_model_same_memory",
    "memory_vs_perplexity",
    "images_resnet",
    "inside_the_preconditioner",
    "finetune_gemma",
    "quickstart",
)
every_notebook = pytest.mark.parametrize("name", NAMES)

TINY = {name: {} for name in NAMES}
# What holds after a run on any machine: Python expressions in the notebook's names,
# after what makes names for them.
NAMED = {
    "memory_vs_perplexity": """
        from tf_models.data import byte_vocabulary
        held = {name: result.numbers_held for name, result in results.items()}
        et2, runs = results["et2"], results.values()
    """,
    "images_resnet": """
        held = {name: result.numbers_held for name, result in results.items()}
    """,
}
CLAIMS = {
    "quickstart": """
        # Of kernels 64 × 512, 512 × 512, 512 × 10, and biases: 4 bytes a slice, and 2
        # for r directions of momentum, or for each number of a bias.
        report.bytes - report.momentum_bytes == 4 * (576 + 1024 + 522 + 512 + 512 + 10)
        report.momentum_bytes == 2 * (8 * 576 + 16 * 1024 + 8 * 522 + 512 + 512 + 10)
        adam_report.slots == 2 * report.model_numbers == 602_132
        bytes_held == sorted(bytes_held, reverse=True) and bytes_held[-1] == 4 * 6
        "in all" in str(report) and chr(27) not in str(report)
        history.history["loss"][-1] < 0.2 * history.history["loss"][0]
        history.history["val_accuracy"][-1] > 0.9
        predictions_differ_by == 0.0
        states_differ_by == 0.0
        moved_by > 1e-6
        weights_differ_by == 0.0
    """,
    "memory_vs_perplexity": """
        len(finished) == 8
        results["adam"].numbers_held == 2 * results["adam"].model_numbers
        results["sgd"].numbers_held == 0
        held["et_inf"] < held["et2"] < held["et1"] == held["sm3"]
        held["sm3"] < held["adafactor"] < held["adam"]
        20 * results["et"].bytes_held < results["adam"].bytes_held
        100 * held["et1"] < held["adam"]
        all(r.peak_device_bytes > 4 * r.model_numbers + r.bytes_held for r in runs)
        # Of the memory that Adam holds more, the device sees most.
        adam.peak_device_bytes - et2.peak_device_bytes > 0.5 * adam.bytes_held
        all(r.validation < 0.2 * byte_vocabulary.SIZE for r in results.values())
        all(r.curve[-1][1] < r.curve[0][1] for r in results.values())
    """,
    "images_resnet": """
        len(finished) == 5 and loaded.data == "digits"
        held["sgd_momentum"] == weights
        held["et2"] < held["sm3"] < held["adafactor"] < held["sgd_momentum"]
        100 * held["et2"] < held["sgd_momentum"]
        10 * held["sketchy2"] < held["sgd_momentum"]
        held_at_width_64["sgd_momentum"] == 11_173_962
        # Nine in ten images are of another class.
        all(r.validation < 80 for r in results.values())
        all(r.curve[-1][1] < r.curve[0][1] for r in results.values())
    """,
    "bigger_model_same_memory": """
        plans[ADAM].bytes_per_weight == plans[ADAM_MIXED].bytes_per_weight == 16
        planned_ratio[ADAM] == planned_ratio[ADAM_MIXED] == 1
        planned_ratio[ET] > 1.9 and planned_ratio[ET_BFLOAT16] > 3.8
        weights_ratio[ET] > 1.5
        all(weights_ratio[n] >= 1 for n in (ET, ET_BFLOAT16))
        all(results[n].model_numbers == chosen[n].model_numbers for n in CONFIGURATIONS)
        # The long runs stay within the budget that short ones were chosen by.
        max(result.peak_device_bytes for result in results.values()) <= BUDGET
        min(rest) > 0
        chosen[ADAM].bytes_held == 2 * chosen[ADAM].model_bytes
        chosen[ET].model_bytes == 4 * chosen[ET].model_numbers
        chosen[ET_BFLOAT16].model_bytes == 2 * chosen[ET_BFLOAT16].model_numbers
        20 * chosen[ET].bytes_held < chosen[ADAM].bytes_held
        all(r.curve[-1][1] < 0.2 * byte_vocabulary.SIZE for r in results.values())
        all(r.curve[-1][1] < r.curve[0][1] for r in results.values())
    """,
    "inside_the_preconditioner": """
        slot_difference < 1e-4 and diagonal_difference < 1e-4
        unseen_slots == 0
        min(smallest_ratios.values()) > 1 - 1e-4
        all(trace_ratios[p, "SM3"] <= trace_ratios[p, "level 1"] for p in WATCHED)
        all(trace_ratios[p, "level 1"] <= trace_ratios[p, "level 2"] for p in WATCHED)
        all(trace_ratios[p, "level 2"] <= trace_ratios[p, "level 3"] for p in WATCHED)
        min(trace_ratios.values()) >= 1
        all(1 <= a <= b <= c for a, b, c in zip(*measured_ratios.values()))
        losses[-1] < losses[0] - 0.5
        count_correlation > 0.8
        all(explained[p] > 0.5 and explained_if_shuffled[p] < 0.1 for p in WATCHED)
        all(shares[:RANK].sum() > 0.5 for shares in spectra.values())
    """,
    "finetune_gemma": """
        # What the weights of the preset count.
        plans["Adam, float32"].numbers == 2_506_172_416
        plans["Adam, float32"].bytes == 16 * plans["Adam, float32"].numbers
        16 * GIGABYTE < plans["Adam, bfloat16"].bytes < 24 * GIGABYTE
        plans["ExtremeTensoring, bfloat16"].bytes < 10.5 * GIGABYTE
        dtypes == {"bfloat16"}
        report.bytes == planned.state_bytes
        perplexity_after < 0.5 * perplexity_before
        history["loss"][-1] < history["loss"][0]
        text_before.startswith(PROMPT) and text_after.startswith(PROMPT)
        text_before != text_after
        # (On a CPU; a GPU adds up in another order.)
        losses_differ_by == 0.0 and weights_differ_by == 0.0
        steps_made == STEPS
    """,
}


def code_cells(notebook):
    return [cell for cell in notebook.cells if cell.cell_type == "code"]


def committed(name):
    return nbformat.read(notebooks.FOLDER / f"{name}.ipynb", as_version=4)


def lines_of(text):
    lines = (line.strip() for line in text.splitlines())
    return [line for line in lines if line and not line.startswith("#")]


def test_every_notebook_is_tested():
    assert sorted(NAMES) == [path.stem for path in notebooks.paths()] == sorted(CLAIMS)


class Shell(InteractiveShell):
    """IPython in this process, without a window or a kernel."""

    def enable_gui(self, gui=None):
        pass


@pytest.fixture
def notebook(monkeypatch, prepared_data_dir):
    """Runs a notebook in this process, with tiny sizes; returns its names."""
    with tf.device("CPU"):
        tf.function(tf.identity, jit_compile=True)(0.0)  # XLA has read its flags.
    monkeypatch.setattr(os, "environ", os.environ.copy())
    os.environ |= {
        "ET_OPTIMIZER_SIZE": "smoke",
        "TFDS_DATA_DIR": str(prepared_data_dir),
    }
    monkeypatch.chdir(notebooks.FOLDER)
    monkeypatch.setattr(tfds.core.constants, "DATA_DIR", str(prepared_data_dir))
    shell = Shell.instance()

    def run(name):
        sizes = TINY[name]
        for cell in code_cells(committed(name)):
            source = cell.source
            for variable, value in list(sizes.items()):
                source, count = re.subn(
                    rf"^{variable} = .*$", f"{variable} = {value!r}", source, flags=re.M
                )
                if count:
                    del sizes[variable]
            shell.run_cell(source).raise_error()
        assert not sizes, "no cell sets them"
        return shell.user_ns

    yield run
    Shell.clear_instance()
    plt.close("all")
    plt.switch_backend("agg")


@every_notebook
def test_a_notebook_runs_from_top_to_bottom_and_its_claims_hold(name, notebook):
    names = notebook(name)
    for line in lines_of(NAMED.get(name, "")):
        exec(line, names)
    claims = lines_of(CLAIMS[name])
    held = {claim: bool(eval(claim, names)) for claim in claims}
    assert held == dict.fromkeys(claims, True)


@every_notebook
def test_committed_outputs_are_those_of_one_whole_run_at_smoke_size(name):
    cells = code_cells(committed(name))
    # In order, none left out, from a kernel that had run nothing else.
    assert [cell.execution_count for cell in cells] == [*range(1, len(cells) + 1)]
    outputs = [output for cell in cells for output in cell.outputs]
    kinds = {output.output_type for output in outputs}
    assert kinds <= {"stream", "display_data", "execute_result"}
    assert {output.name for output in outputs if "name" in output} == {"stdout"}
    assert "size: smoke" in cells[0].outputs[0].text
    assert any("image/png" in output.get("data", {}) for output in outputs)


@every_notebook
def test_a_line_says_that_the_outputs_are_of_smoke_size(name):
    line = (
        "*The outputs below are those of a run at smoke size, on two CPU cores without "
        "a GPU. On a GPU the same cells run at full size, which has not been tried on "
        "one yet.*"
    )
    first = committed(name).cells[0]
    assert first.cell_type == "markdown"
    assert line in " ".join(first.source.split())


@every_notebook
def test_no_output_names_a_path_of_the_machine_it_ran_on(name):
    notebook = committed(name)
    texts = [
        text
        for cell in code_cells(notebook)
        for output in cell.outputs
        for text in (
            output.get("text", ""),
            *(v for k, v in output.get("data", {}).items() if k != "image/png"),
        )
    ]
    assert not re.search(r"/(home|root|tmp|usr|work|Users|content)\b", "".join(texts))


def test_all_notebooks_begin_with_the_same_cell():
    assert len({code_cells(committed(name))[0].source for name in NAMES}) == 1


@every_notebook
def test_colab_gives_a_notebook_a_gpu(name):
    assert committed(name).metadata["accelerator"] == "GPU"


# The first cell, in a Python that has the dependencies and not the library.


@pytest.fixture
def python_without_the_library(tmp_path_factory):
    """An environment that sees this one's packages, but not what is being developed.

    What is installed as editable is found by a .pth file, and those are not read of a
    directory that is merely on the path.
    """
    folder = tmp_path_factory.mktemp("environment")
    subprocess.run([sys.executable, "-m", "venv", "--without-pip", folder], check=True)
    python = folder / "bin" / "python"
    purelib = "import sysconfig; print(sysconfig.get_path('purelib'))"
    packages = subprocess.run([python, "-c", purelib], capture_output=True, text=True)
    outer = pathlib.Path(packages.stdout.strip()) / "outer.pth"
    outer.write_text(sysconfig.get_path("purelib"))
    return python


def run_first_cell(python, folder, **environment):
    """Runs the first cell as a script in a folder."""
    kept = {k: v for k, v in os.environ.items() if k != "PYTHONPATH"}
    return subprocess.run(
        [python, "-c", code_cells(committed("quickstart"))[0].source],
        cwd=folder,
        env=kept | environment,
        capture_output=True,
        text=True,
    )


def test_the_first_cell_finds_the_checkout_around_the_notebook(
    python_without_the_library,
):
    ran = run_first_cell(python_without_the_library, notebooks.FOLDER)
    assert ran.returncode == 0, ran.stderr
    assert re.fullmatch(r"et_optimizer \S+ on .+; size: (smoke|full)\n", ran.stdout)


def test_without_the_library_the_first_cell_asks_for_its_repository(
    python_without_the_library, tmp_path
):
    ran = run_first_cell(python_without_the_library, tmp_path)
    assert ran.returncode == 1
    assert "ImportError: et_optimizer is neither installed" in ran.stderr
    assert "Set REPOSITORY" in ran.stderr


def test_a_size_that_there_is_not_is_refused(python_without_the_library):
    ran = run_first_cell(
        python_without_the_library, notebooks.FOLDER, ET_OPTIMIZER_SIZE="tiny"
    )
    assert ran.returncode == 1
    assert "received 'tiny'" in ran.stderr


@pytest.mark.skipif(not shutil.which("git"), reason="It takes git to clone.")
def test_the_first_cell_installs_the_repository_it_is_given(
    python_without_the_library, tmp_path
):
    repository, elsewhere = tmp_path / "repository", tmp_path / "elsewhere"
    elsewhere.mkdir()
    for name in ("et_optimizer", "tf_models"):
        ignored = shutil.ignore_patterns("__pycache__", "results")
        shutil.copytree(ROOT / name, repository / name, ignore=ignored)
    for name in ("setup.cfg", "pyproject.toml", "README.md", "LICENSE"):
        shutil.copy(ROOT / name, repository)
    author = ["-c", "user.name=a", "-c", "user.email=a@b.c"]
    for command in (["init", "-q"], ["add", "."], [*author, "commit", "-q", "-m", "1"]):
        subprocess.run(["git", *command], cwd=repository, check=True)

    given = {
        "ET_OPTIMIZER_REPOSITORY": f" git+file://{repository}",
        # What it takes to build is here. (So is this spelt: without isolation.)
        "PIP_NO_BUILD_ISOLATION": "0",
        "PIP_NO_INDEX": "1",
    }
    ran = run_first_cell(python_without_the_library, elsewhere, **given)
    assert ran.returncode == 0, ran.stderr
    # From now on it is installed, and needs no repository.
    ran = run_first_cell(python_without_the_library, elsewhere)
    assert ran.returncode == 0, ran.stderr
    location = "import tf_models; print(tf_models.__file__)"
    found = subprocess.run(
        [python_without_the_library, "-c", location],
        cwd=elsewhere,
        capture_output=True,
        text=True,
    )
    package = pathlib.Path(found.stdout.strip()).parent
    assert python_without_the_library.parents[1] in package.parents, found.stderr
    assert (package / "experiments" / "cifar10_resnet.yaml").is_file()
