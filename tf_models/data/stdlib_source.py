"""The Python standard library's own source text, as a TFDS data set.

A few megabytes of real text that every machine with a Python already holds: language
models can be compared with no network and no download.
"""

import dataclasses
import platform
import sys
import sysconfig

import tensorflow_datasets as tfds

from tf_models.data.folder_files import BadFileError, skip_or_refuse
from tf_models.data.text_folder import TextFiles, read_text

# Tests repeat themselves, installed packages differ between machines, IDLE and
# turtledemo are applications, and the last two are tables of data in Python syntax.
EXCLUDED_DIRECTORIES = frozenset(
    {
        "test",
        "tests",
        "idle_test",
        "site-packages",
        "dist-packages",
        "__pycache__",
        "idlelib",
        "turtledemo",
        "encodings",
        "pydoc_data",
    }
)
# Written by the build of one interpreter: it names that machine's own paths.
EXCLUDED_PREFIX = "_sysconfigdata"


@dataclasses.dataclass(kw_only=True)
class StdlibSourceConfig(tfds.core.BuilderConfig):
    """Which directory of Python source a `StdlibSource` reads.

    Attributes:
        name: Also the data set's directory name, so one name must mean one text.
        source_dir: Directory whose `.py` files, at any depth, are the examples.
    """

    source_dir: str


def running_python_config():
    """Returns the config of the Python that runs this program.

    The text differs from one Python version to the next, so the name carries the
    implementation and the full version (`cpython-3.11.7`) and each is prepared once.
    """
    return StdlibSourceConfig(
        name=f"{sys.implementation.name}-{platform.python_version()}",
        description=f"The standard library of Python {platform.python_version()}.",
        source_dir=sysconfig.get_path("stdlib"),
    )


class StdlibSource(TextFiles):
    """Source files of the Python standard library, one example a file.

    An example is `{"path": ..., "text": ...}`: the file's path relative to the
    standard library's directory, with forward slashes, and its whole text in UTF-8.
    Left out are tests, installed packages, IDLE and turtledemo, the tables under
    `encodings` and `pydoc_data`, what the interpreter's own build wrote, and empty
    files. A file that cannot be read or is not UTF-8 is skipped, named in the log and
    kept on record, in `info.metadata["skipped"]`.

    The splits are made of whole files, by the hash of their paths: about 90 % of them
    are in `train`, 5 % in `validation` and 5 % in `test`.

    Example:

    ```python
    builder = StdlibSource()
    builder.download_and_prepare()  # Copies local files; downloads nothing.
    train = builder.as_dataset(split="train")
    ```
    """

    VERSION = tfds.core.Version("2.1.0")
    RELEASE_NOTES = {
        "2.1.0": "The files that were skipped are on record.",
        "2.0.0": "Half of the validation split is now the test split.",
        "1.0.0": "First version.",
    }
    BUILDER_CONFIGS = [running_python_config()]
    DESCRIPTION = "Source text of the Python standard library, by file."
    HOMEPAGE = "https://docs.python.org/3/library/"
    LICENSE = "https://docs.python.org/3/license.html"

    @property
    def _remedy(self):
        return "Use a Python whose standard library is installed as source files."

    def _paths(self, root):
        usable = []
        for file in python_files(root):
            path = file.relative_to(root).as_posix()
            try:
                # Many a package begins with an empty file.
                if read_text(file):
                    usable.append(path)
            except BadFileError as error:
                skip_or_refuse(self, root, path, error, on_bad_file="skip")
        return usable


def python_files(directory):
    """Yields the `.py` files under a directory that belong to the data set.

    Args:
        directory: A path, as `tfds.core.Path` makes it.

    Yields:
        Paths, in the sorted order of a depth-first walk.
    """
    for entry in sorted(directory.iterdir()):
        if entry.is_dir():
            if entry.name not in EXCLUDED_DIRECTORIES:
                yield from python_files(entry)
        elif entry.suffix == ".py" and not entry.name.startswith(EXCLUDED_PREFIX):
            yield entry
