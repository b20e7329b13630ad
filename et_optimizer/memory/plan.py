"""The memory of a model and its optimizer, planned before anything is allocated."""

import dataclasses
import math
import warnings
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import keras

from et_optimizer.compilers.symbolic import without_memory
from et_optimizer.memory import budget as budgets
from et_optimizer.memory.report import (
    MemoryReport,
    MemoryRow,
    bytes_of,
    memory_report,
    table,
    versus_adam,
)
from et_optimizer.memory.shapes import (
    ShapeOfVariable,
    VariableShape,
    stand_in,
    variables_of,
)
from et_optimizer.optimizers.extreme_tensoring import ExtremeTensoring


@dataclasses.dataclass(frozen=True)
class MemoryPlan:
    """The memory that a model and its optimizer will need; printing it shows a table.

    Activations and the temporary tensors of a step are not included.

    Attributes:
        state: The `MemoryReport` that `memory_report` will give once the optimizer is
            built.
        optimizer: The optimizer's class name.
        rows: Tuple of `MemoryRow`, one per trained variable.
        state_numbers: The number of elements of the optimizer's state.
        state_bytes: The same in bytes.
        adam_bytes: The bytes of Adam's state for the same variables, in their own
            dtypes.
        weight_bytes: The bytes of the trained weights.
        gradient_bytes: The bytes of the gradients of a step, in the weights' dtypes.
        frozen_numbers: The number of elements of the weights that are not trained, such
            as those of a model with LoRA, or moving averages, but not the states of
            random generators and metrics. 0 for a plan from shapes.
        frozen_bytes: The same in bytes.
        numbers: The number of elements of all weights, trained or not.
        bytes: The bytes of weights, gradients and state.
        bytes_per_weight: `bytes` over `numbers`.
        arguments: With a budget, the best arguments of `ExtremeTensoring` within it, a
            dict that can be written as JSON and YAML; otherwise `None`.
        reason: With a budget, why these arguments; otherwise `None`.
    """

    state: MemoryReport
    optimizer: str
    rows: tuple[MemoryRow, ...]
    state_numbers: int
    state_bytes: int
    adam_bytes: int
    weight_bytes: int
    gradient_bytes: int
    frozen_numbers: int
    frozen_bytes: int
    numbers: int
    bytes: int
    bytes_per_weight: float
    # `Any`, so that `ExtremeTensoring(**plan.arguments)` passes a type checker.
    arguments: Any = None
    reason: str | None = None

    def __str__(self) -> str:
        frozen = ""
        if self.frozen_numbers:
            frozen = f", frozen weights {self.frozen_bytes:,}"
        lines = [
            f"Trained weights take {self.weight_bytes:,} bytes{frozen}, gradients "
            f"{self.gradient_bytes:,} and the state {self.state_bytes:,}: in all "
            f"{self.bytes:,}, {self.bytes_per_weight:.4g} per weight.",
            versus_adam(self.state),
        ]
        if self.reason is not None:
            chosen = budgets.as_call(self.arguments)
            lines += [f"Chosen: ExtremeTensoring({chosen}).", self.reason]
        return table(f"Planned memory of {self.optimizer}", self.state, lines)


def memory_plan(
    model_or_shapes: (
        keras.Layer | Mapping[str, ShapeOfVariable] | Callable[[], keras.Layer]
    ),
    optimizer: keras.optimizers.Optimizer | None = None,
    budget: int | str | None = None,
) -> MemoryPlan:
    """Counts the memory of a model and an optimizer before anything is allocated.

    The optimizer is built for variables that have shapes and dtypes but take no memory,
    and `memory_report` counts its state. No formula is involved, so `memory_plan` works
    for any Keras optimizer that can be recreated from its own `get_config`. It neither
    changes nor builds the given model and optimizer.

    Args:
        model_or_shapes: What to train, one of

            - a built Keras model or layer;
            - a dict from variables' paths to their shapes, to pairs of shape and dtype,
              or to objects with `.shape` and `.dtype`, such as a `keras.KerasTensor`, a
              `jax.ShapeDtypeStruct` or a variable. The default dtype is Keras's
              `floatx`;
            - a function without arguments that returns a model. Its weights take no
              memory, so the model may be too large for this machine. The function must
              build the model and must not read or load values of weights. It runs in a
              new thread, in which Keras starts counting names from the beginning: name
              the layers if you use the paths of the plan.
        optimizer: A Keras optimizer, of this library or another, built or not, with or
            without `LossScaleOptimizer` around it. Defaults to `None`, for
            `ExtremeTensoring()`.
        budget: The most bytes that the state of an `ExtremeTensoring` may take;
            `memory_plan` then finds its best arguments. An integer, text with a unit
            such as `"20 MB"`, or a share such as `"1%"` of Adam's state for the same
            variables in their own dtypes (two elements per weight, so 4 bytes per
            weight in bfloat16). As in `MemoryReport.bytes`, counters of skipped steps
            do not count. Cannot be combined with `optimizer`. Defaults to `None`.

    Returns:
        A `MemoryPlan`. With a budget it is the plan of `ExtremeTensoring` with the
        plan's `.arguments`, the best within the budget. From the least memory to the
        best model, the studies' order is: without momentum, level `"inf"`, 3, 2, level
        1 for token axes with 2 for all others, and 1 for all; then, with level 1,
        momentum of increasing rank, each rank in int8 and then in bfloat16, up to a
        quarter of the widest matrix. A larger budget never gives a worse choice. Token
        axes are recognized by "embeddings" or "logits" in a path, and by a length equal
        to the vocabulary's.

    Raises:
        ValueError: if the model is not built, or a shape, dtype or budget is invalid;
            if the optimizer is not a Keras optimizer or does not fit the variables; if
            both an optimizer and a budget are given; or if nothing fits the budget: the
            message then names the smallest budget that can be met.

    Takes no memory for weights, gradients or state, and some milliseconds per variable.

    Example:

    >>> def large():
    ...     inputs = keras.Input((), dtype="int32")
    ...     x = keras.layers.Embedding(1_000_000, 8192, name="embedding")(inputs)
    ...     return keras.Model(inputs, keras.layers.Dense(8192, name="dense")(x))
    >>> plan = memory_plan(large, budget="0.01%")
    >>> plan.adam_bytes, plan.state_bytes
    (66072936448, 6229392)
    >>> plan.arguments
    {'level': 1, 'momentum_rank': 2, 'momentum_dtype': 'int8'}
    >>> optimizer = et_optimizer.ExtremeTensoring(**plan.arguments)
    """
    if optimizer is not None and budget is not None:
        raise ValueError(
            "With a budget, memory_plan finds the arguments of an ExtremeTensoring "
            f"itself; received budget={budget!r} and an optimizer of type "
            f"{type(optimizer).__name__}. Leave the optimizer out to plan within a "
            "budget, or the budget to plan for this optimizer."
        )
    optimizer = ExtremeTensoring() if optimizer is None else optimizer
    if not isinstance(optimizer, keras.optimizers.Optimizer):
        raise ValueError(
            "memory_plan takes a Keras optimizer, or None for ExtremeTensoring(); "
            f"received an object of type {type(optimizer).__name__}. Pass for example "
            "keras.optimizers.Adam()."
        )
    variables = variables_of(model_or_shapes)
    trained = [one for one in variables if one.trainable]
    frozen = [one for one in variables if not one.trainable]
    arguments, reason = None, None
    if budget is not None:
        adam_bytes = 2 * sum(bytes_of(one.shape, one.dtype) for one in trained)
        learned = [one for one in trained if not one.overwrite_with_gradient]
        arguments, reason = budgets.choose(learned, budget, adam_bytes)
        optimizer = ExtremeTensoring(**arguments)
    state = _planned_state(optimizer, trained)
    frozen_numbers = sum(math.prod(one.shape) for one in frozen)
    frozen_bytes = sum(bytes_of(one.shape, one.dtype) for one in frozen)
    numbers = state.model_numbers + frozen_numbers
    total = 2 * state.model_bytes + frozen_bytes + state.bytes
    return MemoryPlan(
        state=state,
        optimizer=state.optimizer,
        rows=state.rows,
        state_numbers=state.slots,
        state_bytes=state.bytes,
        adam_bytes=state.adam_bytes,
        weight_bytes=state.model_bytes,
        gradient_bytes=state.model_bytes,
        frozen_numbers=frozen_numbers,
        frozen_bytes=frozen_bytes,
        numbers=numbers,
        bytes=total,
        bytes_per_weight=total / max(numbers, 1),
        arguments=arguments,
        reason=reason,
    )


def _planned_state(optimizer: Any, trained: Sequence[VariableShape]) -> MemoryReport:
    """The `memory_report` of an optimizer built for these variables."""
    inner = optimizer
    while hasattr(inner, "inner_optimizer"):
        # Apart from its counters a LossScaleOptimizer has no state of its own.
        inner = inner.inner_optimizer
    with warnings.catch_warnings():
        # Keras warns that a learning-rate function may not load; nothing is saved here.
        warnings.simplefilter("ignore")
        config = inner.get_config()
    if isinstance(config.get("learning_rate"), dict):
        # A schedule or a function has no influence on the state.
        config["learning_rate"] = 0.0

    def count() -> MemoryReport:
        copy = _recreated(inner, config)
        copy.build([stand_in(one) for one in trained])
        return memory_report(copy)

    report = without_memory(count)
    return dataclasses.replace(report, optimizer=type(optimizer).__name__)


def _recreated(optimizer: Any, config: dict[str, Any]) -> Any:
    try:
        return type(optimizer).from_config(config)
    except Exception as error:
        raise ValueError(
            "memory_plan recreates the optimizer from its get_config(), which "
            f"{type(optimizer).__name__} does not allow here "
            f"({type(error).__name__}: {error}). Pass one without functions of your "
            "own, or build it and pass it to memory_report."
        ) from error
