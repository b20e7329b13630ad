"""What a built optimizer holds, counted from its variables."""

import dataclasses
import io
import math
import re
from collections.abc import Sequence
from typing import Any

import keras

from et_optimizer import naming
from et_optimizer.optimizers.saved_state import SavedForm
from et_optimizer.types import Variable

# Scalars of the training loop, which every optimizer has whatever it holds.
COUNTERS = ("iteration", "learning_rate", "step_counter", "dynamic_scale")
# Behind a variable's name, the number of its steps that were skipped.
SKIPPED_STEPS = "_skipped_steps"


@dataclasses.dataclass(frozen=True)
class HeldRow:
    """What an optimizer holds for one variable of the model.

    Attributes:
        path: The variable's path.
        shape: Its shape.
        model_numbers: How many numbers the variable has.
        slots: How many numbers the optimizer holds for it.
        bytes: How many bytes they take.
        momentum_bytes: How many of them are momentum: moving averages of gradients or
            updates, with their bases and scales.
        names: The names of the optimizer's variables for it.
    """

    path: str
    shape: tuple[int, ...]
    model_numbers: int
    slots: int
    bytes: int
    momentum_bytes: int
    names: tuple[str, ...]


@dataclasses.dataclass(frozen=True)
class MemoryReport:
    """What an optimizer holds for a model; printing it shows a table.

    Attributes:
        optimizer: The optimizer's class name.
        rows: Tuple of `HeldRow`, one a variable of the model.
        slots: Numbers held in all: what was counted for every variable, and
            `unassigned`. Not counted are iterations and learning rates, the few
            scalars that every optimizer has, and `counters`.
        bytes: The same in bytes.
        momentum_bytes: How many of them are momentum.
        unassigned: Numbers held that belong to no single variable.
        counters: How many integers of 4 bytes are held besides: the optimizers of this
            library count the skipped steps of every variable.
        model_numbers: Numbers in the model's trained variables.
        model_bytes: The same in bytes.
        adam_slots: What Adam holds for the same variables, two numbers for each
            of the model's.
        adam_bytes: The same in bytes, in the variables' own dtypes.
    """

    optimizer: str
    rows: tuple[HeldRow, ...]
    slots: int
    bytes: int
    momentum_bytes: int
    unassigned: int
    counters: int
    model_numbers: int
    model_bytes: int
    adam_slots: int
    adam_bytes: int

    def __str__(self) -> str:
        besides = []
        if self.counters:
            besides = [f"Besides, {self.counters:,} counters of skipped steps."]
        model = f"The model's variables take {self.model_bytes:,} bytes;"
        lines = [f"{model} {besides_adam(self)}", *besides]
        return table(f"What {self.optimizer} holds", self, lines)


def memory_report(optimizer: keras.optimizers.Optimizer | SavedForm) -> MemoryReport:
    """Counts what a built Keras optimizer holds.

    Works for any `keras.optimizers.Optimizer`, with or without `LossScaleOptimizer`
    and `MultiOptimizer` around it: it counts real variables, whatever their names. Of
    tf_keras's optimizers it works for those of `et_optimizer.tf_keras`, without
    `LossScaleOptimizer`.

    Args:
        optimizer: A built optimizer: one that has trained a step, or whose
            `build(model.trainable_variables)` was called.

    Returns:
        A `MemoryReport`, with `.slots`, `.bytes`, one row a variable, and a table
        when printed.

    Raises:
        ValueError: if the optimizer is not built, or is no Keras optimizer.

    Example:

    >>> layer = keras.layers.Dense(512, use_bias=False)
    >>> layer.build((None, 2000))
    >>> optimizer = et_optimizer.ExtremeTensoring()
    >>> optimizer.build(layer.trainable_variables)
    >>> report = et_optimizer.memory_report(optimizer)
    >>> report.slots, report.adam_slots
    (42704, 2048000)
    """
    if not isinstance(optimizer, (keras.optimizers.Optimizer, SavedForm)):
        raise ValueError(
            "memory_report counts a Keras optimizer, or one of et_optimizer.tf_keras; "
            f"received an object of type {type(optimizer).__name__}. Pass "
            "model.optimizer, or its inner_optimizer."
        )
    if not optimizer.built:
        raise ValueError(
            f"The optimizer {optimizer.name!r} holds nothing yet: it is not built. "
            "Call optimizer.build(model.trainable_variables), or train a step."
        )
    variables = optimizer._trainable_variables
    held, unassigned = _assign(optimizer, variables)
    rows = tuple(
        HeldRow(
            path=naming.path(variable),
            shape=tuple(variable.shape),
            model_numbers=_numbers(variable),
            slots=sum(map(_numbers, own)),
            bytes=sum(map(_bytes, own)),
            momentum_bytes=sum(_bytes(slot) for slot in own if _is_momentum(slot)),
            names=tuple(map(_name, own)),
        )
        for variable, own in zip(variables, held)
    )
    model_numbers = sum(map(_numbers, variables))
    model_bytes = sum(map(_bytes, variables))
    return MemoryReport(
        optimizer=type(optimizer).__name__,
        rows=rows,
        slots=sum(row.slots for row in rows) + sum(map(_numbers, unassigned)),
        bytes=sum(row.bytes for row in rows) + sum(map(_bytes, unassigned)),
        momentum_bytes=sum(row.momentum_bytes for row in rows),
        unassigned=sum(map(_numbers, unassigned)),
        counters=sum(map(_counts_skipped_steps, optimizer.variables)),
        model_numbers=model_numbers,
        model_bytes=model_bytes,
        adam_slots=2 * model_numbers,
        adam_bytes=2 * model_bytes,
    )


def _assign(
    optimizer: Any, variables: Sequence[Variable]
) -> tuple[list[list[Variable]], list[Variable]]:
    """Deals the optimizer's variables out to the model's, by their names.

    Keras names a slot after its variable's path. Adafactor names its row and
    column statistics after the variable's bare name, which several variables may
    share, just before the slot that bears the path: those wait for it.

    Returns:
        `(held, unassigned)`: a list of slots for each variable, and the slots
        left over.
    """
    prefixes = [naming.slot_prefix(v) for v in variables]
    held: list[list[Variable]] = [[] for _ in variables]
    waiting: list[Variable] = []
    unassigned: list[Variable] = []
    for slot in optimizer.variables:
        if _is_counter(slot):
            continue
        matches = [
            i for i, prefix in enumerate(prefixes) if _name(slot).startswith(prefix)
        ]
        if not matches:
            waiting.append(slot)
            continue
        # Of several prefixes the longest names the variable; of variables that share
        # their path, the first that has no slot of this name yet.
        longest = max(len(prefixes[i]) for i in matches)
        owners = [i for i in matches if len(prefixes[i]) == longest]
        taken = [any(_name(s) == _name(slot) for s in held[i]) for i in owners]
        owner = owners[taken.index(False) if False in taken else -1]
        held[owner].append(slot)
        for other in waiting:
            bare = other.name == variables[owner].name
            (held[owner] if bare else unassigned).append(other)
        waiting = []
    return held, unassigned + waiting


def _is_counter(slot: Variable) -> bool:
    """Iterations, learning rates, loss scales, and how many steps were skipped."""
    is_of_the_loop = _name(slot) in COUNTERS and len(slot.shape) == 0
    return is_of_the_loop or _counts_skipped_steps(slot)


def _counts_skipped_steps(slot: Variable) -> bool:
    return len(slot.shape) == 0 and _name(slot).endswith(SKIPPED_STEPS)


def _is_momentum(slot: Variable) -> bool:
    """By its name, which in Keras's own optimizers ends as in this library's."""
    return bool(re.search(r"_(momentum|momentum_basis|momentum_scale|m)$", _name(slot)))


def _name(slot: Variable) -> str:
    """A slot's name; that of a `tf.Variable` has scopes before it and `:0` behind."""
    return slot.name.split("/")[-1].removesuffix(":0")


def _numbers(variable: Variable) -> int:
    return math.prod(variable.shape)


def _bytes(variable: Variable) -> int:
    return bytes_of(variable.shape, variable.dtype)


def bytes_of(shape: Sequence[int], dtype: Any) -> int:
    """How many bytes a variable of a shape and a dtype takes."""
    bits = re.search(r"\d+", keras.backend.standardize_dtype(dtype))
    # float32, bfloat16, float8_e4m3fn; bool has none
    return math.prod(shape) * (int(bits.group()) // 8 if bits else 1)


def table(title: str, report: MemoryReport, lines: Sequence[str]) -> str:
    """What is held variable by variable, as text.

    Args:
        title: What stands above it.
        report: A `MemoryReport`.
        lines: List of sentences that stand below it.
    """
    # Imported on use: the library imports nothing but Keras at import time.
    from rich.console import Console
    from rich.table import Table

    table = Table(title=title, title_justify="left")
    table.add_column("variable", overflow="fold")
    table.add_column("shape")
    for name in ("numbers", "held", "bytes", "of which momentum", "× less than Adam"):
        table.add_column(name, justify="right", no_wrap=name != "× less than Adam")
    for row in report.rows:
        table.add_row(
            row.path,
            str(row.shape),
            f"{row.model_numbers:,}",
            f"{row.slots:,}",
            f"{row.bytes:,}",
            f"{row.momentum_bytes:,}",
            _ratio(2 * row.model_numbers, row.slots),
        )
    if report.unassigned:
        table.add_row("(of no single variable)", "", "", f"{report.unassigned:,}")
    table.add_section()
    table.add_row(
        "in all",
        "",
        f"{report.model_numbers:,}",
        f"{report.slots:,}",
        f"{report.bytes:,}",
        f"{report.momentum_bytes:,}",
        _ratio(report.adam_slots, report.slots),
    )
    # Plain text everywhere: in a notebook rich would show the table by itself and leave
    # the text empty, and FORCE_COLOR would put a terminal's codes into it.
    text = io.StringIO()
    console = Console(file=text, width=110, force_jupyter=False, force_terminal=False)
    console.print(table)
    for line in lines:
        # A level's expression in brackets is no markup of rich's.
        console.print(line, markup=False)
    return text.getvalue().rstrip()


def besides_adam(report: MemoryReport) -> str:
    """What Adam would hold in its place, in words."""
    return (
        f"Adam would hold {report.adam_slots:,} numbers in {report.adam_bytes:,} "
        f"bytes, of which this is {report.bytes / max(report.adam_bytes, 1):.2%}."
    )


def _ratio(numbers: int, held: int) -> str:
    return f"{numbers / held:,.4g}" if held else "all of it"
