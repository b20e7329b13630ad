"""The papers' update rules as pure functions, one module a paper.

A preconditioner says what it keeps for a variable (`slot_shapes`: slot name →
shape) and maps `(gradient, slots, step)` to `(update, new slots)`. It holds no
variable and knows no framework beyond `keras.ops`.
"""

from et_optimizer.optimizers.rule import Preconditioner
from et_optimizer.preconditioners.adafactor import Adafactor
from et_optimizer.preconditioners.extreme_tensoring import ExtremeTensoring
from et_optimizer.preconditioners.shampoo import (
    Shampoo,
    SketchyAdagrad,
    SketchyShampoo,
)
from et_optimizer.preconditioners.sm3 import SM3

__all__ = [
    "Adafactor",
    "ExtremeTensoring",
    "Preconditioner",
    "SM3",
    "Shampoo",
    "SketchyAdagrad",
    "SketchyShampoo",
]
