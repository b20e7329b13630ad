"""Checks of arguments, whose errors name the value, the rule and a remedy."""

import numbers
from collections.abc import Sequence
from typing import Any, TypeGuard

# The smallest positive float32 with full precision.
SMALLEST_FLOAT32 = 2.0**-126
LARGEST = 1e38


def decay(name: str, value: Any, or_none: bool = False) -> None:
    """Raises unless `value` is a number in [0, 1), or `None` if allowed."""
    if or_none and value is None:
        return
    if not _is_number(value) or not 0 <= value < 1:
        rule = f"a number in [0, 1){' or None' if or_none else ''}"
        remedy = "or None to accumulate sums" if or_none else "(0 turns it off)"
        raise _error(name, value, rule, f"Use for example 0.99 {remedy}.")


def epsilon(name: str, value: Any) -> None:
    """Raises unless `value` is 0 or a positive number within float32's range."""
    if not is_positive(value) and (not _is_number(value) or value != 0):
        rule = "0 or a number between 1.2e-38 and 1e38, the range of float32"
        raise _error(name, value, rule, "Use 0 for the fast path.")


def positive(
    name: str, value: Any, or_none: bool = False, example: float = 1.0
) -> None:
    """Raises unless `value` is > 0 within float32's range, or `None` if allowed."""
    if not is_positive(value) and not (or_none and value is None):
        rule = f"a number between 1.2e-38 and 1e38{' or None' if or_none else ''}"
        remedy = " or None to turn it off" if or_none else ""
        raise _error(name, value, rule, f"Use for example {example}{remedy}.")


def negative_exponent(name: str, value: Any) -> None:
    """Raises unless `value` is a number in [-1, 0)."""
    if not _is_number(value) or not -1 <= value < 0:
        remedy = "Use for example -0.8; with -1 all steps have the same weight."
        raise _error(name, value, "a number in [-1, 0)", remedy)


def not_negative(name: str, value: Any) -> None:
    """Raises unless `value` is a number ≥ 0."""
    if not _is_number(value) or not value >= 0:
        raise _error(name, value, "a number of 0 or more", "Use for example 0.001.")


def fraction(name: str, value: Any) -> None:
    """Raises unless `value` is a number in (0, 1]."""
    if not _is_number(value) or not 0 < value <= 1:
        raise _error(name, value, "a number in (0, 1]", "Use for example 0.1.")


def whole(name: str, value: Any, least: int, otherwise: str | None = None) -> None:
    """Raises unless `value` is an integer of at least `least`.

    The message offers `otherwise` as the alternative, if given.
    """
    if not is_integer(value) or value < least:
        alternative = f", or {otherwise}" if otherwise else ""
        raise _error(name, value, f"an integer, {least} or more{alternative}")


def boolean(name: str, value: Any) -> None:
    """Raises unless `value` is `True` or `False`."""
    choice(name, value, (True, False))


def choice(name: str, value: Any, choices: Sequence[str | bool]) -> None:
    """Raises unless `value` is one of `choices`, strings or booleans."""
    if not isinstance(value, (str, bool)) or value not in choices:
        raise _error(name, value, " or ".join(map(repr, choices)))


def is_integer(value: Any) -> TypeGuard[int]:
    """Whether `value` is an integer and not a bool."""
    return isinstance(value, numbers.Integral) and not isinstance(value, bool)


def is_positive(value: Any) -> bool:
    """Whether `value` is a positive number within float32's range."""
    return _is_number(value) and SMALLEST_FLOAT32 <= value < LARGEST


def _is_number(value: Any) -> bool:
    return isinstance(value, numbers.Real) and not isinstance(value, bool)


def _error(name: str, value: Any, rule: str, remedy: str = "") -> ValueError:
    message = f"{name} must be {rule}; received {name}={value!r}. {remedy}"
    return ValueError(message.rstrip())
