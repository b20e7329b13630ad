"""The device that trains: its name and its peak memory."""

import contextlib
import functools
import os

import keras


def has_gpu():
    """Whether Keras's backend has a GPU."""
    return _gpu_name() is not None


def description():
    """A description of the device: the GPU's name or the number of CPU cores."""
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
    """The peak memory of the device from now on, as the framework counts it.

    The device is the first GPU or, under TensorFlow, the CPU if there is no GPU. Memory
    that is already in use does not count. The counters of TensorFlow and PyTorch are
    reset. JAX cannot reset its counter: its peak belongs to this run only if it rises.
    """

    def __init__(self):
        self.reset()
        self._in_use, self._peak = self._counted() or (0, None)

    def reset(self):
        """Forgets the peak up to now."""
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
        """The peak beyond the initial memory in use; `None` if it is not counted."""
        counted = self._counted()
        if counted is None:
            return None
        _, peak = counted
        is_jax = keras.backend.backend() == "jax"
        return None if is_jax and peak == self._peak else peak - self._in_use

    def _counted(self):
        """The memory in use and its peak, or `None`."""
        backend = keras.backend.backend()
        if backend == "tensorflow":
            import tensorflow as tf

            try:
                counted = tf.config.experimental.get_memory_info(_tensorflow_device())
            except ValueError:
                return None  # The allocator of this build does not count.
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
