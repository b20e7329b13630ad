"""Keras optimizers, one a paper, around the preconditioners."""

from et_optimizer.optimizers.adafactor import Adafactor
from et_optimizer.optimizers.extreme_tensoring import ExtremeTensoring
from et_optimizer.optimizers.shampoo import Shampoo, SketchyAdagrad, SketchyShampoo
from et_optimizer.optimizers.sm3 import SM3
from et_optimizer.optimizers.subset_norm import SubsetNorm

__all__ = [
    "SM3",
    "Adafactor",
    "ExtremeTensoring",
    "Shampoo",
    "SketchyAdagrad",
    "SketchyShampoo",
    "SubsetNorm",
]
