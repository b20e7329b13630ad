"""Tensors in 4 or 3 bits with subtractive dither, in Python integers and float64.

k = clip(round(x / s + d + h), 0, 2^b − 1) and x̂ = (k − h − d) · s, with the scale
s = c_b · rms(x), h = (2^b − 1) / 2, and d in [−1/2, 1/2) from the hash of the seed and
the entry. Independent of the library: it works on lists of numbers, entry by entry.
"""

import math

from tests.reference.stochastic_rounding import WIDTH, random_bits

# Bits → the scale over the root mean square, entries in a group, bytes of a group.
STEPS = {4: 0.3352, 3: 0.586}
GROUPS = {4: (2, 1), 3: (8, 3)}
# The stored seed is that of the step, xor these bits.
OTHER_BITS = 0x2545F491


def seed_of_state(seed):
    """The seed that is stored for a step's seed, from 0 to 2³² − 1."""
    return seed % WIDTH ^ OTHER_BITS


def dither(seed, entry):
    """d of an entry, from the low 24 of its random bits."""
    return random_bits(seed % WIDTH, entry) % 2**24 / 2**24 - 0.5


def scale(numbers, bits):
    """s of a list of numbers."""
    mean = math.fsum(x * x for x in numbers) / len(numbers)
    return STEPS[bits] * math.sqrt(mean)


def unrounded(numbers, step, seed, bits):
    """x / s + d + h of every number, and of zeros that complete the last group."""
    group, _ = GROUPS[bits]
    numbers = [*numbers, *[0.0] * (-len(numbers) % group)]
    half = (2**bits - 1) / 2
    shares = [x / step if step else 0.0 for x in numbers]
    return [x + dither(seed, entry) + half for entry, x in enumerate(shares)]


def integers(numbers, step, seed, bits):
    """k of every number, and of zeros that complete the last group."""
    found = unrounded(numbers, step, seed, bits)
    return [min(max(round(x), 0), 2**bits - 1) for x in found]


def numbers(integers, step, seed, bits):
    """x̂ of every integer."""
    half = (2**bits - 1) / 2
    return [(k - half - dither(seed, entry)) * step for entry, k in enumerate(integers)]


def packed(integers, bits):
    """The bytes of whole groups of integers, the first in the lowest bits."""
    group, size = GROUPS[bits]
    found = []
    for start in range(0, len(integers), group):
        word = sum(k << bits * j for j, k in enumerate(integers[start : start + group]))
        found += word.to_bytes(size, "little")
    return found


def unpacked(stored, bits):
    """The integers of a list of bytes."""
    group, size = GROUPS[bits]
    found = []
    for start in range(0, len(stored), size):
        word = int.from_bytes(bytes(stored[start : start + size]), "little")
        found += [word >> bits * j & 2**bits - 1 for j in range(group)]
    return found
