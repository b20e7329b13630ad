"""What a comparison leaves behind: the CSV file and the table."""

import csv
import dataclasses
import math

from rich.table import Table

from tf_models.output import replacing
from tf_models.training import RunResult

COLUMNS = tuple(field.name for field in dataclasses.fields(RunResult))


def write_csv(results, path):
    """Writes the results to a CSV file, all or nothing.

    Floats are written in full: two files are equal if and only if the numbers are.

    Args:
        results: `RunResult`s, one a row.
        path: A `pathlib.Path`.
    """
    with (
        replacing(path) as temporary,
        open(temporary, "w", newline="", encoding="utf-8") as file,
    ):
        writer = csv.DictWriter(file, COLUMNS)
        writer.writeheader()
        writer.writerows(dataclasses.asdict(result) for result in results)


def results_table(results, title):
    """Makes the table a reader sees at the end.

    Args:
        results: `RunResult`s, one a row.
        title: What the runs have in common, in a line.

    Returns:
        A `rich.table.Table`.
    """
    table = Table(title=title, title_justify="left")
    table.add_column("optimizer")
    for heading in (
        "numbers held",
        "bytes",
        "× less than Adam",
        "validation perplexity",
        "ms a step",
    ):
        table.add_column(heading, justify="right")
    for result in results:
        table.add_row(
            result.label,
            f"{result.numbers_held:,}",
            f"{result.bytes_held:,}",
            times_less_text(result.times_less_than_adam),
            perplexity_text(result),
            f"{result.ms_per_step:.1f}",
        )
    return table


def times_less_text(times_less):
    """Writes how many times less memory than Adam, with two or more digits."""
    if math.isinf(times_less):
        return "∞"
    return f"{times_less:,.0f}" if times_less >= 10 else f"{times_less:.1f}"


def perplexity_text(result):
    """Writes a result's perplexity, or when it diverged."""
    if result.status == "diverged":
        return f"diverged at step {result.steps}"
    return f"{result.perplexity:.3f}"
