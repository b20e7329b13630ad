"""TensorFlow, JAX and PyTorch: every optimizer takes the same steps on each."""

import importlib.util
import os
import subprocess
import sys

import keras
import numpy as np
import pytest

from tests.optimizers import OPTIMIZERS
from tests.steps_of_backend import BY_DEFAULT, SHAPES
from tests.workers import shared_folder

if keras.backend.backend() != "tensorflow":
    pytest.skip("starts the other backends itself", allow_module_level=True)


@pytest.fixture(scope="module")
def values_of(tmp_path_factory):
    """The values of a backend, computed once, for all workers, in its own process."""

    def values_of(backend):
        if importlib.util.find_spec(backend) is None:
            pytest.skip(f"the package {backend} is not installed")
        with shared_folder(tmp_path_factory, "backends") as folder:
            path = folder / f"{backend}.npz"
            if not path.exists():
                subprocess.run(
                    [sys.executable, "-m", "tests.steps_of_backend", path],
                    # In the machine code that users run, whatever others are tested in.
                    env=os.environ | {"KERAS_BACKEND": backend, "XLA_FLAGS": ""},
                    check=True,
                )
        return np.load(path)

    return values_of


def invariant(values, name):
    """The values after two steps, sketches as the matrices that they stand for.

    Eigenvectors are determined up to their signs only, and those of equal eigenvalues,
    such as zeros, up to a rotation. V diag(λ) Vᵀ does not depend on that.
    """
    own = {of: values[of] for of in values.files if of.startswith(f"{name}: 2: ")}
    for of in [of for of in own if of.endswith("_vectors")]:
        vectors = own.pop(of)
        eigenvalues = own[of.replace("_vectors", "_values")]
        own[of] = np.einsum("...ij,...j,...kj", vectors, eigenvalues, vectors)
    return own


@pytest.mark.parametrize("backend", ["jax", "torch"])
@pytest.mark.parametrize("name", [*OPTIMIZERS, *BY_DEFAULT])
def test_weights_agree_after_one_step(name, backend, values_of):
    expected, found = values_of("tensorflow"), values_of(backend)
    atol = 1e-5 if name in BY_DEFAULT else 1e-6
    for number in range(len(SHAPES)):
        of = f"{name}: 1: variable_{number}"
        np.testing.assert_allclose(
            found[of], expected[of], rtol=0, atol=atol, err_msg=of
        )


@pytest.mark.parametrize("backend", ["jax", "torch"])
@pytest.mark.parametrize("name", OPTIMIZERS)
def test_backends_agree_after_two_steps(name, backend, values_of):
    expected = invariant(values_of("tensorflow"), name)
    found = invariant(values_of(backend), name)
    assert found.keys() == expected.keys() and len(found) > 5
    for of, value in expected.items():
        # A decomposition in float32 rounds more than sums and roots do.
        rounding = 1e-5 if of.endswith(("_vectors", "_values")) else 1e-6
        atol = rounding * max(1.0, np.max(np.abs(value)))
        np.testing.assert_allclose(found[of], value, rtol=0, atol=atol, err_msg=of)
