"""The language studies and the step times on a machine that has no TensorFlow."""

import importlib.metadata
import importlib.util
import json
import os
import re
import subprocess
import sys

import keras
import numpy as np
import pytest
from packaging.requirements import Requirement

from tf_models.studies.tasks import Language

# Found nowhere, whatever is installed.
HIDDEN = """
import runpy, sys

class Hiding:
    def __init__(self, finder):
        self._finder = finder

    def __getattr__(self, name):
        return getattr(self._finder, name)

    def find_spec(self, name, path=None, target=None):
        if name.partition(".")[0] in ("tensorflow", "tensorflow_datasets"):
            return None
        return self._finder.find_spec(name, path, target)

sys.meta_path[:] = map(Hiding, sys.meta_path)
"""
PROGRAM = HIDDEN + "runpy.run_module(sys.argv.pop(1), run_name='__main__')"
BATCHES = (
    HIDDEN
    + """
import numpy as np
from tf_models.studies.tasks import Language
task = Language(**eval(sys.argv[1])).load(sys.argv[2])
read = [*task.training_batches(5, seed=3), *task.validation, *task.test]
np.savez(sys.argv[3], *(part for batch in read for part in batch))
"""
)


@pytest.fixture(scope="module", params=["jax", "torch"])
def without_tensorflow(request):
    """Runs a program under another backend, with TensorFlow hidden."""
    backend = request.param
    if importlib.util.find_spec(backend) is None:
        pytest.skip(f"the package {backend} is not installed")

    def run(code, *arguments):
        return subprocess.run(
            [sys.executable, "-c", code, *map(str, arguments)],
            # PyTorch's threads would wait for each other: there are other tests.
            env=os.environ | {"KERAS_BACKEND": backend, "OMP_NUM_THREADS": "1"},
            capture_output=True,
            text=True,
            check=False,
        )

    return run


def packages(extras):
    """What the library needs with some extras, by the metadata of what is installed."""
    found, left = set(), [Requirement(f"et-optimizer[{extras}]")]
    while left:
        package = left.pop()
        name, wanted = package.name.lower().replace("_", "-"), frozenset(package.extras)
        try:
            needs = map(Requirement, importlib.metadata.requires(name) or ())
        except importlib.metadata.PackageNotFoundError:
            needs = ()  # It is for other machines, or of another release.
        if (name, wanted) not in found:
            found.add((name, wanted))
            left += [
                need
                for need in needs
                if need.marker is None
                or any(need.marker.evaluate({"extra": e}) for e in wanted or {""})
            ]
    return {name for name, _ in found}


@pytest.mark.parametrize("backend", ["jax", "torch"])
def test_the_extras_of_the_studies_bring_no_tensorflow(backend):
    needed = packages(f"{backend},studies")
    assert {backend, "tensorflow-datasets", "tokenizers"} <= needed
    assert not needed & {"tensorflow", "tensorflow-cpu", "tf-keras"}
    # Where it is asked for, this finds it.
    assert "tensorflow" in packages("tensorflow,studies")


def succeeded(finished):
    assert finished.returncode == 0, finished.stderr
    return finished.stdout


# What reads a text asks for no backend: each text once, and each backend once.
@pytest.mark.parametrize(
    ("without_tensorflow", "text"),
    [("jax", "stdlib"), ("torch", "folder")],
    indirect=["without_tensorflow"],
)
def test_batches_are_those_that_a_tf_data_pipeline_gives(
    without_tensorflow, texts, tmp_path, text
):
    task = {"text": text, "sequence_length": 16, "batch_size": 4, "subwords": 300}
    if text == "folder":
        task["text_dir"] = str(texts)
    succeeded(
        without_tensorflow(BATCHES, task, tmp_path / "without", tmp_path / "read.npz")
    )
    here = Language(**task).load(tmp_path / "with")
    # As Keras reads them under TensorFlow.
    adapter = keras.src.trainers.data_adapters.get_data_adapter
    expected = [
        np.asarray(part)
        for batches in (here.training_batches(5, seed=3), here.validation, here.test)
        for batch in adapter(batches).get_tf_dataset().take(len(batches))
        for part in batch
    ]
    found = list(np.load(tmp_path / "read.npz").values())
    assert len(found) == len(expected) > 10
    for one, other in zip(found, expected, strict=True):
        np.testing.assert_array_equal(one, other)


def test_a_run_trains(without_tensorflow, texts, tmp_path):
    output = succeeded(
        without_tensorflow(
            PROGRAM,
            "tf_models.train",
            "--text=folder",
            f"--text_dir={texts}",
            f"--data_dir={tmp_path}",
            "--sequence_length=16",
            "--batch_size=4",
            "--steps=12",
            "--evaluations=2",
            "--learning_rate=0.002",
        )
    )
    result = json.loads(output.splitlines()[-1])["result"]
    first, last = (value for _, value in result["curve"])
    assert result["status"] == "finished" and last < first < 256


def test_steps_are_timed(without_tensorflow):
    output = succeeded(
        without_tensorflow(
            PROGRAM,
            "benchmarks.step_time",
            "--rounds=3",
            "--models=demo Transformer",
            "--optimizers=ExtremeTensoring 1",
        )
    )
    assert "ExtremeTensoring 1" in output and "Adam" in output


@pytest.mark.parametrize(
    ("without_tensorflow", "flags", "what"),
    [
        ("jax", ("--task=images", "--images=digits"), "Images are read .* tf.data"),
        ("torch", ("--text=lm1b",), 'TFDS, which reads the text "lm1b"'),
    ],
    indirect=["without_tensorflow"],
)
def test_what_needs_tensorflow_says_so(without_tensorflow, tmp_path, flags, what):
    finished = without_tensorflow(
        PROGRAM, "tf_models.train", *flags, f"--data_dir={tmp_path}"
    )
    assert finished.returncode != 0
    message = " ".join(finished.stderr.split())
    assert "pip install tensorflow" in message and "Traceback" not in message
    assert re.search(what, message)
