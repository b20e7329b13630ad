"""Regret of sketched and diagonal optimizers on online logistic regression.

The convex study of the Sketchy paper, on data sets of scikit-learn. In round t the
algorithm receives an example x with its label y = ±1, incurs the loss
log(1 + exp(−y wᵀx)) of its weights w, and updates w with the gradient. Its regret is
its total loss minus that of the best fixed w. Every algorithm uses the best learning
rate of a grid. Ada-FD, FD-SON and RFD-SON also have an initial regularization α and use
the best pair of both, so that they choose from five or six times as many settings as
S-AdaGrad, AdaGrad and OGD.

    python -m tf_models.online_convex
    python -m tf_models.online_convex --rank=20 --seeds=5 --output_dir=out

The study ends with a table for each data set, online_convex.csv and a plot of the
regret against the rounds. By default it takes six or seven minutes on one core. Ctrl-C
ends it and keeps the results of finished algorithms.

Reference:
    [Feinberg, Chen, Sun, Anil, Hazan, 2023](https://arxiv.org/abs/2302.03764), Sketchy:
    Memory-efficient Adaptive Regularization with Frequent Directions, the appendix.
"""

import pathlib
import sys

from absl import app, flags
from rich.console import Console
from rich.progress import Progress

from tf_models.console import flag_rules, program
from tf_models.console.interrupt import DeferredInterrupt
from tf_models.console.output import replacing
from tf_models.studies.online_algorithms import ALGORITHMS
from tf_models.studies.regret import (
    Setting,
    best_fixed_weights,
    breast_cancer,
    digits,
    outcomes_on,
    regret_figure,
    scores_table,
    tune_and_score,
    write_csv,
)

CSV_NAME = "online_convex.csv"
PLOT_NAME = "online_convex.png"
# A sketch of rank ℓ needs more than ℓ features, and breast cancer has 31.
LARGEST_RANK = 30
DATA_SETS = (breast_cancer, digits)

FLAGS = flags.FLAGS


def define_flags(values=FLAGS):
    """Defines the program's flags.

    Not on import, because other programs have flags with the same names.

    Args:
        values: An `absl.flags.FlagValues`. Defaults to the program's.
    """
    flags.DEFINE_string(
        "output_dir",
        "results/online_convex",
        f"Directory of {CSV_NAME} and {PLOT_NAME}; created if it does not exist.",
        flag_values=values,
    )
    flag_rules.directory("output_dir", values)
    for name, default, low, high, text in (
        ("rank", 10, 2, LARGEST_RANK, "Rank ℓ of the sketches"),
        ("passes", 1, 1, None, "Passes over the examples"),
        ("seed", 0, 0, flag_rules.LARGEST_SEED, "Selects the order of the examples"),
        ("seeds", 10, 1, None, "Orders to average over, from --seed on"),
    ):
        rule = f"at least {low}" if high is None else f"from {low} to {high}"
        flags.DEFINE_integer(name, default, f"{text}, {rule}.", flag_values=values)
        flag_rules.whole(name, low, high, values)


def study(data_sets, setting, output_dir, console):
    """Runs every algorithm on every data set and reports the results.

    The CSV file is written after each algorithm, so that it always holds all finished
    ones.

    Args:
        data_sets: `DataSet` objects.
        setting: A `Setting`.
        output_dir: A `pathlib.Path` of an existing directory.
        console: A `rich.console.Console` for progress, tables and messages.

    Returns:
        The exit status: 0, or 130 after Ctrl-C.
    """
    outcomes = []
    status = 0
    try:
        for outcome in _played(data_sets, setting, console):
            outcomes.append(outcome)
            write_csv(outcomes, output_dir / CSV_NAME)
    except KeyboardInterrupt:
        status = program.INTERRUPTED
        total = len(data_sets) * len(ALGORITHMS)
        console.print(f"Interrupted: kept the {len(outcomes)} of {total} finished.")
    if outcomes:
        _report(data_sets, outcomes, output_dir, console)
    return status


def _played(data_sets, setting, console):
    """Yields the outcomes, with a progress bar of the rounds."""
    with DeferredInterrupt() as interrupt, _progress(console) as progress:
        for data_set in data_sets:
            best_fixed = best_fixed_weights(data_set)
            rounds = len(data_set.labels) * setting.passes * setting.seeds
            for name in ALGORITHMS:
                task = progress.add_task(f"{data_set.name}, {name}", total=rounds)

                def on_round(task=task):
                    progress.advance(task)
                    interrupt.check()

                yield tune_and_score(data_set, name, setting, best_fixed, on_round)


def _progress(console):
    return Progress(console=console, disable=not console.is_terminal)


def _report(data_sets, outcomes, output_dir, console):
    played = [data_set for data_set in data_sets if outcomes_on(data_set, outcomes)]
    with replacing(output_dir / PLOT_NAME) as temporary:
        regret_figure(played, outcomes).savefig(temporary)
    for data_set in played:
        console.print(scores_table(data_set, outcomes_on(data_set, outcomes)))
    console.print(f"Written: {output_dir / CSV_NAME}, {output_dir / PLOT_NAME}")


def main(argv):
    """Runs the study that the flags describe.

    Args:
        argv: The command line without its flags: only the program's name.

    Returns:
        The exit status: 0, or 130 after Ctrl-C.

    Raises:
        app.UsageError: an argument is not a flag.
    """
    program.begin(argv, "online_convex")
    output_dir = pathlib.Path(FLAGS.output_dir).expanduser()
    output_dir.mkdir(parents=True, exist_ok=True)
    setting = Setting(FLAGS.rank, FLAGS.passes, FLAGS.seed, FLAGS.seeds)
    return study([load() for load in DATA_SETS], setting, output_dir, Console())


if __name__ == "__main__":
    define_flags()
    sys.exit(app.run(main))
