"""Every form in which a framework gives rows of a gradient gives the dense result."""

import keras
import numpy as np
import pytest
from keras import ops

from et_optimizer import SM3, ExtremeTensoring
from tests.optimizers import MANY, ONE_OF_EACH, OPTIMIZERS, in_float32

SHAPE = (9, 4, 2)
VALUES = np.random.default_rng(0).standard_normal((5, 4, 2)).astype("float32")
ROWS = (7, 1, 7, 0, 1)
every_optimizer = pytest.mark.parametrize("make", OPTIMIZERS.values(), ids=OPTIMIZERS)
many_optimizers = pytest.mark.parametrize("make", MANY.values(), ids=MANY)
one_of_each = pytest.mark.parametrize("make", ONE_OF_EACH.values(), ids=ONE_OF_EACH)


def dense(values=VALUES, rows=ROWS):
    found = np.zeros(SHAPE, "float32")
    np.add.at(found, list(rows), values)
    return found


def trained(optimizer, gradient):
    variable = keras.Variable(np.ones(SHAPE, "float32"))
    for _ in range(2):
        optimizer.apply([gradient], [variable])
    return variable.numpy()


def assert_like_dense(make, gradient, expected):
    for arguments in ({}, {"momentum_rank": 0}):
        optimizer, other = (in_float32(make)(0.1, **arguments) for _ in range(2))
        np.testing.assert_allclose(
            trained(optimizer, gradient),
            trained(other, ops.convert_to_tensor(expected)),
            rtol=1e-5,
            atol=1e-5,
        )


def indexed_slices(indices, values=VALUES, dense_shape=SHAPE):
    if keras.backend.backend() != "tensorflow":
        pytest.skip("TensorFlow's form of rows")
    import tensorflow as tf

    return tf.IndexedSlices(values, indices, dense_shape)


@one_of_each
def test_indices_that_are_a_tuple(make):
    assert_like_dense(make, indexed_slices(ROWS), dense())


@one_of_each
def test_rows_that_do_not_say_of_which_shape(make):
    assert_like_dense(make, indexed_slices(np.array(ROWS), dense_shape=None), dense())


@every_optimizer
def test_no_rows_at_all(make):
    # An empty batch through an Embedding.
    none = indexed_slices(np.zeros(0, "int64"), VALUES[:0])
    assert_like_dense(make, none, np.zeros(SHAPE, "float32"))


@pytest.mark.parametrize("variant", ["I", "II"])
@pytest.mark.parametrize("make", [SM3, ExtremeTensoring])
def test_no_rows_at_all_where_the_index_has_several_modes_of_rows(make, variant):
    arguments = {"variant": variant} if make is SM3 else {"beta_1": 0}
    variable = keras.Variable(np.ones(SHAPE, "float32"))
    optimizer = make(0.1, level=2, **arguments)
    optimizer.apply([indexed_slices(np.zeros(0, "int64"), VALUES[:0])], [variable])
    np.testing.assert_array_equal(variable.numpy(), 1.0)


def bcoo(values, indices):
    if keras.backend.backend() != "jax":
        pytest.skip("JAX's form of sparse gradients")
    from jax.experimental import sparse

    return sparse.BCOO((values, indices), shape=SHAPE)


@many_optimizers
def test_rows_as_jax_gives_them(make):
    # What JAX pads has the number of rows for an index.
    padded = np.concatenate([VALUES, 3.0 * np.ones((1, 4, 2), "float32")])
    rows = np.array([*ROWS, SHAPE[0]])[:, None]
    assert_like_dense(make, bcoo(padded, rows), dense())


def test_sparse_gradients_of_jax_that_are_not_rows():
    pairs = np.array([[7, 1], [0, 3], [7, 1]])
    expected = np.zeros(SHAPE, "float32")
    np.add.at(expected, tuple(pairs.T), VALUES[:3, 0])
    assert_like_dense(ExtremeTensoring, bcoo(VALUES[:3, 0], pairs), expected)
