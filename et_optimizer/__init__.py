"""Training Keras models with almost no optimizer memory.

- `ExtremeTensoring`: a Keras optimizer that keeps a few hundred numbers for a
  layer of millions.
- `SM3`, `Adafactor`, `SubsetNorm`: its rivals, which hold what their papers say and
  nothing else.
- `Shampoo`, `SketchyShampoo`, `SketchyAdagrad`: preconditioners that are matrices,
  whole or as sketches by `frequent_directions`.
- `callbacks`: what the theories are about, measured while a model trains.
- `schedules`: the learning rates these papers use.
- `TensorIndex`: which numbers those are.
- `memory_report`: what any Keras optimizer holds.
- `memory_plan`: what a model and any Keras optimizer will hold, before they do.
"""

from et_optimizer import callbacks, frequent_directions, schedules
from et_optimizer.memory import MemoryPlan, MemoryReport, memory_plan, memory_report
from et_optimizer.optimizers import (
    SM3,
    Adafactor,
    ExtremeTensoring,
    Shampoo,
    SketchyAdagrad,
    SketchyShampoo,
    SubsetNorm,
)
from et_optimizer.version import __version__
from et_optimizer.views.tensor_index import TensorIndex

__all__ = [
    "SM3",
    "Adafactor",
    "ExtremeTensoring",
    "MemoryPlan",
    "MemoryReport",
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
    "schedules",
]
