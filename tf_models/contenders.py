"""The optimizers `tf_models.compare` compares, each with its learning rate.

Every rate is the best of a short search, three or four rates a factor of 1.5 to 3
apart, on the default setting of `compare` with one seed. Rounding alone can move a
perplexity by 2%, so this is enough to be fair, and not to rank optimizers whose
perplexities are close. Those of `DEMO` were searched on TensorFlow, the others on JAX,
with 1.5e-3, 3e-3 and 6e-3 (RESULTS.md says which runs were made).
"""

import dataclasses
import functools
from collections.abc import Callable

import keras

import et_optimizer

WARMUP_SHARE = 0.1


@dataclasses.dataclass(frozen=True)
class Contender:
    """One optimizer of a comparison.

    Attributes:
        name: What `--optimizers` calls it.
        label: What the table and the plot call it.
        learning_rate: The peak of its schedule.
        make: Takes a learning rate or schedule, returns a new Keras optimizer.
    """

    name: str
    label: str
    learning_rate: float
    make: Callable

    def optimizer(self, steps):
        """Makes the optimizer for a run.

        Args:
            steps: Number of training steps of the run.

        Returns:
            A new Keras optimizer, on the schedule of `warmup_and_decay`.
        """
        return self.make(learning_rate=warmup_and_decay(self.learning_rate, steps))


def warmup_and_decay(peak, steps):
    """Makes the schedule that every run follows.

    Args:
        peak: The highest learning rate.
        steps: Number of training steps of the run.

    Returns:
        A `keras.optimizers.schedules.CosineDecay`: linear from 0 to `peak` over the
        first tenth of the steps, then half a cosine down to 0 at the end.
    """
    warmup = max(1, round(WARMUP_SHARE * steps))
    return keras.optimizers.schedules.CosineDecay(
        initial_learning_rate=0.0,
        warmup_target=peak,
        warmup_steps=warmup,
        decay_steps=max(1, steps - warmup),
    )


def _sgd(learning_rate):
    # Plain SGD is best at a rate at which a run of fewer steps, hence a shorter
    # warm-up, diverges. The clip prevents that, holds nothing, and left the
    # perplexity where it was.
    return keras.optimizers.SGD(learning_rate, global_clipnorm=1.0)


def _extreme_tensoring(level):
    def make(learning_rate):
        return et_optimizer.ExtremeTensoring(learning_rate=learning_rate, level=level)

    return make


def _with_beta_2(make, **arguments):
    """An optimizer whose second moments are averages over about 100 steps."""
    return functools.partial(make, beta_2=0.99, **arguments)


# What `make demo` runs, in the order of the memory they hold.
DEMO = (
    "sgd",
    "et_inf",
    "et3",
    "et2",
    "et1",
    "sm3",
    "adafactor",
    "keras_adafactor",
    "adam",
)
CONTENDERS = {
    contender.name: contender
    for contender in (
        Contender("sgd", "SGD", 1.0, _sgd),
        Contender("et_inf", "ET∞", 1.5e-3, _extreme_tensoring("inf")),
        Contender("et3", "ET3", 1.5e-3, _extreme_tensoring(3)),
        Contender("et2", "ET2", 2e-3, _extreme_tensoring(2)),
        Contender("et1", "ET1", 3e-3, _extreme_tensoring(1)),
        Contender("sm3", "SM3", 0.12, et_optimizer.SM3),
        Contender("adafactor", "Adafactor", 6e-2, et_optimizer.Adafactor),
        Contender(
            "keras_adafactor", "Keras Adafactor", 3e-2, keras.optimizers.Adafactor
        ),
        Contender("adam", "Adam", 3e-3, keras.optimizers.Adam),
        Contender(
            "adam_99", "Adam, β₂ 0.99", 3e-3, _with_beta_2(keras.optimizers.Adam)
        ),
        Contender(
            "et1_momentum",
            "ET1, momentum",
            3e-3,
            _with_beta_2(et_optimizer.ExtremeTensoring, level=1, beta_1=0.9),
        ),
        Contender(
            "sketchy2",
            "Sketchy, level 2",
            1.5e-3,
            _with_beta_2(et_optimizer.SketchyShampoo, rank=32, level=2),
        ),
        Contender(
            "sketchy",
            "Sketchy",
            3e-3,
            _with_beta_2(et_optimizer.SketchyShampoo, rank=32),
        ),
        Contender(
            "sketchy_momentum",
            "Sketchy, momentum",
            3e-3,
            _with_beta_2(et_optimizer.SketchyShampoo, rank=32, beta_1=0.9),
        ),
        Contender("shampoo", "Shampoo", 3e-3, _with_beta_2(et_optimizer.Shampoo)),
        Contender(
            "shampoo_momentum",
            "Shampoo, momentum",
            6e-3,
            _with_beta_2(et_optimizer.Shampoo, beta_1=0.9),
        ),
    )
}
