"""Compares optimizers: a study of optimizers × learning rates × seeds.

All runs of a seed that train the same model start from the same weights and see the
same batches; only the optimizer and its learning rate differ. All optimizers try the
same number of learning rates, on the first seed; the best one runs on the other seeds.
The study ends with a table, results.csv, and plots of the results against optimizer
memory, of the learning curves, and of the sensitivity to the learning rate.

    python -m tf_models.compare                     # the demo: eight optimizers
    python -m tf_models.compare --preset=language --seeds=0,1,2
    python -m tf_models.compare --preset=language --size=paper --data_dir=/data
    python -m tf_models.compare --optimizers=adam,et2 --steps=300 --output_dir=out

Ctrl-C or a crash loses only the current run: the same command resumes the study.
Finished runs are in runs.jsonl in the output directory.
"""

import dataclasses
import pathlib
import sys

from absl import app, flags
from rich.console import Console

from et_optimizer.callbacks import PreconditionerQuality
from tf_models.console import flag_rules, program
from tf_models.console.interrupt import DeferredInterrupt
from tf_models.console.output import replacing
from tf_models.data import IMAGES, TEXTS
from tf_models.studies import presets
from tf_models.studies.contenders import CONTENDERS
from tf_models.studies.figures import (
    learning_curves,
    measure_against_memory,
    sensitivity,
    trace_ratios,
)
from tf_models.studies.learning_rates import SCHEDULES
from tf_models.studies.results import results_table, write_csv
from tf_models.studies.study import Finished, Journal, best_rates, summarize
from tf_models.studies.training import DTYPE_POLICIES, train

JOURNAL_NAME = "runs.jsonl"
CSV_NAME = "results.csv"
MEMORY_PLOT_NAME = "memory.png"
CURVES_PLOT_NAME = "learning_curves.png"
RATES_PLOT_NAME = "learning_rates.png"
QUALITY_PLOT_NAME = "trace_ratios_{}.png"
# Measurements of the trace ratio in a run.
QUALITY_MEASUREMENTS = 50
# No run has the seed of the batches that it is measured on.
QUALITY_SEED = flag_rules.LARGEST_SEED + 1
# Flags that override values of a preset: of the study, and of its tasks.
STUDY_FLAGS = (
    "steps",
    "evaluations",
    "schedule",
    "warmup_steps",
    "searched_seeds",
    "dtype_policy",
)
TASK_FLAGS = (
    "text",
    "text_dir",
    "subwords",
    "sequence_length",
    "images",
    "image_dir",
    "batch_size",
)

FLAGS = flags.FLAGS


def define_flags(values=FLAGS):
    """Defines the program's flags.

    Not on import, because other programs have flags with the same names.

    Args:
        values: An `absl.flags.FlagValues`. Defaults to the program's.
    """
    flags.DEFINE_enum(
        "preset",
        "demo",
        list(presets.PRESETS),
        "Which study: "
        + "; ".join(
            f"{name}: {_first_line(preset)}" for name, preset in presets.PRESETS.items()
        )
        + ".",
        flag_values=values,
    )
    flags.DEFINE_enum(
        "size",
        "laptop",
        list(presets.SIZES),
        "Laptop size, for two cores and no network, or the size of the paper.",
        flag_values=values,
    )
    flags.DEFINE_string(
        "output_dir",
        None,
        "Directory of the results; created if it does not exist. By default "
        "results/<preset>.",
        flag_values=values,
    )
    flags.DEFINE_list(
        "seeds",
        ["0"],
        "Seeds of the initial weights and of the order of the batches.",
        flag_values=values,
    )
    flags.DEFINE_integer(
        "searched_seeds",
        None,
        "Number of seeds on which every learning rate is tried, 1 by default. The "
        "other seeds run the best one.",
        flag_values=values,
    )
    flags.DEFINE_list(
        "optimizers",
        None,
        "Optimizers to run, in this order: names of the preset's entries, or of "
        f"{', '.join(CONTENDERS)}. By default the preset's.",
        flag_values=values,
    )
    flags.DEFINE_list(
        "learning_rates",
        None,
        "Peak learning rates that every optimizer tries. By default those of the "
        "preset.",
        flag_values=values,
    )
    flag_rules.jit(values)
    flags.DEFINE_bool(
        "restart",
        False,
        f"Delete the runs in {JOURNAL_NAME} and repeat them.",
        flag_values=values,
    )
    _define_replacements(values)
    flag_rules.data_flags(values)
    flags.adopt_module_key_flags(flag_rules, values)  # For --help.
    for name in (
        "steps",
        "evaluations",
        "warmup_steps",
        "batch_size",
        "searched_seeds",
    ):
        flag_rules.whole(name, 1, values=values)
    flag_rules.whole("subwords", 257, 2**20, values)
    flag_rules.whole("sequence_length", 1, flag_rules.LONGEST_SEQUENCE, values)
    flag_rules.whole("seeds", 0, flag_rules.LARGEST_SEED, values)
    flag_rules.positive("learning_rates", values)
    flag_rules.directory("output_dir", values)
    for name in ("seeds", "optimizers", "learning_rates"):
        flag_rules.no_repeats(name, values)


def _define_replacements(values):
    """Defines flags that override single values of a preset."""
    for name, text in (
        ("steps", "Training steps per run, at least 1."),
        ("evaluations", "Evaluations per run, at equal intervals."),
        ("warmup_steps", "Steps until the peak of the learning rate."),
        ("subwords", "Size of the subword vocabulary, from 257."),
        ("sequence_length", "Tokens that a window predicts, from 1 to 4096."),
        ("batch_size", "Windows or images per training batch, at least 1."),
    ):
        flags.DEFINE_integer(name, None, text, flag_values=values)
    for name, choices, text in (
        ("schedule", list(SCHEDULES), "The learning rate schedule."),
        ("text", list(TEXTS), "The text of a language study."),
        ("images", list(IMAGES), "The images of an image study."),
        (
            "dtype_policy",
            list(DTYPE_POLICIES),
            "Keras's dtype policy of every entry.",
        ),
    ):
        flags.DEFINE_enum(name, None, choices, text, flag_values=values)


def _first_line(function):
    return function.__doc__.partition("\n")[0].rstrip(".")


def main(argv):
    """Runs the study that the flags describe.

    Args:
        argv: The command line without its flags: only the program's name.

    Returns:
        The exit status: 0, or 130 after Ctrl-C.

    Raises:
        app.UsageError: an argument is not a flag, or flags are incompatible.
    """
    program.begin(argv, "compare")
    try:
        study = chosen_study(FLAGS)
    except ValueError as error:
        raise app.UsageError(str(error)) from None
    console = Console()
    if FLAGS.optimizers is None:
        for line in study.left_out:
            console.print(f"Not run: {line}.")
    output_dir = pathlib.Path(FLAGS.output_dir or f"results/{FLAGS.preset}")
    output_dir = output_dir.expanduser()
    output_dir.mkdir(parents=True, exist_ok=True)
    if FLAGS.restart:
        (output_dir / JOURNAL_NAME).unlink(missing_ok=True)
    loader = TaskLoader(FLAGS.data_dir, FLAGS.on_bad_file, console)
    return compare(study, loader, output_dir, console)


def chosen_study(values):
    """Makes the study that flags describe.

    Args:
        values: The `absl.flags.FlagValues`.

    Returns:
        A `Study`.

    Raises:
        ValueError: flags are incompatible, or an optimizer is unknown.
    """
    study = presets.PRESETS[values.preset](values.size)
    entries = _chosen_entries(study, values.optimizers)
    if values.learning_rates:
        rates = tuple(dict.fromkeys(float(rate) for rate in values.learning_rates))
        entries = [dataclasses.replace(entry, rates=rates) for entry in entries]
    given = {name: values[name].value for name in TASK_FLAGS}
    given = {name: value for name, value in given.items() if value is not None}
    entries = tuple(_with_task_flags(entry, given, values.preset) for entry in entries)
    flag_rules.check_data_flags([entry.task for entry in entries], values)
    if values.dtype_policy is not None and any(e.dtype_policy for e in entries):
        raise ValueError(
            f"--dtype_policy={values.dtype_policy} cannot be used with --preset="
            f"{values.preset}, whose entries have their own policies. Leave it out."
        )
    own = {name: values[name].value for name in STUDY_FLAGS}
    own = {name: value for name, value in own.items() if value is not None}
    if "steps" in own:
        # The warm-up of the preset is for its own number of steps.
        own.setdefault("warmup_steps", None)
    return dataclasses.replace(
        study,
        entries=entries,
        seeds=tuple(dict.fromkeys(int(seed) for seed in values.seeds)),
        jit_compile=study.jit_compile and values.jit,
        **own,
    )


def _chosen_entries(study, names):
    if names is None:
        return study.entries
    own = {entry.name: entry for entry in study.entries}
    entries = []
    for name in names:
        if name in own:
            entries.append(own[name])
        elif name in CONTENDERS:
            why_not = CONTENDERS[name].why_unavailable()
            if why_not:
                raise ValueError(f"--optimizers: {name} cannot run here: {why_not}.")
            entries.append(study.entry_of(CONTENDERS[name]))
        else:
            raise ValueError(
                "--optimizers must name known optimizers; received "
                f"{name!r}. Choose from {','.join([*own, *CONTENDERS])}, separated by "
                "commas."
            )
    return entries


def _with_task_flags(entry, given, preset):
    fields = {field.name for field in dataclasses.fields(entry.task)}
    for name in given:
        if name not in fields:
            raise ValueError(
                f"--{name} cannot be used with --preset={preset}, whose task is "
                f"{type(entry.task).__name__}. Leave it out."
            )
    task = dataclasses.replace(entry.task, **given)
    flag_rules.check_folders(task)
    return dataclasses.replace(entry, task=task)


class TaskLoader:
    """Loads each task once.

    Args:
        data_dir: Directory of prepared data; `None` for the default of TFDS.
        on_bad_file: `"skip"` or `"refuse"`.
        console: A `rich.console.Console` for messages.
    """

    def __init__(self, data_dir, on_bad_file, console):
        self._data_dir = data_dir
        self._on_bad_file = on_bad_file
        self._console = console
        self._loaded = {}

    def __call__(self, task):
        """Returns the `LoadedTask` of a task."""
        if task not in self._loaded:
            loaded = program.load(
                task, self._data_dir, self._on_bad_file, self._console
            )
            if loaded.data not in {other.data for other in self._loaded.values()}:
                self._console.print(f"Data: {loaded.data}.")
            self._loaded[task] = loaded
        return self._loaded[task]


def compare(study, load, output_dir, console):
    """Runs the unfinished runs of a study and reports all results.

    The journal and the CSV file are written after each run, so that both always hold
    every finished run.

    Args:
        study: The `Study`.
        load: Function from a task to its `LoadedTask`.
        output_dir: A `pathlib.Path` of an existing directory.
        console: A `rich.console.Console` for progress, table and messages.

    Returns:
        The exit status: 0, or 130 after Ctrl-C.
    """
    progress = _Progress(study, load, output_dir, console)
    status = 0
    try:
        with DeferredInterrupt() as interrupt, progress:
            searched = study.search()
            progress.run(searched, interrupt)
            rates = best_rates(progress.finished, study.seeds[: study.searched_seeds])
            progress.run(study.repetitions(rates), interrupt)
    except KeyboardInterrupt:
        status = program.INTERRUPTED
        console.print(_interrupted_message(progress.finished, study))
    if progress.finished:
        report(study, progress.finished, output_dir, console)
    return status


def report(study, finished, output_dir, console):
    """Writes the CSV file and the plots of a study, and prints its table."""
    summaries = summarize(study, finished)
    title = f"{study.title}: {study.steps} steps, seeds {_listed(study.seeds)}"
    if len(finished) < study.total_runs:
        title += f" ({len(finished)} of {study.total_runs} runs)"
    files = {
        MEMORY_PLOT_NAME: measure_against_memory(summaries, title, study.memory),
    }
    if any(len(one.result.curve) > 1 for one in finished):
        files[CURVES_PLOT_NAME] = learning_curves(summaries, title)
    if any(len(entry.rates) > 1 for entry in study.entries):
        searched = study.seeds[: study.searched_seeds]
        tried = [one for one in finished if one.run.seed in searched]
        files[RATES_PLOT_NAME] = sensitivity(tried, title)
    rates = {summary.entry.name: summary.rate for summary in summaries}
    for one in finished:
        is_best = one.run.learning_rate == rates[one.entry.name]
        if one.quality and is_best and one.run.seed == study.seeds[0]:
            files[QUALITY_PLOT_NAME.format(one.entry.name)] = trace_ratios(
                one.quality, study.quality_levels, f"{study.title}, {one.entry.label}"
            )
    for name, figure in files.items():
        with replacing(output_dir / name) as temporary:
            figure.savefig(temporary)
    _write_csv(study, finished, output_dir)
    console.print(results_table(summaries, title))
    written = [CSV_NAME, *files]
    console.print(f"Written to {output_dir}: {', '.join(written)}")


def _write_csv(study, finished, output_dir):
    rates = best_rates(finished, study.seeds[: study.searched_seeds])
    write_csv(finished, rates, output_dir / CSV_NAME)


def _listed(seeds):
    return ", ".join(map(str, seeds))


def _interrupted_message(finished, study):
    if not finished:
        return "Interrupted before the first run was finished."
    return (
        f"Interrupted: kept the {len(finished)} of {study.total_runs} runs that were "
        "finished; the current run is lost. The same command resumes the study."
    )


class _Progress:
    """Runs a study, and shows its progress with the remaining time."""

    def __init__(self, study, load, output_dir, console):
        self.finished = []
        self._study = study
        self._load = load
        self._output_dir = output_dir
        self._console = console
        self._journal = Journal(output_dir / JOURNAL_NAME)
        runs = study.total_runs
        self._bar = program.progress_bar(console)
        self._trained = 0
        self._all_runs = self._bar.add_task(f"{runs} runs", total=runs * study.steps)
        self._this_run = self._bar.add_task("", total=study.steps)

    def __enter__(self):
        self._bar.start()
        return self

    def __exit__(self, *exception):
        self._bar.stop()

    def run(self, planned, interrupt):
        """Runs those of the planned runs that are not in the journal."""
        for entry, rate, seed in planned:
            interrupt.check()
            run = self._study.run(entry, rate, seed)
            task = self._load(run.task)
            found = self._journal.find(run, task.data)
            is_found = found and self._is_whole(*found)
            if not is_found:
                found = self._train(entry, run, task, interrupt)
            self.finished.append(Finished(entry, run, *found))
            self._show(self.finished[-1], is_found)

    def _is_whole(self, result, quality):
        return quality or result.diverged or not self._study.quality_levels

    def _train(self, entry, run, task, interrupt):
        self._bar.reset(
            self._this_run,
            description=f"{entry.label}, learning rate {run.learning_rate:g}",
        )

        def on_step():
            self._bar.advance(self._all_runs)
            self._bar.advance(self._this_run)
            interrupt.check()

        watching = _quality_callbacks(self._study, run, task)
        result = train(run, task, on_step=on_step, callbacks=watching)
        quality = watching[0].history if watching else []
        self._trained += 1
        self._journal.add(run, result, quality)
        return result, quality

    def _show(self, one, is_found):
        # Diverged runs take fewer steps than planned, and runs from the journal none.
        runs, steps = self._study.total_runs, self._study.steps
        found = len(self.finished) - self._trained
        self._bar.update(
            self._all_runs,
            completed=self._trained * steps,
            total=(runs - found) * steps,
        )
        if not is_found:
            _write_csv(self._study, self.finished, self._output_dir)
        result = one.result
        measured = (
            f"diverged at step {result.steps}"
            if result.diverged
            else f"{result.validation:.4g} {result.measure}"
        )
        self._bar.console.print(
            f"{len(self.finished)}/{runs} {one.entry.label}, learning rate "
            f"{one.run.learning_rate:g}, seed {one.run.seed}: {measured}, "
            f"{result.bytes_held:,} bytes of state, "
            f"{result.ms_per_step:.1f} ms per step"
            + (f" (found in {JOURNAL_NAME})" if is_found else "")
        )


class _QualityHistory(PreconditionerQuality):
    """Keeps all measurements with their steps."""

    def __init__(self, *arguments, **keywords):
        super().__init__(*arguments, **keywords)
        self.history = []

    def measure(self):
        found = super().measure()
        if found:  # Empty if no gradient has been finite so far.
            self.history.append((int(self.model.optimizer.iterations), found))
        return found


def _quality_callbacks(study, run, task):
    if not study.quality_levels:
        return []
    frequency = max(1, run.steps // QUALITY_MEASUREMENTS)
    batches = task.training_batches(steps=QUALITY_MEASUREMENTS, seed=QUALITY_SEED)
    return [_QualityHistory(batches, levels=study.quality_levels, frequency=frequency)]


if __name__ == "__main__":
    define_flags()
    sys.exit(app.run(main))
