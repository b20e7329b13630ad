"""Whole text files as TFDS data sets, and a builder for any folder of them."""

import abc
import dataclasses
import pathlib
import re

import tensorflow_datasets as tfds

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


class TextFiles(tfds.core.GeneratorBasedBuilder, abc.ABC, skip_registration=True):
    """What data sets of whole text files share: their examples and their splits.

    An example is `{"path": ..., "text": ...}`: the file's path relative to the
    config's `source_dir`, with forward slashes, and its whole text in UTF-8. The
    splits are made of whole files, as `split_of` says. What was skipped stays on
    record: `info.metadata["skipped"]` is a dictionary from path to what is wrong.

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
            metadata=tfds.core.MetadataDict(skipped={}),
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
            try:
                text = read_text(root / path)
            except BadFileError as error:
                raise BadFileError(
                    f"The files of {str(root)!r} must stay as they are while they are "
                    f"prepared; received {path}, which was changed: {error}. Try again."
                ) from error
            yield path, {"path": path, "text": text}


def split_of(path):
    """Names the split a file is in: `split_by_path` of its relative path, 90/5/5."""
    return split_by_path(path, test=TEST_SHARE, validation=VALIDATION_SHARE)


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
        text = read_bytes(file).decode("utf-8")
    except UnicodeDecodeError as error:
        raise BadFileError(f"it is not UTF-8 ({error})") from error
    except OSError as error:
        raise BadFileError(f"it cannot be read ({error})") from error
    if "\0" in text:
        raise BadFileError("it holds the byte 0, so it is not text")
    return text


@dataclasses.dataclass(kw_only=True)
class TextFolderConfig(tfds.core.BuilderConfig):
    """Which folder a `TextFolder` reads; `text_folder_config` makes one.

    Attributes:
        name: Also the data set's directory name, so one name must mean one text.
        source_dir: The folder.
        suffixes: How the names of its text files end, in lower case; they themselves
            may be in either.
        on_bad_file: `"skip"` to put a bad file on record and in the log and go on,
            `"refuse"` to raise an error that names it.
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
    check_on_bad_file(on_bad_file)
    root = tfds.core.Path(pathlib.Path(folder).expanduser().absolute())
    if not root.is_dir():
        raise ValueError(
            f"The text folder must be a folder that exists; received {str(folder)!r}. "
            f"Give one with files that end in {', '.join(suffixes)}."
        )
    suffixes = tuple(suffix.lower() for suffix in suffixes)
    # A folder in it that cannot be listed is dealt with when the text is prepared.
    paths, unlisted = files_under(root, suffixes)
    digest = content_digest(
        root, [*paths, *sorted(unlisted)], settings=(suffixes, on_bad_file)
    )
    # TFDS reads a slash or a colon in a name as its own.
    folder_name = re.sub(r"[^A-Za-z0-9_]+", "_", root.name) or "root"
    return TextFolderConfig(
        name=f"{folder_name}-{digest}",
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

    VERSION = tfds.core.Version("1.1.0")
    RELEASE_NOTES = {
        "1.1.0": "The files that were skipped are on record.",
        "1.0.0": "First version.",
    }
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
        paths, bad = files_under(root, self._suffixes)
        usable = []
        for path in paths:
            try:
                check_holds_text(root, path)
            except BadFileError as error:
                bad[path] = error
            else:
                usable.append(path)
        for path, error in bad.items():
            skip_or_refuse(
                self, root, path, error, on_bad_file=self.builder_config.on_bad_file
            )
        return usable


def check_holds_text(root, path):
    """Has a file refused that adds no text.

    Args:
        root: The folder, a path, as `tfds.core.Path` makes it.
        path: The file's path relative to it.

    Raises:
        BadFileError: the file is empty, its path is not UTF-8, which an example's
            must be, or `read_text` refuses it.
    """
    if not is_utf8(path):
        raise BadFileError("its name is not UTF-8")
    if not read_text(root / path).strip():
        raise BadFileError("it is empty")
