"""Regret at online logistic regression: the data, the game and who plays it best.

Round t shows an example x with its label y = ±1, the algorithm pays
log(1 + exp(−y wᵀx)) for the weights w it has, sees the gradient and moves w. Its regret
is what it has paid less what the best fixed w would have.

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
from tf_models.studies.online_algorithms import ALGORITHMS

# The paper's grid. It is never extended: a best rate at its edge is marked as such, and
# so is a best α.
RATES = np.logspace(-6, 0, 49)
# The best fixed w minimises the total loss + RIDGE/2 ‖w‖²: breast cancer is separable
# or nearly so, and without a ridge the best w would be endlessly long. The minimiser
# is the best of all w that are no longer than itself.
RIDGE = 0.01
# Okabe and Ito's colours, which the colour-blind can tell apart.
COLORS = ("#0072B2", "#E69F00", "#D55E00", "#009E73", "#CC79A7", "#56B4E9")


# The data.


@dataclasses.dataclass(frozen=True)
class DataSet:
    """Examples for online logistic regression.

    Attributes:
        name: What the CSV file calls it.
        title: What it is, in a line.
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
    """The examples' indices in the order of the rounds, one array a seed.

    Args:
        data_set: A `DataSet`.
        setting: A `Setting`. Every pass has an order of its own.

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


# The game.


@dataclasses.dataclass(frozen=True)
class Setting:
    """What all algorithms share.

    Attributes:
        rank: The rank ℓ of every sketch.
        passes: How often all examples are shown.
        seed: The first seed of the examples' order.
        seeds: How many seeds there are, from `seed` on.
    """

    rank: int = 10
    passes: int = 1
    seed: int = 0
    seeds: int = 10


def logistic_losses(margins):
    """log(1 + exp(−margin)), without overflow."""
    return np.logaddexp(0, -margins)


def play(algorithm, features, labels, on_round):
    """Plays all rounds at all pairs of a rate and an α, from weights of 0.

    Args:
        algorithm: A new `Algorithm`.
        features: Array of shape (rounds, d).
        labels: Array of shape (rounds,), of 1 and −1.
        on_round: Called without arguments after every round.

    Returns:
        An array of shape (rounds, pairs): what was paid.
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
    """The weights an algorithm's regret is measured against.

    The minimiser of the total loss of one pass + RIDGE/2 ‖w‖².

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
    """How an algorithm did on a data set: a row of the CSV file.

    Attributes:
        data_set: The data set's name.
        algorithm: The algorithm's, as in `ALGORITHMS`.
        rounds: How many there were.
        dimension: d, the number of weights.
        rank: ℓ of the sketches in this study.
        seeds: How many orders of the examples the losses are averaged over.
        rate: That of the pair of a rate and an α whose average loss was the least.
        rate_edge: "lowest" or "highest" where it is that of its grid, and "no".
        alpha: That pair's α; None, and empty in the file, where there is none.
        alpha_edge: As `rate_edge`; None where there is no α.
        average_loss: What was paid, a round.
        regret: What was paid in all, less what the best fixed weights pay.
        best_fixed_loss: What those pay, a round.
        best_fixed_norm: Their Euclidean norm.
        numbers_held: What the algorithm keeps between rounds, by its formula.
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
    """Plays an algorithm at all pairs of a rate and an α and scores the best one.

    Args:
        data_set: A `DataSet`.
        name: One of `ALGORITHMS`.
        setting: A `Setting`.
        best_fixed: The weights its regret is measured against.
        on_round: Called without arguments after every round.

    Returns:
        An `Outcome`. Losses are averages over the seeds, and the pair the best for all.
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
    """Whether a value is the "lowest" or "highest" of its ascending grid, or "no"."""
    if value is None:
        return None
    return {grid[0]: "lowest", grid[-1]: "highest"}.get(value, "no")


# What the study leaves behind.


def write_csv(outcomes, path):
    """Writes the scores to a CSV file, all or nothing, floats in full.

    Args:
        outcomes: `Outcome`s, one a row.
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
        outcomes: Its `Outcome`s, at least one.

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
    for heading in ("best rate", "alpha", "average loss", "regret", "numbers held"):
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
    """Draws the regret against the rounds, a panel for each data set.

    Args:
        data_sets: `DataSet`s.
        outcomes: `Outcome`s, at least one on each; an algorithm has one colour.

    Returns:
        A `matplotlib.figure.Figure`; its `savefig` writes a file.
    """
    figure = Figure(figsize=(6 * len(data_sets), 5), dpi=150, layout="constrained")
    FigureCanvasAgg(figure)
    panels = figure.subplots(1, len(data_sets), squeeze=False)[0]
    for axes, data_set in zip(panels, data_sets):
        _draw_panel(axes, data_set, outcomes_on(data_set, outcomes))
    return figure


def _draw_panel(axes, data_set, outcomes):
    """One data set's lines; the legend names them from the top line to the bottom."""
    colors = dict(zip(ALGORITHMS, COLORS))
    for outcome in sorted(outcomes, key=lambda outcome: -outcome.score.regret):
        score = outcome.score
        alpha = "" if score.alpha is None else f", α {score.alpha:g}"
        axes.plot(
            np.arange(1, score.rounds + 1),
            outcome.regret,
            color=colors[score.algorithm],
            label=f"{score.algorithm}, rate {score.rate:.2g}{alpha}",
        )
    axes.set_title(_described(data_set, outcomes), loc="left", fontsize="medium")
    axes.set_xlabel("rounds")
    axes.set_ylabel("regret (lower is better)")
    axes.grid(True, color="0.9")
    axes.set_axisbelow(True)
    axes.spines[["top", "right"]].set_visible(False)
    axes.legend(frameon=False)


def outcomes_on(data_set, outcomes):
    """The outcomes on one data set."""
    return [found for found in outcomes if found.score.data_set == data_set.name]
