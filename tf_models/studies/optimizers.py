"""Makes optimizers from the texts of flags, presets and results.

A text is one of

- a class of `et_optimizer` or, if that has no such class, of `keras.optimizers`:
  `ExtremeTensoring`, `Adam`, `keras.Adafactor`;
- a class of `tf_models.studies.torch_optimizers`, for the PyTorch backend:
  `torch.Muon`;
- a class of `tf_models.studies.token_rates`: `tokens.Adam`;
- a class with arguments as Python literals: `ExtremeTensoring(level=2, beta_1=0.0)`,
  `ExtremeTensoring(level={'embeddings|logits': 1, '.*': 2}, momentum_rank=None)`.

The text does not contain the learning rate, which programs set with its schedule.
"""

import ast
import inspect

import keras

import et_optimizer
from tf_models.studies import token_rates, torch_optimizers

KERAS = "keras."
TORCH = "torch."
TOKENS = "tokens."
# Base classes, and wrappers of other optimizers.
NOT_OPTIMIZERS = {
    "LossScaleOptimizer",
    "MultiOptimizer",
    "Optimizer",
    "PreconditionedOptimizer",
    "TorchOptimizer",
}
EXAMPLE = "Write for example 'ExtremeTensoring(level=2)', 'Adam' or 'keras.Adafactor'."


def parse(text):
    """Reads the text of an optimizer.

    Args:
        text: See the module.

    Returns:
        `(optimizer_class, arguments)`.

    Raises:
        ValueError: the text has none of these forms, or the class or an argument of
            it does not exist.
    """
    name, arguments = _name_and_arguments(text)
    optimizer_class = _class_of(name)
    _check_arguments(text, optimizer_class, arguments)
    return optimizer_class, arguments


def make(text, learning_rate):
    """Makes the optimizer of a text.

    Args:
        text: See the module.
        learning_rate: A float or a Keras schedule.

    Returns:
        A new `keras.optimizers.Optimizer`.

    Raises:
        ValueError: as `parse`, or an argument is out of range.
    """
    optimizer_class, arguments = parse(text)
    return optimizer_class(learning_rate=learning_rate, **arguments)


def with_arguments(text, arguments):
    """The text of the same optimizer with further or replaced arguments."""
    if not arguments:
        return text
    optimizer_class, own = parse(text)
    listed = ", ".join(f"{key}={value!r}" for key, value in (own | arguments).items())
    name = optimizer_class.__name__
    prefix = ""
    if issubclass(optimizer_class, torch_optimizers.TorchOptimizer):
        prefix = TORCH
    elif optimizer_class.__module__ == token_rates.__name__:
        prefix = TOKENS
    elif getattr(et_optimizer, name, optimizer_class) is not optimizer_class:
        prefix = KERAS
    return f"{prefix}{name}({listed})"


def default_learning_rate(text):
    """The default learning rate of the optimizer.

    Args:
        text: See the module.

    Raises:
        ValueError: as `parse`.
    """
    optimizer_class, _ = parse(text)
    return inspect.signature(optimizer_class).parameters["learning_rate"].default


def _name_and_arguments(text):
    try:
        tree = ast.parse(text.strip(), mode="eval").body
        call = tree if isinstance(tree, ast.Call) else ast.Call(tree, [], [])
        if call.args or any(keyword.arg is None for keyword in call.keywords):
            raise ValueError("arguments must have names")
        name = ast.unparse(call.func)
        return name, {k.arg: ast.literal_eval(k.value) for k in call.keywords}
    except (SyntaxError, TypeError, ValueError) as error:
        raise ValueError(
            "An optimizer must be a name, or a name with arguments as Python "
            f"literals; received {text!r} ({error}). {EXAMPLE}"
        ) from None


def _class_of(name):
    if name.startswith(TORCH):
        module, name_there = torch_optimizers, name.removeprefix(TORCH)
    elif name.startswith(TOKENS):
        module, name_there = token_rates, name.removeprefix(TOKENS)
    elif _is_optimizer(et_optimizer, name):
        module, name_there = et_optimizer, name
    else:
        module, name_there = keras.optimizers, name.removeprefix(KERAS)
    if not _is_optimizer(module, name_there):
        raise ValueError(
            f"There is no optimizer {name!r} in et_optimizer or keras.optimizers. "
            f"Choose from {', '.join(names())}."
        )
    return getattr(module, name_there)


def names():
    """The names of all optimizers, those of this library first."""
    ours = [name for name in dir(et_optimizer) if _is_optimizer(et_optimizer, name)]
    theirs = [
        name
        for name in sorted(vars(keras.optimizers))
        if _is_optimizer(keras.optimizers, name) and name not in ours
    ]
    return [*ours, *theirs]


def _is_optimizer(module, name):
    value = getattr(module, name, None)
    return (
        inspect.isclass(value)
        and issubclass(value, keras.optimizers.Optimizer)
        and name not in NOT_OPTIMIZERS
    )


def _check_arguments(text, optimizer_class, arguments):
    if "learning_rate" in arguments:
        raise ValueError(
            f"The text of an optimizer cannot contain its learning rate; received "
            f"{text!r}. Use the flag for learning rates."
        )
    if arguments.get("use_ema"):
        raise ValueError(
            "These programs validate between calls of fit, each of which would copy "
            f"the averages into the weights; received {text!r}. Leave out use_ema, and "
            "use it with keras.callbacks.SwapEMAWeights in your own program."
        )
    known = set(inspect.signature(optimizer_class).parameters)
    for base in inspect.getmro(keras.optimizers.Optimizer):
        known |= set(inspect.signature(base.__init__).parameters)
    known -= {"self", "args", "kwargs", "learning_rate"}
    for argument in arguments:
        if argument not in known:
            raise ValueError(
                f"{optimizer_class.__name__} has no argument {argument!r}; received "
                f"{text!r}. It has {', '.join(sorted(known))}."
            )
