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

from keras import ops

from et_optimizer import tracing
from et_optimizer.gradients.dense import DenseGradient
from et_optimizer.gradients.reductions import in_turn, root_mean_square, sum_of_squares
from et_optimizer.gradients.rows import Rows, rows_of
from et_optimizer.gradients.scaled import Scaled
from et_optimizer.gradients.sparse import SparseGradient, SparseStackGradient
from et_optimizer.gradients.updates import WrittenUpdate, subtracted

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
    "subtracted",
    "sum_of_squares",
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
        gradient = gradient.dense(shape)
    # The shape of one that was sparse may be unknown while tracing.
    return ops.reshape(ops.convert_to_tensor(gradient), shape)


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
