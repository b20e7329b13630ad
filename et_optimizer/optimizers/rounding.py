"""Stochastic rounding of 16-bit weights.

bfloat16 has 8 significant bits: rounding to nearest loses an update below half a unit
in the last place of the weight. Stochastic rounding goes up with the probability of the
fraction that is cut off, so that the expected value is exact and no second copy of the
weight is needed (Gupta, Agrawal, Gopalakrishnan, Narayanan, 2015, arXiv:1502.02551).

The random bits are a hash of the step, the variable and the entry. They are made where
they are used, and are the same on every backend and device.
"""

import keras
from keras import ops

from et_optimizer.compilers import bits
from et_optimizer.types import Tensor

# Factors and shifts of a bijection of 32-bit integers with little bias, found by
# C. Wellons ("Prospecting for hash functions", 2018). The second factor is negative as
# an int32.
FACTORS = 0x7FEB352D, 0x846CA68B - 2**32
SHIFTS = 16, 15, 16
# The bits of a float32 that a dtype cuts off, and the largest finite number of each.
CUT_OFF = {"bfloat16": 16, "float16": 13}
LARGEST = {"bfloat16": 2.0**128 - 2.0**120, "float16": 65504.0}
# Of float16, whose exponents end before those of float32.
SMALLEST_NORMAL, SMALLEST = 2.0**-14, 2.0**-24


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
    return random_bits(own, own + ops.cast(iteration, "int32"))


def average(
    average: Tensor, value: Tensor, momentum: Tensor, iteration: Tensor, variable: int
) -> Tensor:
    """A moving average of weights after a step, rounded as the weights are.

    Args:
        average: The average before the step.
        value: The weights.
        momentum: Scalar, the decay of the average.
        iteration, variable: As for `seed`; the index of the variable.

    Returns:
        A tensor of the average's dtype.
    """
    old, new = widen(average), widen(value)
    momentum = ops.cast(momentum, old.dtype)
    found = momentum * old + (1.0 - momentum) * new
    if not bits.is_16_bit(average.dtype):
        return ops.cast(found, average.dtype)
    own = seed(iteration, -1 - variable)
    return stochastic(found, average.dtype, own, bits.positions(found.shape, own))


def widen(value: Tensor) -> Tensor:
    """A value in the dtype of computation: float64 if it is that, float32 otherwise."""
    dtype = keras.backend.standardize_dtype(value.dtype)
    return value if dtype in ("float32", "float64") else ops.cast(value, "float32")


def stochastic(value: Tensor, dtype: str, seed: Tensor, counters: Tensor) -> Tensor:
    """Rounds every entry to one of its two neighbours, unbiased.

    Values that the dtype can represent stay as they are, as do infinities and NaN.
    Finite values outside its range become its largest.

    Args:
        value: Float32.
        dtype: `"bfloat16"` or `"float16"`.
        seed: From `seed`.
        counters: As for `random_bits`, in the shape of `value`.

    Returns:
        A tensor of the dtype.
    """
    dtype = keras.backend.standardize_dtype(dtype)
    cut_off = 2 ** CUT_OFF[dtype]
    drawn = random_bits(seed, counters)
    noise = ops.bitwise_and(drawn, cut_off - 1)
    inside = ops.clip(value, -LARGEST[dtype], LARGEST[dtype])
    # For either sign, the bits as an integer grow with the distance from 0.
    grown = ops.bitwise_and(bits.bits_of(inside) + noise, -cut_off)
    rounded = bits.from_bits(grown, "float32")
    if dtype == "float16":
        # Below its normal numbers it has the multiples of the smallest.
        share = ops.cast(ops.bitwise_and(drawn, 2**24 - 1), "float32") / 2**24
        steps = ops.abs(value) / SMALLEST
        whole = ops.floor(steps)
        whole = ops.where(steps - whole >= 1.0 - share, whole + 1.0, whole)
        small = ops.where(value < 0.0, -whole, whole) * SMALLEST
        is_small = ops.logical_and(steps < SMALLEST_NORMAL / SMALLEST, steps > 0)
        rounded = ops.where(is_small, small, rounded)
    rounded = ops.where(ops.isfinite(value), rounded, value)
    return ops.cast(rounded, dtype)


def random_bits(seed: Tensor, counters: Tensor) -> Tensor:
    """32 random bits for every entry, int32.

    Args:
        seed: From `seed`. It enters twice, so that no step repeats the bits of another
            one at shifted positions.
        counters: The position of every entry plus the seed, int32. (Compilers would
            store the positions alone as a constant of the variable's size.)
    """
    return _hash(counters, seed)


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
