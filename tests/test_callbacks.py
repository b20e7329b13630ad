"""The callbacks log what they promise, and do not change training."""

import keras
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from keras import ops

from et_optimizer import TensorIndex
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
    """The gradient of `regression`'s loss in float64."""
    (weights,) = (ops.convert_to_numpy(w).astype("float64") for w in model.weights)
    return 2 * x.T @ (x @ weights - y) / y.size


def fit(model, *callbacks, epochs=1, **arguments):
    """The history of training on `data()`."""
    x, y = data(units=model.output_shape[-1])
    return model.fit(
        x, y, epochs=epochs, verbose=0, callbacks=list(callbacks), **arguments
    ).history


def spectrum(covariance, rank):
    """The share of the top eigenvalues, and the intrinsic dimension."""
    values = np.linalg.eigvalsh(covariance)[::-1]
    return values[:rank].sum() / values.sum(), values.sum() / values[0]


@pytest.mark.one_backend
@pytest.mark.parametrize("rank", [1, 2])
def test_spectrum_monitor_logs_the_top_mass_and_the_intrinsic_dimension(rank):
    model, (x, y) = regression(), data()
    history = fit(model, SpectrumMonitor((x, y), rank=rank), epochs=2)
    found = gradient(model, x, y)
    for mode, covariance in enumerate([found @ found.T, found.T @ found]):
        mass, dimension = spectrum(covariance, rank)
        name = f"sequential/dense/kernel/mode_{mode}"
        assert history[f"{name}/top_{rank}_mass"] == pytest.approx([mass] * 2, rel=1e-4)
        assert history[f"{name}/intrinsic_dimension"] == pytest.approx(
            [dimension] * 2, rel=1e-4
        )
        assert 0 < mass <= 1 and 1 <= dimension <= min(covariance.shape)


def unbuilt():
    model = keras.Sequential([keras.layers.Dense(3, name="dense")])
    model.compile(keras.optimizers.SGD(0.0), "mse")
    return model


def test_a_model_that_fit_builds_is_measured():
    x, y = data()
    probes = [SpectrumMonitor((x, y), rank=1), PreconditionerQuality((x, y))]
    history = unbuilt().fit(x, y, verbose=0, callbacks=probes).history
    assert history["sequential/dense/kernel/mode_0/top_1_mass"][0] > 0
    assert history["sequential/dense/kernel/level_1/trace_ratio"][0] >= 1


def test_if_fit_builds_the_model_an_expression_without_a_match_stops_after_one_batch():
    model, (x, y) = unbuilt(), data()
    probe = PreconditionerQuality((x, y), variables="embeddings")
    with pytest.raises(ValueError, match="which leaves none.*dense/kernel"):
        model.fit(x, y, batch_size=4, verbose=0, callbacks=[probe])
    assert int(ops.convert_to_numpy(model.optimizer.iterations)) <= 1


@pytest.mark.one_backend
def test_covariances_of_successive_measurements_decay():
    model, batches = regression(), [data(seed=1), data(seed=2)]
    monitor = SpectrumMonitor(batches, rank=1, decay=0.5, variables="dense")
    history = fit(model, monitor, epochs=3)
    one, two = (gradient(model, *batch) for batch in batches)
    covariance = (0.5 * one @ one.T + two @ two.T) * 0.5 + one @ one.T
    mass, _ = spectrum(covariance, 1)
    logged = history["sequential/dense/kernel/mode_0/top_1_mass"]
    assert logged[-1] == pytest.approx(mass, rel=1e-4)


@pytest.mark.one_backend
@pytest.mark.parametrize(
    ("arguments", "modes"),
    [(dict(level=2), 3), (dict(tensor_index={"kernel": (5, 6)}), 2)],
)
def test_level_and_tensor_index_choose_the_modes(arguments, modes):
    history = fit(regression(units=6), SpectrumMonitor(data(units=6), **arguments))
    assert sum("intrinsic_dimension" in key for key in history) == modes


@pytest.mark.one_backend
def test_the_covariance_of_a_padded_mode_is_that_of_the_padded_gradient():
    model, (x, y) = regression(units=1733), data(units=1733)
    history = fit(model, SpectrumMonitor((x, y), rank=1, level=2))
    found = gradient(model, x, y)
    index = TensorIndex.from_shape((5, 1733), 2)
    assert index.modes == (5, 42, 42)
    padded = np.pad(found, [(0, 0), (0, 42 * 42 - 1733)]).reshape(index.modes)
    for mode, length in enumerate(index.modes):
        unfolding = np.moveaxis(padded, mode, 0).reshape(length, -1)
        mass, _ = spectrum(unfolding @ unfolding.T, 1)
        logged = history[f"sequential/dense/kernel/mode_{mode}/top_1_mass"]
        assert logged == pytest.approx([mass], rel=1e-4)


@keras.saving.register_keras_serializable(package="test")
class Noise(keras.layers.Layer):
    """Adds noise, also in inference mode."""

    def __init__(self, **kwargs):
        super().__init__(**kwargs)
        self.seeds = keras.random.SeedGenerator(5)

    def call(self, x):
        return x + keras.random.normal(keras.ops.shape(x), seed=self.seeds)


def deep():
    """A model with everything that a call may change: seeds, statistics, metrics."""
    inputs = keras.Input((5,))
    x = keras.layers.Dense(8, name="first")(inputs)
    x = keras.layers.Dropout(0.5, seed=1)(keras.layers.BatchNormalization()(x))
    x = Noise()(x)
    outputs = [keras.layers.Dense(3, name="a")(x), keras.layers.Dense(3, name="b")(x)]
    model = keras.Model(inputs, outputs)
    model.compile(keras.optimizers.SGD(0.01), ["mse", "mse"])
    return model


def test_training_and_its_logs_stay_the_same_bit_for_bit():
    x, y = data(rows=32)
    probe = (100 * x, (y, y))
    runs = []
    for callbacks in (
        [SpectrumMonitor(probe), PreconditionerQuality(probe, frequency=3)],
        [],
    ):
        keras.backend.clear_session()
        keras.utils.set_random_seed(3)
        model = deep()
        history = model.fit(
            x, (y, y), batch_size=8, epochs=2, verbose=0, callbacks=callbacks
        ).history
        runs.append(([ops.convert_to_numpy(v) for v in model.variables], history))
    (measured, with_logs), (plain, without) = runs
    for one, other in zip(measured, plain, strict=True):
        np.testing.assert_array_equal(one, other)
    assert without == {key: with_logs[key] for key in without}
    assert any("mode_0" in key for key in with_logs)
    assert any("trace_ratio" in key for key in with_logs)


@pytest.mark.parametrize(
    ("frequency", "steps_per_execution", "measured"),
    [(1, 1, 12), (3, 1, 4), (13, 1, 0), (1, 4, 3), (5, 4, 2)],
)
def test_frequency_counts_batches_over_all_epochs(
    frequency, steps_per_execution, measured
):
    if keras.backend.backend() == "torch" and steps_per_execution > 1:
        pytest.skip("Keras has no steps_per_execution on PyTorch")
    model, (x, y) = regression(steps_per_execution=steps_per_execution), data(rows=8)
    measurements = []

    class Spy(SpectrumMonitor):
        def measure(self):
            measurements.append(True)
            return super().measure()

    monitor = Spy((x, y), frequency=frequency)
    history = model.fit(
        x, y, batch_size=2, epochs=3, verbose=0, callbacks=[monitor]
    ).history
    assert len(measurements) == measured
    assert ("sequential/dense/kernel/mode_1/top_32_mass" in history) == (measured > 0)


def test_spectrum_monitor_leaves_out_gradients_that_are_not_finite():
    x, y = data()
    bad = x.copy()
    bad[0, 0] = np.nan
    monitor = SpectrumMonitor([(x, y), (bad, y), (1e30 * x, y)], rank=1)
    history = fit(regression(), monitor, epochs=3)
    logged = history["sequential/dense/kernel/mode_0/top_1_mass"]
    assert logged == [logged[0]] * 3 and 0 < logged[0] <= 1


@pytest.mark.skipif(keras.backend.backend() != "tensorflow", reason="needs TensorBoard")
def test_tensorboard_after_the_monitor_writes_its_logs(tmp_path):
    import tensorflow as tf

    fit(regression(), SpectrumMonitor(data()), keras.callbacks.TensorBoard(tmp_path))
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
def test_spectrum_monitor_refuses_bad_arguments(arguments, message):
    with pytest.raises(ValueError, match=message):
        SpectrumMonitor(data(), **arguments)


@pytest.mark.parametrize(
    "callback",
    [
        SpectrumMonitor(data(), variables="conv"),
        SpectrumMonitor(data(), longest_mode=4),
        SpectrumMonitor(data(), level="inf"),
        PreconditionerQuality(data(), variables="conv"),
    ],
)
def test_if_nothing_can_be_measured_the_error_lists_the_paths(callback):
    with pytest.raises(ValueError, match="which leaves none.*dense/kernel"):
        fit(regression(), callback)


def test_data_without_a_batch_is_refused():
    with pytest.raises(ValueError, match="has no batch"):
        fit(regression(), SpectrumMonitor([]))


def reference_trace(squares, index):
    """Tr H_T of extreme tensoring by the paper's formula, entry by entry."""
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
def test_the_trace_equals_the_papers_sum_over_all_entries(shape, level):
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
def test_the_trace_is_at_least_adagrads(shape, level, seed, sparsity, scale):
    rng = np.random.default_rng(seed)
    squares = scale * rng.standard_normal(shape) ** 2
    squares = np.asarray(squares * (rng.random(shape) >= sparsity))
    found = trace(squares, TensorIndex.from_shape(shape, level))
    assert found >= np.sqrt(squares).sum() * (1 - 1e-12)


def test_the_trace_of_a_vector_is_adagrads_and_of_equal_squares_is_known():
    squares = np.arange(1.0, 13.0)
    exact = np.sqrt(squares).sum()
    assert trace(squares, TensorIndex.from_shape((12,), 1)) == pytest.approx(exact)
    # If all squares are 1, a slice sum is the slice's size.
    ones = np.ones((4, 9))
    index = TensorIndex.from_shape((4, 9), 1)
    assert trace(ones, index) == pytest.approx(36 * (9 * 4) ** 0.25)


@pytest.mark.parametrize("beta_2", [None, 0.5])
def test_preconditioner_quality_logs_the_ratio_of_the_accumulated_squares(beta_2):
    model, batches = regression(), [data(seed=1), data(seed=2)]
    levels = (1, 2, "inf")
    quality = PreconditionerQuality(batches, levels=levels, beta_2=beta_2)
    history = fit(model, quality, epochs=2)
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
        # The model has no other variable.
        assert history[f"level_{level}/trace_ratio"] == pytest.approx(logged)
        assert min(logged) >= 1


def test_preconditioner_quality_leaves_out_zero_and_nonfinite_gradients():
    x, y = data()
    bad = x.copy()
    bad[0, 0] = np.inf
    quality = PreconditionerQuality([(0 * x, 0 * y), (x, y), (bad, y)])
    logged = fit(regression(), quality, epochs=3)["level_2/trace_ratio"]
    # There is no ratio, and so no log, after the first epoch.
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
def test_preconditioner_quality_refuses_bad_arguments(arguments, message):
    with pytest.raises(ValueError, match=message):
        PreconditionerQuality(data(), **arguments)


def test_another_model_resets_the_sums_and_the_same_model_continues():
    quality = PreconditionerQuality([data()], levels=iter((1,)))
    assert quality.levels == (1,)
    name = "level_1/trace_ratio"
    model = regression()
    first, second = (fit(model, quality)[name] for _ in range(2))
    # At learning rate 0 the same gradient is accumulated twice: the ratio stays.
    assert first == pytest.approx(second)
    keras.backend.clear_session()
    other = regression()
    other.set_weights([w + 1.0 for w in model.get_weights()])
    reset = fit(other, quality)[name]
    expected = fit(other, PreconditionerQuality([data()], levels=(1,)))[name]
    assert reset == pytest.approx(expected)
    assert reset != pytest.approx(first)
