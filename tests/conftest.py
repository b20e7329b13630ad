"""Settings shared by all tests."""

import keras
import pytest
from hypothesis import settings

# The same examples on every run, and no deadline: the clock decides nothing here. Most
# of them on PyTorch: TensorFlow and JAX compile each operation for each shape.
EXAMPLES = {"torch": 25, "tensorflow": 12, "jax": 6}
settings.register_profile(
    "deterministic",
    derandomize=True,
    deadline=None,
    max_examples=EXAMPLES[keras.backend.backend()],
)
settings.load_profile("deterministic")

# For the tests of distribution several devices of the CPU, before any of them is used.
if keras.backend.backend() == "jax":
    import jax

    jax.config.update("jax_num_cpu_devices", 8)
if keras.backend.backend() == "tensorflow":
    import tensorflow as tf

    # Sets what the studies want of TensorFlow, before TensorFlow reads it.
    import tf_models  # noqa: F401

    tf.config.set_logical_device_configuration(
        tf.config.list_physical_devices("CPU")[0],
        [tf.config.LogicalDeviceConfiguration()] * 2,
    )

# About what only TensorFlow has. All other lines are counted under PyTorch: TensorFlow
# takes a fifth longer while they are.
COUNTED = {"test_tensorflow", "test_tensorflow_distribution", "test_tf_keras"}


# Whose tests take minutes: a worker that began with one at the end would be alone then.
FIRST = {"test_colab", "test_jax_distribution", "test_tensorflow_distribution"}


def pytest_collection_modifyitems(items):
    """Long tests first; and counts no lines in the tests that PyTorch has as well."""
    items.sort(key=lambda item: item.path.stem not in FIRST)
    for item in items:
        if keras.backend.backend() == "tensorflow" and item.path.stem not in COUNTED:
            item.add_marker("no_cover")


@pytest.fixture(autouse=True)
def fresh_keras():
    """Each test counts layer names from the start and draws the same numbers."""
    # Without a garbage collection, which would take a third of a second each time.
    keras.backend.clear_session(free_memory=False)
    keras.utils.set_random_seed(0)
    yield
    keras.config.set_dtype_policy("float32")
