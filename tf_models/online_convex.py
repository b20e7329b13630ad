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

import csv
import dataclasses
import itertools
import pathlib
import sys

import keras
import numpy as np
from absl import app, flags
from keras import ops
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from rich.console import Console
from rich.progress import Progress
from rich.table import Table
from sklearn.datasets import load_breast_cancer, load_digits
from sklearn.linear_model import LogisticRegression

from et_optimizer import frequent_directions
from tf_models import flag_rules, program
from tf_models.interrupt import DeferredInterrupt
from tf_models.output import replacing

# The paper's grid. It is never extended: a best rate at its edge is marked as such, and
# so is a best α.
RATES = np.logspace(-6, 0, 49)
# Ada-FD and FD-SON divide by α outside their sketch and cannot do without one. RFD-SON
# can, and has 0 to choose from as well.
ALPHAS = (0.01, 0.1, 1.0, 10.0, 100.0)
# The best fixed w minimises the total loss + RIDGE/2 ‖w‖²: breast cancer is separable
# or nearly so, and without a ridge the best w would be endlessly long. The minimiser
# is the best of all w that are no longer than itself.
RIDGE = 0.01
# Eigenvalues below this share of the largest are float64's rounding, and taken for 0.
NOISE = 1e-24

CSV_NAME = "online_convex.csv"
PLOT_NAME = "online_convex.png"
# A sketch of rank ℓ is one only of columns longer than ℓ, and breast cancer's have 31.
LARGEST_RANK = 30
# Okabe and Ito's colours, which the colour-blind can tell apart.
COLORS = ("#0072B2", "#E69F00", "#D55E00", "#009E73", "#CC79A7", "#56B4E9")

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


DATA_SETS = (breast_cancer, digits)


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


# The algorithms.


class Algorithm:
    """What turns gradients into updates, at all pairs of a rate and an α at once.

    Args:
        rates: Float64 array of shape (n,), the rates η.
        alphas: Array of shape (n,), the α that each of them goes with: numbers of the
            algorithms that have one, and None of the others.
        size: The length d of a gradient.
        rank: The rank ℓ of the sketch, of the algorithms that have one.

    Attributes:
        ALPHAS: The α to choose from, ascending; (None,) where there is none.
    """

    ALPHAS = (None,)

    def __init__(self, rates, alphas, size, rank):
        del size, rank
        self.rates, self.alphas = rates, alphas

    def __call__(self, gradients, t):
        """One round.

        Args:
            gradients: Float64 array of shape (n, d), the gradient g at every pair.
            t: The round, 1, 2, 3, …

        Returns:
            A float64 array of shape (n, d), to be subtracted from the weights.
        """
        raise NotImplementedError

    @staticmethod
    def numbers_held(size, rank):
        """How many numbers are kept between rounds for one pair, the pair aside."""
        raise NotImplementedError


class OGD(Algorithm):
    """Online gradient descent: η g / √t."""

    def __call__(self, gradients, t):
        return self.rates[:, None] * gradients / np.sqrt(t)

    @staticmethod
    def numbers_held(size, rank):
        return 1  # t


class AdaGrad(Algorithm):
    """Diagonal AdaGrad: h ← h + g²;  η g / √h, and 0 for 0 / 0."""

    def __init__(self, rates, alphas, size, rank):
        super().__init__(rates, alphas, size, rank)
        self._squares = np.zeros((len(rates), size))

    def __call__(self, gradients, t):
        self._squares += gradients**2
        return self.rates[:, None] * gradients * inverse_or_0(np.sqrt(self._squares))

    @staticmethod
    def numbers_held(size, rank):
        return size


class SAdaGrad(Algorithm):
    """The library's S-AdaGrad, in float32: η (Ḡ + ρI)^(−1/2) g.

    It is what `et_optimizer.SketchyAdagrad` does, for a batch of rates.
    """

    def __init__(self, rates, alphas, size, rank):
        super().__init__(rates, alphas, size, rank)
        self._sketch = frequent_directions.zeros(size, rank, batch=rates.shape)
        self._round = _compiled(_sketchy_round)

    def __call__(self, gradients, t):
        columns = ops.convert_to_tensor(gradients[..., None], "float32")
        self._sketch, directions = self._round(self._sketch, columns)
        return self.rates[:, None] * ops.convert_to_numpy(directions)[..., 0]

    @staticmethod
    def numbers_held(size, rank):
        return (size + 1) * rank + 1


def _sketchy_round(sketch, columns):
    sketch = frequent_directions.update(sketch, columns)
    return sketch, frequent_directions.apply_inverse_root(sketch, columns, 0.5)


def _compiled(function):
    """A function of tensors as a program, where the backend has programs."""
    if keras.backend.backend() == "tensorflow":
        import tensorflow as tf

        return tf.function(function, autograph=False)
    if keras.backend.backend() == "jax":
        import jax

        return jax.jit(function)
    return function


class AdaFD(Algorithm):
    """Ada-FD: η (αI + Ḡ^(1/2))⁻¹ g, with Ḡ a sketch of Σ g gᵀ.

    Reference:
        [Wan, Wei, Zhang, 2018](https://www.ijcai.org/proceedings/2018/381), Efficient
        Adaptive Online Learning via Frequent Directions.
    """

    ALPHAS = ALPHAS

    def __init__(self, rates, alphas, size, rank):
        super().__init__(rates, alphas, size, rank)
        self._sketch = NumpySketch(len(rates), size, rank)

    def __call__(self, gradients, t):
        self._sketch.take_in(gradients)
        within = 1 / (self.alphas[:, None] + np.sqrt(self._sketch.values))
        scaled = self._sketch.scale(gradients, within, 1 / self.alphas)
        return self.rates[:, None] * scaled

    @staticmethod
    def numbers_held(size, rank):
        return (size + 1) * rank


class FDSON(Algorithm):
    """FD-SON, a sketched online Newton step: (αI + Ḡ)⁻¹ g.

    Ḡ is a sketch of Σ g gᵀ / (η √t). The paper weights g gᵀ by η_t ∝ 1/√t where losses
    are no more than convex; its constant of proportion is 1/η here, so that a larger
    rate makes longer steps, as elsewhere and as in the public code of Sketchy's
    authors. Outside the sketch the step is g / α.

    Reference:
        [Luo, Agarwal, Cesa-Bianchi, Langford, 2016](https://arxiv.org/abs/1602.02202),
        Efficient Second Order Online Learning by Sketching;
        [Sketchy's code](https://github.com/google-research/precondition),
        precondition/oco/algorithms.py.
    """

    ALPHAS = ALPHAS

    def __init__(self, rates, alphas, size, rank):
        super().__init__(rates, alphas, size, rank)
        self._sketch = NumpySketch(len(rates), size, rank)

    def __call__(self, gradients, t):
        self._sketch.take_in(gradients / np.sqrt(self.rates * np.sqrt(t))[:, None])
        within = 1 / (self.alphas[:, None] + self._sketch.values)
        return self._sketch.scale(gradients, within, 1 / self.alphas)

    @staticmethod
    def numbers_held(size, rank):
        return (size + 1) * rank + 1  # and t


class RFDSON(Algorithm):
    """RFD-SON: α ← α + ρ/2;  (αI + Ḡ)⁺ g, with the pseudo-inverse, from a given α₀.

    Ḡ is a sketch of Σ g gᵀ / (η t), from which a round takes ρ; the weights 1 / (η t)
    are those of the public code of Sketchy's authors. With α₀ = 0 the step is η times
    that of rate 1.

    Reference:
        [Luo, Chen, Zhang, Li, Zhang, 2019](https://arxiv.org/abs/1705.05067), Robust
        Frequent Directions with Application in Online Learning;
        [Sketchy's code](https://github.com/google-research/precondition),
        precondition/oco/algorithms.py.
    """

    ALPHAS = (0.0, *ALPHAS)

    def __init__(self, rates, alphas, size, rank):
        super().__init__(rates, alphas, size, rank)
        self._sketch = NumpySketch(len(rates), size, rank)
        self._alpha = alphas.copy()

    def __call__(self, gradients, t):
        shrinkage = self._sketch.take_in(gradients / np.sqrt(self.rates * t)[:, None])
        self._alpha += shrinkage / 2
        within = inverse_or_0(self._alpha[:, None] + self._sketch.values)
        return self._sketch.scale(gradients, within, inverse_or_0(self._alpha))

    @staticmethod
    def numbers_held(size, rank):
        return (size + 1) * rank + 2  # α and t


ALGORITHMS = {
    "OGD": OGD,
    "AdaGrad": AdaGrad,
    "S-AdaGrad": SAdaGrad,
    "Ada-FD": AdaFD,
    "FD-SON": FDSON,
    "RFD-SON": RFDSON,
}


class NumpySketch:
    """A batch of sketches in NumPy and float64, for the rivals of the library.

    Attributes:
        vectors: Orthonormal eigenvectors as rows, of shape (batch, rank, size).
        values: Their eigenvalues, of shape (batch, rank), descending; the last is 0.
    """

    def __init__(self, batch, size, rank):
        self.vectors = np.zeros((batch, rank, size))
        self.values = np.zeros((batch, rank))

    def take_in(self, columns):
        """Adds c cᵀ to every covariance and shrinks it to the rank again.

        Args:
            columns: Array of shape (batch, size), a column c for every sketch.

        Returns:
            An array of shape (batch,): the ρ that the eigenvalues were shrunk by.
        """
        factor = self.vectors * np.sqrt(self.values)[..., None]
        factor[:, -1] = columns  # Its last row was 0.
        _, roots, self.vectors = np.linalg.svd(factor, full_matrices=False)
        values = np.where(roots**2 > NOISE * roots[:, :1] ** 2, roots**2, 0)
        shrinkage = values[:, -1]
        self.values = values - shrinkage[:, None]
        return shrinkage

    def scale(self, columns, within, outside):
        """Multiplies columns in the eigenvectors' span, and what they have outside it.

        Args:
            columns: Array of shape (batch, size).
            within: Array of shape (batch, rank), a factor for every eigenvector.
            outside: Array of shape (batch,).

        Returns:
            An array of shape (batch, size).
        """
        projected = np.matmul(self.vectors, columns[..., None])
        inside = np.matmul(
            np.swapaxes(self.vectors, 1, 2),
            (within - outside[:, None])[..., None] * projected,
        )
        return inside[..., 0] + outside[:, None] * columns


def inverse_or_0(numbers):
    """1 / numbers, and 0 for 0."""
    return np.where(numbers > 0, 1 / np.where(numbers > 0, numbers, 1), 0)


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


# The program.


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
