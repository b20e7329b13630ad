"""Who gives the best model for a byte of optimizer memory: this library and its peers.

One language model, one text, the same first weights and batches, all on PyTorch: the
optimizers of Keras as they are, those of PyTorch by their authors' packages (see
`torch_peers`), and ours. Every one of them tries three rates, a factor of 2 apart, on
the first seed, and its best rate on the others; β₂ is 0.99 where a method has one,
which suits 600 steps, and all else as published. What the optimizers hold is counted in
bytes, from their real state.

    pip install '.[torch,studies,peers]'
    python -m benchmarks.peers --seeds=0,1,2
    python -m benchmarks.peers --optimizers=et,adam,muon --steps=3000

It takes the flags of `tf_models.compare`, goes on where it was stopped, and leaves a
journal, a table, a CSV file and the pictures, by default in results/peers.
"""

import dataclasses
import importlib.util
import os
import sys

# Before Keras is imported: the peers need it, and all run on one backend.
os.environ["KERAS_BACKEND"] = "torch"

from absl import app, flags
from rich.console import Console

from benchmarks import torch_peers
from tf_models import compare
from tf_models.studies import optimizers, presets
from tf_models.studies.contenders import CONTENDERS, TOKENS_AT_LEVEL_1, Contender
from tf_models.studies.study import Study

# Moments of 0.99 see the last hundred steps of six hundred.
BETA_2 = "beta_2=0.99"
# Momentum in a subspace, of which the matrix preconditioners have a full one elsewhere.
SUBSPACE = "beta_1=0.9, momentum_rank='auto', momentum_dtype='bfloat16'"


def _ours(name, label, rate, arguments="", optimizer="ExtremeTensoring"):
    return Contender(name, label, rate, f"{optimizer}({arguments})")


def _theirs(name, label, rate, optimizer, package):
    """One of PyTorch's, and the package that it is from."""
    return Contender(name, label, rate, f"torch.{optimizer}"), package


OURS = (
    *(
        _ours(name, label, 2e-3, arguments)
        for name, label, arguments in (
            (
                "et2_tokens",
                "ET2, tokens at 1, no momentum",
                f"{TOKENS_AT_LEVEL_1}, beta_1=0.0, {BETA_2}",
            ),
            ("et1", "ET1, no momentum", f"beta_1=0.0, {BETA_2}"),
            ("et_int8", "ET, int8", "momentum_dtype='int8'"),
            ("et", "ET", ""),
            ("et_16", "ET, rank 16", "momentum_rank=16"),
        )
    ),
    # One rate for tokens and all else, as all others have it.
    _ours("et_one_rate", "ET, one rate", 4e-3, "rate_scale=None"),
    CONTENDERS["sm3"],
    _ours("adafactor", "Adafactor of this library", 6e-2, "", "Adafactor"),
    CONTENDERS["snsm"],
    *(
        _ours(
            f"sketchy_{rank}",
            f"Sketchy, rank {rank}",
            4e-3,
            f"rank={rank}, {BETA_2}, {SUBSPACE}",
            "SketchyShampoo",
        )
        for rank in (32, 64, 128)
    ),
    _ours("shampoo", "Shampoo", 4e-3, f"{BETA_2}, {SUBSPACE}", "Shampoo"),
)
OF_KERAS = (
    Contender("adam", "Adam", 4e-3, f"Adam({BETA_2})"),
    Contender("adamw", "AdamW", 4e-3, f"AdamW({BETA_2})"),
    Contender("lion", "Lion", 5e-4, f"Lion({BETA_2})"),
    # It orthogonalizes no kernel of three axes: those of attention are left to Adam.
    Contender(
        "keras_muon",
        "Keras Muon",
        3e-3,
        f"Muon(exclude_layers=['logits'], adam_{BETA_2})",
    ),
    Contender("keras_adafactor", "Keras Adafactor", 6e-2, "keras.Adafactor"),
    Contender(
        "schedule_free",
        "Schedule-free AdamW",
        5e-3,
        "ScheduleFreeAdamW(warmup_steps=60)",
    ),
)
OF_TORCH = (
    # The check that neither backends nor layouts are what is compared.
    _theirs("torch_adam", "PyTorch's Adam", 4e-3, f"AdamW({BETA_2})", "torch"),
    # Adam with what lets this library ahead of it, as a sceptic would ask for.
    _theirs(
        "adam_tokens",
        "PyTorch's Adam, rates of ours",
        2e-3,
        f"AdamWOfTokens({BETA_2})",
        "torch",
    ),
    _theirs("adam_8bit", "8-bit Adam", 4e-3, f"Adam8bit({BETA_2})", "bitsandbytes"),
    _theirs("adam_4bit", "4-bit Adam", 4e-3, f"Adam4bit({BETA_2})", "torchao"),
    _theirs("adam_mini", "Adam-mini", 4e-3, f"AdamMini({BETA_2})", "adam_mini"),
    _theirs("galore", "GaLore", 2e-2, f"GaLore({BETA_2})", "galore_torch"),
    _theirs("fira", "Fira", 1e-2, f"Fira({BETA_2})", "pytorch_optimizer"),
    _theirs("apollo", "APOLLO", 1e-2, f"Apollo({BETA_2})", "apollo_torch"),
    _theirs(
        "apollo_mini", "APOLLO-Mini", 1e-2, f"ApolloMini({BETA_2})", "apollo_torch"
    ),
    _theirs("muon", "Muon", 8e-3, f"Muon({BETA_2})", "torch"),
    _theirs("came", "CAME", 5e-4, "Came", "came_pytorch"),
    _theirs("soap", "SOAP", 6e-3, f"Soap({BETA_2})", "pytorch_optimizer"),
    _theirs("racs", "RACS", 5e-3, "Racs", "pytorch_optimizer"),
)
# Averages its weights instead of lowering its rate.
SCHEDULES = {"schedule_free": "constant"}
# Asked for by people who compare, and not in any package.
NOT_RUN = {
    "SCALE, SinkGD": "no package of their authors' or of others has them",
    "SMMF": "its authors' code is in no package",
}


def peers(size):
    """Perplexity against bytes held: this library, Keras's optimizers and PyTorch's."""
    del size  # The laptop's.
    language_entry = presets.language_entry("laptop")

    def entry_of(contender):
        entry = language_entry(contender)
        return dataclasses.replace(entry, schedule=SCHEDULES.get(contender.name))

    return Study(
        title="This library and its peers on a Transformer language model",
        entries=tuple(map(entry_of, (*OURS, *OF_KERAS, *installed()[0]))),
        entry_of=entry_of,
        **presets.LAPTOP_STEPS,
    )


def installed():
    """The contenders of PyTorch whose packages are there, and those that are not.

    Returns:
        A tuple of `Contender`s, and a dictionary from labels to what is missing.
    """
    found, missing = [], dict(NOT_RUN)
    for contender, package in OF_TORCH:
        if importlib.util.find_spec(package):
            found.append(contender)
        else:
            missing[contender.label] = (
                f"there is no package {package} (pip install '.[peers]')"
            )
    return tuple(found), missing


def main(argv):
    """Runs the study the flags describe; see `tf_models.compare.main`."""
    for label, reason in installed()[1].items():
        Console().print(f"Not run: {label}: {reason}.")
    return compare.main(argv)


if __name__ == "__main__":
    optimizers.add_module("torch.", torch_peers)
    presets.PRESETS["peers"] = peers
    compare.define_flags()
    flags.FLAGS.set_default("preset", "peers")
    sys.exit(app.run(main))
