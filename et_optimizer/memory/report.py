"""The memory of a built optimizer, counted from its variables."""

import dataclasses
import io
import math
import re
from collections.abc import Sequence
from typing import Any

import keras

from et_optimizer import naming
from et_optimizer.optimizers.saved_state import SavedState
from et_optimizer.types import Variable

# Scalars of the training loop, which every optimizer has.
COUNTERS = ("iteration", "learning_rate", "step_counter", "dynamic_scale")
# The suffix of the counters of skipped steps, after the variable's name.
SKIPPED_STEPS = "_skipped_steps"


@dataclasses.dataclass(frozen=True)
class MemoryRow:
    """The optimizer state of one variable of the model.

    Attributes:
        path: The variable's path.
        shape: Its shape.
        model_numbers: Its number of elements.
        slots: The number of elements of its state.
        bytes: The bytes of its state.
        momentum_bytes: How many of these bytes are momentum: moving averages of
            gradients or updates, with their bases and scales.
        names: The names of the optimizer's variables that make up the state.
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
    """The state of an optimizer for a model; printing it shows a table.

    Attributes:
        optimizer: The optimizer's class name.
        rows: Tuple of `MemoryRow`, one per variable of the model.
        slots: The number of elements of the state: the sum of the rows plus
            `unassigned`. Iteration counts and learning rates, the few scalars that
            every optimizer has, are not included, nor are `counters`.
        bytes: The same in bytes.
        momentum_bytes: How many of these bytes are momentum.
        unassigned: The elements that belong to no single variable.
        counters: The number of additional 4-byte integers: the optimizers of this
            library count the skipped steps of every variable.
        model_numbers: The number of elements of the model's trained variables.
        model_bytes: The same in bytes.
        adam_slots: The number of elements of Adam's state for the same variables, two
            per element of the model.
        adam_bytes: The same in bytes, in the variables' own dtypes.
    """

    optimizer: str
    rows: tuple[MemoryRow, ...]
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
        lines = [f"Trained weights take {self.model_bytes:,} bytes.", versus_adam(self)]
        if self.counters:
            lines.append(f"In addition, {self.counters:,} counters of skipped steps.")
        return table(f"State of {self.optimizer}", self, lines)


def memory_report(optimizer: keras.optimizers.Optimizer | SavedState) -> MemoryReport:
    """Counts the state of a built Keras optimizer.

    Works for any `keras.optimizers.Optimizer`, with or without a `LossScaleOptimizer`
    or `MultiOptimizer` around it, because it counts the actual variables, whatever
    their names. Of tf_keras's optimizers it works for those of
    `et_optimizer.tf_keras`, without `LossScaleOptimizer`.

    Args:
        optimizer: A built optimizer: one that has trained a step, or whose
            `build(model.trainable_variables)` was called.

    Returns:
        A `MemoryReport`: `.slots`, `.bytes` and one row per variable. Printing it
        shows a table.

    Raises:
        ValueError: if the optimizer is not built or not a Keras optimizer.

    Example:

    >>> layer = keras.layers.Dense(512, use_bias=False)
    >>> layer.build((None, 2000))
    >>> optimizer = et_optimizer.ExtremeTensoring()
    >>> optimizer.build(layer.trainable_variables)
    >>> report = et_optimizer.memory_report(optimizer)
    >>> report.slots, report.adam_slots
    (42704, 2048000)
    """
    if not isinstance(optimizer, (keras.optimizers.Optimizer, SavedState)):
        raise ValueError(
            "memory_report counts a Keras optimizer, or one of et_optimizer.tf_keras; "
            f"received an object of type {type(optimizer).__name__}. Pass "
            "model.optimizer, or its inner_optimizer."
        )
    if not optimizer.built:
        raise ValueError(
            f"The optimizer {optimizer.name!r} has no state yet: it is not built. "
            "Call optimizer.build(model.trainable_variables), or train a step."
        )
    variables = optimizer._trainable_variables
    owned, unassigned = _assign(optimizer, variables)
    rows = tuple(
        MemoryRow(
            path=naming.path(variable),
            shape=tuple(variable.shape),
            model_numbers=_size(variable),
            slots=sum(map(_size, own)),
            bytes=sum(map(_bytes, own)),
            momentum_bytes=sum(_bytes(slot) for slot in own if _is_momentum(slot)),
            names=tuple(map(_name, own)),
        )
        for variable, own in zip(variables, owned)
    )
    model_numbers = sum(map(_size, variables))
    model_bytes = sum(map(_bytes, variables))
    return MemoryReport(
        optimizer=type(optimizer).__name__,
        rows=rows,
        slots=sum(row.slots for row in rows) + sum(map(_size, unassigned)),
        bytes=sum(row.bytes for row in rows) + sum(map(_bytes, unassigned)),
        momentum_bytes=sum(row.momentum_bytes for row in rows),
        unassigned=sum(map(_size, unassigned)),
        counters=sum(map(_counts_skipped_steps, optimizer.variables)),
        model_numbers=model_numbers,
        model_bytes=model_bytes,
        adam_slots=2 * model_numbers,
        adam_bytes=2 * model_bytes,
    )


def _assign(
    optimizer: Any, variables: Sequence[Variable]
) -> tuple[list[list[Variable]], list[Variable]]:
    """Assigns the optimizer's variables to the model's by their names.

    Keras names a slot after its variable's path. Adafactor names its row and column
    statistics after the variable's bare name, which several variables may share, and
    creates them just before the slot that has the path: those wait for that slot.

    Returns:
        `(owned, unassigned)`: a list of slots for each variable, and the remaining
        slots.
    """
    prefixes = [naming.slot_prefix(v) for v in variables]
    owned: list[list[Variable]] = [[] for _ in variables]
    waiting: list[Variable] = []
    unassigned: list[Variable] = []
    for slot in optimizer.variables:
        if _is_counter(slot):
            continue
        name = _name(slot)
        matches = [i for i, prefix in enumerate(prefixes) if name.startswith(prefix)]
        if not matches:
            waiting.append(slot)
            continue
        # The longest prefix identifies the variable. If variables share their path, the
        # slot belongs to the first that has no slot of this name yet.
        longest = max(len(prefixes[i]) for i in matches)
        owners = [i for i in matches if len(prefixes[i]) == longest]
        free = [i for i in owners if name not in map(_name, owned[i])]
        owner = (free or owners[-1:])[0]
        owned[owner].append(slot)
        for other in waiting:
            is_own = other.name == variables[owner].name
            (owned[owner] if is_own else unassigned).append(other)
        waiting = []
    return owned, unassigned + waiting


def _is_counter(slot: Variable) -> bool:
    """Whether it is an iteration count, learning rate, loss scale or skip counter."""
    is_scalar = len(slot.shape) == 0
    return (is_scalar and _name(slot) in COUNTERS) or _counts_skipped_steps(slot)


def _counts_skipped_steps(slot: Variable) -> bool:
    return len(slot.shape) == 0 and _name(slot).endswith(SKIPPED_STEPS)


def _is_momentum(slot: Variable) -> bool:
    """Judges by the name, whose suffix in Keras's optimizers is as in this library."""
    return bool(re.search(r"_(momentum(_basis|_scale|_seed)?|m)$", _name(slot)))


def _name(slot: Variable) -> str:
    """A slot's name, without the scopes and the `:0` of a `tf.Variable`'s."""
    return slot.name.split("/")[-1].removesuffix(":0")


def _size(variable: Variable) -> int:
    return math.prod(variable.shape)


def _bytes(variable: Variable) -> int:
    return bytes_of(variable.shape, variable.dtype)


def bytes_of(shape: Sequence[int], dtype: Any) -> int:
    """The bytes of a variable of a shape and dtype."""
    # The name of a dtype, such as float8_e4m3fn, has its bits; only bool has none.
    bits = re.search(r"\d+", keras.backend.standardize_dtype(dtype))
    return math.prod(shape) * (int(bits.group()) // 8 if bits else 1)


def table(title: str, report: MemoryReport, lines: Sequence[str]) -> str:
    """A report's rows and totals as text.

    Args:
        title: The line above the table.
        report: A `MemoryReport`.
        lines: The sentences below the table.
    """
    # Imported on use: at import time the library imports only Keras.
    from rich.console import Console
    from rich.table import Table

    table = Table(title=title, title_justify="left")
    table.add_column("variable", overflow="fold")
    table.add_column("shape")
    for name in ("elements", "state", "bytes", "of which momentum", "× less than Adam"):
        table.add_column(name, justify="right", no_wrap=name != "× less than Adam")
    for row in report.rows:
        table.add_row(row.path, str(row.shape), *_cells(row))
    if report.unassigned:
        table.add_row("(of no single variable)", "", "", f"{report.unassigned:,}")
    table.add_section()
    table.add_row("in all", "", *_cells(report))
    # Plain text everywhere: in a notebook rich would display the table itself and leave
    # the text empty, and with FORCE_COLOR it would add a terminal's control codes.
    text = io.StringIO()
    console = Console(file=text, width=110, force_jupyter=False, force_terminal=False)
    console.print(table)
    for line in lines:
        # Brackets in a regular expression are not rich's markup.
        console.print(line, markup=False)
    return text.getvalue().rstrip()


def _cells(one: MemoryRow | MemoryReport) -> list[str]:
    counts = one.model_numbers, one.slots, one.bytes, one.momentum_bytes
    ratio = f"{2 * one.model_numbers / one.slots:,.4g}" if one.slots else "no state"
    return [*(f"{count:,}" for count in counts), ratio]


def versus_adam(report: MemoryReport) -> str:
    """A sentence that compares the state with Adam's."""
    share = report.bytes / max(report.adam_bytes, 1)
    return (
        f"The state takes {report.bytes:,} bytes, {share:.2%} of Adam's "
        f"{report.adam_bytes:,} ({report.adam_slots:,} elements)."
    )
