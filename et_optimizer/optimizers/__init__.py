"""Keras optimizers, one a paper, around the preconditioners."""

import keras

from et_optimizer import naming
from et_optimizer.optimizers.adafactor import Adafactor
from et_optimizer.optimizers.extreme_tensoring import ExtremeTensoring
from et_optimizer.optimizers.shampoo import Shampoo, SketchyAdagrad, SketchyShampoo
from et_optimizer.optimizers.sm3 import SM3
from et_optimizer.optimizers.subset_norm import SubsetNorm

# By name, for `compile`: as a class is called, and as Keras writes names of its own.
# `Adafactor` and `adafactor` are Keras's.
for _class in (ExtremeTensoring, SM3, SubsetNorm, Shampoo, SketchyShampoo):
    for _name in (_class.__name__, naming.in_words(_class.__name__)):
        keras.saving.get_custom_objects()[_name] = _class

__all__ = [
    "SM3",
    "Adafactor",
    "ExtremeTensoring",
    "Shampoo",
    "SketchyAdagrad",
    "SketchyShampoo",
    "SubsetNorm",
]
