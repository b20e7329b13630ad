"""The notebooks of colab/: each runs from top to bottom, and its claims hold."""

import ast
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

# Values of variables that make a notebook tiny, as Python expressions.
TINY = {
    "quickstart": {"EPOCHS": "3"},
    "memory_vs_perplexity": {
        "NAMES": "('adam', 'et', 'sgd')",
        "STEPS": "4",
        "EVALUATION_BATCHES": "1",
    },
    "images_resnet": {
        "IMAGE_SIZE": "8",
        "BATCH_SIZE": "16",
        "STEPS": "4",
        "EVALUATION_BATCHES": "1",
        "RATES": "{'sgd_momentum': 0.1, 'et2': 5e-3}",
    },
    "bigger_model_same_memory": {
        "BUDGET": "32 * MEBIBYTE",
        "WIDTHS": "range(192, 577, 128)",
        "LAYERS": "1",
        "STEPS": "4",
        "EVALUATED_BATCHES": "2",
        "CONFIGURATIONS": """{
            ADAM: Configuration("Adam", "float32", COLORS[1]),
            ET_BFLOAT16: Configuration("ExtremeTensoring", "bfloat16", COLORS[0]),
        }""",
    },
    "inside_the_preconditioner": {"STEPS": "12", "MEASUREMENTS": "2"},
    "finetune_gemma": {"STEPS": "16", "VALIDATION_BATCHES": "1"},
}
# What must hold after a run on any machine: expressions in the notebook's variables,
# and assignments that they need.
NAMED = {
    "memory_vs_perplexity": """
        runs = results.values()
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
        len(finished) == 3
        results["adam"].numbers_held == 2 * results["adam"].model_numbers
        results["sgd"].numbers_held == 0
        20 * results["et"].bytes_held < results["adam"].bytes_held
        all(r.peak_device_bytes > 4 * r.model_numbers + r.bytes_held for r in runs)
        all(r.status == "finished" and len(r.curve) == 2 for r in runs)
    """,
    "images_resnet": """
        len(finished) == 2 and loaded.data == "digits"
        held["sgd_momentum"] == weights
        100 * held["et2"] < held["sgd_momentum"]
        held_at_width_64["sgd_momentum"] == 11_173_962
        all(r.status == "finished" and len(r.curve) == 2 for r in results.values())
    """,
    "bigger_model_same_memory": """
        plans[ADAM].bytes_per_weight == 16 and planned_ratio[ADAM] == 1
        planned_ratio[ET_BFLOAT16] > 3.8
        weights_ratio[ET_BFLOAT16] > 1.5
        all(results[n].model_numbers == chosen[n].model_numbers for n in CONFIGURATIONS)
        # The long runs stay within the budget of the short ones.
        max(result.peak_device_bytes for result in results.values()) <= BUDGET
        min(rest) > 0
        chosen[ADAM].bytes_held == 2 * chosen[ADAM].model_bytes
        chosen[ET_BFLOAT16].model_bytes == 2 * chosen[ET_BFLOAT16].model_numbers
        20 * chosen[ET_BFLOAT16].bytes_held < chosen[ADAM].bytes_held
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


def test_every_notebook_has_claims():
    assert sorted(NAMES) == [path.stem for path in notebooks.paths()] == sorted(CLAIMS)


class Shell(InteractiveShell):
    """IPython in this process, without a window or a kernel."""

    def enable_gui(self, gui=None):
        pass


def with_values(source, values):
    """Replaces the values of assigned variables, and removes these from `values`."""
    lines = source.splitlines()
    for node in reversed(ast.parse(source).body):
        for target in getattr(node, "targets", ()):
            if isinstance(target, ast.Name) and target.id in values:
                value = f"{target.id} = {values.pop(target.id)}"
                lines[node.lineno - 1 : node.end_lineno] = [value]
    return "\n".join(lines)


@pytest.fixture
def run_notebook(monkeypatch, prepared_data_dir):
    """Runs a tiny version of a notebook in this process; returns its variables."""
    # XLA reads its flags now, before a notebook changes them.
    tf.function(tf.identity, jit_compile=True)(0.0)
    monkeypatch.setattr(os, "environ", os.environ.copy())
    os.environ |= {
        "ET_OPTIMIZER_SIZE": "smoke",
        "TFDS_DATA_DIR": str(prepared_data_dir),
    }
    monkeypatch.chdir(notebooks.FOLDER)
    monkeypatch.setattr(tfds.core.constants, "DATA_DIR", str(prepared_data_dir))
    shell = Shell.instance()

    def run(name):
        # Compiling takes longer than the few steps, except in the quickstart.
        tf.config.run_functions_eagerly(name != "quickstart")
        values = dict(TINY[name])
        for cell in code_cells(committed(name)):
            source = with_values(shell.transform_cell(cell.source), values)
            shell.run_cell(source).raise_error()
        assert not values, "no cell assigns these variables"
        return shell.user_ns

    yield run
    tf.config.run_functions_eagerly(False)
    Shell.clear_instance()
    plt.close("all")
    plt.switch_backend("agg")


@every_notebook
def test_a_notebook_runs_from_top_to_bottom_and_its_claims_hold(name, run_notebook):
    variables = run_notebook(name)
    for line in lines_of(NAMED.get(name, "")):
        exec(line, variables)
    claims = lines_of(CLAIMS[name])
    held = {claim: bool(eval(claim, variables)) for claim in claims}
    assert held == dict.fromkeys(claims, True)


@every_notebook
def test_committed_outputs_come_from_one_complete_run_at_smoke_size(name):
    cells = code_cells(committed(name))
    # In order, complete, and from a fresh kernel.
    assert [cell.execution_count for cell in cells] == [*range(1, len(cells) + 1)]
    outputs = [output for cell in cells for output in cell.outputs]
    kinds = {output.output_type for output in outputs}
    assert kinds <= {"stream", "display_data", "execute_result"}
    assert {output.name for output in outputs if "name" in output} == {"stdout"}
    assert "size: smoke" in cells[0].outputs[0].text
    assert any("image/png" in output.get("data", {}) for output in outputs)


@every_notebook
def test_the_first_cell_says_that_the_outputs_have_smoke_size(name):
    line = (
        "*The outputs below are those of a run at smoke size, on two CPU cores without "
        "a GPU. On a GPU the same cells run at full size, which has not been tried on "
        "one yet.*"
    )
    first = committed(name).cells[0]
    assert first.cell_type == "markdown"
    assert line in " ".join(first.source.split())


@every_notebook
def test_no_output_contains_a_local_path(name):
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


def test_all_notebooks_have_the_same_first_cell():
    assert len({code_cells(committed(name))[0].source for name in NAMES}) == 1


@every_notebook
def test_every_notebook_requests_a_gpu(name):
    assert committed(name).metadata["accelerator"] == "GPU"


# The first cell, in a Python with the dependencies and without the library.


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


def test_an_unknown_size_is_refused(python_without_the_library):
    ran = run_first_cell(
        python_without_the_library, notebooks.FOLDER, ET_OPTIMIZER_SIZE="tiny"
    )
    assert ran.returncode == 1
    assert "received 'tiny'" in ran.stderr


@pytest.mark.skipif(not shutil.which("git"), reason="It takes git to clone.")
def test_the_first_cell_installs_the_given_repository(
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
