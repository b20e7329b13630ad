"""Fixtures of the tests of `tf_models`, which run under TensorFlow only."""

import importlib.util
import warnings

import keras
import pytest

from tests.workers import shared_folder

_MISSING = keras.backend.backend() != "tensorflow" or not all(
    importlib.util.find_spec(name) for name in ("tensorflow", "tensorflow_datasets")
)
# Under another backend the test modules are not imported.
collect_ignore_glob = ["test_*.py"] if _MISSING else []


@pytest.fixture(scope="module")
def eager():
    """Eager TensorFlow: tracing takes longer than the few steps of a test."""
    import tensorflow as tf

    tf.config.run_functions_eagerly(True)
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "Even though the .*run_functions_eagerly")
        yield
    tf.config.run_functions_eagerly(False)


@pytest.fixture
def graphs(eager):
    """Graphs again, for a test whose results must equal those of another process."""
    import tensorflow as tf

    tf.config.run_functions_eagerly(False)
    yield
    tf.config.run_functions_eagerly(True)


@pytest.fixture(scope="session")
def texts(tmp_path_factory):
    """A folder of short texts, which is evaluated faster than the standard library."""
    from tf_models.data.text_files import split_of

    folder = tmp_path_factory.mktemp("texts")
    for number in range(60):
        text = f"Part {number} of the {split_of(f'{number}.txt')} split.\n" * 20
        (folder / f"{number}.txt").write_text(text)
    return folder


@pytest.fixture(scope="session")
def prepared_data_dir(tmp_path_factory):
    """A data directory with the standard library of this Python, prepared as bytes."""
    from tf_models.data.text import load_text

    with shared_folder(tmp_path_factory, "tensorflow_datasets") as data_dir:
        load_text("stdlib", data_dir=data_dir)
    return data_dir
