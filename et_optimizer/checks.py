"""What arguments must satisfy: errors that name the value, the rule, the remedy."""

import numbers
from collections.abc import Sequence
from typing import Any, TypeGuard

# The smallest positive float32 that keeps all its digits.
SMALLEST_FLOAT32 = 2.0**-126
LARGEST = 1e38


def decay(name: str, value: Any, or_none: bool = False) -> None:
    """Raises unless `value` is a number in [0, 1), or `None` where allowed."""
    if or_none and value is None:
        return
    if not _is_number(value) or not 0 <= value < 1:
        remedy = " or None to accumulate sums" if or_none else " (0 turns it off)"
        raise ValueError(
            f"{name} must be a number in [0, 1){' or None' if or_none else ''}; "
            f"received {name}={value!r}. Use for example 0.99{remedy}."
        )


def epsilon(name: str, value: Any) -> None:
    """Raises unless `value` is 0 or a positive number within float32's range."""
    if not _is_number(value) or not (value == 0 or _is_positive_float32(value)):
        raise ValueError(
            f"{name} must be 0 or a number between 1.2e-38 and 1e38, the range of "
            f"float32; received {name}={value!r}. Use 0 for the fast path."
        )


def positive(
    name: str, value: Any, or_none: bool = False, example: float = 1.0
) -> None:
    """Raises unless `value` is a number > 0 within float32's range, or `None`."""
    if or_none and value is None:
        return
    if not is_positive(value):
        raise ValueError(
            f"{name} must be a number between 1.2e-38 and 1e38"
            f"{' or None' if or_none else ''}; received {name}={value!r}. Use for "
            f"example {example}{' or None to turn it off' if or_none else ''}."
        )


def negative_exponent(name: str, value: Any) -> None:
    """Raises unless `value` is a number in [-1, 0)."""
    if not _is_number(value) or not -1 <= value < 0:
        raise ValueError(
            f"{name} must be a number in [-1, 0); received {name}={value!r}. Use for "
            "example -0.8; at -1 all steps count alike."
        )


def fraction(name: str, value: Any) -> None:
    """Raises unless `value` is a number in (0, 1]."""
    if not _is_number(value) or not 0 < value <= 1:
        raise ValueError(
            f"{name} must be a number in (0, 1]; received {name}={value!r}. Use for "
            "example 0.1."
        )


def whole(name: str, value: Any, least: int, otherwise: str | None = None) -> None:
    """Raises unless `value` is an integer of at least `least`.

    `otherwise` is what else the message offers, if anything.
    """
    if not is_integer(value) or value < least:
        raise ValueError(
            f"{name} must be an integer, {least} or more"
            f"{f', or {otherwise}' if otherwise else ''}; received {name}={value!r}."
        )


def boolean(name: str, value: Any) -> None:
    """Raises unless `value` is `True` or `False`."""
    if not isinstance(value, bool):
        raise ValueError(f"{name} must be True or False; received {name}={value!r}.")


def choice(name: str, value: Any, choices: Sequence[str | bool]) -> None:
    """Raises unless `value` is one of `choices`, strings or booleans."""
    if not isinstance(value, (str, bool)) or value not in choices:
        listed = " or ".join(map(repr, choices))
        raise ValueError(f"{name} must be {listed}; received {name}={value!r}.")


def is_integer(value: Any) -> TypeGuard[int]:
    """Whether `value` is an integer; `True` and `False` are none."""
    return isinstance(value, numbers.Integral) and not isinstance(value, bool)


def is_positive(value: Any) -> bool:
    """Whether `value` is a number > 0 within float32's range."""
    return _is_number(value) and _is_positive_float32(value)


def _is_positive_float32(value: Any) -> bool:
    return SMALLEST_FLOAT32 <= value < LARGEST


def _is_number(value: Any) -> bool:
    return isinstance(value, numbers.Real) and not isinstance(value, bool)
