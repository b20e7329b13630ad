"""Random bits as a hash of the step, the variable and the entry.

They are made where they are used, take no memory, and are the same on every backend and
device, in every replica and shard, and in a resumed run.
"""

from keras import ops

from et_optimizer.types import Tensor

# Factors and shifts of a bijection of 32-bit integers with little bias, found by
# C. Wellons ("Prospecting for hash functions", 2018). The second factor is negative as
# an int32.
FACTORS = 0x7FEB352D, 0x846CA68B - 2**32
SHIFTS = 16, 15, 16


def seed(iteration: Tensor, variable: int) -> Tensor:
    """The seed of one variable's random bits in one step.

    Args:
        iteration: Scalar integer, the number of steps before this one.
        variable: The variable's index among those that are trained. The moving average
            of its weights has the index −1 − variable.

    Returns:
        A scalar int32.
    """
    own = _hash(ops.convert_to_tensor(variable, "int32"))
    return draw(own, own + ops.cast(iteration, "int32"))


def draw(seed: Tensor, counters: Tensor) -> Tensor:
    """32 random bits for every entry, int32.

    Args:
        seed: From `seed`. It enters twice, so that no step repeats the bits of another
            one at shifted positions.
        counters: The position of every entry plus the seed, int32. (Compilers would
            store the positions alone as a constant of the variable's size.)
    """
    return _hash(counters, seed)


def uniform(seed: Tensor, counters: Tensor) -> Tensor:
    """A multiple of 2⁻²⁴ in [−1/2, 1/2) for every entry, float32.

    Args:
        seed, counters: As for `draw`.
    """
    drawn = ops.bitwise_and(draw(seed, counters), 2**24 - 1)
    return ops.cast(drawn, "float32") / 2**24 - 0.5


def _hash(integers: Tensor, key: Tensor | None = None) -> Tensor:
    for shift, factor in zip(SHIFTS, FACTORS):
        integers = _xor_shifted(integers, shift) * factor
        if key is not None:
            integers, key = ops.bitwise_xor(integers, key), None
    return _xor_shifted(integers, SHIFTS[-1])


def _xor_shifted(integers: Tensor, shift: int) -> Tensor:
    """x xor (x ≫ shift), with zeros shifted in."""
    shifted = ops.right_shift(integers, shift)
    return ops.bitwise_xor(integers, ops.bitwise_and(shifted, 2 ** (32 - shift) - 1))
