"""The TFDS builder of the standard library's source text."""

import pathlib
import platform
import sysconfig
import tempfile

import pytest
import tensorflow_datasets as tfds

from tf_models.data.stdlib_source import (
    StdlibSource,
    StdlibSourceConfig,
    running_python_config,
)
from tf_models.data.text_folder import SPLITS

# The last two are in these splits by the hash of their paths.
TRAIN = {"ast.py": "tree = 1\n", "json/decoder.py": "# ü\n", "os.py": "sep = '/'\n"}
VALIDATION = {"calendar.py": "weeks = 52\n"}
TEST = {"sched.py": "events = []\n"}
LEFT_OUT = {
    "test/test_ast.py": "a test",
    "json/tests/test_decoder.py": "a test",
    "site-packages/numpy/linalg.py": "an installed package",
    "idlelib/editor.py": "an application",
    "encodings/cp1252.py": "a table",
    "_sysconfigdata__linux.py": "what the build wrote",
    "LICENSE.txt": "not Python",
    "json/__init__.py": "",
}
LATIN_1 = "latin_1.py"


def write_source_tree(root):
    """Writes a small standard library with everything the builder must leave out."""
    for path, text in (TRAIN | VALIDATION | TEST | LEFT_OUT).items():
        file = root / path
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text(text, encoding="utf-8")
    (root / LATIN_1).write_bytes("name = 'é'\n".encode("latin-1"))


def build(source_dir, data_dir):
    config = StdlibSourceConfig(name="small", source_dir=str(source_dir))
    builder = StdlibSource(data_dir=data_dir, config=config)
    builder.download_and_prepare()
    return builder


def texts(builder, split):
    return {
        example["path"].decode(): example["text"].decode()
        for example in tfds.as_numpy(builder.as_dataset(split=split))
    }


class StdlibSourceTest(tfds.testing.DatasetBuilderTestCase):
    """The checks TFDS documents for every builder."""

    DATASET_CLASS = StdlibSource
    SPLITS = {"train": len(TRAIN), "validation": len(VALIDATION), "test": len(TEST)}

    @classmethod
    def setUpClass(cls):
        super().setUpClass()
        directory = tempfile.TemporaryDirectory()
        cls.addClassCleanup(directory.cleanup)
        source = pathlib.Path(directory.name)
        write_source_tree(source)
        cls.EXAMPLE_DIR = source
        cls.BUILDER_CONFIG_NAMES_TO_TEST = [
            StdlibSourceConfig(name="small", source_dir=str(source))
        ]


@pytest.fixture
def small_builder(tmp_path):
    write_source_tree(tmp_path / "source")
    return build(tmp_path / "source", tmp_path / "data")


def test_an_example_is_a_file_with_its_path_and_its_whole_text(small_builder):
    assert texts(small_builder, "train") == TRAIN
    assert texts(small_builder, "validation") == VALIDATION
    assert texts(small_builder, "test") == TEST


def test_a_file_that_is_not_utf_8_is_skipped_and_named(tmp_path, caplog):
    write_source_tree(tmp_path / "source")
    with caplog.at_level("WARNING", logger="absl"):
        builder = build(tmp_path / "source", tmp_path / "data")
    skipped = [r.getMessage() for r in caplog.records if "Skipped" in r.getMessage()]
    assert len(skipped) == 1
    assert LATIN_1 in skipped[0] and "not UTF-8" in skipped[0]
    assert builder.info.metadata["skipped"].keys() == {LATIN_1}
    assert texts(builder, "train") == TRAIN


def test_a_file_that_cannot_be_read_is_skipped_and_named(tmp_path, caplog):
    write_source_tree(tmp_path / "source")
    (tmp_path / "source" / "gone.py").symlink_to(tmp_path / "nowhere.py")
    with caplog.at_level("WARNING", logger="absl"):
        builder = build(tmp_path / "source", tmp_path / "data")
    assert any(
        "gone.py" in r.getMessage() and "cannot be read" in r.getMessage()
        for r in caplog.records
    )
    assert texts(builder, "train") == TRAIN


def test_a_directory_without_source_is_refused_with_the_remedy(tmp_path):
    (tmp_path / "source").mkdir()
    with pytest.raises(ValueError, match="at least one file.*source.*Use a Python"):
        build(tmp_path / "source", tmp_path / "data")


def test_the_text_of_each_python_version_is_a_data_set_of_its_own():
    config = running_python_config()
    assert platform.python_version() in config.name
    assert config.source_dir == sysconfig.get_path("stdlib")
    assert StdlibSource.BUILDER_CONFIGS == [config]


def test_the_real_splits_share_no_file_and_hold_the_library(prepared_data_dir):
    builder = StdlibSource(data_dir=prepared_data_dir)
    splits = {split: texts(builder, split) for split in SPLITS}
    library = splits["train"] | splits["validation"] | splits["test"]
    assert len(library) == sum(map(len, splits.values()))
    for path in ("argparse.py", "json/decoder.py", "calendar.py", "sched.py"):
        file = pathlib.Path(sysconfig.get_path("stdlib")) / path
        assert library[path] == file.read_bytes().decode()
    size = sum(map(len, library.values()))
    for split in ("validation", "test"):
        assert 0.01 < sum(map(len, splits[split].values())) / size < 0.15
