"""What all preconditioners have in common."""


class Preconditioner:
    """What a paper keeps for a variable, and how it scales a gradient.

    Pure: it holds no variable, and every method is a function of its arguments.
    """

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

    def rate(self, learning_rate, variable, step):
        """What a variable's update is multiplied by.

        Args:
            learning_rate: Scalar float32 tensor.
            variable: The variable, before the step.
            step: Scalar float32 tensor, t from 1.

        Returns:
            A scalar float32 tensor.
        """
        return learning_rate
