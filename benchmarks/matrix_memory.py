"""What the matrix preconditioners hold, by formula and counted.

    python -m benchmarks.matrix_memory

The formula is the docstrings', on every variable's matrix; the count is that of the
optimizer's own variables after `build`.
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


def numbers(shape, rank):
    """Numbers held for a variable, grafting from extreme tensoring at level 1."""
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
    """The sides of the matrix a variable is seen as, found by trying every cut."""
    lengths = [n for n in shape if n > 1]
    if len(lengths) < 2:
        return lengths
    cuts = [
        (math.prod(lengths[:cut]), math.prod(lengths[cut:]))
        for cut in range(1, len(lengths))
    ]
    return min(cuts, key=sum)


def counted(shapes, optimizer):
    """Numbers held by an optimizer that is built for variables of these shapes."""
    optimizer.build([keras.Variable(keras.ops.zeros(shape)) for shape in shapes])
    return et_optimizer.memory_report(optimizer).slots


def main(argv):
    del argv
    console = Console(width=110)
    for name, shapes_of in MODELS.items():
        shapes = shapes_of()
        size = sum(map(math.prod, shapes))
        sides = sum(sum(matrix(s)) for s in shapes if len(matrix(s)) == 2)
        table = Table(title=f"{name}: {size:,} numbers, Σ(m + n) = {sides:,}")
        for title in (
            "optimizer",
            "by formula",
            "counted",
            "rank · Σ(m + n)",
            "Adam /",
        ):
            table.add_column(title, justify="right")
        for label, (rank, make, arguments) in OPTIMIZERS.items():
            held = counted(shapes, make(**arguments))
            table.add_row(
                label,
                f"{sum(numbers(shape, rank) for shape in shapes):,}",
                f"{held:,}",
                f"{rank * sides:,}" if "rank" in arguments else "",
                f"{2 * size / held:.2f}",
            )
        for level in (1, 2):
            held = counted(
                shapes, et_optimizer.ExtremeTensoring(level=level, beta_1=0.0)
            )
            table.add_row(
                f"ExtremeTensoring {level}",
                "",
                f"{held:,}",
                "",
                f"{2 * size / held:.2f}",
            )
        level_2 = et_optimizer.SketchyShampoo(rank=32, level=2)
        held = counted(shapes, level_2)
        table.add_row(
            "SketchyShampoo, rank 32, level 2",
            "",
            f"{held:,}",
            "",
            f"{2 * size / held:.2f}",
        )
        table.add_row("Adam", f"{2 * size:,}", f"{2 * size:,}", "", "1")
        console.print(table)


if __name__ == "__main__":
    app.run(main)
