"""Where tensors live under `keras.distribution` and `tf.distribute`."""

import keras


def is_sharded():
    """Whether tensors may be sharded: under `keras.distribution.ModelParallel`."""
    if keras.backend.backend() != "jax":
        return False
    distribution = keras.distribution.distribution()
    return isinstance(distribution, keras.distribution.ModelParallel)


def is_distributed():
    """Whether variables, or replicas of them, may live on several devices."""
    if keras.backend.backend() == "tensorflow":
        import tensorflow as tf

        return tf.distribute.has_strategy()
    return is_sharded()


def replicate(tensor):
    """The same tensor, replicated on every device of the mesh."""
    mesh = keras.distribution.distribution().device_mesh
    layout = keras.distribution.TensorLayout([None] * len(tensor.shape), mesh)
    return keras.distribution.distribute_tensor(tensor, layout)


def slot_layout(variable, shape, is_like_variable):
    """The layout of a slot under `keras.distribution`, or `None` without it.

    Args:
        variable: The variable that the slot belongs to.
        shape: The slot's shape.
        is_like_variable: Whether the slot is sharded as the variable is. Other slots
            are small and replicated: the patterns of a `LayoutMap` are meant for the
            axes of variables.
    """
    distribution = keras.distribution.distribution()
    if distribution is None:
        return None
    mesh = distribution.device_mesh
    layout = getattr(variable, "_layout", None)
    if is_like_variable and (layout is None or _divides(layout, shape)):
        return layout
    return keras.distribution.TensorLayout([None] * len(shape), mesh)


def _divides(layout, shape):
    """Whether each axis of a shape is a multiple of the devices that share it."""
    mesh = layout.device_mesh
    devices = dict(zip(mesh.axis_names, mesh.shape))
    return all(
        axis is None or length % devices[axis] == 0
        for length, axis in zip(shape, layout.axes)
    )
