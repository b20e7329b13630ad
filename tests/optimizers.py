"""The optimizers that the shared suites run on. Add an entry to cover another one."""

import functools
import pathlib

from keras.config import backend

from et_optimizer import (
    SM3,
    Adafactor,
    ExtremeTensoring,
    Muon,
    Shampoo,
    SketchyAdagrad,
    SketchyShampoo,
    SubsetNorm,
)
from tests.published import blocks

DOCS = pathlib.Path(__file__).parents[1] / "docs"
# Small enough that the small matrices of the tests have momentum of low rank, whose
# subspace is updated several times.
IN_A_SUBSPACE = {"momentum_rank": 2, "refresh_every": 2}
FULL = {"momentum_rank": None, "momentum_dtype": "float32"}

# The optimizer that docs/write-your-own.md builds outside the library.
LION, WRITTEN = "Lion of the documentation", {}
exec(next(blocks(DOCS / "write-your-own.md")), WRITTEN)

# Name → a function from keyword arguments to an optimizer. Together they cover every
# path of the library: levels, elementwise and outer-product updates, both combinations
# of means, sums and maxima, stacks of matrices, full and sketched covariances,
# clipping, and momentum that is full or in a subspace, in every dtype. Arguments that
# matter here are explicit, so a new default does not change what is covered.
OPTIMIZERS = {
    "ExtremeTensoring": ExtremeTensoring,
    "ExtremeTensoring in a subspace": functools.partial(
        ExtremeTensoring, beta_1=0.9, momentum_dtype="float32", **IN_A_SUBSPACE
    ),
    "ExtremeTensoring in a subspace in int8": functools.partial(
        ExtremeTensoring,
        level=2,
        beta_1=0.9,
        momentum_dtype="int8",
        spike_threshold=10.0,
        **IN_A_SUBSPACE,
    ),
    "ExtremeTensoring level 1": functools.partial(ExtremeTensoring, level=1, beta_1=0),
    "ExtremeTensoring level inf": functools.partial(
        ExtremeTensoring, level="inf", beta_1=0
    ),
    "ExtremeTensoring everything on": functools.partial(
        ExtremeTensoring,
        level=3,
        combination="rank_one",
        beta_1=0.9,
        epsilon=1e-8,
        clip_threshold=1.0,
        update_bound=2.0,
        spike_threshold=10.0,
        **FULL,
    ),
    "ExtremeTensoring accumulating": functools.partial(
        ExtremeTensoring,
        level=2,
        beta_1=0,
        beta_2=None,
        statistic="sum",
        combination="geometric",
        update_bound=None,
    ),
    "SM3": functools.partial(SM3, momentum=0),
    "SM3 level 2 averaging": functools.partial(SM3, level=2, beta_2=0.9, momentum=0),
    "SM3 in a subspace": functools.partial(SM3, momentum=0.9, **IN_A_SUBSPACE),
    "SM3-I everything on": functools.partial(
        SM3,
        variant="I",
        level=2,
        momentum=0.9,
        epsilon=1e-8,
        clip_threshold=1.0,
        update_bound=2.0,
        spike_threshold=10.0,
        **FULL,
    ),
    "Adafactor": functools.partial(Adafactor, beta_1=0),
    "Adafactor as in Tensor2Tensor": functools.partial(
        Adafactor,
        beta_1=0.9,
        multiply_by_parameter_scale=False,
        cap_learning_rate=False,
        min_dim_size_to_factor=7,
        **FULL,
    ),
    "SubsetNorm": functools.partial(SubsetNorm, beta_1=0),
    "SubsetNorm of an averaged gradient": functools.partial(
        SubsetNorm, beta_1=0.9, momentum_of="gradient", **IN_A_SUBSPACE
    ),
    "SubsetNorm everything on": functools.partial(
        SubsetNorm,
        axis={".*": 0},
        beta_1=0.9,
        beta_2=None,
        statistic="sum",
        epsilon=1e-8,
        clip_threshold=1.0,
        update_bound=2.0,
        spike_threshold=10.0,
        **FULL,
    ),
    # The full covariances of the few gradients of a test are singular. With the default
    # ridge of 1e-6, differences in rounding would be amplified outside their range.
    "Shampoo": functools.partial(
        Shampoo, beta_1=0, update_every=2, block_size=16, relative_epsilon=1e-2
    ),
    "SketchyShampoo everything on": functools.partial(
        SketchyShampoo,
        rank=2,
        beta_1=0.9,
        beta_2=None,
        block_size=8,
        update_every=2,
        start_preconditioning_step=2,
        graft="rmsprop",
        epsilon=1e-8,
        clip_threshold=1.0,
        spike_threshold=10.0,
        momentum_dtype="float32",
        **IN_A_SUBSPACE,
    ),
    "SketchyAdagrad averaging": functools.partial(
        SketchyAdagrad, rank=3, beta_2=0.9, beta_1=0
    ),
    # The tests' variables have other names than kernels.
    "Muon": functools.partial(Muon, orthogonalize=True, momentum_dtype="float32"),
    "Muon in 4 bits": functools.partial(Muon, orthogonalize=True),
    "ExtremeTensoring in 3 bits": functools.partial(
        ExtremeTensoring, beta_1=0.9, momentum_rank=None, momentum_dtype="int3"
    ),
    LION: functools.partial(WRITTEN["Lion"], **IN_A_SUBSPACE),
}

# Their slots are marginals, a subspace in int8, maxima, sketches, and packed momentum.
SLOTS_OF_EACH_KIND = (
    "ExtremeTensoring",
    "ExtremeTensoring in a subspace in int8",
    "SM3-I everything on",
    "SketchyShampoo everything on",
    "Muon in 4 bits",
)
ALL_CLASSES = (
    *SLOTS_OF_EACH_KIND,
    "Adafactor",
    "SubsetNorm of an averaged gradient",
    "Shampoo",
    "SketchyAdagrad averaging",
)
# All under PyTorch, which compiles nothing; one per class on the other backends.
MANY = OPTIMIZERS if backend() == "torch" else {n: OPTIMIZERS[n] for n in ALL_CLASSES}
# For what Keras does around the step of any optimizer: one per class under PyTorch. On
# TensorFlow and JAX, whose tests spend most of their time compiling, one whose slots
# are float32, bfloat16 and int8: Keras treats all others alike.
ONE_OF_EACH = {
    name: OPTIMIZERS[name]
    for name in (ALL_CLASSES if backend() == "torch" else SLOTS_OF_EACH_KIND[1:2])
}


def slots_of(optimizer):
    """The state of a Keras 3 optimizer, except its counters of skipped steps."""
    state = optimizer.variables[2:]  # after Keras's iteration and learning rate
    return [v for v in state if not v.name.endswith("skipped_steps")]


def momentum_forms(optimizer):
    """The shape and dtype of each slot of the momentum, by name."""
    return {
        v.name: (tuple(v.shape), v.dtype)
        for v in optimizer.variables
        if "momentum" in v.name
    }


def in_float32(make):
    """The same optimizer with its momentum in float32.

    For tests that compare two programs: in fewer bits, a value between two
    representable ones may be rounded up by one program and down by the other.
    """
    return functools.partial(make, momentum_dtype="float32")


# Optimizers with the argument `tensor_index`.
TENSORED = {
    name: make
    for name, make in OPTIMIZERS.items()
    if name.startswith(("ExtremeTensoring", "SM3", "Shampoo", "SketchyShampoo"))
}
