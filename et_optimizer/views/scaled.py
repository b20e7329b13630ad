"""Gradients times a scalar, as clipping by a norm makes them."""

from typing import Any, NamedTuple


class Scaled(NamedTuple):
    """A tensor times a scalar, not multiplied out, so that it takes no memory.

    Attributes:
        values: A tensor of the variable's shape.
        scale: A scalar.
    """

    values: Any
    scale: Any

    @property
    def shape(self):
        """The values' shape."""
        return self.values.shape

    @property
    def dtype(self):
        """The values' dtype."""
        return self.values.dtype
