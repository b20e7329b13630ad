"""A process that only imports the library loads what another process saved."""

import importlib.util
import json
import os
import pathlib
import subprocess
import sys

import keras
import numpy as np
import pytest
from keras import ops

import et_optimizer

ROOT = pathlib.Path(__file__).parents[1]
CLASSES = {
    name: getattr(et_optimizer, name)
    for name in et_optimizer.__all__
    if hasattr(getattr(et_optimizer, name), "update_step")
    and name != "PreconditionedOptimizer"
}
# The classes whose models are loaded: all under PyTorch, which compiles nothing.
LOADED = CLASSES if keras.backend.backend() == "torch" else ("ExtremeTensoring",)
# Arguments that differ from the defaults, so that the loss of a config would show.
ARGUMENTS = {
    "ExtremeTensoring": {
        "level": {"kernel": 3, "bias": "inf"},
        "combination": "geometric",
        "momentum_rank": {"kernel": 2},
        "momentum_dtype": "int8",
        "refresh_every": 2,
        "update_bound": 2.0,
    },
    "Muon": {
        "beta_1": 0.9,
        "momentum_dtype": "int3",
        "orthogonalize": {"kernel": True},
    },
    "SM3": {"level": 2, "momentum": 0.9, "momentum_rank": None},
    "Adafactor": {"clip_threshold": 2.0, "beta_1": 0.8, "momentum_rank": 1},
    "SubsetNorm": {
        "axis": {".*": 0},
        "beta_1": 0.8,
        "momentum_of": "gradient",
        "momentum_rank": 2,
    },
    "Shampoo": {"update_every": 2},
    "SketchyShampoo": {"rank": 2, "update_every": 2, "beta_1": 0.9},
    "SketchyAdagrad": {"rank": 3},
}


def run(program, *arguments, backend=None):
    """Run a Python program in its own process."""
    return subprocess.run(
        [sys.executable, "-c", program, *map(str, arguments)],
        env=os.environ | {"KERAS_BACKEND": backend or keras.backend.backend()},
        cwd=ROOT,
        capture_output=True,
        text=True,
    )


def data():
    rng = np.random.default_rng(0)
    x = rng.standard_normal((32, 6)).astype("float32")
    return x, (x @ rng.standard_normal((6, 4))).astype("float32")


def trained(optimizer):
    """A model after two steps of the optimizer."""
    model = keras.Sequential([keras.Input((6,)), keras.layers.Dense(4)])
    # Eager steps would make JAX compile every operation. On the other backends they
    # save compiling a whole step in each process.
    model.compile(optimizer, "mse", run_eagerly=keras.backend.backend() != "jax")
    train(model)
    return model


def train(model):
    model.fit(*data(), batch_size=16, shuffle=False, verbose=0)


def weights(model):
    return [ops.convert_to_numpy(weight) for weight in model.weights]


CONTINUE = """
import pathlib, sys
import keras
import numpy as np
import et_optimizer

folder = pathlib.Path(sys.argv[1])
with np.load(folder / "data.npz") as data:
    x, y = data["x"], data["y"]
for path in folder.glob("*.keras"):
    model = keras.models.load_model(path)
    assert type(model.optimizer) is getattr(et_optimizer, path.stem)
    model.fit(x, y, batch_size=16, shuffle=False, verbose=0)
    weights = [keras.ops.convert_to_numpy(weight) for weight in model.weights]
    np.savez(path.with_suffix(".npz"), *weights)
"""


def test_a_fresh_process_trains_on_with_saved_models(tmp_path):
    assert set(ARGUMENTS) == set(CLASSES)
    models = {}
    for name in LOADED:
        models[name] = trained(CLASSES[name](0.01, **ARGUMENTS[name]))
        models[name].save(tmp_path / f"{name}.keras")
        train(models[name])
    x, y = data()
    np.savez(tmp_path / "data.npz", x=x, y=y)
    done = run(CONTINUE, tmp_path)
    assert done.returncode == 0, done.stderr
    for name, model in models.items():
        with np.load(tmp_path / f"{name}.npz") as loaded:
            for array, weight in zip(loaded.values(), weights(model), strict=True):
                np.testing.assert_allclose(
                    array, weight, rtol=0, atol=1e-6, err_msg=name
                )


@pytest.mark.one_backend
def test_without_the_import_the_error_names_the_class_and_the_package(tmp_path):
    trained(et_optimizer.ExtremeTensoring()).save(tmp_path / "model.keras")
    load = "import sys, keras; keras.models.load_model(sys.argv[1])"
    refused = run(load, tmp_path / "model.keras")
    assert refused.returncode != 0
    for part in (
        "Could not locate class 'ExtremeTensoring'",
        "make sure they are all imported",
        "et_optimizer>ExtremeTensoring",
    ):
        assert part in refused.stderr


@pytest.mark.one_backend
@pytest.mark.parametrize("name", CLASSES)
def test_keras_deserializes_the_optimizer_from_json_and_by_name(name):
    optimizer = CLASSES[name](0.01, **ARGUMENTS[name])
    config = optimizer.get_config()
    for identifier in (
        keras.optimizers.serialize(optimizer),
        {"class_name": f"et_optimizer>{name}", "config": config},
    ):
        again = keras.optimizers.get(json.loads(json.dumps(identifier)))
        assert type(again) is CLASSES[name]
        assert again.get_config() == config
    by_name = keras.optimizers.get(f"et_optimizer>{name}")
    assert by_name.get_config() == CLASSES[name](name=by_name.name).get_config()


@pytest.mark.two_backends
def test_a_cloned_model_is_compiled_with_an_equal_optimizer():
    model = trained(et_optimizer.ExtremeTensoring(0.01, level=3, beta_1=0.9))
    clone = keras.models.clone_model(model)
    clone.compile_from_config(model.get_compile_config())
    assert clone.optimizer is not model.optimizer
    assert clone.optimizer.get_config() == model.optimizer.get_config()
    # With the original's weights and a fresh state it takes a fresh model's steps.
    clone.set_weights(model.get_weights())
    fresh = keras.models.clone_model(model)
    fresh.set_weights(model.get_weights())
    fresh.compile(
        et_optimizer.ExtremeTensoring(0.01, level=3, beta_1=0.9),
        "mse",
        run_eagerly=True,
    )
    train(clone)
    train(fresh)
    for one, other in zip(weights(clone), weights(fresh), strict=True):
        np.testing.assert_allclose(one, other, rtol=0, atol=1e-6)


IMPORTS = """
import json, sys
import keras
before = set(sys.modules)
import et_optimizer
after = set(sys.modules)
print(json.dumps([keras.backend.backend(), sorted(after), sorted(after - before)]))
"""


@pytest.mark.one_backend
@pytest.mark.parametrize("backend", ["tensorflow", "jax", "torch"])
def test_the_library_imports_only_keras_and_the_standard_library(backend):
    if importlib.util.find_spec(backend) is None:
        pytest.skip(f"{backend} is not installed")
    done = run(IMPORTS, backend=backend)
    assert done.returncode == 0, done.stderr
    used, loaded, added = json.loads(done.stdout)
    assert used == backend
    packages = {module.split(".")[0] for module in added}
    assert packages - set(sys.stdlib_module_names) <= {"et_optimizer", "keras"}
    assert "et_optimizer" in packages and "tf_keras" not in loaded
    assert backend == "tensorflow" or "tensorflow" not in loaded
