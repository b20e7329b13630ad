"""Large matrices, a block of rows at a time.

XLA fuses elementwise sums and products into one pass over a variable, but materializes
the product of two matrices. For a large variable such a product is therefore made a
block of rows at a time, unless its rank is small enough to add it up term by term.
"""

import keras
from keras import ops

from et_optimizer.compilers import bits
from et_optimizer.compilers.barriers import barrier
from et_optimizer.compilers.layouts import is_sharded
from et_optimizer.compilers.tracing import is_concrete

# 1 MB in float32, which fits a processor's cache.
MAX_ENTRIES = 2**18
# Up to this rank a product of thin matrices is added term by term within the pass over
# the variable. With more terms that takes longer than a matrix product.
MAX_FUSED_TERMS = {"jax": 8, "tensorflow": 0, "torch": 0}


def is_product_fused(rank):
    """Whether a product of thin matrices of this rank is added term by term."""
    return rank <= MAX_FUSED_TERMS[keras.backend.backend()]


def are_needed(rows, columns):
    """Whether a matrix of this shape is too large to be materialized."""
    return rows * columns > MAX_ENTRIES and rows > 1 and not is_sharded()


def loop(rows, columns, body, carry):
    """Carries a value through all rows of a matrix, a block at a time.

    Args:
        rows, columns: The matrix's shape.
        body: `(carry, start, count) -> carry`, for `count` rows from `start` on, an
            integer or a tensor.
        carry: The first value.

    Returns:
        The last value.
    """
    if not are_needed(rows, columns):
        return body(carry, 0, rows)
    count = max(1, MAX_ENTRIES // columns)
    blocks = rows // count
    if is_concrete(carry):
        # JAX would compile the loop again at every step.
        for block in range(blocks):
            carry = body(carry, block * count, count)
    else:
        carry = ops.fori_loop(
            0, blocks, lambda block, last: body(last, block * count, count), carry
        )
    rest = rows - blocks * count
    return body(carry, blocks * count, rest) if rest else carry


def take(tensor, rows):
    """A block of rows of a matrix, or its only row.

    Args:
        tensor: Shape (rows or 1, columns).
        rows: `(start, count)`, or `None` for all rows.
    """
    if rows is None or tensor.shape[0] == 1:
        return tensor
    start, count = rows
    shape = count, tensor.shape[1]
    if not bits.is_16_bit(tensor.dtype):
        return ops.slice(tensor, (start, 0), shape)
    # To slice it, XLA:CPU would convert all of it to float32, or move the bitcast of
    # all of it out of the loop; a barrier with the loop's counter keeps it inside.
    tensor, start = barrier([tensor, start])
    found = ops.slice(bits.bits_of(tensor), (start, 0), shape)
    return bits.from_bits(found, tensor.dtype)


def put(tensor, start, block):
    """The matrix with a block of rows replaced, from `start` on."""
    return ops.slice_update(tensor, (start, 0), block)
