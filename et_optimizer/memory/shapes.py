"""What a model's variables will be, found without memory for them."""

import dataclasses
from collections.abc import Callable, Mapping, Sequence
from typing import Any, TypeAlias

import keras

from et_optimizer import checks, naming
from et_optimizer.compilers.symbolic import without_memory
from et_optimizer.types import HasShape, Variable

# A shape, a shape and a dtype, or what has both.
ShapeOfVariable: TypeAlias = Sequence[int] | tuple[Sequence[int], Any] | HasShape


@dataclasses.dataclass(frozen=True)
class VariableShape:
    """What a variable of a model will be.

    Attributes:
        path: Its path.
        shape: Its shape.
        dtype: Its dtype, a string.
        trainable: Whether it is trained.
        overwrite_with_gradient: Whether it takes its gradient for its value, as Keras's
            scales of float8 do. Optimizers hold nothing for it.
    """

    path: str
    shape: tuple[int, ...]
    dtype: str
    trainable: bool = True
    overwrite_with_gradient: bool = False

    @property
    def name(self) -> str:
        """The variable's own name, the end of its path."""
        return self.path.split("/")[-1]

    @classmethod
    def of(cls, variable: Variable) -> "VariableShape":
        """That of a model's variable."""
        return cls(
            path=naming.path(variable),
            shape=tuple(variable.shape),
            dtype=keras.backend.standardize_dtype(variable.dtype),
            trainable=variable.trainable,
            overwrite_with_gradient=getattr(variable, "overwrite_with_gradient", False),
        )


def variables_of(model_or_shapes: Any) -> list[VariableShape]:
    """What the variables of a model will be.

    Args:
        model_or_shapes: As in `memory_plan`.

    Returns:
        A list of `VariableShape`: those that are trained first, in the order in which
        an optimizer is built for them.

    Raises:
        ValueError: if it is none of what `memory_plan` takes, or is not built.
    """
    if isinstance(model_or_shapes, keras.Layer):
        return _of_layer(model_or_shapes)
    if isinstance(model_or_shapes, Mapping):
        return _of_mapping(model_or_shapes)
    if callable(model_or_shapes):
        return without_memory(lambda: _of_layer(_made_by(model_or_shapes)))
    raise ValueError(
        "memory_plan takes a built Keras model, a dict from paths to shapes, or a "
        "function without arguments that makes a model; received an object of type "
        f"{type(model_or_shapes).__name__}. Of variables in a list pass "
        "{v.path: v for v in variables}."
    )


def stand_in(shape: VariableShape) -> Variable:
    """A variable as a `VariableShape` says; to be made in `without_memory`."""
    variable = keras.Variable(
        "zeros",
        shape=shape.shape,
        dtype=shape.dtype,
        # So that it may be of integers, which it is for an optimizer to refuse.
        trainable=False,
        name=shape.name,
    )
    variable.overwrite_with_gradient = shape.overwrite_with_gradient
    # Keras has it from the scopes of layers, which there are none of here.
    variable._path = shape.path
    return variable


def _made_by(function: Callable[[], Any]) -> Any:
    model = function()
    if not isinstance(model, keras.Layer):
        raise ValueError(
            "The function that memory_plan is given must return a Keras model; "
            f"received an object of type {type(model).__name__}. Let it return the "
            "model that it makes."
        )
    return model


def _of_layer(model: Any) -> list[VariableShape]:
    if not model.built or not model.weights:
        raise ValueError(
            f"The model {model.name!r} has no weights yet: it is not built. Call "
            "model.build(input_shape), or call it once on a batch or a "
            "keras.KerasTensor, or begin it with a keras.Input, before the plan (in "
            "the function, where that is what memory_plan is given)."
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
            f"The keys of shapes must be paths of variables, text; received {path!r}. "
            'Write for example {"decoder/dense/kernel": (768, 3072)}.'
        )
    shape, dtype = given, None
    if hasattr(given, "shape") and hasattr(given, "dtype"):
        shape, dtype = given.shape, given.dtype
    elif _is_pair(given):
        shape, dtype = given
    is_shape = hasattr(shape, "__iter__") and not isinstance(shape, str)
    sizes = tuple(shape) if is_shape else None
    if sizes is None or not all(checks.is_integer(n) and n >= 0 for n in sizes):
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
        shape=tuple(int(n) for n in sizes),
        dtype=dtype,
        trainable=getattr(given, "trainable", True),
        overwrite_with_gradient=getattr(given, "overwrite_with_gradient", False),
    )


def _is_pair(given: Any) -> bool:
    """Whether it is a shape and a dtype, which no integer is."""
    is_two = isinstance(given, (tuple, list)) and len(given) == 2
    return is_two and not any(checks.is_integer(one) for one in given)
