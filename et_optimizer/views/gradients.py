"""Gradients seen through a tensor index: numbers for its slices, and back.

An optimizer here asks two things of a gradient: one number for every slice of every
mode (the sum of g² over it, or a maximum), and to be scaled by what the slices of
each entry say (their product, or their minimum). All of it is written once, for dense
gradients and for the rows of sparse ones.

The gradient is held as a matrix: its rows are the leading axes of the tensor
index, its columns the trailing ones. The slice sums of any number of modes are
marginals of its row sums and column sums, and the product over all modes is a
row vector times a column vector; so it is with maxima and minima. Whatever the level,
the gradient is read for its rows, for its columns and to apply the update, and the
rest is small. Where an index stacks tensors, there is one such matrix for each.

Under `keras.distribution.ModelParallel`, on JAX, a gradient may lie in parts on
several devices. It is not reshaped there, which could bring the parts together: rows
and columns are the positions on some dimensions of the variable. The marginals, which
are small, go to every device.
"""

import functools

import keras
from keras import ops

from et_optimizer.compilers import tracing
from et_optimizer.compilers.bits import entries_of, is_half
from et_optimizer.compilers.reductions import in_turn, root_mean_square, sum_of_squares
from et_optimizer.views.dense import DenseGradient
from et_optimizer.views.scaled import Scaled
from et_optimizer.views.sparse import (
    SparseGradient,
    SparseStackGradient,
    added_up,
    values_of_rows,
)
from et_optimizer.views.sparse_rows import Rows, rows_of
from et_optimizer.views.updates import WrittenUpdate

__all__ = [
    "DenseGradient",
    "Scaled",
    "WrittenUpdate",
    "check_shape",
    "in_turn",
    "is_of_rows",
    "is_traced",
    "made_dense",
    "multiplied_out",
    "root_mean_square",
    "rows_of",
    "see",
    "sum_of_squares",
    "take_from",
]


def see(gradient, index, as_matrix=False):
    """Sees a gradient through a tensor index.

    Args:
        gradient: A tensor of the variable's shape, or one as `Scaled`; or rows of it,
            as `rows_of` knows them, where repeated indices add up.
        index: The variable's `TensorIndex`, of at least one slot.
        as_matrix: Whether a dense gradient's rows and columns are those of the
            variable seen as a matrix (`TensorIndex.matrix_shape`), where the index
            does not run across them. Otherwise they are cut where they are fewest.

    Returns:
        A `DenseGradient`, or one of its sparse kinds.

    Raises:
        ValueError: if the gradient has another shape than the variable.
    """
    gradient = rows_of(gradient)
    check_shape(gradient, index.shape)
    if isinstance(gradient, Scaled):
        values, scale = gradient
        return DenseGradient(values, index, as_matrix).times(scale)
    if not isinstance(gradient, Rows):
        return DenseGradient(gradient, index, as_matrix)
    if index.stack > 1:
        return SparseStackGradient(gradient, index)
    return SparseGradient(gradient, index)


def is_of_rows(gradient):
    """Whether a gradient, or what has its form, is given by rows, and not a tensor."""
    return isinstance(rows_of(gradient), Rows)


def is_traced(gradient):
    """Whether a gradient is a tensor, or `Scaled`, of a program being traced."""
    values = gradient.values if isinstance(gradient, Scaled) else gradient
    return not (is_of_rows(gradient) or tracing.is_known(values))


def multiplied_out(gradient):
    """A tensor, or a `Scaled` as one."""
    if not isinstance(gradient, Scaled):
        return gradient
    values, scale = gradient
    return values * ops.cast(scale, values.dtype)


def made_dense(gradient, shape):
    """A gradient in a form with all entries: a tensor, or `Scaled` if it was that."""
    if isinstance(gradient, Scaled):
        return gradient
    gradient = rows_of(gradient)
    check_shape(gradient, shape)
    if isinstance(gradient, Rows):
        if is_half(gradient.dtype):
            # Repeated rows add up in float32, before they are rounded.
            gradient = added_up(gradient, shape)
        gradient = gradient.dense(shape)
    # The shape of one that was sparse may be unknown while tracing.
    return ops.reshape(ops.convert_to_tensor(gradient), shape)


def take_from(value, change, moved, decays):
    """A variable's value after a step, and what is left to do for rows of it.

    Args:
        value: The value before.
        change: The step, a tensor or in the form of some rows.
        moved: `(value, change, entries) -> value` for some of the entries, elementwise;
            `entries(first)` gives `first` plus the number of each.
        decays: Whether entries move whose change is 0.

    Returns:
        `(value, rows)`: the new value and `None`; or the value as far as all of its
        entries move, and what is to be subtracted from some rows of it, or, of a value
        in two bytes, put in their place.
    """

    entries = functools.partial(entries_of, value.shape)
    if not is_of_rows(change):
        return moved(value, change, entries), None
    after = moved(value, 0.0, entries) if decays else value
    if not is_half(value.dtype):
        return after, change
    # Each is computed from what the row was, and rounded once.
    rows = rows_of(change)
    new = values_of_rows(value, rows, moved)
    if keras.backend.backend() == "tensorflow":
        return after, rows.in_form(new)
    return ops.scatter_update(after, ops.expand_dims(rows.indices, -1), new), None


def check_shape(gradient, expected, of=""):
    """Raises unless a tensor, or what `rows_of` made of one, has a variable's shape."""
    received = tuple(gradient.shape)
    if isinstance(gradient, Rows):
        received, expected = received[1:], expected[1:]
    if None not in received and received != expected:
        raise ValueError(
            f"A gradient must have its variable's shape; received {received} for "
            f"{expected}{of}. Check the order of gradients and variables."
        )
