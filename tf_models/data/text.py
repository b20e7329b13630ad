"""Loads the texts of the studies by name, as tokens in three splits.

A text is encoded once. Its tokens and vocabulary are saved in `tokens/` in the
directory of prepared data sets, under the name of the text, its version and the
vocabulary. They are read as memory maps, because lm1b has 0.8 billion tokens.
"""

import collections
import dataclasses
import json
import os
import pathlib
from collections.abc import Callable

import numpy as np
from rich.progress import Progress

from tf_models.console.output import replacing
from tf_models.data import TEXTS, byte_vocabulary
from tf_models.data.folder_files import log_skipped
from tf_models.data.stdlib_source import StdlibSource
from tf_models.data.subwords import check_size, load_subwords, train_subwords
from tf_models.data.text_files import SPLITS, TextFolder

# The default of TFDS, which prepares lm1b there.
DATA_DIR = "~/tensorflow_datasets"

# Part of the directory's name: increase it when the tokens or files of a text change.
_FORMAT = 2
_VOCABULARY_FILE = "vocabulary.json"
# Written last, so that the other files are complete if it exists.
_SUMMARY_FILE = "summary.json"


@dataclasses.dataclass(frozen=True)
class TextData:
    """A text as tokens.

    Attributes:
        name: A description, such as "the standard library of cpython-3.11.7".
        unit: The kind of token: `"byte"` or `"subword"`.
        vocabulary_size: Number of different tokens.
        train: Training tokens: a one-dimensional, read-only memory map of the smallest
            unsigned type for a token. The token 0 follows each text and ends it.
        validation: Validation tokens, in the same form.
        test: Test tokens, in the same form.
        bytes_per_token: The average number of UTF-8 bytes per token in the validation
            split; the end of a text counts as a byte. It is 1 for bytes. A perplexity
            `p` per token is `p ** (1 / bytes_per_token)` per byte, which can be
            compared between vocabularies.
        decode: Function from one-dimensional tokens to a `str`.
    """

    name: str
    unit: str
    vocabulary_size: int
    train: np.ndarray
    validation: np.ndarray
    test: np.ndarray
    bytes_per_token: float
    decode: Callable


def load_text(
    name,
    *,
    subwords=None,
    data_dir=None,
    text_dir=None,
    on_bad_file="skip",
    console=None,
):
    """Reads a text as tokens, and encodes it on first use.

    Args:
        name: `"stdlib"`, the standard library of the running Python, which needs no
            network; `"lm1b"`, the One Billion Word benchmark, which is downloaded
            (1.7 GB); or `"folder"`, the text files in `text_dir`.
        subwords: Size of a subword vocabulary, trained on the training split; `None`
            for bytes.
        data_dir: Directory of prepared data sets, created if it does not exist; `None`
            for that of TFDS: `$TFDS_DATA_DIR`, or `~/tensorflow_datasets`.
        text_dir: The folder for `"folder"`.
        on_bad_file: How to treat files of a folder that are no text: `"skip"` logs them
            whenever the folder is read, `"refuse"` raises an error.
        console: A `rich.console.Console` that shows progress if it is a terminal.

    Returns:
        A `TextData`.

    Raises:
        ValueError: an argument is out of range, a file is refused, or the text is too
            small for three splits or for a vocabulary of this size.
        RuntimeError: lm1b cannot be downloaded and prepared, or TensorFlow, which it
            needs, is not installed.
    """
    if subwords is not None:
        check_size(subwords)
    data_dir = data_dir or os.environ.get("TFDS_DATA_DIR", DATA_DIR)
    data_dir = pathlib.Path(data_dir).expanduser()
    source = _source(name, data_dir, text_dir, on_bad_file, console)
    vocabulary = "bytes" if subwords is None else f"subwords-{subwords}"
    name = f"{source.name}-{vocabulary}-format-{_FORMAT}"
    directory = data_dir / "tokens" / name
    if not _is_whole(directory):
        batches = source.batches()
        directory.mkdir(parents=True, exist_ok=True)
        _write(source, batches, directory, subwords, console)
    return _read(source, directory, subwords)


def _source(name, data_dir, text_dir, on_bad_file, console):
    """The source of a text, with `name`, `title`, `skipped` and `batches`."""
    if name not in TEXTS:
        raise ValueError(
            f"The text must be one of {', '.join(TEXTS)}; received {name!r}."
        )
    if (name == "folder") != (text_dir is not None):
        raise ValueError(
            'text_dir must be given for the text "folder", and only then; received '
            f"text_dir={text_dir!r} for {name!r}."
        )
    if name == "stdlib":
        return StdlibSource()
    if name == "folder":
        return TextFolder(text_dir, on_bad_file=on_bad_file)
    try:
        from tf_models.data.lm1b import Lm1b

        return Lm1b(data_dir, console)
    except ImportError as error:
        raise RuntimeError(
            'TFDS, which reads the text "lm1b", needs TensorFlow; received: '
            f"{error}. Install it (pip install tensorflow); any Keras backend can "
            'train. Or use the text "stdlib" or "folder".'
        ) from error


def _is_whole(directory):
    """Whether all files exist with the size that they had when written."""
    try:
        summary = json.loads((directory / _SUMMARY_FILE).read_text())
        return all(
            (directory / name).stat().st_size == size
            for name, size in summary["file_bytes"].items()
        )
    except FileNotFoundError:
        return False


def _write(source, batches, directory, subwords, console):
    """Writes vocabulary, tokens and finally the summary."""
    files = [directory / f"{split}.npy" for split in SPLITS]
    encode_texts = byte_vocabulary.encode_texts
    if subwords is not None:
        vocabulary = train_subwords(
            (text for batch in batches["vocabulary"] for text in batch), subwords
        )
        vocabulary.save(directory / _VOCABULARY_FILE)
        files.append(directory / _VOCABULARY_FILE)
        encode_texts = vocabulary.encode_texts
    shown = console is not None and console.is_terminal
    with Progress(console=console, transient=True, disable=not shown) as progress:
        counts = {
            split: _write_tokens(
                progress.track(
                    batches[split], description=f"Encoding {source.title}, {split}"
                ),
                encode_texts,
                file,
            )
            for split, file in zip(SPLITS, files)
        }
    validation = counts["validation"]
    summary = {
        "text": source.title,
        "tokens": {split: count.tokens for split, count in counts.items()},
        "bytes_per_token": validation.bytes / validation.tokens,
        # Later readings log them too.
        "skipped": source.skipped,
        "file_bytes": {file.name: file.stat().st_size for file in files},
    }
    with replacing(directory / _SUMMARY_FILE) as temporary:
        pathlib.Path(temporary).write_text(json.dumps(summary, indent=2) + "\n")


_Count = collections.namedtuple("_Count", "tokens bytes")


def _write_tokens(batches, encode_texts, path):
    """Encodes texts into an .npy file, batch by batch.

    Args:
        batches: Iterable of lists of texts, each a `str` or `bytes` in UTF-8.
        encode_texts: Turns such a list into a one-dimensional array.
        path: The file's `pathlib.Path`.

    Returns:
        A `_Count` of the tokens and of the bytes, with one byte for each end of a text.
    """
    tokens = text_bytes = 0
    dtype = encode_texts([]).dtype
    with replacing(path) as temporary, open(temporary, "wb") as file:
        _write_header(file, dtype, tokens)
        for texts in batches:
            encoded = encode_texts(texts)
            file.write(encoded.data)
            tokens += len(encoded)
            text_bytes += sum(len(_utf_8(text)) + 1 for text in texts)
        file.seek(0)
        _write_header(file, dtype, tokens)
    return _Count(tokens, text_bytes)


def _utf_8(text):
    return text.encode() if isinstance(text, str) else text


def _write_header(file, dtype, length):
    # NumPy pads headers, so that their size does not depend on the array's length.
    description = np.lib.format.dtype_to_descr(dtype)
    np.lib.format.write_array_header_1_0(
        file, {"descr": description, "fortran_order": False, "shape": (length,)}
    )


def _read(source, directory, subwords):
    summary = json.loads((directory / _SUMMARY_FILE).read_text())
    log_skipped(source.title, summary["skipped"])
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
