"""The built wheel installs and trains, and the packages have the right files."""

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
    """A folder with a wheel and an sdist, built in a copy of the working tree."""
    pytest.importorskip("build")
    copy = tmp_path_factory.mktemp("source") / "tree"
    ignored = shutil.ignore_patterns(".*", "__pycache__", "*.egg-info", "build", "dist")
    shutil.copytree(ROOT, copy, ignore=ignored)
    folder = tmp_path_factory.mktemp("dist")
    run("-m", "build", "--no-isolation", "--outdir", folder, copy)
    return folder


def test_an_installed_wheel_trains_a_step(built, tmp_path):
    (wheel,) = built.glob("*.whl")
    # Dependencies come from this environment, the library from the wheel.
    run("-m", "pip", "install", "--no-deps", "--target", tmp_path, wheel)
    found = run(
        "-c", TRAINS, tmp_path, cwd=tmp_path, env=os.environ | {"PYTHONPATH": tmp_path}
    )
    assert wheel.name.startswith(f"et_optimizer-{found.strip()}-")


def test_the_packages_have_all_data_files_but_no_tests_and_results(built):
    (wheel,), (sdist,) = built.glob("*.whl"), built.glob("*.tar.gz")
    names = zipfile.ZipFile(wheel).namelist()
    assert "et_optimizer/py.typed" in names
    assert "tf_models/experiments/cifar10_resnet.yaml" in names
    assert not [name for name in names if "results/" in name or "tests/" in name]
    with tarfile.open(sdist) as archive:
        names = [name.partition("/")[2] for name in archive.getnames()]
    assert {"LICENSE", "README.md", "setup.cfg"} <= set(names)
    assert not [name for name in names if name.startswith(("tests/", "results/"))]
