"""The optimizers that the shared suites run on: add a name here to cover one more."""

import functools

from et_optimizer import (
    SM3,
    Adafactor,
    ExtremeTensoring,
    Shampoo,
    SketchyAdagrad,
    SketchyShampoo,
    SubsetNorm,
)

# Name → a function from keyword arguments to an optimizer. Together they cover
# every path of the library: levels, elementwise and outer-product updates, sums and
# maxima, stacks of matrices, covariances whole and sketched, clipping and momentum of
# each kind.
OPTIMIZERS = {
    "ExtremeTensoring": ExtremeTensoring,
    "ExtremeTensoring level 1": functools.partial(ExtremeTensoring, level=1),
    "ExtremeTensoring level inf": functools.partial(ExtremeTensoring, level="inf"),
    "ExtremeTensoring everything on": functools.partial(
        ExtremeTensoring, level=3, beta_1=0.9, epsilon=1e-8, clip_threshold=1.0
    ),
    "ExtremeTensoring accumulating": functools.partial(
        ExtremeTensoring, beta_2=None, statistic="sum"
    ),
    "SM3": SM3,
    "SM3 level 2 averaging": functools.partial(SM3, level=2, beta_2=0.9),
    "SM3-I everything on": functools.partial(
        SM3, variant="I", level=2, momentum=0.9, epsilon=1e-8, clip_threshold=1.0
    ),
    "Adafactor": Adafactor,
    "Adafactor as in Tensor2Tensor": functools.partial(
        Adafactor,
        beta_1=0.9,
        multiply_by_parameter_scale=False,
        cap_learning_rate=False,
        min_dim_size_to_factor=7,
    ),
    "SubsetNorm": SubsetNorm,
    "SubsetNorm everything on": functools.partial(
        SubsetNorm,
        axis={".*": 0},
        beta_1=0.9,
        beta_2=None,
        statistic="sum",
        epsilon=1e-8,
        clip_threshold=1.0,
    ),
    # Whole covariances of the few gradients of a test are singular: with the default
    # ridge of 1e-6, rounding that differs between two ways to the same gradient would
    # be seen in directions that the covariances have not.
    "Shampoo": functools.partial(
        Shampoo, update_every=2, block_size=16, relative_epsilon=1e-2
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
    ),
    "SketchyAdagrad averaging": functools.partial(SketchyAdagrad, rank=3, beta_2=0.9),
}
# Those whose tensor index can be given by hand.
TENSORED = {
    name: make
    for name, make in OPTIMIZERS.items()
    if name.startswith(("ExtremeTensoring", "SM3", "Shampoo", "SketchyShampoo"))
}
