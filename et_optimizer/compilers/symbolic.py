"""Building models and optimizers symbolically: variables without memory."""

import concurrent.futures
import random
import threading
from collections.abc import Callable
from typing import Any

import keras

from et_optimizer.types import T

_THREAD = threading.local()


def is_active() -> bool:
    """Whether the caller runs inside `without_memory`, where values are not needed."""
    return getattr(_THREAD, "is_active", False)


def without_memory(function: Callable[[], T]) -> T:
    """Calls a function such that the variables it creates take no memory.

    The variables have a shape and a dtype but no values: they are on PyTorch's device
    "meta", tracers of JAX, or nodes of a TensorFlow graph that never runs. The function
    runs in a new thread, in which Keras starts counting names from the beginning, so
    the caller's name counters do not change. It gets the caller's dtype policy, but not
    the caller's distribution or other scopes.

    Args:
        function: Takes no arguments, and must not read the values of variables.
    """
    policy = keras.config.dtype_policy()

    def in_thread() -> T:
        _THREAD.is_active = True
        keras.config.set_dtype_policy(policy)
        return _symbolically(function)

    # Initializers and dropout layers draw their seeds from Python's generator.
    random_state = random.getstate()
    try:
        with concurrent.futures.ThreadPoolExecutor(max_workers=1) as thread:
            return thread.submit(in_thread).result()
    finally:
        random.setstate(random_state)


def _symbolically(function: Callable[[], T]) -> T:
    backend = keras.backend.backend()
    if backend == "torch":
        with keras.device("meta"):
            return function()
    if backend == "jax":
        import jax

        results: list[T] = []
        jax.eval_shape(lambda: results.append(function()))
        return results[0]
    import tensorflow as tf

    # TensorFlow restricts the characters of names in a graph; Keras keeps its names.
    def without_name(next_creator: Callable[..., Any], **arguments: Any) -> Any:
        return next_creator(**arguments | {"name": None})

    with tf.Graph().as_default(), tf.variable_creator_scope(without_name):
        return function()
