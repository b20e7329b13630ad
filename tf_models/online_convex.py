"""Regret of sketched and diagonal optimizers on online logistic regression.

The convex study of the Sketchy paper, on data that scikit-learn ships. Round t shows
an example x with its label y = ±1, the algorithm pays log(1 + exp(−y wᵀx)) for the
weights w it has, sees the gradient and moves w. Its regret is what it has paid less
what the best fixed w would have. Every algorithm has the best rate of a grid. Ada-FD,
FD-SON and RFD-SON also start from a regularization α and have the best pair of the
two, so that they choose from five or six times as many settings as S-AdaGrad, AdaGrad
and OGD, which have no such number.

    python -m tf_models.online_convex
    python -m tf_models.online_convex --rank=20 --seeds=5 --output_dir=out

At the end: a table for each data set, online_convex.csv and a plot of the regret
against the rounds. The default study takes six or seven minutes on one core. Ctrl-C
ends it and keeps the algorithms that are finished.

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
# A sketch of rank ℓ is one only of columns longer than ℓ, and breast cancer's have 31.
LARGEST_RANK = 30
DATA_SETS = (breast_cancer, digits)

FLAGS = flags.FLAGS


def define_flags(values=FLAGS):
    """Defines the program's flags.

    They are not defined on import: other programs have flags of the same names.

    Args:
        values: An `absl.flags.FlagValues`. Defaults to the program's.
    """
    flags.DEFINE_string(
        "output_dir",
        "results/online_convex",
        f"Directory for {CSV_NAME} and {PLOT_NAME}; made if it does not exist.",
        flag_values=values,
    )
    flag_rules.directory("output_dir", values)
    for name, default, low, high, text in (
        ("rank", 10, 2, LARGEST_RANK, "Eigenvectors in a sketch, ℓ"),
        ("passes", 1, 1, None, "How often all examples are shown"),
        ("seed", 0, 0, flag_rules.LARGEST_SEED, "Selects the order of the examples"),
        ("seeds", 10, 1, None, "Orders to average over, from --seed on"),
    ):
        rule = f"at least {low}" if high is None else f"from {low} to {high}"
        flags.DEFINE_integer(name, default, f"{text}, {rule}.", flag_values=values)
        flag_rules.whole(name, low, high, values)


def study(data_sets, setting, output_dir, console):
    """Plays every algorithm on every data set, then writes and shows how they did.

    The CSV file is written anew after each of them, so it always holds all that are
    finished whatever happens to the next.

    Args:
        data_sets: `DataSet`s.
        setting: A `Setting`.
        output_dir: A `pathlib.Path` of an existing directory.
        console: A `rich.console.Console` for progress, tables and messages.

    Returns:
        The exit status: 0, or 130 where Ctrl-C ended it early.
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
    """The outcomes, one by one, with a bar that shows the rounds played."""
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
    """Runs the study the flags describe.

    Args:
        argv: The command line without its flags: the program's name alone.

    Returns:
        The exit status: 0, or 130 where Ctrl-C ended it early.

    Raises:
        app.UsageError: the command line names something that is no flag.
    """
    program.begin(argv, "online_convex")
    output_dir = pathlib.Path(FLAGS.output_dir).expanduser()
    output_dir.mkdir(parents=True, exist_ok=True)
    setting = Setting(FLAGS.rank, FLAGS.passes, FLAGS.seed, FLAGS.seeds)
    return study([load() for load in DATA_SETS], setting, output_dir, Console())


if __name__ == "__main__":
    define_flags()
    sys.exit(app.run(main))
