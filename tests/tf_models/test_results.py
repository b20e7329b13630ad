"""The CSV file and the table."""

import csv
import io
import math

import pytest
from rich.console import Console

from tf_models.results import results_table, write_csv
from tf_models.training import RunResult

ADAM = RunResult("adam", "Adam", 3e-3, "finished", 10, 1000, 4000, 1.0, math.pi, 12.345)
ET2 = RunResult("et2", "ET2", 3e-3, "finished", 10, 8, 32, 125.0, 4.2, 13.0)
SGD = RunResult("sgd", "SGD", 1e9, "diverged", 7, 0, 0, math.inf, math.nan, 11.0)


def rows(path):
    with path.open(newline="", encoding="utf-8") as file:
        return list(csv.DictReader(file))


def test_the_file_holds_every_number_in_full(tmp_path):
    write_csv([ADAM, ET2], tmp_path / "results.csv")
    adam, et2 = rows(tmp_path / "results.csv")
    assert adam["optimizer"] == "adam"
    assert float(adam["perplexity"]) == math.pi
    assert int(et2["numbers_held"]) == 8
    assert float(et2["times_less_than_adam"]) == 125


def test_a_write_that_is_stopped_leaves_the_earlier_file_and_nothing_else(tmp_path):
    path = tmp_path / "results.csv"
    write_csv([ADAM], path)

    def interrupted():
        yield ET2
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        write_csv(interrupted(), path)
    assert [row["optimizer"] for row in rows(path)] == ["adam"]
    assert list(tmp_path.iterdir()) == [path]


def test_the_table_shows_memory_perplexity_and_time_of_each_run():
    console = Console(file=io.StringIO(), width=100)
    console.print(results_table([SGD, ET2, ADAM], "10 steps"))
    text = console.file.getvalue()
    lines = {
        line.split("│")[1].strip(): [cell.strip() for cell in line.split("│")[2:-1]]
        for line in text.splitlines()
        if line.startswith("│")
    }
    assert lines["Adam"] == ["1,000", "4,000", "1.0", "3.142", "12.3"]
    assert lines["ET2"] == ["8", "32", "125", "4.200", "13.0"]
    assert lines["SGD"] == ["0", "0", "∞", "diverged at step 7", "11.0"]
    assert "10 steps" in text
