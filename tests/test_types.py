"""Type annotations: mypy accepts right programs and finds errors in wrong ones."""

import importlib.resources
import inspect
import os
import pathlib
import re
import subprocess
import sys
import typing

import keras
import pytest

import et_optimizer
from et_optimizer import checks
from et_optimizer.optimizers.options import is_of_keras
from tests.published import functions_and_classes

pytestmark = pytest.mark.one_backend

ROOT = pathlib.Path(__file__).parents[1]

RIGHT = """
import keras
import numpy as np
from typing_extensions import assert_type

import et_optimizer
from et_optimizer import callbacks, frequent_directions, schedules
from et_optimizer.types import ByPath, LearningRate, Level

levels: ByPath[Level] = {"kernel": 2, ".*": "inf"}
rates: list[LearningRate] = [
    0.1,
    schedules.Warmup(schedules.InverseSquareRoot(0.1), warmup_steps=10),
    keras.optimizers.schedules.CosineDecay(0.1, decay_steps=10),
    lambda: 0.1,
]
rates.append(np.float64(0.1))  # Keras itself refuses a float32 one.
et_optimizer.ExtremeTensoring(
    level=np.int64(2), momentum_rank=np.int32(4), rate_scale=np.float32(2.0)
)
for rate in rates:
    et_optimizer.SM3(rate, level=levels, momentum_rank={"kernel": 4, "bias": None})
et_optimizer.ExtremeTensoring(
    tensor_index={"kernel": (2, 4), "bias": [2, 1]}, weight_decay=1, rate_scale=None
)
et_optimizer.SketchyShampoo(tensor_index=lambda path, shape: None, graft="rmsprop")
et_optimizer.SubsetNorm(axis={"kernel": 0, ".*": "auto"}, momentum_of="gradient")
et_optimizer.Adafactor(0.1, beta_2_decay=-0.8, rate_scale={"kernel": 2})

plan = et_optimizer.memory_plan({"kernel": (4, 2), "bias": ((2,), "bfloat16")})
plan = et_optimizer.memory_plan({"kernel": (64, 64)}, budget="10%")
assert_type(plan.state_bytes, int)
assert_type(plan.reason, str | None)
optimizer = et_optimizer.ExtremeTensoring(0.01, **plan.arguments)
assert_type(optimizer.beta_2, float | None)
assert_type(optimizer.skipped_steps, dict[str, int])
optimizer = et_optimizer.ExtremeTensoring.from_config(optimizer.get_config())

x, y = np.zeros((4, 4)), np.zeros((4, 2))
quality = callbacks.PreconditionerQuality((x, y), levels=[1, "inf"])
model = keras.Sequential([keras.Input((4,)), keras.layers.Dense(2)])
model.compile(optimizer=optimizer, loss="mse")
model.fit(x, y, callbacks=[quality], verbose=0)
assert_type(et_optimizer.memory_report(model.optimizer).rows[0].path, str)

index = et_optimizer.TensorIndex.from_shape([4, 2], "inf")
assert_type(index.modes, tuple[int, ...])
frequent_directions.update(frequent_directions.zeros(4, 2), np.ones((4, 1), "float32"))
"""

# A line of a program → mypy's code of its error.
WRONG = {
    "ExtremeTensoring(level=[1])": "arg-type",
    "ExtremeTensoring(level='infinite')": "arg-type",
    "ExtremeTensoring(level={'kernel': 1.5})": "dict-item",
    "ExtremeTensoring(tensor_index={'kernel': 8})": "dict-item",
    "ExtremeTensoring(learning_rate='0.1')": "arg-type",
    "ExtremeTensoring(learning_rate=round)": "arg-type",
    "ExtremeTensoring(lerning_rate=0.1)": "call-arg",
    "ExtremeTensoring(weight_decay='0.1')": "arg-type",
    "ExtremeTensoring(nonfinite='stop')": "arg-type",
    "ExtremeTensoring().beta_2 = 0.9": "misc",
    "SM3(variant='III')": "arg-type",
    "SM3(rate_scale='all')": "arg-type",
    "SM3(beta_1=0.9)": "call-arg",
    "Adafactor(momentum_dtype='float16')": "arg-type",
    "Adafactor(beta_2=0.999)": "call-arg",
    "SubsetNorm(axis='rows')": "arg-type",
    "Shampoo(graft='adam')": "arg-type",
    "SketchyShampoo(rank=2.5)": "arg-type",
    "SketchyAdagrad(level=1)": "call-arg",
    "TensorIndex.from_shape((4, 2), '1')": "arg-type",
    "TensorIndex.from_sizes((4, 2), 8)": "arg-type",
    "callbacks.PreconditionerQuality((1, 2), levels=3)": "arg-type",
    "callbacks.SpectrumMonitor((1, 2), frequency='batch')": "arg-type",
    "frequent_directions.zeros(4, '2')": "arg-type",
    "memory_plan({}, budget=0.01)": "arg-type",
    "memory_plan({}).state_byte": "attr-defined",
    "schedules.Warmup('0.1', warmup_steps=10)": "arg-type",
    "schedules.Cooldown(0.1)": "call-arg",
}


def test_mypy_accepts_a_right_program_and_finds_every_error_of_a_wrong_one(tmp_path):
    right, wrong = tmp_path / "right.py", tmp_path / "wrong.py"
    right.write_text(RIGHT)
    wrong.write_text("\n".join(["from et_optimizer import *", *WRONG]))
    found = subprocess.run(
        [sys.executable, "-m", "mypy", right, wrong],
        env=os.environ | {"MYPYPATH": str(ROOT)},
        cwd=ROOT,
        capture_output=True,
        text=True,
    )
    errors = re.findall(r"([^/\n]*\.py):(\d+): error: .*\[(.*)\]", found.stdout)
    expected = [("wrong.py", str(i), kind) for i, kind in enumerate(WRONG.values(), 2)]
    assert errors == expected, found.stdout + found.stderr


def test_the_program_that_mypy_accepts_runs():
    exec(RIGHT, {})


def functions_of(value):
    """The `(name, function)` of a function, or of a class's public methods."""
    if not inspect.isclass(value):
        yield value.__name__, value
        return
    for base in value.__mro__:
        if not base.__module__.startswith("et_optimizer"):
            continue
        for name, member in vars(base).items():
            if name.startswith("_") and name not in ("__init__", "__call__"):
                continue
            member = getattr(member, "__func__", member)
            if isinstance(member, property):
                # An annotated attribute needs no annotated getter.
                member = None if name in base.__annotations__ else member.fget
            if inspect.isfunction(member):
                yield f"{base.__name__}.{name}", member


def test_every_argument_and_result_of_a_public_function_is_annotated():
    functions = {
        name: function
        for module in (et_optimizer, checks)
        for value in functions_and_classes(module)
        for name, function in functions_of(value)
    }
    names = {
        "memory_plan",
        "LevelledOptimizer.get_config",
        "Warmup.__call__",
        "TensorIndex.modes",
    }
    assert names <= functions.keys()
    for name, function in functions.items():
        wanted = {*inspect.signature(function).parameters, "return"} - {"self", "cls"}
        if name.endswith("__init__"):
            wanted.remove("return")
        assert wanted <= typing.get_type_hints(function).keys(), name


def test_arguments_of_every_keras_optimizer_have_the_defaults_of_keras():
    of_keras = inspect.signature(keras.optimizers.Optimizer.__init__).parameters
    ours = inspect.signature(et_optimizer.SM3).parameters
    passed_on = {n: p.default for n, p in ours.items() if is_of_keras(p)}
    del passed_on["learning_rate"]
    assert passed_on == {name: of_keras[name].default for name in passed_on}
    assert of_keras.keys() - passed_on.keys() <= {"self", "learning_rate", "kwargs"}


def test_the_package_has_a_py_typed_marker():
    assert importlib.resources.files(et_optimizer).joinpath("py.typed").is_file()
