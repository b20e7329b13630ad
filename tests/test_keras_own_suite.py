"""Keras's own tests of optimizers, run on the optimizers of this library.

They are the tests of the installed Keras, so a new release brings its own.
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

from tests.optimizers import ALL_CLASSES, OPTIMIZERS, SLOTS_OF_EACH_KIND

# Every class under PyTorch, which compiles nothing. What Keras does differently on the
# other backends does not depend on the class.
CLASSES = ALL_CLASSES if backend.backend() == "torch" else ["ExtremeTensoring"]
MAKERS = {name: OPTIMIZERS[name] for name in CLASSES}
KERAS_CLASSES = ("SGD", "Adam", "AdamW", "RMSprop")

EXCLUDED = {
    # They expect the results of SGD.
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
    # They expect the names of Keras's classes.
    "test_get_method",
    "test_optimizer_auto_naming",
    "test_serialization",
}


def cases(module, suite):
    """The tests of a class, with only one of those that repeat for each Keras rule."""
    names = unittest.TestLoader().getTestCaseNames(getattr(module, suite))
    return [
        pytest.param(getattr(module, suite), name, id=f"{suite}-{name}")
        for name in names
        if not re.search(r"(decay|optimizers)[1-9]\d*$", name) and name not in EXCLUDED
    ]


def takes_keras_arguments(make):
    """The optimizer, made from the arguments of one of Keras's."""

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
def test_it_passes_keras_tests_of_optimizers(make, suite, name, monkeypatch):
    ours = takes_keras_arguments(make)

    def get(given):
        return ours(**given["config"]) if isinstance(given, dict) else ours()

    module = __import__(suite.__module__, fromlist=["optimizers"])
    if hasattr(module, "SGD"):
        monkeypatch.setattr(module, "SGD", ours)
    if hasattr(module, "optimizers"):
        names = (
            vars(module.optimizers) | dict.fromkeys(KERAS_CLASSES, ours) | {"get": get}
        )
        monkeypatch.setattr(module, "optimizers", types.SimpleNamespace(**names))
    run(suite(name), name)


# JAX compiles operation by operation here, so one class is enough there.
SPARSE = ["ExtremeTensoring"] if backend.backend() == "jax" else SLOTS_OF_EACH_KIND


@pytest.mark.skipif(
    backend.backend() == "torch", reason="Keras has no sparse tensors on PyTorch"
)
@pytest.mark.parametrize("optimizer", SPARSE)
@pytest.mark.parametrize("has_momentum", [False, True])
@pytest.mark.parametrize("name", ["test_sparse_gradients", "test_sparse_correctness"])
def test_it_passes_keras_tests_of_sparse_gradients(optimizer, has_momentum, name):
    make = OPTIMIZERS[optimizer]
    suite = optimizer_sparse_test.OptimizerSparseTest
    (test_of_one,) = {
        getattr(suite, test).__wrapped__
        for test in unittest.TestLoader().getTestCaseNames(suite)
        if test.startswith(f"{name}_sgd_nesterov") or test == f"{name}_sgd"
    }
    arguments = {} if has_momentum else {"momentum_rank": 0}
    # A step updates rows only if no other row moves: momentum moves all, and so do the
    # covariances of (Sketchy)Shampoo and the polar factor of Muon.
    is_dense = optimizer.startswith(("Sketchy", "Muon")) or has_momentum
    test_of_one(
        suite(f"{name}_sgd"),
        make,
        arguments,
        expect_model_sparse_variable_updates=not is_dense,
    )
