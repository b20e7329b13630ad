"""Going through the rows of a matrix in blocks.

XLA fuses sums and products of entries into one pass over a variable; the product of two
matrices it writes out. Of a large variable, and where it is not added term by term
(`updates.MAX_FUSED_TERMS`), it is therefore made of some rows at a time.
"""

from keras import ops

from et_optimizer.compilers import bits, tracing
from et_optimizer.compilers.layouts import may_be_in_parts
from et_optimizer.compilers.reductions import apart

# 1 MB in float32, which stays in a processor's cache.
MAX_ENTRIES = 2**18


def are_needed(rows, columns):
    """Whether what is as large as a matrix of this shape is not to be written out."""
    return rows * columns > MAX_ENTRIES and rows > 1 and not may_be_in_parts()


def over(rows, columns, body, carry):
    """Carries something through all rows of a matrix.

    Args:
        rows, columns: The matrix's shape.
        body: `(carry, start, count) -> carry`, for `count` rows from `start` on, a
            number or a tensor.
        carry: What the first call takes.

    Returns:
        What the last call gives.
    """
    if not are_needed(rows, columns):
        return body(carry, 0, rows)
    count = max(1, MAX_ENTRIES // columns)
    blocks = rows // count
    if tracing.is_known(carry):
        # JAX would compile the loop anew at every step.
        for block in range(blocks):
            carry = body(carry, block * count, count)
    else:
        carry = ops.fori_loop(
            0, blocks, lambda block, held: body(held, block * count, count), carry
        )
    rest = rows - blocks * count
    return body(carry, blocks * count, rest) if rest else carry


def take(tensor, rows):
    """Some rows of a matrix, or the one that it has.

    Args:
        tensor: Shape (rows or 1, columns).
        rows: `(start, count)`, or `None` for all.
    """
    if rows is None or tensor.shape[0] == 1:
        return tensor
    start, count = rows
    shape = count, tensor.shape[1]
    if not bits.is_half(tensor.dtype):
        return ops.slice(tensor, (start, 0), shape)
    # To cut a piece out of it XLA:CPU would make all of it float32, or write out all of
    # its bits; but what waits for a place in the loop is not taken out of the loop.
    tensor, start = apart([tensor, start])
    found = ops.slice(bits.integers_of(tensor), (start, 0), shape)
    return bits.numbers_of(found, tensor.dtype)


def put(tensor, start, block):
    """The matrix with a block of rows put in from `start` on."""
    return ops.slice_update(tensor, (start, 0), block)
