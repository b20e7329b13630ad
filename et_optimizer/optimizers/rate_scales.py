"""Learning rates of their own for tables of tokens, or for variables by path."""

from collections.abc import Mapping

from et_optimizer import checks
from et_optimizer.tensor_index import by_path, check_expressions

AUTO = "auto"
# What "auto" multiplies the rate of tables of tokens by.
OF_TOKENS = 8.0


def of_variables(rate_scale, named_shapes):
    """What every variable's rate is multiplied by.

    `"auto"` is `OF_TOKENS` for tables, which are matrices whose name has "embedding" in
    it, as those of Keras's layers have, and for a matrix of the largest one's shape
    with its axes exchanged, which leads back to tokens. It is 1 for all others.

    Args:
        rate_scale: As in `et_optimizer.ExtremeTensoring`.
        named_shapes: A list of `(path, shape)`, one a variable.

    Returns:
        A list of floats.

    Raises:
        ValueError: if an expression of a dict matches no path.
    """
    paths = [path for path, _ in named_shapes]
    given = by_path("rate_scale", rate_scale, paths, AUTO)
    tables = [shape for path, shape in named_shapes if _is_table(path, shape)]
    # Of single numbers a token there is nothing to lead back.
    back = max((s for s in tables if s[1] > 1), default=())[::-1]

    def scale(one, path, shape):
        if one == AUTO:
            return OF_TOKENS if _is_table(path, shape) or shape == back else 1.0
        return 1.0 if one is None else float(one)

    return [scale(one, *named) for one, named in zip(given, named_shapes)]


def check(rate_scale):
    """Raises unless the argument is one of those that there are.

    Args:
        rate_scale: The argument.

    Raises:
        ValueError: if it is not.
    """
    scales = [rate_scale]
    if isinstance(rate_scale, Mapping):
        check_expressions("rate_scale", rate_scale)
        scales = rate_scale.values()
    for scale in scales:
        if scale is not None and scale != AUTO and not checks.is_positive(scale):
            raise ValueError(
                'rate_scale must be "auto", a number between 1.2e-38 and 1e38, None '
                "for 1, or a dict from regular expressions on paths to these; received "
                f"rate_scale={rate_scale!r}."
            )


def _is_table(path, shape):
    return len(shape) == 2 and "embedding" in path.rpartition("/")[2]
