"""What a model and its optimizer will hold, before anything is allocated."""

import dataclasses
import math
import warnings
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import keras

from et_optimizer.compilers.symbolic import without_memory
from et_optimizer.memory import budget as budgets
from et_optimizer.memory.report import (
    HeldRow,
    MemoryReport,
    besides_adam,
    bytes_of,
    memory_report,
    table,
)
from et_optimizer.memory.shapes import (
    ShapeOfVariable,
    VariableShape,
    stand_in,
    variables_of,
)
from et_optimizer.optimizers import ExtremeTensoring

# What a share of Adam's is of, and how many numbers Adam holds for each weight.
OF_ADAM = 2


@dataclasses.dataclass(frozen=True)
class MemoryPlan:
    """What a model and its optimizer will hold; printing it shows a table.

    Activations, and what a step takes for a moment, come on top.

    Attributes:
        state: The `MemoryReport` that `memory_report` will give once the optimizer is
            built.
        frozen_numbers: Numbers in the weights that are not trained, such as those of a
            model with LoRA, or moving averages; without the states of random generators
            and metrics. 0 where only shapes were given.
        frozen_bytes: The same in bytes.
        arguments: With a budget, the arguments of `ExtremeTensoring` that are best
            within it, a dict that JSON and YAML can hold; otherwise `None`.
        reason: With a budget, why these; otherwise `None`.
    """

    state: MemoryReport
    frozen_numbers: int
    frozen_bytes: int
    # A dict with a budget, which types do not see: who gave one need not ask for it.
    arguments: Any = None
    reason: str | None = None

    @property
    def optimizer(self) -> str:
        """The optimizer's class name."""
        return self.state.optimizer

    @property
    def rows(self) -> tuple[HeldRow, ...]:
        """A `HeldRow` for each trained variable: what will be held for it."""
        return self.state.rows

    @property
    def state_numbers(self) -> int:
        """Numbers that the optimizer will hold: `MemoryReport.slots`."""
        return self.state.slots

    @property
    def state_bytes(self) -> int:
        """The same in bytes: `MemoryReport.bytes`."""
        return self.state.bytes

    @property
    def adam_bytes(self) -> int:
        """What Adam would hold for the same variables, in their own dtypes."""
        return self.state.adam_bytes

    @property
    def weight_bytes(self) -> int:
        """Bytes of the weights that are trained."""
        return self.state.model_bytes

    @property
    def gradient_bytes(self) -> int:
        """Bytes of the gradients of a step: one a trained weight, in its dtype."""
        return self.state.model_bytes

    @property
    def numbers(self) -> int:
        """Numbers in all weights, those that are not trained as well."""
        return self.state.model_numbers + self.frozen_numbers

    @property
    def bytes(self) -> int:
        """Bytes in all: weights, gradients and state."""
        weights = self.weight_bytes + self.frozen_bytes
        return weights + self.gradient_bytes + self.state_bytes

    @property
    def bytes_per_weight(self) -> float:
        """Bytes in all, for each number in the weights."""
        return self.bytes / max(self.numbers, 1)

    def __str__(self) -> str:
        frozen = ""
        if self.frozen_numbers:
            frozen = f", those that are not trained {self.frozen_bytes:,}"
        lines = [
            f"Trained weights take {self.weight_bytes:,} bytes{frozen}, gradients "
            f"{self.gradient_bytes:,}, and the state {self.state_bytes:,}: in all "
            f"{self.bytes:,}, {self.bytes_per_weight:.4g} a weight.",
            besides_adam(self.state),
        ]
        if self.arguments is not None and self.reason is not None:
            given = ", ".join(f"{k}={v!r}" for k, v in self.arguments.items())
            lines += [f"Chosen: ExtremeTensoring({given}).", self.reason]
        return table(f"What {self.optimizer} would hold", self.state, lines)


def memory_plan(
    model_or_shapes: (
        keras.Layer | Mapping[str, ShapeOfVariable] | Callable[[], keras.Layer]
    ),
    optimizer: keras.optimizers.Optimizer | None = None,
    budget: int | str | None = None,
) -> MemoryPlan:
    """Counts what a model and an optimizer will hold, before anything is allocated.

    The optimizer is built for variables that have shapes and dtypes and take no memory,
    and what it then holds is counted as `memory_report` does: no formula of what an
    optimizer holds is written down here, so any Keras optimizer can be planned that its
    own `get_config` can make again. Neither the model nor the optimizer that are given
    are changed or built.

    Args:
        model_or_shapes: What is to be trained, one of

            - a built Keras model or layer;
            - a dict from variables' paths to their shapes, to pairs of shape and dtype,
              or to anything with `.shape` and `.dtype`, such as a `keras.KerasTensor`,
              a `jax.ShapeDtypeStruct` or a variable. Without a dtype they are of
              Keras's `floatx`;
            - a function without arguments that makes a model, which is called so that
              weights take no memory: the model may be too large for this machine.
              It must build the model and must not read or load values of weights. It
              is called in a thread of its own, in which Keras counts names from the
              start: name the layers, where what you do with the plan goes by names.
        optimizer: A Keras optimizer, of this library or another, built or not, with or
            without `LossScaleOptimizer` around it. Defaults to `None`, for
            `ExtremeTensoring()`.
        budget: The most bytes that an `ExtremeTensoring` may hold, for which the best
            arguments are then looked for: an integer, text with a unit such as
            `"20 MB"`, or a share such as `"1%"` of what Adam would hold for the same
            variables in their own dtypes (two numbers a weight: of weights in
            bfloat16, 4 bytes each). As in `MemoryReport.bytes`, counters of skipped
            steps do not count. Not together with `optimizer`. Defaults to `None`.

    Returns:
        A `MemoryPlan`. With a budget it is that of the `ExtremeTensoring` with its
        `.arguments`, the best within the budget in the order in which the studies found
        memory to pay: without momentum, level `"inf"`, 3, 2, level 1 for axes of tokens
        with 2 for all else, and 1 for all; then, with level 1, more and more directions
        of momentum, each number of them in int8 and then in bfloat16, up to a quarter
        of the widest matrix. A larger budget never gives less. What has an axis of
        tokens is told by paths with "embeddings" or "logits" in them, and by axes as
        long as the vocabulary.

    Raises:
        ValueError: if the model is not built, a shape, a dtype or a budget is none, the
            optimizer is no Keras optimizer or does not fit the variables, both an
            optimizer and a budget are given, or nothing meets the budget: the message
            then has the smallest that can be met.

    Memory: none for weights, gradients or state. It takes some milliseconds a variable.

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
            "A budget is for the arguments of an ExtremeTensoring, which memory_plan "
            f"finds itself; received budget={budget!r} and an optimizer of type "
            f"{type(optimizer).__name__}. Leave the optimizer out to spend a budget, "
            "or the budget to see what the optimizer will hold."
        )
    optimizer = ExtremeTensoring() if optimizer is None else optimizer
    _check_optimizer(optimizer)
    variables = variables_of(model_or_shapes)
    trained = [one for one in variables if one.trainable]
    frozen = [one for one in variables if not one.trainable]
    arguments, reason = None, None
    if budget is not None:
        adam_bytes = OF_ADAM * sum(bytes_of(one.shape, one.dtype) for one in trained)
        learned = [one for one in trained if not one.overwrite_with_gradient]
        arguments, reason = budgets.choose(learned, budget, adam_bytes)
        optimizer = ExtremeTensoring(**arguments)
    return MemoryPlan(
        state=_planned(optimizer, trained),
        frozen_numbers=sum(math.prod(one.shape) for one in frozen),
        frozen_bytes=sum(bytes_of(one.shape, one.dtype) for one in frozen),
        arguments=arguments,
        reason=reason,
    )


def _check_optimizer(optimizer: Any) -> None:
    if not isinstance(optimizer, keras.optimizers.Optimizer):
        raise ValueError(
            "memory_plan takes a Keras optimizer, or None for ExtremeTensoring(); "
            f"received an object of type {type(optimizer).__name__}. Pass for example "
            "keras.optimizers.Adam()."
        )


def _planned(optimizer: Any, trained: Sequence[VariableShape]) -> MemoryReport:
    """What `memory_report` will count of an optimizer built for these variables."""
    inner = optimizer
    while hasattr(inner, "inner_optimizer"):
        # A LossScaleOptimizer holds nothing but counters besides.
        inner = inner.inner_optimizer
    with warnings.catch_warnings():
        # That a function for the rate may not be loaded again: nothing is saved.
        warnings.simplefilter("ignore")
        config = inner.get_config()
    if isinstance(config.get("learning_rate"), dict):
        # A schedule or a function, which decides nothing that is held.
        config["learning_rate"] = 0.0

    def count() -> MemoryReport:
        copy = _made_again(inner, config)
        copy.build([stand_in(one) for one in trained])
        return memory_report(copy)

    report = without_memory(count)
    return dataclasses.replace(report, optimizer=type(optimizer).__name__)


def _made_again(optimizer: Any, config: dict[str, Any]) -> Any:
    try:
        return type(optimizer).from_config(config)
    except Exception as error:
        raise ValueError(
            f"memory_plan makes the optimizer again from its get_config(), which "
            f"{type(optimizer).__name__} does not allow here "
            f"({type(error).__name__}: {error}). Pass one without functions of your "
            "own, or build it and pass it to memory_report."
        ) from error
