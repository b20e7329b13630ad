"""Whether a program is being traced, to be compiled, or runs."""

from collections.abc import Callable
from typing import Any, TypeVar

import keras

from et_optimizer.types import Tensor

Traced = TypeVar("Traced", bound=Callable[..., Any])


def is_known(tensor: Tensor) -> bool:
    """Whether a tensor has a value, and is not part of a program being traced."""
    backend = keras.backend.backend()
    if backend == "tensorflow":
        return hasattr(tensor, "numpy")
    if backend == "jax":
        import jax

        return not isinstance(tensor, jax.core.Tracer)
    return True


def once(function: Traced) -> Traced:
    """The same function of tensors, traced once for all its calls in a program.

    Args:
        function: Pure, with positional arguments that are nested tensors, numbers and
            `None`. Of other numbers, or with `None` in another place, it may be traced
            once more.

    Returns:
        A function to be called where a program is being traced.
    """
    backend = keras.backend.backend()
    if backend == "tensorflow":
        import tensorflow as tf

        return tf.function(function, autograph=False)
    if backend == "jax":
        import jax

        return jax.jit(function)
    return function
