"""Momenta: moving averages of updates or gradients, as pure functions, one kind a file.

A momentum names its state for a variable (`slots`: name → shape and dtype) and maps
`(update, state, step)` to `(direction, new state)`. It holds no variable and knows no
framework except `keras.ops`. Every rule works with every momentum.

- `momentum`: the interface, and no momentum.
- `full`: of the whole variable.
- `polar`: the polar factor of a full momentum, as in Muon.
- `subspace`: inside a subspace of low rank.
- `quantization`: the dtypes of the state.
- `selection`: which of them a variable gets.
"""

from et_optimizer.momenta.full import FullMomentum
from et_optimizer.momenta.momentum import Momentum
from et_optimizer.momenta.polar import PolarMomentum
from et_optimizer.momenta.subspace import SubspaceMomentum

__all__ = [
    "FullMomentum",
    "Momentum",
    "PolarMomentum",
    "SubspaceMomentum",
]
