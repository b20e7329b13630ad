"""TensorFlow, JAX and PyTorch: every optimizer takes the same steps on each."""

import importlib.util
import os
import subprocess
import sys

import keras
import numpy as np
import pytest

from tests import steps_of_backend
from tests.optimizers import OPTIMIZERS
from tests.steps_of_backend import BY_DEFAULT, SHAPES
from tests.workers import shared_folder

if keras.backend.backend() != "tensorflow":
    pytest.skip("starts the other backends itself", allow_module_level=True)


@pytest.fixture(scope="module")
def results_of(tmp_path_factory):
    """The results of a backend, computed once for all workers.

    Those of TensorFlow in this process, those of the others in their own.
    """

    def results_of(backend):
        if importlib.util.find_spec(backend) is None:
            pytest.skip(f"the package {backend} is not installed")
        with shared_folder(tmp_path_factory, "backends") as folder:
            path = folder / f"{backend}.npz"
            if not path.exists() and backend == "tensorflow":
                steps_of_backend.main(path)
            elif not path.exists():
                subprocess.run(
                    [sys.executable, "-m", "tests.steps_of_backend", path],
                    # Optimized machine code, as users run it, whatever this test runs.
                    env=os.environ | {"KERAS_BACKEND": backend, "XLA_FLAGS": ""},
                    check=True,
                )
        return np.load(path)

    return results_of


def invariant(values, name):
    """The values after two steps, with each sketch as the matrix V diag(λ) Vᵀ.

    Eigenvectors are unique only up to their signs, and those of equal eigenvalues, such
    as zeros, up to a rotation. The matrix does not depend on that.
    """
    own = {key: values[key] for key in values.files if key.startswith(f"{name}: 2: ")}
    for key in [key for key in own if key.endswith("_vectors")]:
        vectors = own.pop(key)
        eigenvalues = own[key.replace("_vectors", "_values")]
        own[key] = np.einsum("...ij,...j,...kj", vectors, eigenvalues, vectors)
    return own


@pytest.mark.parametrize("backend", ["jax", "torch"])
@pytest.mark.parametrize("name", [*OPTIMIZERS, *BY_DEFAULT])
def test_weights_of_two_backends_agree_after_one_step(name, backend, results_of):
    expected, found = results_of("tensorflow"), results_of(backend)
    atol = 1e-5 if name in BY_DEFAULT else 1e-6
    shapes = SHAPES[:1] if name in BY_DEFAULT else SHAPES
    for number in range(len(shapes)):
        key = f"{name}: 1: variable_{number}"
        np.testing.assert_allclose(
            found[key], expected[key], rtol=0, atol=atol, err_msg=key
        )


@pytest.mark.parametrize("backend", ["jax", "torch"])
@pytest.mark.parametrize("name", OPTIMIZERS)
def test_weights_and_state_of_two_backends_agree_after_two_steps(
    name, backend, results_of
):
    expected = invariant(results_of("tensorflow"), name)
    found = invariant(results_of(backend), name)
    assert found.keys() == expected.keys() and len(found) > 5
    for key, value in expected.items():
        # A decomposition in float32 rounds more than sums and roots do.
        rounding = 1e-5 if key.endswith(("_vectors", "_values")) else 1e-6
        atol = rounding * max(1.0, np.max(np.abs(value)))
        np.testing.assert_allclose(found[key], value, rtol=0, atol=atol, err_msg=key)
