"""Train in several processes under `tf.distribute.MultiWorkerMirroredStrategy`.

    python -m tests.tensorflow_worker RANK COUNT PORT FOLDER KIND STEP

KIND is "loop", a custom training loop for a Keras 3 model; "loop, fit", the same and
then Keras 3's `fit`, whose error is printed; or "tf_keras", `fit` of tf_keras with
`BackupAndRestore`. The last process kills itself with SIGKILL at STEP (never for -1).
Each process writes all weights and the optimizer's variables to FOLDER/COUNT-RANK.npz.
"""

import json
import os
import signal
import sys

import numpy as np

# In float32, because two processes may round to fewer bits differently.
MOMENTUM = {
    "beta_1": 0.9,
    "momentum_dtype": "float32",
    "momentum_rank": 2,
    "refresh_every": 2,
}


def main(rank, count, port, folder, kind, kill_at):
    if count > 1:
        addresses = [f"127.0.0.1:{int(port) + i}" for i in range(count)]
        task = {"type": "worker", "index": rank}
        config = {"cluster": {"worker": addresses}, "task": task}
        os.environ["TF_CONFIG"] = json.dumps(config)
    import tensorflow as tf

    strategy = tf.distribute.get_strategy()
    if count > 1:
        strategy = tf.distribute.MultiWorkerMirroredStrategy()
    train = fit_tf_keras if kind == "tf_keras" else loop
    model, optimizer = train(strategy, folder, kill_at if rank == count - 1 else -1)
    variables = [*model.weights, *optimizer.variables]
    np.savez(f"{folder}/{count}-{rank}.npz", *[v.numpy() for v in variables])
    if kind == "loop, fit":
        try:
            fit(strategy)
        except ValueError as error:
            print(error)


def batches():
    import tensorflow as tf

    from tests import distributed_training as training

    options = tf.data.Options()
    by_data = tf.data.experimental.AutoShardPolicy.DATA
    options.experimental_distribute.auto_shard_policy = by_data
    data = tf.data.Dataset.from_tensor_slices(training.data())
    return data.batch(training.BATCH).with_options(options)


def loop(strategy, folder, kill_at):
    import et_optimizer
    from tests import distributed_training as training

    def make():
        return et_optimizer.ExtremeTensoring(0.01, **MOMENTUM)

    return training.loop(strategy, make, batches())


def fit(strategy):
    import keras

    import et_optimizer
    from tests import distributed_training as training

    with strategy.scope():
        model = training.model_of(keras)
        optimizer = et_optimizer.ExtremeTensoring(0.01, **MOMENTUM)
        model.compile(optimizer, training.loss_of(keras))
    model.fit(batches(), epochs=training.EPOCHS, verbose=0)


def fit_tf_keras(strategy, folder, kill_at):
    import tf_keras

    from et_optimizer.tf_keras import ExtremeTensoring
    from tests import distributed_training as training

    class KillAt(tf_keras.callbacks.Callback):
        def on_train_batch_end(self, batch, logs=None):
            if self.model.optimizer.iterations.numpy() == kill_at:
                os.kill(os.getpid(), signal.SIGKILL)

    with strategy.scope():
        model = training.model_of(tf_keras)
        optimizer = ExtremeTensoring(0.01, **MOMENTUM)
        model.compile(optimizer, training.loss_of(tf_keras))
    backup = tf_keras.callbacks.BackupAndRestore(f"{folder}/backup")
    model.fit(
        batches(),
        epochs=training.EPOCHS,
        verbose=0,
        callbacks=[backup, KillAt()],
    )
    return model, model.optimizer


if __name__ == "__main__":
    main(int(sys.argv[1]), int(sys.argv[2]), *sys.argv[3:6], int(sys.argv[6]))
