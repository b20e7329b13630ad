"""The CSV file and the table."""

import csv
import io
import math

import pytest
from rich.console import Console

from tests.tf_models.measured import entry, finished, result, summary
from tf_models.studies.results import results_table, write_csv

ADAM = result(math.pi, numbers_held=1000, bytes_held=4000, times_less_than_adam=1.0)
HALF = result(4.0, numbers_held=100, bytes_held=207, adam_bytes=4000)
FEW = result(4.4, numbers_held=1, bytes_held=4, adam_bytes=400_000_001)
ET2 = result(4.2, ms_per_step=13.0)
SGD = result(
    math.nan,
    steps=7,
    numbers_held=0,
    bytes_held=0,
    times_less_than_adam=math.inf,
    ms_per_step=11.0,
)


def rows(path):
    with path.open(newline="", encoding="utf-8") as file:
        return list(csv.DictReader(file))


def table(*summaries, width=140):
    """The table's text, and each row's cells by its first; the headings' are ""."""
    console = Console(file=io.StringIO(), width=width)
    console.print(results_table(summaries, "10 steps"))
    text = console.file.getvalue()
    cells = (
        [cell.strip() for cell in line.split("│")[1:-1]]
        for line in text.splitlines()
        if line.startswith("│")
    )
    headings = (
        [cell.strip() for cell in line.split("┃")[1:-1]]
        for line in text.splitlines()
        if line.startswith("┃")
    )
    found = {row[0]: row[1:] for row in cells}
    found[""] = [" ".join(filter(None, words)) for words in zip(*headings)][1:]
    return text, found


def test_the_csv_file_has_results_in_full_precision(tmp_path):
    adam, et2 = entry("adam", rates=(0.1, 0.3)), entry("et2", optimizer="SM3")
    runs = [
        finished(adam, 0.1, 0, ADAM),
        finished(adam, 0.3, 0, SGD),
        finished(et2, 1 / 3, 5, ET2),
    ]
    write_csv(runs, {"adam": 0.1, "et2": 1 / 3}, tmp_path / "results.csv")
    first, second, third = rows(tmp_path / "results.csv")
    assert (first["entry"], third["entry"]) == ("adam", "et2")
    assert (first["model"], third["optimizer"]) == ("logistic", "SM3")
    assert float(first["validation"]) == math.pi
    assert float(third["learning_rate"]) == 1 / 3
    assert (third["seed"], third["numbers_held"]) == ("5", "8")
    assert float(third["times_less_than_adam"]) == 125
    assert (third["bytes_held"], third["adam_bytes"]) == ("32", "4000")
    assert third["model_bytes"] == "2000"
    assert (second["status"], second["validation"]) == ("diverged", "nan")
    best = [row["is_best_rate"] for row in (first, second, third)]
    assert best == ["True", "False", "True"]
    # Of one rate alone nothing says that another would not be better.
    at_edge = [row["is_at_edge"] for row in (first, second, third)]
    assert at_edge == ["True", "True", "False"]
    assert "curve" not in first


def test_an_interrupted_write_keeps_the_previous_csv_file(tmp_path):
    path = tmp_path / "results.csv"
    adam = entry()
    write_csv([finished(adam, 0.1, 0, ADAM)], {}, path)

    def interrupted():
        yield finished(adam, 0.1, 1, ET2)
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        write_csv(interrupted(), {}, path)
    assert [row["seed"] for row in rows(path)] == ["0"]
    assert list(tmp_path.iterdir()) == [path]


def test_the_table_shows_learning_rate_memory_measures_and_time():
    text, cells = table(
        summary("SGD", SGD, rate=1.0), summary("ET2", ET2), summary("Adam", ADAM)
    )
    assert cells["Adam"] == ["0.001", "4,000", "100", "3.142", "3.642", "12.3"]
    assert cells["ET2"] == ["0.001", "32", "0.8", "4.2", "4.7", "13.0"]
    assert cells["SGD"] == ["1", "0", "0", *["diverged at step 7"] * 2, "11.0"]
    assert "10 steps" in text
    assert cells[""] == [
        "LR",
        "state bytes",
        "% of Adam's",
        "validation perplexity, per byte",
        "test perplexity",
        "ms / step",
    ]
    assert "smallest tried" not in text


def test_the_table_shows_memory_in_bytes_and_in_percent_of_adams():
    _, cells = table(summary("ET", HALF), summary("ET∞", FEW), summary("A", ADAM))
    # 100 numbers take 207 bytes where some are in bfloat16, others integers of 8 bits.
    assert cells["ET"][1:3] == ["207", "5.17"]
    assert cells["ET∞"][1:3] == ["4", "< 0.001"]
    assert HALF.percent_of_adam == pytest.approx(5.175)


def test_the_demo_table_fits_into_80_columns():
    def of(label, **values):
        measured = result(6.543, **{"adam_bytes": 3_799_040} | values)
        return summary(label, measured, rate=0.0015)

    rows_of = [
        of("Keras Adafactor", bytes_held=2_030_440),
        of("ET", bytes_held=129_888),
        of("Adam", bytes_held=3_799_040),
    ]
    text, _ = table(*rows_of, width=80)
    assert "…" not in text
    assert "2,030,440" in text and "3,799,040" in text


def test_the_table_shows_mean_and_range_of_several_seeds():
    seeds = [result(value, ms_per_step=value) for value in (6.0, 7.0, 9.5)]
    _, cells = table(summary("ET2", *seeds), summary("SGD", SGD, *seeds))
    assert cells["ET2"][3:] == ["7.5 (6 to 9.5)", "8 (6.5 to 10)", "7.0"]
    assert cells["SGD"][3] == "diverged in 1 of 4 seeds"


def test_the_table_marks_a_best_learning_rate_at_the_edge():
    text, cells = table(summary("ET2", ET2, is_at_edge=True), summary("Adam", ADAM))
    assert cells["ET2"][0] == "0.001 *" and cells["Adam"][0] == "0.001"
    assert "* the best learning rate is the largest or smallest tried" in text
