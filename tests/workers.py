"""What the processes that run tests side by side make once, and share."""

import contextlib
import os

import filelock


@contextlib.contextmanager
def shared_folder(tmp_path_factory, name):
    """A folder of all workers of pytest-xdist, one of which is in it at a time.

    Who finds there what it was about to make takes that.
    """
    base = tmp_path_factory.getbasetemp()
    if "PYTEST_XDIST_WORKER" in os.environ:
        base = base.parent  # That of the worker is in the one that all have.
    folder = base / name
    folder.mkdir(exist_ok=True)
    with filelock.FileLock(f"{folder}.lock"):
        yield folder
