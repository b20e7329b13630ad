"""What optimizers hold, counted when they are built."""

from et_optimizer.memory.report import HeldRow, MemoryReport, memory_report

__all__ = ["HeldRow", "MemoryReport", "memory_report"]
