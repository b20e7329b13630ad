"""The Python standard library's own source text, as a TFDS data set.

A few megabytes of real text that every machine with a Python already holds: language
models can be compared with no network and no download.
"""

import dataclasses
import hashlib
import platform
import sys
import sysconfig

import tensorflow_datasets as tfds
from absl import logging

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

VALIDATION_SHARE = 0.1


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


class StdlibSource(tfds.core.GeneratorBasedBuilder):
    """Source files of the Python standard library, one example a file.

    An example is `{"path": ..., "text": ...}`: the file's path relative to the
    standard library's directory, with forward slashes, and its whole text in UTF-8.
    Left out are tests, installed packages, IDLE and turtledemo, the tables under
    `encodings` and `pydoc_data`, what the interpreter's own build wrote, and empty
    files. A file that cannot be read or is not UTF-8 is skipped and named in the log.

    The splits are made of whole files. A file is in `validation` if the SHA-256 hash
    of its path falls in the lowest tenth, else in `train`: the split is the same on
    every machine, and a file that comes or goes with a Python version moves no other.

    Example:

    ```python
    builder = StdlibSource()
    builder.download_and_prepare()  # Copies local files; downloads nothing.
    train = builder.as_dataset(split="train")
    ```
    """

    VERSION = tfds.core.Version("1.0.0")
    RELEASE_NOTES = {"1.0.0": "First version."}
    BUILDER_CONFIGS = [running_python_config()]

    def _info(self):
        return self.dataset_info_from_configs(
            description="Source text of the Python standard library, by file.",
            features=tfds.features.FeaturesDict(
                {"path": tfds.features.Text(), "text": tfds.features.Text()}
            ),
            homepage="https://docs.python.org/3/library/",
            license="https://docs.python.org/3/license.html",
        )

    def _split_generators(self, dl_manager):
        del dl_manager  # The text is already on this machine.
        root = tfds.core.Path(self.builder_config.source_dir)
        paths = [file.relative_to(root).as_posix() for file in python_files(root)]
        splits = {"train": [], "validation": []}
        for path in paths:
            splits[split_of(path)].append(path)
        for split, members in splits.items():
            if not members:
                raise ValueError(
                    f"The {split} split needs at least one .py file; received "
                    f"source_dir={str(root)!r} with {len(paths)} in all. Use a "
                    "Python whose standard library is installed as source files."
                )
        return {
            split: self._generate_examples(root, members)
            for split, members in splits.items()
        }

    def _generate_examples(self, root, paths):
        for path in paths:
            text = read_source(root / path)
            if text:
                yield path, {"path": path, "text": text}


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


def split_of(path):
    """Names the split a file is in, from its path alone.

    Args:
        path: The file's path relative to the source directory, with forward slashes.

    Returns:
        `"validation"` for about a tenth of all paths, `"train"` for the rest.
    """
    digest = hashlib.sha256(path.encode()).digest()
    is_validation = int.from_bytes(digest[:8], "big") < VALIDATION_SHARE * 2**64
    return "validation" if is_validation else "train"


def read_source(file):
    """Reads one source file.

    Args:
        file: A path, as `tfds.core.Path` makes it.

    Returns:
        Its text, or `None`, with a warning in the log, where it has none to give:
        the file cannot be read or is not UTF-8.
    """
    try:
        return file.read_bytes().decode("utf-8")
    except UnicodeDecodeError as error:
        logging.warning("Skipped %s: it is not UTF-8 (%s).", file, error)
    except OSError as error:
        logging.warning("Skipped %s: it cannot be read (%s).", file, error)
    return None
