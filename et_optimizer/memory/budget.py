"""The arguments of `ExtremeTensoring` that are best within a budget of bytes."""

import dataclasses
import fractions
import math
import re
from collections.abc import Sequence
from typing import Any

from et_optimizer import checks, momenta
from et_optimizer.memory.report import bytes_of
from et_optimizer.memory.shapes import VariableShape
from et_optimizer.optimizers import ExtremeTensoring
from et_optimizer.types import MomentumRank
from et_optimizer.views.tensor_index import matrix_shape

# As Keras and KerasHub name tables of tokens, and this project's models their logits.
TOKENS = "embeddings|logits"
# What is as long as a table of these is often no vocabulary but a layer's width.
POSITIONS = "position"
# An axis so many times as long as the other one of a table is that of its tokens.
LEAST_VOCABULARY = 2
# Of the widest matrix: more directions of momentum were not found to pay, and full
# momentum did worse than 8 of them.
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


@dataclasses.dataclass(frozen=True)
class Setting:
    """A way to spend memory.

    Attributes:
        words: What it is, in words.
        arguments: It as arguments of `ExtremeTensoring`.
    """

    words: str
    arguments: dict[str, Any]

    def held_for(self, variables: Sequence[VariableShape]) -> int:
        """How many bytes it holds for variables, a list of `VariableShape`."""
        plans = ExtremeTensoring(**self.arguments).plan(variables)
        return sum(
            bytes_of(shape, dtype) for plan in plans for _, shape, dtype in plan.held
        )


def settings(variables: Sequence[VariableShape]) -> list[Setting]:
    """All settings for variables, from the least memory to the best model.

    The order is that in which the studies found memory to pay: levels first, of tokens
    before all else, and then directions of momentum, which gain the more the fewer
    there are. A momentum in 8 bits does nearly as well as one in 16.

    Args:
        variables: List of the `VariableShape` of those that are trained.

    Returns:
        A list of `Setting`.
    """
    found = [
        Setting(_without_momentum(f"level {level!r}"), {"level": level, "beta_1": 0.0})
        for level in ("inf", 3, 2)
    ]
    tokens = expression_of_tokens(variables)
    if tokens is not None:
        found.append(
            Setting(
                _without_momentum(
                    f"level 1 for axes of tokens (paths with {tokens!r}), level 2 for "
                    "all else"
                ),
                {"level": {tokens: 1, ".*": 2}, "beta_1": 0.0},
            )
        )
    found.append(Setting(_without_momentum("level 1"), {"level": 1, "beta_1": 0.0}))
    for rank in _ranks(variables):
        for dtype in ("int8", "bfloat16"):
            words = f"level 1, and momentum of rank {rank!r} in {dtype}"
            arguments = {"level": 1, "momentum_rank": rank, "momentum_dtype": dtype}
            found.append(Setting(words, arguments))
    return found


def expression_of_tokens(variables: Sequence[VariableShape]) -> str | None:
    """A regular expression for the paths of what has an axis of tokens.

    Those are the variables whose paths have "embeddings" or "logits" in them, and
    others with an axis as long as the vocabulary, the axis of tokens of the largest of
    these tables (where it is the longer one by far), such as the kernel of an output
    layer of another name.

    Args:
        variables: List of `VariableShape`.

    Returns:
        A string; `None` where there are none, or no others.
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
    """How many tokens the largest table has; `None` where it may be the width."""
    tables = [
        # The kernel of logits has its tokens on the last axis.
        one.shape if "embeddings" in one.path else one.shape[::-1]
        for one in named
        if len(one.shape) == 2 and POSITIONS not in one.path.lower()
    ]
    tokens, width = max(tables, key=math.prod, default=(0, 0))
    return tokens if tokens > 1 and tokens >= LEAST_VOCABULARY * width else None


def choose(
    variables: Sequence[VariableShape], budget: int | str, adam_bytes: int
) -> tuple[dict[str, Any], str]:
    """The best setting within a budget.

    Args:
        variables: List of the `VariableShape` of those that are trained.
        budget: As in `memory_plan`.
        adam_bytes: What Adam would hold for them.

    Returns:
        `(arguments, reason)`: those of `ExtremeTensoring`, and text.

    Raises:
        ValueError: if the budget is none, or nothing meets it.
    """
    allowed = in_bytes(budget, adam_bytes)
    order = settings(variables)
    held = [setting.held_for(variables) for setting in order]
    within = [place for place, count in enumerate(held) if count <= allowed]
    if not within:
        least = min(held)
        raise ValueError(
            f"No setting of ExtremeTensoring holds so little: received budget="
            f"{budget!r}, {allowed:,} bytes for these variables, of which Adam would "
            f"hold {adam_bytes:,}. The smallest budget that can be met is "
            f"budget={least} (bytes)."
        )
    best = within[-1]
    return order[best].arguments, _reason(order, held, best, allowed, adam_bytes)


def in_bytes(budget: int | str, adam_bytes: int) -> int:
    """A budget in bytes.

    Raises:
        ValueError: if it is neither bytes nor a share of Adam's.
    """
    if checks.is_integer(budget) and budget >= 0:
        return int(budget)
    units = "|".join(["%", *UNITS])
    number = r"(\d+\.?\d*|\.\d+)"
    text = budget if isinstance(budget, str) else ""
    found = re.fullmatch(rf"\s*{number}\s*({units})\s*", text, re.ASCII)
    if not found:
        raise ValueError(
            "budget must be bytes, an integer of 0 or more, or text: a share of what "
            f"Adam would hold, or a number with a unit ({', '.join(UNITS)}); received "
            f'budget={budget!r}. Write for example budget="1%", budget="20 MB" or '
            "budget=20_000_000."
        )
    # Exact, so that a budget of just what is held is met.
    amount, unit = fractions.Fraction(found[1]), found[2]
    whole = fractions.Fraction(adam_bytes, 100) if unit == "%" else UNITS[unit]
    return math.floor(amount * whole)


def _reason(
    order: list[Setting], held: list[int], best: int, allowed: int, adam_bytes: int
) -> str:
    """Why a setting was chosen, in words."""
    share = 100 * allowed / max(adam_bytes, 1)
    reason = (
        f"{order[best].words[0].upper()}{order[best].words[1:]}: it holds "
        f"{held[best]:,} bytes, within the budget of {allowed:,} ({share:.3g}% of "
        "Adam's). Memory goes where the studies found it to pay: first to level 1 for "
        "axes of tokens, then to level 1 for all, then to directions of momentum."
    )
    if not any(isinstance(one.arguments["level"], dict) for one in order):
        reason += (
            " No variables were told apart as of tokens: all are of them, or none has "
            '"embeddings" or "logits" in its path.'
        )
    if best + 1 == len(order):
        return f"{reason} More memory than that was not found to pay."
    after = order[best + 1]
    return f"{reason} Next would be {after.words}, with {held[best + 1]:,} bytes."


def _ranks(variables: Sequence[VariableShape]) -> list[MomentumRank]:
    """The ranks of momentum worth having, in their order."""
    shapes = [matrix_shape(one.shape) for one in variables]
    widest = max((min(shape) for shape in shapes if shape is not None), default=0)
    by_default = momenta.auto_rank(widest, widest)
    powers = [2**n for n in range(widest.bit_length())]
    below = [rank for rank in powers if rank < by_default and widest > 0]
    most = widest // LARGEST_SHARE_OF_WIDTH
    return [
        *below,
        momenta.AUTO,
        *(rank for rank in powers if by_default < rank <= most),
    ]


def _without_momentum(level: str) -> str:
    return f"{level}, without momentum"
