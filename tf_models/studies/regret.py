"""Regret in online logistic regression: data, online learning and scores.

In round t the algorithm receives an example x with its label y = ±1, incurs the loss
log(1 + exp(−y wᵀx)) of its weights w, and updates w with the gradient. Its regret is
its total loss minus that of the best fixed w.

Reference:
    [Feinberg, Chen, Sun, Anil, Hazan, 2023](https://arxiv.org/abs/2302.03764), Sketchy:
    Memory-efficient Adaptive Regularization with Frequent Directions, the appendix.
"""

import csv
import dataclasses
import itertools

import numpy as np
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from rich.table import Table
from sklearn.datasets import load_breast_cancer, load_digits
from sklearn.linear_model import LogisticRegression

from tf_models.console.output import replacing
from tf_models.studies import figures
from tf_models.studies.online_algorithms import ALGORITHMS

# One color per algorithm.
COLORS = figures.COLORS[: len(ALGORITHMS)]
# The grid of the paper, which is never extended: the results mark a best learning rate
# or a best α at the edge.
RATES = np.logspace(-6, 0, 49)
# The best fixed w minimizes the total loss + RIDGE/2 ‖w‖². Without a ridge its norm
# would be unbounded, because breast cancer is nearly separable. The minimizer is the
# best of all w with at most its norm.
RIDGE = 0.01


# The data.


@dataclasses.dataclass(frozen=True)
class DataSet:
    """Examples for online logistic regression.

    Attributes:
        name: Its name in the CSV file.
        title: A description in one line.
        features: Float64 array of shape (examples, d), the last feature a constant 1.
        labels: Float64 array of shape (examples,), of 1 and −1.
    """

    name: str
    title: str
    features: np.ndarray
    labels: np.ndarray


def breast_cancer():
    """569 tumours and 30 measurements of each, standardized; benign is 1."""
    features, benign = load_breast_cancer(return_X_y=True)
    features = (features - features.mean(axis=0)) / features.std(axis=0)
    title = "Breast cancer: benign or malignant"
    return _data_set("breast_cancer", title, features, benign == 1)


def digits():
    """1797 handwritten digits of 8 × 8 pixels, scaled to [0, 1]; odd is 1."""
    pixels, digit = load_digits(return_X_y=True)
    return _data_set("digits", "Digits: odd or even", pixels / 16, digit % 2 == 1)


def _data_set(name, title, features, is_positive):
    features = np.column_stack([features, np.ones(len(features))])
    return DataSet(name, title, features, np.where(is_positive, 1.0, -1.0))


def orders(data_set, setting):
    """The indices of the examples in the order of the rounds, for each seed.

    Args:
        data_set: A `DataSet`.
        setting: A `Setting`. Each pass has its own order.

    Returns:
        A list of integer arrays of shape (rounds,).
    """
    found = []
    for seed in range(setting.seed, setting.seed + setting.seeds):
        generator = np.random.default_rng(seed)
        count = len(data_set.labels)
        passes = [generator.permutation(count) for _ in range(setting.passes)]
        found.append(np.concatenate(passes))
    return found


# Online learning.


@dataclasses.dataclass(frozen=True)
class Setting:
    """The settings of all algorithms.

    Attributes:
        rank: The rank ℓ of every sketch.
        passes: The number of passes over the examples.
        seed: The first seed of the order of the examples.
        seeds: The number of seeds, from `seed` on.
    """

    rank: int = 10
    passes: int = 1
    seed: int = 0
    seeds: int = 10


def logistic_losses(margins):
    """log(1 + exp(−margin)), without overflow."""
    return np.logaddexp(0, -margins)


def play(algorithm, features, labels, on_round):
    """Plays all rounds at all pairs of a learning rate and an α, from zero weights.

    Args:
        algorithm: A new `Algorithm`.
        features: Array of shape (rounds, d).
        labels: Array of shape (rounds,), of 1 and −1.
        on_round: Called without arguments after each round.

    Returns:
        An array of shape (rounds, pairs): the losses.
    """
    weights = np.zeros((len(algorithm.rates), features.shape[1]))
    losses = np.empty((len(labels), len(algorithm.rates)))
    for i, (x, y) in enumerate(zip(features, labels)):
        margins = y * (weights @ x)
        losses[i] = logistic_losses(margins)
        slopes = -y * np.exp(-np.logaddexp(0, margins))
        weights -= algorithm(slopes[:, None] * x, i + 1)
        on_round()
    return losses


def best_fixed_weights(data_set):
    """The best fixed weights, relative to which regret is measured.

    They minimize the total loss of one pass + RIDGE/2 ‖w‖².

    Args:
        data_set: A `DataSet`.

    Returns:
        A float64 array of shape (d,).
    """
    solver = LogisticRegression(
        C=1 / RIDGE,
        fit_intercept=False,
        solver="newton-cholesky",
        tol=1e-8,
        max_iter=1000,
    )
    return solver.fit(data_set.features, data_set.labels).coef_[0]


@dataclasses.dataclass(frozen=True)
class Score:
    """The result of an algorithm on a data set: a row of the CSV file.

    Attributes:
        data_set: The name of the data set.
        algorithm: The name of the algorithm in `ALGORITHMS`.
        rounds: The number of rounds.
        dimension: d, the number of weights.
        rank: The rank ℓ of the sketches in this study.
        seeds: The number of orders of the examples that losses are averaged over.
        rate: The learning rate of the pair with the lowest average loss.
        rate_edge: "lowest" or "highest" if it is at that edge of the grid, else "no".
        alpha: The α of that pair; None, and empty in the file, if there is no α.
        alpha_edge: As `rate_edge`; None if there is no α.
        average_loss: The average loss per round.
        regret: The total loss minus that of the best fixed weights.
        best_fixed_loss: The average loss per round of the best fixed weights.
        best_fixed_norm: Their Euclidean norm.
        numbers_held: The number of state elements, by formula.
    """

    data_set: str
    algorithm: str
    rounds: int
    dimension: int
    rank: int
    seeds: int
    rate: float
    rate_edge: str
    alpha: float | None
    alpha_edge: str | None
    average_loss: float
    regret: float
    best_fixed_loss: float
    best_fixed_norm: float
    numbers_held: int


@dataclasses.dataclass(frozen=True)
class Outcome:
    """A `Score`, and the regret after each round, an array of shape (rounds,)."""

    score: Score
    regret: np.ndarray


def tune_and_score(data_set, name, setting, best_fixed, on_round):
    """Plays an algorithm at all pairs of a learning rate and an α; scores the best.

    Args:
        data_set: A `DataSet`.
        name: One of `ALGORITHMS`.
        setting: A `Setting`.
        best_fixed: The best fixed weights.
        on_round: Called without arguments after each round.

    Returns:
        An `Outcome` of the pair that is best on average over the seeds.
    """
    kind = ALGORITHMS[name]
    pairs = list(itertools.product(RATES.tolist(), kind.ALPHAS))
    rates, alphas = map(np.array, zip(*pairs))
    size = data_set.features.shape[1]
    margins = data_set.labels * (data_set.features @ best_fixed)
    fixed_losses = logistic_losses(margins)
    paid, fixed_paid = 0.0, 0.0
    for order in orders(data_set, setting):
        algorithm = kind(rates, alphas, size, setting.rank)
        features, labels = data_set.features[order], data_set.labels[order]
        paid += play(algorithm, features, labels, on_round) / setting.seeds
        fixed_paid += fixed_losses[order] / setting.seeds
    best = int(np.argmin(paid.sum(axis=0)))
    rate, alpha = pairs[best]
    regret = np.cumsum(paid[:, best] - fixed_paid)
    score = Score(
        data_set=data_set.name,
        algorithm=name,
        rounds=len(paid),
        dimension=size,
        rank=setting.rank,
        seeds=setting.seeds,
        rate=rate,
        rate_edge=_edge(rate, RATES),
        alpha=alpha,
        alpha_edge=_edge(alpha, kind.ALPHAS),
        average_loss=float(paid[:, best].mean()),
        regret=float(regret[-1]),
        best_fixed_loss=float(fixed_paid.mean()),
        best_fixed_norm=float(np.linalg.norm(best_fixed)),
        numbers_held=kind.numbers_held(size, setting.rank),
    )
    return Outcome(score, regret)


def _edge(value, grid):
    """ "lowest" or "highest" if a value is at that edge of its ascending grid."""
    if value is None:
        return None
    return {grid[0]: "lowest", grid[-1]: "highest"}.get(value, "no")


# Results.


def write_csv(outcomes, path):
    """Writes the scores to a CSV file, all or nothing, with floats in full.

    Args:
        outcomes: `Outcome` objects, one per row.
        path: A `pathlib.Path`.
    """
    columns = [field.name for field in dataclasses.fields(Score)]
    with (
        replacing(path) as temporary,
        open(temporary, "w", newline="", encoding="utf-8") as file,
    ):
        writer = csv.DictWriter(file, columns)
        writer.writeheader()
        writer.writerows(dataclasses.asdict(outcome.score) for outcome in outcomes)


def scores_table(data_set, outcomes):
    """Makes the table of one data set.

    Args:
        data_set: A `DataSet`.
        outcomes: Its `Outcome` objects, at least one.

    Returns:
        A `rich.table.Table`.
    """
    first = outcomes[0].score
    title = (
        f"{_described(data_set, outcomes)}\nBest fixed weights: average loss "
        f"{first.best_fixed_loss:.4f}, norm {first.best_fixed_norm:.1f}"
    )
    table = Table(title=title, title_justify="left")
    table.add_column("algorithm")
    for heading in (
        "learning rate",
        "alpha",
        "average loss",
        "regret",
        "state elements",
    ):
        table.add_column(heading, justify="right")
    for score in (outcome.score for outcome in outcomes):
        alpha = score.alpha
        table.add_row(
            score.algorithm,
            _marked(f"{score.rate:.2g}", score.rate_edge),
            "" if alpha is None else _marked(f"{alpha:g}", score.alpha_edge),
            f"{score.average_loss:.4f}",
            f"{score.regret:.2f}",
            f"{score.numbers_held:,}",
        )
    return table


def _marked(number, edge):
    return number if edge == "no" else f"{number} ({edge} of the grid)"


def _described(data_set, outcomes):
    first = outcomes[0].score
    seeds = "1 seed" if first.seeds == 1 else f"{first.seeds} seeds"
    return f"{data_set.title}; {first.dimension} weights, rank {first.rank}, {seeds}"


def regret_figure(data_sets, outcomes):
    """Draws the regret against the rounds, with a panel for each data set.

    Args:
        data_sets: `DataSet` objects.
        outcomes: `Outcome` objects, at least one for each data set.

    Returns:
        A `matplotlib.figure.Figure`.
    """
    figure = Figure(figsize=(6 * len(data_sets), 5), dpi=150, layout="constrained")
    FigureCanvasAgg(figure)
    panels = figure.subplots(1, len(data_sets), squeeze=False)[0]
    for axes, data_set in zip(panels, data_sets):
        _draw_panel(axes, data_set, outcomes_on(data_set, outcomes))
    return figure


def _draw_panel(axes, data_set, outcomes):
    """Draws the lines of a data set; the legend has their order from top to bottom."""
    colors = dict(zip(ALGORITHMS, COLORS))
    for outcome in sorted(outcomes, key=lambda outcome: -outcome.score.regret):
        score = outcome.score
        alpha = "" if score.alpha is None else f", α {score.alpha:g}"
        axes.plot(
            np.arange(1, score.rounds + 1),
            outcome.regret,
            color=colors[score.algorithm],
            label=f"{score.algorithm}, learning rate {score.rate:.2g}{alpha}",
        )
    axes.set_title(_described(data_set, outcomes), loc="left", fontsize="medium")
    axes.set_xlabel("rounds")
    axes.set_ylabel("regret (lower is better)")
    axes.grid(True, color="0.9")
    axes.set_axisbelow(True)
    axes.spines[["top", "right"]].set_visible(False)
    axes.legend(frameon=False)


def outcomes_on(data_set, outcomes):
    """The outcomes of one data set."""
    return [found for found in outcomes if found.score.data_set == data_set.name]
