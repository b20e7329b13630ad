"""What averages updates over time, as pure functions, one module a kind.

A momentum says what it keeps for a variable (`plan`: name → shape and dtype) and maps
`(update, held, step)` to `(direction, new held)`. Like a preconditioner it holds no
variable, and knows no framework beyond `keras.ops`; any preconditioner goes with any
momentum.
"""

from et_optimizer.momenta.full import FullMomentum
from et_optimizer.momenta.momentum import Momentum
from et_optimizer.momenta.quantization import DTYPES
from et_optimizer.momenta.subspace import AUTO, SubspaceMomentum, auto_rank

__all__ = [
    "AUTO",
    "DTYPES",
    "FullMomentum",
    "Momentum",
    "SubspaceMomentum",
    "auto_rank",
]
