"""Where programs write: directories that can be written to, files that are whole."""

import contextlib
import os
import pathlib
import tempfile

from absl import flags


def check_directory(name, path):
    """Has a flag refuse a directory that cannot be written to or made.

    Args:
        name: The flag's name.
        path: Its value, a string.

    Returns:
        `True`.

    Raises:
        flags.ValidationError: `path` is no such directory.
    """
    existing = pathlib.Path(path).expanduser().absolute()
    while not existing.exists():
        existing = existing.parent
    if not (path and existing.is_dir() and os.access(existing, os.W_OK | os.X_OK)):
        raise flags.ValidationError(
            f"--{name} must be a directory that can be written to or made; received "
            f"{path!r}, and {str(existing)!r} is not one. Name another."
        )
    return True


@contextlib.contextmanager
def replacing(path):
    """A path to write to, whose file takes the place of `path` when it is whole.

    A reader, or a program that is stopped here, never sees half a file.

    Args:
        path: A `pathlib.Path`, in whose directory the file is written first.

    Yields:
        A string.
    """
    handle, temporary = tempfile.mkstemp(dir=path.parent, prefix=".", suffix=path.name)
    os.close(handle)
    try:
        yield temporary
        # `mkstemp` lets nobody else read; a result is for everybody.
        os.chmod(temporary, 0o644)
        os.replace(temporary, path)
    except BaseException:
        os.unlink(temporary)
        raise
