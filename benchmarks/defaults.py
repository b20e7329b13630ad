"""Compares this library's optimizers with `Adam()`, all with default arguments.

    python -m benchmarks.defaults
    python -m benchmarks.defaults --optimizers=SM3,Adafactor,SubsetNorm

Trains four kinds of model with each optimizer and several seeds, with the same number
of steps, initial weights and batches, and prints the final validation loss. The data
are real and need no network: the source of the Python standard library, and digits and
breast cancer from scikit-learn.

`--arguments` tries other arguments. The defaults were chosen like this:

    python -m benchmarks.defaults --arguments='{"learning_rate": 0.01, "beta_2": 0.9}'
    python -m benchmarks.defaults --optimizers=SM3 --arguments='{"learning_rate": 0.3}'
"""

import functools
import itertools
import json
import statistics

import keras
import numpy as np
import tensorflow as tf
from absl import app, flags
from rich.console import Console
from rich.progress import Progress
from rich.table import Table
from sklearn import datasets

import et_optimizer
from benchmarks.optimizers import check_names
from tf_models.data import text, windows
from tf_models.models import transformer

FLAGS = flags.FLAGS
flags.DEFINE_integer("seeds", 3, "Number of seeds.", lower_bound=1)
flags.DEFINE_list("tasks", None, "Tasks of the table to run; by default all.")
flags.DEFINE_list(
    "optimizers",
    ["ExtremeTensoring"],
    "Optimizers of this library, by the names of their classes.",
)
flags.DEFINE_multi_string(
    "arguments",
    ["{}"],
    "Arguments of these optimizers as a JSON object. Repeat the flag to compare "
    "several settings.",
)
flags.DEFINE_string("data_dir", None, "Directory of prepared data.")

SEQUENCE_LENGTH, BATCH_SIZE, LANGUAGE_STEPS = 96, 16, 600
EPOCHS, IMAGE_BATCH_SIZE = 20, 32


def language_task(seed):
    """A 2-layer Transformer on the bytes of the standard library's source."""
    tokens = text.load_text("stdlib", data_dir=FLAGS.data_dir)
    train = windows.ShuffledWindows(
        tokens.train, SEQUENCE_LENGTH, BATCH_SIZE, steps=LANGUAGE_STEPS, seed=seed
    )
    validation = windows.ShuffledWindows(
        tokens.validation, SEQUENCE_LENGTH, 64, steps=40, seed=0
    )
    model = transformer.transformer_language_model(256, SEQUENCE_LENGTH)
    return model, train, validation


def digits_task(seed, *layers):
    """A classifier of scikit-learn's 8 × 8 digits, a fifth of them for validation."""
    images, labels = datasets.load_digits(return_X_y=True)
    images = images.reshape(-1, 8, 8, 1).astype("float32") / 16
    return _classifier(images, labels, 10, layers, seed)


def convolutional_task(seed):
    """Digits with two convolutions and a dense layer."""
    return digits_task(
        seed,
        keras.layers.Conv2D(32, 3, activation="relu", padding="same"),
        keras.layers.MaxPooling2D(),
        keras.layers.Conv2D(64, 3, activation="relu", padding="same"),
        keras.layers.Flatten(),
        keras.layers.Dense(128, activation="relu"),
    )


def mlp_task(seed):
    """Digits with two hidden layers of 256 units."""
    return digits_task(
        seed,
        keras.layers.Flatten(),
        keras.layers.Dense(256, activation="relu"),
        keras.layers.Dense(256, activation="relu"),
    )


def logistic_task(seed):
    """Logistic regression on the standardized breast cancer data."""
    features, labels = datasets.load_breast_cancer(return_X_y=True)
    features = (features - features.mean(0)) / features.std(0)
    return _classifier(features.astype("float32"), labels, 2, (), seed)


OPTIMIZERS = {
    rule.__name__: rule
    for rule in (
        et_optimizer.ExtremeTensoring,
        et_optimizer.Muon,
        et_optimizer.SM3,
        et_optimizer.Adafactor,
        et_optimizer.SubsetNorm,
    )
}

TASKS = {
    "Transformer language model": language_task,
    "convolutional net": convolutional_task,
    "MLP": mlp_task,
    "logistic regression": logistic_task,
}


def _classifier(inputs, labels, classes, layers, seed):
    order = np.random.default_rng(0).permutation(len(inputs))
    inputs, labels = inputs[order], labels[order]
    held_out = len(inputs) // 5
    train = tf.data.Dataset.from_tensor_slices((inputs[held_out:], labels[held_out:]))
    train = train.shuffle(len(inputs), seed=seed).repeat(EPOCHS)
    train = train.batch(IMAGE_BATCH_SIZE, drop_remainder=True)
    validation = tf.data.Dataset.from_tensor_slices(
        (inputs[:held_out], labels[:held_out])
    ).batch(held_out)
    model = keras.Sequential(
        [keras.Input(inputs.shape[1:]), *layers, keras.layers.Dense(classes)]
    )
    return model, train, validation


def validation_loss(task, optimizer, seed):
    """Trains a task from scratch and returns its validation loss."""
    keras.utils.set_random_seed(seed)
    model, train, validation = TASKS[task](seed)
    model.compile(
        optimizer, keras.losses.SparseCategoricalCrossentropy(from_logits=True)
    )
    model.fit(train, verbose=0)
    return model.evaluate(validation, verbose=0)


def main(argv):
    del argv
    check_names("optimizers", FLAGS.optimizers, OPTIMIZERS)
    makers = {"Adam()": keras.optimizers.Adam}
    for name, arguments in itertools.product(FLAGS.optimizers, FLAGS.arguments):
        given = json.loads(arguments)
        listed = ", ".join(f"{key}={value!r}" for key, value in given.items())
        makers[f"{name}({listed})"] = functools.partial(OPTIMIZERS[name], **given)
    tasks = FLAGS.tasks or list(TASKS)
    check_names("tasks", tasks, TASKS)
    table = Table("task", *makers, title="Validation loss, mean of the seeds (each)")
    with Progress(transient=True) as progress:
        runs = progress.add_task("runs", total=len(tasks) * len(makers) * FLAGS.seeds)
        for task in tasks:
            cells = []
            for make in makers.values():
                losses = []
                for seed in range(FLAGS.seeds):
                    losses.append(validation_loss(task, make(), seed))
                    keras.backend.clear_session()
                    progress.advance(runs)
                each = ", ".join(f"{loss:.4f}" for loss in losses)
                cells.append(f"{statistics.mean(losses):.4f} ({each})")
            table.add_row(task, *cells)
    Console(width=60 + 45 * len(makers)).print(table)


if __name__ == "__main__":
    app.run(main)
