"""Training Keras models with almost no optimizer memory.

- `ExtremeTensoring`: a Keras optimizer that keeps a few hundred numbers for a
  layer of millions.
- `TensorIndex`: which numbers those are.
- `memory_report`: what any Keras optimizer holds.
"""

from et_optimizer.memory import MemoryReport, memory_report
from et_optimizer.optimizers import ExtremeTensoring
from et_optimizer.tensor_index import TensorIndex
from et_optimizer.version import __version__

__all__ = [
    "ExtremeTensoring",
    "MemoryReport",
    "TensorIndex",
    "__version__",
    "memory_report",
]
