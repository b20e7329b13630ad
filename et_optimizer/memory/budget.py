"""The best arguments of `ExtremeTensoring` within a budget of bytes."""

import fractions
import math
import re
from collections.abc import Mapping, Sequence
from typing import Any

from et_optimizer import checks
from et_optimizer.memory.report import bytes_of
from et_optimizer.memory.shapes import VariableShape
from et_optimizer.momenta.subspace import AUTO, auto_rank
from et_optimizer.optimizers.extreme_tensoring import ExtremeTensoring
from et_optimizer.types import MomentumRank
from et_optimizer.views.tensor_index import matrix_shape

# Paths of token tables in Keras and KerasHub, and of the output layers of this
# project's models.
TOKENS = "embeddings|logits"
# The length of a table of these is often a layer's width, not a vocabulary's size.
POSITIONS = "position"
# The vocabulary's axis must be at least this many times as long as the table's other.
LEAST_VOCABULARY = 2
# The largest rank is this share of the widest matrix: a higher one did not improve the
# studies' models, and full momentum was worse than rank 8.
LARGEST_SHARE_OF_WIDTH = 4
UNITS = {
    "B": 1,
    "kB": 10**3,
    "KB": 10**3,
    "MB": 10**6,
    "GB": 10**9,
    "KiB": 2**10,
    "MiB": 2**20,
    "GiB": 2**30,
}


def settings(variables: Sequence[VariableShape]) -> list[dict[str, Any]]:
    """All candidate arguments for variables, from the least memory to the best model.

    The order is the one in which memory improved the studies' models: first the level,
    starting with token axes, then the momentum's rank, whose first steps improve most.
    Momentum in int8 is nearly as good as in bfloat16.
    """
    levels: list[Any] = ["inf", 3, 2]
    tokens = expression_of_tokens(variables)
    if tokens is not None:
        levels.append({tokens: 1, ".*": 2})
    return [{"level": level, "beta_1": 0.0} for level in [*levels, 1]] + [
        {"level": 1, "momentum_rank": rank, "momentum_dtype": dtype}
        for rank in _ranks(variables)
        for dtype in ("int8", "bfloat16")
    ]


def state_bytes(
    arguments: Mapping[str, Any], variables: Sequence[VariableShape]
) -> int:
    """The bytes of the state of `ExtremeTensoring` with these arguments."""
    plans = ExtremeTensoring(**arguments).plan_state(variables)
    return sum(
        bytes_of(shape, dtype) for plan in plans for _, shape, dtype in plan.slots
    )


def expression_of_tokens(variables: Sequence[VariableShape]) -> str | None:
    """A regular expression for the paths of variables that have a token axis.

    These are the variables with "embeddings" or "logits" in their paths, and others
    with an axis as long as the vocabulary, such as the kernel of an output layer of
    another name. The vocabulary is the token axis of the largest of these tables, if it
    is much longer than the other axis.

    Returns:
        The expression; `None` if it would match no variables, or all.
    """
    named = [one for one in variables if re.search(TOKENS, one.path)]
    vocabulary = _vocabulary(named)
    others = [
        one.path for one in variables if one not in named and vocabulary in one.shape
    ]
    if not named or len(named) + len(others) == len(variables):
        return None
    return "|".join([TOKENS, *(f"^{re.escape(path)}$" for path in others)])


def _vocabulary(named: Sequence[VariableShape]) -> int | None:
    """The number of tokens of the largest table; `None` if it may be a width."""
    tables = [
        # The kernel of an output layer has its tokens on the last axis.
        one.shape if "embeddings" in one.path else one.shape[::-1]
        for one in named
        if len(one.shape) == 2 and POSITIONS not in one.path.lower()
    ]
    tokens, width = max(tables, key=math.prod, default=(0, 0))
    return tokens if tokens > 1 and tokens >= LEAST_VOCABULARY * width else None


def choose(
    variables: Sequence[VariableShape], budget: int | str, adam_bytes: int
) -> tuple[dict[str, Any], str]:
    """The best arguments within a budget.

    Args:
        variables: The trained variables.
        budget: As in `memory_plan`.
        adam_bytes: The bytes of Adam's state for them.

    Returns:
        `(arguments, reason)`: those of `ExtremeTensoring`, and a text.

    Raises:
        ValueError: if the budget is invalid, or nothing fits it.
    """
    allowed = in_bytes(budget, adam_bytes)
    order = settings(variables)
    sizes = [state_bytes(arguments, variables) for arguments in order]
    fitting = [place for place, size in enumerate(sizes) if size <= allowed]
    if not fitting:
        raise ValueError(
            f"No arguments of ExtremeTensoring fit budget={budget!r}, which is "
            f"{allowed:,} bytes (Adam's state takes {adam_bytes:,}). The smallest "
            f"budget that can be met is budget={min(sizes)} (bytes)."
        )
    best = fitting[-1]
    reason = (
        f"The state takes {sizes[best]:,} bytes, within the budget of {allowed:,} "
        f"({100 * allowed / max(adam_bytes, 1):.3g}% of Adam's). Memory goes where it "
        "improved the studies' models most: first to level 1 for token axes, then to "
        "level 1 for all, then to a higher momentum rank."
    )
    if not any(isinstance(one["level"], dict) for one in order):
        reason += (
            " Token axes were not distinguished: either all variables have one, or no "
            'path contains "embeddings" or "logits".'
        )
    if best + 1 == len(order):
        return order[best], f"{reason} More memory did not improve the studies' models."
    following = f"{as_call(order[best + 1])} with {sizes[best + 1]:,} bytes"
    return order[best], f"{reason} The next choice is {following}."


def as_call(arguments: Mapping[str, Any]) -> str:
    """Arguments as they are written in a call."""
    return ", ".join(f"{name}={value!r}" for name, value in arguments.items())


def in_bytes(budget: int | str, adam_bytes: int) -> int:
    """A budget in bytes.

    Raises:
        ValueError: if it is neither a number of bytes nor a share of Adam's.
    """
    if checks.is_integer(budget) and budget >= 0:
        return int(budget)
    units = "|".join(["%", *UNITS])
    text = budget if isinstance(budget, str) else ""
    found = re.fullmatch(rf"\s*(\d+\.?\d*|\.\d+)\s*({units})\s*", text, re.ASCII)
    if not found:
        raise ValueError(
            "budget must be a number of bytes, an integer of 0 or more, or text: a "
            f"share of Adam's state, or a number with a unit ({', '.join(UNITS)}); "
            f'received budget={budget!r}. Write for example budget="1%", '
            'budget="20 MB" or budget=20_000_000.'
        )
    # Exact, so that a budget equal to the state's bytes is met.
    amount, unit = fractions.Fraction(found[1]), found[2]
    whole = fractions.Fraction(adam_bytes, 100) if unit == "%" else UNITS[unit]
    return math.floor(amount * whole)


def _ranks(variables: Sequence[VariableShape]) -> list[MomentumRank]:
    """The momentum ranks worth trying, in ascending order."""
    shapes = [matrix_shape(one.shape) for one in variables]
    widest = max((min(shape) for shape in shapes if shape is not None), default=0)
    default = auto_rank(widest, widest)
    powers = [2**n for n in range(widest.bit_length())]
    most = widest // LARGEST_SHARE_OF_WIDTH
    higher = [rank for rank in powers if default < rank <= most]
    return [*(rank for rank in powers if rank < default), AUTO, *higher]
