"""The memory of full fine-tuning of public language models, counted.

    KERAS_BACKEND=jax python -m benchmarks.public_models

The models are those of KerasHub in their published sizes, and the optimizers are built
for their variables. This happens during tracing with JAX, where variables take no
memory, so that a laptop can count 8 billion weights. It takes about ten seconds and
downloads nothing.

All weights are float32 or bfloat16. The state of Keras's optimizers has the dtype of
the weights, that of this library is float32. Gradients and activations need further
memory.
"""

import dataclasses
from typing import Any

import keras
import keras_hub
from absl import app
from rich.console import Console
from rich.table import Table

import et_optimizer
from benchmarks.optimizers import OPTIMIZERS

DTYPES = ("float32", "bfloat16")
NAMES = (
    "Adam",
    "keras Adafactor",
    "Adafactor",
    "SM3 1",
    "ExtremeTensoring()",
    "ExtremeTensoring() in int8",
    "Muon()",
    "Muon() in int3",
    "ExtremeTensoring 1",
    "ExtremeTensoring 2",
)


@dataclasses.dataclass(frozen=True)
class PublicModel:
    """A published size of a model.

    Attributes:
        make: The backbone of KerasHub.
        sizes: Its arguments.
        source: The publication of the sizes.
    """

    make: Any
    sizes: dict[str, int]
    source: str


MODELS = {
    "GPT-2 small": PublicModel(
        keras_hub.models.GPT2Backbone,
        {
            "vocabulary_size": 50257,
            "num_layers": 12,
            "num_heads": 12,
            "hidden_dim": 768,
            "intermediate_dim": 3072,
            "max_sequence_length": 1024,
        },
        "Radford et al., 2019; config.json of openai-community/gpt2",
    ),
    "Gemma 2B": PublicModel(
        keras_hub.models.GemmaBackbone,
        {
            # The paper pads it to 256 128; the published weights have 256 000.
            "vocabulary_size": 256_000,
            "num_layers": 18,
            "num_query_heads": 8,
            "num_key_value_heads": 1,
            "hidden_dim": 2048,
            # The sum of both branches of the gated layer, as in the paper.
            "intermediate_dim": 32_768,
            "head_dim": 256,
        },
        "Gemma Team, arXiv:2403.08295, table 1; config.json of google/gemma-2b",
    ),
    "Llama 3 8B": PublicModel(
        keras_hub.models.Llama3Backbone,
        {
            "vocabulary_size": 128_256,
            "num_layers": 32,
            "num_query_heads": 32,
            "num_key_value_heads": 8,
            "hidden_dim": 4096,
            "intermediate_dim": 14_336,
        },
        "Llama Team, arXiv:2407.21783, table 3; config.json of "
        "meta-llama/Meta-Llama-3-8B",
    ),
}


def reports(model, dtype):
    """The memory of every optimizer for a model.

    Args:
        model: A `PublicModel`.
        dtype: Dtype of its weights.

    Returns:
        A dictionary from `NAMES` to a `MemoryReport`.
    """
    import jax

    counted = {}

    def build():
        backbone = model.make(**model.sizes, dtype=dtype)
        for name in NAMES:
            optimizer = OPTIMIZERS[name]()
            optimizer.build(backbone.trainable_variables)
            counted[name] = et_optimizer.memory_report(optimizer)

    jax.eval_shape(build)  # Traces without compiling or running.
    return counted


def render(name, source, by_dtype):
    """The table of a model, from its reports for each dtype of the weights."""
    numbers = by_dtype["float32"]["Adam"].model_numbers
    table = Table(
        title=f"{name}: {numbers:,} weights\n({source})", title_justify="left"
    )
    for title in ("optimizer", "state elements", "% of Adam's bytes"):
        table.add_column(title, justify="right", no_wrap=title == "optimizer")
    for dtype in DTYPES:
        weights = by_dtype[dtype]["Adam"].model_bytes
        table.add_column(f"state for {in_units(weights)}\nof {dtype}", justify="right")
        table.add_column("with weights", justify="right")
    for optimizer in NAMES:
        columns = []
        for dtype in DTYPES:
            report = by_dtype[dtype][optimizer]
            columns += [report.bytes, report.bytes + report.model_bytes]
        held = by_dtype["float32"][optimizer]
        share = f"{100 * held.bytes / held.adam_bytes:.2g}%"
        table.add_row(optimizer, f"{held.slots:,}", share, *map(in_units, columns))
    return table


def in_units(count):
    """A number of bytes in the largest unit that gives at least 1."""
    for unit, size in (("GiB", 2**30), ("MiB", 2**20), ("KiB", 2**10)):
        if count >= size:
            return f"{count / size:.2f} {unit}"
    return f"{count} bytes"


def main(argv):
    del argv
    if keras.backend.backend() != "jax":
        raise app.UsageError(
            "The models are counted during tracing with JAX; received the "
            f"{keras.backend.backend()} backend. Set KERAS_BACKEND=jax."
        )
    console = Console(width=110)
    for name, model in MODELS.items():
        by_dtype = {dtype: reports(model, dtype) for dtype in DTYPES}
        console.print(render(name, model.source, by_dtype))


if __name__ == "__main__":
    app.run(main)
