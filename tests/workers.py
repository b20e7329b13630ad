"""A folder that all workers of pytest-xdist share, for results computed once."""

import contextlib
import os

import filelock


@contextlib.contextmanager
def shared_folder(tmp_path_factory, name):
    """A folder shared by all workers of pytest-xdist; only one enters it at a time.

    A worker that finds a result in the folder uses it instead of computing it again.
    """
    base = tmp_path_factory.getbasetemp()
    if "PYTEST_XDIST_WORKER" in os.environ:
        base = base.parent  # the parent of all workers' folders
    folder = base / name
    folder.mkdir(exist_ok=True)
    with filelock.FileLock(f"{folder}.lock"):
        yield folder
