"""A gradient that is not finite changes only a counter, on every optimizer."""

import keras
import numpy as np
import pytest
from keras import ops

from et_optimizer import SM3, Adafactor, ExtremeTensoring, SubsetNorm
from tests.optimizers import ONE_OF_EACH, OPTIMIZERS, SLOTS_OF_EACH_KIND, slots_of
from tests.updates import random_gradients, take_step

BACKEND = keras.backend.backend()
# All under PyTorch; elsewhere, where each is compiled, one with each kind of slots.
KINDS = OPTIMIZERS if BACKEND == "torch" else SLOTS_OF_EACH_KIND
each_kind_of_slots = pytest.mark.parametrize(
    "make", [OPTIMIZERS[name] for name in KINDS], ids=KINDS
)
one_of_each = pytest.mark.parametrize("make", ONE_OF_EACH.values(), ids=ONE_OF_EACH)

SHAPE = (16, 12)
GRADIENTS = random_gradients(SHAPE, seed=0, steps=6)


def with_one(bad, gradient):
    """A gradient with one bad entry."""
    gradient = gradient.copy()
    gradient.flat[gradient.size // 2 + 3] = bad
    return gradient


def matrix(name="kernel", shape=SHAPE):
    return keras.Variable(np.ones(shape, "float32"), name=name)


def apply(optimizer, gradients, variables):
    take_step(optimizer, [ops.convert_to_tensor(g) for g in gradients], variables)


def values(variables):
    # bfloat16 arrays too: NumPy compares them by their bits.
    return [np.array(ops.convert_to_numpy(v)) for v in variables]


@each_kind_of_slots
def test_a_bad_gradient_changes_nothing_and_is_counted(make):
    variable, optimizer = matrix(), make(learning_rate=0.01, weight_decay=0.1)
    apply(optimizer, [GRADIENTS[0]], [variable])
    slots = slots_of(optimizer)
    before = values([variable, *slots])
    for count, bad in enumerate([np.nan, -np.inf, 1e25], start=1):
        apply(optimizer, [with_one(bad, GRADIENTS[1])], [variable])
        for one, other in zip(before, values([variable, *slots])):
            np.testing.assert_array_equal(one, other)
        assert optimizer.skipped_steps == {"kernel": count}
        assert int(optimizer.iterations) == 1 + count
    for gradient in GRADIENTS[2:]:
        apply(optimizer, [gradient], [variable])
    assert optimizer.skipped_steps == {"kernel": count}
    assert np.all(np.isfinite(variable.numpy()))
    assert np.all(variable.numpy() != before[0])


@one_of_each
def test_only_the_variable_of_the_bad_gradient_is_skipped(make):
    good, bad, alone = matrix("good"), matrix("bad"), matrix()
    optimizer = make(learning_rate=0.01, weight_decay=0.1)
    apply(optimizer, [GRADIENTS[0], with_one(np.nan, GRADIENTS[0])], [good, bad])
    apply(make(learning_rate=0.01, weight_decay=0.1), [GRADIENTS[0]], [alone])
    np.testing.assert_array_equal(bad.numpy(), 1.0)
    np.testing.assert_array_equal(good.numpy(), alone.numpy())
    assert optimizer.skipped_steps == {"bad": 1}


# XLA's maximum misses NaN in large matrices, and TensorFlow's segment maximum too.
@pytest.mark.parametrize("variant", ["I", "II"])
@pytest.mark.parametrize("entry", [0, 131_075, 512 * 512 - 1])
def test_the_maxima_of_sm3_find_a_nan_anywhere(variant, entry):
    variable = matrix(shape=(512, 512))
    gradient = np.ones((512, 512), "float32")
    gradient.flat[entry] = np.nan
    optimizer = SM3(0.1, variant=variant)
    apply(optimizer, [gradient], [variable])
    assert optimizer.skipped_steps == {"kernel": 1}
    np.testing.assert_array_equal(variable.numpy(), 1.0)


@pytest.mark.skipif(BACKEND != "tensorflow", reason="about tf.function")
@pytest.mark.parametrize("variant", ["I", "II"])
def test_the_maxima_of_sm3_compiled_by_tensorflow_find_a_nan(variant):
    import tensorflow as tf

    variable, optimizer = matrix(shape=(512, 512)), SM3(0.1, variant=variant)
    optimizer.build([variable])
    gradient = np.ones((512, 512), "float32")
    gradient[300, 7] = np.nan
    tf.function(optimizer.apply, jit_compile=True)([tf.constant(gradient)])
    assert optimizer.skipped_steps == {"kernel": 1}
    np.testing.assert_array_equal(variable.numpy(), 1.0)


HUGE = {
    # With β₂ = 0 the state is multiplied by 0.
    "state times 0": lambda: ExtremeTensoring(0.1, level=2, beta_1=0, beta_2=0.0),
    "the paper's": lambda: ExtremeTensoring(
        0.1,
        level=2,
        combination="geometric",
        statistic="sum",
        beta_1=0.0,
        beta_2=None,
        epsilon=1e-8,
        update_bound=None,
    ),
    "rank-one with epsilon": lambda: ExtremeTensoring(0.1, beta_1=0, epsilon=1e-8),
    "Adafactor": lambda: Adafactor(0.1),
    "SM3": lambda: SM3(0.1, beta_2=0.9, epsilon=1e-8),
    "SubsetNorm": lambda: SubsetNorm(0.1),
}


@pytest.mark.parametrize("make", HUGE.values(), ids=HUGE)
@pytest.mark.parametrize(
    "huge",
    [1e18, 9e18, 1.8e19, 2e19, 1e20, 3e38] if BACKEND == "torch" else [1.8e19, 3e38],
)
@pytest.mark.parametrize("everywhere", [True, False])
def test_finite_but_huge_gradients_never_give_nan(make, huge, everywhere):
    variable, optimizer = matrix(), make()
    first = np.full(SHAPE, huge, "float32")
    if not everywhere:
        first = with_one(huge, np.ones(SHAPE, "float32"))
    for gradient in [first, first, *[np.ones(SHAPE, "float32")] * 3]:
        apply(optimizer, [gradient], [variable])
        for value in values([variable, *optimizer.variables]):
            assert np.all(np.isfinite(value.astype("float32")))
    if huge >= 2e19:
        assert optimizer.skipped_steps == {"kernel": 2}
        assert np.all(variable.numpy() < 1.0)


@one_of_each
def test_nonfinite_raise_raises_before_anything_changes(make):
    good, bad = matrix("good"), matrix("bad")
    optimizer = make(learning_rate=0.1, nonfinite="raise", weight_decay=0.1)
    step = [
        ops.convert_to_tensor(g) for g in (GRADIENTS[0], with_one(np.inf, GRADIENTS[0]))
    ]
    with pytest.raises(ValueError, match="must be finite.*'bad'.*nonfinite=\"skip\""):
        optimizer.apply(iter(step), iter([good, bad]))
    np.testing.assert_array_equal(good.numpy(), 1.0)
    assert int(optimizer.iterations) == 0


@one_of_each
def test_apply_takes_iterators_of_gradients_and_variables(make):
    for nonfinite in ("skip", "raise"):
        variable = matrix()
        optimizer = make(learning_rate=0.1, nonfinite=nonfinite)
        optimizer.apply(iter([ops.convert_to_tensor(GRADIENTS[0])]), iter([variable]))
        assert [v.path for v in optimizer._trainable_variables] == ["kernel"]
        assert np.any(variable.numpy() != 1.0) or "Sketchy" in type(optimizer).__name__


# Compiled on TensorFlow and JAX.
CLASSES = [ExtremeTensoring, SM3, SubsetNorm][: 3 if BACKEND == "torch" else 2]


@pytest.mark.parametrize("make", CLASSES)
def test_with_nonfinite_raise_fit_raises_at_its_end(make):
    model = keras.Sequential([keras.Input((3,)), keras.layers.Dense(2, name="dense")])
    optimizer = make(learning_rate=0.01, nonfinite="raise", weight_decay=0.1)
    model.compile(optimizer, "mse", jit_compile="auto")
    x, y = np.ones((8, 3), "float32"), np.zeros((8, 2), "float32")
    model.fit(x, y, epochs=2, verbose=0)
    x[0, 0] = np.nan
    start = [ops.convert_to_numpy(w) for w in model.weights]
    with pytest.raises(ValueError, match="dense/kernel' .*Lower the learning rate"):
        model.fit(x, y, verbose=0)
    for before, weight in zip(start, model.weights):
        np.testing.assert_array_equal(before, ops.convert_to_numpy(weight))
    x[0, 0] = 1.0
    model.fit(x, y, verbose=0)  # The error is raised only once.


def test_accumulated_gradients_with_a_bad_one_cost_one_step():
    variable = matrix()
    optimizer = ExtremeTensoring(0.1, gradient_accumulation_steps=2)
    for gradient in (with_one(np.nan, GRADIENTS[0]), *GRADIENTS[1:4]):
        apply(optimizer, [gradient], [variable])
        assert np.all(np.isfinite(variable.numpy()))
    assert optimizer.skipped_steps == {"kernel": 1}
    assert np.all(variable.numpy() != 1.0)


@pytest.mark.skipif(BACKEND != "tensorflow", reason="IndexedSlices are TensorFlow's")
@one_of_each
def test_a_sparse_gradient_with_a_bad_row_costs_one_step(make):
    import tensorflow as tf

    def rows(scale):
        return tf.IndexedSlices(
            scale * tf.ones((4, 8)), tf.constant([3, 1, 3, 7]), (100, 8)
        )

    table = matrix("embeddings", (100, 8))
    optimizer = make(learning_rate=0.1, weight_decay=0.1, momentum_rank=0)
    optimizer.apply([rows(1.0)], [table])
    before = values([table, *slots_of(optimizer)])
    bad = np.ones((4, 1), "float32")
    bad[1] = np.nan
    optimizer.apply([rows(tf.constant(bad))], [table])
    for one, other in zip(before, values([table, *slots_of(optimizer)])):
        np.testing.assert_array_equal(one, other)
    assert optimizer.skipped_steps == {"embeddings": 1}
    optimizer.apply([rows(1.0)], [table])
    assert np.all(np.isfinite(table.numpy()))
    assert np.all(table.numpy()[[1, 3, 7]] != before[0][[1, 3, 7]])


@pytest.mark.skipif(BACKEND != "tensorflow", reason="about tf.function")
@pytest.mark.parametrize("jit_compile", [True, False])
@one_of_each
def test_a_step_compiled_by_tensorflow_skips_bad_gradients(make, jit_compile):
    import tensorflow as tf

    variable, optimizer = matrix(), make(learning_rate=0.01, weight_decay=0.1)
    optimizer.build([variable])
    step = tf.function(
        lambda g: optimizer.apply([g]), jit_compile=jit_compile, autograph=False
    )
    step(tf.constant(GRADIENTS[0]))
    before = variable.numpy()
    step(tf.constant(with_one(np.nan, GRADIENTS[1])))
    np.testing.assert_array_equal(variable.numpy(), before)
    assert optimizer.skipped_steps == {"kernel": 1}


@pytest.mark.parametrize("weight_decay", [None, 0.1])
def test_a_learning_rate_that_is_not_finite_changes_no_weight(weight_decay):
    for optimizer, learning_rate, start in (
        (ExtremeTensoring(0.1, weight_decay=weight_decay), np.nan, 1.0),
        # The mean square of the weights, which scales the learning rate, overflows.
        (Adafactor(0.1, weight_decay=weight_decay), 0.1, 1e20),
    ):
        optimizer.learning_rate = learning_rate
        variable = keras.Variable(np.full(SHAPE, start, "float32"), name="kernel")
        apply(optimizer, [GRADIENTS[0]], [variable])
        np.testing.assert_array_equal(variable.numpy(), np.float32(start))
        assert optimizer.skipped_steps == {"kernel": 1}
