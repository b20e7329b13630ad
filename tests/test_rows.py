"""Every sparse format of a framework gives the result of the dense gradient."""

import keras
import numpy as np
import pytest
from keras import ops

from et_optimizer import SM3, ExtremeTensoring
from tests.optimizers import ONE_OF_EACH, OPTIMIZERS, SLOTS_OF_EACH_KIND, in_float32
from tests.updates import take_step

SHAPE = (9, 4, 2)
VALUES = np.random.default_rng(0).standard_normal((5, 4, 2)).astype("float32")
ROWS = (7, 1, 7, 0, 1)
# JAX compiles every step: marginals and maxima there.
KINDS = SLOTS_OF_EACH_KIND[:: 2 if keras.backend.backend() == "jax" else 1]
each_kind_of_slots = pytest.mark.parametrize(
    "make", [OPTIMIZERS[name] for name in KINDS], ids=KINDS
)
tensorflow_only = pytest.mark.skipif(
    keras.backend.backend() != "tensorflow", reason="IndexedSlices are TensorFlow's"
)
jax_only = pytest.mark.skipif(
    keras.backend.backend() != "jax", reason="BCOO arrays are JAX's"
)
one_of_each = pytest.mark.parametrize("make", ONE_OF_EACH.values(), ids=ONE_OF_EACH)


def dense(values=VALUES, rows=ROWS):
    found = np.zeros(SHAPE, "float32")
    np.add.at(found, list(rows), values)
    return found


def trained(optimizer, gradient):
    variable = keras.Variable(np.ones(SHAPE, "float32"))
    for _ in range(2):
        take_step(optimizer, [gradient], [variable])
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
    import tensorflow as tf

    return tf.IndexedSlices(values, indices, dense_shape)


@tensorflow_only
@one_of_each
def test_indexed_slices_with_a_tuple_of_indices(make):
    assert_like_dense(make, indexed_slices(ROWS), dense())


@tensorflow_only
@one_of_each
def test_indexed_slices_without_a_dense_shape(make):
    assert_like_dense(make, indexed_slices(np.array(ROWS), dense_shape=None), dense())


@tensorflow_only
@each_kind_of_slots
def test_indexed_slices_without_any_row(make):
    # An empty batch through an Embedding.
    empty = indexed_slices(np.zeros(0, "int64"), VALUES[:0])
    assert_like_dense(make, empty, np.zeros(SHAPE, "float32"))


@tensorflow_only
@pytest.mark.parametrize(
    ("make", "arguments"),
    [
        (SM3, {"variant": "I"}),
        (SM3, {"variant": "II"}),
        (ExtremeTensoring, {"beta_1": 0}),
    ],
)
def test_indexed_slices_without_any_row_where_rows_are_split_into_modes(
    make, arguments
):
    variable = keras.Variable(np.ones(SHAPE, "float32"))
    optimizer = make(0.1, level=2, **arguments)
    optimizer.apply([indexed_slices(np.zeros(0, "int64"), VALUES[:0])], [variable])
    np.testing.assert_array_equal(variable.numpy(), 1.0)


def bcoo(values, indices):
    from jax.experimental import sparse

    return sparse.BCOO((values, indices), shape=SHAPE)


@jax_only
@each_kind_of_slots
def test_bcoo_with_one_sparse_axis_and_padding(make):
    # The index of padding is the number of rows.
    padded = np.concatenate([VALUES, 3.0 * np.ones((1, 4, 2), "float32")])
    rows = np.array([*ROWS, SHAPE[0]])[:, None]
    assert_like_dense(make, bcoo(padded, rows), dense())


@jax_only
def test_bcoo_with_two_sparse_axes():
    pairs = np.array([[7, 1], [0, 3], [7, 1]])
    expected = np.zeros(SHAPE, "float32")
    np.add.at(expected, tuple(pairs.T), VALUES[:3, 0])
    assert_like_dense(ExtremeTensoring, bcoo(VALUES[:3, 0], pairs), expected)
