"""Trains one small language model with several optimizers and compares them.

A byte-level Transformer learns the Python standard library's own source text, which
needs no network. Every run begins with the same weights and sees the same batches;
only the optimizer and its learning rate differ. At the end: a table, results.csv and
a plot of validation perplexity against the memory the optimizer holds.

    python -m tf_models.compare
    python -m tf_models.compare --optimizers=adam,et2 --steps=300 --output_dir=out

Ctrl-C ends the comparison and keeps the runs that are finished.
"""

import contextlib
import dataclasses
import math
import os
import pathlib
import sys

import tensorflow_datasets as tfds
from absl import app, flags, logging
from rich.console import Console
from rich.progress import (
    BarColumn,
    MofNCompleteColumn,
    Progress,
    TextColumn,
    TimeElapsedColumn,
    TimeRemainingColumn,
)

from tf_models.contenders import CONTENDERS, DEMO
from tf_models.data.stdlib_source import StdlibSource
from tf_models.data.windows import token_stream
from tf_models.figure import perplexity_against_memory
from tf_models.interrupt import DeferredInterrupt
from tf_models.output import check_directory
from tf_models.results import perplexity_text, results_table, write_csv
from tf_models.training import Setting, train_and_measure

CSV_NAME = "results.csv"
PLOT_NAME = "perplexity_against_memory.png"
INTERRUPTED = 130  # What a shell reports for a program that Ctrl-C ended.
# Attention is quadratic in it, and the validation slice must hold several windows.
LONGEST_SEQUENCE = 4096
LARGEST_SEED = 2**32 - 1

FLAGS = flags.FLAGS
flags.DEFINE_string(
    "data_dir",
    None,
    "Directory that keeps the prepared text. By default TensorFlow Datasets' own, "
    "~/tensorflow_datasets.",
)
flags.DEFINE_string(
    "output_dir",
    "results/demo",
    f"Directory for {CSV_NAME} and {PLOT_NAME}; made if it does not exist.",
)
flags.DEFINE_integer("steps", 1200, "Training steps a run, at least 1.")
flags.DEFINE_integer("batch_size", 16, "Windows a training batch, at least 1.")
flags.DEFINE_integer(
    "sequence_length", 96, f"Bytes a window predicts, from 1 to {LONGEST_SEQUENCE}."
)
flags.DEFINE_integer(
    "seed", 0, "Selects the initial weights and the order of the batches, 0 or more."
)
flags.DEFINE_float(
    "learning_rate",
    None,
    "Peak learning rate of every run, above 0, to search for better ones. By default "
    "each optimizer has its own.",
)
flags.DEFINE_list(
    "optimizers",
    list(DEMO),
    f"Which optimizers to run and in which order: some of {', '.join(CONTENDERS)}.",
)


def _register_range(name, low, high=None):
    """Has a flag refuse a number outside a range, before anything is run."""
    rule = f"at least {low}" if high is None else f"from {low} to {high}"

    def check(value):
        if value is None or value < low or (high is not None and value > high):
            raise flags.ValidationError(
                f"--{name} must be a whole number, {rule}; received {value}. Leave it "
                f"out for the default, {FLAGS[name].default}."
            )
        return True

    flags.register_validator(name, check)


_register_range("steps", 1)
_register_range("batch_size", 1)
_register_range("sequence_length", 1, LONGEST_SEQUENCE)
_register_range("seed", 0, LARGEST_SEED)


@flags.validator("optimizers")
def _check_optimizers(names):
    choices = f"Choose from {','.join(CONTENDERS)}, separated by commas."
    if not names:
        raise flags.ValidationError(
            f"--optimizers must name at least one optimizer; received none. {choices}"
        )
    for name in names:
        if name not in CONTENDERS:
            raise flags.ValidationError(
                "--optimizers must name optimizers this program knows; received "
                f"{name!r}. {choices}"
            )
        if names.count(name) > 1:
            raise flags.ValidationError(
                "--optimizers must name each optimizer once; received "
                f"{name!r} {names.count(name)} times. Leave out the repeats."
            )
    return True


@flags.validator("learning_rate")
def _check_learning_rate(rate):
    if rate is not None and not 0 < rate < math.inf:
        raise flags.ValidationError(
            f"--learning_rate must be a positive number; received {rate}. Leave it out "
            "for each optimizer's own."
        )
    return True


@flags.validator("data_dir")
def _check_data_dir(path):
    return path is None or check_directory("data_dir", path)


@flags.validator("output_dir")
def _check_output_dir(path):
    return check_directory("output_dir", path)


def main(argv):
    """Runs the comparison the flags describe.

    Args:
        argv: The command line without its flags: the program's name alone.

    Returns:
        The exit status: 0, or 130 where Ctrl-C ended it early.

    Raises:
        app.UsageError: the command line names something that is no flag.
    """
    if len(argv) > 1:
        raise app.UsageError(
            f"compare takes flags only; received {argv[1]!r}. Write --name=value."
        )
    if not FLAGS["verbosity"].present:
        logging.set_verbosity(logging.WARNING)  # `app.run` made it INFO.
    console = Console()
    output_dir = pathlib.Path(FLAGS.output_dir).expanduser()
    output_dir.mkdir(parents=True, exist_ok=True)
    try:
        train_tokens, validation_tokens = load_tokens(FLAGS.data_dir, console)
    except KeyboardInterrupt:
        console.print("Interrupted while the text was prepared; no run was started.")
        return INTERRUPTED
    return compare(
        chosen(FLAGS.optimizers, FLAGS.learning_rate),
        Setting(FLAGS.steps, FLAGS.batch_size, FLAGS.sequence_length, FLAGS.seed),
        train_tokens,
        validation_tokens,
        output_dir,
        console,
    )


def chosen(names, learning_rate):
    """The contenders of these names, at this rate or, for `None`, each at its own."""
    contenders = [CONTENDERS[name] for name in names]
    if learning_rate is None:
        return contenders
    return [dataclasses.replace(c, learning_rate=learning_rate) for c in contenders]


def load_tokens(data_dir, console):
    """Prepares the standard library's text, once, and reads it.

    Args:
        data_dir: Directory of prepared data sets; `None` for TFDS's default.
        console: A `rich.console.Console` that says what is read.

    Returns:
        The token streams of the training and of the validation split.
    """
    builder = StdlibSource(data_dir=data_dir and os.path.expanduser(data_dir))
    tfds.disable_progress_bar()
    with console.status(f"Reading the source text of {builder.builder_config.name}"):
        # TFDS announces a "download", of unknown size, although there is none.
        with contextlib.redirect_stdout(None):
            builder.download_and_prepare()
        train_tokens, validation_tokens = (
            token_stream(builder.as_dataset(split=split))
            for split in ("train", "validation")
        )
    console.print(
        f"Text: the standard library of {builder.builder_config.name}, "
        f"{len(train_tokens):,} bytes to train on and "
        f"{len(validation_tokens):,} held out."
    )
    return train_tokens, validation_tokens


def compare(contenders, setting, train_tokens, validation_tokens, output_dir, console):
    """Runs every contender, then writes and shows what they measured.

    The CSV file is written anew after each run, so it always holds every finished
    run whatever happens to the next.

    Args:
        contenders: `Contender`s, run in this order.
        setting: The `Setting` they share.
        train_tokens: Token stream to train on.
        validation_tokens: Token stream to validate on.
        output_dir: A `pathlib.Path` of an existing directory.
        console: A `rich.console.Console` for progress, table and messages.

    Returns:
        The exit status: 0, or 130 where Ctrl-C ended it early.
    """
    results = []
    status = 0
    try:
        with (
            DeferredInterrupt() as interrupt,
            _Display(contenders, setting, console) as display,
        ):

            def on_step():
                display.step()
                interrupt.check()

            for contender in contenders:
                display.start(contender)
                result = train_and_measure(
                    contender, setting, train_tokens, validation_tokens, on_step
                )
                results.append(result)
                write_csv(results, output_dir / CSV_NAME)
                display.finish(result)
    except KeyboardInterrupt:
        status = INTERRUPTED
        console.print(_what_was_kept(results, contenders))
    if results:
        _report(results, setting, output_dir, console)
    return status


def _what_was_kept(results, contenders):
    if not results:
        return "Interrupted before any run was finished; nothing was written."
    kept = ", ".join(result.label for result in results)
    return (
        f"Interrupted: kept the {len(results)} of {len(contenders)} runs that were "
        f"finished ({kept}); the run under way is lost."
    )


def _report(results, setting, output_dir, console):
    title = (
        f"{setting.steps} steps of {setting.batch_size} × {setting.sequence_length} "
        f"bytes, seed {setting.seed}"
    )
    write_csv(results, output_dir / CSV_NAME)
    perplexity_against_memory(results, title).savefig(output_dir / PLOT_NAME)
    console.print(results_table(results, title))
    console.print(f"Written: {output_dir / CSV_NAME}, {output_dir / PLOT_NAME}")


class _Display:
    """Shows the runs and their steps as they go, with the time left."""

    def __init__(self, contenders, setting, console):
        self._steps = setting.steps
        self._runs = len(contenders)
        self._finished = 0
        self._progress = Progress(
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
        self._all_runs = self._progress.add_task(
            f"{self._runs} runs", total=self._runs * self._steps
        )
        self._this_run = self._progress.add_task("", total=self._steps)

    def __enter__(self):
        self._progress.start()
        return self

    def __exit__(self, *exception):
        self._progress.stop()

    def start(self, contender):
        self._progress.reset(
            self._this_run,
            description=f"{contender.label} ({self._finished + 1} of {self._runs})",
        )

    def step(self):
        self._progress.advance(self._all_runs)
        self._progress.advance(self._this_run)

    def finish(self, result):
        self._finished += 1
        # A run that diverged made fewer steps than were planned for it.
        self._progress.update(self._all_runs, completed=self._finished * self._steps)
        self._progress.console.print(
            f"{result.label}: validation perplexity {perplexity_text(result)}, "
            f"{result.numbers_held:,} numbers held, {result.ms_per_step:.1f} ms a step"
        )


if __name__ == "__main__":
    sys.exit(app.run(main))
