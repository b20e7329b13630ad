"""Fixtures shared by the tests of `tf_models`, and where those can run at all."""

import importlib.util

import keras
import pytest

from tests.workers import shared_folder

_MISSING = keras.backend.backend() != "tensorflow" or not all(
    importlib.util.find_spec(name) for name in ("tensorflow", "tensorflow_datasets")
)
# `tf_models` is for TensorFlow. Under another backend its modules are not imported.
collect_ignore_glob = ["test_*.py"] if _MISSING else []


@pytest.fixture(scope="session")
def texts(tmp_path_factory):
    """A folder of short texts, for what would read all of a large one to evaluate."""
    from tf_models.data.text_files import split_of

    folder = tmp_path_factory.mktemp("texts")
    for number in range(60):
        text = f"Part {number} of the {split_of(f'{number}.txt')} split.\n" * 20
        (folder / f"{number}.txt").write_text(text)
    return folder


@pytest.fixture(scope="session")
def prepared_data_dir(tmp_path_factory):
    """A data directory that holds the running Python's standard library as bytes."""
    from tf_models.data.text import load_text

    with shared_folder(tmp_path_factory, "tensorflow_datasets") as data_dir:
        load_text("stdlib", data_dir=data_dir)
    return data_dir
