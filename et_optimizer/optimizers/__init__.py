"""Keras optimizers, one file a paper: its rule and its Keras class.

- `extreme_tensoring`, `sm3`, `adafactor`, `subset_norm`, `shampoo`: the papers.
- `rule`: the interface of a rule. `rank_one`: an estimate that two papers share.
- `base`: the Keras optimizer that all of them are. `levels`: those with a `level`.
- `options`: the arguments that all of them share.
- `step`: one step of one variable, as a pure function.
- `slots`: the state of a variable. `saved_state`: how it is saved and refused.
- `nonfinite`, `clipping`, `averages`, `rounding`, `learning_rates`, `batched`: one
  concern each.
"""

import keras

from et_optimizer import naming
from et_optimizer.optimizers.adafactor import Adafactor
from et_optimizer.optimizers.base import PreconditionedOptimizer
from et_optimizer.optimizers.extreme_tensoring import ExtremeTensoring
from et_optimizer.optimizers.rule import Rule
from et_optimizer.optimizers.shampoo import Shampoo, SketchyAdagrad, SketchyShampoo
from et_optimizer.optimizers.sm3 import SM3
from et_optimizer.optimizers.subset_norm import SubsetNorm

# By name, for `compile`: the name of the class, and as Keras writes names of its own.
# `Adafactor` and `adafactor` are Keras's.
for _class in (ExtremeTensoring, SM3, SubsetNorm, Shampoo, SketchyShampoo):
    for _name in (_class.__name__, naming.in_words(_class.__name__)):
        keras.saving.get_custom_objects()[_name] = _class

__all__ = [
    "SM3",
    "Adafactor",
    "ExtremeTensoring",
    "PreconditionedOptimizer",
    "Rule",
    "Shampoo",
    "SketchyAdagrad",
    "SketchyShampoo",
    "SubsetNorm",
]
