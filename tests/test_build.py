"""What is built can be installed, and trains."""

import os
import pathlib
import shutil
import subprocess
import sys
import tarfile
import zipfile

import pytest

ROOT = pathlib.Path(__file__).parents[1]
pytestmark = pytest.mark.one_backend
TRAINS = """
import pathlib, sys
import keras, numpy as np
import et_optimizer
assert pathlib.Path(et_optimizer.__file__).is_relative_to(sys.argv[1])
model = keras.Sequential([keras.Input((4,)), keras.layers.Dense(2)])
model.compile(et_optimizer.ExtremeTensoring(), "mse")
before = model.get_weights()[0]
model.fit(np.ones((8, 4)), np.ones((8, 2)), verbose=0)
assert np.isfinite(model.get_weights()[0]).all()
assert np.any(model.get_weights()[0] != before)
print(et_optimizer.__version__)
"""


def run(*command, **keywords):
    finished = subprocess.run(
        [sys.executable, *map(str, command)],
        capture_output=True,
        text=True,
        check=False,
        **keywords,
    )
    assert finished.returncode == 0, finished.stderr
    return finished.stdout


@pytest.fixture(scope="module")
def built(tmp_path_factory):
    """A folder with a wheel and an sdist of the working tree, built in a copy."""
    pytest.importorskip("build")
    copy = tmp_path_factory.mktemp("source") / "tree"
    ignored = shutil.ignore_patterns(".*", "__pycache__", "*.egg-info", "build", "dist")
    shutil.copytree(ROOT, copy, ignore=ignored)
    folder = tmp_path_factory.mktemp("dist")
    run("-m", "build", "--no-isolation", "--outdir", folder, copy)
    return folder


def test_an_installed_wheel_trains_a_step(built, tmp_path):
    (wheel,) = built.glob("*.whl")
    # Its dependencies are those of this environment; the library is the wheel's.
    run("-m", "pip", "install", "--no-deps", "--target", tmp_path, wheel)
    found = run(
        "-c", TRAINS, tmp_path, cwd=tmp_path, env=os.environ | {"PYTHONPATH": tmp_path}
    )
    assert wheel.name.startswith(f"et_optimizer-{found.strip()}-")


def test_what_is_built_has_what_it_needs_and_no_results(built):
    (wheel,), (sdist,) = built.glob("*.whl"), built.glob("*.tar.gz")
    names = zipfile.ZipFile(wheel).namelist()
    assert "et_optimizer/py.typed" in names
    assert "tf_models/experiments/cifar10_resnet.yaml" in names
    assert not [name for name in names if "results/" in name or "tests/" in name]
    with tarfile.open(sdist) as archive:
        names = [name.partition("/")[2] for name in archive.getnames()]
    assert {"LICENSE", "README.md", "setup.cfg"} <= set(names)
    assert not [name for name in names if name.startswith(("tests/", "results/"))]
