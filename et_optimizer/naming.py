"""How variables are named, for expressions on paths and for the names of slots."""

import re

from et_optimizer.types import Variable


def path(variable: Variable) -> str:
    """A variable's path; a plain `tf.Variable` has only a name, here without `:0`."""
    return getattr(variable, "path", variable.name).removesuffix(":0")


def slot_prefix(variable: Variable) -> str:
    """What Keras puts before the name of a slot of the variable."""
    name = getattr(variable, "path", variable.name)
    return name.replace("/", "_").replace(":", "_") + "_"


def in_words(name: str) -> str:
    """A class's name in small letters: `ExtremeTensoring` as `extreme_tensoring`."""
    return re.sub(r"(?<=[a-z])(?=[A-Z])", "_", name).lower()
