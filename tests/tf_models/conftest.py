"""Fixtures shared by the tests of `tf_models`, and where those can run at all."""

import importlib.util

import keras
import pytest

_MISSING = keras.backend.backend() != "tensorflow" or not all(
    importlib.util.find_spec(name) for name in ("tensorflow", "tensorflow_datasets")
)
# `tf_models` is for TensorFlow. Under another backend its modules are not imported.
collect_ignore_glob = ["test_*.py"] if _MISSING else []


@pytest.fixture(scope="session")
def prepared_data_dir(tmp_path_factory):
    """A data directory that holds the running Python's standard library as bytes."""
    from tf_models.data.text import load_text

    data_dir = tmp_path_factory.mktemp("tensorflow_datasets")
    load_text("stdlib", data_dir=data_dir)
    return data_dir
