"""What all preconditioners have in common."""

import math
from typing import Any, ClassVar

from keras import ops


class Preconditioner:
    """What a paper keeps for a variable, and how it scales a gradient.

    Pure: it holds no variable, and every method is a function of its arguments.
    """

    # Whether a gradient must be finite to be given to it. Otherwise NaN and infinity in
    # a gradient, and squares that overflow, are seen in the slots that come of it.
    is_of_finite_gradients = False
    # What there is for each paper is a dataclass, whose fields are its arguments.
    __dataclass_fields__: ClassVar[dict[str, Any]]

    def slot_shapes(self, index):
        """What is kept for a variable.

        Args:
            index: The variable's `TensorIndex`.

        Returns:
            A dict from slot name to shape; every slot is float32 and starts at 0.
        """
        return {f"mode_{i}": shape for i, shape in enumerate(index.slot_shapes)}

    def __call__(self, gradient, slots, step):
        """One step.

        Args:
            gradient: A gradient seen through its tensor index.
            slots: List of float32 tensors, in the order of `slot_shapes`.
            step: Scalar float32 tensor, t from 1.

        Returns:
            `(update, new_slots)`; the update is to be subtracted times the rate.
        """
        raise NotImplementedError

    def sizes(self, gradient, slots, steps):
        """How large gradients were before, by the slots, and how large this one is.

        Args:
            gradient: A gradient seen through its tensor index.
            slots: List of float32 tensors, in the order of `slot_shapes`.
            steps: Scalar float32 tensor, how many gradients are in the slots.

        Returns:
            `(before, now)`, float32 scalars: the mean of g² over all entries, or
            another measure of g² of which the slots have the average over time.
            `before` is 0 where no gradient was.
        """
        raise NotImplementedError

    def rate(self, learning_rate, value, step):
        """What a variable's update is multiplied by.

        Args:
            learning_rate: Scalar float32 tensor.
            value: Without arguments, gives the variable's value before the step,
                decayed.
            step: Scalar float32 tensor, t from 1.

        Returns:
            A scalar float32 tensor.
        """
        return learning_rate


def sum_over(slots, size):
    """The sum of all that is in some slots, over a number of entries.

    Of all slots at once, divided first: the sum may leave float32 where this does not.
    A compiler finds it once for all who ask for it.

    Args:
        slots: List of tensors.
        size: How many entries the variable has.
    """
    joined = ops.concatenate([ops.reshape(slot, (-1,)) for slot in slots])
    return ops.sum(joined / size)


def weight_of_all(beta_2, steps):
    """What divides a sum over steps, decayed or not, to make it their average.

    Args:
        beta_2: The decay in [0, 1), or `None` where there is none.
        steps: Scalar float32 tensor, how many terms the sum has.

    Returns:
        A scalar float32 tensor, as if there were a step where there is none.
    """
    steps = ops.maximum(steps, 1.0)
    return steps if beta_2 is None else total_weight(beta_2, steps)


def total_weight(beta_2, steps):
    """Σ_{s<t} β₂^s, what divides a decayed sum to make it a bias-corrected average.

    Args:
        beta_2: The decay in [0, 1), or `None` where sums stay sums.
        steps: Scalar float32 tensor, how many terms the sum has, t.

    Returns:
        A scalar float32 tensor, 1 where there is nothing to divide by.
    """
    if beta_2 is None or beta_2 == 0.0:
        return ops.ones((), "float32")
    # expm1 keeps the digits that 1 − β₂^t loses to cancellation at small t.
    return -ops.expm1(steps * math.log(beta_2)) / (1.0 - beta_2)
