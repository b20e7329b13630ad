"""The optimizers that the shared suites run on: add a name here to cover one more."""

import et_optimizer

# Name → a function from keyword arguments to an optimizer. Together they cover
# every path of the library: levels, elementwise and outer-product updates, clipping
# and momentum.
OPTIMIZERS = {
    "ExtremeTensoring": et_optimizer.ExtremeTensoring,
    "ExtremeTensoring level 1": lambda **kwargs: et_optimizer.ExtremeTensoring(
        level=1, **kwargs
    ),
    "ExtremeTensoring level inf": lambda **kwargs: et_optimizer.ExtremeTensoring(
        level="inf", **kwargs
    ),
    "ExtremeTensoring everything on": lambda **kwargs: et_optimizer.ExtremeTensoring(
        level=3, beta_1=0.9, epsilon=1e-8, clip_threshold=1.0, **kwargs
    ),
    "ExtremeTensoring accumulating": lambda **kwargs: et_optimizer.ExtremeTensoring(
        beta_2=None, statistic="sum", **kwargs
    ),
}
