"""What Keras users do with an optimizer, for the optimizers of this library."""

import re

import keras
import numpy as np
import pytest
import tensorflow as tf
from keras import ops

import et_optimizer
from et_optimizer import ExtremeTensoring
from tests.optimizers import (
    ALL_CLASSES,
    LION,
    ONE_OF_EACH,
    OPTIMIZERS,
    SLOTS_OF_EACH_KIND,
    TENSORED,
    in_float32,
)
from tests.updates import take_step

BACKEND = keras.backend.backend()
every_optimizer = pytest.mark.parametrize("make", OPTIMIZERS.values(), ids=OPTIMIZERS)
one_of_each = pytest.mark.parametrize("make", ONE_OF_EACH.values(), ids=ONE_OF_EACH)
# All under PyTorch; elsewhere, where each is compiled, one with each kind of slots.
KINDS = OPTIMIZERS if BACKEND == "torch" else SLOTS_OF_EACH_KIND
each_kind_of_slots = pytest.mark.parametrize(
    "make", [OPTIMIZERS[name] for name in KINDS], ids=KINDS
)
SAVED = OPTIMIZERS if BACKEND == "torch" else SLOTS_OF_EACH_KIND[1::2]
each_saved = pytest.mark.parametrize(
    "make", [OPTIMIZERS[name] for name in SAVED], ids=SAVED
)
# With loss scaling and without, for computations only and for weights too.
POLICIES = ["mixed_float16", "bfloat16"]
POLICIES += ["mixed_bfloat16"] if BACKEND == "torch" else []
every_tensored_optimizer = pytest.mark.parametrize(
    "make", TENSORED.values(), ids=TENSORED
)


def data(count=64, seed=0):
    rng = np.random.default_rng(seed)
    x = rng.standard_normal((count, 12)).astype("float32")
    y = (x[:, :3] @ rng.standard_normal((3, 4))).argmax(-1)
    return x, y


def classifier():
    return keras.Sequential(
        [
            keras.Input((12,)),
            keras.layers.Dense(20, activation="tanh", name="hidden"),
            keras.layers.Dense(4, name="logits", dtype="float32"),
        ]
    )


def compiled(optimizer, jit_compile=None, **kwargs):
    """A compiled classifier; by default XLA compiles its steps on JAX only."""
    if jit_compile is None:  # XLA would take two thirds of a test's time on TensorFlow.
        jit_compile = "auto" if BACKEND == "jax" else False
    model = classifier()
    model.compile(
        optimizer,
        keras.losses.SparseCategoricalCrossentropy(from_logits=True),
        jit_compile=jit_compile,
        **kwargs,
    )
    return model


def weights(model):
    return [ops.convert_to_numpy(ops.cast(w, "float32")) for w in model.weights]


def assert_equal_weights(one, other, **tolerance):
    for a, b in zip(one, other, strict=True):
        if tolerance:
            np.testing.assert_allclose(a, b, **tolerance)
        else:
            np.testing.assert_array_equal(a, b)


def variable_of(values):
    return keras.Variable(np.asarray(values, "float32"), name="weights")


def apply_all(optimizer, variable, gradients):
    for gradient in gradients:
        apply(optimizer, [variable], [gradient])
    return ops.convert_to_numpy(variable)


def apply(optimizer, variables, gradients):
    gradients = [ops.convert_to_tensor(gradient, "float32") for gradient in gradients]
    take_step(optimizer, gradients, variables)


START = np.random.default_rng(1).standard_normal((6, 8)).astype("float32")
GRADIENTS = np.random.default_rng(2).standard_normal((6, 6, 8)).astype("float32")


@each_kind_of_slots
def test_fit_on_tf_data_lowers_the_loss(make):
    # Compiled by XLA on TensorFlow and JAX.
    check_fit_on_tf_data(make, jit_compile="auto")


@pytest.mark.two_backends
@pytest.mark.skipif(BACKEND == "torch", reason="PyTorch does not use XLA above")
def test_fit_without_xla_lowers_the_loss():
    check_fit_on_tf_data(ExtremeTensoring, jit_compile=False)


def check_fit_on_tf_data(make, jit_compile):
    batches = tf.data.Dataset.from_tensor_slices(data()).batch(16).prefetch(2)
    model = compiled(make(learning_rate=0.05), jit_compile=jit_compile)
    history = model.fit(batches, epochs=10, verbose=0).history["loss"]
    assert history[-1] < 0.8 * history[0]
    assert int(model.optimizer.iterations) == 40


@pytest.mark.one_backend
def test_the_shared_suites_cover_every_exported_class():
    covered = {type(make()) for make in map(OPTIMIZERS.get, ALL_CLASSES)}
    exported = [getattr(et_optimizer, name) for name in et_optimizer.__all__]
    classes = {one for one in exported if hasattr(one, "update_step")}
    assert covered == classes - {et_optimizer.PreconditionedOptimizer}


@one_of_each
def test_a_schedule_sets_the_learning_rate_of_each_step(make):
    make = in_float32(make)
    learning_rates = [0.1, 0.1, 0.01, 0.01]
    schedule = keras.optimizers.schedules.PiecewiseConstantDecay([1], [0.1, 0.01])
    by_schedule = apply_all(
        make(learning_rate=schedule), variable_of(START), GRADIENTS[:4]
    )
    optimizer, variable = make(learning_rate=0.1), variable_of(START)
    for learning_rate, gradient in zip(learning_rates, GRADIENTS):
        optimizer.learning_rate = learning_rate
        by_hand = apply_all(optimizer, variable, [gradient])
    np.testing.assert_allclose(by_schedule, by_hand, rtol=1e-6)


@pytest.mark.one_backend
@one_of_each
def test_the_callback_learning_rate_scheduler_sets_the_learning_rate(make):
    x, y = data()
    model = compiled(make(learning_rate=0.1))
    callback = keras.callbacks.LearningRateScheduler(lambda epoch, old: old / 2)
    model.fit(x, y, epochs=2, verbose=0, callbacks=[callback])
    assert float(model.optimizer.learning_rate) == pytest.approx(0.025)


@pytest.mark.one_backend
@every_optimizer
def test_weight_decay_shrinks_all_variables_except_excluded_ones(make):
    zero = np.zeros_like(START)
    decayed = variable_of(START)
    excluded = keras.Variable(START, name="excluded")
    optimizer = make(learning_rate=0.1, weight_decay=0.5)
    optimizer.exclude_from_weight_decay(var_names=["excluded"])
    optimizer.apply([ops.convert_to_tensor(zero)] * 2, [decayed, excluded])
    np.testing.assert_allclose(decayed.numpy(), START * 0.95, rtol=1e-6)
    np.testing.assert_array_equal(excluded.numpy(), START)


@one_of_each
@pytest.mark.parametrize("limit", ["clipnorm", "global_clipnorm", "clipvalue"])
def test_gradient_clipping_equals_clipping_by_hand(make, limit):
    make = in_float32(make)
    rng = np.random.default_rng(0)
    gradients = GRADIENTS * 10 ** rng.uniform(-1, 1, (len(GRADIENTS), 1, 1))
    bound = {"clipnorm": 2.0, "global_clipnorm": 2.0, "clipvalue": 0.3}[limit]

    def clip(g):
        if limit == "clipvalue":
            return np.clip(g, -bound, bound)
        return g * min(1.0, bound / np.linalg.norm(g))

    clipped = apply_all(
        make(learning_rate=0.1, **{limit: bound}), variable_of(START), gradients
    )
    by_hand = apply_all(
        make(learning_rate=0.1), variable_of(START), [clip(g) for g in gradients]
    )
    np.testing.assert_allclose(clipped, by_hand, rtol=1e-4, atol=1e-6)


def clipped_steps(limit, gradients):
    """The variables after some steps, and how many steps each of them skipped."""
    shapes = {"other": (5,), "empty": (0, 3)}
    variables = [variable_of(START)]
    variables += [keras.Variable(np.ones(s), name=name) for name, s in shapes.items()]
    optimizer = ExtremeTensoring(0.1, weight_decay=0.1, **limit)
    for step in gradients:
        apply(optimizer, variables, [*step, np.ones((0, 3))])
    return [variable.numpy() for variable in variables], optimizer.skipped_steps


def test_global_clipnorm_clips_by_the_norm_of_all_gradients():
    gradients = [(g, np.arange(5.0) + step) for step, g in enumerate(GRADIENTS[:3])]
    norms = [np.sqrt(sum(np.sum(np.square(g)) for g in step)) for step in gradients]
    by_hand = [
        [g * min(1.0, 0.5 / norm) for g in step] for step, norm in zip(gradients, norms)
    ]
    found, _ = clipped_steps({"global_clipnorm": 0.5}, gradients)
    expected, _ = clipped_steps({}, by_hand)
    for one, other in zip(found, expected):
        np.testing.assert_allclose(one, other, rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize("bad", [np.nan, np.inf, 1e30])
def test_no_variable_takes_a_step_if_the_global_norm_is_not_finite(bad):
    bad_gradient = np.array(GRADIENTS[0])
    bad_gradient.flat[1] = bad
    good_step, bad_step = (GRADIENTS[0], np.ones(5)), (bad_gradient, np.ones(5))
    found, skipped = clipped_steps({"global_clipnorm": 0.5}, [good_step, bad_step])
    expected, _ = clipped_steps({"global_clipnorm": 0.5}, [good_step])
    for one, other in zip(found, expected):
        np.testing.assert_array_equal(one, other)
    assert list(skipped.values()) == [1, 1]


@pytest.mark.parametrize(
    "make",
    [
        keras.Variable,
        pytest.param(ops.convert_to_tensor, marks=pytest.mark.one_backend),
    ],
    ids=["variable", "tensor"],
)
def test_weight_decay_may_be_a_variable_or_a_tensor(make):
    model = compiled(ExtremeTensoring(0.1, weight_decay=0.5))
    model.optimizer.weight_decay = make(0.5)
    expected = compiled(ExtremeTensoring(0.1, weight_decay=0.5))
    expected.set_weights(model.get_weights())
    for one in (model, expected):
        one.fit(*data(), epochs=1, batch_size=32, shuffle=False, verbose=0)
    assert_equal_weights(weights(model), weights(expected), rtol=1e-5, atol=1e-6)


@one_of_each
def test_use_ema_overwrites_weights_with_their_moving_average(make):
    make = in_float32(make)
    plain, optimizer = variable_of(START), make(learning_rate=0.1)
    average = None
    for step, gradient in enumerate(GRADIENTS[:2]):
        value = apply_all(optimizer, plain, [gradient])
        average = value if step == 0 else 0.9 * average + 0.1 * value
    averaged = apply_all(
        make(
            learning_rate=0.1,
            use_ema=True,
            ema_momentum=0.9,
            ema_overwrite_frequency=2,
        ),
        variable_of(START),
        GRADIENTS[:2],
    )
    np.testing.assert_allclose(averaged, average, rtol=1e-5, atol=1e-6)


@one_of_each
def test_the_callback_swap_ema_weights_evaluates_averaged_weights(make):
    x, y = data()
    model = compiled(make(learning_rate=0.1, use_ema=True, ema_momentum=0.9))
    evaluated = []

    class Record(keras.callbacks.Callback):
        def on_test_begin(self, logs=None):
            evaluated.append([ops.convert_to_numpy(w) for w in model.trainable_weights])

    swap = keras.callbacks.SwapEMAWeights(swap_on_epoch=False)
    model.fit(x, y, epochs=1, validation_data=(x, y), verbose=0)
    averages = [
        ops.convert_to_numpy(a) for a in model.optimizer._model_variables_moving_average
    ]
    model.evaluate(x, y, verbose=0, callbacks=[swap, Record()])
    assert_equal_weights(evaluated[0], averages)


@one_of_each
def test_a_step_of_accumulated_gradients_equals_a_step_of_their_mean(make):
    make = in_float32(make)
    accumulated = apply_all(
        make(learning_rate=0.1, gradient_accumulation_steps=3),
        variable_of(START),
        GRADIENTS,
    )
    means = [GRADIENTS[:3].mean(0), GRADIENTS[3:].mean(0)]
    by_hand = apply_all(make(learning_rate=0.1), variable_of(START), means)
    np.testing.assert_allclose(accumulated, by_hand, rtol=1e-4, atol=1e-6)


@pytest.mark.one_backend
@one_of_each
def test_gradients_are_divided_by_loss_scale_factor(make):
    make = in_float32(make)
    scaled = apply_all(
        make(learning_rate=0.1, loss_scale_factor=1024.0),
        variable_of(START),
        GRADIENTS * 1024,
    )
    plain = apply_all(make(learning_rate=0.1), variable_of(START), GRADIENTS)
    np.testing.assert_allclose(scaled, plain, rtol=1e-5)


@one_of_each
def test_loss_scale_optimizer_skips_steps_that_overflow(make):
    make = in_float32(make)
    optimizer = keras.optimizers.LossScaleOptimizer(
        make(learning_rate=0.1), initial_scale=8.0
    )
    variable = variable_of(START)
    apply_all(optimizer, variable, [np.full_like(START, np.inf)])
    np.testing.assert_array_equal(variable.numpy(), START)
    scaled = apply_all(optimizer, variable, GRADIENTS * 4.0)
    plain = apply_all(make(learning_rate=0.1), variable_of(START), GRADIENTS)
    # Two separately compiled programs round a weight near 0 differently.
    atol = 1e-6 if BACKEND == "jax" else 0
    np.testing.assert_allclose(scaled, plain, rtol=1e-5, atol=atol)


@one_of_each
@pytest.mark.parametrize("policy", POLICIES)
def test_training_in_half_precision_lowers_the_loss(make, policy):
    keras.config.set_dtype_policy(policy)
    x, y = data()
    model = compiled(make(learning_rate=0.05))
    history = model.fit(x, y, batch_size=16, epochs=10, verbose=0).history["loss"]
    assert history[-1] < 0.8 * history[0]
    is_scaled = isinstance(model.optimizer, keras.optimizers.LossScaleOptimizer)
    assert is_scaled == (policy == "mixed_float16")


@pytest.mark.one_backend
@one_of_each
def test_multi_optimizer_gives_each_optimizer_its_variables(make):
    x, y = data()
    ours, theirs = make(learning_rate=0.05), keras.optimizers.SGD(0.0)
    model = compiled(
        keras.optimizers.MultiOptimizer(
            keras.optimizers.OptimizerMap(theirs, {".*hidden.*": ours})
        )
    )
    before = weights(model)
    model.fit(x, y, epochs=1, verbose=0)
    moved = [np.any(a != b) for a, b in zip(before, weights(model))]
    assert moved == [True, True, False, False]
    assert len(ours._trainable_variables) == 2


@pytest.mark.one_backend
@one_of_each
def test_frozen_variables_have_no_slots_and_do_not_move(make):
    x, y = data()
    model = compiled(make(learning_rate=0.05))
    model.get_layer("hidden").trainable = False
    before = weights(model)
    model.fit(x, y, epochs=1, verbose=0)
    moved = [np.any(a != b) for a, b in zip(before, weights(model))]
    assert moved == [False, False, True, True]
    assert not [v for v in model.optimizer.variables if "hidden" in v.name]


@pytest.mark.two_backends
@one_of_each
def test_a_missing_gradient_changes_neither_variable_nor_state(make):
    used, unused = variable_of(START), keras.Variable(START, name="unused")
    optimizer = make(learning_rate=0.1)
    optimizer.build([used, unused])
    state = [v for v in optimizer.variables if v.name.startswith("unused")]
    before = [ops.convert_to_numpy(v) for v in state]
    with pytest.warns(UserWarning, match="Gradients do not exist"):
        optimizer.apply([ops.convert_to_tensor(GRADIENTS[0]), None], [used, unused])
    np.testing.assert_array_equal(unused.numpy(), START)
    assert state
    for value, slot in zip(before, state):
        np.testing.assert_array_equal(ops.convert_to_numpy(slot), value)
    assert np.any(used.numpy() != START)


@pytest.mark.one_backend
@one_of_each
def test_constraints_hold_after_every_step(make):
    variable = variable_of(np.abs(START))
    variable.constraint = keras.constraints.NonNeg()
    after = apply_all(make(learning_rate=1.0), variable, GRADIENTS)
    assert after.min() == 0.0 and after.max() > 0.0


@one_of_each
def test_a_variable_with_overwrite_with_gradient_gets_it_and_has_no_slots(make):
    make = in_float32(make)
    trained, written = variable_of(START), keras.Variable(START, name="written")
    written.overwrite_with_gradient = True
    optimizer = make(learning_rate=0.1)
    gradients = [ops.convert_to_tensor(g) for g in GRADIENTS[:2]]
    optimizer.apply(gradients, [trained, written])
    np.testing.assert_array_equal(written.numpy(), GRADIENTS[1])
    assert not [v for v in optimizer.variables if v.name.startswith("written")]
    alone = variable_of(START)
    make(learning_rate=0.1).apply(gradients[:1], [alone])
    np.testing.assert_allclose(trained.numpy(), alone.numpy(), rtol=1e-6)


@pytest.mark.one_backend
@every_optimizer
def test_empty_variables_and_scalars_are_trained(make):
    empty = keras.Variable(np.zeros((0, 3), "float32"), name="empty")
    scalar = keras.Variable(1.0, name="scalar")
    optimizer = make(learning_rate=0.1)
    optimizer.apply([ops.zeros((0, 3)), ops.ones(())], [empty, scalar])
    assert float(scalar) < 1.0


@pytest.mark.one_backend
@every_optimizer
def test_an_optimizer_from_the_config_takes_equal_steps(make):
    schedule = keras.optimizers.schedules.ExponentialDecay(0.1, 3, 0.5)
    explicit = {"tensor_index": {"^weights$": (4, 12)}}
    optimizer = make(
        **(explicit if make in TENSORED.values() else {}),
        learning_rate=schedule,
        weight_decay=0.01,
        clipnorm=3.0,
        name="ours",
    )
    config = optimizer.get_config()
    again = type(optimizer).from_config(config)
    assert again.get_config() == config
    serialized = keras.saving.serialize_keras_object(optimizer)
    package = "my_optimizers" if make is OPTIMIZERS[LION] else "et_optimizer"
    assert serialized["registered_name"].startswith(f"{package}>")
    revived = keras.saving.deserialize_keras_object(serialized)
    one = apply_all(optimizer, variable_of(START), GRADIENTS)
    np.testing.assert_array_equal(
        apply_all(revived, variable_of(START), GRADIENTS), one
    )
    assert re.search("ours", again.name)


@keras.saving.register_keras_serializable(package="test")
def index_of_weights(path, shape):
    return (4, 12) if path == "weights" else None


@pytest.mark.one_backend
@every_tensored_optimizer
def test_a_registered_callable_tensor_index_survives_serialization(make):
    optimizer = make(learning_rate=0.1, tensor_index=index_of_weights)
    revived = keras.saving.deserialize_keras_object(
        keras.saving.serialize_keras_object(optimizer)
    )
    one = apply_all(optimizer, variable_of(START), GRADIENTS)
    np.testing.assert_array_equal(
        apply_all(revived, variable_of(START), GRADIENTS), one
    )


@each_saved
def test_a_loaded_model_trains_on_as_if_never_saved(make, tmp_path):
    x, y = data()
    model = compiled(make(learning_rate=0.05))
    model.fit(x, y, epochs=2, verbose=0, shuffle=False)
    model.save(tmp_path / "model.keras")
    model.fit(x, y, epochs=2, verbose=0, shuffle=False)
    loaded = keras.models.load_model(tmp_path / "model.keras")
    loaded.fit(x, y, epochs=2, verbose=0, shuffle=False)
    assert_equal_weights(weights(loaded), weights(model))


@pytest.mark.one_backend
@one_of_each
def test_a_compiled_untrained_model_is_saved_and_loaded(make, tmp_path):
    x, y = data()
    model = compiled(make(learning_rate=0.05))
    model.save(tmp_path / "model.keras")
    loaded = keras.models.load_model(tmp_path / "model.keras")
    loaded.fit(x, y, epochs=1, verbose=0, shuffle=False)
    model.fit(x, y, epochs=1, verbose=0, shuffle=False)
    assert_equal_weights(weights(loaded), weights(model))


@pytest.mark.two_backends
@one_of_each
def test_save_weights_saves_the_weights_and_the_state(make, tmp_path):
    x, y = data()
    model = compiled(make(learning_rate=0.05))
    model.fit(x, y, epochs=1, verbose=0)
    model.save_weights(tmp_path / "model.weights.h5")
    fresh = compiled(make(learning_rate=0.05))
    with pytest.warns(UserWarning, match="Skipping variable loading for optimizer"):
        fresh.load_weights(tmp_path / "model.weights.h5")
    assert_equal_weights(weights(fresh), weights(model))
    # Keras loads the state only into an optimizer that is built.
    fresh.optimizer.build(fresh.trainable_variables)
    fresh.load_weights(tmp_path / "model.weights.h5")
    for one, other in zip(fresh.optimizer.variables, model.optimizer.variables):
        np.testing.assert_array_equal(one.numpy(), other.numpy())


@pytest.mark.skipif(
    BACKEND != "tensorflow",
    reason="Keras makes complex variables on TensorFlow only",
)
def test_complex_variables_are_refused():
    variable = keras.Variable(np.zeros((3, 2)), dtype="complex64", name="bad")
    with pytest.raises(ValueError, match="'bad' of dtype complex64"):
        ExtremeTensoring().build([variable])
