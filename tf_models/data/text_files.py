"""Folders of text files as the text of a study."""

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
# Files may be large: this many are in memory and encoded at once.
FILES_AT_ONCE = 16


class TextFiles(abc.ABC):
    """Text files in a directory, in three splits of whole files, see `split_of`.

    Attributes:
        name: The name of the directory for their tokens, unique for the text.
        title: A description.
        root: The `pathlib.Path` of the directory.
        skipped: A dictionary from the paths of skipped files to their faults, of the
            last call of `splits`.
    """

    def __init__(self, name, title, root):
        self.name = name
        self.title = title
        self.root = pathlib.Path(root)
        self.skipped = {}

    @abc.abstractmethod
    def usable_paths(self):
        """Returns the sorted relative paths of the usable text files.

        Unusable ones are recorded in `skipped`.
        """

    @property
    @abc.abstractmethod
    def remedy(self):
        """A sentence on what to do if a split has no file."""

    def splits(self):
        """Finds the files of each split.

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
        """Finds the files of each split, see `splits`, and reads them lazily.

        Returns:
            A dictionary from the names of the splits, and from `"vocabulary"` for the
            training data of a vocabulary, to sized iterables of lists of texts.
        """
        read = {split: _Batches(self, paths) for split, paths in self.splits().items()}
        return read | {"vocabulary": read["train"]}

    def text(self, path):
        """Reads a file that `splits` returned.

        Raises:
            BadFileError: the file has changed since.
        """
        try:
            return read_text(self.root / path)
        except BadFileError as error:
            raise BadFileError(
                f"The files of {str(self.root)!r} must not change while they are read; "
                f"received {path}, which was changed: {error}. Try again."
            ) from error


class _Batches:
    """The texts of some files, read lazily."""

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
    """Assigns a file to a split by its relative path: `split_by_path`, 90/5/5."""
    return split_by_path(path, test=TEST_SHARE, validation=VALIDATION_SHARE)


def read_text(file):
    """Reads one text file.

    Args:
        file: A `pathlib.Path`.

    Returns:
        Its text, which may be empty.

    Raises:
        BadFileError: the file cannot be read, is not UTF-8 or contains the byte 0,
            which ends a text in the byte vocabulary.
    """
    try:
        text = read_bytes(file).decode("utf-8")
    except UnicodeDecodeError as error:
        raise BadFileError(f"it is not UTF-8 ({error})") from error
    except OSError as error:
        raise BadFileError(f"it cannot be read ({error})") from error
    if "\0" in text:
        raise BadFileError("it contains the byte 0, so it is not text")
    return text


class TextFolder(TextFiles):
    """The text files of a folder.

    These are the files with one of the suffixes, at any depth. Hidden files and folders
    and links to folders are left out. A file is bad if it is empty, has only white
    space, cannot be read, is not UTF-8 or contains the byte 0.

    About 90 % of the files are in `train`, 5 % in `validation` and 5 % in `test`, by
    the hash of their paths. Each split needs a file, so that the folder should have at
    least a hundred files.

    The name contains a digest of the paths and contents of the files and of the other
    arguments. So a changed folder is a new text, and the same text has the same name on
    every machine.

    Args:
        folder: The folder's path.
        suffixes: The suffixes of its text files, in any case.
        on_bad_file: `"skip"` to log and record bad files, `"refuse"` to raise an error.

    Raises:
        ValueError: `folder` is no folder, or `on_bad_file` is unknown.
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
        # Reading the text handles folders that cannot be listed.
        paths, unlisted = files_under(root, self._suffixes)
        digest = content_digest(
            root,
            [*paths, *sorted(unlisted)],
            settings=(self._suffixes, on_bad_file),
        )
        folder_name = re.sub(r"[^A-Za-z0-9_]+", "_", root.name) or "root"
        name = f"{folder_name}-{digest}"
        # The path would make results depend on the machine.
        super().__init__(f"text_folder-{name}", f"the folder {name}", root)

    @property
    def remedy(self):
        return (
            "It gets about 1 file in 20, by the hash of its path: use a folder with a "
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
    """Refuses a file without text.

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
