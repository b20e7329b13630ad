"""The names of variables: paths for regular expressions, prefixes of slots."""

import re

from et_optimizer.types import Variable


def path(variable: Variable) -> str:
    """A variable's path, or the name without `:0` of a plain `tf.Variable`."""
    return getattr(variable, "path", variable.name).removesuffix(":0")


def slot_prefix(variable: Variable) -> str:
    """The prefix of the names that Keras gives to a variable's slots."""
    name = getattr(variable, "path", variable.name)
    return name.replace("/", "_").replace(":", "_") + "_"


def in_words(name: str) -> str:
    """A class's name in snake case: `ExtremeTensoring` as `extreme_tensoring`."""
    return re.sub(r"(?<=[a-z])(?=[A-Z])", "_", name).lower()
