"""The state of the matrix preconditioners, by formula and counted.

    python -m benchmarks.matrix_memory

The formula is that of the docstrings, for the matrix view of every variable. The count
is that of the optimizer's variables after `build`.
"""

import math

import keras
from absl import app
from rich.console import Console
from rich.table import Table

import et_optimizer
from benchmarks.shapes import bert_large, demo_transformer

MODELS = {"demo Transformer": demo_transformer, "BERT-Large": bert_large}
BLOCK_SIZE = 1024
OPTIMIZERS = {
    "SketchyShampoo, rank 32": (32, et_optimizer.SketchyShampoo, {"rank": 32}),
    "SketchyShampoo, rank 256": (256, et_optimizer.SketchyShampoo, {"rank": 256}),
    "Shampoo": (BLOCK_SIZE, et_optimizer.Shampoo, {}),
}


def elements(shape, rank):
    """State elements of a variable, with grafting from extreme tensoring, level 1."""
    lengths = matrix(shape)
    if len(lengths) < 2:
        return math.prod(shape) + 1
    total = sum(lengths) + 1
    for length in lengths:
        blocks = math.ceil(length / BLOCK_SIZE)
        size = math.ceil(length / blocks)
        total += blocks * ((size + 1) * min(rank, size) + 1)
    return total


def matrix(shape):
    """The shape of the matrix view of a variable, found by trying every split."""
    lengths = [n for n in shape if n > 1]
    if len(lengths) < 2:
        return lengths
    splits = [
        (math.prod(lengths[:split]), math.prod(lengths[split:]))
        for split in range(1, len(lengths))
    ]
    return min(splits, key=sum)


def counted(shapes, optimizer):
    """State elements of an optimizer that is built for variables of these shapes."""
    optimizer.build([keras.Variable(keras.ops.zeros(shape)) for shape in shapes])
    return et_optimizer.memory_report(optimizer).slots


def main(argv):
    del argv
    console = Console(width=110)
    for name, shapes_of in MODELS.items():
        shapes = shapes_of()
        size = sum(map(math.prod, shapes))
        sides = sum(sum(matrix(s)) for s in shapes if len(matrix(s)) == 2)
        table = Table(title=f"{name}: {size:,} weights, Σ(m + n) = {sides:,}")
        for title in (
            "optimizer",
            "by formula",
            "counted",
            "rank · Σ(m + n)",
            "Adam /",
        ):
            table.add_column(title, justify="right")
        for label, (rank, make, arguments) in OPTIMIZERS.items():
            count = counted(shapes, make(**arguments))
            table.add_row(
                label,
                f"{sum(elements(shape, rank) for shape in shapes):,}",
                f"{count:,}",
                f"{rank * sides:,}" if "rank" in arguments else "",
                f"{2 * size / count:.2f}",
            )
        for label, optimizer in (
            *(
                (
                    f"ExtremeTensoring {level}",
                    et_optimizer.ExtremeTensoring(level=level, beta_1=0.0),
                )
                for level in (1, 2)
            ),
            (
                "SketchyShampoo, rank 32, level 2",
                et_optimizer.SketchyShampoo(rank=32, level=2),
            ),
        ):
            count = counted(shapes, optimizer)
            table.add_row(label, "", f"{count:,}", "", f"{2 * size / count:.2f}")
        table.add_row("Adam", f"{2 * size:,}", f"{2 * size:,}", "", "1")
        console.print(table)


if __name__ == "__main__":
    app.run(main)
