"""The optimizers of this library in the TensorFlow Model Garden, by name.

After `register()` every experiment of the Garden accepts them in its configuration,
with the Garden's learning rates and warm-up:

    optimizer:
      type: extreme_tensoring
      extreme_tensoring: {level: {embeddings: 1, .*: 2}, momentum_rank: 16}

As a program, it registers them and runs an experiment with the flags of the Garden's
programs:

    python -m tf_models.model_garden --experiment=image_classification \
        --config_file=tf_models/experiments/cifar10_resnet.yaml \
        --mode=train_and_eval --model_dir=/tmp/cifar10

Needs `pip install '.[models]'`.
"""

import dataclasses
import functools
import importlib
import inspect
import sys
from collections.abc import Mapping
from typing import Any

from absl import app, flags

from et_optimizer import tf_keras as optimizers

try:
    from official.common import flags as garden_flags
    from official.modeling.optimization import optimizer_factory
    from official.modeling.optimization.configs import optimizer_config
    from official.modeling.optimization.configs.optimization_config import (
        OptimizerConfig,
    )
except ImportError as error:
    raise ImportError(
        "tf_models.model_garden needs the TensorFlow Model Garden, which cannot be "
        "imported: pip install '.[models]' in the repository, or "
        "pip install tf-models-official"
    ) from error


class ArgumentsConfig(optimizer_config.BaseOptimizerConfig):
    """A configuration whose fields are the arguments of an optimizer.

    A mapping from expressions on paths, as for `tensor_index`, `level`, `momentum_rank`
    and `rate_scale`, is kept as a list of mappings with one entry each. The order of
    the expressions matters, because the first match wins, and the Garden sorts the keys
    of mappings, here and in the `params.yaml` that it saves.
    """

    def _set(self, k, v):
        if isinstance(v, Mapping):
            v = [{key: value} for key, value in v.items()]
        self.__dict__[k] = None  # Otherwise the Garden would merge two lists.
        super()._set(k, v)


def _config(optimizer):
    """Makes the configuration of an optimizer of `et_optimizer.tf_keras`."""
    shell = inspect.signature(optimizers.PreconditionedOptimizer).parameters.values()
    defaults = {p.name: p.default for p in shell if p.kind is not p.VAR_KEYWORD}
    del defaults["learning_rate"]  # The Garden configures it separately.
    defaults |= optimizers.arguments(optimizer.keras_class)
    name = optimizer.__name__
    return dataclasses.make_dataclass(
        f"{name}Config",
        [(argument, Any, default) for argument, default in defaults.items()],
        bases=(ArgumentsConfig,),
        namespace={
            "__module__": __name__,
            "__doc__": f"Arguments of `et_optimizer.{name}`, without learning rate.",
        },
    )


ExtremeTensoringConfig = _config(optimizers.ExtremeTensoring)
MuonConfig = _config(optimizers.Muon)
SM3Config = _config(optimizers.SM3)
AdafactorConfig = _config(optimizers.Adafactor)
SubsetNormConfig = _config(optimizers.SubsetNorm)
ShampooConfig = _config(optimizers.Shampoo)
SketchyShampooConfig = _config(optimizers.SketchyShampoo)
SketchyAdagradConfig = _config(optimizers.SketchyAdagrad)

REGISTERED = {
    "extreme_tensoring": (optimizers.ExtremeTensoring, ExtremeTensoringConfig),
    "muon": (optimizers.Muon, MuonConfig),
    "sm3": (optimizers.SM3, SM3Config),
    "adafactor": (optimizers.Adafactor, AdafactorConfig),
    "subset_norm": (optimizers.SubsetNorm, SubsetNormConfig),
    "shampoo": (optimizers.Shampoo, ShampooConfig),
    "sketchy_shampoo": (optimizers.SketchyShampoo, SketchyShampooConfig),
    "sketchy_adagrad": (optimizers.SketchyAdagrad, SketchyAdagradConfig),
}


def register():
    """Adds the optimizers to the types of the Garden's `OptimizerConfig`.

    Existing types stay, except `adafactor`, which the Garden has not implemented: its
    keys become those of `et_optimizer.Adafactor`. Configurations that already exist do
    not have the new types. Calling this function twice has no further effect.
    """
    for key, (optimizer, _) in REGISTERED.items():
        build = functools.partial(_build, optimizer)
        optimizer_factory.LEGACY_OPTIMIZERS_CLS[key] = build
        optimizer_factory.NEW_OPTIMIZERS_CLS[key] = build
    # Imported projects of the Garden have derived classes.
    for config in [OptimizerConfig, *OptimizerConfig.__subclasses__()]:
        if not REGISTERED.keys() <= config.__dataclass_fields__.keys():
            _add_fields(config)


def _build(optimizer, **arguments):
    """Makes an optimizer from the `as_dict` of a configuration."""
    made = optimizer(**{name: _argument(value) for name, value in arguments.items()})
    # The Garden's moving average asks for the learning rate as in optimizers before
    # TensorFlow 2.11.
    made._get_hyper = functools.partial(getattr, made)
    return made


def _argument(value):
    """Restores a mapping that `ArgumentsConfig` has split into a list."""
    if not isinstance(value, list) or not all(isinstance(v, Mapping) for v in value):
        return value
    return {key: item for entry in value for key, item in entry.items()}


def _add_fields(config):
    """Adds the fields of the types to a dataclass, in place."""
    fields = [
        (key, made, dataclasses.field(default_factory=made))
        for key, (_, made) in REGISTERED.items()
    ]
    extended = dataclasses.make_dataclass(config.__name__, fields, bases=(config,))
    for name in ("__init__", "__repr__", "__eq__", "__dataclass_fields__"):
        setattr(config, name, getattr(extended, name))
    config.__annotations__.update(extended.__annotations__)


def main():
    """Registers the optimizers and runs a program of the Garden."""
    flags.DEFINE_enum(
        "driver",
        "vision",
        ["vision", "nlp"],
        "The program of the Garden that runs the experiment: official.vision.train or "
        "official.nlp.train, which needs TensorFlow Hub.",
    )
    flags.FLAGS(sys.argv, known_only=True)
    register()
    driver = importlib.import_module(f"official.{flags.FLAGS.driver}.train")
    garden_flags.define_flags()
    flags.mark_flags_as_required(["experiment", "mode", "model_dir"])
    app.run(driver.main)


if __name__ == "__main__":
    main()
