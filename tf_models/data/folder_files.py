"""The files of a user's folder: their list, content, digest, split and faults."""

import hashlib
import pathlib

from absl import logging

ON_BAD_FILE = ("skip", "refuse")


class BadFileError(ValueError):
    """A file or folder cannot be used; the message says why."""


def check_on_bad_file(on_bad_file):
    """Raises a `ValueError` unless it is one of `ON_BAD_FILE`."""
    if on_bad_file not in ON_BAD_FILE:
        raise ValueError(
            f"on_bad_file must be one of {', '.join(ON_BAD_FILE)}; received "
            f"on_bad_file={on_bad_file!r}."
        )


def files_under(root, suffixes):
    """Finds the files of a folder, at any depth, by their suffixes.

    Hidden files and folders are left out, and so are links to folders, which could
    repeat files or form a cycle.

    Args:
        root: The folder, a `pathlib.Path` or a compatible path.
        suffixes: Tuple of suffixes in lower case. The case of file names is ignored.

    Returns:
        The sorted paths of the files relative to `root`, with forward slashes, and a
        dictionary from the relative paths of folders that cannot be listed to a
        `BadFileError`.
    """
    paths, unlisted = [], {}
    folders = [root]
    while folders:
        folder = folders.pop()
        try:
            entries = list(folder.iterdir())
        except OSError as error:
            path = folder.relative_to(root).as_posix()
            unlisted[path] = BadFileError(f"it cannot be read ({error})")
            continue
        for entry in entries:
            if entry.name.startswith("."):
                continue
            if entry.is_dir():
                if not pathlib.Path(entry).is_symlink():
                    folders.append(entry)
            elif entry.name.lower().endswith(suffixes):
                paths.append(entry.relative_to(root).as_posix())
    return sorted(paths), unlisted


def read_bytes(file):
    """Reads a file, given as `tfds.core.Path` or `pathlib.Path`.

    Raises:
        OSError: it cannot be read, or is no regular file.
    """
    # For the paths of TFDS a pipe is a file, and reading it would never end.
    local = pathlib.Path(file)
    if local.exists() and not local.is_file():
        raise OSError("it is no regular file")
    return local.read_bytes()


def content_digest(root, paths, *, settings):
    """Hashes the paths and the contents of files.

    The place of the folder and the times of its files do not matter.

    Args:
        root: The folder, a `pathlib.Path` or a compatible path.
        paths: Paths relative to it. Unreadable files count as unreadable.
        settings: Further content of the digest: anything with a stable `repr`.

    Returns:
        16 hexadecimal digits.
    """
    digest = hashlib.sha256(repr(settings).encode())
    for path in paths:
        digest.update(_path_bytes(path) + b"\0")
        try:
            digest.update(hashlib.sha256(read_bytes(root / path)).digest())
        except OSError:
            digest.update(b"unreadable")
    return digest.hexdigest()[:16]


def split_by_path(path, *, test, validation):
    """Assigns a file to a split by its path.

    The lowest SHA-256 hashes of paths, in the proportion of `test`, are in `test`, the
    next ones in `validation`, and the rest in `train`. So the splits are the same on
    every machine, and adding or removing files does not move others.

    Args:
        path: The file's path relative to the folder, with forward slashes.
        test: The test split's share, from 0 to 1.
        validation: The validation split's share.

    Returns:
        `"train"`, `"validation"` or `"test"`.
    """
    digest = hashlib.sha256(_path_bytes(path)).digest()
    position = int.from_bytes(digest[:8], "big")
    if position < test * 2**64:
        return "test"
    if position < (test + validation) * 2**64:
        return "validation"
    return "train"


def is_utf8(path):
    """Whether a path is valid UTF-8, as the path of an example must be.

    Python represents invalid bytes by lone surrogates.
    """
    return not any("\ud800" <= character <= "\udfff" for character in path)


def skip_or_refuse(skipped, root, path, error, *, on_bad_file):
    """Records and logs a bad file, or refuses it.

    Args:
        skipped: The record, a dictionary from path to problem.
        root: The folder.
        path: The file's path relative to it.
        error: The `BadFileError` that says what is wrong.
        on_bad_file: `"skip"` or `"refuse"`.

    Raises:
        BadFileError: the file is refused.
    """
    # Logs and terminals may not accept lone surrogates.
    path = path.encode("utf-8", "backslashreplace").decode()
    if on_bad_file == "refuse":
        raise BadFileError(
            'With on_bad_file="refuse" every file must be usable; '
            f"received, in {str(root)!r}, {path}: {error}. Repair or remove it, or "
            'leave such files out with on_bad_file="skip".'
        ) from error
    logging.warning("Skipped %s: %s.", path, error)
    skipped[path] = str(error)


def log_skipped(source, skipped):
    """Logs the files that were skipped when a data set was prepared.

    Preparing logs them too; this is for every later reading.

    Args:
        source: The name of the data set.
        skipped: A dictionary from path to problem.
    """
    if skipped:
        logging.warning(
            "%s: skipped %d of its files: %s.",
            source,
            len(skipped),
            "; ".join(f"{path}: {problem}" for path, problem in skipped.items()),
        )


def _path_bytes(path):
    # The bytes on disk, also for names that are not UTF-8.
    return path.encode("utf-8", "surrogateescape")
