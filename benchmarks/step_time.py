"""The time of an optimizer's step under XLA, relative to Adam and SGD.

    python -m benchmarks.step_time                       # TensorFlow
    KERAS_BACKEND=jax python -m benchmarks.step_time     # JAX, also on a GPU
    KERAS_BACKEND=torch python -m benchmarks.step_time   # PyTorch, not compiled
    python -m benchmarks.step_time --sparse              # sparse gradients
    python -m benchmarks.step_time --training            # whole training steps

Every optimizer updates the variables of a real model with the same gradients, in a
compiled program; on PyTorch, which Keras does not compile, operation by operation. Each
round runs all optimizers, so that a slow period of the machine affects all of them. A
ratio is the median over the rounds of the ratio within a round. If only every k-th step
is expensive, a round has k steps, and the time of a step is their mean.

With `--training` a step is a complete training step (forward, backward and update) of
the demo's Transformer, of KerasHub's GPT-2 with four layers and of ResNet-50 at
64 × 64.

"compile s" is the time of the first step, including tracing. For updates on JAX it does
not include running the step.
"""

import functools
import statistics
import time

import keras
import numpy as np
from absl import app, flags
from rich.console import Console
from rich.progress import Progress
from rich.table import Table

import et_optimizer
from benchmarks.optimizers import OPTIMIZERS, check_names
from benchmarks.shapes import MODELS
from tf_models.models.transformer import transformer_language_model

FLAGS = flags.FLAGS
flags.DEFINE_integer("rounds", 30, "Timed steps of each optimizer.", lower_bound=3)
flags.DEFINE_list(
    "models",
    None,
    f"Models, of {', '.join(MODELS)}; by default all except the last two. With "
    "--training of demo Transformer, GPT-2-like and ResNet-50; by default all.",
)
flags.DEFINE_list(
    "optimizers",
    None,
    "Optimizers of the tables; by default all without eigenvectors. With --training "
    "three of ExtremeTensoring.",
)
flags.DEFINE_bool("sparse", False, "Measure sparse gradients of a large table.")
flags.DEFINE_bool("training", False, "Measure complete training steps.")

TABLE, ROWS_TOUCHED = (1_000_000, 64), 4096
WARM_UP = 3

# Only measured if named: on large models a step with eigenvectors takes minutes.
MATRIX_OPTIMIZERS = {
    f"{name} every {k}": lambda make=make, k=k: make(update_every=k)
    for name, make in {
        "SketchyShampoo 32": functools.partial(et_optimizer.SketchyShampoo, rank=32),
        "SketchyShampoo 32 level 2": functools.partial(
            et_optimizer.SketchyShampoo, rank=32, level=2
        ),
        "Shampoo": et_optimizer.Shampoo,
    }.items()
    for k in (1, 10, 100)
}
KNOWN = OPTIMIZERS | MATRIX_OPTIMIZERS
LARGE_MODELS = ["GPT-2-like", "ResNet-50", "wide recommender"]


class TensorFlowStep:
    """One compiled update of all variables on TensorFlow."""

    def __init__(self, optimizer, shapes, gradients):
        import tensorflow as tf

        variables = [keras.Variable(np.full(s, 0.1, "float32")) for s in shapes]
        optimizer.build(variables)
        self._gradients = gradients
        self._step = tf.function(
            lambda g: optimizer.apply(g, variables), jit_compile=True, autograph=False
        )
        start = time.perf_counter()
        self._step(gradients)
        self.compile_seconds = time.perf_counter() - start
        self.temporary_bytes = None
        self._fence = variables[0]

    def run(self):
        self._step(self._gradients)
        # A GPU runs asynchronously; reading a value waits for the step.
        float(self._fence.value[(0,) * len(self._fence.shape)])


class JaxStep:
    """One compiled update of all variables on JAX, with donated state."""

    def __init__(self, optimizer, shapes, gradients):
        import jax

        variables = [keras.Variable(np.full(s, 0.1, "float32")) for s in shapes]
        optimizer.build(variables)
        self._gradients = gradients
        self._state = [v.value for v in optimizer.variables]
        self._weights = [v.value for v in variables]
        for variable in variables:
            variable._value = None  # Donated arrays must have no other reference.
        start = time.perf_counter()
        self._step = (
            jax.jit(
                # The order of the donated arguments lets results reuse their memory.
                lambda state, g, w: optimizer.stateless_apply(state, g, w)[::-1],
                donate_argnums=(0, 2),
            )
            .lower(self._state, gradients, self._weights)
            .compile()
        )
        self.compile_seconds = time.perf_counter() - start
        memory = self._step.memory_analysis()
        self.temporary_bytes = memory.temp_size_in_bytes if memory else None

    def run(self):
        import jax

        self._state, self._weights = self._step(
            self._state, self._gradients, self._weights
        )
        jax.block_until_ready(self._weights)


class TorchStep:
    """One update of all variables on PyTorch."""

    def __init__(self, optimizer, shapes, gradients):
        self._variables = [keras.Variable(np.full(s, 0.1, "float32")) for s in shapes]
        optimizer.build(self._variables)
        self._optimizer, self._gradients = optimizer, gradients
        start = time.perf_counter()
        self.run()
        self.compile_seconds = time.perf_counter() - start
        self.temporary_bytes = None

    def run(self):
        import torch

        with torch.no_grad():  # As in Keras's training loop.
            self._optimizer.apply(self._gradients, self._variables)
        # As above, reading a value waits for the step.
        float(self._variables[0].value.detach().flatten()[0])


STEPS = {"tensorflow": TensorFlowStep, "jax": JaxStep, "torch": TorchStep}


def demo_transformer():
    """The model of the demo."""
    return transformer_language_model(256, 96)


def gpt2_like():
    """KerasHub's GPT-2 small with 4 of its 12 layers."""
    import keras_hub

    backbone = keras_hub.models.GPT2Backbone(
        vocabulary_size=50257,
        num_layers=4,
        num_heads=12,
        hidden_dim=768,
        intermediate_dim=3072,
        dropout=0.0,
        max_sequence_length=64,
    )
    tokens = keras.Input((64,), dtype="int32")
    hidden = backbone(
        {"token_ids": tokens, "padding_mask": keras.ops.ones_like(tokens)}
    )
    logits = backbone.token_embedding(hidden, reverse=True)
    return keras.Model(tokens, logits)


def resnet50():
    """Keras's ResNet-50 for small images."""
    return keras.applications.ResNet50(
        weights=None, input_shape=(64, 64, 3), classes=1000, classifier_activation=None
    )


def tokens(sequences, length):
    """A batch of sequences and their next tokens."""
    return np.random.default_rng(0).integers(0, 256, (2, sequences, length))


def labelled_images(count):
    """A batch of images and their labels."""
    rng = np.random.default_rng(0)
    images = rng.standard_normal((count, 64, 64, 3), dtype="float32")
    return images, rng.integers(0, 1000, count)


# A function that makes the model, a batch, and its description.
TRAINED = {
    "demo Transformer": (demo_transformer, tokens(16, 96), "16 × 96 tokens"),
    "GPT-2-like": (gpt2_like, tokens(24, 64), "24 × 64 tokens"),
    "ResNet-50": (resnet50, labelled_images(32), "32 images of 64 × 64"),
}


class TrainingStep:
    """One training step of a model, compiled except on PyTorch."""

    def __init__(self, optimizer, model, batch):
        self._model, self._batch = model, batch
        self._model.compile(
            optimizer,
            keras.losses.SparseCategoricalCrossentropy(from_logits=True),
            jit_compile=keras.backend.backend() != "torch",
        )
        start = time.perf_counter()
        self.run()
        self.compile_seconds = time.perf_counter() - start
        self.temporary_bytes = None

    def run(self):
        self._model.train_on_batch(*self._batch)


def dense_gradients(shapes):
    rng = np.random.default_rng(0)
    return [
        keras.ops.convert_to_tensor(rng.standard_normal(s, dtype="float32"))
        for s in shapes
    ]


def sparse_gradients():
    import tensorflow as tf

    rng = np.random.default_rng(0)
    values = rng.standard_normal((ROWS_TOUCHED, TABLE[1]), dtype="float32")
    indices = rng.integers(0, TABLE[0], ROWS_TOUCHED)
    shape = tf.constant(TABLE, tf.int64)
    return [tf.IndexedSlices(tf.constant(values), tf.constant(indices), shape)]


def update_step(shapes, gradients):
    """A function that makes the update step of an optimizer for a list of shapes."""
    step = STEPS[keras.backend.backend()]
    return lambda optimizer: step(optimizer, shapes, gradients)


def training_step(make_model, batch):
    """A function that makes the training step of an optimizer and a new model."""
    return lambda optimizer: TrainingStep(optimizer, make_model(), batch)


def measure(name, make_step, optimizers, progress):
    """Times all optimizers on a model and returns the table."""
    steps, reports = {}, {}
    for optimizer_name in optimizers:
        optimizer = KNOWN[optimizer_name]()
        steps[optimizer_name] = make_step(optimizer)
        reports[optimizer_name] = et_optimizer.memory_report(optimizer)
    seconds = {optimizer_name: [] for optimizer_name in steps}
    rounds = progress.add_task(name, total=WARM_UP + FLAGS.rounds)
    for _ in range(WARM_UP + FLAGS.rounds):
        for optimizer_name, step in steps.items():
            count = steps_per_round(optimizer_name)
            start = time.perf_counter()
            for _ in range(count):
                step.run()
            seconds[optimizer_name].append((time.perf_counter() - start) / count)
        progress.advance(rounds)
    timed = {key: values[WARM_UP:] for key, values in seconds.items()}
    return render(name, steps, reports, timed)


def steps_per_round(optimizer_name):
    """The period of expensive steps."""
    return int(optimizer_name.split()[-1]) if "every" in optimizer_name else 1


def render(name, steps, reports, seconds):
    model = reports["Adam"]
    weights, variables = model.model_numbers, len(model.rows)
    table = Table(title=f"{name}: {weights:,} weights in {variables} variables")
    for title in ("optimizer", "state bytes", "compile s", "/ Adam's", "step ms"):
        table.add_column(title, justify="right")
    for title in ("/ Adam", "/ SGD", "temporaries MB"):
        table.add_column(title, justify="right")
    for key, step in steps.items():
        temporary = step.temporary_bytes
        table.add_row(
            key,
            f"{reports[key].bytes:,}",
            f"{step.compile_seconds:.2f}",
            f"{step.compile_seconds / steps['Adam'].compile_seconds:.2f}",
            f"{1000 * statistics.median(seconds[key]):.2f}",
            ratio(seconds[key], seconds["Adam"]),
            ratio(seconds[key], seconds["SGD"]),
            "" if temporary is None else f"{temporary / 1e6:.1f}",
        )
    return table


def ratio(seconds, others):
    return f"{statistics.median(s / o for s, o in zip(seconds, others)):.2f}"


def default_optimizers():
    if not FLAGS.training:
        return OPTIMIZERS
    return ["ExtremeTensoring()", "ExtremeTensoring rank 8", "ExtremeTensoring 1"]


def main(argv):
    del argv
    known_models = TRAINED if FLAGS.training else MODELS
    check_names("models", FLAGS.models or known_models, known_models)
    check_names("optimizers", FLAGS.optimizers or OPTIMIZERS, KNOWN)
    if FLAGS.sparse and keras.backend.backend() != "tensorflow":
        raise app.UsageError(
            "--sparse measures tf.IndexedSlices; received the "
            f"{keras.backend.backend()} backend. Set KERAS_BACKEND=tensorflow."
        )
    optimizers = ["SGD", "Adam"] + [
        name
        for name in (FLAGS.optimizers or default_optimizers())
        if name not in ("SGD", "Adam")
    ]
    console = Console(width=120)
    console.print(f"Backend: {keras.backend.backend()}")
    with Progress(console=console, transient=True) as progress:
        if FLAGS.sparse:
            name = f"{ROWS_TOUCHED} rows of a {TABLE[0]} × {TABLE[1]} table"
            make_step = update_step([TABLE], sparse_gradients())
            console.print(measure(name, make_step, optimizers, progress))
            return
        if FLAGS.training:
            for model in FLAGS.models or TRAINED:
                make_model, batch, description = TRAINED[model]
                make_step = training_step(make_model, batch)
                name = f"{model}, trained on {description}"
                console.print(measure(name, make_step, optimizers, progress))
            return
        for name in FLAGS.models or LARGE_MODELS:
            shapes = MODELS[name]()
            make_step = update_step(shapes, dense_gradients(shapes))
            console.print(measure(name, make_step, optimizers, progress))


if __name__ == "__main__":
    app.run(main)
