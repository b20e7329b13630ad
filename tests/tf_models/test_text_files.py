"""A folder of text."""

import hashlib
import os
import pathlib

import pytest

from tf_models.data.folder_files import BadFileError
from tf_models.data.text_files import FILES_AT_ONCE, SPLITS, TextFolder, split_of

# Enough files for each split to have one.
TEXTS = {f"part_{number}.txt": f"Text {number}, für alle\n" for number in range(60)}
TEXTS |= {"notes/READ ME.md": "# Read\n", "notes/deep/more.RST": "More\n====\n"}
LEFT_OUT = ["image.png", ".hidden.txt", ".git/message.txt", "txt", "notes/a.txt.gz"]
BAD_FILES = {
    "empty.txt": (b"", "it is empty"),
    "blank.txt": (b" \n\t\n", "it is empty"),
    "latin_1.txt": ("é".encode("latin-1"), "it is not UTF-8"),
    "utf_16.txt": ("text".encode("utf-16"), "it is not UTF-8"),
    "zeros.txt": (b"a\0b", "it contains the byte 0"),
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


def texts(source, split):
    return {path: source.text(path) for path in source.splits()[split]}


def all_texts(source):
    return {
        path: source.text(path) for paths in source.splits().values() for path in paths
    }


def warnings(caplog):
    messages = [record.getMessage() for record in caplog.records]
    return [message for message in messages if message.startswith("Skipped")]


def test_a_text_is_a_whole_file(folder):
    assert all_texts(TextFolder(folder, on_bad_file="refuse")) == TEXTS


def test_batches_have_several_files_in_the_order_of_their_paths(folder):
    batches = TextFolder(folder).batches()
    for split in SPLITS:
        paths = sorted(path for path in TEXTS if split_of(path) == split)
        read = [text for batch in batches[split] for text in batch]
        assert read == [TEXTS[path] for path in paths]
    assert max(map(len, batches["train"])) == FILES_AT_ONCE
    assert len(batches["train"]) == len(list(batches["train"])) > 1
    assert list(batches["vocabulary"]) == list(batches["train"])


def test_the_path_of_a_file_determines_its_split(folder):
    assert split_of("calendar.py") == "validation"
    assert split_of("sched.py") == "test"
    assert split_of("fnmatch.py") == "train"
    for split, paths in TextFolder(folder).splits().items():
        assert {split_of(path) for path in paths} == {split}


def test_validation_and_test_have_a_twentieth_of_the_files_each():
    splits = [split_of(f"package/module_{number}.py") for number in range(10_000)]
    for split in ("validation", "test"):
        assert splits.count(split) / len(splits) == pytest.approx(0.05, abs=0.007)
    # As they were when results were first published with them.
    digest = hashlib.sha256(" ".join(splits).encode()).hexdigest()
    assert digest.startswith("66124dc810c90383")


def test_bad_files_are_skipped_and_logged_with_their_faults(folder, caplog):
    for path, (content, _) in BAD_FILES.items():
        write(folder / path, content)
    (folder / "gone.txt").symlink_to(folder / "nowhere.txt")
    os.mkfifo(folder / "pipe.txt")
    source = TextFolder(folder)
    with caplog.at_level("WARNING", logger="absl"):
        assert all_texts(source) == TEXTS
    faults = {path: fault for path, (_, fault) in BAD_FILES.items()}
    faults |= {"gone.txt": "it cannot be read", "pipe.txt": "it is no regular file"}
    assert len(warnings(caplog)) == len(faults)
    for path, fault in faults.items():
        assert any(path in line and fault in line for line in warnings(caplog))
    assert source.skipped.keys() == faults.keys()
    assert all(fault in source.skipped[path] for path, fault in faults.items())


def test_a_file_that_changes_while_the_text_is_read_is_an_error(folder):
    source = TextFolder(folder)
    batches = source.batches()["train"]
    write(folder / "part_0.txt", b"\xff")
    with pytest.raises(
        BadFileError, match="part_0.txt.*changed: it is not UTF-8.*again"
    ):
        list(batches)


@pytest.mark.parametrize("path", BAD_FILES)
def test_a_bad_file_is_refused_by_name_with_the_remedy(folder, path):
    content, fault = BAD_FILES[path]
    write(folder / path, content)
    with pytest.raises(BadFileError, match=f'{path}: {fault}.*on_bad_file="skip"'):
        TextFolder(folder, on_bad_file="refuse").splits()


def test_refuse_applies_after_an_earlier_reading_with_skip(folder):
    write(folder / "empty.txt", b"")
    TextFolder(folder, on_bad_file="skip").splits()
    with pytest.raises(BadFileError, match="empty.txt"):
        TextFolder(folder, on_bad_file="refuse").splits()


@pytest.mark.parametrize("on_bad_file", ["skip", "refuse"])
def test_an_unlistable_subfolder_is_logged_or_refused(
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
            TextFolder(folder, on_bad_file=on_bad_file).splits()
        return
    with caplog.at_level("WARNING", logger="absl"):
        found = all_texts(TextFolder(folder, on_bad_file=on_bad_file))
    assert not any(path.startswith("notes/") for path in found)
    assert len(warnings(caplog)) == 1 and "notes" in warnings(caplog)[0]


def test_a_file_whose_name_is_not_utf_8_is_skipped_and_logged(folder, caplog):
    try:
        write(folder / os.fsdecode(b"caf\xe9.txt"), b"text")
    except OSError:
        pytest.skip("This file system has no such names.")
    with caplog.at_level("WARNING", logger="absl"):
        assert all_texts(TextFolder(folder)) == TEXTS
    assert len(warnings(caplog)) == 1 and "name is not UTF-8" in warnings(caplog)[0]


def test_cyclic_links_are_not_followed(folder):
    (folder / "notes" / "up").symlink_to(folder, target_is_directory=True)
    assert all_texts(TextFolder(folder)) == TEXTS


@pytest.mark.parametrize("files", [0, 1])
def test_a_folder_with_too_few_files_is_refused_with_the_remedy(tmp_path, files):
    (tmp_path / "texts").mkdir()
    for number in range(files):
        write(tmp_path / "texts" / f"{number}.txt", b"text")
    with pytest.raises(
        ValueError,
        match=rf"at least one file.*with {files} usable.*hundred files.*\.txt.*cut",
    ):
        TextFolder(tmp_path / "texts").splits()


def test_the_name_changes_exactly_when_the_text_changes(folder, tmp_path):
    name = TextFolder(folder).name
    assert name.startswith("text_folder-texts-")
    (folder / "part_1.txt").touch()
    assert TextFolder(folder).name == name
    write_folder(tmp_path / "copy" / "texts")
    assert TextFolder(tmp_path / "copy" / "texts").name == name
    # As long as it was: neither size nor place has changed.
    write(folder / "part_1.txt", TEXTS["part_1.txt"].replace("1", "2").encode())
    changed = TextFolder(folder).name
    (folder / "part_2.txt").rename(folder / "part_2000.txt")
    moved = TextFolder(folder).name
    assert len({name, changed, moved}) == 3


def test_the_name_depends_on_suffixes_and_on_bad_file(
    folder,
):
    names = {
        TextFolder(folder).name,
        TextFolder(folder, suffixes=(".txt",)).name,
        TextFolder(folder, on_bad_file="refuse").name,
    }
    assert len(names) == 3


def test_a_changed_folder_is_read_again(folder):
    write(folder / "part_1.txt", b"changed")
    assert all_texts(TextFolder(folder)) == TEXTS | {"part_1.txt": "changed"}


def test_only_files_with_the_given_suffixes_are_read(folder):
    found = all_texts(TextFolder(folder, suffixes=(".txt",)))
    assert {pathlib.Path(path).suffix for path in found} == {".txt"}


def test_a_path_that_is_no_folder_is_refused(tmp_path):
    write(tmp_path / "file.txt", b"text")
    for path in (tmp_path / "nowhere", tmp_path / "file.txt"):
        with pytest.raises(ValueError, match="must be a folder that exists; received"):
            TextFolder(path)


def test_an_unlistable_subfolder_changes_the_name(folder, monkeypatch):
    (folder / "closed").mkdir()
    name = TextFolder(folder).name
    listed = os.listdir

    def listdir(path):
        if os.path.basename(path) == "closed":
            raise PermissionError(13, "Permission denied", str(path))
        return listed(path)

    monkeypatch.setattr(os, "listdir", listdir)
    assert TextFolder(folder).name != name


def test_an_unknown_on_bad_file_is_refused(folder):
    with pytest.raises(ValueError, match="one of skip, refuse; received.*'ignore'"):
        TextFolder(folder, on_bad_file="ignore")
