"""The training memory per weight.

    python -m benchmarks.training_memory                       # TensorFlow
    KERAS_BACKEND=jax python -m benchmarks.training_memory     # JAX

Transformers of several widths and depths take the training step that `fit` compiles:
forward, backward and update. The program divides their peak memory into weights,
optimizer state and temporaries: gradients, activations, the batch and copies. A linear
least-squares fit over the models gives the bytes that each further weight adds. The
batch is one short sequence, so that the weights dominate.

On JAX the peak comes from XLA's `memory_analysis()` of the compiled step of `fit`, with
donated state: the sum of arguments, temporaries and outputs that do not reuse the
memory of an argument.

On TensorFlow it comes from the allocator, which also serves XLA's programs: the peak
during two steps after the first one, which compiles.

On a CPU the peak depends on the order of XLA's operations. By default XLA maximizes
concurrency; a flag makes it minimize memory:

    XLA_FLAGS=--xla_cpu_enable_concurrency_optimized_scheduler=false \\
        KERAS_BACKEND=jax python -m benchmarks.training_memory
"""

import concurrent.futures
import dataclasses
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

from benchmarks.optimizers import OPTIMIZERS, check_names
from et_optimizer.memory.report import bytes_of
from tf_models.models.transformer import transformer_language_model
from tf_models.studies.device import PeakMemory

FLAGS = flags.FLAGS
flags.DEFINE_multi_integer(
    "widths", [256, 512, 1024], "Widths of the Transformers with 4 layers."
)
flags.DEFINE_multi_integer(
    "depths", [4, 6, 8], "Numbers of layers of the Transformers of width 256."
)
flags.DEFINE_list("steps", None, "Steps of the tables; by default all.")

LAYERS, WIDTH, HEADS = 4, 256, 4
VOCABULARY, SEQUENCE_LENGTH = 256, 32
BACKENDS = ("jax", "tensorflow")


@dataclasses.dataclass(frozen=True)
class TrainingStep:
    """The optimizer and the dtype policy of a training step.

    Attributes:
        make_optimizer: Makes the optimizer from `arguments`.
        policy: Keras's dtype policy.
        arguments: The arguments of the optimizer by name.
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


# SGD shows the minimum of any optimizer.
PLAIN = {
    f"{name} in {policy}": TrainingStep(OPTIMIZERS[name], policy)
    for name, policies in {
        "SGD": ("float32", "mixed_bfloat16", "bfloat16"),
        "Adam": ("float32", "mixed_bfloat16"),
        "keras Adafactor": ("float32",),
        "ExtremeTensoring()": ("float32", "mixed_bfloat16", "bfloat16"),
        "ExtremeTensoring 1": ("float32", "bfloat16"),
    }.items()
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
class Memory:
    """The training memory of a model, in bytes.

    Attributes:
        count: The number of weights.
        weights, state: The size of the trainable variables, and of the optimizer's.
        peak: The peak of all memory.
    """

    count: int
    weights: int
    state: int
    peak: int

    @property
    def temporaries(self):
        """Everything except weights and state."""
        return self.peak - self.weights - self.state


def measure(step, sizes):
    """The `Memory` of each model.

    Args:
        step: A name in `STEPS`.
        sizes: List of pairs of width and number of layers.
    """
    return [_memory(STEPS[step], *size) for size in sizes]


def compiled(model, batch):
    """Compiles the step that `fit` calls on JAX.

    Args:
        model: A model after `compile`.
        batch: `(x, y)`.
    """
    model._symbolic_build(data_batch=batch)
    model.make_train_function()
    # It is wrapped in a function that takes the batch from an iterator.
    step = inspect.getclosurevars(model.train_function).nonlocals["step_function"]
    state = model._get_jax_state(
        trainable_variables=True,
        non_trainable_variables=True,
        optimizer_variables=True,
        metrics_variables=True,
    )
    return step.lower(state, batch).compile()


def peak_bytes(compiled_step):
    """The peak memory of a step compiled by XLA, including its arguments."""
    memory = compiled_step.memory_analysis()
    return (
        memory.argument_size_in_bytes
        + memory.output_size_in_bytes
        - memory.alias_size_in_bytes
        + memory.temp_size_in_bytes
    )


def batch_of_tokens():
    """One sequence and its next tokens."""
    tokens = np.arange(SEQUENCE_LENGTH + 1, dtype="int32")[None] % VOCABULARY
    return tokens[:, :-1], tokens[:, 1:]


def _memory(step, width, layers):
    counter = PeakMemory()
    model = step.model(width, layers)
    batch = batch_of_tokens()
    if keras.backend.backend() == "jax":
        peak = peak_bytes(compiled(model, batch))
    else:
        model.train_on_batch(*batch)
        counter.reset()
        for _ in range(2):
            model.train_on_batch(*batch)
        peak = counter.bytes()
        if peak is None:
            raise RuntimeError(
                "TensorFlow does not count this device's memory. Use a build whose "
                "allocator does, such as that for Linux, or KERAS_BACKEND=jax."
            )
    memory = Memory(
        model.count_params(),
        sum(map(_bytes, model.trainable_variables)),
        sum(map(_bytes, model.optimizer.variables)),
        peak,
    )
    del model
    keras.backend.clear_session()
    gc.collect()  # Otherwise it would be in the peak of the next model.
    return memory


def _bytes(variable):
    return bytes_of(variable.shape, variable.dtype)


def slope(models, of):
    """The bytes that each further weight adds, by least squares.

    Args:
        models: List of `Memory`.
        of: A function of one of them.
    """
    counts = [memory.count for memory in models]
    return np.polyfit(counts, [of(memory) for memory in models], 1)[0]


def table_of(title, found):
    """The table of the slopes of all steps, and of the largest model."""
    table = Table(title=title)
    for column in ("step", "weights", "state", "temporaries", "total"):
        table.add_column(column, justify="right")
    table.add_column("total per weight of the largest", justify="right")
    for name, models in found.items():
        largest = models[-1]
        parts = (
            slope(models, lambda memory: memory.weights),
            slope(models, lambda memory: memory.state),
            slope(models, lambda memory: memory.temporaries),
            slope(models, lambda memory: memory.peak),
            largest.peak / largest.count,
        )
        table.add_row(name, *(f"{part:.2f}" for part in parts))
    return table


def measured(sizes, progress):
    """The memory of models of several sizes by step, each step in its own process."""
    names = FLAGS.steps or list(STEPS)
    found = {}
    task = progress.add_task("steps", total=len(names))
    # Allocators and caches must not carry memory over to the next step.
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
            f"KERAS_BACKEND must be one of {', '.join(BACKENDS)}; received "
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
        f"Bytes per further weight, {LAYERS} layers, several widths": by_width,
        f"Bytes per further weight, width {WIDTH}, several depths": by_depth,
    }.items():
        indices = [sizes.index(size) for size in of_title]
        shown = {
            name: [models[index] for index in indices] for name, models in found.items()
        }
        console.print(table_of(title, shown))


if __name__ == "__main__":
    app.run(main)
