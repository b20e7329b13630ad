"""How the state of a momentum is quantized: from 32 bits per entry to 3."""

import dataclasses
import math
from typing import Any, Final

from keras import ops

from et_optimizer import random_bits
from et_optimizer.compilers.bits import positions
from et_optimizer.compilers.reductions import sum_in_one_pass
from et_optimizer.types import Shape, Tensor

LARGEST_INT8 = 127.0
# The dtypes that pack several entries into a byte or three, and their bits per entry.
PACKED: Final = {"int4": 4, "int3": 3}
# The step of the uniform quantizer whose mean squared error is the least for a Gaussian
# (Max, 1960), over its standard deviation.
STEP_OF_GAUSSIAN = {4: 0.3352, 3: 0.586}
# Squares of larger entries could overflow in a sum of them.
LARGEST_SQUARED = 1e15
# Changes the seed, so that the dither is independent of the rounding of weights.
OTHER_BITS = 0x2545F491


@dataclasses.dataclass(frozen=True)
class Exact:
    """A tensor in a floating-point dtype, rounded to nearest.

    Args:
        shape: The tensor's shape.
        dtype: `"float32"` or `"bfloat16"`.
    """

    shape: Shape
    dtype: str

    # Whether `quantize` draws random bits.
    needs_seed = False

    def slots(self, name: str) -> dict[str, tuple[Shape, str]]:
        """The slots of a tensor with a name: a dict from name to `(shape, dtype)`."""
        return {name: (self.shape, self.dtype)}

    def dequantize(self, state: list[Tensor]) -> Tensor:
        """The float32 tensor that `quantize` stored.

        Args:
            state: List of tensors, in the order of `slots`.
        """
        return ops.cast(state[0], "float32")

    def quantize(
        self, tensor: Tensor, scale: Tensor | None = None, seed: Tensor = 0
    ) -> list[Tensor]:
        """The state that stores a float32 tensor.

        Args:
            tensor: The tensor.
            scale: Its scale, if `needs_seed`; see `Dithered.scale`.
            seed: The seed of the variable in this step, from `random_bits.seed`, if
                `needs_seed`.
        """
        return [ops.cast(tensor, self.dtype)]


@dataclasses.dataclass(frozen=True)
class Int8:
    """A tensor in 8 bits, rounded to nearest.

    Args:
        shape: The tensor's shape.
        scale_axes: The axes along which entries share a scale: their largest absolute
            value over 127.
    """

    shape: Shape
    scale_axes: tuple[int, ...]

    needs_seed = False

    def slots(self, name: str) -> dict[str, tuple[Shape, str]]:
        """The integers and the scales; see `Exact`."""
        scales = [1 if i in self.scale_axes else n for i, n in enumerate(self.shape)]
        return {
            name: (self.shape, "int8"),
            f"{name}_scale": (tuple(scales), "float32"),
        }

    def dequantize(self, state: list[Tensor]) -> Tensor:
        """The float32 tensor; see `Exact`."""
        integers, scale = state
        return ops.cast(integers, "float32") * scale

    def quantize(
        self, tensor: Tensor, scale: Tensor | None = None, seed: Tensor = 0
    ) -> list[Tensor]:
        """The integers and the scales; see `Exact`."""
        largest = ops.max(ops.abs(tensor), axis=self.scale_axes, keepdims=True)
        scales = largest / LARGEST_INT8
        # Where all entries are 0, so is the scale.
        steps = ops.round(tensor / ops.where(scales > 0, scales, 1.0))
        return [ops.cast(steps, "int8"), scales]


@dataclasses.dataclass(frozen=True)
class Dithered:
    """A tensor in 4 or 3 bits per entry, with subtractive dither.

    With one scale s per tensor, proportional to its root mean square, and uniform d in
    [−1/2, 1/2) for every entry:

        k = clip(round(x / s + d + h), 0, 2^b − 1),   h = (2^b − 1) / 2
        x̂ = (k − h − d) · s

    The error x̂ − x is uniform in [−s/2, s/2], and independent of x, except where the
    clip applies (Schuchman, 1964). The d are a hash of the entry and of the seed of the
    step that stored the tensor, so only that seed is state.

    8 consecutive entries become 3 bytes, or 2 entries 1 byte. If the last axis is a
    multiple of 8 or 2, entries are packed along it, so that the slot can be sharded as
    its variable is. Otherwise all entries are packed in a row, with zeros at the end.

    Args:
        shape: The tensor's shape.
        bits: b, 4 or 3.
    """

    shape: Shape
    bits: int

    needs_seed = True

    def slots(self, name: str) -> dict[str, tuple[Shape, str]]:
        """The packed integers, the scale and the seed; see `Exact`."""
        *leading, last = self._grouped_shape
        group, size = self._group
        return {
            name: ((*leading, last // group * size), "uint8"),
            f"{name}_scale": ((), "float32"),
            f"{name}_seed": ((), "int32"),
        }

    def dequantize(self, state: list[Tensor]) -> Tensor:
        """The float32 tensor; see `Exact`."""
        packed, scale, seed = state
        found = ops.cast(self._unpack(packed), "float32")
        found = (found - self._half - self._dither(seed)) * scale
        if self._grouped_shape == self.shape:
            return found
        return ops.reshape(found[: math.prod(self.shape)], self.shape)

    def scale(self, tensor: Tensor) -> Tensor:
        """The scale of a tensor, s."""
        tensor = ops.clip(tensor, -LARGEST_SQUARED, LARGEST_SQUARED)
        mean = sum_in_one_pass(ops.square(tensor)) / math.prod(self.shape)
        return STEP_OF_GAUSSIAN[self.bits] * ops.sqrt(mean)

    def quantize(self, tensor: Tensor, scale: Tensor, seed: Tensor) -> list[Tensor]:
        """The packed integers, the scale and the seed; see `Exact`."""
        seed = ops.bitwise_xor(ops.convert_to_tensor(seed, "int32"), OTHER_BITS)
        if self._grouped_shape != self.shape:
            tensor = ops.reshape(tensor, (-1,))
            missing = self._grouped_shape[0] - tensor.shape[0]
            tensor = ops.pad(tensor, [(0, missing)])
        # Where all entries are 0, so is the scale.
        # Times the reciprocal: XLA would not compute a quotient again in each pass.
        steps = tensor * (1.0 / ops.where(scale > 0, scale, 1.0))
        steps = ops.round(steps + self._dither(seed) + self._half)
        steps = ops.clip(steps, 0.0, 2.0**self.bits - 1.0)
        return [self._pack(ops.cast(steps, "int32")), scale, seed]

    @property
    def _half(self):
        return (2.0**self.bits - 1.0) / 2.0

    @property
    def _group(self):
        """How many entries are packed into how many bytes."""
        return (2, 1) if self.bits == 4 else (8, 3)

    @property
    def _grouped_shape(self):
        group, _ = self._group
        if self.shape[-1] % group == 0:
            return self.shape
        return (-(-math.prod(self.shape) // group) * group,)

    def _dither(self, seed):
        shape = self._grouped_shape
        return random_bits.uniform(seed, positions(shape, seed))

    def _pack(self, integers):
        group, size = self._group
        *leading, last = self._grouped_shape
        grouped = ops.reshape(integers, (*leading, last // group, group))
        shifts = ops.arange(group, dtype="int32") * self.bits
        word = ops.sum(ops.left_shift(grouped, shifts), axis=-1, keepdims=True)
        shifts = ops.arange(size, dtype="int32") * 8
        packed = ops.bitwise_and(ops.right_shift(word, shifts), 255)
        packed = ops.reshape(packed, (*leading, last // group * size))
        return ops.cast(packed, "uint8")

    def _unpack(self, packed):
        group, size = self._group
        *leading, last = self._grouped_shape
        packed = ops.cast(packed, "int32")
        packed = ops.reshape(packed, (*leading, last // group, size))
        shifts = ops.arange(size, dtype="int32") * 8
        word = ops.sum(ops.left_shift(packed, shifts), axis=-1, keepdims=True)
        shifts = ops.arange(group, dtype="int32") * self.bits
        found = ops.bitwise_and(ops.right_shift(word, shifts), 2**self.bits - 1)
        return ops.reshape(found, self._grouped_shape)


def of_dtype(dtype: str, shape: Shape, scale_axes: tuple[int, ...] = ()) -> Any:
    """How a tensor is quantized.

    Args:
        dtype: `"float32"`, `"bfloat16"`, `"int8"`, `"int4"` or `"int3"`.
        shape: The tensor's shape.
        scale_axes: The axes along which entries share a scale, in int8.
    """
    if dtype in PACKED:
        return Dithered(tuple(shape), PACKED[dtype])
    if dtype == "int8":
        return Int8(tuple(shape), scale_axes)
    return Exact(tuple(shape), dtype)
