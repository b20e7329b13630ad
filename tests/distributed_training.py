"""The model that the tests of distribution train, and processes to train it in."""

import functools
import pathlib
import socket
import subprocess
import sys

import numpy as np

ROOT = pathlib.Path(__file__).parents[1]
BATCH, EPOCHS, TOKENS = 16, 2, 40


def data():
    """64 sequences of six tokens, and the class of each."""
    tokens = np.random.default_rng(0).integers(0, TOKENS, (64, 6))
    return tokens, tokens.sum(axis=1) % 3


def model_of(layers_of):
    """A classifier with an embedding, kernels and biases, in `keras` or `tf_keras`."""
    layers_of.utils.set_random_seed(0)
    layers = layers_of.layers
    return layers_of.Sequential(
        [
            layers.Input((6,), dtype="int32"),
            layers.Embedding(TOKENS, 8, name="tokens"),
            layers.Flatten(),
            layers.Dense(16, "tanh", name="hidden"),
            layers.Dense(4, name="logits"),
        ]
    )


def loss_of(layers_of, **kwargs):
    """The loss of `model_of`'s logits."""
    return layers_of.losses.SparseCategoricalCrossentropy(from_logits=True, **kwargs)


@functools.cache
def mirrored():
    """The strategy over two devices, the same for all tests of a process.

    Two strategies would give their collective operations the same numbers, which
    TensorFlow refuses if the operations differ in size.
    """
    import tensorflow as tf

    return tf.distribute.MirroredStrategy(["CPU:0", "CPU:1"])


def loop(strategy, make, batches, gradient_dtype=None):
    """Trains under a `tf.distribute` strategy in a custom training loop.

    Args:
        strategy: The strategy.
        make: Makes the optimizer, without arguments.
        batches: A `tf.data.Dataset`.
        gradient_dtype: The dtype that gradients are cast to, or `None`.

    Returns:
        `(model, optimizer)`.
    """
    import keras
    import tensorflow as tf

    with strategy.scope():
        model, optimizer = model_of(keras), make()
        optimizer.build(model.trainable_variables)
        loss = loss_of(keras, reduction="sum")

    @tf.function
    def step(batch):
        def on_replica(x, y):
            with tf.GradientTape() as tape:
                value = loss(y, model(x, training=True)) / BATCH
            gradients = tape.gradient(value, model.trainable_variables)
            if gradient_dtype:
                gradients = [tf.cast(g, gradient_dtype) for g in gradients]
            optimizer.apply(gradients, model.trainable_variables)

        strategy.run(on_replica, args=batch)

    for _ in range(EPOCHS):
        for batch in strategy.experimental_distribute_dataset(batches):
            step(batch)
    return model, optimizer


def start(module, count, *args):
    """Starts `python -m module RANK COUNT PORT ARGS` once for each rank.

    Returns:
        A list of `subprocess.Popen`.
    """
    port = _free_port()
    return [
        subprocess.Popen(
            [sys.executable, "-m", module, *map(str, (rank, count, port, *args))],
            cwd=ROOT,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
        )
        for rank in range(count)
    ]


def finish(processes):
    """Waits for all processes and returns their outputs; fails if one failed."""
    outputs = [process.communicate(timeout=240)[0] for process in processes]
    for process, text in zip(processes, outputs):
        assert process.returncode == 0, text[-4000:]
    return outputs


def assert_close(path, other, tolerance):
    """Asserts that the arrays in two files of `np.savez` are close.

    The tolerance is relative to an array's largest entry if that is below 1, and
    absolute otherwise.
    """
    one, other = np.load(path), np.load(other)
    assert one.files == other.files and len(one.files) > 5
    for name in one.files:
        largest = min(1.0, np.abs(one[name]).max())
        np.testing.assert_allclose(
            other[name], one[name], rtol=0, atol=tolerance * largest
        )


def _free_port():
    """A port that is free, as is the next one."""
    while True:
        with socket.socket() as one, socket.socket() as next_one:
            one.bind(("127.0.0.1", 0))
            port = one.getsockname()[1]
            try:
                next_one.bind(("127.0.0.1", port + 1))
            except OSError:
                continue
            return port
