"""Optimization barriers: what a compiler must not fuse, merge or reorder.

Only XLA needs them, and most of them only its CPU compiler under JAX. Elsewhere these
functions return their argument, except for `materialize`.
"""

import math

import keras
import numpy as np
from keras import ops

from et_optimizer.compilers.bits import bits_of, from_bits, is_16_bit


def barrier(tensors, after=None):
    """The same tensors, but the compiler cannot tell that they are the same.

    XLA otherwise shares an elementwise expression between two reductions and, because
    it then has two users, materializes it.

    Args:
        tensors: A list of tensors.
        after: A tensor to compute first, or `None`. Barriers with the same operands are
            merged; one that waits for something else is not.
    """
    if keras.backend.backend() != "jax":
        return tensors
    import jax

    operands = tensors if after is None else [*tensors, after]
    return jax.lax.optimization_barrier(operands)[: len(tensors)]


def sequence_after(tensor, after):
    """The same tensor, available only once another one is.

    XLA:CPU schedules as many operations as possible to run at once, and keeps what all
    of them materialize. By then it has removed barriers, so this adds a 0 that it
    cannot recognize: one entry of `after`, reshaped so that XLA does not look through.
    """
    if keras.backend.backend() != "jax":
        return tensor
    first = ops.reshape(after, (-1,))[0]
    zero = ops.minimum(ops.cast(first > 0, "int32"), 0)
    if is_16_bit(tensor.dtype):
        # Added to the bits: XLA:CPU would materialize a float32 copy of 16-bit floats.
        waiting = bits_of(tensor) + ops.cast(zero, "int16")
        return from_bits(waiting, tensor.dtype)
    return tensor + ops.cast(zero, tensor.dtype)


def isolate_reduction(reduced):
    """The result of a reduction, with nothing that follows fused into the reduction.

    XLA:CPU under JAX takes up to eighteen times as long for a large reduction once it
    has fused what follows.
    """
    return materialize(reduced) if keras.backend.backend() == "jax" else reduced


def materialize(tensor):
    """The same tensor, computed once by itself and not again at every use.

    XLA fuses a minimum over modes into the pass over the variable, and then computes it
    again for every entry. It never fuses a reduction that way, so this is a reduction
    over the tensor and the least value, in a form that XLA does not simplify.
    """
    if keras.backend.backend() == "jax":
        import jax

        # As integers: after a reduction of floats, XLA:CPU calls a library for as much
        # as it can of what follows, and materializes the input of the rest.
        bits = jax.lax.bitcast_convert_type(tensor, "int32")
        found = _larger_of(bits, least=-(2**31))
        return jax.lax.bitcast_convert_type(found, "float32")
    return _larger_of(tensor, least=-math.inf)


def _larger_of(tensor, least):
    pairs = ops.where(np.array([True, False]), tensor[..., None], least)
    # A sparse gradient may have no rows, and their number is unknown while tracing.
    may_be_empty = 0 in pairs.shape or None in pairs.shape
    return ops.max(pairs, axis=-1, initial=least if may_be_empty else None)
