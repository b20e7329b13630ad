"""How the arguments of an optimizer are declared, inherited, documented and checked."""

import inspect
from typing import Literal

import keras
import numpy as np
import pytest

import et_optimizer
from et_optimizer import SM3, ExtremeTensoring, PreconditionedOptimizer, Shampoo
from tests.optimizers import WRITTEN

pytestmark = pytest.mark.one_backend

CLASSES = [
    value
    for value in vars(et_optimizer).values()
    if inspect.isclass(value) and issubclass(value, PreconditionedOptimizer)
]


@pytest.mark.parametrize("optimizer", CLASSES)
def test_every_argument_is_in_the_signature_the_docstring_and_the_config(optimizer):
    parameters = inspect.signature(optimizer).parameters
    assert list(parameters)[0] == "learning_rate"
    kinds = {p.kind for name, p in parameters.items() if name != "learning_rate"}
    assert kinds == {inspect.Parameter.KEYWORD_ONLY}
    entries = optimizer.__doc__.split("Args:\n")[1].split("\n\n")[0]
    for name, parameter in parameters.items():
        entry = next(e for e in entries.split("\n    ") if name in e.split(":")[0])
        assert entry.strip()
        if name != "name" and optimizer is not PreconditionedOptimizer:
            config = optimizer().get_config()
            assert (
                np.allclose(*([[float(v)] for v in (config[name], parameter.default)]))
                if name == "learning_rate"
                else config[name] == parameter.default
            )


def test_defaults_of_a_class_are_in_its_docstring():
    text = " ".join(ExtremeTensoring.__doc__.split())
    assert (
        "It takes no pass of its own. `None` turns it off. Defaults to `3.0`." in text
    )
    assert "`None` turns it off. Defaults to `None`." in " ".join(SM3.__doc__.split())


class Bounded(SM3):
    """SM3 with other defaults and an argument of its own.

    Args:
        shape: A choice.
    """

    learning_rate = 0.5
    update_bound = 3.0
    shape: Literal["round", "square"] = "round"
    note: str


def test_a_subclass_may_change_defaults_and_add_arguments():
    parameters = inspect.signature(Bounded).parameters
    assert parameters["learning_rate"].default == 0.5
    assert parameters["update_bound"].default == 3.0
    assert 'shape: A choice. Defaults to `"round"`.' in " ".join(
        Bounded.__doc__.split()
    )
    made = Bounded(shape="square")
    assert (float(made.learning_rate), made.update_bound, made.shape) == (
        0.5,
        3.0,
        "square",
    )
    assert Bounded(0.1, update_bound=None).update_bound is None
    assert SM3().update_bound is None and "shape" not in SM3().get_config()
    assert Bounded.from_config(made.get_config()).shape == "square"
    with pytest.raises(ValueError, match="shape must be 'round' or 'square'"):
        Bounded(shape="flat")


def test_arguments_cannot_be_assigned_but_the_learning_rate_can():
    optimizer = Shampoo(0.1)
    with pytest.raises(AttributeError, match="block_size cannot be changed.*Make anot"):
        optimizer.block_size = 3
    optimizer.learning_rate = 0.2
    assert float(optimizer.learning_rate) == pytest.approx(0.2)


def test_a_dict_by_path_is_returned_as_a_copy():
    levels = {"kernel": 2}
    optimizer = ExtremeTensoring(level=levels)
    optimizer.level["bias"] = 3
    assert optimizer.level == levels == {"kernel": 2}


def test_only_the_learning_rate_is_taken_by_position():
    with pytest.raises(TypeError, match="all other arguments by keyword"):
        SM3(0.1, "I")
    with pytest.raises(TypeError, match="takes one learning_rate"):
        SM3(0.1, learning_rate=0.1)


@pytest.mark.parametrize("learning_rate", [-0.1, float("nan"), -1])
def test_a_negative_learning_rate_is_refused(learning_rate):
    with pytest.raises(ValueError, match="learning_rate must be a number of 0 or more"):
        ExtremeTensoring(learning_rate)
    assert float(ExtremeTensoring(0.0).learning_rate) == 0.0


def test_stochastic_rounding_of_earlier_configurations_loads_as_true():
    config = ExtremeTensoring().get_config() | {"stochastic_rounding": "auto"}
    assert ExtremeTensoring.from_config(config).stochastic_rounding is True
    with pytest.raises(ValueError, match="stochastic_rounding must be True or False"):
        ExtremeTensoring(stochastic_rounding="auto")


@pytest.mark.parametrize("level", [1, 2, 3])
def test_algorithm_1_is_the_papers_rule(level):
    own = {"weight_decay": 0.1, "name": "ours"}
    made = ExtremeTensoring.algorithm_1(0.5, level=level, **own)
    by_hand = ExtremeTensoring(
        0.5,
        level=level,
        beta_1=0.0,
        beta_2=None,
        statistic="sum",
        epsilon=1e-8,
        combination="geometric",
        update_bound=None,
        rate_scale=None,
        **own,
    )
    assert made.get_config() == by_hand.get_config()
    # x ← x − η (ε + Π S)^(−1/2p) g, with the slice sums of one gradient.
    variable = keras.Variable(np.zeros((4, 9), "float32"), name="kernel")
    gradient = np.random.default_rng(level).standard_normal((4, 9)).astype("float32")
    ExtremeTensoring.algorithm_1(0.5, level=level).apply(
        [keras.ops.convert_to_tensor(gradient)], [variable]
    )
    modes = {1: (4, 9), 2: (4, 3, 3), 3: (4, 3, 3)}[level]
    squares = (gradient.astype("float64") ** 2).reshape(modes)
    product = np.ones(modes)
    for mode in range(len(modes)):
        others = tuple(axis for axis in range(len(modes)) if axis != mode)
        product = product * squares.sum(axis=others, keepdims=True)
    expected = -0.5 * gradient * ((1e-8 + product) ** (-0.5 / len(modes))).reshape(4, 9)
    np.testing.assert_allclose(variable.numpy(), expected, rtol=1e-5)


def test_the_optimizer_of_the_documentation_lists_the_shared_arguments():
    parameters = inspect.signature(WRITTEN["Lion"]).parameters
    assert {"momentum_rank", "rate_scale", "weight_decay"} <= parameters.keys()
