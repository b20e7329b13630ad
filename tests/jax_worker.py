"""Train on four devices: `python -m tests.jax_worker RANK COUNT PORT FOLDER`.

COUNT processes share four devices of the host's CPU. They train twice. In the kind
"data" every device has a quarter of the batch; in the kind "model" the batch and each
matrix are split in two. Each process writes all weights and the optimizer's variables
to FOLDER/KIND-COUNT-RANK.npz.
"""

import os
import sys

import numpy as np


def main(rank, count, port, folder):
    os.environ["KERAS_BACKEND"] = "jax"
    import jax
    import keras

    jax.config.update("jax_num_cpu_devices", 4 // count)

    if count > 1:
        keras.distribution.initialize(f"127.0.0.1:{port}", count, rank)
    train(keras.distribution.list_devices(), rank, count, folder)


def train(devices, rank, count, folder):
    """Trains under both distributions and writes the results."""
    import keras

    assert len(devices) == 4
    data = keras.distribution.DataParallel(devices=devices, auto_shard_dataset=False)
    mesh = keras.distribution.DeviceMesh((2, 2), ("batch", "model"), devices)
    layouts = keras.distribution.LayoutMap(mesh)
    layouts[".*(embeddings|kernel)"] = (None, "model")
    model = keras.distribution.ModelParallel(
        layout_map=layouts, batch_dim_name="batch", auto_shard_dataset=False
    )
    for kind, distribution in (("data", data), ("model", model)):
        with distribution.scope():
            state = trained(rank, count)
        np.savez(f"{folder}/{kind}-{count}-{rank}.npz", *state)


def trained(rank, count):
    """The weights and the optimizer's state after training."""
    import keras

    from et_optimizer import ExtremeTensoring
    from tests import distributed_training as training
    from tests.optimizers import IN_A_SUBSPACE

    model = training.model_of(keras)
    optimizer = ExtremeTensoring(
        0.01, beta_1=0.9, momentum_dtype="float32", **IN_A_SUBSPACE
    )
    model.compile(optimizer, training.loss_of(keras))
    x, y = (
        examples_of(array, rank, count, training.BATCH) for array in training.data()
    )
    model.fit(
        x,
        y,
        batch_size=training.BATCH // count,
        epochs=training.EPOCHS,
        shuffle=False,
        verbose=0,
    )
    variables = [*model.weights, *model.optimizer.variables]
    return [gathered(variable.value) for variable in variables]


def examples_of(array, rank, count, batch):
    """The examples of each global batch that one process feeds."""
    parts = array.reshape(-1, count, batch // count, *array.shape[1:])
    return parts[:, rank].reshape(-1, *array.shape[1:])


def gathered(array):
    """The values of an array that may be sharded over several processes."""
    from jax.experimental import multihost_utils

    if array.is_fully_addressable:
        return np.asarray(array)
    return np.asarray(multihost_utils.process_allgather(array, tiled=True))


if __name__ == "__main__":
    main(int(sys.argv[1]), int(sys.argv[2]), *sys.argv[3:])
