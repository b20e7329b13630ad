"""The types of arguments, for type checkers.

Keras and its backends have no types that mypy knows: it takes their models, variables
and tensors for `Any`, whatever a signature here says of them.
"""

import sys
from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Any, Literal, Protocol, TypeAlias, TypeVar

if sys.version_info >= (3, 11):
    from typing import Self as Self
    from typing import dataclass_transform as dataclass_transform
else:  # A dependency of Keras.
    from typing_extensions import Self as Self
    from typing_extensions import dataclass_transform as dataclass_transform

import numpy as np

T = TypeVar("T")

# Of any backend, and of Keras 3 or tf_keras.
Tensor: TypeAlias = Any
Variable: TypeAlias = Any

if TYPE_CHECKING:

    class KerasOptimizer:
        """What type checkers are told of the base of optimizers and their mixins."""

        learning_rate: Any
        weight_decay: Any
        _states: Any
        _arguments: Any

        def __init__(self, *args: Any, **kwargs: Any): ...
        def __getattr__(self, name: str) -> Any: ...
        def build(self, var_list: Any) -> None: ...
        def apply(self, grads: Any, trainable_variables: Any = None) -> Any: ...
        def get_config(self) -> dict[str, Any]: ...
        def save_own_variables(self, store: Any) -> None: ...
        def load_own_variables(self, store: Any) -> None: ...
        def finalize_variable_values(self, var_list: Any) -> None: ...
        def _clip_gradients(self, grads: Any) -> Any: ...
        def _update_model_variables_moving_average(self, variables: Any) -> None: ...
        def _backend_update_step(
            self, grads: Any, variables: Any, rate: Any
        ) -> None: ...
        @classmethod
        def from_config(cls, config: Any, custom_objects: Any = None) -> Self: ...
else:
    KerasOptimizer = object

Shape: TypeAlias = tuple[int, ...]
# `(path, shape)`, one per variable.
NamedShapes: TypeAlias = Sequence[tuple[str, Shape]]

# One value for all variables, or a dict to values from expressions on their paths.
ByPath: TypeAlias = T | Mapping[str, T]
Whole: TypeAlias = int | np.integer[Any]
Number: TypeAlias = float | np.floating[Any] | np.integer[Any]
Level: TypeAlias = Whole | Literal["inf"]
KeptAxis: TypeAlias = Whole | Literal["auto"]
MomentumRank: TypeAlias = Whole | Literal["auto"] | None
Orthogonalize: TypeAlias = bool | Literal["auto", "stack"]
RateScale: TypeAlias = Number | Literal["auto"] | None

# The sizes of a tensor index by hand, and what `tensor_index` may be.
Sizes: TypeAlias = list[int] | tuple[int, ...]
TensorIndices: TypeAlias = (
    Mapping[str, Sizes] | Callable[[str, Shape], Sizes | None] | None
)


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
