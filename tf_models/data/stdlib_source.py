"""The Python standard library's own source text.

A few megabytes of real text that every machine with a Python already holds: language
models can be compared with no network and no download.
"""

import platform
import sys
import sysconfig

from tf_models.data.folder_files import BadFileError, skip_or_refuse
from tf_models.data.text_files import TextFiles, read_text

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


class StdlibSource(TextFiles):
    """Source files of the Python standard library.

    The text differs from one Python version to the next, so the name carries the
    implementation and the full version, as `cpython-3.11.7`.

    Left out are tests, installed packages, IDLE and turtledemo, the tables under
    `encodings` and `pydoc_data`, what the interpreter's own build wrote, and empty
    files. A file that cannot be read or is not UTF-8 is skipped, named in the log and
    kept on record, in `skipped`.

    Args:
        source_dir: Directory whose `.py` files, at any depth, are the texts; the
            running Python's by default.
        name: The version's name; the running Python's by default.
    """

    def __init__(self, source_dir=None, name=None):
        name = name or f"{sys.implementation.name}-{platform.python_version()}"
        super().__init__(
            f"stdlib_source-{name}",
            f"the source files of {name}'s standard library",
            source_dir or sysconfig.get_path("stdlib"),
        )

    @property
    def remedy(self):
        return "Use a Python whose standard library is installed as source files."

    def usable_paths(self):
        usable = []
        for file in python_files(self.root):
            path = file.relative_to(self.root).as_posix()
            try:
                # Many a package begins with an empty file.
                if read_text(file):
                    usable.append(path)
            except BadFileError as error:
                skip_or_refuse(self.skipped, self.root, path, error, on_bad_file="skip")
        return sorted(usable)


def python_files(directory):
    """Yields the `.py` files under a directory that are texts of the library.

    Args:
        directory: A `pathlib.Path`.

    Yields:
        Paths, in the sorted order of a depth-first walk.
    """
    for entry in sorted(directory.iterdir()):
        if entry.is_dir():
            if entry.name not in EXCLUDED_DIRECTORIES:
                yield from python_files(entry)
        elif entry.suffix == ".py" and not entry.name.startswith(EXCLUDED_PREFIX):
            yield entry
