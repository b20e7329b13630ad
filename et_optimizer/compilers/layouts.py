"""Where tensors lie under `keras.distribution`."""

import keras


def may_be_in_parts():
    """Whether a tensor may lie in parts on several devices."""
    if keras.backend.backend() != "jax":
        return False
    distribution = keras.distribution.distribution()
    return isinstance(distribution, keras.distribution.ModelParallel)


def on_every_device(tensor):
    """The same tensor, all of it on every device."""
    mesh = keras.distribution.distribution().device_mesh
    layout = keras.distribution.TensorLayout([None] * len(tensor.shape), mesh)
    return keras.distribution.distribute_tensor(tensor, layout)
