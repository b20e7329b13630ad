"""The memory of weights, gradients and optimizer state.

- `report`: counts the state of a built optimizer.
- `plan`: counts weights, gradients and state before anything is allocated.
- `budget`: finds the best arguments of `ExtremeTensoring` within a budget.
- `shapes`: finds the shapes of a model's variables without allocating them.
"""

from et_optimizer.memory.plan import MemoryPlan, memory_plan
from et_optimizer.memory.report import MemoryReport, MemoryRow, memory_report

__all__ = ["MemoryPlan", "MemoryReport", "MemoryRow", "memory_plan", "memory_report"]
