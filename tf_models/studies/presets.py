"""The preset studies, by name and size.

Each preset has a `laptop` size, which needs no network and takes 3 to 30 minutes on two
cores for one seed with the search for learning rates, and the `paper` size of Chen et
al. (2020, arXiv:1902.04620), which needs a GPU and downloads data.
"""

import dataclasses

from tf_models.studies.contenders import CONTENDERS, DEMO, Contender
from tf_models.studies.study import Entry, Study
from tf_models.studies.tasks import Convex, Images, Language

SIZES = ("laptop", "paper")
# Every contender tries its own learning rate, half of it and twice it.
AROUND = (0.5, 1.0, 2.0)
# Steps that are small beside half a unit in the last place, and those that train best.
SMALL_AND_USUAL = (0.0625, 0.25, 1.0)
# The scale of Adam, RMSprop and Subset-Norm with means.
LANGUAGE_RATE = 4e-3
# That of extreme tensoring; `rate_scale` multiplies it by 8 for embeddings and logits.
TENSORING_RATE = LANGUAGE_RATE / 2
# The middle of each search, ordered by memory at the laptop size. Other contenders have
# their own learning rate there.
LANGUAGE_RATES = {
    "sgd": 1.0,
    "et_inf": TENSORING_RATE,
    "et3": TENSORING_RATE,
    "et2": TENSORING_RATE,
    "et2_tokens": TENSORING_RATE,
    "et1": TENSORING_RATE,
    "et1_geometric": LANGUAGE_RATE,
    "sm3": 6e-2,
    "et_4": TENSORING_RATE,
    "adafactor": 6e-2,
    "snsm": LANGUAGE_RATE,
    "et": TENSORING_RATE,
    "et_16_int8": TENSORING_RATE,
    "et_16": TENSORING_RATE,
    "et1_momentum": TENSORING_RATE,
    "adagrad": 3e-2,
    "rmsprop": LANGUAGE_RATE,
    "adam": LANGUAGE_RATE,
    "adam_99": LANGUAGE_RATE,
    "adam_95": LANGUAGE_RATE,
    "adam_clip": LANGUAGE_RATE,
}
# The same for optimizers that `language` does not run by default.
OTHER_LANGUAGE_RATES = {"keras_adafactor": 6e-2}
# The optimizers of the study `peers`: ours, Keras's and PyTorch's.
PEERS = (
    "et2_tokens",
    "et1",
    "et_int8",
    "et",
    "et_16",
    "et_one_rate",
    "muon_int3",
    "muon_int4",
    "sm3",
    "adafactor",
    "snsm",
    "sketchy_32",
    "sketchy_64",
    "sketchy_128",
    "shampoo_low_rank",
    "adam_99",
    "adamw",
    "lion",
    "keras_muon",
    "keras_adafactor",
    "schedule_free",
    *(one.name for one in CONTENDERS.values() if one.package),
)
# Optimizers that users ask for and that no package has.
NOT_PACKAGED = (
    "SCALE, SinkGD: no package has them",
    "SMMF: its authors' code is in no package",
)
# A larger model takes smaller steps.
LARGE_LANGUAGE_RATE = 2e-3
LARGE_LANGUAGE = ("et", "adam_99")
IMAGE_RATES = {
    "sgd_momentum": 0.03,
    "et3": 1e-2,
    "et2": 1e-2,
    "et1": 1e-2,
    "et": 1e-2,
    "sm3": 0.1,
    "adagrad": 3e-2,
    "adam": 3e-3,
}
WEIGHT_DECAY = 5e-4
# A factor of √10 apart, and equal for all, because nothing is known beforehand.
CONVEX_RATES = (0.01, 0.0316, 0.1, 0.316, 1.0, 3.16)

LAPTOP_TEXT = Language(subwords=2048, sequence_length=64, batch_size=16)
# As in the paper: windows of 256 tokens, 4096 tokens per batch.
PAPER_TEXT = Language(
    text="lm1b", subwords=32_768, model="base", sequence_length=256, batch_size=16
)
LAPTOP_STEPS = {"steps": 600, "evaluations": 3}
PAPER_STEPS = {
    "steps": 500_000,
    "evaluations": 50,
    "schedule": "inverse_square_root",
    "warmup_steps": 10_000,
}


def demo(size):
    """Eight optimizers on bytes, at the learning rates of an earlier search."""
    del size  # The demo is always small.
    task = Language(sequence_length=96, batch_size=16)

    def entry_of(contender):
        return _entry(contender, task, around=(1.0,))

    return Study(
        title="A small Transformer on the standard library's bytes",
        entries=_entries(entry_of, DEMO),
        entry_of=entry_of,
        steps=500,
    )


def language(size):
    """Study (a): validation perplexity against the memory of the optimizer."""
    entry_of = language_entry(size)
    return Study(
        title="Memory and performance of a Transformer language model",
        entries=_entries(entry_of, LANGUAGE_RATES),
        entry_of=entry_of,
        **_language_length(size),
    )


def language_large(size):
    """Study (a) with a model several times as large."""
    del size  # It is between the two sizes.
    task = dataclasses.replace(LAPTOP_TEXT, model="small")

    def entry_of(contender):
        if contender.name in LANGUAGE_RATES:
            factor = LARGE_LANGUAGE_RATE / LANGUAGE_RATE
            rate = LANGUAGE_RATES[contender.name] * factor
            contender = dataclasses.replace(contender, learning_rate=rate)
        return _entry(contender, task)

    return Study(
        title="Adam and extreme tensoring on a model of 4 million weights",
        entries=_entries(entry_of, LARGE_LANGUAGE),
        entry_of=entry_of,
        **LAPTOP_STEPS,
    )


def bfloat16(size):
    """16-bit weights: float32, round to nearest, and stochastic rounding."""
    entry_of = language_entry(size)
    to_nearest = CONTENDERS["et"].with_arguments(stochastic_rounding=False)

    def entries():
        for name, label, contender, policy in (
            ("et", "ET, float32", CONTENDERS["et"], "float32"),
            ("et_nearest", "ET, bfloat16, to nearest", to_nearest, "bfloat16"),
            ("et_bfloat16", "ET, bfloat16, stochastic", CONTENDERS["et"], "bfloat16"),
            ("adam_99", "Adam, float32", CONTENDERS["adam_99"], "float32"),
            ("adam_bfloat16", "Adam, bfloat16", CONTENDERS["adam_99"], "bfloat16"),
        ):
            found = dataclasses.replace(entry_of(contender), name=name, label=label)
            rates = tuple(
                LANGUAGE_RATES[contender.name] * factor for factor in SMALL_AND_USUAL
            )
            yield dataclasses.replace(found, rates=rates, dtype_policy=policy)

    return Study(
        title="Weights in bfloat16",
        entries=tuple(entries()),
        entry_of=entry_of,
        memory="model and optimizer",
        **_language_length(size),
    )


def peers(size):
    """Perplexity against optimizer memory: this library, Keras's and PyTorch's own."""
    del size  # Always the laptop size.
    entry_of = language_entry("laptop")
    missing = {name: CONTENDERS[name].why_unavailable() for name in PEERS}
    return Study(
        title="This library and its peers on a Transformer language model",
        entries=_entries(entry_of, [name for name in PEERS if not missing[name]]),
        entry_of=entry_of,
        left_out=(
            *(f"{CONTENDERS[n].label}: {why}" for n, why in missing.items() if why),
            *NOT_PACKAGED,
        ),
        **LAPTOP_STEPS,
    )


def depth(size):
    """Study (b): the saved memory, spent on a model twice as deep."""
    entry_of = language_entry(size)
    model = "tiny_4" if size == "laptop" else "base_12"
    deeper = [
        dataclasses.replace(
            one,
            name=f"{one.name}_deep",
            label=f"{one.label}, twice as deep",
            task=dataclasses.replace(one.task, model=model),
        )
        for one in _entries(entry_of, ("et3", "et2", "et1", "adagrad"))
    ]
    return Study(
        title="Twice the depth in the memory that AdaGrad takes for less",
        entries=(*_entries(entry_of, ("adagrad", "adam_99")), *deeper),
        entry_of=entry_of,
        memory="model and optimizer",
        **_language_length(size),
    )


def convex(size):
    """Study (c): how well each level minimizes an ill-conditioned convex objective."""
    del size  # The paper's fits a laptop.

    def algorithm_1(name, label, arguments, combination="geometric"):
        """Algorithm 1 as published, except that slices have means instead of sums."""
        return Contender(
            name,
            label,
            CONVEX_RATES[0],
            f"ExtremeTensoring({arguments}, beta_1=0.0, beta_2=None, "
            f"combination={combination!r}, update_bound=None, rate_scale=None)",
        )

    def entry_of(contender):
        return Entry(
            contender.name,
            contender.label,
            contender.optimizer,
            CONVEX_RATES,
            Convex(),
            schedule=contender.schedule,
        )

    contenders = (
        Contender("sgd_unclipped", "SGD", CONVEX_RATES[0], "SGD"),
        algorithm_1("et_inf_sums", "ET∞", "level='inf'"),
        algorithm_1("et3_sums", "ET3", "tensor_index={'kernel': (8, 8, 8, 10)}"),
        algorithm_1("et2_sums", "ET2", "tensor_index={'kernel': (16, 32, 10)}"),
        algorithm_1("et1_sums", "ET1", "level=1"),
        algorithm_1("et1_rank_one_sums", "ET1, rank-one", "level=1", "rank_one"),
        CONTENDERS["adagrad"],
    )
    return Study(
        title="Expressivity: logistic regression, condition number 10⁴",
        entries=tuple(map(entry_of, contenders)),
        entry_of=entry_of,
        steps=500,
        evaluations=10,
        schedule="constant",
    )


def images(size):
    """Study (d): ResNet-18 on images."""
    task = Images(images="cifar10", width=64)
    length = {"steps": 70_400, "evaluations": 100}  # 200 epochs of 45 000 images.
    if size == "laptop":
        task = Images(size=32, width=8)
        length = {"steps": 100, "evaluations": 4}

    def entry_of(contender):
        rate = IMAGE_RATES.get(contender.name, contender.learning_rate)
        contender = contender.with_arguments(weight_decay=WEIGHT_DECAY)
        return _entry(dataclasses.replace(contender, learning_rate=rate), task)

    return Study(
        title="ResNet-18 on images",
        entries=_entries(entry_of, IMAGE_RATES),
        entry_of=entry_of,
        **length,
    )


def quality(size):
    """Study (e): the trace ratio of every level during training."""
    search = language_entry(size)

    def entry_of(contender):
        one = search(contender)
        return dataclasses.replace(one, rates=one.rates[1:2])  # The middle of three.

    return Study(
        title="The factor by which levels fall behind AdaGrad: √(Tr H / Tr Ĥ)",
        entries=_entries(entry_of, ("et2", "adam_99")),
        entry_of=entry_of,
        quality_levels=(1, 2, 3, "inf"),
        **_language_length(size),
    )


PRESETS = {
    preset.__name__: preset
    for preset in (
        demo,
        language,
        language_large,
        peers,
        bfloat16,
        depth,
        convex,
        images,
        quality,
    )
}


def _entries(entry_of, names):
    return tuple(entry_of(CONTENDERS[name]) for name in names)


def _language_length(size):
    return LAPTOP_STEPS if size == "laptop" else PAPER_STEPS


def language_entry(size):
    """Makes the `entry_of` of the language studies.

    Args:
        size: One of `SIZES`.

    Returns:
        A function from a `Contender` to an `Entry` with three learning rates.
    """
    task = LAPTOP_TEXT if size == "laptop" else PAPER_TEXT

    def entry_of(contender):
        rates = LANGUAGE_RATES | OTHER_LANGUAGE_RATES
        rate = rates.get(contender.name, contender.learning_rate)
        return _entry(dataclasses.replace(contender, learning_rate=rate), task)

    return entry_of


def _entry(contender, task, around=AROUND):
    """The entry of a contender on a task, with learning rates around its own."""
    # Rounding makes 3e-3 · 0.5 exactly 0.0015.
    rates = tuple(float(f"{contender.learning_rate * factor:.6g}") for factor in around)
    return Entry(
        contender.name,
        contender.label,
        contender.optimizer,
        rates,
        task,
        schedule=contender.schedule,
    )
