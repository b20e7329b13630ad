"""The language studies and the step times on a machine without TensorFlow."""

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

# Hides TensorFlow and TFDS, even where they are installed.
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
# Everything in one process of each backend: importing a backend takes seconds.
SCRIPT = (
    HIDDEN
    + """
import contextlib, io, json
import numpy as np
from absl import flags
from rich.console import Console
from tf_models.console import program
from tf_models.studies.tasks import Images, Language

options = json.loads(sys.argv[1])
task = Language(**options["task"]).load(options["data_dir"])
read = [*task.training_batches(5, seed=3), *task.validation, *task.test]
np.savez(options["batches"], *(part for batch in read for part in batch))

refused = []
for task in (Images(), Language(text="lm1b")):
    try:
        program.load(task, options["data_dir"], "skip", Console(file=io.StringIO()))
    except SystemExit as end:
        refused.append(str(end))

from tf_models import train

values = flags.FlagValues()
train.define_flags(values)
values(["train", *options["train"]])
line = io.StringIO()
with contextlib.redirect_stdout(line):
    train.make(train.chosen_run(values), values, Console(file=io.StringIO()))

table = io.StringIO()
if options["step_time"]:
    from benchmarks import step_time

    flags.FLAGS(["step_time", *options["step_time"]])
    with contextlib.redirect_stdout(table):
        step_time.main([])
print(json.dumps([refused, json.loads(line.getvalue()), table.getvalue()]))
"""
)


def packages(extras):
    """The packages that the library needs with some extras, by their metadata."""
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
def test_the_studies_extra_does_not_install_tensorflow(backend):
    needed = packages(f"{backend},studies")
    assert {backend, "tensorflow-datasets", "tokenizers"} <= needed
    assert not needed & {"tensorflow", "tensorflow-cpu", "tf-keras"}
    # The extra for TensorFlow does.
    assert "tensorflow" in packages("tensorflow,studies")


@pytest.mark.parametrize("backend", ["jax", "torch"])
def test_the_language_studies_and_the_step_times_run_without_tensorflow(
    backend, texts, tmp_path
):
    if importlib.util.find_spec(backend) is None:
        pytest.skip(f"the package {backend} is not installed")
    task = {
        "text": "folder",
        "text_dir": str(texts),
        "sequence_length": 16,
        "batch_size": 4,
        "subwords": 300,
    }
    train = [
        *("--text=folder", f"--text_dir={texts}", f"--data_dir={tmp_path / 'train'}"),
        *("--sequence_length=16", "--batch_size=4", "--learning_rate=0.002"),
        *("--steps=12", "--evaluations=2"),
    ]
    step_time = ["--rounds=3", "--models=demo Transformer"]
    step_time.append("--optimizers=ExtremeTensoring 1")
    options = {
        "task": task,
        "data_dir": str(tmp_path / "without"),
        "batches": str(tmp_path / "read.npz"),
        "train": train,
        # JAX would compile for long.
        "step_time": step_time if backend == "torch" else [],
    }
    finished = subprocess.run(
        [sys.executable, "-c", SCRIPT, json.dumps(options)],
        # PyTorch's threads would compete with the other tests.
        env=os.environ | {"KERAS_BACKEND": backend, "OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
        check=False,
    )
    assert finished.returncode == 0, finished.stderr
    refused, line, table = json.loads(finished.stdout.splitlines()[-1])
    for message, what in zip(
        refused, ("Images are read .* tf.data", 'TFDS, which reads the text "lm1b"')
    ):
        assert re.search(what, message) and "pip install tensorflow" in message
    assert len(refused) == 2
    first, last = (value for _, value in line["result"]["curve"])
    assert line["result"]["status"] == "finished" and last < first < 256
    assert ("ExtremeTensoring 1" in table) == ("Adam" in table) == (backend == "torch")

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
