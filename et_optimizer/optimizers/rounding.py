"""How a weight is rounded that is stored in two bytes.

bfloat16 has 8 significant bits: an update of less than half a unit in the last place is
lost when the weight is rounded to nearest. Rounded stochastically it goes up with the
probability of the fraction that is cut off, so that on average nothing is lost and no
second copy of the weight is needed (Gupta, Agrawal, Gopalakrishnan, Narayanan, 2015,
arXiv:1502.02551).

The random bits are a function of the step, the variable and the entry, and of nothing
else: a hash of a counter. They are made where they are used, alike on every backend and
every device.
"""

import keras
from keras import ops

from et_optimizer.compilers import bits
from et_optimizer.types import Tensor

# Factors and shifts of a bijection of 32 bits with little bias, found by C. Wellons's
# search ("Prospecting for hash functions", 2018); the second factor as a signed number.
FACTORS = 0x7FEB352D, 0x846CA68B - 2**32
SHIFTS = 16, 15, 16
# How many bits of a float32 are cut off, the largest finite number and, for the dtype
# whose exponents end before those of float32, its smallest number of all bits.
CUT_OFF = {"bfloat16": 16, "float16": 13}
LARGEST = {"bfloat16": 2.0**128 - 2.0**120, "float16": 65504.0}
SMALLEST_NORMAL, SMALLEST = 2.0**-14, 2.0**-24
# The values of the argument.
STOCHASTIC = ("auto", True, False)


def seed(iteration: Tensor, place: int) -> Tensor:
    """What tells the steps of one variable from those of others and from each other.

    Args:
        iteration: Scalar integer, the number of steps before this one.
        place: The variable's place among those that are trained; an average of weights
            has that of its variable, negative and less 1.

    Returns:
        A scalar int32.
    """
    own = _hashed(ops.convert_to_tensor(place, "int32"))
    return random_bits(own, own + ops.cast(iteration, "int32"))


def averaged(
    average: Tensor, value: Tensor, momentum: Tensor, iteration: Tensor, place: int
) -> Tensor:
    """A moving average of weights after a step, rounded as they are.

    Args:
        average: What it was.
        value: The weights.
        momentum: Scalar, the share that is kept.
        iteration, place: As of `seed`; the place of the variable.

    Returns:
        A tensor of the average's dtype.
    """
    old, new = widened(average), widened(value)
    momentum = ops.cast(momentum, old.dtype)
    found = momentum * old + (1.0 - momentum) * new
    if not bits.is_half(average.dtype):
        return ops.cast(found, average.dtype)
    own = seed(iteration, -1 - place)
    return stochastic(found, average.dtype, own, bits.entries_of(found.shape, own))


def widened(value: Tensor) -> Tensor:
    """A value as it is computed with: in float32, or in float64 if it is in that."""
    dtype = keras.backend.standardize_dtype(value.dtype)
    return value if dtype in ("float32", "float64") else ops.cast(value, "float32")


def stochastic(numbers: Tensor, dtype: str, seed: Tensor, counters: Tensor) -> Tensor:
    """Rounds to one of the two neighbours, to either with its probability.

    A number that the dtype holds stays as it is, as do infinities and NaN. Finite
    numbers beyond its range become its largest.

    Args:
        numbers: Float32.
        dtype: `"bfloat16"` or `"float16"`.
        seed: From `seed`.
        counters: As of `random_bits`, in the shape of `numbers`.

    Returns:
        A tensor of the dtype.
    """
    dtype = keras.backend.standardize_dtype(dtype)
    cut_off = 2 ** CUT_OFF[dtype]
    drawn = random_bits(seed, counters)
    noise = ops.bitwise_and(drawn, cut_off - 1)
    inside = ops.clip(numbers, -LARGEST[dtype], LARGEST[dtype])
    # Of numbers of either sign the bits behind it grow with the distance from 0.
    grown = ops.bitwise_and(bits.integers_of(inside) + noise, -cut_off)
    rounded = bits.numbers_of(grown, "float32")
    if dtype == "float16":
        # Below its normal numbers it has the multiples of the smallest.
        share = ops.cast(ops.bitwise_and(drawn, 2**24 - 1), "float32") / 2**24
        steps = ops.abs(numbers) / SMALLEST
        whole = ops.floor(steps)
        whole = ops.where(steps - whole >= 1.0 - share, whole + 1.0, whole)
        small = ops.where(numbers < 0.0, -whole, whole) * SMALLEST
        is_small = ops.logical_and(steps < SMALLEST_NORMAL / SMALLEST, steps > 0)
        rounded = ops.where(is_small, small, rounded)
    rounded = ops.where(ops.isfinite(numbers), rounded, numbers)
    return ops.cast(rounded, dtype)


def random_bits(seed: Tensor, counters: Tensor) -> Tensor:
    """32 random bits for every entry, int32.

    Args:
        seed: From `seed`, int32. It comes in twice, so that no step has the bits of
            another one a few entries on.
        counters: The seed plus the number of every entry, int32. (The numbers alone
            compilers would make a constant of the variable's size.)
    """
    return _hashed(counters, seed)


def _hashed(integers: Tensor, key: Tensor | None = None) -> Tensor:
    for shift, factor in zip(SHIFTS, FACTORS):
        integers = _mixed(integers, shift) * factor
        if key is not None:
            integers, key = ops.bitwise_xor(integers, key), None
    return _mixed(integers, SHIFTS[-1])


def _mixed(integers: Tensor, shift: int) -> Tensor:
    """x xor (x ≫ shift), where zeros come in from above."""
    shifted = ops.right_shift(integers, shift)
    return ops.bitwise_xor(integers, ops.bitwise_and(shifted, 2 ** (32 - shift) - 1))
