"""What the programs have in common, from their first line to their last."""

from absl import app, flags, logging
from rich.progress import (
    BarColumn,
    MofNCompleteColumn,
    Progress,
    TextColumn,
    TimeElapsedColumn,
    TimeRemainingColumn,
)

INTERRUPTED = 130  # What a shell reports for a program that Ctrl-C ended.


def begin(argv, name):
    """Begins a program: refuses what is no flag, and keeps the log to warnings.

    Args:
        argv: The command line without its flags.
        name: The program's name.

    Raises:
        app.UsageError: there is more than the program's name in it.
    """
    if len(argv) > 1:
        raise app.UsageError(
            f"{name} takes flags only; received {argv[1]!r}. Write --name=value."
        )
    if not flags.FLAGS["verbosity"].present:
        logging.set_verbosity(logging.WARNING)  # `app.run` made it INFO.


def load(task, data_dir, on_bad_file, console):
    """Loads a task, or ends the program with what is wrong with its data.

    Args:
        task: A task of `tf_models.studies.tasks`.
        data_dir, on_bad_file, console: As its `load` takes them.

    Returns:
        The `LoadedTask`.

    Raises:
        SystemExit: the data cannot be read, downloaded or used; with the reason.
    """
    try:
        return task.load(data_dir, on_bad_file, console)
    except (OSError, RuntimeError, ValueError) as error:
        raise SystemExit(f"The data cannot be used. {error}") from error


def progress_bar(console):
    """Makes a progress bar of steps with the time left, for terminals alone.

    Args:
        console: The `rich.console.Console` it is shown on.

    Returns:
        A `rich.progress.Progress`.
    """
    return Progress(
        TextColumn("{task.description}"),
        BarColumn(),
        MofNCompleteColumn(),
        TextColumn("elapsed"),
        TimeElapsedColumn(),
        TextColumn("left"),
        TimeRemainingColumn(),
        console=console,
        # Long enough to see the compilation of several runs.
        speed_estimate_period=300,
        disable=not console.is_terminal,
    )
