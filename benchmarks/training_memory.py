"""What a further weight costs while a model trains.

    python -m benchmarks.training_memory                       # TensorFlow
    KERAS_BACKEND=jax python -m benchmarks.training_memory     # JAX

A few Transformers of growing width, and a few of growing depth, take the training step
that `fit` compiles: forward, backward and update. What each holds at the most is parted
into weights, the optimizer's state and temporaries, which are all else: gradients,
activations, the batch, copies. A line through the models by least squares says what a
further weight adds to each. The batch is one short sequence, so that it is the weights
that count.

On JAX XLA says it before anything runs: `memory_analysis()` of the very step that `fit`
calls, whose state is donated. The most is its arguments, its temporaries and such
outputs as do not take the place of an argument.

On TensorFlow its allocator counts: the most during two steps, without the first, which
compiles. XLA's program takes its memory from that allocator, on a CPU too.

On a CPU what XLA holds depends on the order of its operations. By default it is one in
which as many as possible could run at once; with a flag, one that looks to memory:

    XLA_FLAGS=--xla_cpu_enable_concurrency_optimized_scheduler=false \\
        KERAS_BACKEND=jax python -m benchmarks.training_memory
"""

import concurrent.futures
import dataclasses
import functools
import gc
import inspect
import multiprocessing
import os
from collections.abc import Callable
from typing import Any

import keras
import numpy as np
from absl import app, flags
from rich.console import Console
from rich.progress import Progress
from rich.table import Table

import et_optimizer
from benchmarks.names import check_names
from et_optimizer.memory.report import bytes_of
from tf_models.models.transformer import transformer_language_model
from tf_models.studies.device import PeakMemory

FLAGS = flags.FLAGS
flags.DEFINE_multi_integer(
    "widths", [256, 512, 1024], "Widths of the Transformers of 4 layers."
)
flags.DEFINE_multi_integer(
    "depths", [4, 6, 8], "Layers of the Transformers of width 256."
)
flags.DEFINE_list("steps", None, "Of those in the tables; all.")

LAYERS, WIDTH, HEADS = 4, 256, 4
VOCABULARY, SEQUENCE_LENGTH = 256, 32
BACKENDS = ("jax", "tensorflow")


@dataclasses.dataclass(frozen=True)
class TrainingStep:
    """What a model is trained with.

    Attributes:
        make_optimizer: Makes the optimizer from `arguments`.
        policy: Keras's dtype policy.
        arguments: By name.
    """

    make_optimizer: Callable[..., keras.optimizers.Optimizer]
    policy: str
    arguments: dict[str, Any] = dataclasses.field(default_factory=dict)

    def model(self, width, layers):
        """A compiled Transformer."""
        keras.config.set_dtype_policy(self.policy)
        model = transformer_language_model(
            VOCABULARY,
            SEQUENCE_LENGTH,
            layers=layers,
            width=width,
            heads=HEADS,
            feed_forward_width=4 * width,
        )
        model.compile(
            self.make_optimizer(learning_rate=1e-3, **self.arguments),
            keras.losses.SparseCategoricalCrossentropy(from_logits=True),
            jit_compile=True,
        )
        return model


without_momentum = functools.partial(et_optimizer.ExtremeTensoring, level=1, beta_1=0.0)
# SGD is what any step takes.
PLAIN = {
    f"{name} in {policy}": TrainingStep(make, policy)
    for name, make, policies in [
        ("SGD", keras.optimizers.SGD, ("float32", "mixed_bfloat16", "bfloat16")),
        ("Adam", keras.optimizers.Adam, ("float32", "mixed_bfloat16")),
        ("keras Adafactor", keras.optimizers.Adafactor, ("float32",)),
        (
            "ExtremeTensoring()",
            et_optimizer.ExtremeTensoring,
            ("float32", "mixed_bfloat16", "bfloat16"),
        ),
        ("ExtremeTensoring 1", without_momentum, ("float32", "bfloat16")),
    ]
    for policy in policies
}
CLIPPED_TOO = (
    "Adam in float32",
    "ExtremeTensoring() in float32",
    "ExtremeTensoring() in bfloat16",
)
STEPS = PLAIN | {
    f"{name} {what}": dataclasses.replace(PLAIN[name], arguments=arguments)
    for what, arguments in {
        "clipped": {"global_clipnorm": 1.0},
        "accumulating": {"gradient_accumulation_steps": 4},
    }.items()
    for name in CLIPPED_TOO
}


@dataclasses.dataclass(frozen=True)
class Held:
    """What a model holds at the most while it trains, in bytes.

    Attributes:
        numbers: How many weights it has.
        weights, state: The trainable variables, and the optimizer's.
        peak: All.
    """

    numbers: int
    weights: int
    state: int
    peak: int

    @property
    def temporaries(self):
        """What is neither weights nor state."""
        return self.peak - self.weights - self.state


def measure(step, sizes):
    """What models hold, a `Held` each.

    Args:
        step: A name in `STEPS`.
        sizes: List of pairs of width and number of layers.
    """
    return [_held(STEPS[step], *size) for size in sizes]


def compiled(model, batch):
    """The step that `fit` calls on JAX, compiled.

    Args:
        model: A model that `compile` was called on, whose step is to be compiled too.
        batch: `(x, y)`.
    """
    model._symbolic_build(data_batch=batch)
    model.make_train_function()
    # Below a function that takes the batch from an iterator.
    step = inspect.getclosurevars(model.train_function).nonlocals["step_function"]
    state = model._get_jax_state(
        trainable_variables=True,
        non_trainable_variables=True,
        optimizer_variables=True,
        metrics_variables=True,
    )
    return step.lower(state, batch).compile()


def peak_bytes(compiled_step):
    """The most that a step compiled by XLA holds, what it is given included."""
    memory = compiled_step.memory_analysis()
    return (
        memory.argument_size_in_bytes
        + memory.output_size_in_bytes
        - memory.alias_size_in_bytes
        + memory.temp_size_in_bytes
    )


def batch_of_tokens():
    """One sequence, and what follows each of its tokens."""
    tokens = np.arange(SEQUENCE_LENGTH + 1, dtype="int32")[None] % VOCABULARY
    return tokens[:, :-1], tokens[:, 1:]


def _held(step, width, layers):
    memory = PeakMemory()
    model = step.model(width, layers)
    batch = batch_of_tokens()
    if keras.backend.backend() == "jax":
        peak = peak_bytes(compiled(model, batch))
    else:
        model.train_on_batch(*batch)
        memory.forget()
        for _ in range(2):
            model.train_on_batch(*batch)
        peak = memory.bytes()
        if peak is None:
            raise RuntimeError(
                "TensorFlow does not count what this device holds. Use a build whose "
                "allocator does, such as that of Linux, or KERAS_BACKEND=jax."
            )
    held = Held(
        model.count_params(),
        sum(map(_bytes, model.trainable_variables)),
        sum(map(_bytes, model.optimizer.variables)),
        peak,
    )
    del model
    keras.backend.clear_session()
    gc.collect()  # What is left would be in the next model's peak.
    return held


def _bytes(variable):
    return bytes_of(variable.shape, variable.dtype)


def slope(models, of):
    """How much a further weight adds, by least squares.

    Args:
        models: List of `Held`.
        of: A function of one of them.
    """
    numbers = [held.numbers for held in models]
    return np.polyfit(numbers, [of(held) for held in models], 1)[0]


def table_of(title, found):
    """The slopes of all steps, and what the largest model holds."""
    table = Table(title=title)
    for column in ("step", "weights", "state", "temporaries", "all"):
        table.add_column(column, justify="right")
    table.add_column("all of the largest, a weight", justify="right")
    for name, models in found.items():
        largest = models[-1]
        parts = (
            slope(models, lambda held: held.weights),
            slope(models, lambda held: held.state),
            slope(models, lambda held: held.temporaries),
            slope(models, lambda held: held.peak),
            largest.peak / largest.numbers,
        )
        table.add_row(name, *(f"{part:.2f}" for part in parts))
    return table


def measured(sizes, progress):
    """What models of some sizes hold, by step, each step in a process of its own."""
    names = FLAGS.steps or list(STEPS)
    found = {}
    task = progress.add_task("steps", total=len(names))
    # What one of them leaves in the allocator or in a cache is not the next one's.
    with concurrent.futures.ProcessPoolExecutor(
        max_workers=1,
        mp_context=multiprocessing.get_context("spawn"),
        max_tasks_per_child=1,
    ) as processes:
        for name in names:
            found[name] = processes.submit(measure, name, sizes).result()
            progress.advance(task)
    return found


def main(argv):
    del argv
    check_names("steps", FLAGS.steps or [], STEPS)
    if keras.backend.backend() not in BACKENDS:
        raise app.UsageError(
            f"KERAS_BACKEND must be of {', '.join(BACKENDS)}; received "
            f"{keras.backend.backend()}."
        )
    by_width = [(width, LAYERS) for width in sorted(FLAGS.widths)]
    by_depth = [(WIDTH, layers) for layers in sorted(FLAGS.depths)]
    sizes = sorted({*by_width, *by_depth})
    console = Console(width=120)
    flags_of_xla = os.environ.get("XLA_FLAGS", "none")
    console.print(f"Backend: {keras.backend.backend()}; XLA_FLAGS: {flags_of_xla}")
    with Progress(console=console, transient=True) as progress:
        found = measured(sizes, progress)
    for title, of_title in {
        f"Bytes a further weight, {LAYERS} layers of growing width": by_width,
        f"Bytes a further weight, more layers of width {WIDTH}": by_depth,
    }.items():
        places = [sizes.index(size) for size in of_title]
        shown = {
            name: [models[place] for place in places] for name, models in found.items()
        }
        console.print(table_of(title, shown))


if __name__ == "__main__":
    app.run(main)
