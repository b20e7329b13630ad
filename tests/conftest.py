"""Settings shared by all tests."""

import keras
import pytest
from hypothesis import settings

# The same examples on every run, and no deadline: the clock decides nothing here.
settings.register_profile(
    "deterministic", derandomize=True, deadline=None, max_examples=25
)
settings.load_profile("deterministic")


@pytest.fixture(autouse=True)
def fresh_keras():
    """Each test counts layer names from the start and draws the same numbers."""
    # Without a garbage collection, which would take a third of a second each time.
    keras.backend.clear_session(free_memory=False)
    keras.utils.set_random_seed(0)
    yield
    keras.config.set_dtype_policy("float32")
