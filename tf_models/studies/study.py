"""A study: optimizers × learning rates × seeds, each with the same tuning budget.

Every entry of a study tries as many rates as every other, on the first seeds. The
rate with the least validation measure is then run on the seeds that are left. What is
finished is in a journal, so that a study which was stopped goes on where it was.
"""

import collections
import dataclasses
import json
import math
import os
import statistics
from collections.abc import Callable

from tf_models.studies.training import Run, RunResult


@dataclasses.dataclass(frozen=True)
class Entry:
    """One row of a study: an optimizer, and the task it is to be good at.

    Attributes:
        name: Unlike every other entry's of the study.
        label: What tables and plots call it.
        optimizer: The text of an optimizer, see `tf_models.studies.optimizers`.
        rates: The peak learning rates to try.
        task: A task of `tf_models.studies.tasks`.
        dtype_policy, schedule: As in `Run`; `None` for the study's.
    """

    name: str
    label: str
    optimizer: str
    rates: tuple[float, ...]
    task: object
    dtype_policy: str | None = None
    schedule: str | None = None

    def is_at_edge(self, rate):
        """Whether a rate is the largest or the smallest of several."""
        return len(self.rates) > 1 and rate in (min(self.rates), max(self.rates))


@dataclasses.dataclass(frozen=True, kw_only=True)
class Study:
    """Entries, and how their runs are made.

    Attributes:
        title: What is studied, in a line.
        entries: `Entry`s, run in this order.
        seeds: The seeds, of which there is at least one.
        searched_seeds: On how many of them, from the first, every rate is tried.
        steps, evaluations, schedule, warmup_steps, dtype_policy, jit_compile: As in
            `Run`.
        entry_of: Makes an `Entry` of a `Contender` that the study does not have: with
            as many rates as the others, and on their terms.
        memory: What the plot's memory is: `"optimizer"`, or `"model and optimizer"`
            where the models differ.
        quality_levels: Levels of a tensor index whose trace ratios are measured along
            every run, see `et_optimizer.callbacks.PreconditionerQuality`; none, as a
            rule.
        left_out: The optimizers that cannot run here, a line each with the reason.
    """

    title: str
    entries: tuple[Entry, ...]
    seeds: tuple[int, ...] = (0,)
    searched_seeds: int = 1
    steps: int
    evaluations: int = 1
    schedule: str = "cosine"
    warmup_steps: int | None = None
    dtype_policy: str = "float32"
    jit_compile: bool = True
    entry_of: Callable | None = dataclasses.field(default=None, compare=False)
    memory: str = "optimizer"
    quality_levels: tuple = ()
    left_out: tuple[str, ...] = dataclasses.field(default=(), compare=False)

    def run(self, entry, rate, seed):
        """The `Run` of an entry with a learning rate and a seed."""
        return Run(
            task=entry.task.for_seed(seed),
            optimizer=entry.optimizer,
            learning_rate=rate,
            schedule=entry.schedule or self.schedule,
            warmup_steps=self.warmup_steps,
            steps=self.steps,
            evaluations=self.evaluations,
            seed=seed,
            dtype_policy=entry.dtype_policy or self.dtype_policy,
            jit_compile=self.jit_compile,
        )

    def search(self):
        """The runs that find the best rates: `(entry, rate, seed)`s in their order."""
        return [
            (entry, rate, seed)
            for seed in self.seeds[: self.searched_seeds]
            for entry in self.entries
            for rate in entry.rates
        ]

    def repetitions(self, best_rates):
        """The runs of the seeds that are left, at the best rates.

        Args:
            best_rates: Dict from the names of entries to rates.

        Returns:
            `(entry, rate, seed)`s in their order.
        """
        return [
            (entry, best_rates[entry.name], seed)
            for seed in self.seeds[self.searched_seeds :]
            for entry in self.entries
        ]

    @property
    def runs_in_all(self):
        """How many runs the study has."""
        rates = sum(len(entry.rates) for entry in self.entries)
        searched = len(self.seeds[: self.searched_seeds])
        return searched * rates + (len(self.seeds) - searched) * len(self.entries)


@dataclasses.dataclass(frozen=True)
class Finished:
    """A run of a study with its result.

    Attributes:
        entry: The `Entry`.
        run: The `Run`.
        result: The `RunResult`.
        quality: What `PreconditionerQuality` measured on the way, if it was asked:
            a list of dicts.
    """

    entry: Entry
    run: Run
    result: RunResult
    quality: list = dataclasses.field(default_factory=list)


@dataclasses.dataclass(frozen=True)
class Summary:
    """What a study found out about one entry, at its best rate.

    Attributes:
        entry: The `Entry`.
        rate: The best rate, or the first where every run diverged.
        is_at_edge: Whether it is the largest or the smallest that was tried, so that a
            better one may lie beyond.
        results: `RunResult`s at that rate, one a seed.
    """

    entry: Entry
    rate: float
    is_at_edge: bool
    results: tuple[RunResult, ...]

    @property
    def first(self):
        """The first seed's result: sizes are the same for all."""
        return self.results[0]

    @property
    def diverged(self):
        """How many of the seeds diverged."""
        return sum(result.diverged for result in self.results)

    def mean(self, split="validation"):
        """The mean of a measure over the seeds; NaN where one of them diverged."""
        return statistics.fmean(getattr(result, split) for result in self.results)

    def spread(self, split="validation"):
        """The least and the largest of a measure over the seeds."""
        values = [getattr(result, split) for result in self.results]
        return min(values), max(values)

    @property
    def ms_per_step(self):
        """The median over the seeds of a training step's time."""
        return statistics.median(result.ms_per_step for result in self.results)


def best_rates(finished, seeds):
    """Chooses each entry's rate by the mean validation measure.

    Args:
        finished: `Finished` runs.
        seeds: The seeds to choose on.

    Returns:
        A dict from the names of entries to rates. A rate of which a run diverged is
        chosen only where there is no other.
    """
    measured = collections.defaultdict(lambda: collections.defaultdict(list))
    for one in finished:
        if one.run.seed in seeds:
            value = math.inf if one.result.diverged else one.result.validation
            measured[one.entry.name][one.run.learning_rate].append(value)
    return {
        name: min(rates, key=lambda rate: statistics.fmean(rates[rate]))
        for name, rates in measured.items()
    }


def summarize(study, finished):
    """Sums up a study, as far as it has come.

    Args:
        study: The `Study`.
        finished: Its `Finished` runs.

    Returns:
        A list of `Summary`s, for the entries that have a finished run, in their order.
    """
    rates = best_rates(finished, study.seeds[: study.searched_seeds])
    summaries = []
    for entry in study.entries:
        if entry.name not in rates:
            continue
        rate = rates[entry.name]
        results = tuple(
            one.result
            for one in finished
            if one.entry.name == entry.name and one.run.learning_rate == rate
        )
        summaries.append(Summary(entry, rate, entry.is_at_edge(rate), results))
    return summaries


class Journal:
    """The finished runs of a study, a line of JSON each.

    A line is written whole and synced before the next run begins. A line that a crash
    cut off is no run, and is run again.

    Args:
        path: A `pathlib.Path`; the file is made by the first run that is finished.
    """

    def __init__(self, path):
        self._path = path
        self._found = {}
        if path.exists():
            for line in path.read_text(encoding="utf-8").splitlines():
                self._take_in(line)

    def find(self, run, data):
        """What a run measured, if it was finished.

        Args:
            run: The `Run`.
            data: What its task's data are: other data make another run.

        Returns:
            `(result, quality)`, or `None`.
        """
        return self._found.get(_key(run.identity(), data))

    def add(self, run, result, quality):
        """Writes down a finished run."""
        line = json.dumps(
            {
                "run": run.identity(),
                "result": result_to_json(result),
                "quality": _to_json(quality),
            },
            allow_nan=False,
        )
        starts_line = self._ends_with_newline()
        with self._path.open("a", encoding="utf-8") as file:
            file.write(line + "\n" if starts_line else "\n" + line + "\n")
            file.flush()
            os.fsync(file.fileno())
        self._take_in(line)

    def _take_in(self, line):
        try:
            record = json.loads(line)
            result = result_from_json(record["result"])
            key = _key(record["run"], result.data)
            quality = _from_json(record["quality"])
        except (AttributeError, KeyError, TypeError, ValueError):
            return
        self._found[key] = result, quality

    def _ends_with_newline(self):
        if not self._path.exists() or not self._path.stat().st_size:
            return True
        with self._path.open("rb") as file:
            file.seek(-1, os.SEEK_END)
            return file.read() == b"\n"


def result_from_json(values):
    """A `RunResult` from what `json` read."""
    values = {key: _from_json(value) for key, value in values.items()}
    values["curve"] = tuple((step, value) for step, value in values["curve"])
    return RunResult(**values)


def result_to_json(result):
    """A `RunResult` as what `json` can write."""
    return _to_json(dataclasses.asdict(result))


def _key(identity, data):
    return json.dumps([identity, data], sort_keys=True)


def _to_json(value):
    """Writes NaN and infinity, which JSON does not have, as strings."""
    if isinstance(value, dict):
        return {key: _to_json(item) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [_to_json(item) for item in value]
    if isinstance(value, float) and not math.isfinite(value):
        return str(value)
    return value


def _from_json(value):
    if isinstance(value, dict):
        return {key: _from_json(item) for key, item in value.items()}
    if isinstance(value, list):
        return [_from_json(item) for item in value]
    return float(value) if value in ("nan", "inf", "-inf") else value
