"""Validators of the programs' flags."""

import functools
import math
import os
import pathlib

from absl import flags

from tf_models.data.folder_files import ON_BAD_FILE
from tf_models.studies import optimizers

# Attention is quadratic in it, and the validation split must have several windows.
LONGEST_SEQUENCE = 4096
LARGEST_SEED = 2**32 - 1
# The flags of a task's data, and of the folder that they may be in.
_SOURCES = {"text": "text_dir", "images": "image_dir"}


def whole(name, low, high=None, values=flags.FLAGS):
    """Makes a flag refuse numbers outside a range; `None` is allowed."""
    rule = f"at least {low}" if high is None else f"from {low} to {high}"

    def check(value):
        numbers = value if isinstance(value, list) else [value]
        for number in numbers:
            if number is not None and not _is_whole(number, low, high):
                raise flags.ValidationError(
                    f"--{name} must be a whole number, {rule}; received {number}. "
                    f"Leave it out for the default{_default(values[name].default)}."
                )
        return True

    flags.register_validator(name, check, flag_values=values)


def positive(name, values=flags.FLAGS):
    """Makes a flag refuse everything except positive numbers and `None`."""

    def check(value):
        listed = value if isinstance(value, list) else [value]
        for number in listed:
            if number is not None and not _is_positive(number):
                raise flags.ValidationError(
                    f"--{name} must be a positive number; received {number}. Leave it "
                    "out for the default."
                )
        return True

    flags.register_validator(name, check, flag_values=values)


def directory(name, values=flags.FLAGS):
    """Makes a flag refuse a directory that cannot be created or written to."""

    def check(path):
        return path is None or _check_directory(name, path)

    flags.register_validator(name, check, flag_values=values)


def file(name, values=flags.FLAGS):
    """Makes a flag refuse a file whose directory cannot be created or written to."""

    def check(path):
        if path is None:
            return True
        if not path or pathlib.Path(path).expanduser().is_dir():
            raise flags.ValidationError(
                f"--{name} must be a file; received {path!r}. Name another."
            )
        return _check_directory(name, str(pathlib.Path(path).parent))

    flags.register_validator(name, check, flag_values=values)


def optimizer(name, values=flags.FLAGS):
    """Makes a flag refuse texts that make no optimizer."""

    def check(text):
        try:
            optimizers.make(text, 0.1)
        except (RuntimeError, TypeError, ValueError) as error:
            raise flags.ValidationError(f"--{name}: {error}") from None
        return True

    flags.register_validator(name, check, flag_values=values)


def jit(values=flags.FLAGS):
    """Defines the flag for compilation."""
    flags.DEFINE_bool(
        "jit",
        True,
        "Compile the training step with XLA. A short run on TensorFlow is faster "
        "without it; PyTorch never compiles.",
        flag_values=values,
    )


def no_repeats(name, values=flags.FLAGS):
    """Makes a list flag refuse an empty list and repeated items."""

    def check(listed):
        if listed is None:
            return True
        if not listed:
            raise flags.ValidationError(
                f"--{name} must not be empty; received none. Leave it out for "
                "the default."
            )
        for item in listed:
            if listed.count(item) > 1:
                raise flags.ValidationError(
                    f"--{name} must have each item once; received {item!r} "
                    f"{listed.count(item)} times. Leave out the repeats."
                )
        return True

    flags.register_validator(name, check, flag_values=values)


def data_flags(values=flags.FLAGS):
    """Defines the flags for the location of data."""
    define = functools.partial(flags.DEFINE_string, flag_values=values)
    define(
        "data_dir",
        None,
        "Directory of prepared data. By default that of TensorFlow Datasets, "
        "~/tensorflow_datasets.",
    )
    define("text_dir", None, "Folder of text files to train on, for --text=folder.")
    define(
        "image_dir",
        None,
        "Folder of images to train on, with a folder for each class, for "
        "--images=folder.",
    )
    flags.DEFINE_enum(
        "on_bad_file",
        "skip",
        list(ON_BAD_FILE),
        "What to do with an empty or corrupt file of such a folder: skip it with a "
        "warning, or end the program.",
        flag_values=values,
    )
    directory("data_dir", values)


def check_folders(task):
    """Raises `ValueError` unless a task has a folder exactly if it reads one."""
    for source, folder in _SOURCES.items():
        if not hasattr(task, source):
            continue
        name, path = getattr(task, source), getattr(task, folder)
        if (name == "folder") != (path is not None):
            raise ValueError(
                f"--{folder} must be given with --{source}=folder, and only then; "
                f"received {folder}={path!r} with {source}={name!r}."
            )


def check_data_flags(tasks, values=flags.FLAGS):
    """Raises `ValueError` if `--data_dir` or `--on_bad_file` would have no effect.

    Args:
        tasks: The tasks of the program.
        values: The `absl.flags.FlagValues`.
    """
    sources = {getattr(task, name, None) for task in tasks for name in _SOURCES}
    for name, is_read, what in (
        ("data_dir", sources != {None}, "prepares or downloads data"),
        ("on_bad_file", "folder" in sources, "reads a folder of files"),
    ):
        if values[name].present and not is_read:
            raise ValueError(
                f"--{name} is only for a task that {what}; received "
                f"{values[name].value!r}. Leave it out."
            )


def _check_directory(name, path):
    """Returns `True`, or raises if a directory cannot be created or written to."""
    existing = pathlib.Path(path).expanduser().absolute()
    while not existing.exists():
        existing = existing.parent
    if not (path and existing.is_dir() and os.access(existing, os.W_OK | os.X_OK)):
        raise flags.ValidationError(
            f"--{name} must be a directory that can be created or written to; received "
            f"{path!r}, and {str(existing)!r} is no such directory. Name another."
        )
    return True


def _is_whole(number, low, high):
    try:
        number = int(number)
    except ValueError:
        return False
    return number >= low and (high is None or number <= high)


def _is_positive(number):
    try:
        return 0 < float(number) < math.inf
    except ValueError:
        return False


def _default(value):
    return "" if value is None else f", {value}"
