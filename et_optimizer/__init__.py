"""Training Keras models with almost no optimizer memory.

- `ExtremeTensoring`: a Keras optimizer with a few statistics per layer.
- `Muon`: orthogonalized updates, with a momentum of 4 or 3 bits per entry.
- `SM3`, `Adafactor`, `SubsetNorm`: baselines with the state of their papers.
- `Shampoo`, `SketchyShampoo`, `SketchyAdagrad`: preconditioners that are matrices,
  whole or as sketches by `frequent_directions`.
- `PreconditionedOptimizer`, `Rule`, `momenta`: the parts of an optimizer of your own.
- `callbacks`: quantities of the theory, measured while a model trains.
- `schedules`: the learning rates of these papers.
- `TensorIndex`: how the entries of a variable are indexed by modes.
- `memory_report`: the memory of any Keras optimizer's state.
- `memory_plan`: the memory of a model and an optimizer, before it is allocated.
"""

from et_optimizer import callbacks, frequent_directions, momenta, schedules
from et_optimizer.memory import MemoryPlan, MemoryReport, memory_plan, memory_report
from et_optimizer.optimizers.adafactor import Adafactor
from et_optimizer.optimizers.base import PreconditionedOptimizer
from et_optimizer.optimizers.extreme_tensoring import ExtremeTensoring
from et_optimizer.optimizers.muon import Muon
from et_optimizer.optimizers.rule import Rule
from et_optimizer.optimizers.shampoo import Shampoo, SketchyAdagrad, SketchyShampoo
from et_optimizer.optimizers.sm3 import SM3
from et_optimizer.optimizers.subset_norm import SubsetNorm
from et_optimizer.version import __version__
from et_optimizer.views.tensor_index import TensorIndex

__all__ = [
    "Adafactor",
    "ExtremeTensoring",
    "MemoryPlan",
    "MemoryReport",
    "Muon",
    "PreconditionedOptimizer",
    "Rule",
    "SM3",
    "Shampoo",
    "SketchyAdagrad",
    "SketchyShampoo",
    "SubsetNorm",
    "TensorIndex",
    "__version__",
    "callbacks",
    "frequent_directions",
    "memory_plan",
    "memory_report",
    "momenta",
    "schedules",
]
