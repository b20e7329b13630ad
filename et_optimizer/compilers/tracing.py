"""Whether a program is being traced for a compiler, or runs operation by operation."""

from collections.abc import Callable
from typing import Any, TypeVar

import keras

from et_optimizer.types import Tensor

Traced = TypeVar("Traced", bound=Callable[..., Any])


def is_concrete(tensor: Tensor) -> bool:
    """Whether a tensor has a value, rather than standing for one while tracing."""
    backend = keras.backend.backend()
    if backend == "tensorflow":
        return hasattr(tensor, "numpy")
    if backend == "jax":
        import jax

        return not isinstance(tensor, jax.core.Tracer)
    return True


def is_jax_program(tensor: Tensor) -> bool:
    """Whether a tensor belongs to a program that JAX is tracing."""
    return keras.backend.backend() == "jax" and not is_concrete(tensor)


def trace_once(function: Traced) -> Traced:
    """The same function of tensors, traced once for all its calls in a program.

    Args:
        function: A pure function with positional arguments: nested tensors, numbers and
            `None`. It is traced again if another argument is `None`, and by TensorFlow
            for every other number.

    Returns:
        A function to call while a program is being traced.
    """
    backend = keras.backend.backend()
    if backend == "tensorflow":
        import tensorflow as tf

        return tf.function(function, autograph=False)
    if backend == "jax":
        import jax

        return jax.jit(function)
    return function
