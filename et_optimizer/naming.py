"""The names of variables: paths for regular expressions, prefixes of slots."""

import re
from typing import Any

import keras

from et_optimizer.types import Variable


def path(variable: Variable) -> str:
    """A variable's path, or the name without `:0` of a plain `tf.Variable`."""
    return getattr(variable, "path", variable.name).removesuffix(":0")


def slot_prefix(variable: Variable) -> str:
    """The prefix of the names that Keras gives to a variable's slots."""
    name = getattr(variable, "path", variable.name)
    return name.replace("/", "_").replace(":", "_") + "_"


def findable_by_name(cls: Any) -> Any:
    """Lets `compile` find an optimizer by its class's name, also in snake case."""
    snake_case = re.sub(r"(?<=[a-z])(?=[A-Z])", "_", cls.__name__).lower()
    for name in (cls.__name__, snake_case):
        keras.saving.get_custom_objects()[name] = cls
    return cls
