"""Studies: equal budgets, the choice of a rate, and the journal of what is finished."""

import json
import math

import pytest

from tests.tf_models.measured import entry, finished, result, study
from tf_models.studies.study import Journal, best_rates, result_to_json, summarize

ADAM = entry("adam", rates=(0.1, 0.2, 0.4))
SM3 = entry("sm3", optimizer="SM3", rates=(1.0, 2.0, 4.0))
RUN = study(ADAM).run(ADAM, 0.1, 0)
DATA = "some text"


def measured(one, values, seed=0):
    """Finished runs, a rate and its measure each."""
    return [
        finished(one, rate, seed, result(value))
        for rate, value in zip(one.rates, values, strict=True)
    ]


def described(planned):
    return [(one.name, rate, seed) for one, rate, seed in planned]


# Budgets.


def test_every_entry_tries_its_learning_rates_on_the_same_seeds():
    searched = study(ADAM, SM3, seeds=(5, 6, 7), searched_seeds=2).search()
    tried = {
        one.name: [(rate, seed) for other, rate, seed in searched if other is one]
        for one in (ADAM, SM3)
    }
    assert tried["adam"] == [(r, s) for s in (5, 6) for r in ADAM.rates]
    assert tried["sm3"] == [(r, s) for s in (5, 6) for r in SM3.rates]


def test_the_other_seeds_run_only_the_best_learning_rates():
    several = study(ADAM, SM3, seeds=(5, 6, 7))
    assert {seed for _, _, seed in several.search()} == {5}
    repeated = several.repetitions({"adam": 0.2, "sm3": 4.0})
    assert described(repeated) == [
        ("adam", 0.2, 6),
        ("sm3", 4.0, 6),
        ("adam", 0.2, 7),
        ("sm3", 4.0, 7),
    ]


@pytest.mark.parametrize("searched", [1, 2, 3, 4])
def test_total_runs_is_the_number_of_planned_runs(searched):
    several = study(ADAM, SM3, seeds=(5, 6, 7), searched_seeds=searched)
    rates = {"adam": 0.1, "sm3": 1.0}
    planned = several.search() + several.repetitions(rates)
    assert several.total_runs == len(planned)
    assert len({(one.name, rate, seed) for one, rate, seed in planned}) == len(planned)


def test_runs_differ_only_in_optimizer_learning_rate_and_seed():
    several = study(ADAM, SM3, steps=7, evaluations=3, schedule="constant")
    first = several.run(ADAM, 0.1, 3).identity()
    second = several.run(SM3, 2.0, 3).identity()
    other = {key for key in first if first[key] != second[key]}
    assert other == {"optimizer", "learning_rate"}
    assert (first["steps"], first["evaluations"]) == (7, 3)
    # The convex data are drawn by the seed, as there are no batches to draw.
    assert first["task"]["data_seed"] == 3


# The choice.


def test_the_best_learning_rate_has_the_lowest_mean_over_the_searched_seeds():
    runs = measured(ADAM, (5.0, 4.0, 6.0)) + measured(ADAM, (5.0, 9.0, 6.0), seed=1)
    assert best_rates(runs, seeds=(0,)) == {"adam": 0.2}
    assert best_rates(runs, seeds=(0, 1)) == {"adam": 0.1}


def test_the_test_split_does_not_affect_the_choice():
    runs = [
        finished(ADAM, 0.1, 0, result(5.0, test=1.0)),
        finished(ADAM, 0.2, 0, result(4.0, test=9.0)),
    ]
    assert best_rates(runs, seeds=(0,)) == {"adam": 0.2}


def test_a_diverged_learning_rate_is_chosen_only_if_all_diverged():
    runs = measured(ADAM, (math.nan, 9.0, math.nan))
    assert best_rates(runs, seeds=(0,)) == {"adam": 0.2}
    # One seed that diverged is enough.
    runs += measured(ADAM, (3.0, math.nan, 4.0), seed=1)
    runs += measured(SM3, (9.0, 8.0, 7.0)) + measured(SM3, (9.0, 8.0, 7.0), seed=1)
    assert best_rates(runs, seeds=(0, 1)) == {"adam": 0.1, "sm3": 4.0}
    assert best_rates(runs, seeds=(1,))["adam"] == 0.1
    nowhere = measured(ADAM, (math.nan, math.nan, math.nan))
    assert best_rates(nowhere, seeds=(0,)) == {"adam": 0.1}


def test_a_summary_has_all_seeds_of_the_best_learning_rate():
    several = study(ADAM, SM3, seeds=(0, 1))
    runs = measured(ADAM, (5.0, 4.0, 6.0)) + measured(SM3, (3.0, 2.0, 1.0))
    runs.append(finished(ADAM, 0.2, 1, result(8.0)))
    adam, sm3 = summarize(several, runs)
    assert (adam.rate, adam.is_at_edge) == (0.2, False)
    assert (sm3.rate, sm3.is_at_edge) == (4.0, True)
    assert (adam.mean(), adam.spread()) == (6.0, (4.0, 8.0))
    assert (adam.mean("test"), adam.spread("test")) == (6.5, (4.5, 8.5))
    assert adam.diverged == 0 and sm3.first.validation == 1.0


def test_a_single_learning_rate_is_not_at_an_edge():
    single = entry(rates=(0.1,))
    (found,) = summarize(study(single, SM3), measured(single, (4.0,)))
    assert (found.entry, found.is_at_edge) == (single, False)


def test_a_summary_with_a_diverged_seed_has_no_mean():
    single = entry(rates=(0.1,))
    runs = measured(single, (4.0,)) + measured(single, (math.nan,), seed=1)
    (found,) = summarize(study(single, seeds=(0, 1)), runs)
    assert found.diverged == 1
    assert math.isnan(found.mean())


# The journal.


def test_the_journal_restores_results_exactly(tmp_path):
    strange = result(
        math.nan,
        curve=((3, 1 / 3), (7, math.inf), (9, math.nan)),
        times_less_than_adam=math.inf,
        peak_device_bytes=5,
    )
    quality = [[1, {"level_1/trace_ratio": 1.1, "level_2/trace_ratio": math.inf}]]
    Journal(tmp_path / "runs.jsonl").add(RUN, strange, quality)
    found, measured_quality = Journal(tmp_path / "runs.jsonl").find(RUN, DATA)
    # NaN is unlike itself, its text is not.
    assert repr(found) == repr(strange)
    assert measured_quality == quality
    (line,) = (tmp_path / "runs.jsonl").read_text().splitlines()
    json.loads(line, parse_constant=pytest.fail)  # What JSON has no word for.


def test_nan_and_infinity_become_strings_in_json():
    written = json.dumps(result_to_json(result(math.nan)), allow_nan=False)
    assert '"validation": "nan"' in written


def test_the_journal_finds_a_run_as_soon_as_it_is_added(tmp_path):
    journal = Journal(tmp_path / "runs.jsonl")
    assert journal.find(RUN, DATA) is None
    assert not (tmp_path / "runs.jsonl").exists()
    journal.add(RUN, result(4.0), [])
    assert journal.find(RUN, DATA) == (result(4.0), [])


def test_a_run_with_any_other_setting_or_data_is_not_found(tmp_path):
    journal = Journal(tmp_path / "runs.jsonl")
    journal.add(RUN, result(4.0), [])
    assert journal.find(RUN, "another text") is None
    others = (
        study(ADAM, steps=11).run(ADAM, 0.1, 0),
        study(ADAM, evaluations=2).run(ADAM, 0.1, 0),
        study(ADAM, dtype_policy="mixed_bfloat16").run(ADAM, 0.1, 0),
        study(ADAM).run(ADAM, 0.1, 1),
        study(ADAM).run(ADAM, 0.2, 0),
        study(SM3).run(SM3, 0.1, 0),
    )
    for other in others:
        assert journal.find(other, DATA) is None
    # What it is called is not what it is.
    renamed = entry("adam_again", label="Adam", rates=ADAM.rates)
    assert journal.find(study(renamed).run(renamed, 0.1, 0), DATA)


@pytest.mark.parametrize("left", [1, 40, -2])
def test_a_truncated_line_is_ignored(tmp_path, left):
    path = tmp_path / "runs.jsonl"
    runs = [study(ADAM).run(ADAM, 0.1, seed) for seed in range(3)]
    journal = Journal(path)
    for run in runs[:2]:
        journal.add(run, result(4.0), [])
    first, second = path.read_text().splitlines()
    path.write_text(first + "\n" + second[:left])

    again = Journal(path)
    assert [again.find(run, DATA) is not None for run in runs] == [True, False, False]
    again.add(runs[2], result(5.0), [])
    again.add(runs[1], result(6.0), [])
    found = [Journal(path).find(run, DATA)[0].validation for run in runs]
    assert found == [4.0, 6.0, 5.0]


def test_a_line_without_a_newline_is_a_run(tmp_path):
    path = tmp_path / "runs.jsonl"
    Journal(path).add(RUN, result(4.0), [])
    path.write_text(path.read_text().rstrip("\n"))
    journal = Journal(path)
    assert journal.find(RUN, DATA)
    journal.add(study(ADAM).run(ADAM, 0.1, 1), result(5.0), [])
    assert len(path.read_text().splitlines()) == 2


@pytest.mark.parametrize(
    "line", ["", "[]", "5", "{}", '{"run": {}, "result": "x", "quality": []}', "\\x00"]
)
def test_an_invalid_line_is_ignored(tmp_path, line):
    path = tmp_path / "runs.jsonl"
    Journal(path).add(RUN, result(4.0), [])
    path.write_text(line + "\n" + path.read_text())
    assert Journal(path).find(RUN, DATA) == (result(4.0), [])
