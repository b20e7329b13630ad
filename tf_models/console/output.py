"""Output directories and atomic files."""

import contextlib
import os
import pathlib
import tempfile

from absl import flags


def check_directory(name, path):
    """Checks that the directory of a flag can be created or written to.

    Args:
        name: The flag's name.
        path: Its value, a string.

    Returns:
        `True`.

    Raises:
        flags.ValidationError: it cannot.
    """
    existing = pathlib.Path(path).expanduser().absolute()
    while not existing.exists():
        existing = existing.parent
    if not (path and existing.is_dir() and os.access(existing, os.W_OK | os.X_OK)):
        raise flags.ValidationError(
            f"--{name} must be a directory that can be created or written to; received "
            f"{path!r}, and {str(existing)!r} is no such directory. Name another."
        )
    return True


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
