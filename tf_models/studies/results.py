"""The results of a study: the CSV file and the table."""

import csv
import dataclasses

from rich.table import Table

from tf_models.console.output import replacing
from tf_models.studies.training import RunResult

# The table shows smaller percentages as less than this; the CSV file has the bytes.
LEAST_PERCENT = 0.001
# The learning curves are only in the journal.
_LEFT_OUT = {"curve"}
COLUMNS = (
    "entry",
    "label",
    "model",
    "optimizer",
    "learning_rate",
    "is_best_rate",
    "is_at_edge",
    "seed",
    *(f.name for f in dataclasses.fields(RunResult) if f.name not in _LEFT_OUT),
)


def write_csv(finished, best_rates, path):
    """Writes the runs of a study to a CSV file, all or nothing.

    Floats are written in full: two files are equal if and only if the results are.

    Args:
        finished: `Finished` runs, one per row.
        best_rates: Dict from the names of entries to their best learning rates.
        path: A `pathlib.Path`.
    """
    with (
        replacing(path) as temporary,
        open(temporary, "w", newline="", encoding="utf-8") as file,
    ):
        writer = csv.DictWriter(file, COLUMNS)
        writer.writeheader()
        writer.writerows(_row(one, best_rates) for one in finished)


def results_table(summaries, title):
    """Makes the table of a study.

    Args:
        summaries: `Summary` objects, one per row.
        title: One line that says what the runs have in common.

    Returns:
        A `rich.table.Table`.
    """
    table = Table(title=title, title_justify="left")
    table.add_column("optimizer")
    measure, unit = summaries[0].first.measure, summaries[0].first.unit
    # The line breaks keep the console from truncating headings in a narrow terminal.
    for heading in (
        "LR",
        "state\nbytes",
        "% of\nAdam's",
        f"validation\n{measure},\n{unit}",
        f"test\n{measure}",
        "ms /\nstep",
    ):
        table.add_column(heading, justify="right")
    for summary in summaries:
        table.add_row(
            summary.entry.label,
            f"{summary.rate:g}{' *' if summary.is_at_edge else ''}",
            f"{summary.first.bytes_held:,}",
            percent_text(summary.first.percent_of_adam),
            measure_text(summary),
            measure_text(summary, "test"),
            f"{summary.ms_per_step:.1f}",
        )
    if any(summary.is_at_edge for summary in summaries):
        table.caption = "* the best learning rate is the largest or smallest tried"
    return table


def percent_text(percent):
    """A percentage of Adam's bytes as text, with three digits."""
    if 0 < percent < LEAST_PERCENT:
        return f"< {LEAST_PERCENT:g}"
    return f"{percent:.3g}"


def measure_text(summary, split="validation"):
    """The measure of an entry as text: its mean, and its range over the seeds."""
    if summary.diverged:
        if len(summary.results) == 1:
            return f"diverged at step {summary.first.steps}"
        return f"diverged in {summary.diverged} of {len(summary.results)} seeds"
    text = f"{summary.mean(split):.4g}"
    if len(summary.results) == 1:
        return text
    least, largest = summary.spread(split)
    return f"{text} ({least:.4g} to {largest:.4g})"


def _row(one, best_rates):
    measured = dataclasses.asdict(one.result)
    return {
        "entry": one.entry.name,
        "label": one.entry.label,
        "model": one.run.task.model,
        "optimizer": one.run.optimizer,
        "learning_rate": one.run.learning_rate,
        "is_best_rate": one.run.learning_rate == best_rates.get(one.entry.name),
        "is_at_edge": one.entry.is_at_edge(one.run.learning_rate),
        "seed": one.run.seed,
    } | {key: value for key, value in measured.items() if key not in _LEFT_OUT}
