"""The Python standard library's own source text.

A few megabytes of real text on every machine with Python, for language models without a
network.
"""

import platform
import sys
import sysconfig

from tf_models.data.folder_files import BadFileError, skip_or_refuse
from tf_models.data.text_files import TextFiles, read_text

# Tests are repetitive, installed packages differ between machines, IDLE and turtledemo
# are applications, and the last two are data tables in Python syntax.
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
# Written by the build of the interpreter, with paths of its machine.
EXCLUDED_PREFIX = "_sysconfigdata"


class StdlibSource(TextFiles):
    """Source files of the Python standard library.

    The text depends on the Python version, so the name contains the implementation and
    the full version, such as `cpython-3.11.7`.

    Left out are tests, installed packages, IDLE and turtledemo, the tables in
    `encodings` and `pydoc_data`, files that the build of the interpreter wrote, and
    empty files. Files that cannot be read or are not UTF-8 are skipped, logged and
    recorded in `skipped`.

    Args:
        source_dir: Directory whose `.py` files, at any depth, are the texts. By default
            that of the running Python.
        name: The name of the version. By default that of the running Python.
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
                # Many packages have empty files.
                if read_text(file):
                    usable.append(path)
            except BadFileError as error:
                skip_or_refuse(self.skipped, self.root, path, error, on_bad_file="skip")
        return sorted(usable)


def python_files(directory):
    """Yields the `.py` files in a directory that belong to the text.

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
