"""Atomic output files."""

import contextlib
import os
import tempfile


@contextlib.contextmanager
def replacing(path):
    """Writes a file atomically: the complete file replaces `path`.

    An interrupted program never leaves half a file.

    Args:
        path: A `pathlib.Path`.

    Yields:
        The path of a temporary file in the same directory, a string.
    """
    handle, temporary = tempfile.mkstemp(dir=path.parent, prefix=".", suffix=path.name)
    os.close(handle)
    try:
        yield temporary
        # `mkstemp` creates files that only the user can read.
        os.chmod(temporary, 0o644)
        os.replace(temporary, path)
    except BaseException:
        os.unlink(temporary)
        raise
