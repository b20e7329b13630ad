"""How arguments are declared: once, as annotated class attributes with defaults.

    class SM3(LevelledOptimizer):
        learning_rate: InitVar[LearningRate] = field(default=0.1, kw_only=False)
        variant: Literal["I", "II"] = "II"

A class takes its own arguments and those of its bases. All are keyword-only except the
learning rate, documented in the docstring of the class that declares them, checked when
an optimizer is made, and part of its configuration. An `InitVar` belongs to Keras, and
all others are read-only attributes. Type checkers and editors know this pattern as that
of dataclasses.
"""

import dataclasses
import difflib
import inspect
import re
import textwrap
from collections.abc import Mapping
from dataclasses import InitVar
from typing import Any, ClassVar, Literal, Union, get_args, get_origin

from et_optimizer import checks
from et_optimizer.types import KerasOptimizer, dataclass_transform

# Other libraries' names of arguments, and ours. The first that an optimizer has is
# suggested.
ALIASES: dict[str, tuple[str, ...]] = {
    "momentum": ("beta_1",),
    "beta_1": ("momentum",),
    "betas": ("beta_1", "momentum"),
    "rho": ("beta_2", "beta_2_decay"),
    "beta_2": ("beta_2_decay",),
    "eps": ("epsilon", "epsilon_1"),
    "epsilon": ("epsilon_1",),
    "lr": ("learning_rate",),
    "decay": ("weight_decay",),
    "clipping_threshold": ("clip_threshold",),
}
# An entry of the section "Args:" of a docstring, and what it is about.
ENTRY = re.compile(r"^    ([\w, \n]+): (?:.*\n?)(?: {5,}.*\n?)*", re.MULTILINE)


@dataclass_transform(
    kw_only_default=True, frozen_default=True, field_specifiers=(dataclasses.field,)
)
class HasArguments(KerasOptimizer):
    """An optimizer whose class attributes declare its arguments."""

    __signature__: ClassVar[inspect.Signature] = inspect.Signature()
    # The entry of each argument in the section "Args:" of a docstring.
    _entries: ClassVar[dict[str, str]] = {}

    def __init_subclass__(cls, **kwargs: Any):
        super().__init_subclass__(**kwargs)
        inherited = cls.__signature__.parameters
        annotations = inspect.get_annotations(cls, eval_str=True)
        parameters: dict[str, inspect.Parameter] = {}
        for name, default in list(vars(cls).items()):
            own = annotations.get(name)
            annotation = _annotation(name, default, own, inherited.get(name))
            if annotation is None:
                continue
            if isinstance(default, dataclasses.Field):
                default = default.default
            parameters[name] = _parameter(name, annotation, default)
            if isinstance(annotation, InitVar):
                delattr(cls, name)  # Keras has an attribute of this name
            else:
                setattr(cls, name, _Argument(name))
        # Its own first, except for the learning rate.
        parameters |= {n: p for n, p in inherited.items() if n not in parameters}
        ordered = sorted(parameters.values(), key=lambda p: p.kind)
        cls.__signature__ = inspect.Signature(ordered)
        cls._entries = cls._entries | _entries_of(cls.__doc__ or "")
        if cls.__doc__:
            cls.__doc__ = _with_all_entries(cls)

    @classmethod
    def bind(
        cls, learning_rate: tuple[Any, ...], given: Mapping[str, Any]
    ) -> tuple[dict[str, Any], dict[str, Any]]:
        """The values of all arguments, those of Keras and those of this library.

        Args:
            learning_rate: What was given by position.
            given: What was given by keyword.

        Raises:
            TypeError: if more than the learning rate was given by position.
            ValueError: if there is no such argument, or its value is out of range.
        """
        if len(learning_rate) > 1 or (learning_rate and "learning_rate" in given):
            raise TypeError(
                f"{cls.__name__} takes one learning_rate, and all other arguments by "
                f"keyword; received {learning_rate!r} by position."
            )
        if learning_rate:
            given = {"learning_rate": learning_rate[0], **given}
        parameters = cls.__signature__.parameters
        for name, value in given.items():
            if name not in parameters:
                names = list(parameters)
                raise ValueError(
                    f"Argument not recognized by {cls.__name__}: {name}={value!r}."
                    f"{hint(name, names)} It takes {', '.join(names)}."
                )
        values = {name: p.default for name, p in parameters.items()} | dict(given)
        of_keras: dict[str, Any] = {}
        own: dict[str, Any] = {}
        for name, value in values.items():
            (of_keras if is_of_keras(parameters[name]) else own)[name] = value
            _check_choice(name, value, parameters[name].annotation)
        return of_keras, own

    def argument(self, name: str) -> Any:
        """The value of an argument, as it was given; a dict as a copy."""
        value = getattr(self._arguments, name)
        return dict(value) if isinstance(value, Mapping) else value


class _Argument:
    """A read-only attribute: an argument as it was given."""

    def __init__(self, name: str):
        self._name = name

    def __get__(self, optimizer: Any, owner: Any = None) -> Any:
        return self if optimizer is None else optimizer.argument(self._name)

    def __set__(self, optimizer: Any, value: Any) -> None:
        raise AttributeError(
            f"{self._name} cannot be changed once {type(optimizer).__name__} is made; "
            f"received {self._name}={value!r}. Make another optimizer with it."
        )


def is_of_keras(parameter: inspect.Parameter) -> bool:
    """Whether an argument is one of every Keras optimizer."""
    return isinstance(parameter.annotation, InitVar)


def hint(name: str, names: list[str]) -> str:
    """The argument that was probably meant, as a sentence; or an empty string."""
    aliases = [alias for alias in ALIASES.get(name, ()) if alias in names]
    close = difflib.get_close_matches(name, names, n=1)
    meant = [*aliases, *close][:1]
    return f" Did you mean {meant[0]}?" if meant else ""


def _annotation(
    name: str, default: Any, annotation: Any, inherited: inspect.Parameter | None
) -> Any:
    """The type of an argument that a class declares, or `None` if it is not one.

    Another default of an inherited argument needs no annotation.
    """
    if name.startswith("_") or get_origin(annotation) is ClassVar:
        return None
    if inherited is None:
        return annotation
    if callable(default) or isinstance(default, property):
        return None  # overridden by code
    is_own = annotation is not None and not is_of_keras(inherited)
    return annotation if is_own else inherited.annotation


def _parameter(name: str, annotation: Any, default: Any) -> inspect.Parameter:
    is_first = name == "learning_rate"
    kind = inspect.Parameter.POSITIONAL_OR_KEYWORD
    return inspect.Parameter(
        name,
        kind if is_first else inspect.Parameter.KEYWORD_ONLY,
        default=default,
        annotation=annotation,
    )


def _check_choice(name: str, value: Any, annotation: Any) -> None:
    """Raises unless the value is one of those in a `Literal`, or a bool."""
    if annotation is bool:
        checks.boolean(name, value)
        return
    members = get_args(annotation) if get_origin(annotation) is Union else (annotation,)
    literals = [one for one in members if get_origin(one) is Literal]
    if literals and len(literals) + (type(None) in members) == len(members):
        if value is not None or type(None) not in members:
            checks.choice(name, value, get_args(literals[0]))


def _entries_of(docstring: str) -> dict[str, str]:
    """The entry of each argument in the section "Args:" of a docstring."""
    text = inspect.cleandoc(docstring) + "\n"
    section = re.search(r"^Args:\n((?: .*\n|\n)*)", text, re.M)
    found = ENTRY.finditer(section[1]) if section else ()
    return {
        name: entry.group()
        for entry in found
        for name in re.split(r",\s+", entry[1].strip())
    }


def _with_all_entries(cls: Any) -> str:
    """The docstring of a class, with the entries of all its arguments and defaults."""
    entries = dict.fromkeys(
        _with_default(cls._entries[name], parameter.default)
        for name, parameter in cls.__signature__.parameters.items()
        if name in cls._entries
    )
    text = inspect.cleandoc(cls.__doc__)
    listed = "Args:\n" + "".join(entries)
    if "\nArgs:\n" not in text:
        return f"{text}\n\n{listed}"
    return re.sub(r"(?m)^Args:\n(?: .*\n|\n(?= ))*", lambda _: listed, text)


def _with_default(entry: str, default: Any) -> str:
    if "Defaults to" in entry or "," in entry.split(":")[0]:
        return entry.rstrip() + "\n"
    shown = f'"{default}"' if isinstance(default, str) else repr(default)
    text = " ".join(f"{entry} Defaults to `{shown}`.".split())
    filled = textwrap.wrap(text, 80, break_long_words=False, subsequent_indent="    ")
    return textwrap.indent("\n".join(filled), "    ") + "\n"
