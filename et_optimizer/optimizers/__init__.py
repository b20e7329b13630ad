"""Keras optimizers, one a paper, around the preconditioners."""

from et_optimizer.optimizers.extreme_tensoring import ExtremeTensoring

__all__ = ["ExtremeTensoring"]
