"""The optimizers that studies compare, each with a learning rate to search around.

The rates of `DEMO` are the best of a short search, three or four rates a factor of 1.5
to 3 apart, on the demo with one seed; those of the matrix preconditioners of three,
1.5e-3, 3e-3 and 6e-3 (RESULTS.md of the benchmarks says which runs were made). The
others are a beginning, from neighbours of theirs. Rounding alone can move a perplexity
by 2%, so none of this ranks optimizers whose perplexities are close. Studies search
anew, around these rates or their own.
"""

import dataclasses

from tf_models import optimizers


@dataclasses.dataclass(frozen=True)
class Contender:
    """One optimizer of a comparison.

    Attributes:
        name: What `--optimizers` calls it.
        label: What tables and plots call it.
        learning_rate: The peak of its schedule, or the middle of a search for it.
        optimizer: The text of `tf_models.optimizers` that makes it.
    """

    name: str
    label: str
    learning_rate: float
    optimizer: str

    def with_arguments(self, **arguments):
        """The same contender, its optimizer with more arguments."""
        text = optimizers.with_arguments(self.optimizer, arguments)
        return dataclasses.replace(self, optimizer=text)


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
        # Plain SGD is best at a rate at which a run of fewer steps, hence a shorter
        # warm-up, diverges. The clip prevents that, holds nothing, and left the
        # perplexity where it was.
        Contender("sgd", "SGD", 1.0, "SGD(global_clipnorm=1.0)"),
        Contender("et_inf", "ET∞", 1.5e-3, "ExtremeTensoring(level='inf')"),
        Contender("et3", "ET3", 1.5e-3, "ExtremeTensoring(level=3)"),
        Contender("et2", "ET2", 2e-3, "ExtremeTensoring(level=2)"),
        Contender("et1", "ET1", 3e-3, "ExtremeTensoring(level=1)"),
        Contender("sm3", "SM3", 0.12, "SM3"),
        Contender("adafactor", "Adafactor", 6e-2, "Adafactor"),
        Contender("keras_adafactor", "Keras Adafactor", 3e-2, "keras.Adafactor"),
        Contender("adam", "Adam", 3e-3, "Adam"),
        Contender("adam_99", "Adam, β₂ 0.99", 3e-3, "Adam(beta_2=0.99)"),
        Contender("rmsprop", "RMSprop", 2e-3, "RMSprop(rho=0.99)"),
        Contender(
            "adagrad",
            "AdaGrad",
            3e-2,
            "Adagrad(initial_accumulator_value=0.0, epsilon=1e-8)",
        ),
        Contender(
            "et1_momentum",
            "ET1, momentum",
            3e-3,
            "ExtremeTensoring(level=1, beta_1=0.9)",
        ),
        Contender(
            "et2_momentum",
            "ET2, momentum",
            3e-3,
            "ExtremeTensoring(level=2, beta_1=0.9)",
        ),
        Contender("sgd_momentum", "SGD, momentum", 0.1, "SGD(momentum=0.9)"),
        Contender(
            "sketchy2",
            "Sketchy, level 2",
            1.5e-3,
            "SketchyShampoo(rank=32, level=2, beta_2=0.99)",
        ),
        Contender("sketchy", "Sketchy", 3e-3, "SketchyShampoo(rank=32, beta_2=0.99)"),
        Contender(
            "sketchy_momentum",
            "Sketchy, momentum",
            3e-3,
            "SketchyShampoo(rank=32, beta_1=0.9, beta_2=0.99)",
        ),
        Contender("shampoo", "Shampoo", 3e-3, "Shampoo(beta_2=0.99)"),
        Contender(
            "shampoo_momentum",
            "Shampoo, momentum",
            6e-3,
            "Shampoo(beta_1=0.9, beta_2=0.99)",
        ),
    )
}
