"""Stochastic rounding, entry by entry, in Python integers and float64."""

import math

# dtype → significant bits, exponent of the smallest normal number, random bits used.
FORMATS = {"bfloat16": (8, -126, 16), "float16": (11, -14, 13)}
WIDTH = 2**32


def hashed(number, key=0):
    """The bijection on 32 bits; the key is mixed in after its first half."""
    number ^= number >> 16
    number = number * 0x7FEB352D % WIDTH ^ key
    number ^= number >> 15
    number = number * 0x846CA68B % WIDTH
    return number ^ number >> 16


def seed(iteration, index):
    """The seed of one variable at one step, different from all others."""
    return random_bits(hashed(index % WIDTH), iteration)


def random_bits(seed_of_step, entry):
    """The 32 random bits of an entry."""
    return hashed((entry + seed_of_step) % WIDTH, seed_of_step)


def neighbours(x, dtype):
    """The largest number of the dtype not above |x|, and the distance to the next."""
    bits, smallest, _ = FORMATS[dtype]
    exponent = max(math.frexp(x)[1] - 1, smallest) if x else smallest
    unit = 2.0 ** (exponent - bits + 1)
    return math.floor(abs(x) / unit) * unit, unit


def stochastic(x, dtype, noise):
    """x, rounded away from 0 if the noise reaches the distance to the next number.

    Args:
        x: A finite number within the range of the dtype.
        dtype: A name in `FORMATS`.
        noise: 32 random bits.
    """
    _, smallest, used = FORMATS[dtype]
    if dtype == "float16" and abs(x) < 2.0**smallest:
        used = 24  # more than 13 bits of float32 are cut off
    below, unit = neighbours(x, dtype)
    share = (abs(x) - below) / unit
    goes_up = share + (noise % 2**used) / 2**used >= 1.0
    return math.copysign(below + unit * goes_up, x)
