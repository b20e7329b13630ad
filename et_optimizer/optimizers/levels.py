"""Optimizers whose tensor index follows a level, or is given by hand."""

from collections.abc import Mapping
from typing import Any, ClassVar

import keras

from et_optimizer.optimizers.base import PreconditionedOptimizer
from et_optimizer.types import ByPath, Level, NamedShapes, Self, TensorIndices
from et_optimizer.views.tensor_index import (
    TensorIndex,
    check_levels,
    check_overrides,
    index_variables,
)


class LevelledOptimizer(PreconditionedOptimizer):
    """An optimizer whose arguments `level` and `tensor_index` decide the modes.

    Args:
        level: 1, 2, 3, … or `"inf"`. Level 1 has one mode per axis; each further
            level splits every factor once more, near-equally, padding sizes without
            good divisors; `"inf"` keeps one element per variable. Higher levels keep
            less and adapt more coarsely. Or a dict from regular expressions, searched
            for in a variable's path (the first match wins), to levels, such as
            `{"embeddings|logits": 1, ".*": 2}`.
        tensor_index: Modes given by hand: a dict from regular expressions on variable
            paths (the first match wins) to tuples of sizes, or a callable
            `(path, shape) -> sizes or None`. Sizes multiply to the number of entries.
            Variables that are not named follow `level`.
    """

    slot_argument_names: ClassVar[tuple[str, ...]] = ("level", "tensor_index")

    level: ByPath[Level] = 1
    tensor_index: TensorIndices = None

    @classmethod
    def check_arguments(cls, given: Mapping[str, Any]) -> None:
        """Raises `ValueError` for a bad value; see the base."""
        super().check_arguments(given)
        check_levels(given["level"])
        check_overrides(given["tensor_index"])

    def index_variables(self, named_shapes: NamedShapes) -> list[TensorIndex]:
        """The tensor index of every variable; see the base."""
        levels = self.by_path("level", named_shapes)
        return index_variables(named_shapes, levels, self.tensor_index)

    def get_config(self) -> dict[str, Any]:
        """The arguments that make an equal optimizer."""
        config = super().get_config()
        if isinstance(self.tensor_index, Mapping):
            sizes = {path: list(sizes) for path, sizes in self.tensor_index.items()}
            config["tensor_index"] = sizes
        return config

    @classmethod
    def from_config(
        cls,
        config: Mapping[str, Any],
        custom_objects: Mapping[str, Any] | None = None,
    ) -> Self:
        """An optimizer from `get_config`'s dictionary."""
        config = dict(config)
        index = config.get("tensor_index")
        if isinstance(index, Mapping) and "class_name" in index:  # a function
            config["tensor_index"] = keras.saving.deserialize_keras_object(
                index, custom_objects=custom_objects
            )
        return super().from_config(config, custom_objects=custom_objects)
