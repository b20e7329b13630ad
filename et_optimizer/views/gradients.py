"""From a gradient, in any form that Keras hands over, to its view."""

import functools

import keras
from keras import ops

from et_optimizer import naming
from et_optimizer.compilers.barriers import sequence_after
from et_optimizer.compilers.bits import is_16_bit, positions
from et_optimizer.compilers.scatter import replaces_rows_in_place
from et_optimizer.compilers.tracing import is_concrete
from et_optimizer.views.dense import DenseView
from et_optimizer.views.formats import ScaledTensor, SparseRows, as_sparse_rows
from et_optimizer.views.sparse import (
    SparseStackView,
    SparseView,
    subtract_from_rows,
    sum_duplicates,
)


def view(gradient, index, as_matrix=False):
    """Views a gradient through a tensor index.

    Args:
        gradient: A tensor of the variable's shape, a `ScaledTensor`, or a sparse
            gradient, whose duplicates add up.
        index: The variable's `TensorIndex`, with at least one slot.
        as_matrix: Whether rows and columns of a dense gradient are those of the
            variable as a matrix (`matrix_shape`), if the axes of the index allow it.
            Otherwise they are split where they are fewest.

    Returns:
        A `DenseView`, or a sparse one.
    """
    gradient = as_sparse_rows(gradient)
    if isinstance(gradient, ScaledTensor):
        values, scale = gradient
        return DenseView(values, index, as_matrix).times(scale)
    if not isinstance(gradient, SparseRows):
        return DenseView(gradient, index, as_matrix)
    if index.stack > 1:
        return SparseStackView(gradient, index)
    return SparseView(gradient, index)


def is_sparse(gradient):
    """Whether a gradient, or a change in the form of one, is sparse."""
    return isinstance(as_sparse_rows(gradient), SparseRows)


def is_traced(gradient):
    """Whether a gradient is a dense tensor of a program that is being traced."""
    values = gradient.values if isinstance(gradient, ScaledTensor) else gradient
    return not (is_sparse(gradient) or is_concrete(values))


def multiply_out(gradient):
    """A `ScaledTensor` as a tensor; other gradients as they are."""
    if not isinstance(gradient, ScaledTensor):
        return gradient
    values, scale = gradient
    return values * ops.cast(scale, values.dtype)


def to_dense(gradient, shape):
    """A gradient with a value for every entry: a tensor or a `ScaledTensor`."""
    if isinstance(gradient, ScaledTensor):
        return gradient
    gradient = as_sparse_rows(gradient)
    if isinstance(gradient, SparseRows):
        if is_16_bit(gradient.dtype):
            # Duplicates add up in float32 and are rounded once.
            gradient = sum_duplicates(gradient, shape)
        gradient = gradient.to_dense(shape)
    # The shape of a formerly sparse gradient may be unknown while tracing.
    return ops.reshape(ops.convert_to_tensor(gradient), shape)


def wait_for(gradient, after):
    """The same dense gradient, available only once the tensor `after` is."""
    if isinstance(gradient, ScaledTensor):
        return gradient._replace(values=sequence_after(gradient.values, after))
    return sequence_after(gradient, after)


def subtract_from(value, change, subtract, has_decay):
    """A variable's value after a step, and what remains to be done for some rows.

    Args:
        value: The value before.
        change: What the step subtracts: a tensor, or in sparse form.
        subtract: `(value, change, positions) -> value` for some entries, elementwise;
            `positions(first)` gives the position of each, plus `first`.
        has_decay: Whether entries move whose change is 0.

    Returns:
        `(value, rows)`: the new value and `None`; or, for a sparse change, the value
        with what applies to all entries, and what to subtract from some rows. If the
        value is 16-bit, `rows` are what to put in place of these rows.
    """
    all_positions = functools.partial(positions, value.shape)
    if not is_sparse(change):
        return subtract(value, change, all_positions), None
    after = subtract(value, 0.0, all_positions) if has_decay else value
    if not is_16_bit(value.dtype):
        return after, change
    # Each row is computed from its value before, and rounded once.
    rows = as_sparse_rows(change)
    new = subtract_from_rows(value, rows, subtract)
    if replaces_rows_in_place():
        return after, rows.with_values(new)
    return ops.scatter_update(after, ops.expand_dims(rows.indices, -1), new), None


def check_gradients(grads, variables):
    """Raises unless there is a gradient, or `None`, for every variable.

    Args:
        grads: List of gradients.
        variables: List of variables.

    Raises:
        ValueError: if their numbers differ, or if a gradient has another shape than its
            variable or an integer dtype.
    """
    if len(grads) != len(variables):
        raise ValueError(
            "Every variable must have a gradient, or None for it; received "
            f"{len(grads)} gradients for {len(variables)} variables. Nothing has been "
            "changed."
        )
    for gradient, variable in zip(grads, variables):
        if gradient is not None:
            _check_gradient(as_sparse_rows(gradient), variable)


def _check_gradient(gradient, variable):
    path, received = naming.path(variable), tuple(gradient.shape)
    expected = tuple(variable.shape)
    if isinstance(gradient, SparseRows):
        received, expected = received[1:], expected[1:]
    if None not in received and received != expected:
        raise ValueError(
            f"A gradient must have its variable's shape; received {received} for "
            f"{expected} of variable {path!r}. Check the order of gradients and "
            "variables."
        )
    dtype = keras.backend.standardize_dtype(getattr(gradient, "dtype", "float32"))
    if "float" not in dtype:
        raise ValueError(
            f"A gradient must have a floating-point dtype; received dtype {dtype} for "
            f"variable {path!r}. Cast it, or check the loss."
        )
