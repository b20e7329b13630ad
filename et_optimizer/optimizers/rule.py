"""The interface of an update rule, and what several rules share."""

import math
from collections.abc import Callable
from typing import Any, ClassVar

from keras import ops

from et_optimizer.types import Shape, Tensor
from et_optimizer.views.dense import DenseView
from et_optimizer.views.tensor_index import TensorIndex
from et_optimizer.views.updates import Update


class Rule:
    """What a method keeps for a variable, and how it preconditions a gradient.

    A rule is pure: it holds no variable and knows no framework except `keras.ops`. It
    is a frozen dataclass, and its fields are arguments of its optimizer. Any rule goes
    with any momentum, and with dense, sparse and sharded gradients, if it asks nothing
    of a gradient except what its view and its update offer.

    Example: the sign of the gradient, with nothing kept.

    ```python
    @dataclasses.dataclass(frozen=True)
    class Sign(Rule):
        def slot_shapes(self, index):
            return {}

        def __call__(self, view, slots, step):
            return lambda gradient: gradient.mapped(ops.sign), slots
    ```
    """

    # Whether the rule needs finite, dense gradients. If not, gradients that are not
    # finite are detected in the updated slots.
    needs_finite_gradients = False
    __dataclass_fields__: ClassVar[dict[str, Any]]

    def slot_shapes(self, index: TensorIndex) -> dict[str, Shape]:
        """The slots of a variable.

        Args:
            index: The variable's `TensorIndex`.

        Returns:
            A dict from slot name to shape; every slot is float32 and starts at 0.
        """
        return {f"mode_{i}": shape for i, shape in enumerate(index.slot_shapes)}

    def __call__(
        self, view: DenseView, slots: list[Tensor], step: Tensor
    ) -> tuple[Callable[[Update], Update], list[Tensor]]:
        """One step.

        Args:
            view: A gradient, viewed through the variable's tensor index; see
                `et_optimizer.views.dense.DenseView`.
            slots: List of float32 tensors, in the order of `slot_shapes`.
            step: Scalar float32 tensor, t from 1.

        Returns:
            `(precondition, new_slots)`. `precondition` maps an update, which is the
            gradient or its moving average, to the update that is subtracted, times the
            learning rate; see `et_optimizer.views.updates.Update`.
        """
        raise NotImplementedError

    def mean_squares(
        self, view: DenseView, slots: list[Tensor], steps: Tensor
    ) -> tuple[Tensor, Tensor]:
        """The size of earlier gradients, and of this one. For `spike_threshold`.

        Args:
            view, slots: As for a step.
            steps: Scalar float32 tensor, how many gradients are in the slots.

        Returns:
            `(before, now)`, float32 scalars: the mean of g² over all entries, or
            another measure of g² whose average over time the slots contain. `before` is
            0 if there was no gradient.
        """
        raise NotImplementedError

    def learning_rate(
        self, learning_rate: Tensor, value: Callable[[], Tensor], step: Tensor
    ) -> Tensor:
        """What a variable's update is multiplied by.

        Args:
            learning_rate: Scalar float32 tensor.
            value: Returns the variable's value before the step, after weight decay.
            step: Scalar float32 tensor, t from 1.

        Returns:
            A scalar float32 tensor.
        """
        return learning_rate


def mean_over(slots: list[Tensor], size: int) -> Tensor:
    """The sum of all elements of some slots, divided by a number of entries.

    Each element is divided first: the sum itself may overflow float32.

    Args:
        slots: List of tensors.
        size: How many entries the variable has.
    """
    joined = ops.concatenate([ops.reshape(slot, (-1,)) for slot in slots])
    return ops.sum(joined / size)


def total_weight(beta_2: float | None, steps: Tensor) -> Tensor:
    """Σ_{s<t} β₂^s: divides a decayed sum to make it a bias-corrected average.

    Args:
        beta_2: The decay in [0, 1), or `None` where sums stay sums.
        steps: Scalar float32 tensor, the number of terms, t.

    Returns:
        A scalar float32 tensor, 1 where there is nothing to divide by.
    """
    if beta_2 is None or beta_2 == 0.0:
        return ops.ones((), "float32")
    # expm1 keeps the digits that 1 − β₂^t loses to cancellation at small t.
    return -ops.expm1(steps * math.log(beta_2)) / (1.0 - beta_2)


def average_weight(beta_2: float | None, steps: Tensor) -> Tensor:
    """As `total_weight`, but the number of terms where sums do not decay.

    Returns:
        A scalar float32 tensor, at least that of one step.
    """
    steps = ops.maximum(steps, 1.0)
    return steps if beta_2 is None else total_weight(beta_2, steps)
