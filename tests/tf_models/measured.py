"""Results of runs that nobody made, for the tests of what is done with results."""

import math

from tf_models.studies.study import Entry, Finished, Study, Summary
from tf_models.studies.tasks import Convex
from tf_models.studies.training import RunResult

TASK = Convex()


def result(validation=4.0, **values):
    """A `RunResult`; one whose measure is NaN diverged."""
    diverged = math.isnan(validation)
    defaults = {
        "status": "diverged" if diverged else "finished",
        "steps": 10,
        "data": "some text",
        "measure": "perplexity",
        "unit": "per byte",
        "validation": validation,
        "test": validation + 0.5,
        "curve": ((5, 2 * validation), (10, validation)),
        "model_numbers": 500,
        "model_bytes": 2000,
        "numbers_held": 8,
        "bytes_held": 32,
        "adam_bytes": 4000,
        "times_less_than_adam": 125.0,
        "ms_per_step": 12.345,
        "examples_per_second": 1e6 / 3,
    }
    return RunResult(**defaults | values)


def entry(name="adam", *, label=None, optimizer="Adam", rates=(0.1,), task=TASK):
    """An `Entry`."""
    return Entry(name, label or name, optimizer, rates, task)


def study(*entries, **values):
    """A `Study` of 10 steps."""
    return Study(**{"title": "A study", "entries": entries, "steps": 10} | values)


def finished(one, rate, seed, measured):
    """A `Finished` run of an entry."""
    run = study(one).run(one, rate, seed)
    return Finished(one, run, measured)


def summary(label, *results, rate=1e-3, is_at_edge=False):
    """A `Summary`."""
    return Summary(entry(label), rate, is_at_edge, results)
