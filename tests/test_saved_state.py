"""Saved state is loaded if it fits, and refused with the reason if it does not."""

import functools

import keras
import numpy as np
import pytest
from keras import ops

from et_optimizer import SM3, Adafactor, ExtremeTensoring, SubsetNorm
from tests.optimizers import ONE_OF_EACH, slots_of
from tests.updates import random_gradients

one_of_each = pytest.mark.parametrize("make", ONE_OF_EACH.values(), ids=ONE_OF_EACH)
SHAPES = [(6, 5), (4,)]
PLAIN = functools.partial(ExtremeTensoring, beta_1=0)


def variables():
    return [keras.Variable(np.ones(shape, "float32")) for shape in SHAPES]


def trained(optimizer, steps=2, own=None):
    own = variables() if own is None else own
    gradients = [random_gradients(shape, seed=0, steps=steps) for shape in SHAPES]
    for step in zip(*gradients):
        optimizer.apply([ops.convert_to_tensor(g) for g in step], own)
    return optimizer


def state_of(optimizer):
    store = {}
    optimizer.save_own_variables(store)
    return store


def values(variables):
    return [np.array(ops.convert_to_numpy(ops.cast(v, "float32"))) for v in variables]


# Pairs of optimizers with state of the same shapes, and the difference in the error.
DIFFERENCES = {
    "rule": (PLAIN, functools.partial(SM3, 0.1), "by ExtremeTensoring, here SM3"),
    "Adafactor": (PLAIN, Adafactor, "by ExtremeTensoring, here Adafactor"),
    "beta_2": (
        functools.partial(PLAIN, beta_2=0.99),
        functools.partial(PLAIN, beta_2=None),
        "with beta_2=0.99, here beta_2=None",
    ),
    "variant": (
        SM3,
        functools.partial(SM3, variant="I"),
        "with variant='II', here variant='I'",
    ),
    "momentum_of": (
        SubsetNorm,
        functools.partial(SubsetNorm, momentum_of="gradient"),
        "with momentum_of='update', here momentum_of='gradient'",
    ),
}


@pytest.mark.one_backend
@pytest.mark.parametrize(
    ("saved", "loading", "difference"), DIFFERENCES.values(), ids=DIFFERENCES
)
def test_state_of_the_same_shapes_with_another_meaning_is_refused(
    saved, loading, difference
):
    store, optimizer = state_of(trained(saved())), trained(loading())
    before = values(optimizer.variables)
    with pytest.raises(ValueError, match=f"{difference}.*0.2"):
        optimizer.load_own_variables(store)
    for one, other in zip(before, values(optimizer.variables)):
        np.testing.assert_array_equal(one, other)


@pytest.mark.one_backend
def test_the_error_names_the_argument_that_changed_the_shapes():
    store, optimizer = state_of(trained(PLAIN(level=1))), trained(PLAIN(level=2))
    with pytest.raises(
        ValueError, match="saved with level=1, here level=2; it has the shapes"
    ):
        optimizer.load_own_variables(store)


@pytest.mark.one_backend
@pytest.mark.parametrize("file", ["model.keras", "model.weights.h5"])
def test_saved_files_with_another_rule_are_refused(file, tmp_path):
    def model(optimizer):
        made = keras.Sequential([keras.Input((3,)), keras.layers.Dense(4)])
        made.compile(optimizer, "mse")
        made.fit(np.ones((4, 3)), np.zeros((4, 4)), verbose=0)
        return made

    saved = model(PLAIN())
    save = saved.save if file.endswith("keras") else saved.save_weights
    save(tmp_path / file)
    with pytest.raises(ValueError, match="saved by ExtremeTensoring, here SM3"):
        model(SM3(0.1)).load_weights(tmp_path / file)
    again = model(PLAIN())
    again.load_weights(tmp_path / file)
    for one, other in zip(saved.optimizer.variables, again.optimizer.variables):
        np.testing.assert_array_equal(*values([one, other]))


@pytest.mark.skipif(
    keras.backend.backend() != "tensorflow", reason="about tf.train.Checkpoint"
)
def test_a_checkpoint_with_another_rule_is_refused(tmp_path):
    import tensorflow as tf

    saved = trained(PLAIN())
    path = tf.train.Checkpoint(optimizer=saved).save(str(tmp_path / "checkpoint"))
    with pytest.raises(ValueError, match="saved by ExtremeTensoring, here SM3"):
        tf.train.Checkpoint(optimizer=trained(SM3(0.1))).restore(path)
    unbuilt = SM3(0.1)
    tf.train.Checkpoint(optimizer=unbuilt).restore(path)
    with pytest.raises(ValueError, match="saved by ExtremeTensoring, here SM3"):
        unbuilt.build(variables())


SCHEDULE = keras.optimizers.schedules.ExponentialDecay(0.1, 10, 0.5)
# Arguments that change which variables Keras adds to the state.
KERAS_ARGUMENTS = [
    {"learning_rate": SCHEDULE},
    {"use_ema": True},
    {"gradient_accumulation_steps": 2},
    {"learning_rate": SCHEDULE, "use_ema": True, "gradient_accumulation_steps": 2},
]


@pytest.mark.one_backend
@one_of_each
@pytest.mark.parametrize("arguments", KERAS_ARGUMENTS, ids=" ".join)
@pytest.mark.parametrize("is_added", [True, False])
def test_state_loads_with_and_without_the_variables_that_keras_adds(
    make, arguments, is_added
):
    plain, other = ({}, arguments) if is_added else (arguments, {})
    saved, loading, own = trained(make(**plain)), make(**other), variables()
    loading.build(own)
    loading.load_own_variables(state_of(saved))
    for one, two in zip(
        slots_and_counters(saved), slots_and_counters(loading), strict=True
    ):
        np.testing.assert_array_equal(one, two)
    # With accumulation, Keras takes one step in several calls of `apply`.
    assert int(loading.iterations) == int(saved.iterations) > 0
    if is_added and "use_ema" in arguments:
        averages = loading._model_variables_moving_average
        for average, variable in zip(values(averages), values(own)):
            np.testing.assert_array_equal(average, variable)


def slots_and_counters(optimizer):
    kinds = optimizer.describe_state(optimizer.state_plans())["kinds"]
    by_kind = zip(optimizer.variables, kinds)
    return values(v for v, kind in by_kind if kind in ("slot", "skipped_steps"))


@pytest.mark.one_backend
def test_state_of_slices_along_another_axis_is_refused():
    def trained_along(axis):
        made = SubsetNorm(axis={".*": axis}, beta_1=0)
        return trained(made, own=[keras.Variable(np.ones((5, 5), "float32"))])

    def trained(optimizer, own):
        optimizer.apply([ops.ones((5, 5))], own)
        return optimizer

    store, optimizer = state_of(trained_along(0)), trained_along(1)
    before = values(optimizer.variables)
    with pytest.raises(ValueError, match="a variable is viewed as .* here as"):
        optimizer.load_own_variables(store)
    for one, other in zip(before, values(optimizer.variables)):
        np.testing.assert_array_equal(one, other)


class Custom(ExtremeTensoring):
    """A user's subclass with its own argument."""

    def __init__(self, own=None, **kwargs):
        super().__init__(**kwargs)
        self.own = own


@pytest.mark.one_backend
def test_a_subclass_loads_the_state_of_its_base_class():
    saved = trained(ExtremeTensoring(beta_2=np.float32(0.5)))
    loading = trained(Custom(own=3, beta_2=np.float32(0.5)), steps=1)
    loading.load_own_variables(state_of(saved))
    for one, other in zip(values(saved.variables), values(loading.variables)):
        np.testing.assert_array_equal(one, other)


@pytest.mark.one_backend
def test_state_loads_into_another_combination_of_the_same_statistics():
    saved = trained(PLAIN(combination="rank_one", level=2))
    loading = trained(PLAIN(combination="geometric", level=2), steps=1)
    loading.load_own_variables(state_of(saved))
    for one, other in zip(slots_of(saved), slots_of(loading)):
        np.testing.assert_array_equal(*values([one, other]))


@pytest.mark.one_backend
@one_of_each
def test_state_saved_by_version_0_1_loads_by_its_shapes(make):
    # It has no description of the state and no counters of skipped steps.
    saved, loading = trained(make()), trained(make(), steps=1)
    kept = [v for v in saved.variables if not v.name.endswith("skipped_steps")]
    store = {str(i): ops.convert_to_numpy(v) for i, v in enumerate(kept)}
    loading.load_own_variables(store)
    for one, other in zip(slots_of(saved), slots_of(loading)):
        np.testing.assert_array_equal(*values([one, other]))


NAMES = {"extreme_tensoring": ExtremeTensoring, "sm3": SM3, "subset_norm": SubsetNorm}


@pytest.mark.one_backend
@pytest.mark.parametrize(("name", "made"), NAMES.items())
def test_compile_finds_optimizers_by_name(name, made):
    for given in (name, made.__name__, f"et_optimizer>{made.__name__}"):
        model = keras.Sequential([keras.Input((3,)), keras.layers.Dense(2)])
        model.compile(given, "mse")
        assert type(model.optimizer) is made
    assert keras.saving.get_registered_name(made) == f"et_optimizer>{made.__name__}"
    assert type(keras.optimizers.get("adafactor")) is keras.optimizers.Adafactor


def test_a_checkpoint_of_an_unbuilt_optimizer_changes_nothing(tmp_path):
    if keras.backend.backend() != "tensorflow":
        pytest.skip("tf.train.Checkpoint")
    import tensorflow as tf

    path = tf.train.Checkpoint(optimizer=PLAIN()).save(str(tmp_path / "checkpoint"))
    loading = trained(PLAIN())
    slots = values(slots_of(loading))
    tf.train.Checkpoint(optimizer=loading).restore(path)
    for one, other in zip(slots, values(slots_of(loading)), strict=True):
        np.testing.assert_array_equal(one, other)
