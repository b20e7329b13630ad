"""Callbacks that look at what the optimizers' theories are about."""

from et_optimizer.callbacks.preconditioner_quality import PreconditionerQuality
from et_optimizer.callbacks.spectrum_monitor import SpectrumMonitor

__all__ = ["PreconditionerQuality", "SpectrumMonitor"]
