"""Training Keras models with almost no optimizer memory.

- `ExtremeTensoring`: a Keras optimizer with a few statistics per layer.
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

from et_optimizer import (
    callbacks,
    frequent_directions,
    momenta,
    optimizers,
    schedules,
)
from et_optimizer.memory import MemoryPlan, MemoryReport, memory_plan, memory_report
from et_optimizer.optimizers import *  # noqa: F403
from et_optimizer.version import __version__
from et_optimizer.views.tensor_index import TensorIndex

__all__ = [
    "MemoryPlan",
    "MemoryReport",
    "TensorIndex",
    "__version__",
    "callbacks",
    "frequent_directions",
    "memory_plan",
    "memory_report",
    "momenta",
    "schedules",
]
__all__ += optimizers.__all__
