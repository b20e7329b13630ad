"""Keras's own tests of optimizers, with the optimizers of this library in place of its.

What the installed Keras tests of its optimizers, whichever they are, it tests of these.
"""

import re
import types
import unittest

import pytest
from keras import backend
from keras.src.optimizers import (
    loss_scale_optimizer_test,
    multi_optimizer_test,
    optimizer_sparse_test,
    optimizer_test,
)

from tests.optimizers import ALL_CLASSES, ONE_OF_EACH, OPTIMIZERS

# Every class under PyTorch, which compiles nothing; in what the other backends have of
# their own, all classes take the same way to Keras.
CLASSES = ALL_CLASSES if backend.backend() == "torch" else ["ExtremeTensoring"]
MAKERS = {name: OPTIMIZERS[name] for name in CLASSES}
OF_KERAS = ("SGD", "Adam", "AdamW", "RMSprop")

OF_ANOTHER_RULE = {
    # The numbers that SGD gives.
    "test_apply_with_no_vars",
    "test_callable_learning_rate",
    "test_custom_callable_function",
    "test_ema",
    "test_ema_with_model_fit",
    "test_empty_gradients",
    "test_finite_step_stateful",
    "test_finite_step_stateless",
    "test_finite_step_with_inner_loss_scale_stateful",
    "test_finite_step_with_inner_loss_scale_stateless",
    "test_gradient_accumulation",
    "test_gradient_unscaling",
    "test_multi_optimizer_with_model_fit",
    "test_multi_optimizer_wrapped_in_loss_scale_optimizer",
    "test_overwrite_with_gradient",
    "test_overwrite_with_gradient_with_gradient_accumulation",
    "test_stateful_apply",
    "test_stateless_apply",
    "test_static_loss_scaling",
    # The names of Keras's classes.
    "test_get_method",
    "test_optimizer_auto_naming",
    "test_serialization",
}


def cases(module, suite):
    """The tests of a class, of those with a parameter for each of Keras's rules one."""
    names = unittest.TestLoader().getTestCaseNames(getattr(module, suite))
    return [
        pytest.param(getattr(module, suite), name, id=f"{suite}-{name}")
        for name in names
        if not re.search(r"(decay|optimizers)[1-9]\d*$", name)
        and name not in OF_ANOTHER_RULE
    ]


def in_place(make):
    """The optimizer for the arguments of one of Keras's."""

    def made(learning_rate=0.01, momentum=0.0, nesterov=False, **kwargs):
        return make(learning_rate=learning_rate, **kwargs)

    return made


def run(case, name):
    for mark in getattr(getattr(case, name), "pytestmark", []):
        if mark.name == "skipif" and mark.args[0]:
            pytest.skip(mark.kwargs["reason"])
    case.debug()


@pytest.mark.parametrize("make", MAKERS.values(), ids=MAKERS)
@pytest.mark.parametrize(
    ("suite", "name"),
    [
        *cases(optimizer_test, "OptimizerTest"),
        *cases(loss_scale_optimizer_test, "LossScaleOptimizerTest"),
        *cases(multi_optimizer_test, "MultiOptimizerTest"),
    ],
)
def test_what_keras_tests_of_its_optimizers(make, suite, name, monkeypatch):
    ours = in_place(make)

    def get(given):
        return ours(**given["config"]) if isinstance(given, dict) else ours()

    module = __import__(suite.__module__, fromlist=["optimizers"])
    if hasattr(module, "SGD"):
        monkeypatch.setattr(module, "SGD", ours)
    if hasattr(module, "optimizers"):
        names = vars(module.optimizers) | dict.fromkeys(OF_KERAS, ours) | {"get": get}
        monkeypatch.setattr(module, "optimizers", types.SimpleNamespace(**names))
    run(suite(name), name)


EVERY_CLASS = {name: OPTIMIZERS[name] for name in ALL_CLASSES}
# On JAX, whose programs are compiled operation by operation here, some of them.
OF_SPARSE = ONE_OF_EACH if backend.backend() == "jax" else EVERY_CLASS
# Rows stay rows where every entry does not move at every step.
KEEP_ROWS = {
    name: make
    for name, make in EVERY_CLASS.items()
    if not name.startswith(("Shampoo", "Sketchy"))
}


@pytest.mark.skipif(
    backend.backend() == "torch", reason="Keras has no sparse tensors on PyTorch"
)
@pytest.mark.parametrize("make", OF_SPARSE.values(), ids=OF_SPARSE)
@pytest.mark.parametrize("kept", [True, False])
@pytest.mark.parametrize("name", ["test_sparse_gradients", "test_sparse_correctness"])
def test_what_keras_tests_of_sparse_gradients(make, kept, name):
    """`kept`: without momentum, which makes rows dense."""
    suite = optimizer_sparse_test.OptimizerSparseTest
    (of_one,) = {
        getattr(suite, test).__wrapped__
        for test in unittest.TestLoader().getTestCaseNames(suite)
        if test.startswith(f"{name}_sgd_nesterov") or test == f"{name}_sgd"
    }
    arguments = {"momentum_rank": 0} if kept else {}
    is_by_rows = make in KEEP_ROWS.values() and (
        kept or not make().momentum_decays()[0]
    )
    of_one(
        suite(f"{name}_sgd"),
        make,
        arguments,
        expect_model_sparse_variable_updates=is_by_rows,
    )
