"""What is given to an optimizer: the names of its arguments, and gradients."""

import difflib
import inspect
from collections.abc import Sequence
from typing import Any

import keras

from et_optimizer import naming
from et_optimizer.types import Tensor, Variable
from et_optimizer.views import gradients

NAMED = (inspect.Parameter.POSITIONAL_OR_KEYWORD, inspect.Parameter.KEYWORD_ONLY)
# What the same thing is called elsewhere. Of the first that an optimizer has.
ELSEWHERE: dict[str, tuple[str, ...]] = {
    "momentum": ("beta_1",),
    "beta_1": ("momentum",),
    "betas": ("beta_1", "momentum"),
    "rho": ("beta_2", "beta_2_decay"),
    "beta_2": ("beta_2_decay",),
    "eps": ("epsilon", "epsilon_1"),
    "epsilon": ("epsilon_1",),
    "lr": ("learning_rate",),
    "decay": ("weight_decay",),
    "clipping_threshold": ("clip_threshold",),
}


def takes(cls: Any) -> list[str]:
    """The names of the arguments of an optimizer's class, and of every optimizer's."""
    names: list[str] = []
    for base in cls.__mro__:
        parameters = inspect.signature(base.__init__).parameters
        # Of the classes that optimizers here share, each paper's says what they take.
        if "preconditioner" not in parameters:
            names += [p.name for p in parameters.values() if p.kind in NAMED]
        names += vars(base).get("shared_arguments", ())
    return [name for name in dict.fromkeys(names) if name != "self"]


def hint(name: str, names: list[str]) -> str:
    """Which of an optimizer's arguments was meant, as a sentence; or nothing."""
    elsewhere = [other for other in ELSEWHERE.get(name, ()) if other in names]
    close = difflib.get_close_matches(name, names, n=1)
    meant = [*elsewhere, *close][:1]
    return f" Did you mean {meant[0]}?" if meant else ""


def check_gradients(
    grads: Sequence[Tensor | None], variables: Sequence[Variable]
) -> None:
    """Raises unless there is a gradient, or `None`, for every variable.

    Args:
        grads: List of gradients.
        variables: List of variables.

    Raises:
        ValueError: if their number differs, or a gradient has another shape than its
            variable or is of no floating-point dtype.
    """
    if len(grads) != len(variables):
        raise ValueError(
            "Every variable must have a gradient, or None for it; received "
            f"{len(grads)} gradients for {len(variables)} variables. Nothing has been "
            "changed."
        )
    for gradient, variable in zip(grads, variables):
        if gradient is not None:
            _check_gradient(gradients.rows_of(gradient), variable)


def _check_gradient(gradient: Tensor, variable: Variable) -> None:
    path = naming.path(variable)
    gradients.check_shape(gradient, tuple(variable.shape), f" of variable {path!r}")
    dtype = getattr(gradient, "dtype", "float32")
    dtype = keras.backend.standardize_dtype(dtype)
    if "float" not in dtype:
        raise ValueError(
            "A gradient must be of a floating-point dtype; received one of dtype "
            f"{dtype} for variable {path!r}. Cast it, or check the loss."
        )
