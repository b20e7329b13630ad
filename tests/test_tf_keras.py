"""`et_optimizer.tf_keras`: the steps of the Keras 3 optimizers, under tf_keras."""

import functools
import importlib.util
import os
import re
import subprocess
import sys

import keras
import numpy as np
import pytest

if keras.backend.backend() != "tensorflow":
    pytest.skip("tf_keras computes with TensorFlow", allow_module_level=True)
if importlib.util.find_spec("tf_keras") is None:
    pytest.skip("tf_keras is not installed", allow_module_level=True)

import tensorflow as tf
import tf_keras

import et_optimizer
import et_optimizer.tf_keras as ours
from tests import distributed_training as training
from tests.optimizers import ALL_CLASSES, LION, OPTIMIZERS, in_float32

# Its state has low-rank momentum, whose subspace is updated in a conditional branch.
SUBSPACE = "ExtremeTensoring in a subspace"
# Its state is float32, bfloat16 and int8.
QUANTIZED = "ExtremeTensoring in a subspace in int8"
# tf_keras has the classes of the library, not the one that the documentation writes.
every_optimizer = pytest.mark.parametrize(
    "name", [name for name in OPTIMIZERS if name != LION]
)
every_class = pytest.mark.parametrize("name", ALL_CLASSES)
some_optimizers = pytest.mark.parametrize("name", [SUBSPACE, "Adafactor"])


def make_keras_3(name, /, **kwargs):
    return OPTIMIZERS[name](**kwargs)


def make(name, /, **kwargs):
    """The tf_keras optimizer with the arguments of that Keras 3 optimizer."""
    of_keras_3 = OPTIMIZERS[name]
    of_tf_keras = getattr(ours, getattr(of_keras_3, "func", of_keras_3).__name__)
    return of_tf_keras(**getattr(of_keras_3, "keywords", {}) | kwargs)


# The first two have gradients that are `tf.IndexedSlices`, with repeated rows.
SHAPES = [(7, 8), (11, 4, 3), (6, 8), (5,), ()]
STEPS = 4


def starts():
    rng = np.random.default_rng(0)
    return [rng.standard_normal(shape).astype("float32") for shape in SHAPES]


def gradients_of_steps(count=STEPS, scale=1.0):
    rng = np.random.default_rng(1)

    def gradient(shape, is_sparse):
        if not is_sparse:
            return tf.constant(scale * rng.standard_normal(shape), tf.float32)
        rows = tf.constant([2, 0, 2, 6, 0])
        rows_of_gradient = scale * rng.standard_normal((5, *shape[1:]))
        return tf.IndexedSlices(
            tf.constant(rows_of_gradient, tf.float32), rows, tf.constant(shape)
        )

    return [
        [gradient(shape, i < 2) for i, shape in enumerate(SHAPES)] for _ in range(count)
    ]


def keras_3_variables():
    return [keras.Variable(v, name=f"variable_{i}") for i, v in enumerate(starts())]


def tf_variables():
    return [tf.Variable(v, name=f"variable_{i}") for i, v in enumerate(starts())]


def trained(optimizer, variables, steps, is_compiled=False):
    """The variables' values after all steps, eagerly or compiled."""
    optimizer.build(variables)

    def step(gradients):
        optimizer.apply_gradients(list(zip(gradients, variables)))

    if is_compiled:
        step = tf.function(step, jit_compile=True, autograph=False)
    for gradients in steps:
        step(gradients)
    return values(variables)


@functools.cache
def trained_in_keras_3(name):
    """The weights that the Keras 3 optimizer reaches at a learning rate of 0.1."""
    optimizer = in_float32(OPTIMIZERS[name])(learning_rate=0.1)
    return trained(optimizer, keras_3_variables(), gradients_of_steps())


def values(variables):
    return [v.numpy() for v in variables]


def assert_all_close(found, expected, atol=1e-6):
    for a, b in zip(found, expected, strict=True):
        np.testing.assert_allclose(a, b, rtol=0, atol=atol)


def assert_all_equal(found, expected):
    assert_all_close(found, expected, atol=0)


def model_of(optimizer, **kwargs):
    """A compiled classifier with an embedding."""
    model = training.model_of(tf_keras)
    model.compile(optimizer, training.loss_of(tf_keras), **kwargs)
    return model


def fit(model, epochs=2):
    x, y = training.data()
    return model.fit(
        x, y, batch_size=training.BATCH, epochs=epochs, shuffle=False, verbose=0
    ).history["loss"]


# The steps of Keras 3


@every_class
def test_weights_equal_those_of_the_keras_3_optimizer(name):
    assert_takes_the_steps_of_keras_3(name, is_compiled=False)


@some_optimizers
def test_weights_of_a_compiled_step_equal_those_of_the_keras_3_optimizer(name):
    assert_takes_the_steps_of_keras_3(name, is_compiled=True)


def test_bfloat16_weights_equal_those_of_keras_3_bit_for_bit():
    def in_bfloat16(variables_of):
        return [variables_of(value, f"v{i}") for i, value in enumerate(starts())]

    def step_of(gradient):
        if isinstance(gradient, tf.IndexedSlices):
            values = tf.cast(gradient.values, tf.bfloat16)
            return tf.IndexedSlices(values, gradient.indices, gradient.dense_shape)
        return tf.cast(gradient, tf.bfloat16)

    steps = [[step_of(g) for g in of_one] for of_one in gradients_of_steps(3)]
    arguments = {"learning_rate": 0.01, "beta_1": 0.0, "weight_decay": 0.1}
    of_keras_3 = in_bfloat16(lambda v, n: keras.Variable(v, dtype="bfloat16", name=n))
    of_tf_keras = in_bfloat16(lambda v, n: tf.Variable(tf.cast(v, tf.bfloat16), name=n))
    expected = trained(
        et_optimizer.ExtremeTensoring(**arguments), of_keras_3, steps, is_compiled=True
    )
    found = trained(
        ours.ExtremeTensoring(**arguments), of_tf_keras, steps, is_compiled=True
    )
    for one, other, start in zip(found, expected, starts(), strict=True):
        np.testing.assert_array_equal(one, other)
        assert one.dtype == other.dtype != start.dtype


def test_moving_averages_of_bfloat16_weights_follow_the_weights():
    variable = tf.Variable(tf.ones((32, 32), tf.bfloat16), name="v")
    optimizer = ours.ExtremeTensoring(0.01, beta_1=0.0, use_ema=True)
    trained(optimizer, [variable], [[tf.ones((32, 32), tf.bfloat16)]] * 3)
    average = optimizer._model_variables_moving_average[0]
    assert average.dtype == tf.bfloat16
    # Weights are at 0.97, and a hundredth of the way less than half a unit below 1.
    moved = tf.cast(average, tf.float32).numpy()
    assert 0.0 < np.mean(moved != 1.0) < 0.5


def assert_takes_the_steps_of_keras_3(name, is_compiled):
    optimizer = make(name, learning_rate=0.1, momentum_dtype="float32")
    found = trained(optimizer, tf_variables(), gradients_of_steps(), is_compiled)
    assert_all_close(found, trained_in_keras_3(name))
    assert all(np.any(a != b) for a, b in zip(found, starts()))


@every_class
def test_state_and_memory_report_equal_those_of_the_keras_3_optimizer(name):
    optimizer, of_keras_3 = make(name, use_ema=True), make_keras_3(name, use_ema=True)
    # Built by the first step, which gives tf_keras's variables longer names.
    optimizer.apply_gradients(zip(gradients_of_steps(1)[0], tf_variables()))
    of_keras_3.build(keras_3_variables())
    # After the iteration, and in Keras 3 the learning rate.
    forms = [(tuple(v.shape), v.dtype.name) for v in optimizer.variables[1:]]
    expected_forms = [(tuple(v.shape), v.dtype) for v in of_keras_3.variables[2:]]
    assert sorted(forms) == sorted(expected_forms)
    report, expected = map(et_optimizer.memory_report, (optimizer, of_keras_3))
    assert str(report) == str(expected)
    assert report.unassigned == 0 and len(report.rows) == len(SHAPES)


@pytest.mark.parametrize(
    "arguments",
    [
        {"weight_decay": 0.1},
        {"clipnorm": 2.0},
        {"global_clipnorm": 3.0},
        {"clipvalue": 0.3},
    ],
    ids=lambda arguments: next(iter(arguments)),
)
def test_weight_decay_and_clipping_equal_those_of_keras_3(arguments):
    steps = gradients_of_steps()
    arguments = {"learning_rate": 0.1} | arguments
    expected = trained(make_keras_3(SUBSPACE, **arguments), keras_3_variables(), steps)
    found = trained(make(SUBSPACE, **arguments), tf_variables(), steps)
    assert_all_close(found, expected)
    plain = trained_in_keras_3(SUBSPACE)
    assert any(np.any(np.abs(a - b) > 1e-3) for a, b in zip(found, plain))


def test_the_moving_average_starts_at_the_weights_before_the_first_step():
    # In Keras 3 it starts at those after it.
    steps = gradients_of_steps(2)
    plain = make(SUBSPACE, learning_rate=0.1)
    variables, averages = tf_variables(), starts()
    for step in steps:
        weights = trained(plain, variables, [step])
        averages = [0.9 * a + 0.1 * w for a, w in zip(averages, weights)]
    arguments = {"learning_rate": 0.1, "use_ema": True, "ema_momentum": 0.9}
    optimizer, variables = make(SUBSPACE, **arguments), tf_variables()
    assert_all_close(trained(optimizer, variables, steps), weights)
    optimizer.finalize_variable_values(variables)
    assert_all_close(values(variables), averages)
    overwriting = make(SUBSPACE, **arguments, ema_overwrite_frequency=2)
    assert_all_close(trained(overwriting, tf_variables(), steps), averages)


def test_a_schedule_sets_the_learning_rate_of_each_step():
    steps = gradients_of_steps()
    here, in_keras_3 = (
        layers_of.optimizers.schedules.PiecewiseConstantDecay([1], [0.1, 0.01])
        for layers_of in (tf_keras, keras)
    )
    found = trained(make(SUBSPACE, learning_rate=here), tf_variables(), steps)
    expected = make_keras_3(SUBSPACE, learning_rate=in_keras_3)
    assert_all_close(found, trained(expected, keras_3_variables(), steps))


@every_optimizer
def test_the_default_learning_rate_is_that_of_the_keras_3_optimizer(name):
    expected = float(make_keras_3(name).learning_rate)
    assert float(make(name).learning_rate) == expected


def test_the_learning_rate_can_be_set():
    optimizer = ours.ExtremeTensoring(0.5)
    optimizer.learning_rate = 0.25
    assert float(optimizer.learning_rate) == 0.25


def test_nonfinite_steps_are_skipped_and_counted_as_in_keras_3():
    steps = gradients_of_steps()
    steps[1][2] *= np.nan
    arguments = {"learning_rate": 0.1, "weight_decay": 0.1}
    optimizer = make(SUBSPACE, **arguments)
    of_keras_3 = make_keras_3(SUBSPACE, **arguments)
    found = trained(optimizer, tf_variables(), steps)
    assert_all_close(found, trained(of_keras_3, keras_3_variables(), steps))
    assert optimizer.skipped_steps == of_keras_3.skipped_steps == {"variable_2": 1}


def test_nonfinite_raise_refuses_an_eager_step_before_any_change():
    (step,) = gradients_of_steps(1)
    optimizer = make(SUBSPACE, nonfinite="raise", weight_decay=0.1)
    variables = tf_variables()
    with pytest.raises(ValueError, match="must be finite.*'variable_2'"):
        optimizer.apply_gradients(zip([*step[:2], step[2] * np.nan], variables))
    assert_all_equal(values(variables), starts())
    assert int(optimizer.iterations) == 0


def test_nonfinite_raise_raises_at_the_end_of_fit_for_compiled_steps():
    model = model_of(ours.ExtremeTensoring(0.01, nonfinite="raise", weight_decay=0.1))
    model.compile(model.optimizer, lambda labels, found: found[:, 0] * np.nan)
    before = values(model.weights)
    with pytest.raises(ValueError, match="must be finite.*kernel"):
        fit(model)
    assert_all_equal(values(model.weights), before)


# Training with fit


def test_a_compiled_fit_equals_an_uncompiled_one():
    # After few steps: what rounding changes grows from step to step.
    one, other = (
        model_of(make(SUBSPACE, learning_rate=0.005), jit_compile=jit_compile)
        for jit_compile in (True, False)
    )
    assert_all_close([fit(one, epochs=1)], [fit(other, epochs=1)], atol=1e-5)
    assert_all_close(values(one.weights), values(other.weights), atol=1e-5)


@pytest.fixture
def policy(request):
    tf_keras.mixed_precision.set_global_policy(request.param)
    yield request.param
    tf_keras.mixed_precision.set_global_policy("float32")


@pytest.mark.parametrize(
    "policy", ["float32", "mixed_float16", "mixed_bfloat16"], indirect=True
)
def test_fit_lowers_the_loss_in_every_precision_with_float32_state(policy):
    optimizer = make(SUBSPACE, learning_rate=0.05)
    model = model_of(optimizer)
    losses = fit(model, epochs=8)
    assert losses[-1] < 0.8 * losses[0]
    assert int(optimizer.iterations) == 32
    is_scaled = isinstance(model.optimizer, tf_keras.mixed_precision.LossScaleOptimizer)
    assert is_scaled == (policy == "mixed_float16")
    slots = [v for v in optimizer.variables if v.dtype.is_floating]
    assert {v.dtype for v in slots} == {tf.float32}


def test_a_loss_scale_is_undone_and_overflowing_steps_are_skipped():
    optimizer = tf_keras.mixed_precision.LossScaleOptimizer(
        make(SUBSPACE, learning_rate=0.1), initial_scale=8.0
    )
    variables = tf_variables()

    def train(scaled_steps):
        for scaled in scaled_steps:
            gradients = optimizer.get_unscaled_gradients(scaled)
            optimizer.apply_gradients(list(zip(gradients, variables)))
        return values(variables)

    steps = gradients_of_steps(scale=4.0)
    overflowing = [g * np.inf if i == 2 else g for i, g in enumerate(steps[0])]
    assert_all_equal(train([overflowing]), starts())
    # The scale is halved, and, unlike in Keras 3, the skipped step counts.
    expected, expected_variables = (
        make_keras_3(SUBSPACE, learning_rate=0.1),
        keras_3_variables(),
    )
    expected.build(expected_variables)
    expected.iterations.assign(1)
    assert_all_close(
        train(steps), trained(expected, expected_variables, gradients_of_steps())
    )


def test_two_mirrored_devices_train_as_one_device_does():
    mirrored = training.mirrored()
    one = model_of(make(SUBSPACE, learning_rate=0.005))
    fit(one)
    with mirrored.scope():
        model = model_of(make(SUBSPACE, learning_rate=0.005))
    fit(model)
    assert_all_close(values(model.weights), values(one.weights))
    slots = model.optimizer.variables[1:]
    assert len(slots) == len(one.optimizer.variables[1:]) > 0
    for slot in slots:
        on_one, on_other = slot.values
        assert "CPU:0" in on_one.device and "CPU:1" in on_other.device
        np.testing.assert_array_equal(on_one.numpy(), on_other.numpy())


# Saving and loading


@every_optimizer
def test_get_config_recreates_the_optimizer(name):
    schedule = tf_keras.optimizers.schedules.ExponentialDecay(0.1, 3, 0.5)
    of_every_optimizer = {"weight_decay": 0.01, "clipnorm": 3.0, "name": "mine"}
    optimizer = make(name, learning_rate=schedule, **of_every_optimizer)
    config = optimizer.get_config()
    of_keras_3 = make_keras_3(name)
    expected = of_every_optimizer | {
        argument: of_keras_3.get_config()[argument]
        for argument in ours.arguments(type(of_keras_3))
    }
    assert {argument: config[argument] for argument in expected} == expected
    again = type(optimizer).from_config(dict(config))
    assert again.get_config() == config
    serialized = tf_keras.optimizers.serialize(optimizer)
    assert serialized["registered_name"].startswith("et_optimizer>")
    revived = tf_keras.optimizers.deserialize(serialized)
    assert type(revived) is type(optimizer) and revived.get_config() == config


def test_a_model_in_keras_format_and_in_hdf5_continues_as_if_never_saved(tmp_path):
    model = model_of(make(SUBSPACE, learning_rate=0.05))
    fit(model)
    paths = tmp_path / "model.keras", tmp_path / "model.h5"
    for path in paths:
        model.save(path)
    fit(model)
    for path in paths:
        loaded = tf_keras.models.load_model(path)
        assert type(loaded.optimizer) is type(model.optimizer)
        assert int(loaded.optimizer.iterations) == 8
        fit(loaded)
        for one, other in ((loaded, model), (loaded.optimizer, model.optimizer)):
            assert_all_equal(values(one.variables), values(other.variables))


def checkpointed(optimizer, is_built=True):
    variables = tf_variables()
    if is_built:
        optimizer.build(variables)
    checkpoint = tf.train.Checkpoint(optimizer=optimizer, variables=variables)
    return optimizer, variables, checkpoint


@pytest.mark.parametrize(
    ("name", "is_built"),
    [
        (QUANTIZED, True),
        (QUANTIZED, False),
        # It has an argument by path, which must match a variable; none exists yet.
        ("SubsetNorm everything on", False),
    ],
)
def test_checkpoints_resume_bit_for_bit_when_restored_before_or_after_building(
    name, is_built, tmp_path
):
    steps = gradients_of_steps()
    optimizer, variables, checkpoint = checkpointed(make(name, learning_rate=0.1))
    trained(optimizer, variables, steps[:2])
    path = checkpoint.save(str(tmp_path / "checkpoint"))
    undisturbed = trained(optimizer, variables, steps[2:])
    optimizer, variables, checkpoint = checkpointed(make(name), is_built)
    status = checkpoint.restore(path)
    assert_all_equal(trained(optimizer, variables, steps[2:]), undisturbed)
    status.assert_consumed()
    assert int(optimizer.iterations) == STEPS


@pytest.mark.parametrize("is_built", [True, False], ids=["built", "not built"])
def test_a_checkpoint_of_another_level_is_refused_before_any_change(is_built, tmp_path):
    at_level_1 = ours.ExtremeTensoring(level=1, beta_1=0)
    optimizer, variables, checkpoint = checkpointed(at_level_1)
    trained(optimizer, variables, gradients_of_steps(1))
    path = checkpoint.save(str(tmp_path / "checkpoint"))
    at_level_2 = ours.ExtremeTensoring(level=2, beta_1=0)
    optimizer, variables, checkpoint = checkpointed(at_level_2, is_built)
    before = values([*variables, *optimizer.variables])
    with pytest.raises(ValueError, match="level=2.*Make the optimizer with") as refused:
        checkpoint.restore(path)
        assert not is_built
        optimizer.build(variables)
    assert "ListWrapper" not in str(refused.value)
    assert "('mode_0', (7,), 'float32')" in str(refused.value)
    assert optimizer.built == is_built
    if is_built:
        assert_all_equal(values([*variables, *optimizer.variables]), before)


# Errors


@pytest.mark.parametrize(
    "argument",
    ["no_such_argument", "loss_scale_factor", "gradient_accumulation_steps", "lr"],
)
def test_an_argument_that_tf_keras_lacks_is_refused(argument):
    with pytest.raises(TypeError, match=f"'{argument}'. It takes .*, level, "):
        ours.ExtremeTensoring(**{argument: 2})


@pytest.mark.parametrize(
    ("optimizer", "arguments", "message"),
    [
        (ours.ExtremeTensoring, {"level": 0}, "level must be .* received level=0"),
        (ours.SM3, {"nonfinite": "ignore"}, "nonfinite must be 'skip' or 'raise'"),
        (
            ours.SM3,
            {"learning_rate": keras.optimizers.schedules.ExponentialDecay(1.0, 1, 0.5)},
            "tf_keras.optimizers.schedules",
        ),
    ],
)
def test_an_invalid_argument_is_refused(optimizer, arguments, message):
    with pytest.raises(ValueError, match=message):
        optimizer(**arguments)


def test_an_integer_variable_is_refused_before_any_state_is_created():
    optimizer = ours.ExtremeTensoring()
    with pytest.raises(ValueError, match="'count' of dtype int32"):
        optimizer.build([tf.Variable([1.0]), tf.Variable([1], name="count")])
    assert not optimizer.built and len(optimizer.variables) == 1


# Imports


def test_only_its_own_module_imports_tf_keras_and_it_refuses_other_backends():
    pytest.importorskip("jax")
    program = """
import sys
import et_optimizer
assert "tf_keras" not in sys.modules
assert "et_optimizer.tf_keras" not in sys.modules
assert not hasattr(et_optimizer, "tf_keras")
import et_optimizer.tf_keras
"""
    done = subprocess.run(
        [sys.executable, "-c", program],
        env=os.environ | {"KERAS_BACKEND": "jax"},
        cwd=training.ROOT,
        capture_output=True,
        text=True,
    )
    assert done.returncode != 0
    last = done.stderr.strip().splitlines()[-1]
    assert re.match("ImportError: .*'jax'.*KERAS_BACKEND=tensorflow", last)


def test_state_of_another_level_for_a_single_variable_is_refused():
    saved, optimizers = {}, []
    for level in ("inf", 1):
        optimizer = et_optimizer.tf_keras.ExtremeTensoring(level=level)
        optimizer.build([tf.Variable(tf.ones((6, 8)))])
        optimizers.append(optimizer)
    optimizers[0].save_own_variables(saved)
    with pytest.raises(ValueError, match="does not fit this ExtremeTensoring"):
        optimizers[1].load_own_variables(saved)
