"""Callbacks that measure the quantities in the optimizers' theories."""

from et_optimizer.callbacks.preconditioner_quality import PreconditionerQuality
from et_optimizer.callbacks.spectrum_monitor import SpectrumMonitor

__all__ = ["PreconditionerQuality", "SpectrumMonitor"]
