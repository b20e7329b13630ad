"""`memory_plan`: the memory of a model and an optimizer before they exist.

Every plan is compared with the report of an optimizer that is actually built.
"""

import contextlib
import dataclasses
import functools
import json
import pathlib
import random

import keras
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from et_optimizer import ExtremeTensoring, memory_plan, memory_report
from et_optimizer.compilers import symbolic, tracing
from et_optimizer.memory import budget as budgets
from et_optimizer.memory.shapes import variables_of
from tests.optimizers import OPTIMIZERS
from tests.test_memory import EVERY_KERAS_OPTIMIZER

KERAS_OPTIMIZERS = {
    f"keras {name}": getattr(keras.optimizers, name) for name in EVERY_KERAS_OPTIMIZER
}
SCHEDULE = keras.optimizers.schedules.CosineDecay(0.1, 100)
IN_OTHER_FORMS = {
    "SGD with momentum": functools.partial(keras.optimizers.SGD, 0.1, momentum=0.9),
    "centered RMSprop with momentum": functools.partial(
        keras.optimizers.RMSprop, momentum=0.9, centered=True
    ),
    "AMSGrad": functools.partial(keras.optimizers.Adam, amsgrad=True),
    "averaged weights": functools.partial(ExtremeTensoring, use_ema=True),
    "accumulated gradients": functools.partial(
        keras.optimizers.Lion, gradient_accumulation_steps=4
    ),
    "with a schedule": functools.partial(ExtremeTensoring, SCHEDULE),
    "with a learning-rate function": lambda: keras.optimizers.Adam(lambda: 0.1),
    "by path": functools.partial(
        ExtremeTensoring, level={"embeddings": 1, ".*": 2}, momentum_rank={"kernel": 2}
    ),
    "with loss scaling": lambda: keras.optimizers.LossScaleOptimizer(
        ExtremeTensoring(level=2)
    ),
    "Muon without embeddings": functools.partial(
        keras.optimizers.Muon, exclude_layers=["conv"]
    ),
    "several optimizers": lambda: keras.optimizers.MultiOptimizer(
        keras.optimizers.OptimizerMap(
            keras.optimizers.Adam(), {".*kernel": ExtremeTensoring()}
        )
    ),
}
EVERY_OPTIMIZER = OPTIMIZERS | KERAS_OPTIMIZERS | IN_OTHER_FORMS

SHAPES = {
    "net/embedding/embeddings": (61, 12),
    "net/conv/kernel": (3, 3, 4, 6),
    "net/attention/query/kernel": ((12, 2, 6), "bfloat16"),
    "net/dense/kernel": (12, 40),
    "net/dense/bias": (40,),
    "net/scale": (),
}


def allocated(shapes):
    """Keras variables of these shapes."""
    made = []
    for path, shape in shapes.items():
        of_pair = len(shape) == 2 and isinstance(shape[1], str)
        shape, dtype = shape if of_pair else (shape, "float32")
        *scopes, name = path.split("/")
        with contextlib.ExitStack() as stack:
            for scope in scopes:
                stack.enter_context(keras.name_scope(scope))
            made.append(keras.Variable("zeros", shape=shape, dtype=dtype, name=name))
    return made


def counted(optimizer, shapes):
    """The report of an optimizer built for allocated variables."""
    optimizer.build(allocated(shapes))
    return memory_report(optimizer)


def outcome(function):
    """A function's result, or the message of its `ValueError`."""
    try:
        return function()
    except ValueError as error:
        return str(error)


@pytest.mark.parametrize("make", EVERY_OPTIMIZER.values(), ids=EVERY_OPTIMIZER)
def test_a_plan_equals_the_report_of_the_built_optimizer(make):
    shapes = SHAPES if make().name != "subset_norm" else dict(list(SHAPES.items())[:-1])
    plan = memory_plan(shapes, make())
    assert plan.state == counted(make(), shapes)


sizes = st.lists(st.integers(0, 14), max_size=4).map(tuple)
shapes_and_dtypes = st.tuples(
    sizes, st.sampled_from(["float32", "bfloat16", "float16"])
)
names = st.sampled_from(["kernel", "bias", "embeddings", "logits", "a name (1)"])
paths = st.builds("{}/{}".format, st.sampled_from(["a", "b/c", "embed"]), names)
models = st.dictionaries(paths, shapes_and_dtypes, min_size=1, max_size=5)


@given(make=st.sampled_from(list(EVERY_OPTIMIZER.values())), shapes=models)
def test_any_shapes_are_planned_or_refused_as_the_built_optimizer_does(make, shapes):
    planned = outcome(lambda: memory_plan(shapes, make()).state)
    assert planned == outcome(lambda: counted(make(), shapes))


def language_model(tokens=61, width=12, head="logits"):
    inputs = keras.Input((None,), dtype="int32")
    x = keras.layers.Embedding(tokens, width, name="embedding")(inputs)
    x = keras.layers.Dense(4 * width, activation="relu", name="wide")(x)
    x = keras.layers.Dropout(0.1)(x)
    x = keras.layers.Dense(width, name="narrow")(x)
    x = keras.layers.BatchNormalization(name="norm")(x)
    return keras.Model(inputs, keras.layers.Dense(tokens, name=head)(x), name="lm")


class Subclass(keras.Model):
    def __init__(self, **arguments):
        super().__init__(**arguments)
        self.recurrent = keras.layers.GRU(5, name="gru")
        self.dense = keras.layers.Dense(3, name="dense")

    def call(self, x):
        return self.dense(self.recurrent(x))


def subclassed():
    model = Subclass(name="subclass")
    model(keras.KerasTensor((None, 4, 7)))
    model.compile("adam", "mse")
    return model


def in_bfloat16():
    return keras.Sequential(
        [keras.Input((9,)), keras.layers.Dense(70, dtype="bfloat16", name="dense")],
        name="net",
    )


@pytest.mark.parametrize("make", [language_model, subclassed, in_bfloat16])
def test_a_model_its_shapes_and_a_function_that_returns_it_have_the_same_plan(make):
    model = make()
    plan = memory_plan(model, keras.optimizers.Adam())
    assert memory_plan(make, keras.optimizers.Adam()) == plan
    trained = {v.path: v for v in model.trainable_variables}
    assert memory_plan(trained, keras.optimizers.Adam()).state == plan.state
    specs = {v.path: keras.KerasTensor(v.shape, v.dtype) for v in trained.values()}
    assert memory_plan(specs, keras.optimizers.Adam()).state == plan.state
    optimizer = keras.optimizers.Adam()
    optimizer.build(model.trainable_variables)
    assert memory_report(optimizer) == plan.state


def nbytes(weights):
    size = {"float32": 4, "bfloat16": 2}
    return sum(int(np.prod(w.shape)) * size[w.dtype] for w in weights)


@pytest.mark.parametrize("make", [language_model, in_bfloat16])
def test_a_plan_counts_weights_gradients_and_state_in_their_dtypes(make):
    model = make()
    plan = memory_plan(model, keras.optimizers.Adam())
    trained, frozen = model.trainable_weights, model.non_trainable_weights
    assert plan.weight_bytes == plan.gradient_bytes == nbytes(trained)
    assert plan.frozen_bytes == nbytes(frozen)
    assert plan.state_bytes == plan.adam_bytes == 2 * nbytes(trained)
    assert plan.bytes == 4 * nbytes(trained) + nbytes(frozen)
    assert plan.numbers == model.count_params()
    assert plan.bytes_per_weight == plan.bytes / model.count_params()
    assert plan.state_numbers == 2 * sum(int(np.prod(w.shape)) for w in trained)
    assert [row.path for row in plan.rows] == [w.path for w in trained]
    assert plan.arguments is None and plan.reason is None


def test_frozen_weights_are_counted_without_gradient_and_state():
    model = language_model()
    assert "wide/kernel" in [row.path for row in memory_plan(model).rows]
    model.get_layer("wide").trainable = False
    plan = memory_plan(model)
    assert "wide/kernel" not in [row.path for row in plan.rows]
    assert plan.frozen_numbers == 12 * 48 + 48 + 2 * 12
    assert f"frozen weights {plan.frozen_bytes:,}" in str(plan)
    assert plan.numbers == model.count_params()
    model.trainable = False
    plan = memory_plan(model)
    assert plan.state_bytes == plan.gradient_bytes == 0
    assert plan.bytes == plan.frozen_bytes == 4 * model.count_params()


def test_a_plan_leaves_optimizer_layer_names_and_random_state_unchanged():
    optimizer = ExtremeTensoring(learning_rate=SCHEDULE, level=2)
    wrapped = keras.optimizers.LossScaleOptimizer(optimizer)
    memory_plan(language_model, wrapped)
    assert not optimizer.built and not wrapped.built
    assert len(optimizer.variables) == 1
    built = keras.optimizers.Adam()
    built.build(allocated(SHAPES))
    before = list(built.variables)
    keras.layers.Dense(1)
    random_state = random.getstate()
    plan = memory_plan(lambda: keras.Sequential([keras.Input((2,)), dense()]), built)
    assert random.getstate() == random_state
    assert [row.path for row in plan.rows][0] == "sequential/dense/kernel"
    assert all(one is other for one, other in zip(built.variables, before))
    assert keras.layers.Dense(1).name == "dense_1"
    # Planning does not advance the caller's name counters.
    assert keras.Sequential([keras.Input((2,))]).name == "sequential"


def dense():
    return keras.layers.Dense(3)


def test_the_function_runs_with_the_callers_dtype_policy():
    keras.config.set_dtype_policy("bfloat16")
    plan = memory_plan(language_model)
    assert plan.weight_bytes == 2 * plan.state.model_numbers


@contextlib.contextmanager
def at_most(additional_bytes):
    """Limits the address space that this process may add to what it has."""
    resource = pytest.importorskip("resource")
    status = pathlib.Path("/proc/self/statm")
    if not status.exists():
        pytest.skip("needs Linux's /proc")
    before = resource.getrlimit(resource.RLIMIT_AS)
    pages = int(status.read_text().split()[0])
    limit = pages * resource.getpagesize() + additional_bytes
    resource.setrlimit(resource.RLIMIT_AS, (limit, before[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_AS, before)


def gpt2(layers, heads, width):
    return pytest.importorskip("keras_hub").models.GPT2Backbone(
        vocabulary_size=50_257,
        num_layers=layers,
        num_heads=heads,
        hidden_dim=width,
        intermediate_dim=4 * width,
        max_sequence_length=1024,
    )


def too_large():
    backbone = gpt2(layers=3, heads=64, width=32_768)
    causal = pytest.importorskip("keras_hub").models.GPT2CausalLM
    return causal(backbone=backbone, preprocessor=None)


@pytest.mark.parametrize(
    "optimizer", [keras.optimizers.Adam, keras.optimizers.Adafactor, ExtremeTensoring]
)
def test_a_model_too_large_for_this_machine_is_planned_in_little_memory(optimizer):
    with at_most(3 * 2**30):
        plan = memory_plan(too_large, optimizer())
    assert plan.weight_bytes > 150e9
    largest = max(plan.rows, key=lambda row: row.model_numbers)
    assert 4 * largest.model_numbers > 3 * 2**30  # not even this one would fit
    # Embeddings, and per layer 4 (attention) + 8 (MLP) matrices of width².
    width = 32_768
    assert plan.numbers > 50_257 * width + 3 * 12 * width**2


def test_variables_created_for_a_plan_have_no_values():
    has_values = []

    def make():
        assert symbolic.is_active()
        model = language_model()
        for weight in model.weights:
            value = keras.ops.multiply(weight, 1)
            is_meta = getattr(getattr(value, "device", None), "type", "") == "meta"
            has_values.append(tracing.is_concrete(value) and not is_meta)
        return model

    memory_plan(make)
    assert has_values and not any(has_values)
    assert not symbolic.is_active()


def gpt2_small():
    return gpt2(layers=12, heads=12, width=768)


@pytest.mark.one_backend
@pytest.mark.parametrize(
    ("arguments", "percent"),
    [({}, "1.2%"), ({"momentum_dtype": "int8"}, "0.8%"), ({"beta_1": 0.0}, "0.11%")],
)
def test_the_share_of_adams_state_for_gpt2_small_is_as_documented(arguments, percent):
    plan = memory_plan(gpt2_small, ExtremeTensoring(**arguments))
    share = 100 * plan.state_bytes / plan.adam_bytes
    assert f"{share:.2g}%" == percent
    written = ", ".join(f"{k}={v!r}" for k, v in arguments.items()).replace("'", '"')
    name = f"`ExtremeTensoring({written})` |"
    for page in ("README.md", "docs/choosing.md"):
        rows = (pathlib.Path(__file__).parents[1] / page).read_text().splitlines()
        # Only the column of GPT-2 ends a row with a percentage.
        (row,) = [r for r in rows if name in r and r.endswith("% |")]
        assert row.endswith(f"| {percent} |")


WITHOUT_MOMENTUM = [
    {"level": "inf", "beta_1": 0.0},
    {"level": 3, "beta_1": 0.0},
    {"level": 2, "beta_1": 0.0},
    {"level": {"embeddings|logits": 1, ".*": 2}, "beta_1": 0.0},
    {"level": 1, "beta_1": 0.0},
]
MODEL = {
    "lm/embedding/embeddings": (2048, 512),
    "lm/dense/kernel": (512, 1024),
    "lm/dense/bias": (1024,),
    "lm/logits/kernel": (512, 2048),
}


def settings(shapes):
    return budgets.settings(variables_of(shapes))


def state_bytes(shapes, arguments):
    return memory_plan(shapes, ExtremeTensoring(**arguments)).state_bytes


@pytest.mark.one_backend
def test_a_budget_buys_levels_first_and_then_momentum_rank():
    first, rest = settings(MODEL)[:5], settings(MODEL)[5:]
    assert first == WITHOUT_MOMENTUM
    assert {one["level"] for one in rest} == {1}
    pairs = [(one["momentum_rank"], one["momentum_dtype"]) for one in rest]
    # "auto" is 16 at width 512; the largest rank is a quarter of the width.
    ranks = [1, 2, 4, 8, "auto", 32, 64, 128]
    assert pairs == [(rank, dtype) for rank in ranks for dtype in ("int8", "bfloat16")]
    sizes = [state_bytes(MODEL, arguments) for arguments in settings(MODEL)]
    assert sizes == sorted(sizes)
    # Even the largest choice is smaller than full momentum, which was worse.
    assert sizes[-1] < state_bytes(MODEL, {"momentum_rank": None})


budgeted = st.dictionaries(
    paths, st.lists(st.integers(1, 99), max_size=3).map(tuple), min_size=1, max_size=4
)


@given(shapes=budgeted, percent=st.floats(0, 150), more=st.floats(0, 50))
def test_the_best_arguments_within_a_budget_are_chosen(shapes, percent, more):
    budget = f"{percent:.6f}%"
    try:
        plan = memory_plan(shapes, budget=budget)
    except ValueError as error:
        # The smallest budget that the message names fits, and one byte less does not.
        least = int(str(error).split("budget=")[-1].split()[0])
        assert memory_plan(shapes, budget=least).state_bytes == least
        with pytest.raises(ValueError, match="The smallest budget that can be met"):
            memory_plan(shapes, budget=least - 1)
        assert least > percent / 100 * memory_plan(shapes).adam_bytes - 1
        return
    allowed = float(budget[:-1]) / 100 * plan.adam_bytes + 1e-6
    # The arguments survive JSON, and the built optimizer takes what was planned.
    arguments = json.loads(json.dumps(plan.arguments))
    assert arguments == plan.arguments
    report = counted(ExtremeTensoring(**arguments), shapes)
    assert report == plan.state and report.bytes <= allowed
    place = settings(shapes).index(arguments)
    for better in settings(shapes)[place + 1 :]:
        assert state_bytes(shapes, better) > allowed
    larger = memory_plan(shapes, budget=f"{percent + more:.6f}%")
    assert settings(shapes).index(larger.arguments) >= place


@pytest.mark.one_backend
def test_a_budget_equal_to_the_state_is_met_and_one_byte_less_is_not():
    shapes, adam_bytes = variables_of(MODEL), memory_plan(MODEL).adam_bytes
    order = settings(MODEL)
    for place in (1, 3, 5, len(order) - 1):
        exact = budgets.state_bytes(order[place], shapes)
        assert budgets.choose(shapes, exact, adam_bytes)[0] == order[place]
        assert budgets.choose(shapes, exact - 1, adam_bytes)[0] == order[place - 1]


@pytest.mark.one_backend
@pytest.mark.parametrize(
    ("budget", "allowed"),
    [
        (0, 0),
        (np.int64(17), 17),
        ("1%", 10),
        (" 0.5 % ", 5),
        (".1%", 1),
        ("0.3%", 3),
        ("150%", 1500),
        ("17 B", 17),
        ("1.5kB", 1500),
        ("20 MB", 20_000_000),
        ("2 GiB", 2 * 2**30),
    ],
)
def test_a_budget_is_read_as_bytes_or_as_a_share_of_adams(budget, allowed):
    assert budgets.in_bytes(budget, adam_bytes=1000) == allowed


def test_a_share_refers_to_adams_bytes_in_the_dtypes_of_the_variables():
    narrow = {path: (shape, "bfloat16") for path, shape in MODEL.items()}
    assert 2 * memory_plan(narrow).adam_bytes == memory_plan(MODEL).adam_bytes
    wide, half = (memory_plan(m, budget="1%").state_bytes for m in (MODEL, narrow))
    assert half <= 0.01 * memory_plan(narrow).adam_bytes < wide


@pytest.mark.parametrize(
    "budget",
    [True, -1, 0.01, float("nan"), "1", "-1%", "nan%", "1e-3%", "1 TBit", "%", "", ()],
)
def test_an_invalid_budget_is_refused_with_an_example(budget):
    with pytest.raises(ValueError, match="budget must be a number of bytes") as error:
        memory_plan(MODEL, budget=budget)
    assert f"received budget={budget!r}" in str(error.value)
    assert 'budget="1%"' in str(error.value)


def test_a_budget_together_with_an_optimizer_is_refused():
    with pytest.raises(ValueError, match="Leave the optimizer out"):
        memory_plan(MODEL, ExtremeTensoring(), budget="1%")


def token_expression(shapes):
    return budgets.expression_of_tokens(variables_of(shapes))


def test_token_axes_are_recognized_by_name_and_by_the_vocabulary_size():
    assert token_expression(MODEL) == "embeddings|logits"
    shapes = {
        "e/embeddings": (61, 12),
        "d/kernel": (12, 40),
        "head(1)/kernel": (12, 61),
    }
    found = token_expression(shapes)
    assert found == r"embeddings|logits|^head\(1\)/kernel$"
    optimizer = ExtremeTensoring(level={found: 1, ".*": 2}, beta_1=0.0)
    slots = {row.path: row.slots for row in counted(optimizer, shapes).rows}
    assert slots["e/embeddings"] == slots["head(1)/kernel"] == 61 + 12
    assert slots["d/kernel"] < 12 + 40
    # Positions and segments are not tokens, however many there are.
    others = {"position_embedding/embeddings": (99, 12), "segment/embeddings": (2, 12)}
    assert token_expression(shapes | others | {"w/kernel": (12, 99)}) == found
    # A vocabulary as large as the width does not identify other variables.
    assert token_expression({"p/embeddings": (12, 12), "d/kernel": (12, 12)}) == (
        "embeddings|logits"
    )
    for without in ({"a": (9, 4)}, {"embeddings": (9, 4)}):
        assert token_expression(without) is None
        assert "were not distinguished" in memory_plan(without, budget=40).reason


def test_planned_arguments_apply_to_the_model_that_the_function_returns():
    def untied():
        return language_model(tokens=997, head="head")

    level = {"embeddings|logits|^head/kernel$|^head/bias$": 1, ".*": 2}
    expected = memory_plan(untied, ExtremeTensoring(level=level, beta_1=0.0))
    plan = memory_plan(untied, budget=expected.state_bytes)
    assert plan.arguments == {"level": level, "beta_1": 0.0}
    assert plan.state == expected.state
    model = untied()
    model.compile(ExtremeTensoring(**plan.arguments), "mse")
    model.optimizer.build(model.trainable_variables)
    assert memory_report(model.optimizer) == plan.state


@pytest.mark.one_backend
def test_the_reason_names_the_bytes_the_budget_and_the_next_choice():
    plan = memory_plan(MODEL, budget="1%")
    following = settings(MODEL)[settings(MODEL).index(plan.arguments) + 1]
    assert f"{plan.state_bytes:,} bytes" in plan.reason
    assert f"{int(0.01 * plan.adam_bytes):,} (1% of Adam's)" in plan.reason
    rank = following["momentum_rank"]
    assert f"The next choice is level=1, momentum_rank={rank!r}" in plan.reason
    assert f"{state_bytes(MODEL, following):,} bytes" in plan.reason
    reason = memory_plan(MODEL, budget="100%").reason
    assert "More memory did not improve" in reason


def test_the_printed_plan_has_the_reports_table_and_all_totals():
    plan = memory_plan(MODEL, budget="1%")
    report = str(counted(ExtremeTensoring(**plan.arguments), MODEL)).splitlines()
    text = str(plan).splitlines()
    rows = [line for line in report if line.startswith(("│", "┃"))]
    assert [line for line in text if line.startswith(("│", "┃"))] == rows
    joined = " ".join(" ".join(text).split())
    for count in (plan.weight_bytes, plan.state_bytes, plan.bytes, plan.adam_bytes):
        assert f"{count:,}" in joined
    assert "Planned memory of ExtremeTensoring" in joined
    assert "ExtremeTensoring(level=1, momentum_rank=" in joined
    assert plan.reason in joined
    # No digit of a large model's counts is cut off.
    wide = {"a/very/long/path/of/a/variable/kernel": (100_000, 1_000_000)}
    assert "100,000,000,000" in str(memory_plan(wide, keras.optimizers.Adam()))


def unbuilt():
    return keras.Sequential([keras.layers.Dense(3)])


@pytest.mark.parametrize("given", [unbuilt(), unbuilt, keras.layers.Dense(3)])
def test_an_unbuilt_model_is_refused_with_the_remedy(given):
    with pytest.raises(ValueError, match=r"not built. Call model.build\(input_shape\)"):
        memory_plan(given)


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ("gpt2", "takes a built Keras model, a dict .* received .* str"),
        ([(3, 4)], "takes a built Keras model, a dict .* received .* list"),
        (lambda: 3, "must return a Keras model; received .* int"),
        ({3: (3, 4)}, "must be variables' paths, strings; received 3"),
        ({"a": (3, None)}, r"tuple of integers, 0 or more; received \(3, None\) for"),
        ({"a": (3, -1)}, r"tuple of integers, 0 or more; received \(3, -1\) for 'a'"),
        ({"a": 3}, "tuple of integers, 0 or more; received 3 for 'a'"),
        ({"a": "kernel"}, "tuple of integers, 0 or more; received 'kernel' for 'a'"),
        ({"a": ((3,), "float7")}, "must be one that Keras knows; received 'float7'"),
        ({"a": ((3,), "int32")}, "Only floating-point variables can be trained"),
    ],
)
def test_an_invalid_model_or_shape_is_refused_with_the_remedy(given, message):
    with pytest.raises(ValueError, match=message):
        memory_plan(given)


@pytest.mark.parametrize("optimizer", ["adam", keras.optimizers.Adam, 3])
def test_an_invalid_optimizer_is_refused(optimizer):
    with pytest.raises(ValueError, match="takes a Keras optimizer, or None"):
        memory_plan(MODEL, optimizer)


def test_an_error_in_the_function_reaches_the_caller():
    def broken():
        raise RuntimeError("in the function")

    random_state = random.getstate()
    with pytest.raises(RuntimeError, match="in the function"):
        memory_plan(broken)
    assert random.getstate() == random_state


def test_variables_overwritten_with_their_gradient_have_no_state():
    made = allocated({"a/kernel": (9, 4), "a/scale": (1,)})
    made[1].overwrite_with_gradient = True
    shapes = {v.path: v for v in made}
    for optimizer in (keras.optimizers.Adam, ExtremeTensoring):
        built = optimizer()
        built.build(made)
        assert memory_plan(shapes, optimizer()).state == memory_report(built)
    assert memory_plan(shapes, budget="100%").rows[1].slots == 0


def test_a_plan_is_immutable():
    with pytest.raises(dataclasses.FrozenInstanceError):
        memory_plan(MODEL).frozen_bytes = 3


def test_the_default_optimizer_is_extreme_tensoring():
    assert memory_plan(MODEL).state == counted(ExtremeTensoring(), MODEL)


def test_an_optimizer_that_cannot_be_recreated_is_refused_with_the_remedy():
    mapping = keras.optimizers.OptimizerMap(keras.optimizers.Adam(lambda: 0.1), {})
    with pytest.raises(ValueError, match="without functions of your own"):
        memory_plan(MODEL, keras.optimizers.MultiOptimizer(mapping))


def test_the_width_of_a_small_table_is_not_taken_for_a_vocabulary():
    shapes = {
        "segment/embeddings": (2, 768),
        "a/kernel": (768, 768),
        "b/kernel": (9, 9),
    }
    assert {"embeddings|logits": 1, ".*": 2} in [s["level"] for s in settings(shapes)]
