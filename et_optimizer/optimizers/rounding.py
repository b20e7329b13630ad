"""Stochastic rounding of 16-bit weights.

bfloat16 has 8 significant bits: rounding to nearest loses an update below half a unit
in the last place of the weight. Stochastic rounding goes up with the probability of the
fraction that is cut off, so that the expected value is exact and no second copy of the
weight is needed (Gupta, Agrawal, Gopalakrishnan, Narayanan, 2015, arXiv:1502.02551).

The random bits are those of `et_optimizer.random_bits`.
"""

import keras
from keras import ops

from et_optimizer import random_bits
from et_optimizer.compilers import bits
from et_optimizer.types import Tensor

# The bits of a float32 that a dtype cuts off, and the largest finite number of each.
CUT_OFF = {"bfloat16": 16, "float16": 13}
LARGEST = {"bfloat16": 2.0**128 - 2.0**120, "float16": 65504.0}
# Of float16, whose exponents end before those of float32.
SMALLEST_NORMAL, SMALLEST = 2.0**-14, 2.0**-24


def average(
    average: Tensor, value: Tensor, momentum: Tensor, iteration: Tensor, variable: int
) -> Tensor:
    """A moving average of weights after a step, rounded as the weights are.

    Args:
        average: The average before the step.
        value: The weights.
        momentum: Scalar, the decay of the average.
        iteration, variable: As for `random_bits.seed`; the index of the variable.

    Returns:
        A tensor of the average's dtype.
    """
    old, new = widen(average), widen(value)
    momentum = ops.cast(momentum, old.dtype)
    found = momentum * old + (1.0 - momentum) * new
    if not bits.is_16_bit(average.dtype):
        return ops.cast(found, average.dtype)
    own = random_bits.seed(iteration, -1 - variable)
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
        seed: From `random_bits.seed`.
        counters: As for `random_bits.draw`, in the shape of `value`.

    Returns:
        A tensor of the dtype.
    """
    dtype = keras.backend.standardize_dtype(dtype)
    cut_off = 2 ** CUT_OFF[dtype]
    drawn = random_bits.draw(seed, counters)
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
