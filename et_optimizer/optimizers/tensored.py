"""The optimizers whose tensor index follows a level or is given by hand."""

from collections.abc import Mapping
from typing import Any

import keras

from et_optimizer.optimizers.base import (
    PreconditionedOptimizer,
    by_path_as_given,
    by_path_to_keep,
)
from et_optimizer.preconditioners import Preconditioner
from et_optimizer.types import (
    ByPath,
    LearningRate,
    Level,
    NamedShapes,
    Self,
    TensorIndices,
)
from et_optimizer.views.tensor_index import (
    TensorIndex,
    check_levels,
    check_overrides,
    index_variables,
)


class TensoredOptimizer(PreconditionedOptimizer):
    """A `PreconditionedOptimizer` with `level` and `tensor_index`.

    Args:
        preconditioner, learning_rate: As in `PreconditionedOptimizer`.
        level, tensor_index: As in `et_optimizer.ExtremeTensoring`.
        **kwargs: The other arguments of `PreconditionedOptimizer`.
    """

    form_arguments: tuple[str, ...] = ("level", "tensor_index")

    def __init__(
        self,
        preconditioner: Preconditioner,
        learning_rate: LearningRate,
        *,
        level: ByPath[Level],
        tensor_index: TensorIndices,
        **kwargs: Any,
    ):
        check_levels(level)
        check_overrides(tensor_index)
        super().__init__(preconditioner, learning_rate, **kwargs)
        self._level = by_path_to_keep(level)
        # As a tuple, because Keras would put a tracking dict in a dict's place.
        self._tensor_index: Any = tensor_index
        if isinstance(tensor_index, Mapping):
            self._tensor_index = tuple(tensor_index.items())

    @property
    def level(self) -> ByPath[Level]:
        """The level, or a dict of levels by path."""
        return by_path_as_given(self._level)

    @property
    def tensor_index(self) -> TensorIndices:
        """The indices given by hand: a dict, a callable or `None`."""
        if isinstance(self._tensor_index, tuple):
            return {pattern: tuple(sizes) for pattern, sizes in self._tensor_index}
        return self._tensor_index

    def index_variables(self, named_shapes: NamedShapes) -> list[TensorIndex]:
        """The tensor index of every variable; see the base."""
        return index_variables(named_shapes, self.level, self.tensor_index)

    def get_config(self) -> dict[str, Any]:
        """The arguments that make an equal optimizer."""
        config = super().get_config()
        indices = self.tensor_index
        if isinstance(indices, dict):
            indices = {pattern: list(sizes) for pattern, sizes in indices.items()}
        config.update(level=self.level, tensor_index=indices)
        return config

    @classmethod
    def from_config(
        cls,
        config: Mapping[str, Any],
        custom_objects: Mapping[str, Any] | None = None,
    ) -> Self:
        """An optimizer from `get_config`'s dictionary."""
        config = dict(config)
        if _is_serialized(config.get("tensor_index")):
            config["tensor_index"] = keras.saving.deserialize_keras_object(
                config["tensor_index"], custom_objects=custom_objects
            )
        return super().from_config(config, custom_objects=custom_objects)


def _is_serialized(config: Any) -> bool:
    return isinstance(config, Mapping) and "class_name" in config
