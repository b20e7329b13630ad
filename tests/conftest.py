"""Settings shared by all tests."""

import keras
import pytest
from hypothesis import settings

# The same examples in every run, and no deadline, so that no result depends on the
# clock. Most of them on PyTorch: TensorFlow and JAX compile each operation for each
# shape.
EXAMPLES = {"torch": 25, "tensorflow": 12, "jax": 6}
settings.register_profile(
    "deterministic",
    derandomize=True,
    deadline=None,
    max_examples=EXAMPLES[keras.backend.backend()],
)
settings.load_profile("deterministic")

# Several CPU devices for the tests of distribution; set before the first use of one.
if keras.backend.backend() == "jax":
    import jax

    jax.config.update("jax_num_cpu_devices", 8)
if keras.backend.backend() == "tensorflow":
    import tensorflow as tf

    # Sets the studies' options of TensorFlow before TensorFlow reads them.
    import tf_models  # noqa: F401

    tf.config.set_logical_device_configuration(
        tf.config.list_physical_devices("CPU")[0],
        [tf.config.LogicalDeviceConfiguration()] * 2,
    )

# Tests of what only TensorFlow has. Coverage of all other lines is measured under
# PyTorch, because measuring makes TensorFlow's run a fifth slower.
COUNTED = {"test_tensorflow", "test_tensorflow_distribution", "test_tf_keras"}


# Their tests take minutes. If one started last, only one worker would still be busy.
FIRST = {"test_colab", "test_jax_distribution", "test_tensorflow_distribution"}


def pytest_collection_modifyitems(items):
    """Run long tests first, and measure no line that PyTorch's run measures."""
    items.sort(key=lambda item: item.path.stem not in FIRST)
    for item in items:
        if keras.backend.backend() == "tensorflow" and item.path.stem not in COUNTED:
            item.add_marker("no_cover")


@pytest.fixture(autouse=True)
def fresh_keras():
    """Reset layer names, random seeds and the dtype policy for each test."""
    # A garbage collection would take a third of a second each time.
    keras.backend.clear_session(free_memory=False)
    keras.utils.set_random_seed(0)
    yield
    keras.config.set_dtype_policy("float32")
