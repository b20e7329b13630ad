"""What optimizers hold: counted when they are built, and planned before.

- `report`: what a built optimizer holds, from its variables.
- `plan`: what a model and an optimizer will hold, from shapes alone.
- `budget`: the arguments of `ExtremeTensoring` that are best within a budget.
- `shapes`: what a model's variables will be, found without memory for them.
"""

from et_optimizer.memory.plan import MemoryPlan, memory_plan
from et_optimizer.memory.report import HeldRow, MemoryReport, memory_report

__all__ = ["HeldRow", "MemoryPlan", "MemoryReport", "memory_plan", "memory_report"]
