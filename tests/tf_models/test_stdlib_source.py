"""The standard library's source text."""

import pathlib
import platform
import sysconfig

import pytest

from tf_models.data.stdlib_source import StdlibSource
from tf_models.data.text_files import SPLITS

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


def texts(source, split):
    return {path: source.text(path) for path in source.splits()[split]}


@pytest.fixture
def small(tmp_path):
    write_source_tree(tmp_path)
    return StdlibSource(tmp_path, "small")


def test_a_text_is_a_whole_file(small):
    assert texts(small, "train") == TRAIN
    assert texts(small, "validation") == VALIDATION
    assert texts(small, "test") == TEST


def test_a_file_that_is_not_utf_8_is_skipped_and_logged(small, caplog):
    with caplog.at_level("WARNING", logger="absl"):
        small.splits()
    (skipped,) = [r.getMessage() for r in caplog.records if "Skipped" in r.getMessage()]
    assert LATIN_1 in skipped and "not UTF-8" in skipped
    assert small.skipped.keys() == {LATIN_1}
    assert texts(small, "train") == TRAIN


def test_an_unreadable_file_is_skipped_and_logged(small, tmp_path, caplog):
    (tmp_path / "gone.py").symlink_to(tmp_path / "nowhere.py")
    with caplog.at_level("WARNING", logger="absl"):
        assert texts(small, "train") == TRAIN
    assert "cannot be read" in small.skipped["gone.py"]
    assert any("gone.py" in r.getMessage() for r in caplog.records)


def test_a_directory_without_source_files_is_refused_with_the_remedy(tmp_path):
    with pytest.raises(ValueError, match="at least one file.*folder.*Use a Python"):
        StdlibSource(tmp_path, "empty").splits()


def test_each_python_version_has_its_own_name():
    source = StdlibSource()
    assert platform.python_version() in source.name
    assert platform.python_version() in source.title
    assert str(source.root) == sysconfig.get_path("stdlib")


def test_the_real_splits_are_disjoint_and_contain_the_library():
    splits = {split: texts(StdlibSource(), split) for split in SPLITS}
    library = splits["train"] | splits["validation"] | splits["test"]
    assert len(library) == sum(map(len, splits.values()))
    for path in ("argparse.py", "json/decoder.py", "calendar.py", "sched.py"):
        file = pathlib.Path(sysconfig.get_path("stdlib")) / path
        assert library[path] == file.read_bytes().decode()
    size = sum(map(len, library.values()))
    for split in ("validation", "test"):
        assert 0.01 < sum(map(len, splits[split].values())) / size < 0.15
