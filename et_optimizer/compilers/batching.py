"""Which variables are small enough to be updated in one batch."""

import keras

# By backend, in entries. A compiler's work on larger variables is mostly the passes
# over them, and copies would be passes too. Under JAX XLA:CPU compiles equal kernels
# once, and stacking takes longer to compile than it saves.
MAX_ENTRIES = {"tensorflow": 2**14, "jax": 0, "torch": 0}


def is_small(entries):
    """Whether a variable of so many entries is updated with others of its shape."""
    return 0 < entries <= MAX_ENTRIES[keras.backend.backend()]
