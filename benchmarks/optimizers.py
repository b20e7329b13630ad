"""The optimizers of the benchmarks, and checks of names on a command line."""

import functools

import keras
from absl import app

import et_optimizer

# A name means the same optimizer in every benchmark.
OPTIMIZERS = {
    "SGD": functools.partial(keras.optimizers.SGD, learning_rate=0.01),
    "Adam": keras.optimizers.Adam,
    "SGD with momentum": functools.partial(
        keras.optimizers.SGD, learning_rate=0.01, momentum=0.9
    ),
    "Adagrad": keras.optimizers.Adagrad,
    "keras Adafactor": keras.optimizers.Adafactor,
    "ExtremeTensoring()": et_optimizer.ExtremeTensoring,
    "ExtremeTensoring() in int8": functools.partial(
        et_optimizer.ExtremeTensoring, momentum_dtype="int8"
    ),
    **{
        f"ExtremeTensoring rank {rank}": functools.partial(
            et_optimizer.ExtremeTensoring, momentum_rank=rank
        )
        for rank in (8, 16)
    },
    "ExtremeTensoring full in int4": functools.partial(
        et_optimizer.ExtremeTensoring, momentum_rank=None, momentum_dtype="int4"
    ),
    "Muon()": et_optimizer.Muon,
    "Muon() in int3": functools.partial(et_optimizer.Muon, momentum_dtype="int3"),
    "Muon() in float32": functools.partial(et_optimizer.Muon, momentum_dtype="float32"),
    "keras Muon": keras.optimizers.Muon,
    # A subspace update of every variable in every step.
    "ExtremeTensoring refreshing": functools.partial(
        et_optimizer.ExtremeTensoring, refresh_every=1
    ),
    # Without momentum.
    **{
        f"ExtremeTensoring {level}": functools.partial(
            et_optimizer.ExtremeTensoring, level=level, beta_1=0.0
        )
        for level in ("inf", 1, 2, 3)
    },
    **{
        f"SM3 {level}": functools.partial(et_optimizer.SM3, level=level)
        for level in (1, 2, 3)
    },
    "Adafactor": et_optimizer.Adafactor,
    "SubsetNorm": et_optimizer.SubsetNorm,
}


def check_names(flag, names, known):
    """Raises a `UsageError` if a flag has an unknown name."""
    unknown = [name for name in names if name not in known]
    if unknown:
        raise app.UsageError(
            f"--{flag} must name some of {', '.join(known)}; received "
            f"{', '.join(unknown)}."
        )
