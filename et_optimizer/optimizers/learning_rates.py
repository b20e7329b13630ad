"""What multiplies the learning rate of each variable."""

import math
from collections.abc import Sequence

from et_optimizer import checks
from et_optimizer.types import NamedShapes, RateScale, Shape

AUTO = "auto"
# What "auto" multiplies the learning rate of embeddings and the output projection by.
TOKEN_SCALE = 8.0


def rate_scales(given: Sequence[RateScale], named_shapes: NamedShapes) -> list[float]:
    """What every variable's learning rate is multiplied by.

    `"auto"` gives `TOKEN_SCALE` to embeddings, which are matrices whose own name
    contains "embedding", as in Keras's layers, and to the output projection (LM head):
    the one other matrix whose shape is that of the largest embedding of tokens,
    transposed; if several match, none is treated as one. It gives 1 to all other
    variables.

    Args:
        given: `rate_scale` for every variable.
        named_shapes: A list of `(path, shape)`, one per variable.

    Returns:
        A list of floats.
    """
    of_tokens = token_paths(named_shapes)

    def scale(one: RateScale, path: str) -> float:
        if isinstance(one, str):
            return TOKEN_SCALE if path in of_tokens else 1.0
        return 1.0 if one is None else float(one)

    return [scale(one, path) for one, (path, _) in zip(given, named_shapes)]


def check_rate_scale(rate_scale: object) -> None:
    """Raises `ValueError` unless this can be `rate_scale` for a variable."""
    is_auto = isinstance(rate_scale, str) and rate_scale == AUTO
    if rate_scale is not None and not is_auto and not checks.is_positive(rate_scale):
        raise ValueError(
            'rate_scale must be "auto", a number between 1.2e-38 and 1e38, None '
            "for 1, or a dict from regular expressions on paths to these; received "
            f"rate_scale={rate_scale!r}."
        )


def token_paths(named_shapes: NamedShapes) -> frozenset[str]:
    """The paths of embeddings and of the output projection."""
    tables = {path: shape for path, shape in named_shapes if _is_table(path, shape)}
    of_tokens = [s for path, s in tables.items() if "position" not in path.lower()]
    transposed = max(of_tokens, key=math.prod, default=(0, 0))[::-1]
    # Among several it could be any: kernels may be as wide as a vocabulary.
    others = [named for named in named_shapes if named[0] not in tables]
    projections = [path for path, shape in others if shape == transposed]
    return frozenset(tables).union(projections if len(projections) == 1 else ())


def _is_table(path: str, shape: Shape) -> bool:
    name = path.rpartition("/")[2]
    # The low-rank factors of LoRA are named after the table that they change.
    is_named = "embedding" in name and not name.startswith("lora_")
    return is_named and len(shape) == 2
