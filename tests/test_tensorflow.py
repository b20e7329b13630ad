"""Features of TensorFlow: sparse gradients, gradient tapes, tf.train.Checkpoint."""

import functools
import re

import keras
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

if keras.backend.backend() != "tensorflow":
    pytest.skip("these features are TensorFlow's", allow_module_level=True)

import tensorflow as tf

from et_optimizer import SM3, Adafactor, ExtremeTensoring, SubsetNorm
from tests.optimizers import ONE_OF_EACH, OPTIMIZERS, in_float32, slots_of

GEOMETRIC = functools.partial(
    ExtremeTensoring, beta_1=0, combination="geometric", update_bound=None
)
RANK_ONE = functools.partial(ExtremeTensoring, beta_1=0, combination="rank_one")

one_of_each = pytest.mark.parametrize("make", ONE_OF_EACH.values(), ids=ONE_OF_EACH)
# Optimizers that use sparse gradients as they are: without momentum.
SPARSE = [
    "ExtremeTensoring level 1",
    "ExtremeTensoring level inf",
    "ExtremeTensoring accumulating",
    "SM3",
    "SM3 level 2 averaging",
    "Adafactor",
    "SubsetNorm",
]
# Optimizers that convert them to dense ones: all entries take part in a step.
DENSE = ["ExtremeTensoring in a subspace", "Shampoo", "SketchyAdagrad averaging"]
SHAPES_AND_ROWS = [((53, 6), 40), ((11, 4, 3), 5), ((30_000, 2), 5), ((7,), 9)]


def sparse_steps(shape, rows, seed, steps=4):
    rng = np.random.default_rng(seed)
    return [
        tf.IndexedSlices(
            tf.constant(rng.standard_normal((rows, *shape[1:])), tf.float32),
            tf.constant(rng.integers(0, shape[0], rows)),
            tf.constant(shape, tf.int64),
        )
        for _ in range(steps)
    ]


def trained(optimizer, shape, steps, jit_compile):
    start = np.random.default_rng(0).standard_normal(shape).astype("float32")
    variable = keras.Variable(start, name="table")
    optimizer.build([variable])

    @tf.function(jit_compile=jit_compile, autograph=False)
    def step(gradient):
        optimizer.apply([gradient], [variable])

    for gradient in steps:
        step(gradient)
    return variable.numpy(), [v.numpy() for v in optimizer.variables]


def assert_sparse_equals_dense(make, shape, rows, jit_compile):
    steps = sparse_steps(shape, rows, seed=1)
    sparse = trained(make(learning_rate=0.1), shape, steps, jit_compile)
    dense_steps = [tf.convert_to_tensor(step) for step in steps]
    dense = trained(make(learning_rate=0.1), shape, dense_steps, jit_compile)
    np.testing.assert_allclose(sparse[0], dense[0], rtol=1e-5, atol=1e-6)
    for one, other in zip(sparse[1], dense[1], strict=True):
        np.testing.assert_allclose(one, other, rtol=1e-5, atol=1e-6)


# Every optimizer with one shape, and every shape with two optimizers.
@pytest.mark.parametrize(
    ("name", "shape", "rows"),
    [
        *((name, *SHAPES_AND_ROWS[0]) for name in SPARSE),
        *((name, *case) for name in SPARSE[2::2] for case in SHAPES_AND_ROWS[1:]),
    ],
)
def test_a_sparse_gradient_gives_the_step_of_the_dense_one(name, shape, rows):
    assert_sparse_equals_dense(OPTIMIZERS[name], shape, rows, jit_compile=True)


@pytest.mark.parametrize("name", SPARSE)
def test_a_sparse_gradient_gives_the_step_of_the_dense_one_without_xla(name):
    assert_sparse_equals_dense(OPTIMIZERS[name], (53, 6), 40, jit_compile=False)


@pytest.mark.parametrize("name", DENSE)
def test_optimizers_with_momentum_or_covariances_take_sparse_gradients(name):
    assert_sparse_equals_dense(OPTIMIZERS[name], (11, 4, 3), 5, jit_compile=False)


@pytest.mark.parametrize("name", ["ExtremeTensoring level 1", "SM3"])
@pytest.mark.parametrize(
    ("shape", "rows", "sizes"),
    [((53, 6), 40, (53, 2, 3)), ((53, 6), 40, (6, 53)), ((12, 6), 9, (9, 8))],
)
def test_a_sparse_gradient_gives_the_dense_step_with_hand_written_sizes(
    name, shape, rows, sizes
):
    make = functools.partial(OPTIMIZERS[name], tensor_index={"table": sizes})
    assert_sparse_equals_dense(make, shape, rows, jit_compile=False)


def test_sparse_adafactor_equals_keras_adafactor_with_the_dense_gradient():
    steps = sparse_steps((12, 6), 9, seed=1, steps=8)  # some rows repeat
    dense_steps = [tf.convert_to_tensor(step) for step in steps]
    ours, _ = trained(Adafactor(0.3, beta_1=0), (12, 6), steps, None)
    theirs, _ = trained(keras.optimizers.Adafactor(0.3), (12, 6), dense_steps, None)
    np.testing.assert_allclose(ours, theirs, rtol=1e-5, atol=1e-6)


@settings(max_examples=12)
@given(
    rows=st.integers(0, 30),
    table=st.sampled_from([1, 7, 30, 40_000]),
    make=st.sampled_from(
        [
            *(functools.partial(GEOMETRIC, level=k) for k in (1, 2, 3, "inf")),
            *(functools.partial(RANK_ONE, level=k) for k in (1, 2, 3)),
            *(functools.partial(SM3, level=k, momentum=0) for k in (1, 2, "inf")),
            *(
                functools.partial(SM3, variant=v, beta_2=0.9, momentum=0)
                for v in ("I", "II")
            ),
            functools.partial(Adafactor, beta_1=0),
            functools.partial(SubsetNorm, axis=0, beta_1=0),
        ]
    ),
    seed=st.integers(0, 1000),
)
def test_any_repeated_rows_of_a_sparse_gradient_give_the_dense_step(
    rows, table, make, seed
):
    steps = sparse_steps((table, 3), rows, seed, steps=2)
    sparse = trained(make(0.1), (table, 3), steps, None)
    dense_steps = [tf.convert_to_tensor(step) for step in steps]
    dense = trained(make(0.1), (table, 3), dense_steps, None)
    np.testing.assert_allclose(sparse[0], dense[0], rtol=1e-5, atol=1e-6)


def full_size_results(function, shape, *args):
    """The instructions of the compiled program whose result has this shape."""
    hlo = function.experimental_get_compiler_ir(*args)(stage="optimized_hlo")
    entry = hlo[hlo.index("\nENTRY ") :]
    result = re.compile(r"%\S+ = f32\[" + ",".join(map(str, shape)) + r"\].*")
    return result.findall(entry)


@pytest.mark.parametrize(
    "make",
    [
        functools.partial(GEOMETRIC, level="inf", clip_threshold=None),
        functools.partial(GEOMETRIC, level=2, clip_threshold=1.0),
        functools.partial(RANK_ONE, level=1, clip_threshold=1.0),
        functools.partial(RANK_ONE, level=3, clip_threshold=None),
        functools.partial(SM3, level=1, momentum=0, clip_threshold=1.0),
        functools.partial(SM3, level=2, momentum=0, clip_threshold=None),
        functools.partial(SM3, variant="I", momentum=0, clip_threshold=None),
        functools.partial(
            Adafactor,
            beta_1=0,
            multiply_by_parameter_scale=False,
            clip_threshold=1.0,
        ),
        functools.partial(SubsetNorm, axis=0, beta_1=0, clip_threshold=None),
    ],
    ids=lambda make: f"{make.func.__name__} {make.keywords}",
)
def test_the_step_of_a_sparse_gradient_materializes_no_dense_gradient(make):
    shape, rows = (50_000, 64), 100
    variable = keras.Variable(np.zeros(shape, "float32"), name="table")
    optimizer = make()
    optimizer.build([variable])

    @tf.function(jit_compile=True, autograph=False)
    def step(values, indices):
        gradient = tf.IndexedSlices(values, indices, tf.constant(shape, tf.int64))
        optimizer.apply([gradient], [variable])

    args = (tf.ones((rows, 64)), tf.range(rows, dtype=tf.int64))
    step(*args)
    # The table, and the table with the rows subtracted from it by a scatter, which may
    # be a parallel call.
    parameter, result = full_size_results(step, shape, *args)
    assert " parameter(" in parameter
    assert re.search(r" scatter\(| fusion\(.*scatter| call\(.*scatter", result)
    assert np.all(variable.numpy()[:rows] != 0)
    assert not np.any(variable.numpy()[rows:])


def test_fit_gives_embeddings_sparse_gradients_and_lowers_the_loss():
    gradients = []

    class Spy(ExtremeTensoring):
        def update_step(self, gradient, variable, learning_rate):
            gradients.append((variable.name, isinstance(gradient, tf.IndexedSlices)))
            super().update_step(gradient, variable, learning_rate)

    x = np.random.default_rng(0).integers(0, 50, (64, 7))
    model = keras.Sequential(
        [
            keras.layers.Embedding(50, 8),
            keras.layers.GlobalAveragePooling1D(),
            keras.layers.Dense(1),
        ]
    )
    model.compile(Spy(0.1), "mse", jit_compile=True)
    data = tf.data.Dataset.from_tensor_slices((x, x.mean(1) / 50)).batch(16)
    losses = model.fit(data, epochs=5, verbose=0).history["loss"]
    assert losses[-1] < losses[0]
    assert {is_sparse for name, is_sparse in gradients if "embeddings" in name} == {
        True
    }


@one_of_each
@pytest.mark.parametrize("limit", ["clipnorm", "global_clipnorm"])
def test_clipped_sparse_gradients_equal_clipped_dense_ones(make, limit):
    make = in_float32(make)
    # No row repeats, because Keras clips an IndexedSlices before it adds equal rows.
    steps = [
        tf.IndexedSlices(
            10.0 * step.values, tf.range(9, dtype=tf.int64) * 3, step.dense_shape
        )
        for step in sparse_steps((40, 6), 9, seed=0)
    ]
    sparse, _ = trained(make(learning_rate=0.1, **{limit: 1.0}), (40, 6), steps, None)
    dense, _ = trained(
        make(learning_rate=0.1, **{limit: 1.0}),
        (40, 6),
        [tf.convert_to_tensor(step) for step in steps],
        None,
    )
    np.testing.assert_allclose(sparse, dense, rtol=1e-5, atol=1e-6)


@one_of_each
@pytest.mark.parametrize("call", ["apply", "apply_gradients"])
def test_a_compiled_custom_loop_lowers_the_loss(make, call):
    rng = np.random.default_rng(0)
    x, target = rng.standard_normal((32, 5)), rng.standard_normal((5, 2))
    x, y = tf.constant(x, tf.float32), tf.constant(x @ target, tf.float32)
    layer = keras.layers.Dense(2)
    layer.build((None, 5))
    optimizer = make(learning_rate=0.1)

    @tf.function(jit_compile=True)
    def step():
        with tf.GradientTape() as tape:
            loss = tf.reduce_mean(tf.square(layer(x) - y))
        gradients = tape.gradient(loss, layer.trainable_variables)
        if call == "apply":
            optimizer.apply(gradients, layer.trainable_variables)
        else:
            optimizer.apply_gradients(zip(gradients, layer.trainable_variables))
        return loss

    losses = [float(step()) for _ in range(30)]
    assert losses[-1] < 0.5 * losses[0]


def test_a_plain_tf_variable_can_be_trained():
    variable = tf.Variable(tf.ones((4, 3)), name="plain")
    optimizer = ExtremeTensoring(0.1)
    optimizer.build([variable])
    optimizer.update_step(tf.ones((4, 3)), variable, 0.1)
    np.testing.assert_allclose(variable.numpy(), np.full((4, 3), 0.9), rtol=1e-6)


def checkpointed(make):
    keras.utils.set_random_seed(0)
    model = keras.Sequential([keras.Input((5,)), keras.layers.Dense(6, name="dense")])
    optimizer = make(learning_rate=0.1)
    optimizer.build(model.trainable_variables)
    checkpoint = tf.train.Checkpoint(model=model, optimizer=optimizer)
    return model, optimizer, checkpoint


def take_steps(model, optimizer, seeds):
    for seed in seeds:
        rng = np.random.default_rng(seed)
        gradients = [
            tf.constant(rng.standard_normal(w.shape), tf.float32)
            for w in model.trainable_variables
        ]
        optimizer.apply(gradients, model.trainable_variables)
    return [w.numpy() for w in model.weights]


@one_of_each
def test_tf_checkpoints_resume_bit_for_bit(make, tmp_path):
    model, optimizer, checkpoint = checkpointed(make)
    take_steps(model, optimizer, range(3))
    path = checkpoint.save(str(tmp_path / "checkpoint"))
    undisturbed = take_steps(model, optimizer, range(3, 6))
    model, optimizer, checkpoint = checkpointed(make)
    checkpoint.restore(path).assert_existing_objects_matched()
    resumed = take_steps(model, optimizer, range(3, 6))
    for one, other in zip(undisturbed, resumed):
        np.testing.assert_array_equal(one, other)


def test_a_tf_checkpoint_of_another_level_is_refused_before_any_change(tmp_path):
    model, optimizer, checkpoint = checkpointed(
        lambda **kwargs: ExtremeTensoring(level=1, beta_1=0, **kwargs)
    )
    take_steps(model, optimizer, range(3))
    path = checkpoint.save(str(tmp_path / "checkpoint"))
    model, optimizer, checkpoint = checkpointed(
        lambda **kwargs: ExtremeTensoring(level=2, beta_1=0, **kwargs)
    )
    before = [v.numpy() for v in [*model.weights, *optimizer.variables]]
    with pytest.raises(
        ValueError, match="level=2.*Make the optimizer with the arguments"
    ):
        checkpoint.restore(path)
    for value, variable in zip(before, [*model.weights, *optimizer.variables]):
        np.testing.assert_array_equal(value, variable.numpy())


def test_a_tf_checkpoint_of_another_optimizer_is_refused(tmp_path):
    # The state of both has the same shapes but another meaning.
    model, optimizer, checkpoint = checkpointed(
        lambda **kwargs: ExtremeTensoring(level=1, beta_1=0, **kwargs)
    )
    path = checkpoint.save(str(tmp_path / "checkpoint"))
    model, optimizer, checkpoint = checkpointed(
        lambda **kwargs: SM3(level=1, momentum=0, **kwargs)
    )
    with pytest.raises(ValueError, match="does not fit this SM3"):
        checkpoint.restore(path)


@pytest.mark.parametrize("level", [2, "inf"])
def test_a_tf_checkpoint_of_another_level_restored_first_is_refused_by_build(
    level, tmp_path
):
    model, optimizer, checkpoint = checkpointed(
        lambda **kwargs: ExtremeTensoring(level=1, beta_1=0, **kwargs)
    )
    take_steps(model, optimizer, range(3))
    path = checkpoint.save(str(tmp_path / "checkpoint"))
    optimizer = ExtremeTensoring(level=level, beta_1=0)
    tf.train.Checkpoint(model=model, optimizer=optimizer).restore(path)
    with pytest.raises(ValueError, match="Make the optimizer with the arguments"):
        optimizer.build(model.trainable_variables)
    assert not optimizer.built
    fitting = ExtremeTensoring(level=1, beta_1=0)
    tf.train.Checkpoint(model=model, optimizer=fitting).restore(path)
    fitting.build(model.trainable_variables)
    assert int(fitting.iterations) == 3
    assert np.all(slots_of(fitting)[-1].numpy() > 0)
