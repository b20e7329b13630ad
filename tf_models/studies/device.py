"""The device that trains: which it is, and what it holds at the most."""

import contextlib
import functools
import os

import keras


def has_gpu():
    """Whether Keras's backend has a GPU."""
    return _gpu_name() is not None


def description():
    """What the device is, for people: a GPU's name, or how many cores there are."""
    return _gpu_name() or f"no GPU, {os.cpu_count()} CPU cores"


def _gpu_name():
    backend = keras.backend.backend()
    if backend == "tensorflow":
        import tensorflow as tf

        for gpu in tf.config.list_physical_devices("GPU"):
            details = tf.config.experimental.get_device_details(gpu)
            return details.get("device_name", gpu.name)
    if backend == "jax":
        import jax

        if jax.default_backend() == "gpu":
            return jax.local_devices()[0].device_kind
    if backend == "torch":
        import torch

        if torch.cuda.is_available():
            return torch.cuda.get_device_name()
    return None


class PeakMemory:
    """The most memory the device takes from now on, as the framework counts it.

    The device is the first GPU, or under TensorFlow, which counts that too, the CPU
    where there is none. What it holds already, such as what earlier runs of this
    process left, is not counted. TensorFlow and PyTorch are told to count anew. JAX
    cannot be: what it counts is this run's only if it rises.
    """

    def __init__(self):
        self.forget()
        self._held, self._peak = self._counted() or (0, None)

    def forget(self):
        """Leaves out of the most what it was up to now."""
        backend = keras.backend.backend()
        if backend == "tensorflow":
            import tensorflow as tf

            with contextlib.suppress(ValueError):  # As in `_counted`.
                tf.config.experimental.reset_memory_stats(_tensorflow_device())
        if backend == "torch":
            import torch

            if torch.cuda.is_available():
                torch.cuda.reset_peak_memory_stats()

    def bytes(self):
        """The most so far beyond what was there, or `None` where nothing counts it."""
        counted = self._counted()
        if counted is None:
            return None
        _, peak = counted
        is_jax = keras.backend.backend() == "jax"
        return None if is_jax and peak == self._peak else peak - self._held

    def _counted(self):
        """What is held now, and the most that was; or `None`."""
        backend = keras.backend.backend()
        if backend == "tensorflow":
            import tensorflow as tf

            try:
                counted = tf.config.experimental.get_memory_info(_tensorflow_device())
            except ValueError:
                return None  # A build whose allocator of this device does not count.
            return counted["current"], counted["peak"]
        if backend == "jax":
            import jax

            counted = jax.local_devices()[0].memory_stats()
            return counted and (counted["bytes_in_use"], counted["peak_bytes_in_use"])
        if backend == "torch":
            import torch

            if torch.cuda.is_available():
                return torch.cuda.memory_allocated(), torch.cuda.max_memory_allocated()
        return None


@functools.cache
def _tensorflow_device():
    return "GPU:0" if has_gpu() else "CPU:0"
