"""Whole text files as the texts of a study, and any folder of them."""

import abc
import pathlib
import re

from tf_models.data.folder_files import (
    BadFileError,
    check_on_bad_file,
    content_digest,
    files_under,
    is_utf8,
    read_bytes,
    skip_or_refuse,
    split_by_path,
)

SPLITS = ("train", "validation", "test")
TEST_SHARE = 0.05
VALIDATION_SHARE = 0.05
SUFFIXES = (".txt", ".md", ".rst", ".py")
# A file may be large: this many are held in memory and encoded together.
FILES_AT_ONCE = 16


class TextFiles(abc.ABC):
    """Text files under a directory, in three splits.

    The splits are made of whole files, as `split_of` says.

    Attributes:
        name: The name of their tokens' directory, so one name must mean one text.
        title: What they are, for people.
        root: The `pathlib.Path` of the directory.
        skipped: A dictionary from the path of a file that was left out to what is
            wrong with it; as of the last call of `splits`.
    """

    def __init__(self, name, title, root):
        self.name = name
        self.title = title
        self.root = pathlib.Path(root)
        self.skipped = {}

    @abc.abstractmethod
    def usable_paths(self):
        """Lists the paths of the files that are texts, relative to `root`, sorted.

        What is left out though it looks like one is put into `skipped`.
        """

    @property
    @abc.abstractmethod
    def remedy(self):
        """What to do where a split has no file: a sentence."""

    def splits(self):
        """Looks for the files of every split.

        Returns:
            A dictionary from each of `SPLITS` to a sorted list of paths, relative to
            `root`, with forward slashes.

        Raises:
            ValueError: a split has no file, or a file is refused.
        """
        self.skipped = {}
        splits = {split: [] for split in SPLITS}
        for path in self.usable_paths():
            splits[split_of(path)].append(path)
        for split, members in splits.items():
            if not members:
                raise ValueError(
                    f"The {split} split needs at least one file; received the folder "
                    f"{str(self.root)!r} with {sum(map(len, splits.values()))} usable "
                    f"files in all. {self.remedy}"
                )
        return splits

    def batches(self):
        """Looks for the files of every split, see `splits`, to read them.

        Returns:
            A dictionary from the names of the splits, and from `"vocabulary"` for the
            part that a vocabulary is trained on, to sized iterables of lists of texts.
        """
        read = {split: _Batches(self, paths) for split, paths in self.splits().items()}
        return read | {"vocabulary": read["train"]}

    def text(self, path):
        """Reads the whole text of a file that `splits` listed.

        Raises:
            BadFileError: it is no longer as it was when it was listed.
        """
        try:
            return read_text(self.root / path)
        except BadFileError as error:
            raise BadFileError(
                f"The files of {str(self.root)!r} must stay as they are while they are "
                f"read; received {path}, which was changed: {error}. Try again."
            ) from error


class _Batches:
    """The texts of some of the files, read as they are asked for."""

    def __init__(self, files, paths):
        self._files = files
        firsts = range(0, len(paths), FILES_AT_ONCE)
        self._batches = [paths[first : first + FILES_AT_ONCE] for first in firsts]

    def __iter__(self):
        for paths in self._batches:
            yield [self._files.text(path) for path in paths]

    def __len__(self):
        return len(self._batches)


def split_of(path):
    """Names the split a file is in: `split_by_path` of its relative path, 90/5/5."""
    return split_by_path(path, test=TEST_SHARE, validation=VALIDATION_SHARE)


def read_text(file):
    """Reads one text file.

    Args:
        file: A `pathlib.Path`.

    Returns:
        Its text, which may be empty.

    Raises:
        BadFileError: the file cannot be read, is not UTF-8 or holds the byte 0, which
            no text does and which ends a text in the byte vocabulary.
    """
    try:
        text = read_bytes(file).decode("utf-8")
    except UnicodeDecodeError as error:
        raise BadFileError(f"it is not UTF-8 ({error})") from error
    except OSError as error:
        raise BadFileError(f"it cannot be read ({error})") from error
    if "\0" in text:
        raise BadFileError("it holds the byte 0, so it is not text")
    return text


class TextFolder(TextFiles):
    """The text files of a folder.

    Files at any depth are read whose names end in one of the suffixes. Left out are
    files and folders whose names begin with a dot, and folders that are links. A bad
    file is one that is empty, holds white space alone, cannot be read, is not UTF-8 or
    holds the byte 0.

    About 90 % of the files are in `train`, 5 % in `validation` and 5 % in `test`, by
    the hash of their paths. Each split needs a file, which a folder of a hundred
    files nearly always has for it.

    Its name holds a digest of the files' paths and contents and of the other
    arguments: a folder that was changed is a new text and is read anew, and the same
    text has the same name on every machine.

    Args:
        folder: The folder's path.
        suffixes: How the names of its text files end; they may be in either case.
        on_bad_file: `"skip"` to put a bad file on record and in the log and go on,
            `"refuse"` to raise an error that names it.

    Raises:
        ValueError: `folder` is no folder, or `on_bad_file` is none of the two.
    """

    def __init__(self, folder, *, suffixes=SUFFIXES, on_bad_file="skip"):
        check_on_bad_file(on_bad_file)
        root = pathlib.Path(folder).expanduser().absolute()
        if not root.is_dir():
            raise ValueError(
                "The text folder must be a folder that exists; received "
                f"{str(folder)!r}. Give one with files that end in "
                f"{', '.join(suffixes)}."
            )
        self._suffixes = tuple(suffix.lower() for suffix in suffixes)
        self._on_bad_file = on_bad_file
        # A folder in it that cannot be listed is dealt with when the text is read.
        paths, unlisted = files_under(root, self._suffixes)
        digest = content_digest(
            root,
            [*paths, *sorted(unlisted)],
            settings=(self._suffixes, on_bad_file),
        )
        folder_name = re.sub(r"[^A-Za-z0-9_]+", "_", root.name) or "root"
        name = f"{folder_name}-{digest}"
        # Not its path: a result should read the same on another machine.
        super().__init__(f"text_folder-{name}", f"the folder {name}", root)

    @property
    def remedy(self):
        return (
            "The hash of its path puts about 1 file in 20 there: give a folder of a "
            f"hundred files or more that end in {', '.join(self._suffixes)}, or cut "
            "long files into parts (split --lines=1000 --additional-suffix=.txt)."
        )

    def usable_paths(self):
        paths, bad = files_under(self.root, self._suffixes)
        usable = []
        for path in paths:
            try:
                check_holds_text(self.root, path)
            except BadFileError as error:
                bad[path] = error
            else:
                usable.append(path)
        for path, error in bad.items():
            skip_or_refuse(
                self.skipped, self.root, path, error, on_bad_file=self._on_bad_file
            )
        return usable


def check_holds_text(root, path):
    """Has a file refused that adds no text.

    Args:
        root: The `pathlib.Path` of the folder.
        path: The file's path relative to it.

    Raises:
        BadFileError: the file is empty, its path is not UTF-8, or `read_text` refuses
            it.
    """
    if not is_utf8(path):
        raise BadFileError("its name is not UTF-8")
    if not read_text(root / path).strip():
        raise BadFileError("it is empty")
