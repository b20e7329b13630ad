"""Whether a program is being traced, to be compiled, or runs."""

import keras


def is_known(tensor):
    """Whether a tensor has a value, and is not part of a program being traced."""
    backend = keras.backend.backend()
    if backend == "tensorflow":
        return hasattr(tensor, "numpy")
    if backend == "jax":
        import jax

        return not isinstance(tensor, jax.core.Tracer)
    return True
