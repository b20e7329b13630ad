"""The files of a folder of the user's: their list, content, digest and split.

What a data set of such files does with one that it cannot use is here too.
"""

import hashlib
import pathlib

from absl import logging

ON_BAD_FILE = ("skip", "refuse")


class BadFileError(ValueError):
    """A file, or a folder of them, cannot be used; the message says in what way."""


def check_on_bad_file(on_bad_file):
    """Raises a `ValueError` unless it is one of `ON_BAD_FILE`."""
    if on_bad_file not in ON_BAD_FILE:
        raise ValueError(
            f"on_bad_file must be one of {', '.join(ON_BAD_FILE)}; received "
            f"on_bad_file={on_bad_file!r}."
        )


def files_under(root, suffixes):
    """Finds the files of a folder, at any depth, by how their names end.

    Left out are files and folders whose names begin with a dot, and folders that are
    links: those may lead to files that are in the folder already, or back up, and
    round and round.

    Args:
        root: The folder, a `pathlib.Path` or another of its kind.
        suffixes: Tuple of how the names end, in lower case; they themselves may be in
            either.

    Returns:
        The files' sorted paths relative to `root`, with forward slashes, and a
        dictionary of the folders that cannot be listed: from the path of each,
        likewise, to a `BadFileError`.
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
    """Reads a file, a path as `tfds.core.Path` makes it.

    Raises:
        OSError: it cannot be read, or is no regular file.
    """
    # TFDS's own paths take a pipe for a file, and to read one would wait for ever.
    local = pathlib.Path(file)
    if local.exists() and not local.is_file():
        raise OSError("it is no regular file")
    return local.read_bytes()


def content_digest(root, paths, *, settings):
    """Hashes the paths and the contents of files.

    Where the folder is and when it was written make no difference.

    Args:
        root: The folder, a `pathlib.Path` or another of its kind.
        paths: Paths relative to it. One that cannot be read counts as such.
        settings: What else is to change the digest: anything with a stable `repr`.

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
    """Names the split a file is in, from its path alone.

    A file is in `test` where the SHA-256 hash of its path falls in that split's share
    of all hashes, the lowest, in `validation` where it falls in the next, else in
    `train`: the splits are the same on every machine, and a file that comes or goes
    moves no other.

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
    """Says whether a path is one in UTF-8, as an example's must be.

    Python reads the bytes of a name that are not as lone surrogates.
    """
    return not any("\ud800" <= character <= "\udfff" for character in path)


def skip_or_refuse(skipped, root, path, error, *, on_bad_file):
    """Puts a bad file on record and in the log, or refuses it.

    Args:
        skipped: The record, a dictionary from path to problem.
        root: The folder.
        path: The file's path relative to it.
        error: The `BadFileError` that says what is wrong.
        on_bad_file: `"skip"` or `"refuse"`.

    Raises:
        BadFileError: it is refused; the message names the file, fault and remedy.
    """
    # Neither a log nor a terminal need take a lone surrogate.
    path = path.encode("utf-8", "backslashreplace").decode()
    if on_bad_file == "refuse":
        raise BadFileError(
            'With on_bad_file="refuse" every file must be one that can be used; '
            f"received, in {str(root)!r}, {path}: {error}. Repair or remove it, or "
            'leave such files out with on_bad_file="skip".'
        ) from error
    logging.warning("Skipped %s: %s.", path, error)
    skipped[path] = str(error)


def log_skipped(source, skipped):
    """Names the files in the log that were left out when a data set was prepared.

    They are named in the log then; this is for every time the data set is read.

    Args:
        source: What they are of, for people.
        skipped: Their record, from path to problem; nothing is logged if empty.
    """
    if skipped:
        logging.warning(
            "%s: skipped %d of its files: %s.",
            source,
            len(skipped),
            "; ".join(f"{path}: {problem}" for path, problem in skipped.items()),
        )


def _path_bytes(path):
    # Of a name that is not UTF-8, these are the bytes it has on disk.
    return path.encode("utf-8", "surrogateescape")
