"""From the name of a text to its tokens."""

import io
import json
import pathlib

import numpy as np
import pytest
import tensorflow_datasets as tfds
from rich.console import Console

from tf_models.data import TEXTS, byte_vocabulary, lm1b, text
from tf_models.data.stdlib_source import StdlibSource
from tf_models.data.subwords import END_OF_TEXT, train_subwords
from tf_models.data.text import load_text
from tf_models.data.text_files import SPLITS, split_of
from tf_models.data.windows import ShuffledWindows

SUBWORDS = 320


@pytest.fixture
def folder(tmp_path):
    """A folder of text with a word in each split that no other split has."""
    folder = tmp_path / "texts"
    folder.mkdir()
    for number in range(60):
        file = folder / f"part_{number}.txt"
        split = split_of(file.name)
        words = f"{split}{split.upper()} größer {number}\n" * 3
        file.write_text(words + load_text.__doc__, encoding="utf-8")
    return folder


@pytest.fixture
def load_folder(folder, tmp_path):
    def load(**arguments):
        arguments = {"data_dir": tmp_path / "data", "text_dir": folder} | arguments
        return load_text("folder", **arguments)

    return load


@pytest.fixture
def no_encoding(monkeypatch):
    """Has any further encoding fail."""

    def fail(*arguments):
        raise AssertionError("encoded again")

    return lambda: monkeypatch.setattr(text, "_write_tokens", fail)


def token_directories(data_dir):
    return sorted((data_dir / "tokens").iterdir())


def test_the_standard_library_loads_as_bytes(prepared_data_dir):
    data = load_text("stdlib", data_dir=prepared_data_dir)
    source = StdlibSource()
    assert data.name == source.title
    assert (data.unit, data.vocabulary_size, data.bytes_per_token) == ("byte", 256, 1)
    for split, paths in source.splits().items():
        expected = byte_vocabulary.encode_texts(map(source.text, paths))
        np.testing.assert_array_equal(getattr(data, split), expected)
        assert getattr(data, split).dtype == np.uint8
    assert data.decode(data.train[:9]) == byte_vocabulary.decode(data.train[:9])


def test_the_standard_library_loads_as_subwords(prepared_data_dir):
    in_bytes = load_text("stdlib", data_dir=prepared_data_dir)
    data = load_text("stdlib", data_dir=prepared_data_dir, subwords=2048)
    assert (data.unit, data.vocabulary_size) == ("subword", 2048)
    assert data.train.dtype == np.uint16
    assert data.train.max() < 2048
    end = byte_vocabulary.decode([byte_vocabulary.END_OF_FILE])
    for split in ("validation", "test"):
        whole = data.decode(getattr(data, split)).replace(END_OF_TEXT, end)
        assert whole == in_bytes.decode(getattr(in_bytes, split))
    tokens, text_bytes = len(data.validation), len(in_bytes.validation)
    assert data.bytes_per_token == text_bytes / tokens > 2


def test_tokens_are_read_only_memory_maps(load_folder):
    train = load_folder().train
    assert isinstance(train, np.memmap)
    with pytest.raises(ValueError, match="read-only"):
        train[0] = 1


def test_tokens_can_be_divided_into_windows(load_folder):
    data = load_folder(subwords=SUBWORDS)
    (inputs, targets), *_ = ShuffledWindows(data.train, 8, 4, steps=1, seed=0)
    assert inputs.shape == targets.shape == (4, 8)


def test_a_vocabulary_is_trained_on_the_training_split_only(folder, load_folder):
    data = load_folder(subwords=SUBWORDS)
    order = byte_vocabulary.decode(load_folder().train).split("\0")[:-1]
    expected = train_subwords(order, SUBWORDS)
    np.testing.assert_array_equal(data.train, expected.encode_texts(order))
    for file in folder.iterdir():
        if split_of(file.name) != "train":
            file.write_text("other text\n")
    changed = load_folder(subwords=SUBWORDS)
    assert changed.name != data.name
    np.testing.assert_array_equal(changed.train, data.train)
    assert not np.array_equal(changed.test, data.test)


def test_a_text_is_encoded_once(load_folder, no_encoding):
    made = load_folder(subwords=SUBWORDS)
    no_encoding()
    read = load_folder(subwords=SUBWORDS)
    for split in SPLITS:
        np.testing.assert_array_equal(getattr(made, split), getattr(read, split))
    assert read.bytes_per_token == made.bytes_per_token
    assert read.decode(read.test) == made.decode(made.test)


def test_each_vocabulary_and_each_text_has_its_own_directory(
    folder, load_folder, tmp_path
):
    load_folder()
    load_folder(subwords=SUBWORDS)
    load_folder(subwords=SUBWORDS + 1)
    (folder / "part_1.txt").write_text("changed\n")
    load_folder()
    names = [path.name for path in token_directories(tmp_path / "data")]
    assert len(names) == 4
    assert all(name.startswith("text_folder-texts-") for name in names)
    assert sum(f"subwords-{SUBWORDS}-" in name for name in names) == 1


@pytest.mark.parametrize("stopped_in", ["train.npy", "summary.json"])
def test_an_interrupted_encoding_is_repeated(
    load_folder, monkeypatch, tmp_path, stopped_in
):
    replacing = text.replacing

    def killed(path):
        if path.name == stopped_in:
            raise KeyboardInterrupt
        return replacing(path)

    with monkeypatch.context() as patch:
        patch.setattr(text, "replacing", killed)
        with pytest.raises(KeyboardInterrupt):
            load_folder()
    (directory,) = token_directories(tmp_path / "data")
    assert not (directory / "summary.json").exists()
    # A program that is killed outright leaves its temporary file.
    (directory / ".leftover-train.npy").write_bytes(b"half")
    whole = load_folder()
    assert len(whole.train) > 1000 and (directory / "summary.json").exists()


@pytest.mark.parametrize("damage", ["cut short", "removed"])
def test_damaged_token_files_are_encoded_again(load_folder, tmp_path, damage):
    expected = np.array(load_folder().train)
    (directory,) = token_directories(tmp_path / "data")
    file = directory / "train.npy"
    content = file.read_bytes()
    file.unlink()
    if damage == "cut short":
        file.write_bytes(content[:-7])
    np.testing.assert_array_equal(load_folder().train, expected)


def test_token_files_have_the_documented_names_and_contents(load_folder, tmp_path):
    load_folder(subwords=SUBWORDS)
    (directory,) = token_directories(tmp_path / "data")
    names = {"train.npy", "validation.npy", "test.npy"}
    names |= {"vocabulary.json", "summary.json"}
    assert {file.name for file in directory.iterdir()} == names
    summary = json.loads((directory / "summary.json").read_text())
    for split in SPLITS:
        tokens = np.load(directory / f"{split}.npy")
        assert tokens.ndim == 1 and len(tokens) == summary["tokens"][split]


def test_by_default_tokens_are_in_the_directory_of_tfds(folder, tmp_path, monkeypatch):
    root = tmp_path / "default"
    monkeypatch.setenv("TFDS_DATA_DIR", str(root))
    load_text("folder", text_dir=folder)
    assert len(token_directories(root)) == 1
    assert pathlib.Path(text.DATA_DIR).expanduser() == pathlib.Path(
        tfds.core.constants.DATA_DIR
    )


def test_progress_is_shown_on_terminals_only(load_folder, capsys):
    shown, hidden = (
        Console(file=io.StringIO(), force_terminal=terminal, width=120)
        for terminal in (True, False)
    )
    load_folder(console=shown)
    load_folder(console=hidden, subwords=SUBWORDS)
    assert "Encoding the folder texts-" in shown.file.getvalue()
    assert "Encoding" not in hidden.file.getvalue()
    assert capsys.readouterr().out == ""


def test_lm1b_has_the_sentences_of_tfds(tmp_path):
    with tfds.testing.mock_data(num_examples=50):
        data = load_text("lm1b", data_dir=tmp_path, subwords=270)
    assert data.name == "lm1b 1.1.0"
    assert (data.unit, data.vocabulary_size) == ("subword", 270)
    for split in SPLITS:
        tokens = getattr(data, split)
        assert np.count_nonzero(tokens == 0) == 50
        assert tokens[-1] == 0
    assert 0.5 < data.bytes_per_token < 5


@pytest.fixture
def small_lm1b(tmp_path, monkeypatch):
    """Prepares lm1b, by its own builder, from an archive of a few sentences."""
    corpus = tmp_path / "1-billion-word-language-modeling-benchmark-r13output"
    train = [f"Sentence {number} , with the word w{number} ." for number in range(200)]
    test = [f"Test sentence {number} ." for number in range(30)]
    for path, lines in {
        "training-monolingual.tokenized.shuffled/news.en-00001-of-00100": train,
        "heldout-monolingual.tokenized.shuffled/news.en.heldout-00000-of-00050": test,
    }.items():
        (corpus / path).parent.mkdir(parents=True)
        (corpus / path).write_text("\n".join(lines) + "\n")
    monkeypatch.setattr(
        tfds.download.DownloadManager,
        "download_and_extract",
        lambda self, url: str(tmp_path),
    )
    monkeypatch.setattr(lm1b, "VALIDATION_SENTENCES", 40)
    monkeypatch.setattr(lm1b, "VOCABULARY_SENTENCES", 100)
    return train, test


def sentences(data, split):
    return data.decode(getattr(data, split)).split("\0")[:-1]


def test_the_end_of_the_lm1b_training_split_is_the_validation_split(
    small_lm1b, tmp_path
):
    train, test = small_lm1b
    data = load_text("lm1b", data_dir=tmp_path / "data")
    assert sorted(sentences(data, "test")) == sorted(test)
    assert len(sentences(data, "validation")) == 40
    assert len(sentences(data, "train")) == 160
    held_out = sentences(data, "train") + sentences(data, "validation")
    assert sorted(held_out) == sorted(train)


def test_the_vocabulary_of_lm1b_is_trained_on_its_first_sentences(small_lm1b, tmp_path):
    in_bytes = load_text("lm1b", data_dir=tmp_path / "data")
    data = load_text("lm1b", data_dir=tmp_path / "data", subwords=290)
    expected = train_subwords(sentences(in_bytes, "train")[:100], 290)
    np.testing.assert_array_equal(
        data.test, expected.encode_texts(sentences(in_bytes, "test"))
    )


def test_a_failed_download_of_lm1b_is_an_error_with_the_remedies(tmp_path, monkeypatch):
    def fail(self, url):
        raise ConnectionError("name not known")

    monkeypatch.setattr(tfds.download.DownloadManager, "download_and_extract", fail)
    with pytest.raises(
        RuntimeError,
        match="lm1b/1.1.0 could not be downloaded.*name not known.*data_dir.*stdlib",
    ):
        load_text("lm1b", data_dir=tmp_path)


def test_an_unknown_text_is_refused_with_the_known_ones(tmp_path):
    with pytest.raises(ValueError, match=f"{', '.join(TEXTS)}; received 'wikitext'"):
        load_text("wikitext", data_dir=tmp_path)


def test_text_dir_is_only_accepted_for_the_text_folder(tmp_path):
    with pytest.raises(ValueError, match="text_dir must be given.*=None for 'folder'"):
        load_text("folder", data_dir=tmp_path)
    with pytest.raises(ValueError, match="text_dir must be given.*for 'stdlib'"):
        load_text("stdlib", data_dir=tmp_path, text_dir=tmp_path)


def test_a_vocabulary_size_out_of_range_is_refused_before_reading(tmp_path):
    for subwords in (0, 256, -5, 2.5, "300", True):
        with pytest.raises(ValueError, match="must have from 257 tokens"):
            load_text("stdlib", data_dir=tmp_path, subwords=subwords)
    assert not list(tmp_path.iterdir())


def test_a_vocabulary_too_large_for_the_text_leaves_no_finished_tokens(
    load_folder,
):
    for _ in range(2):
        with pytest.raises(ValueError, match="received 9000 for a text that gives"):
            load_folder(subwords=9000)


def test_load_text_can_refuse_bad_files(folder, load_folder):
    (folder / "empty.txt").touch()
    assert len(load_folder().train)
    with pytest.raises(ValueError, match="empty.txt: it is empty"):
        load_folder(on_bad_file="refuse")


def test_every_reading_of_a_text_logs_its_skipped_files(folder, load_folder, caplog):
    (folder / "empty.txt").touch()
    load_folder()
    for arguments in ({}, {"subwords": SUBWORDS}, {"subwords": SUBWORDS}):
        caplog.clear()
        with caplog.at_level("WARNING", logger="absl"):
            load_folder(**arguments)
        assert "skipped 1 of its files: empty.txt: it is empty." in caplog.text


def test_without_skipped_files_nothing_is_logged(load_folder, caplog):
    with caplog.at_level("WARNING", logger="absl"):
        load_folder()
    assert "of its files" not in caplog.text


def test_a_token_file_has_the_npy_format(tmp_path):
    batches = [[b"ab", b""], [b"c"]]
    count = text._write_tokens(
        batches, byte_vocabulary.encode_texts, tmp_path / "a.npy"
    )
    assert count == (6, 6)
    np.save(tmp_path / "b.npy", np.frombuffer(b"ab\0\0c\0", np.uint8))
    assert (tmp_path / "a.npy").read_bytes() == (tmp_path / "b.npy").read_bytes()
    assert sorted(file.name for file in tmp_path.iterdir()) == ["a.npy", "b.npy"]
