"""The TFDS builder of a folder of text."""

import hashlib
import os
import pathlib
import tempfile

import pytest
import tensorflow_datasets as tfds

from tf_models.data import text_folder
from tf_models.data.folder_files import BadFileError
from tf_models.data.text_folder import (
    SPLITS,
    TextFolder,
    split_of,
    text_folder_config,
)

# Enough files for each split to have one.
TEXTS = {f"part_{number}.txt": f"Text {number}, für alle\n" for number in range(60)}
TEXTS |= {"notes/READ ME.md": "# Read\n", "notes/deep/more.RST": "More\n====\n"}
LEFT_OUT = ["image.png", ".hidden.txt", ".git/message.txt", "txt", "notes/a.txt.gz"]
BAD_FILES = {
    "empty.txt": (b"", "it is empty"),
    "blank.txt": (b" \n\t\n", "it is empty"),
    "latin_1.txt": ("é".encode("latin-1"), "it is not UTF-8"),
    "utf_16.txt": ("text".encode("utf-16"), "it is not UTF-8"),
    "zeros.txt": (b"a\0b", "it holds the byte 0"),
}


@pytest.fixture
def folder(tmp_path):
    write_folder(tmp_path / "texts")
    return tmp_path / "texts"


def write_folder(root):
    for path, text in TEXTS.items():
        write(root / path, text.encode())
    for path in LEFT_OUT:
        write(root / path, b"left out")


def write(file, content):
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_bytes(content)


def build(folder, **arguments):
    config = text_folder_config(folder, **arguments)
    builder = TextFolder(data_dir=folder.parent / "data", config=config)
    builder.download_and_prepare()
    return builder


def texts(builder, split):
    return {
        example["path"].decode(): example["text"].decode()
        for example in tfds.as_numpy(builder.as_dataset(split=split))
    }


def all_texts(builder):
    return {
        path: text for split in SPLITS for path, text in texts(builder, split).items()
    }


def warnings(caplog):
    messages = [record.getMessage() for record in caplog.records]
    return [message for message in messages if message.startswith("Skipped")]


class TextFolderTest(tfds.testing.DatasetBuilderTestCase):
    """The checks TFDS documents for every builder."""

    DATASET_CLASS = TextFolder
    SPLITS = {split: sum(split_of(path) == split for path in TEXTS) for split in SPLITS}

    @classmethod
    def setUpClass(cls):
        super().setUpClass()
        directory = tempfile.TemporaryDirectory()
        cls.addClassCleanup(directory.cleanup)
        cls.EXAMPLE_DIR = pathlib.Path(directory.name)
        write_folder(cls.EXAMPLE_DIR)
        cls.BUILDER_CONFIG_NAMES_TO_TEST = [text_folder_config(directory.name)]


def test_an_example_is_a_file_with_its_path_and_its_whole_text(folder):
    assert all_texts(build(folder, on_bad_file="refuse")) == TEXTS


def test_the_split_of_a_file_is_fixed_by_its_path(folder):
    assert split_of("calendar.py") == "validation"
    assert split_of("sched.py") == "test"
    assert split_of("fnmatch.py") == "train"
    builder = build(folder)
    for split in SPLITS:
        assert {split_of(path) for path in texts(builder, split)} == {split}


def test_a_twentieth_of_all_files_is_in_each_of_validation_and_test():
    splits = [split_of(f"package/module_{number}.py") for number in range(10_000)]
    for split in ("validation", "test"):
        assert splits.count(split) / len(splits) == pytest.approx(0.05, abs=0.007)
    # As they were when results were first published with them.
    digest = hashlib.sha256(" ".join(splits).encode()).hexdigest()
    assert digest.startswith("66124dc810c90383")


def test_bad_files_are_skipped_and_each_is_named_with_its_fault(folder, caplog):
    for path, (content, _) in BAD_FILES.items():
        write(folder / path, content)
    (folder / "gone.txt").symlink_to(folder / "nowhere.txt")
    os.mkfifo(folder / "pipe.txt")
    with caplog.at_level("WARNING", logger="absl"):
        builder = build(folder)
    assert all_texts(builder) == TEXTS
    faults = {path: fault for path, (_, fault) in BAD_FILES.items()}
    faults |= {"gone.txt": "it cannot be read", "pipe.txt": "it is no regular file"}
    assert len(warnings(caplog)) == len(faults)
    for path, fault in faults.items():
        assert any(path in line and fault in line for line in warnings(caplog))
    again = TextFolder(
        data_dir=folder.parent / "data", config=text_folder_config(folder)
    )
    skipped = again.info.metadata["skipped"]
    assert skipped.keys() == faults.keys()
    assert all(fault in skipped[path] for path, fault in faults.items())


def test_a_file_that_is_damaged_while_it_is_prepared_is_named(folder, monkeypatch):
    write(folder / "late.txt", b"\xff")
    monkeypatch.setattr(text_folder, "check_holds_text", lambda root, path: None)
    with pytest.raises(BadFileError, match="late.txt.*changed: it is not UTF-8.*again"):
        build(folder)


@pytest.mark.parametrize("path", BAD_FILES)
def test_a_bad_file_is_refused_by_name_with_the_remedy(folder, path):
    content, fault = BAD_FILES[path]
    write(folder / path, content)
    with pytest.raises(BadFileError, match=f'{path}: {fault}.*on_bad_file="skip"'):
        build(folder, on_bad_file="refuse")


def test_a_folder_read_with_skipping_is_still_refused_with_refusing(folder):
    write(folder / "empty.txt", b"")
    build(folder, on_bad_file="skip")
    with pytest.raises(BadFileError, match="empty.txt"):
        build(folder, on_bad_file="refuse")


@pytest.mark.parametrize("on_bad_file", ["skip", "refuse"])
def test_a_folder_in_it_that_cannot_be_listed_is_never_passed_over_silently(
    folder, caplog, monkeypatch, on_bad_file
):
    listed = os.listdir

    def listdir(path):
        if str(path).endswith("notes"):
            raise PermissionError(13, "Permission denied", str(path))
        return listed(path)

    monkeypatch.setattr(os, "listdir", listdir)
    if on_bad_file == "refuse":
        with pytest.raises(BadFileError, match="notes: it cannot be read.*Permission"):
            build(folder, on_bad_file=on_bad_file)
        return
    with caplog.at_level("WARNING", logger="absl"):
        builder = build(folder, on_bad_file=on_bad_file)
    assert not any(path.startswith("notes/") for path in all_texts(builder))
    assert len(warnings(caplog)) == 1 and "notes" in warnings(caplog)[0]


def test_a_file_whose_name_is_not_utf_8_is_named_and_skipped(folder, caplog):
    try:
        write(folder / os.fsdecode(b"caf\xe9.txt"), b"text")
    except OSError:
        pytest.skip("This file system has no such names.")
    with caplog.at_level("WARNING", logger="absl"):
        assert all_texts(build(folder)) == TEXTS
    assert len(warnings(caplog)) == 1 and "name is not UTF-8" in warnings(caplog)[0]


def test_links_that_go_round_in_a_circle_are_not_followed(folder):
    (folder / "notes" / "up").symlink_to(folder, target_is_directory=True)
    assert all_texts(build(folder)) == TEXTS


@pytest.mark.parametrize("files", [0, 1])
def test_a_folder_with_too_few_files_is_refused_with_the_remedy(tmp_path, files):
    (tmp_path / "texts").mkdir()
    for number in range(files):
        write(tmp_path / "texts" / f"{number}.txt", b"text")
    with pytest.raises(
        ValueError,
        match=rf"at least one file.*with {files} usable.*hundred files.*\.txt.*cut",
    ):
        build(tmp_path / "texts")


def test_the_name_changes_with_the_text_and_only_with_it(folder, tmp_path):
    name = text_folder_config(folder).name
    assert name.startswith("texts-")
    (folder / "part_1.txt").touch()
    assert text_folder_config(folder).name == name
    write_folder(tmp_path / "copy" / "texts")
    assert text_folder_config(tmp_path / "copy" / "texts").name == name
    # As long as it was: neither size nor place has changed.
    write(folder / "part_1.txt", TEXTS["part_1.txt"].replace("1", "2").encode())
    changed = text_folder_config(folder).name
    (folder / "part_2.txt").rename(folder / "part_2000.txt")
    moved = text_folder_config(folder).name
    assert len({name, changed, moved}) == 3


def test_the_name_changes_with_the_suffixes_and_with_what_is_done_with_bad_files(
    folder,
):
    names = {
        text_folder_config(folder).name,
        text_folder_config(folder, suffixes=(".txt",)).name,
        text_folder_config(folder, on_bad_file="refuse").name,
    }
    assert len(names) == 3


def test_a_changed_folder_is_read_anew(folder):
    build(folder)
    write(folder / "part_1.txt", b"changed")
    assert all_texts(build(folder)) == TEXTS | {"part_1.txt": "changed"}


def test_only_files_with_the_suffixes_asked_for_are_read(folder):
    found = all_texts(build(folder, suffixes=(".txt",)))
    assert {pathlib.Path(path).suffix for path in found} == {".txt"}


def test_what_is_no_folder_is_refused(tmp_path):
    write(tmp_path / "file.txt", b"text")
    for path in (tmp_path / "nowhere", tmp_path / "file.txt"):
        with pytest.raises(ValueError, match="must be a folder that exists; received"):
            text_folder_config(path)


def test_a_folder_that_can_no_longer_be_listed_is_other_data(folder, monkeypatch):
    (folder / "closed").mkdir()
    name = text_folder_config(folder).name
    listed = os.listdir

    def listdir(path):
        if os.path.basename(path) == "closed":
            raise PermissionError(13, "Permission denied", str(path))
        return listed(path)

    monkeypatch.setattr(os, "listdir", listdir)
    assert text_folder_config(folder).name != name


def test_an_unknown_way_with_bad_files_is_refused(folder):
    with pytest.raises(ValueError, match="one of skip, refuse; received.*'ignore'"):
        text_folder_config(folder, on_bad_file="ignore")
