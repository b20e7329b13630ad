"""Learning rates of their own for embeddings, or for variables by path."""

import math

from et_optimizer import checks
from et_optimizer.types import ByPath, NamedShapes, RateScale, Shape
from et_optimizer.views.tensor_index import by_path, checked_values

AUTO = "auto"
# What "auto" multiplies the rate of embeddings, and of what leads back to tokens, by.
OF_TOKENS = 8.0


def of_variables(
    rate_scale: ByPath[RateScale], named_shapes: NamedShapes
) -> list[float]:
    """What every variable's rate is multiplied by.

    `"auto"` is `OF_TOKENS` for tables of embeddings, which are matrices whose own name
    has "embedding" in it, as in Keras's layers; and for what leads back to tokens, the
    one other matrix, if there is one alone, that has the shape of the largest table,
    not of positions, with its axes exchanged. It is 1 for all others.

    Args:
        rate_scale: As in `et_optimizer.ExtremeTensoring`.
        named_shapes: A list of `(path, shape)`, one a variable.

    Returns:
        A list of floats.

    Raises:
        ValueError: if an expression of a dict matches no path.
    """
    paths = [path for path, _ in named_shapes]
    given = by_path("rate_scale", rate_scale, paths, None)
    of_tokens = _of_tokens(named_shapes)

    def scale(one: RateScale, path: str) -> float:
        if isinstance(one, str):
            return OF_TOKENS if path in of_tokens else 1.0
        return 1.0 if one is None else float(one)

    return [scale(*pair) for pair in zip(given, paths)]


def check(rate_scale: object) -> None:
    """Raises unless the argument is one of those that there are.

    Args:
        rate_scale: The argument.

    Raises:
        ValueError: if it is not.
    """
    for scale in checked_values("rate_scale", rate_scale):
        is_auto = isinstance(scale, str) and scale == AUTO
        if scale is not None and not is_auto and not checks.is_positive(scale):
            raise ValueError(
                'rate_scale must be "auto", a number between 1.2e-38 and 1e38, None '
                "for 1, or a dict from regular expressions on paths to these; received "
                f"rate_scale={rate_scale!r}."
            )


def _of_tokens(named_shapes: NamedShapes) -> frozenset[str]:
    """The paths of embeddings, and of what leads back to tokens."""
    tables = {path: shape for path, shape in named_shapes if _is_table(path, shape)}
    of_tokens = [s for path, s in tables.items() if "position" not in path.lower()]
    back = max(of_tokens, key=math.prod, default=(0, 0))[::-1]
    # Of several one cannot say which it is: kernels may be as wide as a vocabulary.
    others = [named for named in named_shapes if named[0] not in tables]
    leading_back = [path for path, shape in others if shape == back]
    return frozenset(tables).union(leading_back if len(leading_back) == 1 else ())


def _is_table(path: str, shape: Shape) -> bool:
    name = path.rpartition("/")[2]
    # Factors of a change of low rank are called after what they change.
    is_named = "embedding" in name and not name.startswith("lora_")
    return is_named and len(shape) == 2
