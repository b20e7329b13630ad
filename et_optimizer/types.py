"""What arguments may be, for those who check types.

Keras and its backends have no types that mypy knows. To it their models, variables and
tensors are anything, whatever a signature here says of them.
"""

import sys
from collections.abc import Callable, Mapping, Sequence
from typing import Any, Literal, Protocol, TypeAlias, TypedDict, TypeVar

if sys.version_info >= (3, 11):
    from typing import Self as Self
    from typing import Unpack as Unpack
else:  # Of what Keras brings.
    from typing_extensions import Self as Self
    from typing_extensions import Unpack as Unpack

import numpy as np

T = TypeVar("T")

# Of whichever backend, and of Keras 3 or tf_keras.
Tensor: TypeAlias = Any
Variable: TypeAlias = Any
# What a mixin of optimizers is mixed with: an optimizer to mypy, nothing in truth.
AnyOptimizer: Any = object

Shape: TypeAlias = tuple[int, ...]
# `(path, shape)`, one a variable.
NamedShapes: TypeAlias = Sequence[tuple[str, Shape]]

# One value for all variables, or a dict to values from expressions on their paths.
ByPath: TypeAlias = T | Mapping[str, T]
Whole: TypeAlias = int | np.integer[Any]
Number: TypeAlias = float | np.floating[Any] | np.integer[Any]
Level: TypeAlias = Whole | Literal["inf"]
KeptAxis: TypeAlias = Whole | Literal["auto"]
MomentumRank: TypeAlias = Whole | Literal["auto"] | None
RateScale: TypeAlias = Number | Literal["auto"] | None

# The sizes of a tensor index by hand, and what `tensor_index` may be.
Sizes: TypeAlias = list[int] | tuple[int, ...]
TensorIndices: TypeAlias = (
    Mapping[str, Sizes] | Callable[[str, Shape], Sizes | None] | None
)

MomentumDtype: TypeAlias = Literal["float32", "bfloat16", "int8"]
Nonfinite: TypeAlias = Literal["skip", "raise"]
StochasticRounding: TypeAlias = bool | Literal["auto"]
Graft: TypeAlias = Literal["extreme_tensoring", "rmsprop", "sgd"] | None


class Schedule(Protocol):
    """A `keras.optimizers.schedules.LearningRateSchedule`."""

    def __call__(self, step: Any) -> Any: ...

    def get_config(self) -> dict[str, Any]: ...


LearningRate: TypeAlias = float | Schedule | Callable[[], Any]


class HasShape(Protocol):
    """A variable, a `keras.KerasTensor`, a `jax.ShapeDtypeStruct` or the like."""

    @property
    def shape(self) -> Any: ...

    @property
    def dtype(self) -> Any: ...


class SharedArguments(TypedDict, total=False):
    """What every optimizer of this library takes, those too that do not name it."""

    rate_scale: ByPath[RateScale]


class KerasArguments(TypedDict, total=False):
    """What every Keras optimizer takes beside its learning rate."""

    weight_decay: float | None
    clipnorm: float | None
    clipvalue: float | None
    global_clipnorm: float | None
    use_ema: bool
    ema_momentum: float
    ema_overwrite_frequency: int | None
    loss_scale_factor: float | None
    gradient_accumulation_steps: int | None
    name: str | None


class OtherArguments(KerasArguments, SharedArguments, total=False):
    """What an optimizer takes that names none of these."""
