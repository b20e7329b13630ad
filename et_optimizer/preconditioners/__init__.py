"""The papers' update rules as pure functions, one module a paper.

A preconditioner says what it keeps for a variable (`slot_shapes`: mode name →
shape) and maps `(gradient, slots, step)` to `(update, new slots)`. It holds no
variable and knows no framework beyond `keras.ops`.
"""

from et_optimizer.preconditioners.extreme_tensoring import ExtremeTensoring

__all__ = ["ExtremeTensoring"]
