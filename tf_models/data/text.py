"""The texts of the studies, as tokens: one call from a name to three splits.

Tokens are made once. They, and the vocabulary they are made with, are kept under
`tokens/` in the directory of prepared data sets, in a directory named after the data
set, its version, its config and the vocabulary, and are read from there as memory
maps: lm1b's 0.8 billion tokens are never in memory at once.
"""

import collections
import contextlib
import dataclasses
import json
import pathlib
from collections.abc import Callable

import numpy as np
import tensorflow_datasets as tfds
from rich.progress import Progress

from tf_models.data import byte_vocabulary
from tf_models.data.folder_files import log_skipped
from tf_models.data.stdlib_source import StdlibSource
from tf_models.data.subwords import check_size, load_subwords, train_subwords
from tf_models.data.text_folder import SPLITS, TextFolder, text_folder_config
from tf_models.output import replacing

TEXTS = ("stdlib", "lm1b", "folder")
# lm1b has a training and a test split. TFDS writes sentences in a shuffled order, so
# the last of the 30.3 million to train on are a sample of all; its test split has
# about as many.
LM1B_VALIDATION_SENTENCES = 300_000
# The first sentences, 130 MB of text, on which its subword vocabulary is trained.
LM1B_VOCABULARY_SENTENCES = 1_000_000

# Part of the directory's name: raise it when the same text makes other tokens or files.
_FORMAT = 1
_VOCABULARY_FILE = "vocabulary.json"
# Written last: where it is, the other files are whole.
_SUMMARY_FILE = "summary.json"


@dataclasses.dataclass(frozen=True)
class TextData:
    """A text as tokens.

    Attributes:
        name: For people, as "the standard library of cpython-3.11.7".
        unit: What a token is: `"byte"` or `"subword"`.
        vocabulary_size: Number of tokens there are.
        train: Tokens to train on: one dimension, a read-only memory map of the
            smallest unsigned type that holds a token. Each text is followed by the
            token that ends a text, which is 0.
        validation: Tokens to choose by, likewise.
        test: Tokens to report on, likewise.
        bytes_per_token: Bytes of UTF-8 a token stands for in the validation split,
            on average; the end of a text counts as a byte. A perplexity a token `p`
            is `p ** (1 / bytes_per_token)` a byte, which can be compared between
            vocabularies. 1 for bytes.
        decode: Turns tokens, in one dimension, into a `str`.
    """

    name: str
    unit: str
    vocabulary_size: int
    train: np.ndarray
    validation: np.ndarray
    test: np.ndarray
    bytes_per_token: float
    decode: Callable


@dataclasses.dataclass(frozen=True)
class _Source:
    """A data set and how its texts are read.

    Attributes:
        title: For people.
        builder: Its TFDS builder.
        splits: For each of `SPLITS`, its name with TFDS.
        vocabulary_split: Name with TFDS of the part a vocabulary is trained on.
        texts_at_once: How many texts may be held in memory and encoded together.
    """

    title: str
    builder: tfds.core.DatasetBuilder
    splits: dict
    vocabulary_split: str
    texts_at_once: int


def load_text(
    name,
    *,
    subwords=None,
    data_dir=None,
    text_dir=None,
    on_bad_file="skip",
    console=None,
):
    """Reads a text as tokens, and makes them where that was not done before.

    Args:
        name: `"stdlib"`, the running Python's standard library, which needs no
            network; `"lm1b"`, the One Billion Word benchmark, which is downloaded
            (1.7 GB); or `"folder"`, the text files under `text_dir`.
        subwords: Size of a subword vocabulary, trained on the training split alone;
            `None` for bytes.
        data_dir: Directory of prepared data sets, made if it does not exist; `None`
            for TFDS's own, `~/tensorflow_datasets`.
        text_dir: The folder of `"folder"`; for no other name.
        on_bad_file: For a folder's files that are no text: `"skip"` names them in the
            log every time the folder is read, `"refuse"` raises an error.
        console: A `rich.console.Console` that shows progress if it is a terminal.

    Returns:
        A `TextData`.

    Raises:
        ValueError: an argument is out of range, a file is refused, or the text is too
            small for three splits or for a vocabulary of this size.
        RuntimeError: lm1b cannot be downloaded and prepared.
    """
    if subwords is not None:
        check_size(subwords)
    data_dir = data_dir and pathlib.Path(data_dir).expanduser()
    source = _source(name, data_dir, text_dir, on_bad_file)
    directory = _token_directory(source.builder, data_dir, subwords)
    if not _is_whole(directory):
        _prepare(source.builder, console)
        directory.mkdir(parents=True, exist_ok=True)
        _write(source, directory, subwords, console)
    return _read(source, directory, subwords)


def _source(name, data_dir, text_dir, on_bad_file):
    if name not in TEXTS:
        raise ValueError(
            f"The text must be one of {', '.join(TEXTS)}; received {name!r}."
        )
    if (name == "folder") != (text_dir is not None):
        raise ValueError(
            'text_dir must be given for the text "folder" and for no other; received '
            f"text_dir={text_dir!r} for {name!r}."
        )
    if name == "stdlib":
        builder = StdlibSource(data_dir=data_dir)
        title = f"the standard library of {builder.builder_config.name}"
        return _files(title, builder)
    if name == "folder":
        config = text_folder_config(text_dir, on_bad_file=on_bad_file)
        builder = TextFolder(data_dir=data_dir, config=config)
        # Not its path: a result should read the same on another machine.
        return _files(f"the folder {config.name}", builder)
    builder = tfds.builder("lm1b", data_dir=data_dir)
    return _Source(
        title=f"lm1b {builder.version}",
        builder=builder,
        splits={
            "train": f"train[:-{LM1B_VALIDATION_SENTENCES}]",
            "validation": f"train[-{LM1B_VALIDATION_SENTENCES}:]",
            "test": "test",
        },
        vocabulary_split=f"train[:{LM1B_VOCABULARY_SENTENCES}]",
        texts_at_once=4096,
    )


def _files(title, builder):
    return _Source(
        title=title,
        builder=builder,
        splits={split: split for split in SPLITS},
        vocabulary_split="train",
        texts_at_once=16,  # A file may be large.
    )


def _token_directory(builder, data_dir, subwords):
    full_name = builder.info.full_name  # name/config/version
    # The data set's directory ends in its full name, below the default data_dir.
    root = data_dir or pathlib.Path(builder.data_path).parents[full_name.count("/")]
    vocabulary = "bytes" if subwords is None else f"subwords-{subwords}"
    data_set = full_name.replace("/", "-")
    return pathlib.Path(root, "tokens", f"{data_set}-{vocabulary}-format-{_FORMAT}")


def _is_whole(directory):
    """Whether every file is there, and as long as it was when all were written."""
    try:
        summary = json.loads((directory / _SUMMARY_FILE).read_text())
        return all(
            (directory / name).stat().st_size == size
            for name, size in summary["file_bytes"].items()
        )
    except FileNotFoundError:
        return False


def _prepare(builder, console):
    is_local = builder.name != "lm1b"
    watched = console is not None and console.is_terminal
    if is_local or not watched:
        tfds.disable_progress_bar()
    status = contextlib.nullcontext()
    if is_local and console is not None:
        status = console.status(f"Preparing {builder.info.full_name}")
    # TFDS announces a "download" of unknown size even where there is none.
    with status, contextlib.redirect_stdout(None):
        if is_local:
            builder.download_and_prepare()
        else:
            _download(builder)


def _download(builder):
    try:
        builder.download_and_prepare()
    # Name resolution, a refused connection, a vanished page, a wrong checksum and a
    # full disk all come as classes of their own.
    except Exception as error:
        raise RuntimeError(
            f"{builder.info.full_name} could not be downloaded and prepared: {error}. "
            "Prepare it on a machine with a network (tfds build lm1b "
            "--data_dir=DIRECTORY), bring the directory here and give it as data_dir; "
            'or use the text "stdlib", which needs no network.'
        ) from error


def _write(source, directory, subwords, console):
    """Writes vocabulary, tokens and, at last, the summary that says all are there."""
    if subwords is None:
        encode_texts = byte_vocabulary.encode_texts
    else:
        encode_texts = _new_subwords(source, directory, subwords).encode_texts
    files = [directory / f"{split}.npy" for split in SPLITS]
    shown = console is not None and console.is_terminal
    with Progress(console=console, transient=True, disable=not shown) as progress:
        counts = {
            split: _write_tokens(
                progress.track(
                    _TextBatches(source, source.splits[split]),
                    description=f"Encoding {source.title}, {split}",
                ),
                encode_texts,
                file,
            )
            for split, file in zip(SPLITS, files)
        }
    if subwords is not None:
        files.append(directory / _VOCABULARY_FILE)
    validation = counts["validation"]
    summary = {
        "text": source.title,
        "tokens": {split: count.tokens for split, count in counts.items()},
        "bytes_per_token": validation.bytes / validation.tokens,
        # Read from here where the prepared data set is gone and the tokens are not.
        "skipped": _skipped(source.builder),
        "file_bytes": {file.name: file.stat().st_size for file in files},
    }
    with replacing(directory / _SUMMARY_FILE) as temporary:
        pathlib.Path(temporary).write_text(json.dumps(summary, indent=2) + "\n")


def _skipped(builder):
    # lm1b's builder, which is TFDS's own, has no such record.
    return (builder.info.metadata or {}).get("skipped", {})


def _new_subwords(source, directory, size):
    batches = _TextBatches(source, source.vocabulary_split)
    vocabulary = train_subwords((text for batch in batches for text in batch), size)
    vocabulary.save(directory / _VOCABULARY_FILE)
    return vocabulary


class _TextBatches:
    """The texts of a part of a data set, in its order, as lists of `bytes`."""

    def __init__(self, source, split):
        examples = source.builder.as_dataset(split=split)
        self._batches = examples.batch(source.texts_at_once)

    def __iter__(self):
        for batch in self._batches.as_numpy_iterator():
            yield batch["text"].tolist()

    def __len__(self):
        return len(self._batches)


_Count = collections.namedtuple("_Count", "tokens bytes")


def _write_tokens(batches, encode_texts, path):
    """Encodes texts into an .npy file, holding a batch of them at a time.

    Args:
        batches: Iterable of lists of `bytes`.
        encode_texts: Turns such a list into a one-dimensional array.
        path: The file's `pathlib.Path`.

    Returns:
        A `_Count` of the tokens, and of the bytes of text with one for each end.
    """
    tokens = text_bytes = 0
    dtype = encode_texts([]).dtype
    with replacing(path) as temporary, open(temporary, "wb") as file:
        _write_header(file, dtype, tokens)
        for texts in batches:
            encoded = encode_texts(texts)
            file.write(encoded.data)
            tokens += len(encoded)
            text_bytes += sum(map(len, texts)) + len(texts)
        file.seek(0)
        _write_header(file, dtype, tokens)
    return _Count(tokens, text_bytes)


def _write_header(file, dtype, length):
    # NumPy pads a header so that it is as long for every length of the array.
    description = np.lib.format.dtype_to_descr(dtype)
    np.lib.format.write_array_header_1_0(
        file, {"descr": description, "fortran_order": False, "shape": (length,)}
    )


def _read(source, directory, subwords):
    summary = json.loads((directory / _SUMMARY_FILE).read_text())
    # lm1b may have been encoded before this was on record, and skips none.
    log_skipped(source.title, summary.get("skipped", {}))
    if subwords is None:
        unit, size, decode = "byte", byte_vocabulary.SIZE, byte_vocabulary.decode
    else:
        vocabulary = load_subwords(directory / _VOCABULARY_FILE)
        unit, size, decode = "subword", vocabulary.size, vocabulary.decode
    splits = {
        split: np.load(directory / f"{split}.npy", mmap_mode="r") for split in SPLITS
    }
    return TextData(
        name=source.title,
        unit=unit,
        vocabulary_size=size,
        **splits,
        bytes_per_token=summary["bytes_per_token"],
        decode=decode,
    )
