"""The online convex study: its algorithms, its comparator and its program."""

import csv
import io
import math
import pathlib
import subprocess
import sys

import keras
import matplotlib.image
import numpy as np
import pytest
from absl import app, flags
from keras import ops
from rich.console import Console

import et_optimizer
import tf_models
from tf_models import online_convex
from tf_models.studies import online_algorithms, regret

REPOSITORY = pathlib.Path(tf_models.__file__).parents[1]
SIZE, RANK, ROUNDS = 7, 3, 15
TWO_RATES = np.array([0.02, 0.7])
NO_ALPHAS = np.array([None, None])
# What α two rates are tried with, for each algorithm: both orders, and 0 where it may.
CASES = [
    *((name, (None, None)) for name in ("OGD", "AdaGrad", "S-AdaGrad")),
    *((name, (0.1, 10.0)) for name in ("Ada-FD", "FD-SON", "RFD-SON")),
    *((name, (10.0, 0.1)) for name in ("Ada-FD", "FD-SON", "RFD-SON")),
    ("RFD-SON", (0.0, 0.0)),
]
TOO_SMALL = 1e-11  # Of the largest eigenvalue: rounding.


def stream(directions=SIZE - 1):
    """Gradients at two rates, of shape (rounds, 2, size); the last entry is always 0.

    They are longer in some directions than in others, as those of real data are, and
    lie in a subspace of as many dimensions as there are directions.
    """
    generator = np.random.default_rng(0)
    mixing = generator.standard_normal((SIZE - 1, directions))
    lengths = 1 / np.arange(1, directions + 1)
    coordinates = lengths * generator.standard_normal((ROUNDS, 2, directions))
    gradients = coordinates @ mixing.T
    return np.concatenate([gradients, np.zeros((ROUNDS, 2, 1))], axis=-1)


def updates_of(name, gradients, alphas=NO_ALPHAS):
    """What the study's algorithm makes of the gradients."""
    kind = online_algorithms.ALGORITHMS[name]
    algorithm = kind(TWO_RATES, np.array(alphas), SIZE, RANK)
    return np.stack([algorithm(g, t) for t, g in enumerate(gradients, 1)])


# The papers once more, for one rate and α, with d × d matrices and nothing left out.


def spectral(matrix, function):
    """A function of a matrix's eigenvalues, 0 where they are."""
    values, vectors = np.linalg.eigh(matrix)
    is_real = values > TOO_SMALL * values.max()
    return (vectors[:, is_real] * function(values[is_real])) @ vectors[:, is_real].T


def shrunk(matrix):
    """(ρ, matrix of the FD-update): the RANK-th eigenvalue off all of them."""
    rho = np.sort(np.linalg.eigvalsh(matrix))[-RANK]
    rho = rho if rho > TOO_SMALL * np.trace(matrix) else 0.0
    return rho, spectral(matrix, lambda values: np.maximum(values - rho, 0))


def naive_ogd(rate, alpha, gradients):
    for t, g in enumerate(gradients, 1):
        yield rate / math.sqrt(t) * g


def naive_adagrad(rate, alpha, gradients):
    for t in range(1, len(gradients) + 1):
        norms = [math.sqrt(sum(g[i] ** 2 for g in gradients[:t])) for i in range(SIZE)]
        now = gradients[t - 1]
        yield np.array([rate * g / n if n else 0.0 for g, n in zip(now, norms)])


def naive_s_adagrad(rate, alpha, gradients):
    sketch, escaped = np.zeros((SIZE, SIZE)), 0.0
    for g in gradients:
        rho, sketch = shrunk(sketch + np.outer(g, g))
        escaped += rho
        yield rate * spectral(sketch + escaped * np.eye(SIZE), lambda v: v**-0.5) @ g


def naive_ada_fd(rate, alpha, gradients):
    sketch = np.zeros((SIZE, SIZE))
    for g in gradients:
        _, sketch = shrunk(sketch + np.outer(g, g))
        root = spectral(sketch, np.sqrt)
        yield rate * np.linalg.inv(alpha * np.eye(SIZE) + root) @ g


def naive_fd_son(rate, alpha, gradients):
    sketch = np.zeros((SIZE, SIZE))
    for t, g in enumerate(gradients, 1):
        _, sketch = shrunk(sketch + np.outer(g, g) / (rate * math.sqrt(t)))
        yield np.linalg.inv(alpha * np.eye(SIZE) + sketch) @ g


def naive_rfd_son(rate, alpha, gradients):
    sketch = np.zeros((SIZE, SIZE))
    for t, g in enumerate(gradients, 1):
        rho, sketch = shrunk(sketch + np.outer(g, g) / (rate * t))
        alpha += rho / 2
        yield spectral(sketch + alpha * np.eye(SIZE), lambda v: 1 / v) @ g


NAIVE = {
    "OGD": naive_ogd,
    "AdaGrad": naive_adagrad,
    "S-AdaGrad": naive_s_adagrad,
    "Ada-FD": naive_ada_fd,
    "FD-SON": naive_fd_son,
    "RFD-SON": naive_rfd_son,
}


# Of fewer directions than the rank nothing escapes, and covariances stay singular.
@pytest.mark.parametrize("directions", [SIZE - 1, RANK - 1])
@pytest.mark.parametrize("name, alphas", CASES)
def test_every_algorithm_matches_its_paper_at_every_pair(name, alphas, directions):
    gradients = stream(directions)
    found = updates_of(name, gradients, alphas)
    tolerance = 2e-3 if name == "S-AdaGrad" else 1e-8  # Float32, and a Gram matrix.
    for i, (rate, alpha) in enumerate(zip(TWO_RATES, alphas)):
        expected = np.stack(list(NAIVE[name](rate, alpha, gradients[:, i])))
        scale = np.linalg.norm(expected, axis=-1, keepdims=True)
        np.testing.assert_allclose(found[:, i] / scale, expected / scale, 0, tolerance)


@pytest.mark.parametrize(
    "name, alpha, power",
    [("AdaGrad", None, 0), ("S-AdaGrad", None, 0), ("RFD-SON", 0.0, -1)],
)
def test_an_algorithm_without_a_regularizer_is_scale_invariant(name, alpha, power):
    shorter = updates_of(name, 1e-4 * stream(), [alpha] * 2)
    expected = 1e-4**power * updates_of(name, stream(), [alpha] * 2)
    largest = np.abs(expected).max()
    np.testing.assert_allclose(shorter / largest, expected / largest, atol=1e-5)


@pytest.mark.parametrize("i", range(len(TWO_RATES)))
def test_s_adagrad_of_the_study_equals_that_of_the_library(i):
    gradients = stream()
    optimizer = et_optimizer.SketchyAdagrad(float(TWO_RATES[i]), rank=RANK)
    variable = keras.Variable(np.zeros(SIZE, "float32"))
    optimizer.build([variable])
    weights = np.zeros(SIZE)
    for g, update in zip(gradients[:, i], updates_of("S-AdaGrad", gradients)[:, i]):
        optimizer.apply([ops.convert_to_tensor(g, "float32")], [variable])
        weights -= update
        value = ops.convert_to_numpy(variable.value)
        np.testing.assert_allclose(value, weights, rtol=2e-5, atol=2e-6)
    assert np.linalg.norm(weights) > TWO_RATES[i]


def count(value):
    """The numbers in the arrays that something holds."""
    if isinstance(value, (list, tuple)):
        return sum(map(count, value))
    if hasattr(value, "shape"):
        return math.prod(value.shape)
    return sum(map(count, getattr(value, "__dict__", {}).values()))


@pytest.mark.parametrize("name", online_algorithms.ALGORITHMS)
def test_numbers_held_counts_the_state_elements(name):
    kind = online_algorithms.ALGORITHMS[name]
    algorithm = kind(TWO_RATES[:1], np.array(kind.ALPHAS[:1]), SIZE, RANK)
    not_state = ("rates", "alphas", "_round")
    state = {k: v for k, v in vars(algorithm).items() if k not in not_state}
    has_t = name in ("OGD", "FD-SON", "RFD-SON")
    assert algorithm.numbers_held(SIZE, RANK) == count(list(state.values())) + has_t


# The game.


def total_loss(weights, data_set):
    margins = data_set.labels * (data_set.features @ weights)
    return sum(math.log1p(math.exp(-m)) for m in margins)


@pytest.mark.parametrize("load", online_convex.DATA_SETS)
def test_a_data_set_has_two_classes_and_a_constant_feature(load):
    data_set = load()
    assert set(data_set.labels) == {-1.0, 1.0}
    assert np.all(data_set.features[:, -1] == 1)
    assert online_convex.LARGEST_RANK < data_set.features.shape[1]
    sizes = {"breast_cancer": (569, 31), "digits": (1797, 65)}
    assert data_set.features.shape == sizes[data_set.name]


def test_the_labels_of_digits_are_odd_and_even():
    # The first ten images of the data set are 0 to 9.
    assert regret.digits().labels[:10].tolist() == [-1, 1] * 5


def test_the_best_fixed_weights_are_optimal():
    data_set = regret.breast_cancer()
    best = regret.best_fixed_weights(data_set)
    margins = data_set.labels * (data_set.features @ best)
    slopes = -data_set.labels / (1 + np.exp(margins))
    gradient = slopes @ data_set.features + regret.RIDGE * best
    assert np.linalg.norm(gradient) < 1e-4
    least, norm = total_loss(best, data_set), np.linalg.norm(best)
    generator = np.random.default_rng(0)
    for step in np.geomspace(0.01, 10, 60):
        other = best + step * generator.standard_normal(best.shape)
        other *= min(1, norm / np.linalg.norm(other))
        assert total_loss(other, data_set) > least


def small(name="small", examples=25, features=4):
    """A few examples, of few features."""
    whole = regret.breast_cancer()
    return regret.DataSet(
        name, "A few", whole.features[:examples, -features:], whole.labels[:examples]
    )


def test_each_round_incurs_the_loss_before_the_update():
    data_set = small()
    algorithm = online_algorithms.OGD(TWO_RATES, NO_ALPHAS, 4, RANK)
    rounds = []
    paid = regret.play(
        algorithm, data_set.features, data_set.labels, lambda: rounds.append(1)
    )
    assert paid.shape == (25, 2) and len(rounds) == 25
    for i, rate in enumerate(TWO_RATES):
        weights = np.zeros(4)
        for t, (x, y) in enumerate(zip(data_set.features, data_set.labels), 1):
            one = regret.DataSet("", "", x[None], np.array([y]))
            assert paid[t - 1, i] == pytest.approx(total_loss(weights, one), rel=1e-6)
            slope = [
                (total_loss(weights + h, one) - total_loss(weights - h, one)) / 2e-5
                for h in 1e-5 * np.eye(4)
            ]
            weights -= rate / math.sqrt(t) * np.array(slope)


def test_regret_is_the_loss_at_the_best_learning_rate_minus_the_best_fixed_loss():
    data_set = small()
    setting = regret.Setting(rank=RANK, passes=2, seed=3, seeds=2)
    best = regret.best_fixed_weights(data_set)
    outcome = regret.tune_and_score(data_set, "AdaGrad", setting, best, lambda: None)
    score, paid = outcome.score, []
    for order in regret.orders(data_set, setting):
        assert sorted(order[:25]) == sorted(order[25:]) == list(range(25))
        algorithm = online_algorithms.AdaGrad(regret.RATES, None, 4, RANK)
        features, labels = data_set.features[order], data_set.labels[order]
        paid.append(regret.play(algorithm, features, labels, lambda: None))
    totals = np.mean(paid, axis=0).sum(axis=0)
    assert score.rounds == 50 and outcome.regret.shape == (50,)
    assert score.average_loss == pytest.approx(totals.min() / 50)
    assert score.rate == regret.RATES[totals.argmin()]
    assert (score.alpha, score.alpha_edge) == (None, None)
    expected = totals.min() - 2 * total_loss(best, data_set)
    assert score.regret == pytest.approx(expected) == outcome.regret[-1]
    first = [math.log(2) - total_of_first(best, data_set, setting, i) for i in (0, 1)]
    assert outcome.regret[0] == pytest.approx(np.mean(first))


def total_of_first(weights, data_set, setting, i):
    first = regret.orders(data_set, setting)[i][:1]
    shown = data_set.features[first], data_set.labels[first]
    return total_loss(weights, regret.DataSet("", "", *shown))


@pytest.mark.parametrize("name", ["Ada-FD", "FD-SON", "RFD-SON"])
def test_a_baseline_is_scored_at_its_best_pair_of_learning_rate_and_alpha(
    name, monkeypatch
):
    monkeypatch.setattr(regret, "RATES", np.array([0.01, 0.1, 0.5, 1.0]))
    data_set, kind = small(), online_algorithms.ALGORITHMS[name]
    setting = regret.Setting(rank=RANK, seeds=2)
    totals = {}
    for rate in regret.RATES:
        for alpha in kind.ALPHAS:
            totals[rate, alpha] = 0
            for order in regret.orders(data_set, setting):
                alone = kind(np.array([rate]), np.array([alpha]), 4, RANK)
                shown = data_set.features[order], data_set.labels[order]
                paid = regret.play(alone, *shown, lambda: None)
                totals[rate, alpha] += paid.sum() / 2
    score = regret.tune_and_score(
        data_set, name, setting, np.zeros(4), lambda: None
    ).score
    assert (score.rate, score.alpha) == min(totals, key=totals.get)
    assert score.average_loss == pytest.approx(min(totals.values()) / 25)


def test_only_algorithms_with_an_initial_regularization_tune_alpha():
    powers = (0.01, 0.1, 1, 10, 100)
    expected = {"Ada-FD": powers, "FD-SON": powers, "RFD-SON": (0, *powers)}
    for name, kind in online_algorithms.ALGORITHMS.items():
        assert kind.ALPHAS == expected.get(name, (None,))


@pytest.mark.parametrize(
    "rates, expected",
    [((1e-9, 1e-8), "highest"), ((1e4, 1e5), "lowest"), ((1e-9, 0.1, 1e5), "no")],
)
def test_a_best_learning_rate_at_the_edge_of_the_grid_is_marked(
    rates, expected, monkeypatch
):
    monkeypatch.setattr(regret, "RATES", np.array(rates))
    data_set = small()
    outcome = regret.tune_and_score(
        data_set, "OGD", regret.Setting(), np.zeros(4), lambda: None
    )
    assert outcome.score.rate_edge == expected
    marked = f"({expected} of the grid)" in table_text(data_set, outcome)
    assert marked is (expected != "no")


@pytest.mark.parametrize(
    "alphas, expected",
    [((0.001, 2.0), "highest"), ((2.0, 1e5), "lowest"), ((0.001, 2.0, 1e5), "no")],
)
def test_a_best_alpha_at_the_edge_of_its_grid_is_marked(alphas, expected, monkeypatch):
    monkeypatch.setattr(regret, "RATES", np.array([1e-6, 0.5, 1e3]))
    monkeypatch.setattr(online_algorithms.AdaFD, "ALPHAS", alphas)
    data_set, setting = small(), regret.Setting(rank=RANK)
    outcome = regret.tune_and_score(
        data_set, "Ada-FD", setting, np.zeros(4), lambda: None
    )
    score = outcome.score
    assert (score.rate, score.rate_edge, score.alpha) == (0.5, "no", 2.0)
    assert score.alpha_edge == expected
    mark = "" if expected == "no" else f" ({expected} of the grid)"
    cells = table_text(data_set, outcome).splitlines()[-2].split("│")
    assert [cell.strip() for cell in cells[1:4]] == ["Ada-FD", "0.5", f"2{mark}"]


def table_text(data_set, outcome):
    console = Console(file=io.StringIO(), width=120)
    console.print(regret.scores_table(data_set, [outcome]))
    return console.file.getvalue()


def test_the_grid_is_that_of_the_paper():
    rates = regret.RATES
    assert (len(rates), rates[0], rates[-1]) == (49, 1e-6, 1.0)
    np.testing.assert_allclose(rates[1:] / rates[:-1], 10**0.125)


# The program.

PROGRAM = """
import dataclasses, sys
from absl import app
from tf_models import online_convex as program

def cut(load):
    whole = load()
    features, labels = whole.features[:20], whole.labels[:20]
    return lambda: dataclasses.replace(whole, features=features, labels=labels)

program.DATA_SETS = tuple(map(cut, program.DATA_SETS))
program.define_flags()
sys.exit(app.run(program.main))
"""


def rows(output_dir):
    path = output_dir / online_convex.CSV_NAME
    with path.open(newline="", encoding="utf-8") as file:
        return list(csv.DictReader(file))


def test_the_program_writes_a_table_a_csv_file_and_a_plot(tmp_path):
    output_dir = tmp_path / "made" / "by_the_program"
    process = subprocess.run(
        [
            sys.executable,
            "-c",
            PROGRAM,
            f"--output_dir={output_dir}",
            "--rank=3",
            "--seeds=1",
        ],
        cwd=REPOSITORY,
        capture_output=True,
        text=True,
        timeout=120,
    )
    assert process.returncode == 0, process.stderr
    found = rows(output_dir)
    named = [(row["data_set"], row["algorithm"]) for row in found]
    names = list(online_algorithms.ALGORITHMS)
    assert named == [(d, name) for d in ("breast_cancer", "digits") for name in names]
    for row in found:
        assert (row["rounds"], row["rank"], row["seeds"]) == ("20", "3", "1")
        assert float(row["rate"]) in regret.RATES
        alphas = online_algorithms.ALGORITHMS[row["algorithm"]].ALPHAS
        assert (float(row["alpha"]) if row["alpha"] else None) in alphas
        # Weights of 0 pay log 2 a round, and the least rate hardly moves them.
        assert 0 < float(row["average_loss"]) < 1.01 * math.log(2)
        difference = float(row["average_loss"]) - float(row["best_fixed_loss"])
        assert float(row["regret"]) == pytest.approx(20 * difference)
        assert process.stdout.count(row["algorithm"]) >= 2
    image = matplotlib.image.imread(output_dir / online_convex.PLOT_NAME)
    assert image[..., :3].std() > 0
    files = {path.name for path in output_dir.iterdir()}
    assert files == {online_convex.CSV_NAME, online_convex.PLOT_NAME}


def test_each_algorithm_has_a_labelled_line():
    setting = regret.Setting(rank=2)
    data_sets = [small("one"), small("two")]
    outcomes = [
        regret.tune_and_score(data_set, name, setting, np.zeros(4), lambda: None)
        for data_set in data_sets
        for name in ("OGD", "AdaGrad", "Ada-FD")
    ]
    figure = regret.regret_figure(data_sets, outcomes)
    assert len(figure.axes) == 2
    for axes, own in zip(figure.axes, (outcomes[:3], outcomes[3:])):
        lines = {line.get_label().split(",")[0]: line for line in axes.get_lines()}
        labels = {name: line.get_label() for name, line in lines.items()}
        assert "α" not in labels["OGD"] + labels["AdaGrad"]
        assert labels["Ada-FD"].endswith(f", α {own[2].score.alpha:g}")
        for outcome in own:
            line = lines.pop(outcome.score.algorithm)
            np.testing.assert_array_equal(line.get_ydata(), outcome.regret)
            np.testing.assert_array_equal(line.get_xdata(), np.arange(1, 26))
        assert not lines
        last = [line.get_ydata()[-1] for line in axes.get_lines()]
        assert last == sorted(last, reverse=True)
        assert len({line.get_color() for line in axes.get_lines()}) == 3
    assert len(set(regret.COLORS)) == len(online_algorithms.ALGORITHMS)


def test_an_interrupted_study_keeps_the_finished_algorithms(tmp_path, monkeypatch):
    class Interrupted(online_algorithms.Algorithm):
        def __call__(self, gradients, t):
            raise KeyboardInterrupt

    algorithms = {"OGD": online_algorithms.OGD, "AdaGrad": Interrupted}
    for module in (online_convex, regret):
        monkeypatch.setattr(module, "ALGORITHMS", algorithms)
    console = Console(file=io.StringIO(), width=120)
    setting = regret.Setting(rank=2)
    data_sets = [small("one"), small("two")]
    status = online_convex.study(data_sets, setting, tmp_path, console)
    assert status == 130
    assert [row["algorithm"] for row in rows(tmp_path)] == ["OGD"]
    assert (tmp_path / online_convex.PLOT_NAME).exists()
    assert "kept the 1 of 4 finished" in console.file.getvalue()


def parsed(*arguments):
    values = flags.FlagValues()
    online_convex.define_flags(values)
    values(["online_convex", *arguments])
    return values


def test_the_default_flags_are_the_default_setting():
    values = parsed()
    chosen = (values.rank, values.passes, values.seed, values.seeds)
    assert regret.Setting(*chosen) == regret.Setting()


@pytest.mark.parametrize(
    "argument, rule",
    [
        ("--rank=1", "--rank must be a whole number, from 2 to 30; received 1."),
        ("--rank=31", "--rank must be a whole number, from 2 to 30; received 31."),
        ("--passes=0", "--passes must be a whole number, at least 1; received 0."),
        ("--seed=-1", "from 0 to 4294967295; received -1."),
        ("--seeds=0", "--seeds must be a whole number, at least 1; received 0."),
        (
            "--output_dir=",
            "--output_dir must be a directory that can be created or written to",
        ),
    ],
)
def test_a_bad_flag_is_refused_with_its_value_and_the_remedy(argument, rule):
    with pytest.raises(flags.IllegalFlagValueError) as error:
        parsed(argument)
    assert rule in str(error.value)
    assert "Leave it out" in str(error.value) or "Name another" in str(error.value)


def test_an_argument_that_is_not_a_flag_is_refused():
    with pytest.raises(app.UsageError, match="received 'rank'. Write --name=value"):
        online_convex.main(["online_convex", "rank"])
