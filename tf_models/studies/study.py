"""A study: optimizers × learning rates × seeds, with equal tuning budgets.

All entries of a study try the same number of learning rates, on the first seeds. The
learning rate with the lowest validation measure then runs on the other seeds. A journal
keeps the finished runs, so that an interrupted study can be resumed.
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
    """One row of a study: an optimizer and its task.

    Attributes:
        name: Unique in the study.
        label: The name in tables and plots.
        optimizer: The text of an optimizer, see `tf_models.studies.optimizers`.
        rates: The peak learning rates to try.
        task: A task of `tf_models.studies.tasks`.
        dtype_policy, schedule: As in `Run`; `None` for those of the study.
    """

    name: str
    label: str
    optimizer: str
    rates: tuple[float, ...]
    task: object
    dtype_policy: str | None = None
    schedule: str | None = None

    def is_at_edge(self, rate):
        """Whether a learning rate is the largest or smallest of several."""
        return len(self.rates) > 1 and rate in (min(self.rates), max(self.rates))


@dataclasses.dataclass(frozen=True, kw_only=True)
class Study:
    """The entries of a study, and the settings of their runs.

    Attributes:
        title: The subject of the study, in one line.
        entries: `Entry` objects, run in this order.
        seeds: The seeds, at least one.
        searched_seeds: The number of seeds, from the first, on which every learning
            rate is tried.
        steps, evaluations, schedule, warmup_steps, dtype_policy, jit_compile: As in
            `Run`.
        entry_of: Makes an `Entry` from a further `Contender`, with as many learning
            rates as the other entries and with the same settings.
        memory: The memory that the plot shows: `"optimizer"`, or
            `"model and optimizer"` if the models differ.
        quality_levels: Levels of a tensor index whose trace ratios every run measures,
            see `et_optimizer.callbacks.PreconditionerQuality`. By default none.
        left_out: Optimizers that cannot run here: one line each, with the reason.
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
        """The runs that find the best learning rates.

        Returns:
            A list of `(entry, rate, seed)` in order.
        """
        return [
            (entry, rate, seed)
            for seed in self.seeds[: self.searched_seeds]
            for entry in self.entries
            for rate in entry.rates
        ]

    def repetitions(self, best_rates):
        """The runs of the other seeds, at the best learning rates.

        Args:
            best_rates: Dict from the names of entries to learning rates.

        Returns:
            A list of `(entry, rate, seed)` in order.
        """
        return [
            (entry, best_rates[entry.name], seed)
            for seed in self.seeds[self.searched_seeds :]
            for entry in self.entries
        ]

    @property
    def total_runs(self):
        """The number of runs of the study."""
        rates = sum(len(entry.rates) for entry in self.entries)
        searched = len(self.seeds[: self.searched_seeds])
        return searched * rates + (len(self.seeds) - searched) * len(self.entries)


@dataclasses.dataclass(frozen=True)
class Finished:
    """A finished run of a study with its result.

    Attributes:
        entry: The `Entry`.
        run: The `Run`.
        result: The `RunResult`.
        quality: The measurements of `PreconditionerQuality` during the run: a list of
            pairs of a step and a dict. Empty if the study does not measure it.
    """

    entry: Entry
    run: Run
    result: RunResult
    quality: list = dataclasses.field(default_factory=list)


@dataclasses.dataclass(frozen=True)
class Summary:
    """The results of one entry at its best learning rate.

    Attributes:
        entry: The `Entry`.
        rate: The best learning rate, or the first one if every run diverged.
        is_at_edge: Whether it is the largest or smallest one tried, so that a better
            one may lie outside the search.
        results: The `RunResult` of each seed at that learning rate.
    """

    entry: Entry
    rate: float
    is_at_edge: bool
    results: tuple[RunResult, ...]

    @property
    def first(self):
        """The result of the first seed. Sizes are equal for all seeds."""
        return self.results[0]

    @property
    def diverged(self):
        """The number of seeds that diverged."""
        return sum(result.diverged for result in self.results)

    def mean(self, split="validation"):
        """The mean of a measure over the seeds; NaN if one of them diverged."""
        return statistics.fmean(getattr(result, split) for result in self.results)

    def spread(self, split="validation"):
        """The minimum and maximum of a measure over the seeds."""
        values = [getattr(result, split) for result in self.results]
        return min(values), max(values)

    @property
    def ms_per_step(self):
        """The median time of a training step over the seeds."""
        return statistics.median(result.ms_per_step for result in self.results)


def best_rates(finished, seeds):
    """Chooses the learning rate of each entry by its mean validation measure.

    Args:
        finished: `Finished` runs.
        seeds: The seeds whose runs count.

    Returns:
        A dict from the names of entries to learning rates. A learning rate at which a
        run diverged is chosen only if there is no other.
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
    """Summarizes the finished runs of a study.

    Args:
        study: The `Study`.
        finished: Its `Finished` runs.

    Returns:
        A list of a `Summary` for each entry with a finished run, in order.
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
    """The finished runs of a study, one line of JSON each.

    Each line is written and synced before the next run begins. A line that a crash
    truncated is ignored, and its run is repeated.

    Args:
        path: A `pathlib.Path`. The first finished run creates the file.
    """

    def __init__(self, path):
        self._path = path
        self._found = {}
        if path.exists():
            for line in path.read_text(encoding="utf-8").splitlines():
                self._add_line(line)

    def find(self, run, data):
        """The result of a run, if it is finished.

        Args:
            run: The `Run`.
            data: The name of its data. A run on other data is another run.

        Returns:
            `(result, quality)`, or `None`.
        """
        return self._found.get(_key(run.identity(), data))

    def add(self, run, result, quality):
        """Appends a finished run."""
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
        self._add_line(line)

    def _add_line(self, line):
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
    """Makes a `RunResult` from parsed JSON."""
    values = {key: _from_json(value) for key, value in values.items()}
    values["curve"] = tuple((step, value) for step, value in values["curve"])
    return RunResult(**values)


def result_to_json(result):
    """Makes JSON values from a `RunResult`."""
    return _to_json(dataclasses.asdict(result))


def _key(identity, data):
    return json.dumps([identity, data], sort_keys=True)


def _to_json(value):
    """Replaces NaN and infinity, which JSON lacks, by strings."""
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
