"""Optimizers from the texts of flags."""

import keras
import pytest

import et_optimizer
from tf_models.studies import optimizers
from tf_models.studies.contenders import CONTENDERS


@pytest.mark.parametrize(
    ("text", "expected_class", "expected"),
    [
        ("ExtremeTensoring", et_optimizer.ExtremeTensoring, {}),
        ("Adam", keras.optimizers.Adam, {}),
        ("Adafactor", et_optimizer.Adafactor, {}),
        ("keras.Adafactor", keras.optimizers.Adafactor, {}),
        (" Adam(beta_2=0.99) ", keras.optimizers.Adam, {"beta_2": 0.99}),
        (
            "ExtremeTensoring(level='inf', tensor_index={'kernel': (2, 3)})",
            et_optimizer.ExtremeTensoring,
            {"level": "inf", "tensor_index": {"kernel": (2, 3)}},
        ),
        (
            "ExtremeTensoring(level={'embeddings|logits': 1, '.*': 2})",
            et_optimizer.ExtremeTensoring,
            {"level": {"embeddings|logits": 1, ".*": 2}},
        ),
        (
            "SM3(momentum=0.9, momentum_rank={'logits': None, '.*': 4})",
            et_optimizer.SM3,
            {"momentum": 0.9, "momentum_rank": {"logits": None, ".*": 4}},
        ),
        (
            "ExtremeTensoring(momentum_rank=None, update_bound=None)",
            et_optimizer.ExtremeTensoring,
            {"momentum_rank": None, "update_bound": None},
        ),
    ],
)
def test_a_text_gives_a_class_and_its_arguments(text, expected_class, expected):
    assert optimizers.parse(text) == (expected_class, expected)
    made = optimizers.make(text, 0.25)
    assert type(made) is expected_class
    assert float(made.learning_rate) == 0.25
    config = made.get_config()
    for name, value in expected.items():
        if name != "tensor_index":  # Written as lists.
            assert config[name] == value


def test_levels_and_ranks_by_path_keep_their_order():
    text = "ExtremeTensoring(level={'logits': 1, 'l': 3, '.*': 2})"
    more = optimizers.with_arguments(text, {"momentum_rank": {"b": None, "a": "auto"}})
    for written in (text, more):
        made = optimizers.make(written, 0.1)
        assert list(made.level.items()) == [("logits", 1), ("l", 3), (".*", 2)]
    assert list(made.momentum_rank.items()) == [("b", None), ("a", "auto")]


@pytest.mark.parametrize(
    ("text", "told"),
    [
        ("", "must be a name, or a name with arguments"),
        ("Adam(", r"received 'Adam\('"),
        ("Adam(0.1)", "arguments must have names"),
        ("Adam(**{})", "arguments must have names"),
        ("Adam(beta_1=x)", "Python literals"),
        ("Adam(beta_1={[]: 1})", "Python literals"),
        ("adam", "no optimizer 'adam' .* Choose from .*ExtremeTensoring.*Adam"),
        ("keras.ExtremeTensoring", "no optimizer 'keras.ExtremeTensoring'"),
        ("os.system", "no optimizer 'os.system'"),
        ("Optimizer", "no optimizer 'Optimizer'"),
        ("LossScaleOptimizer", "no optimizer 'LossScaleOptimizer'"),
        ("Adam(beta_3=1)", "Adam has no argument 'beta_3'.* It has .*beta_2"),
        ("Adam(level=2)", "Adam has no argument 'level'"),
        ("Adam(learning_rate=1)", "cannot contain its learning rate; .* Use the flag"),
        ("ExtremeTensoring(level=0)", "level"),
        ("ExtremeTensoring(level={'a': 0})", "level"),
        ("ExtremeTensoring(level={'(': 1})", "level"),
        ("ExtremeTensoring(momentum_rank={'a': -1})", "momentum_rank must be"),
        ("ExtremeTensoring(momentum_rank='all')", "momentum_rank must be"),
        ("ExtremeTensoring(combination='mean')", "combination must be"),
        ("ExtremeTensoring(update_bound=0)", "update_bound must be"),
        ("{", "must be a name, or a name with arguments"),
    ],
)
def test_an_invalid_text_is_refused_with_the_reason(text, told):
    with pytest.raises(ValueError, match=told):
        optimizers.make(text, 0.1)


@pytest.mark.parametrize(
    ("text", "arguments", "expected"),
    [
        ("SM3", {}, "SM3"),
        ("SM3", {"momentum": 0.9}, "SM3(momentum=0.9)"),
        (
            "ExtremeTensoring(level={'a': 1, '.*': 2})",
            {"momentum_rank": None},
            "ExtremeTensoring(level={'a': 1, '.*': 2}, momentum_rank=None)",
        ),
        ("Adam(beta_1=0.5)", {"beta_1": 0.9}, "Adam(beta_1=0.9)"),
        (
            "ExtremeTensoring(tensor_index={'kernel': (2, 3)})",
            {"level": "inf"},
            "ExtremeTensoring(tensor_index={'kernel': (2, 3)}, level='inf')",
        ),
        (
            "keras.Adafactor",
            {"weight_decay": 0.1},
            "keras.Adafactor(weight_decay=0.1)",
        ),
        ("Adafactor", {"weight_decay": 0.1}, "Adafactor(weight_decay=0.1)"),
        ("keras.Adam", {"beta_1": 0.5}, "Adam(beta_1=0.5)"),
    ],
)
def test_with_arguments_adds_or_replaces_arguments_of_a_text(text, arguments, expected):
    written = optimizers.with_arguments(text, arguments)
    assert written == expected
    optimizer_class, own = optimizers.parse(text)
    assert optimizers.parse(written) == (optimizer_class, own | arguments)


@pytest.mark.parametrize("name", optimizers.names())
def test_every_name_makes_an_optimizer_with_a_default_learning_rate(name):
    rate = optimizers.default_learning_rate(name)
    assert 0 < rate < 1
    made = optimizers.make(name, rate)
    assert type(made).__name__ == name
    # It equals the optimizer that the class makes without arguments.
    theirs = type(made)()
    assert made.get_config() | {"name": None} == theirs.get_config() | {"name": None}


def test_the_names_are_those_of_this_library_and_then_those_of_keras():
    names = optimizers.names()
    assert len(set(names)) == len(names)
    ours = [name for name in names if hasattr(et_optimizer, name)]
    assert names[: len(ours)] == ours
    assert {"Adam", "SGD", "RMSprop", "Adagrad"} <= set(names)


def test_every_contender_makes_its_optimizer_at_its_learning_rate():
    for name, contender in CONTENDERS.items():
        assert contender.name == name
        optimizer_class, _ = optimizers.parse(contender.optimizer)
        if contender.why_unavailable() is None:
            made = optimizers.make(contender.optimizer, contender.learning_rate)
            assert type(made) is optimizer_class
            rate = float(made.learning_rate)
            assert rate == pytest.approx(contender.learning_rate, rel=1e-6)


def test_use_ema_is_refused():
    with pytest.raises(ValueError, match="Leave out use_ema"):
        optimizers.parse("Adam(use_ema=True)")
    assert optimizers.make("Adam(use_ema=False)", 0.1).use_ema is False
