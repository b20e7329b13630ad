"""What the callbacks measure, and that they disturb nothing."""

import keras
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from keras import ops

from et_optimizer import SketchyShampoo, TensorIndex
from et_optimizer.callbacks import PreconditionerQuality, SpectrumMonitor
from et_optimizer.callbacks.preconditioner_quality import trace
from tests.reference import extreme_tensoring

pytestmark = pytest.mark.two_backends


def regression(units=3, **compile_arguments):
    """A linear model whose gradients are known: ∇W = 2 xᵀ (xW − y) / (rows · units)."""
    model = keras.Sequential(
        [keras.Input((5,)), keras.layers.Dense(units, use_bias=False, name="dense")]
    )
    model.compile(keras.optimizers.SGD(0.0), "mse", **compile_arguments)
    return model


def data(rows=16, units=3, seed=0):
    rng = np.random.default_rng(seed)
    x = rng.standard_normal((rows, 5)).astype("float32")
    return x, rng.standard_normal((rows, units)).astype("float32")


def gradient(model, x, y):
    (weights,) = (ops.convert_to_numpy(w).astype("float64") for w in model.weights)
    return 2 * x.T @ (x @ weights - y) / y.size


def spectrum(covariance, rank):
    values = np.linalg.eigvalsh(covariance)[::-1]
    return values[:rank].sum() / values.sum(), values.sum() / values[0]


@pytest.mark.one_backend
@pytest.mark.parametrize("rank", [1, 2])
def test_it_logs_the_share_of_the_top_and_the_intrinsic_dimension(rank):
    model, (x, y) = regression(), data()
    monitor = SpectrumMonitor((x, y), rank=rank)
    history = model.fit(x, y, epochs=2, verbose=0, callbacks=[monitor]).history
    found = gradient(model, x, y)
    for mode, covariance in enumerate([found @ found.T, found.T @ found]):
        mass, dimension = spectrum(covariance, rank)
        name = f"sequential/dense/kernel/mode_{mode}"
        assert history[f"{name}/top_{rank}_mass"] == pytest.approx([mass] * 2, rel=1e-4)
        assert history[f"{name}/intrinsic_dimension"] == pytest.approx(
            [dimension] * 2, rel=1e-4
        )
        assert 0 < mass <= 1 and 1 <= dimension <= min(covariance.shape)


def test_a_model_that_fit_has_yet_to_build_is_measured_too():
    x, y = data()
    model = keras.Sequential([keras.layers.Dense(3, name="dense")])
    model.compile(keras.optimizers.SGD(0.0), "mse")
    probes = [SpectrumMonitor((x, y), rank=1), PreconditionerQuality((x, y))]
    history = model.fit(x, y, verbose=0, callbacks=probes).history
    assert history["sequential/dense/kernel/mode_0/top_1_mass"][0] > 0
    assert history["sequential/dense/kernel/level_1/trace_ratio"][0] >= 1


def test_an_expression_that_matches_nothing_there_costs_one_batch_at_most():
    x, y = data()
    model = keras.Sequential([keras.layers.Dense(3, name="dense")])
    model.compile(keras.optimizers.SGD(0.0), "mse")
    probe = PreconditionerQuality((x, y), variables="embeddings")
    with pytest.raises(ValueError, match="which matches none.*dense/kernel"):
        model.fit(x, y, batch_size=4, verbose=0, callbacks=[probe])
    assert int(ops.convert_to_numpy(model.optimizer.iterations)) <= 1


@pytest.mark.one_backend
def test_covariances_of_successive_batches_decay():
    model, batches = regression(), [data(seed=1), data(seed=2)]
    monitor = SpectrumMonitor(batches, rank=1, decay=0.5, variables="dense")
    x, y = data()
    history = model.fit(x, y, epochs=3, verbose=0, callbacks=[monitor]).history
    one, two = (gradient(model, *batch) for batch in batches)
    covariance = (0.5 * one @ one.T + two @ two.T) * 0.5 + one @ one.T
    mass, _ = spectrum(covariance, 1)
    logged = history["sequential/dense/kernel/mode_0/top_1_mass"]
    assert logged[-1] == pytest.approx(mass, rel=1e-4)


@pytest.mark.one_backend
def test_level_and_index_choose_the_modes():
    x, y = data(units=6)
    for arguments, count in [
        (dict(level=2), 3),
        (dict(tensor_index={"kernel": (5, 6)}), 2),
    ]:
        model = regression(units=6)
        monitor = SpectrumMonitor((x, y), **arguments)
        history = model.fit(x, y, verbose=0, callbacks=[monitor]).history
        assert sum("intrinsic_dimension" in key for key in history) == count


@keras.saving.register_keras_serializable(package="test")
class Noise(keras.layers.Layer):
    """Adds noise in inference too."""

    def __init__(self, **kwargs):
        super().__init__(**kwargs)
        self.seeds = keras.random.SeedGenerator(5)

    def call(self, x):
        return x + keras.random.normal(keras.ops.shape(x), seed=self.seeds)


def deep():
    """A model with all that a call might change: seeds, statistics, metrics."""
    inputs = keras.Input((5,))
    x = keras.layers.Dense(8, name="first")(inputs)
    x = keras.layers.Dropout(0.5, seed=1)(keras.layers.BatchNormalization()(x))
    x = Noise()(x)
    outputs = [keras.layers.Dense(3, name="a")(x), keras.layers.Dense(3, name="b")(x)]
    model = keras.Model(inputs, outputs)
    model.compile(SketchyShampoo(0.01, rank=2), ["mse", "mse"])
    return model


@pytest.mark.parametrize(
    ("callback", "frequency"),
    [(SpectrumMonitor, "epoch"), (PreconditionerQuality, 3)],
)
def test_training_and_its_logs_are_the_same_bit_for_bit(callback, frequency):
    x, y = data(rows=32)
    probe = (100 * x, (y, y))
    found = []
    for callbacks in ([callback(probe, frequency=frequency)], []):
        keras.backend.clear_session()
        keras.utils.set_random_seed(3)
        model = deep()
        history = model.fit(
            x, (y, y), batch_size=8, epochs=2, verbose=0, callbacks=callbacks
        ).history
        values = [ops.convert_to_numpy(v) for v in model.variables]
        found.append((values, history))
    (one, with_monitor), (other, without) = found
    for a, b in zip(one, other, strict=True):
        np.testing.assert_array_equal(a, b)
    assert without == {key: with_monitor[key] for key in without}
    assert any("mode_0" in key or "trace" in key for key in with_monitor)


@pytest.mark.parametrize(("frequency", "measured"), [(1, 12), (3, 4), (5, 2), (13, 0)])
@pytest.mark.parametrize("steps_per_execution", [1, 4])
def test_it_measures_after_every_so_many_batches(
    frequency, measured, steps_per_execution
):
    if keras.backend.backend() == "torch" and steps_per_execution > 1:
        pytest.skip("Keras has no steps_per_execution on PyTorch")
    model = regression(steps_per_execution=steps_per_execution)
    x, y = data(rows=8)
    seen = []

    class Spy(SpectrumMonitor):
        def measure(self):
            seen.append(True)
            return super().measure()

    monitor = Spy((x, y), frequency=frequency)
    history = model.fit(
        x, y, batch_size=2, epochs=3, verbose=0, callbacks=[monitor]
    ).history
    # Where batches end four at a time, no more than once each time.
    assert len(seen) == min(measured, 12 // steps_per_execution)
    assert ("sequential/dense/kernel/mode_1/top_32_mass" in history) == (measured > 0)


def test_a_gradient_that_is_not_finite_is_left_out():
    model, (x, y) = regression(), data()
    bad = x.copy()
    bad[0, 0] = np.nan
    monitor = SpectrumMonitor([(x, y), (bad, y), (1e30 * x, y)], rank=1)
    history = model.fit(x, y, epochs=3, verbose=0, callbacks=[monitor]).history
    logged = history["sequential/dense/kernel/mode_0/top_1_mass"]
    assert logged == [logged[0]] * 3 and 0 < logged[0] <= 1


@pytest.mark.skipif(
    keras.backend.backend() != "tensorflow", reason="reads TensorBoard's files"
)
def test_tensorboard_gets_the_logs(tmp_path):
    import tensorflow as tf

    model, (x, y) = regression(), data()
    callbacks = [SpectrumMonitor((x, y)), keras.callbacks.TensorBoard(tmp_path)]
    model.fit(x, y, verbose=0, callbacks=callbacks)
    tags = {
        value.tag
        for file in tmp_path.rglob("events*")
        for event in tf.compat.v1.train.summary_iterator(str(file))
        for value in event.summary.value
    }
    assert "epoch_sequential/dense/kernel/mode_0/intrinsic_dimension" in tags


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (dict(rank=0), "rank must be an integer, 1 or more"),
        (dict(frequency="batch"), "frequency must be.*or 'epoch'.*'batch'"),
        (dict(frequency=0), "frequency must be"),
        (dict(decay=1.0), "decay must be a number in"),
        (dict(level=0), "level must be"),
        (dict(tensor_index=3), "tensor_index must be"),
        (dict(merge_axes=1), "merge_axes must be"),
        (dict(longest_mode=0), "longest_mode must be"),
        (dict(variables="(dense"), "regular expression"),
        (dict(variables=3), "regular expression"),
    ],
)
def test_bad_arguments_are_refused_at_once(arguments, message):
    with pytest.raises(ValueError, match=message):
        SpectrumMonitor(data(), **arguments)


@pytest.mark.parametrize("arguments", [dict(variables="conv"), dict(longest_mode=4)])
def test_variables_that_leave_nothing_to_measure_are_refused(arguments):
    model, (x, y) = regression(), data()
    with pytest.raises(ValueError, match="leaves none.*sequential/dense/kernel"):
        model.fit(x, y, verbose=0, callbacks=[SpectrumMonitor((x, y), **arguments)])


def test_data_without_a_batch_is_refused():
    model, (x, y) = regression(), data()
    with pytest.raises(ValueError, match="has no batch"):
        model.fit(x, y, verbose=0, callbacks=[SpectrumMonitor([])])


def reference_trace(squares, index):
    """Tr H_T of extreme tensoring, entry by entry as the paper writes it."""
    sizes, slices = extreme_tensoring.coordinates(
        [(axis.length, axis.modes) for axis in index.axes]
        if any(axis.modes for axis in index.axes)
        else [(squares.size, ())]
    )
    product = np.ones(squares.size)
    for size, at in zip(sizes, slices):
        product *= np.bincount(at, weights=squares.ravel(), minlength=size)[at]
    return (product ** (1 / (2 * len(sizes)))).sum()


SHAPES = [(), (1,), (7,), (64,), (6, 10), (29, 4), (1, 5, 1), (3, 3, 4, 8), (1733, 2)]


@pytest.mark.one_backend
@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("level", [1, 2, 3, "inf"])
def test_the_trace_is_the_papers_sum_over_all_entries(shape, level):
    squares = np.random.default_rng(0).standard_normal(shape) ** 4
    index = TensorIndex.from_shape(shape, level)
    expected = reference_trace(np.asarray(squares), index)
    assert trace(np.asarray(squares), index) == pytest.approx(expected, rel=1e-12)


@pytest.mark.one_backend
@given(
    shape=st.sampled_from(SHAPES),
    level=st.sampled_from([1, 2, 3, "inf"]),
    seed=st.integers(0, 99),
    sparsity=st.sampled_from([0.0, 0.5, 0.95]),
    scale=st.sampled_from([1e-30, 1.0, 1e30]),
)
def test_no_trace_is_less_than_adagrads(shape, level, seed, sparsity, scale):
    rng = np.random.default_rng(seed)
    squares = scale * rng.standard_normal(shape) ** 2
    squares = np.asarray(squares * (rng.random(shape) >= sparsity))
    found = trace(squares, TensorIndex.from_shape(shape, level))
    assert found >= np.sqrt(squares).sum() * (1 - 1e-12)


def test_at_level_1_a_vector_loses_nothing_and_equal_gradients_never_lose_but_size():
    squares = np.arange(1.0, 13.0)
    exact = np.sqrt(squares).sum()
    assert trace(squares, TensorIndex.from_shape((12,), 1)) == pytest.approx(exact)
    # With all entries equal every slice sum is its size times one entry's.
    ones = np.ones((4, 9))
    index = TensorIndex.from_shape((4, 9), 1)
    assert trace(ones, index) == pytest.approx(36 * (9 * 4) ** 0.25)


@pytest.mark.parametrize("beta_2", [None, 0.5])
def test_it_logs_the_ratio_of_the_gradients_it_saw(beta_2):
    model, batches = regression(), [data(seed=1), data(seed=2)]
    levels = (1, 2, "inf")
    quality = PreconditionerQuality(batches, levels=levels, beta_2=beta_2)
    x, y = data()
    history = model.fit(x, y, epochs=2, verbose=0, callbacks=[quality]).history
    one, two = (gradient(model, *batch) ** 2 for batch in batches)
    sums = [one, (1.0 if beta_2 is None else beta_2) * one + two]
    for level in levels:
        index = TensorIndex.from_shape((5, 3), level)
        expected = [
            np.sqrt(reference_trace(squares, index) / np.sqrt(squares).sum())
            for squares in sums
        ]
        logged = history[f"sequential/dense/kernel/level_{level}/trace_ratio"]
        assert logged == pytest.approx(expected, rel=1e-4)
        # The model has this variable alone.
        assert history[f"level_{level}/trace_ratio"] == pytest.approx(logged)
        assert min(logged) >= 1


def test_variables_without_a_gradient_and_gradients_that_are_not_finite_are_left_out():
    model, (x, y) = regression(), data()
    bad = x.copy()
    bad[0, 0] = np.inf
    quality = PreconditionerQuality([(0 * x, 0 * y), (x, y), (bad, y)])
    history = model.fit(x, y, epochs=3, verbose=0, callbacks=[quality]).history
    logged = history["level_2/trace_ratio"]
    # Keras begins a log when it first comes.
    assert len(logged) == 2 and logged[0] == logged[1] >= 1


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (dict(levels=()), "levels must be a sequence"),
        (dict(levels="inf"), "levels must be a sequence"),
        (dict(levels=2), "levels must be a sequence"),
        (dict(levels=(1, 0)), "level must be"),
        (dict(beta_2=1.0), "beta_2 must be"),
        (dict(frequency=0), "frequency must be"),
        (dict(variables="(dense"), "regular expression"),
    ],
)
def test_bad_arguments_of_preconditioner_quality_are_refused(arguments, message):
    with pytest.raises(ValueError, match=message):
        PreconditionerQuality(data(), **arguments)


def test_an_expression_that_matches_no_variable_is_refused():
    model, (x, y) = regression(), data()
    quality = PreconditionerQuality((x, y), variables="conv")
    with pytest.raises(ValueError, match="matches none.*sequential/dense/kernel"):
        model.fit(x, y, verbose=0, callbacks=[quality])


def test_the_sums_of_one_model_are_not_those_of_the_next():
    quality = PreconditionerQuality([data()], levels=iter((1,)))
    assert quality.levels == (1,)
    x, y = data()
    model = regression()
    fitted = [model.fit(x, y, verbose=0, callbacks=[quality]) for _ in range(2)]
    keras.backend.clear_session()
    other = regression()
    other.set_weights([w + 1.0 for w in model.get_weights()])
    anew = other.fit(x, y, verbose=0, callbacks=[quality]).history
    alone = PreconditionerQuality([data()], levels=(1,))
    expected = other.fit(x, y, verbose=0, callbacks=[alone]).history
    # The same model, at rate 0, sees the same gradient twice: the ratio stays.
    first, second = (history.history["level_1/trace_ratio"] for history in fitted)
    assert first == pytest.approx(second)
    assert anew["level_1/trace_ratio"] == pytest.approx(expected["level_1/trace_ratio"])
    assert anew["level_1/trace_ratio"] != pytest.approx(first)
