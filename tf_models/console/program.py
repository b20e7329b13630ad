"""Start, data loading and progress bar of the programs."""

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
    """Starts a program: refuses arguments that are not flags, and logs only warnings.

    Args:
        argv: The command line without its flags.
        name: The program's name.

    Raises:
        app.UsageError: it has more than the program's name.
    """
    if len(argv) > 1:
        raise app.UsageError(
            f"{name} takes flags only; received {argv[1]!r}. Write --name=value."
        )
    if not flags.FLAGS["verbosity"].present:
        logging.set_verbosity(logging.WARNING)  # `app.run` made it INFO.


def load(task, data_dir, on_bad_file, console):
    """Loads a task, or ends the program with the reason why it cannot.

    Args:
        task: A task of `tf_models.studies.tasks`.
        data_dir, on_bad_file, console: Arguments of its `load`.

    Returns:
        The `LoadedTask`.

    Raises:
        SystemExit: the data cannot be read, downloaded or used.
    """
    try:
        return task.load(data_dir, on_bad_file, console)
    except (OSError, RuntimeError, ValueError) as error:
        raise SystemExit(f"The data cannot be used. {error}") from error


def progress_bar(console):
    """Makes a progress bar with the remaining time, for terminals only.

    Args:
        console: The `rich.console.Console` that shows it.

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
        # Long enough to cover the compilation of several runs.
        speed_estimate_period=300,
        disable=not console.is_terminal,
    )
