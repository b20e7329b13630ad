"""Training that may be killed: `python -m tests.resumable_training STEP FOLDER...`.

It trains once per FOLDER, and kills itself with SIGKILL at STEP (never for -1). Started
again, it resumes from the last backup in FOLDER. At the end it writes weights and state
to FOLDER/weights.npz.
"""

import os
import pathlib
import signal
import sys

import keras
import numpy as np
from keras import ops

import et_optimizer


class KillAt(keras.callbacks.Callback):
    def __init__(self, step):
        super().__init__()
        self.step = step
        self.trained = 0

    def on_epoch_begin(self, epoch, logs=None):
        self.epoch = epoch

    def on_train_batch_end(self, batch, logs=None):
        self.trained += 1
        # On JAX `optimizer.iterations` is not updated within an epoch.
        if 8 * self.epoch + batch + 1 == self.step:
            os.kill(os.getpid(), signal.SIGKILL)


def main(folder, kill_at):
    keras.backend.clear_session()
    keras.utils.set_random_seed(0)
    rng = np.random.default_rng(0)
    x = rng.standard_normal((64, 10)).astype("float32")
    y = rng.integers(0, 3, 64)
    model = keras.Sequential(
        [keras.Input((10,)), keras.layers.Dense(24, "relu"), keras.layers.Dense(3)]
    )
    model.compile(
        et_optimizer.ExtremeTensoring(0.01, level=2, beta_1=0.9, momentum_rank=3),
        keras.losses.SparseCategoricalCrossentropy(from_logits=True),
        # torch.compile needs a C++ compiler at run time.
        jit_compile=keras.backend.backend() != "torch",
    )
    backup = keras.callbacks.BackupAndRestore(folder / "backup")
    kill = KillAt(kill_at)
    model.fit(
        x,
        y,
        batch_size=8,
        epochs=4,
        shuffle=False,
        verbose=0,
        callbacks=[backup, kill],
    )
    variables = [*model.weights, *model.optimizer.variables]
    state = [ops.convert_to_numpy(v) for v in variables]
    np.savez(folder / "weights.npz", *state, steps_of_this_run=kill.trained)


if __name__ == "__main__":
    for folder in sys.argv[2:]:
        main(pathlib.Path(folder), int(sys.argv[1]))
