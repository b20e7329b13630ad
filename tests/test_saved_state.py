"""Saved state knows what it is: what fits is loaded, what does not is refused."""

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
ALONE = functools.partial(ExtremeTensoring, beta_1=0)


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


def values(held):
    return [np.array(ops.convert_to_numpy(ops.cast(v, "float32"))) for v in held]


# Of the same shapes: what was saved, what loads it, the difference that is named.
DIFFERENCES = {
    "rule": (ALONE, functools.partial(SM3, 0.1), "by ExtremeTensoring, here SM3"),
    "Adafactor": (ALONE, Adafactor, "by ExtremeTensoring, here Adafactor"),
    "beta_2": (
        functools.partial(ALONE, beta_2=0.99),
        functools.partial(ALONE, beta_2=None),
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


@pytest.mark.parametrize(
    ("saved", "loading", "difference"), DIFFERENCES.values(), ids=DIFFERENCES
)
def test_state_of_the_same_shapes_is_refused_by_its_meaning(saved, loading, difference):
    store, optimizer = state_of(trained(saved())), trained(loading())
    before = values(optimizer.variables)
    with pytest.raises(ValueError, match=f"{difference}.*0.2"):
        optimizer.load_own_variables(store)
    for one, other in zip(before, values(optimizer.variables)):
        np.testing.assert_array_equal(one, other)


def test_what_differs_is_named_where_shapes_differ():
    store, optimizer = state_of(trained(ALONE(level=1))), trained(ALONE(level=2))
    with pytest.raises(
        ValueError, match="saved with level=1, here level=2; it has the shapes"
    ):
        optimizer.load_own_variables(store)


@pytest.mark.parametrize("file", ["model.keras", "model.weights.h5"])
def test_files_carry_the_form(file, tmp_path):
    def model(optimizer):
        made = keras.Sequential([keras.Input((3,)), keras.layers.Dense(4)])
        made.compile(optimizer, "mse")
        made.fit(np.ones((4, 3)), np.zeros((4, 4)), verbose=0)
        return made

    saved = model(ALONE())
    save = saved.save if file.endswith("keras") else saved.save_weights
    save(tmp_path / file)
    with pytest.raises(ValueError, match="saved by ExtremeTensoring, here SM3"):
        model(SM3(0.1)).load_weights(tmp_path / file)
    again = model(ALONE())
    again.load_weights(tmp_path / file)
    for one, other in zip(saved.optimizer.variables, again.optimizer.variables):
        np.testing.assert_array_equal(*values([one, other]))


def test_a_checkpoint_carries_the_form(tmp_path):
    if keras.backend.backend() != "tensorflow":
        pytest.skip("tf.train.Checkpoint")
    import tensorflow as tf

    saved = trained(ALONE())
    path = tf.train.Checkpoint(optimizer=saved).save(str(tmp_path / "checkpoint"))
    with pytest.raises(ValueError, match="saved by ExtremeTensoring, here SM3"):
        tf.train.Checkpoint(optimizer=trained(SM3(0.1))).restore(path)
    unbuilt = SM3(0.1)
    tf.train.Checkpoint(optimizer=unbuilt).restore(path)
    with pytest.raises(ValueError, match="saved by ExtremeTensoring, here SM3"):
        unbuilt.build(variables())


SCHEDULE = keras.optimizers.schedules.ExponentialDecay(0.1, 10, 0.5)
# What Keras adds to an optimizer's state, or takes from it.
OF_KERAS = [
    {"learning_rate": SCHEDULE},
    {"use_ema": True},
    {"gradient_accumulation_steps": 2},
    {"learning_rate": SCHEDULE, "use_ema": True, "gradient_accumulation_steps": 2},
]


@one_of_each
@pytest.mark.parametrize("arguments", OF_KERAS, ids=lambda given: " ".join(given))
@pytest.mark.parametrize("is_added", [True, False])
def test_what_keras_holds_is_matched_by_what_it_is(make, arguments, is_added):
    plain, other = ({}, arguments) if is_added else (arguments, {})
    saved, loading, own = trained(make(**plain)), make(**other), variables()
    loading.build(own)
    loading.load_own_variables(state_of(saved))
    for one, two in zip(slots_of_any(saved), slots_of_any(loading), strict=True):
        np.testing.assert_array_equal(one, two)
    # Steps, of which Keras takes one in as many iterations as it accumulates.
    assert int(loading.iterations) == int(saved.iterations) > 0
    if is_added and "use_ema" in arguments:
        averages = loading._model_variables_moving_average
        for average, variable in zip(values(averages), values(own)):
            np.testing.assert_array_equal(average, variable)


def slots_of_any(optimizer):
    kinds = optimizer.describe_state(optimizer.state_plans())["kinds"]
    held = zip(optimizer.variables, kinds)
    return values(v for v, kind in held if kind in ("slot", "skipped_steps"))


def test_state_of_other_slices_of_the_same_shapes_is_refused():
    def of_axis(axis):
        made = SubsetNorm(axis={".*": axis}, beta_1=0)
        return trained(made, own=[keras.Variable(np.ones((5, 5), "float32"))])

    def trained(optimizer, own):
        optimizer.apply([ops.ones((5, 5))], own)
        return optimizer

    store, optimizer = state_of(of_axis(0)), of_axis(1)
    before = values(optimizer.variables)
    with pytest.raises(ValueError, match="a variable is viewed as .* here as"):
        optimizer.load_own_variables(store)
    for one, other in zip(before, values(optimizer.variables)):
        np.testing.assert_array_equal(one, other)


class Mine(ExtremeTensoring):
    """A user's own, with an argument of its own."""

    def __init__(self, mine=None, **kwargs):
        super().__init__(**kwargs)
        self.mine = mine


def test_a_subclass_takes_the_state_of_its_base():
    saved = trained(ExtremeTensoring(beta_2=np.float32(0.5)))
    loading = trained(Mine(mine=3, beta_2=np.float32(0.5)), steps=1)
    loading.load_own_variables(state_of(saved))
    for one, other in zip(values(saved.variables), values(loading.variables)):
        np.testing.assert_array_equal(one, other)


def test_what_combines_the_same_numbers_otherwise_loads_them():
    saved = trained(ALONE(combination="rank_one", level=2))
    loading = trained(ALONE(combination="geometric", level=2), steps=1)
    loading.load_own_variables(state_of(saved))
    for one, other in zip(slots_of(saved), slots_of(loading)):
        np.testing.assert_array_equal(*values([one, other]))


@one_of_each
def test_state_without_form_and_counters_loads_by_its_shapes(make):
    # As version 0.1 saved it.
    saved, loading = trained(make()), trained(make(), steps=1)
    kept = [v for v in saved.variables if not v.name.endswith("skipped_steps")]
    store = {str(i): ops.convert_to_numpy(v) for i, v in enumerate(kept)}
    loading.load_own_variables(store)
    for one, other in zip(slots_of(saved), slots_of(loading)):
        np.testing.assert_array_equal(*values([one, other]))


NAMES = {"extreme_tensoring": ExtremeTensoring, "sm3": SM3, "subset_norm": SubsetNorm}


@pytest.mark.parametrize(("name", "made"), NAMES.items())
def test_optimizers_are_found_by_name(name, made):
    for given in (name, made.__name__, f"et_optimizer>{made.__name__}"):
        model = keras.Sequential([keras.Input((3,)), keras.layers.Dense(2)])
        model.compile(given, "mse")
        assert type(model.optimizer) is made
    assert keras.saving.get_registered_name(made) == f"et_optimizer>{made.__name__}"
    assert type(keras.optimizers.get("adafactor")) is keras.optimizers.Adafactor
