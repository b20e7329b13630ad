"""The optimizers that studies compare, each with a learning rate to search around.

A name stands for the same optimizer in every study. "ET" is `ExtremeTensoring()` with
its defaults; ET1, ET2, ET3 and ET∞ are its levels without momentum. "Geometric" is how
version 0.1 combined modes, which is Algorithm 1 of the paper; all others are rank-one.
Arguments whose defaults may change are spelled out, so that a name also stands for the
same optimizer in every version.

The learning rates are for the demo. Those of SGD, SM3, Adafactor, Keras's Adafactor and
Adam are the best of a short search over three or four learning rates, a factor of 1.5
to 3 apart, with one seed. Those of the matrix preconditioners are the best of 1.5e-3,
3e-3 and 6e-3 (benchmarks/RESULTS.md lists the runs). Those of extreme tensoring, except
for the geometric one, are its default, which `rate_scale` multiplies by 8 for
embeddings and logits; they were not searched for on the demo's data. Those of PyTorch's
optimizers and the ones beside them come from the study `peers`. The others are guesses
from similar optimizers. Rounding alone can move a perplexity by 2%, so the demo does
not rank optimizers whose perplexities are close. Studies search again, around these
learning rates or their own.
"""

import dataclasses
import importlib.util

import keras

from tf_models.studies import optimizers


@dataclasses.dataclass(frozen=True)
class Contender:
    """One optimizer of a comparison.

    Attributes:
        name: Its name for `--optimizers`.
        label: Its name in tables and plots.
        learning_rate: The peak of its schedule, or the middle of the search for it.
        optimizer: The text of `tf_models.studies.optimizers` that makes it.
        schedule: The learning rate schedule it needs; `None` for the study's.
        package: The Python package it needs besides this library and Keras, on the
            PyTorch backend; `None` for none.
    """

    name: str
    label: str
    learning_rate: float
    optimizer: str
    schedule: str | None = None
    package: str | None = None

    def why_unavailable(self):
        """The reason why it cannot run here, or `None` if it can."""
        if self.package is None:
            return None
        if keras.backend.backend() != "torch":
            return "it runs on PyTorch; set KERAS_BACKEND=torch"
        if not importlib.util.find_spec(self.package):
            return f"there is no package {self.package} (pip install '.[peers]')"
        return None

    def with_arguments(self, **arguments):
        """The same contender with further arguments of its optimizer."""
        text = optimizers.with_arguments(self.optimizer, arguments)
        return dataclasses.replace(self, optimizer=text)


# The optimizers of `make demo`, ordered by memory.
DEMO = (
    "sgd",
    "et2",
    "et1",
    "sm3",
    "et",
    "adafactor",
    "keras_adafactor",
    "adam",
)
# Fine where tokens are rare or frequent, and coarse elsewhere.
TOKENS_AT_LEVEL_1 = "level={'embeddings|logits': 1, '.*': 2}"
# The momentum that the matrix preconditioners were measured with in the demo, and in
# the study `peers`.
FULL_MOMENTUM = "beta_1=0.9, momentum_rank=None, momentum_dtype='float32'"
LOW_RANK_MOMENTUM = "beta_1=0.9, momentum_rank='auto', momentum_dtype='bfloat16'"


def _tensoring(arguments):
    return f"ExtremeTensoring({arguments})"


def _without_momentum(arguments, rate_scale="'auto'"):
    own = f"beta_1=0.0, beta_2=0.99, rate_scale={rate_scale}"
    return _tensoring(f"{arguments}, {own}")


def _geometric(arguments):
    """The default of version 0.1, which had no bound of the update.

    It is clipped, because rare subwords give single large updates.
    """
    own = "combination='geometric', update_bound=None"
    text = _without_momentum(f"{arguments}, {own}", rate_scale=None)
    return optimizers.with_arguments(text, {"clip_threshold": 1.0})


# At the best learning rate of plain SGD, runs with fewer steps and hence a shorter
# warm-up diverge. Clipping prevents that, needs no state, and kept the perplexity.
_SGD = (
    Contender("sgd", "SGD", 1.0, "SGD(global_clipnorm=1.0)"),
    Contender("sgd_momentum", "SGD, momentum", 0.1, "SGD(momentum=0.9)"),
)
_WITH_MOMENTUM = (
    Contender("et", "ET", 2e-3, "ExtremeTensoring"),
    Contender("et_16", "ET, rank 16", 2e-3, _tensoring("momentum_rank=16")),
    Contender("et_4", "ET, rank 4", 2e-3, _tensoring("momentum_rank=4")),
    Contender("et_int8", "ET, int8", 2e-3, _tensoring("momentum_dtype='int8'")),
    Contender(
        "et_16_int8",
        "ET, rank 16, int8",
        2e-3,
        _tensoring("momentum_rank=16, momentum_dtype='int8'"),
    ),
    # The same learning rate for tokens as for everything else, as in all others.
    Contender("et_one_rate", "ET, one rate", 4e-3, _tensoring("rate_scale=None")),
    Contender("et_95", "ET, β₂ 0.95", 2e-3, _tensoring("beta_2=0.95")),
    Contender("et_99", "ET, β₂ 0.99", 2e-3, _tensoring("beta_2=0.99")),
    Contender(
        "et1_momentum", "ET1, full momentum", 2e-3, _tensoring("momentum_rank=None")
    ),
    Contender(
        "et2_momentum",
        "ET2, full momentum",
        2e-3,
        _tensoring("level=2, momentum_rank=None"),
    ),
    Contender(
        "et2_tokens_momentum",
        "ET2, tokens at 1, momentum",
        2e-3,
        _tensoring(TOKENS_AT_LEVEL_1),
    ),
)
_WITHOUT_MOMENTUM = (
    Contender("et_inf", "ET∞", 2e-3, _without_momentum("level='inf'")),
    Contender("et3", "ET3", 2e-3, _without_momentum("level=3")),
    Contender("et2", "ET2", 2e-3, _without_momentum("level=2")),
    Contender(
        "et2_tokens", "ET2, tokens at 1", 2e-3, _without_momentum(TOKENS_AT_LEVEL_1)
    ),
    Contender("et1", "ET1", 2e-3, _without_momentum("level=1")),
    Contender("et2_geometric", "ET2, geometric", 2e-3, _geometric("level=2")),
    Contender("et1_geometric", "ET1, geometric", 3e-3, _geometric("level=1")),
)
# The polar factor of a full momentum for hidden kernels, extreme tensoring elsewhere.
_POLAR = tuple(
    Contender(
        f"muon_{dtype}",
        f"Muon of this library, {dtype}",
        4e-3,
        f"Muon(momentum_dtype={dtype!r})",
    )
    for dtype in ("float32", "int4", "int3")
)
_OTHERS_OF_THE_LIBRARY = (
    Contender(
        "sm3",
        "SM3",
        0.08,
        "SM3(level=1, beta_2=None, momentum=0.0, update_bound=None)",
    ),
    Contender(
        "sm3_momentum",
        "SM3, momentum",
        0.08,
        "SM3(level=1, beta_2=None, momentum=0.9, momentum_rank='auto', "
        "momentum_dtype='bfloat16', update_bound=None)",
    ),
    Contender(
        "adafactor",
        "Adafactor",
        6e-2,
        "Adafactor(beta_1=0.0, clip_threshold=1.0, update_bound=None)",
    ),
    Contender(
        "adafactor_momentum",
        "Adafactor, momentum",
        6e-2,
        "Adafactor(beta_1=0.9, momentum_rank='auto', momentum_dtype='bfloat16', "
        "clip_threshold=1.0, update_bound=None)",
    ),
    # Subset-Norm with the momentum of its paper, and with that of this library.
    Contender(
        "snsm",
        "SNSM",
        3e-3,
        "SubsetNorm(beta_1=0.9, beta_2=0.99, momentum_of='gradient', momentum_rank=8, "
        "momentum_dtype='bfloat16', update_bound=None)",
    ),
    Contender(
        "subset_momentum",
        "Subset-Norm, momentum",
        3e-3,
        "SubsetNorm(beta_1=0.9, beta_2=0.99, momentum_of='update', momentum_rank=8, "
        "momentum_dtype='bfloat16', update_bound=3.0)",
    ),
    Contender(
        "sketchy2",
        "Sketchy, level 2",
        1.5e-3,
        "SketchyShampoo(rank=32, level=2, beta_1=0.0, beta_2=0.99)",
    ),
    Contender(
        "sketchy", "Sketchy", 3e-3, "SketchyShampoo(rank=32, beta_1=0.0, beta_2=0.99)"
    ),
    Contender(
        "sketchy_momentum",
        "Sketchy, momentum",
        3e-3,
        f"SketchyShampoo(rank=32, beta_2=0.99, {FULL_MOMENTUM})",
    ),
    Contender("shampoo", "Shampoo", 3e-3, "Shampoo(beta_1=0.0, beta_2=0.99)"),
    Contender(
        "shampoo_momentum",
        "Shampoo, momentum",
        6e-3,
        f"Shampoo(beta_2=0.99, {FULL_MOMENTUM})",
    ),
    *(
        Contender(
            f"sketchy_{rank}",
            f"Sketchy, rank {rank}",
            4e-3,
            f"SketchyShampoo(rank={rank}, beta_2=0.99, {LOW_RANK_MOMENTUM})",
        )
        for rank in (32, 64, 128)
    ),
    Contender(
        "shampoo_low_rank",
        "Shampoo, low-rank momentum",
        4e-3,
        f"Shampoo(beta_2=0.99, {LOW_RANK_MOMENTUM})",
    ),
)
_OF_KERAS = (
    Contender("keras_adafactor", "Keras Adafactor", 3e-2, "keras.Adafactor"),
    Contender("adam", "Adam", 3e-3, "Adam"),
    Contender("adam_99", "Adam, β₂ 0.99", 3e-3, "Adam(beta_2=0.99)"),
    Contender("adam_95", "Adam, β₂ 0.95", 3e-3, "Adam(beta_2=0.95)"),
    Contender(
        "adam_clip",
        "Adam, β₂ 0.99, clipped",
        3e-3,
        "Adam(beta_2=0.99, global_clipnorm=1.0)",
    ),
    # Adam with the learning rates that put this library ahead of it, and its bound.
    Contender(
        "adam_token_rates",
        "Adam, learning rates of ET",
        2e-3,
        "tokens.Adam(beta_2=0.99)",
    ),
    Contender(
        "adam_token_rates_bound",
        "Adam, learning rates and bound of ET",
        2e-3,
        "tokens.Adam(beta_2=0.99, update_bound=3.0)",
    ),
    Contender("adamw", "AdamW", 4e-3, "AdamW(beta_2=0.99)"),
    Contender("lion", "Lion", 5e-4, "Lion(beta_2=0.99)"),
    # It does not orthogonalize kernels of three axes: Adam trains those of attention.
    Contender(
        "keras_muon",
        "Keras Muon",
        3e-3,
        "keras.Muon(exclude_layers=['logits'], adam_beta_2=0.99)",
    ),
    # It averages the weights instead of lowering the learning rate.
    Contender(
        "schedule_free",
        "Schedule-free AdamW",
        5e-3,
        "ScheduleFreeAdamW(warmup_steps=60)",
        schedule="constant",
    ),
    Contender("rmsprop", "RMSprop", 2e-3, "RMSprop(rho=0.99)"),
    Contender(
        "adagrad",
        "AdaGrad",
        3e-2,
        "Adagrad(initial_accumulator_value=0.0, epsilon=1e-8)",
    ),
)
_OF_TORCH = tuple(
    Contender(name, label, rate, f"torch.{optimizer}", package=package)
    for name, label, rate, optimizer, package in (
        # A check that neither the backend nor the layout changes the results.
        ("torch_adam", "PyTorch's Adam", 4e-3, "AdamW(beta_2=0.99)", "torch"),
        # Adam with the learning rates that put this library ahead of it.
        (
            "adam_tokens",
            "PyTorch's Adam, rates of ours",
            2e-3,
            "AdamWOfTokens(beta_2=0.99)",
            "torch",
        ),
        ("adam_8bit", "8-bit Adam", 4e-3, "Adam8bit(beta_2=0.99)", "bitsandbytes"),
        ("adam_4bit", "4-bit Adam", 4e-3, "Adam4bit(beta_2=0.99)", "torchao"),
        ("adam_mini", "Adam-mini", 4e-3, "AdamMini(beta_2=0.99)", "adam_mini"),
        ("galore", "GaLore", 2e-2, "GaLore(beta_2=0.99)", "galore_torch"),
        ("fira", "Fira", 1e-2, "Fira(beta_2=0.99)", "pytorch_optimizer"),
        ("apollo", "APOLLO", 1e-2, "Apollo(beta_2=0.99)", "apollo_torch"),
        (
            "apollo_mini",
            "APOLLO-Mini",
            1e-2,
            "ApolloMini(beta_2=0.99)",
            "apollo_torch",
        ),
        ("muon", "Muon", 8e-3, "Muon(beta_2=0.99)", "torch"),
        ("came", "CAME", 5e-4, "Came", "came_pytorch"),
        ("soap", "SOAP", 6e-3, "Soap(beta_2=0.99)", "pytorch_optimizer"),
        ("racs", "RACS", 5e-3, "Racs", "pytorch_optimizer"),
    )
)
CONTENDERS = {
    contender.name: contender
    for contender in (
        *_SGD,
        *_WITHOUT_MOMENTUM,
        *_WITH_MOMENTUM,
        *_POLAR,
        *_OTHERS_OF_THE_LIBRARY,
        *_OF_KERAS,
        *_OF_TORCH,
    )
}
