"""The shapes and dtypes of a model's variables, found without allocating them."""

import dataclasses
from collections.abc import Callable, Mapping, Sequence
from typing import Any, TypeAlias

import keras

from et_optimizer import checks, naming
from et_optimizer.compilers.symbolic import without_memory
from et_optimizer.types import HasShape, Variable

# A shape, a pair of shape and dtype, or an object that has both.
ShapeOfVariable: TypeAlias = Sequence[int] | tuple[Sequence[int], Any] | HasShape


@dataclasses.dataclass(frozen=True)
class VariableShape:
    """The description of a model's variable.

    Attributes:
        path: Its path.
        shape: Its shape.
        dtype: Its dtype, a string.
        trainable: Whether it is trained.
        overwrite_with_gradient: Whether its gradient replaces its value, as with
            Keras's scales for float8. Optimizers have no state for it.
    """

    path: str
    shape: tuple[int, ...]
    dtype: str
    trainable: bool = True
    overwrite_with_gradient: bool = False

    @property
    def name(self) -> str:
        """The variable's own name, the last part of its path."""
        return self.path.split("/")[-1]

    @classmethod
    def of(cls, variable: Variable) -> "VariableShape":
        """The description of an existing variable."""
        return cls(
            path=naming.path(variable),
            shape=tuple(variable.shape),
            dtype=keras.backend.standardize_dtype(variable.dtype),
            trainable=variable.trainable,
            overwrite_with_gradient=getattr(variable, "overwrite_with_gradient", False),
        )


def variables_of(model_or_shapes: Any) -> list[VariableShape]:
    """Describes the variables of a model.

    Args:
        model_or_shapes: As in `memory_plan`.

    Returns:
        A list of `VariableShape`: the trained variables first, in the order in which an
        optimizer is built for them.

    Raises:
        ValueError: if it is nothing that `memory_plan` takes, or is not built.
    """
    if isinstance(model_or_shapes, keras.Layer):
        return _of_layer(model_or_shapes)
    if isinstance(model_or_shapes, Mapping):
        return _of_mapping(model_or_shapes)
    if callable(model_or_shapes):
        return without_memory(lambda: _of_layer(_returned_model(model_or_shapes)))
    raise ValueError(
        "memory_plan takes a built Keras model, a dict from paths to shapes, or a "
        "function without arguments that returns a model; received an object of type "
        f"{type(model_or_shapes).__name__}. For a list of variables pass "
        "{v.path: v for v in variables}."
    )


def stand_in(shape: VariableShape) -> Variable:
    """Creates a variable as described; call it inside `without_memory`."""
    variable = keras.Variable(
        "zeros",
        shape=shape.shape,
        dtype=shape.dtype,
        # Keras refuses trainable integers; here the optimizer is to refuse them.
        trainable=False,
        name=shape.name,
    )
    variable.overwrite_with_gradient = shape.overwrite_with_gradient
    # Keras takes the path from the scopes of layers, and there are none here.
    variable._path = shape.path
    return variable


def _returned_model(function: Callable[[], Any]) -> Any:
    model = function()
    if not isinstance(model, keras.Layer):
        raise ValueError(
            "The function given to memory_plan must return a Keras model; received an "
            f"object of type {type(model).__name__}."
        )
    return model


def _of_layer(model: Any) -> list[VariableShape]:
    if not model.built or not model.weights:
        raise ValueError(
            f"The model {model.name!r} has no weights yet: it is not built. Call "
            "model.build(input_shape), or call it once on a batch or a "
            "keras.KerasTensor, or start it with a keras.Input, before memory_plan (or "
            "inside the function that you give to memory_plan)."
        )
    trained = list(map(VariableShape.of, model.trainable_variables))
    frozen = map(VariableShape.of, model.non_trainable_weights)
    return trained + [dataclasses.replace(one, trainable=False) for one in frozen]


def _of_mapping(shapes: Mapping[str, Any]) -> list[VariableShape]:
    found = [_of_item(path, given) for path, given in shapes.items()]
    return sorted(found, key=lambda one: not one.trainable)


def _of_item(path: Any, given: Any) -> VariableShape:
    if not isinstance(path, str) or not path:
        raise ValueError(
            f"The keys of shapes must be variables' paths, strings; received {path!r}. "
            'Write for example {"decoder/dense/kernel": (768, 3072)}.'
        )
    shape, dtype = given, None
    if hasattr(given, "shape") and hasattr(given, "dtype"):
        shape, dtype = given.shape, given.dtype
    elif isinstance(given, (tuple, list)) and len(given) == 2:
        if not any(map(checks.is_integer, given)):
            shape, dtype = given
    is_shape = hasattr(shape, "__iter__") and not isinstance(shape, str)
    sizes = tuple(shape) if is_shape else (None,)
    if not all(checks.is_integer(n) and n >= 0 for n in sizes):
        raise ValueError(
            "A shape must be a tuple of integers, 0 or more; received "
            f"{given!r} for {path!r}. Write for example (768, 3072), or "
            '((768, 3072), "bfloat16").'
        )
    try:
        dtype = keras.backend.standardize_dtype(dtype)
    except ValueError:
        raise ValueError(
            f"A dtype must be one that Keras knows; received {dtype!r} for {path!r}. "
            'Write for example ((768, 3072), "bfloat16").'
        ) from None
    return VariableShape(
        path=path,
        shape=tuple(map(int, sizes)),
        dtype=dtype,
        trainable=getattr(given, "trainable", True),
        overwrite_with_gradient=getattr(given, "overwrite_with_gradient", False),
    )
