"""Whole text files as TFDS data sets, and a builder for any folder of them."""

import abc
import dataclasses
import hashlib
import pathlib
import re

import tensorflow_datasets as tfds
from absl import logging

SPLITS = ("train", "validation", "test")
TEST_SHARE = 0.05
VALIDATION_SHARE = 0.05
SUFFIXES = (".txt", ".md", ".rst", ".py")
ON_BAD_FILE = ("skip", "refuse")


class BadFileError(ValueError):
    """A file that is no text: its message says which and why."""


class TextFiles(tfds.core.GeneratorBasedBuilder, abc.ABC, skip_registration=True):
    """What data sets of whole text files share: their examples and their splits.

    An example is `{"path": ..., "text": ...}`: the file's path relative to the
    config's `source_dir`, with forward slashes, and its whole text in UTF-8. The
    splits are made of whole files, as `split_of` says.

    Attributes:
        DESCRIPTION: What the texts are, in a sentence.
        HOMEPAGE: Where they are from, if they have one place.
        LICENSE: Where their license is, if they have one license.
    """

    DESCRIPTION: str
    HOMEPAGE = None
    LICENSE = None

    @abc.abstractmethod
    def _paths(self, root):
        """Lists the paths of the files that are examples, relative to `root`."""

    @property
    @abc.abstractmethod
    def _remedy(self):
        """What to do where a split has no file: a sentence."""

    def _info(self):
        return self.dataset_info_from_configs(
            description=self.DESCRIPTION,
            features=tfds.features.FeaturesDict(
                {"path": tfds.features.Text(), "text": tfds.features.Text()}
            ),
            homepage=self.HOMEPAGE,
            license=self.LICENSE,
        )

    def _split_generators(self, dl_manager):
        del dl_manager  # The text is already on this machine.
        root = tfds.core.Path(self.builder_config.source_dir)
        splits = {split: [] for split in SPLITS}
        for path in self._paths(root):
            splits[split_of(path)].append(path)
        for split, members in splits.items():
            if not members:
                raise ValueError(
                    f"The {split} split needs at least one file; received "
                    f"source_dir={str(root)!r} with {sum(map(len, splits.values()))} "
                    f"usable files in all. {self._remedy}"
                )
        return {
            split: self._generate_examples(root, members)
            for split, members in splits.items()
        }

    def _generate_examples(self, root, paths):
        for path in paths:
            yield path, {"path": path, "text": read_text(root / path)}


def split_of(path):
    """Names the split a file is in, from its path alone.

    A file is in `test` where the SHA-256 hash of its path falls in the lowest
    twentieth, in `validation` where it falls in the next, else in `train`: the splits
    are the same on every machine, and a file that comes or goes moves no other.

    Args:
        path: The file's path relative to the source directory, with forward slashes.

    Returns:
        `"train"`, `"validation"` or `"test"`.
    """
    digest = hashlib.sha256(path.encode()).digest()
    position = int.from_bytes(digest[:8], "big")
    if position < TEST_SHARE * 2**64:
        return "test"
    if position < (TEST_SHARE + VALIDATION_SHARE) * 2**64:
        return "validation"
    return "train"


def read_text(file):
    """Reads one text file.

    Args:
        file: A path, as `tfds.core.Path` makes it.

    Returns:
        Its text, which may be empty.

    Raises:
        BadFileError: the file cannot be read, is not UTF-8 or holds the byte 0, which
            no text does and which ends a text in the byte vocabulary.
    """
    try:
        text = _read_bytes(file).decode("utf-8")
    except UnicodeDecodeError as error:
        raise BadFileError(f"{file}: it is not UTF-8 ({error})") from error
    except OSError as error:
        raise BadFileError(f"{file}: it cannot be read ({error})") from error
    if "\0" in text:
        raise BadFileError(f"{file}: it holds the byte 0, so it is not text")
    return text


def log_skipped(error):
    """Names a skipped file, and what is wrong with it, in the log."""
    logging.warning("Skipped %s.", error)


@dataclasses.dataclass(kw_only=True)
class TextFolderConfig(tfds.core.BuilderConfig):
    """Which folder a `TextFolder` reads; `text_folder_config` makes one.

    Attributes:
        name: Also the data set's directory name, so one name must mean one text.
        source_dir: The folder.
        suffixes: How the names of its text files end, in lower case; they themselves
            may be in either.
        on_bad_file: `"skip"` to name a bad file in the log and go on, `"refuse"` to
            raise an error that names it.
    """

    source_dir: str
    suffixes: tuple = SUFFIXES
    on_bad_file: str = "skip"


def text_folder_config(folder, *, suffixes=SUFFIXES, on_bad_file="skip"):
    """Makes the config of a folder as it is now.

    Its name holds a digest of the files' paths and contents and of the other
    arguments: a folder that was changed is a new data set and is prepared anew, and
    the same text has the same name on every machine.

    Args:
        folder: The folder's path.
        suffixes: How the names of its text files end.
        on_bad_file: `"skip"` or `"refuse"`.

    Returns:
        A `TextFolderConfig`.

    Raises:
        ValueError: `folder` is no folder, or `on_bad_file` is none of the two.
    """
    if on_bad_file not in ON_BAD_FILE:
        raise ValueError(
            f"on_bad_file must be one of {', '.join(ON_BAD_FILE)}; received "
            f"on_bad_file={on_bad_file!r}."
        )
    root = tfds.core.Path(pathlib.Path(folder).expanduser().absolute())
    if not root.is_dir():
        raise ValueError(
            f"The text folder must be a folder that exists; received {str(folder)!r}. "
            f"Give one with files that end in {', '.join(suffixes)}."
        )
    suffixes = tuple(suffix.lower() for suffix in suffixes)
    digest = hashlib.sha256(repr((suffixes, on_bad_file)).encode())
    # A folder in it that cannot be listed is dealt with when the text is prepared.
    for path in files_under(root, suffixes, on_error=lambda error: None):
        digest.update(path.encode("utf-8", "surrogateescape") + b"\0")
        digest.update(_content_digest(root / path))
    # TFDS reads a slash or a colon in a name as its own.
    folder_name = re.sub(r"[^A-Za-z0-9_]+", "_", root.name) or "root"
    return TextFolderConfig(
        name=f"{folder_name}-{digest.hexdigest()[:16]}",
        description="The text files of a folder.",
        source_dir=str(root),
        suffixes=suffixes,
        on_bad_file=on_bad_file,
    )


class TextFolder(TextFiles):
    """The text files of a folder, one example a file.

    An example is `{"path": ..., "text": ...}`: the file's path relative to the folder,
    with forward slashes, and its whole text. Files at any depth are read whose names
    end in one of the config's `suffixes`. Left out are files and folders whose names
    begin with a dot, and folders that are links. A bad file is one that is empty,
    holds white space alone, cannot be read, is not UTF-8 or holds the byte 0; what is
    done with one is the config's `on_bad_file`.

    About 90 % of the files are in `train`, 5 % in `validation` and 5 % in `test`, by
    the hash of their paths. Each split needs a file, which a folder of a hundred
    files nearly always has for it.

    Example:

    ```python
    builder = TextFolder(config=text_folder_config("~/texts", on_bad_file="refuse"))
    builder.download_and_prepare()  # Copies local files; downloads nothing.
    train = builder.as_dataset(split="train")
    ```
    """

    VERSION = tfds.core.Version("1.0.0")
    RELEASE_NOTES = {"1.0.0": "First version."}
    DESCRIPTION = "The text files of a folder, by file."

    @property
    def _remedy(self):
        return (
            "The hash of its path puts about 1 file in 20 there: give a folder of a "
            f"hundred files or more that end in {', '.join(self._suffixes)}, or cut "
            "long files into parts (split --lines=1000 --additional-suffix=.txt)."
        )

    @property
    def _suffixes(self):
        return self.builder_config.suffixes

    def _paths(self, root):
        usable = []
        for path in files_under(root, self._suffixes, on_error=self._bad_folder):
            try:
                check_holds_text(root / path)
            except BadFileError as error:
                self._bad_file(error)
            else:
                usable.append(path)
        return usable

    def _bad_folder(self, error):
        self._bad_file(BadFileError(f"{error.filename}: it cannot be read ({error})"))

    def _bad_file(self, error):
        if self.builder_config.on_bad_file == "skip":
            log_skipped(error)
            return
        raise BadFileError(
            f'With on_bad_file="refuse" every file must be text in UTF-8; received '
            f'{error}. Repair or remove it, or choose on_bad_file="skip".'
        ) from error


def files_under(root, suffixes, *, on_error):
    """Finds the text files of a folder.

    Args:
        root: The folder, a path, as `tfds.core.Path` makes it.
        suffixes: Tuple of how their names end, in lower case.
        on_error: Called with the `OSError` of a folder that cannot be listed.

    Returns:
        Sorted paths relative to `root`, with forward slashes.
    """
    files = _walk(root, suffixes, on_error)
    return sorted(file.relative_to(root).as_posix() for file in files)


def _walk(directory, suffixes, on_error):
    try:
        entries = list(directory.iterdir())
    except OSError as error:
        on_error(error)
        return
    for entry in entries:
        if entry.name.startswith("."):
            continue
        if entry.is_dir():
            # A link may lead back up, and round and round.
            if not pathlib.Path(entry).is_symlink():
                yield from _walk(entry, suffixes, on_error)
        elif entry.name.lower().endswith(suffixes):
            yield entry


def check_holds_text(file):
    """Has a file refused that adds no text.

    Args:
        file: A path, as `tfds.core.Path` makes it.

    Raises:
        BadFileError: the file is empty, its path is not UTF-8, which an example's
            must be, or `read_text` refuses it.
    """
    if _has_surrogates(str(file)):
        raise BadFileError(f"{str(file)!r}: its name is not UTF-8")
    if not read_text(file).strip():
        raise BadFileError(f"{file}: it is empty")


def _has_surrogates(name):
    return any("\ud800" <= character <= "\udfff" for character in name)


def _read_bytes(file):
    # TFDS's own paths take a pipe for a file, and to read one would wait for ever.
    local = pathlib.Path(file)
    if local.exists() and not local.is_file():
        raise OSError("it is no regular file")
    return local.read_bytes()


def _content_digest(file):
    try:
        return hashlib.sha256(_read_bytes(file)).digest()
    except OSError:
        return b"unreadable"
