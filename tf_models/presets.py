"""The studies, by name and size: what each compares, on what, for how long.

Each preset has a `laptop` size, of which one seed with the search for rates takes
some 5 to 40 minutes on two cores and needs no network, and the `paper` size of Chen et
al. (2020, arXiv:1902.04620), for a GPU and downloaded data.
"""

import dataclasses

from tf_models.contenders import CONTENDERS, DEMO
from tf_models.study import Entry, Study
from tf_models.tasks import Convex, Images, Language

SIZES = ("laptop", "paper")
# Every contender of a study tries its own rate, half of it and twice it.
AROUND = (0.5, 1.0, 2.0)
# The middle of each search. A subword vocabulary has rare tokens, and is best at about
# twice the rates of bytes.
LANGUAGE_RATES = {
    "sgd": 1.0,
    "et_inf": 3e-3,
    "et3": 3e-3,
    "et2": 4e-3,
    "et1": 4e-3,
    "sm3": 0.12,
    "adafactor": 6e-2,
    "rmsprop": 4e-3,
    "adagrad": 3e-2,
    "et2_momentum": 4e-3,
    "et1_momentum": 4e-3,
    "adam_99": 4e-3,
}
IMAGE_RATES = {
    "sgd_momentum": 0.03,
    "et3": 1e-2,
    "et2": 1e-2,
    "et1": 1e-2,
    "sm3": 0.1,
    "adagrad": 3e-2,
    "adam": 3e-3,
}
WEIGHT_DECAY = 5e-4
# A factor of √10 apart, the same for all: nothing says beforehand what is best here.
CONVEX_RATES = (0.01, 0.0316, 0.1, 0.316, 1.0, 3.16)

LAPTOP_TEXT = Language(subwords=2048, sequence_length=64, batch_size=16)
# The paper's: windows of 256 tokens, 4096 tokens a batch.
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
    """Nine optimizers on bytes, each at the best rate of an earlier search."""
    del size  # It is small on purpose.
    task = Language(sequence_length=96, batch_size=16)
    return Study(
        title="A small Transformer on the standard library's bytes",
        entries=tuple(entry(CONTENDERS[name], task, (1.0,)) for name in DEMO),
        steps=1200,
    )


def language(size):
    """Study (a): validation perplexity against the memory of the optimizer."""
    task = LAPTOP_TEXT if size == "laptop" else PAPER_TEXT
    return Study(
        title="Memory and performance of a Transformer language model",
        entries=tuple(entry(_for_language(name), task) for name in LANGUAGE_RATES),
        **(LAPTOP_STEPS if size == "laptop" else PAPER_STEPS),
    )


def depth(size):
    """Study (b): the memory saved, spent on a model twice as deep."""
    task = LAPTOP_TEXT if size == "laptop" else PAPER_TEXT
    deep = "tiny_4" if size == "laptop" else "base_12"
    shallow = [entry(_for_language(name), task) for name in ("adagrad", "adam_99")]
    deeper = [
        entry(
            dataclasses.replace(
                _for_language(name),
                name=f"{name}_deep",
                label=f"{CONTENDERS[name].label}, twice as deep",
            ),
            dataclasses.replace(task, model=deep),
        )
        for name in ("et3", "et2", "et1", "adagrad")
    ]
    return Study(
        title="Twice the depth in the memory that AdaGrad takes for less",
        entries=(*shallow, *deeper),
        memory="model and optimizer",
        **(LAPTOP_STEPS if size == "laptop" else PAPER_STEPS),
    )


def convex(size):
    """Study (c): how far each level brings an ill-conditioned convex objective."""
    del size  # The paper's is a laptop's.
    task = Convex()
    accumulating = "ExtremeTensoring(beta_2=None, {})".format
    indices = {
        "et3": accumulating("tensor_index={'kernel': (8, 8, 8, 10)}"),
        "et2": accumulating("tensor_index={'kernel': (16, 32, 10)}"),
        "et1": accumulating("level=1"),
        "et_inf": accumulating("level='inf'"),
        "sgd": "SGD",
        "adagrad": CONTENDERS["adagrad"].optimizer,
    }
    names = ("sgd", "et_inf", "et3", "et2", "et1", "adagrad")
    return Study(
        title="Expressivity: logistic regression, condition number 10⁴",
        entries=tuple(
            Entry(name, CONTENDERS[name].label, indices[name], CONVEX_RATES, task)
            for name in names
        ),
        steps=500,
        evaluations=10,
        schedule="constant",
    )


def images(size):
    """Study (d): ResNet-18 on images."""
    laptop = size == "laptop"
    task = Images(size=32, width=8) if laptop else Images(images="cifar10", width=64)
    length = {"steps": 100, "evaluations": 4}
    if not laptop:
        length = {"steps": 70_400, "evaluations": 100}  # 200 epochs of 45 000 images.
    return Study(
        title="ResNet-18 on images",
        entries=tuple(
            entry(
                dataclasses.replace(
                    CONTENDERS[name], learning_rate=IMAGE_RATES[name]
                ).with_arguments(weight_decay=WEIGHT_DECAY),
                task,
            )
            for name in IMAGE_RATES
        ),
        **length,
    )


def quality(size):
    """Study (e): the trace ratio of every level, measured in training."""
    study = language(size)
    names = ("et2", "adam_99")
    return dataclasses.replace(
        study,
        title="The factor that levels lose to AdaGrad: √(Tr H / Tr Ĥ)",
        entries=tuple(
            dataclasses.replace(one, rates=(LANGUAGE_RATES[one.name],))
            for one in study.entries
            if one.name in names
        ),
        quality_levels=(1, 2, 3, "inf"),
    )


PRESETS = {
    preset.__name__: preset
    for preset in (demo, language, depth, convex, images, quality)
}


def _for_language(name):
    contender = dataclasses.replace(
        CONTENDERS[name], learning_rate=LANGUAGE_RATES[name]
    )
    if name.startswith("et"):
        # Rare subwords give single large updates; the results say what this is worth.
        return contender.with_arguments(clip_threshold=1.0)
    return contender


def entry(contender, task, around=AROUND):
    """A contender on a task, with the rates around its own.

    Args:
        contender: A `Contender`.
        task: A task of `tf_models.tasks`.
        around: What its learning rate is multiplied with.

    Returns:
        An `Entry`.
    """
    # Rounded, so that 3e-3 · 0.5 is written 0.0015 wherever it is.
    rates = tuple(float(f"{contender.learning_rate * factor:.6g}") for factor in around)
    return Entry(contender.name, contender.label, contender.optimizer, rates, task)
