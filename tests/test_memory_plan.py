"""What a model and an optimizer will hold, planned before anything is allocated."""

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

import et_optimizer
from et_optimizer import ExtremeTensoring, memory_plan, memory_report
from et_optimizer.compilers import tracing
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
    "RMSprop with all": functools.partial(
        keras.optimizers.RMSprop, momentum=0.9, centered=True
    ),
    "AMSGrad": functools.partial(keras.optimizers.Adam, amsgrad=True),
    "averaged weights": functools.partial(ExtremeTensoring, use_ema=True),
    "accumulated gradients": functools.partial(
        keras.optimizers.Lion, gradient_accumulation_steps=4
    ),
    "with a schedule": functools.partial(ExtremeTensoring, SCHEDULE),
    "with a function for its rate": lambda: keras.optimizers.Adam(lambda: 0.1),
    "by path": functools.partial(
        ExtremeTensoring, level={"embeddings": 1, ".*": 2}, momentum_rank={"kernel": 2}
    ),
    "with scaled losses": lambda: keras.optimizers.LossScaleOptimizer(
        ExtremeTensoring(level=2)
    ),
    "Muon without embeddings": functools.partial(
        keras.optimizers.Muon, exclude_layers=["conv"]
    ),
    "several": lambda: keras.optimizers.MultiOptimizer(
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


def variables(shapes):
    """Variables of these shapes, with memory."""
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
    """What an optimizer holds that is really built."""
    optimizer.build(variables(shapes))
    return memory_report(optimizer)


def outcome(function):
    """What a function returns, or says when it refuses."""
    try:
        return function()
    except ValueError as error:
        return str(error)


@pytest.mark.parametrize("make", EVERY_OPTIMIZER.values(), ids=EVERY_OPTIMIZER)
def test_what_is_planned_is_what_is_then_counted(make):
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
def test_any_shapes_are_planned_as_they_are_counted_or_refused(make, shapes):
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
    model = Subclass(name="own")
    model(keras.KerasTensor((None, 4, 7)))
    model.compile("adam", "mse")
    return model


def in_bfloat16():
    return keras.Sequential(
        [keras.Input((9,)), keras.layers.Dense(70, dtype="bfloat16", name="dense")],
        name="net",
    )


@pytest.mark.parametrize("make", [language_model, subclassed, in_bfloat16])
def test_a_model_its_shapes_and_a_function_that_makes_it_have_one_plan(make):
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


def test_frozen_layers_take_memory_but_have_neither_gradient_nor_state():
    model = language_model()
    assert "wide/kernel" in [row.path for row in memory_plan(model).rows]
    model.get_layer("wide").trainable = False
    plan = memory_plan(model)
    assert "wide/kernel" not in [row.path for row in plan.rows]
    assert plan.frozen_numbers == 12 * 48 + 48 + 2 * 12
    assert f"those that are not trained {plan.frozen_bytes:,}" in str(plan)
    assert plan.numbers == model.count_params()
    model.trainable = False
    plan = memory_plan(model)
    assert plan.state_bytes == plan.gradient_bytes == 0
    assert plan.bytes == plan.frozen_bytes == 4 * model.count_params()


def test_a_plan_changes_neither_optimizer_nor_names_nor_random_numbers():
    optimizer = ExtremeTensoring(learning_rate=SCHEDULE, level=2)
    wrapped = keras.optimizers.LossScaleOptimizer(optimizer)
    memory_plan(language_model, wrapped)
    assert not optimizer.built and not wrapped.built
    assert len(optimizer.variables) == 1
    built = keras.optimizers.Adam()
    built.build(variables(SHAPES))
    before = list(built.variables)
    keras.layers.Dense(1)
    drawn = random.getstate()
    plan = memory_plan(lambda: keras.Sequential([keras.Input((2,)), dense()]), built)
    assert random.getstate() == drawn
    assert [row.path for row in plan.rows][0] == "sequential/dense/kernel"
    assert all(one is other for one, other in zip(built.variables, before))
    assert keras.layers.Dense(1).name == "dense_1"
    # In a fresh process the model gets the names that it was planned with.
    assert keras.Sequential([keras.Input((2,))]).name == "sequential"


def dense():
    return keras.layers.Dense(3)


def test_a_function_makes_its_model_with_the_callers_dtype_policy():
    keras.config.set_dtype_policy("bfloat16")
    plan = memory_plan(language_model)
    assert plan.weight_bytes == 2 * plan.state.model_numbers


@contextlib.contextmanager
def at_most(more):
    """Lets this process have no more than so many bytes of address space more."""
    resource = pytest.importorskip("resource")
    status = pathlib.Path("/proc/self/statm")
    if not status.exists():
        pytest.skip("it is Linux that tells")
    before = resource.getrlimit(resource.RLIMIT_AS)
    pages = int(status.read_text().split()[0])
    limit = pages * resource.getpagesize() + more
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
def test_a_model_far_too_large_for_this_machine_is_planned_in_little_memory(optimizer):
    with at_most(3 * 2**30):
        plan = memory_plan(too_large, optimizer())
    assert plan.weight_bytes > 150e9
    largest = max(plan.rows, key=lambda row: row.model_numbers)
    assert 4 * largest.model_numbers > 3 * 2**30  # of which not even one would fit
    # The embeddings, and of each layer four and eight squares of the width.
    width = 32_768
    assert plan.numbers > 50_257 * width + 3 * 12 * width**2


def test_what_a_function_makes_for_a_plan_has_shapes_and_no_values():
    has_values = []

    def make():
        model = language_model()
        for weight in model.weights:
            value = keras.ops.multiply(weight, 1)
            is_meta = getattr(getattr(value, "device", None), "type", "") == "meta"
            has_values.append(tracing.is_known(value) and not is_meta)
        return model

    memory_plan(make)
    assert has_values and not any(has_values)


def gpt2_small():
    return gpt2(layers=12, heads=12, width=768)


@pytest.mark.one_backend
@pytest.mark.parametrize(
    ("arguments", "percent"),
    [({}, "1.2%"), ({"momentum_dtype": "int8"}, "0.8%"), ({"beta_1": 0.0}, "0.11%")],
)
def test_of_gpt2_small_is_held_what_the_readme_says(arguments, percent):
    plan = memory_plan(gpt2_small, ExtremeTensoring(**arguments))
    share = 100 * plan.state_bytes / plan.adam_bytes
    assert f"{share:.2g}%" == percent
    written = ", ".join(f"{k}={v!r}" for k, v in arguments.items()).replace("'", '"')
    name = f"`ExtremeTensoring({written})` |"
    for page in ("README.md", "docs/choosing.md"):
        rows = (pathlib.Path(__file__).parents[1] / page).read_text().splitlines()
        # That of GPT-2 is the only percentage that ends a row.
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


def order(shapes):
    return [setting.arguments for setting in budgets.settings(variables_of(shapes))]


def held(shapes, arguments):
    return memory_plan(shapes, ExtremeTensoring(**arguments)).state_bytes


@pytest.mark.one_backend
def test_memory_goes_to_levels_first_and_then_to_directions_of_momentum():
    first, rest = order(MODEL)[:5], order(MODEL)[5:]
    assert first == WITHOUT_MOMENTUM
    assert {one["level"] for one in rest} == {1}
    pairs = [(one["momentum_rank"], one["momentum_dtype"]) for one in rest]
    # "auto" is 16 of a width of 512; a quarter of it is the most.
    ranks = [1, 2, 4, 8, "auto", 32, 64, 128]
    assert pairs == [(rank, dtype) for rank in ranks for dtype in ("int8", "bfloat16")]
    bytes_held = [held(MODEL, arguments) for arguments in order(MODEL)]
    assert bytes_held == sorted(bytes_held)
    # What is chosen without a limit holds no more than full momentum, which did worse.
    assert bytes_held[-1] < held(MODEL, {"momentum_rank": None})


budgeted = st.dictionaries(
    paths, st.lists(st.integers(1, 99), max_size=3).map(tuple), min_size=1, max_size=4
)


@given(shapes=budgeted, percent=st.floats(0, 150), more=st.floats(0, 50))
def test_the_best_within_a_budget_is_chosen(shapes, percent, more):
    budget = f"{percent:.6f}%"
    try:
        plan = memory_plan(shapes, budget=budget)
    except ValueError as error:
        # What no budget meets, its smallest does, and a byte less does not.
        least = int(str(error).split("budget=")[-1].split()[0])
        assert memory_plan(shapes, budget=least).state_bytes == least
        with pytest.raises(ValueError, match="The smallest budget that can be met"):
            memory_plan(shapes, budget=least - 1)
        assert least > percent / 100 * memory_plan(shapes).adam_bytes - 1
        return
    allowed = float(budget[:-1]) / 100 * plan.adam_bytes + 1e-6
    # As it is really built from what JSON kept of the arguments.
    arguments = json.loads(json.dumps(plan.arguments))
    assert arguments == plan.arguments
    report = counted(ExtremeTensoring(**arguments), shapes)
    assert report == plan.state and report.bytes <= allowed
    place = order(shapes).index(arguments)
    for better in order(shapes)[place + 1 :]:
        assert held(shapes, better) > allowed
    larger = memory_plan(shapes, budget=f"{percent + more:.6f}%")
    assert order(shapes).index(larger.arguments) >= place


@pytest.mark.one_backend
def test_a_budget_that_is_just_held_is_met():
    shapes, adam_bytes = variables_of(MODEL), memory_plan(MODEL).adam_bytes
    before = None
    for setting in budgets.settings(shapes):
        exact = setting.held_for(shapes)
        arguments, _ = budgets.choose(shapes, exact, adam_bytes)
        assert arguments == setting.arguments
        if before is not None:
            arguments, _ = budgets.choose(shapes, exact - 1, adam_bytes)
            assert arguments == before
        before = setting.arguments


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
def test_a_budget_is_bytes_or_a_share_of_adams(budget, allowed):
    assert budgets.in_bytes(budget, adam_bytes=1000) == allowed


def test_a_share_is_of_adams_bytes_in_the_dtypes_of_the_variables():
    narrow = {path: (shape, "bfloat16") for path, shape in MODEL.items()}
    assert 2 * memory_plan(narrow).adam_bytes == memory_plan(MODEL).adam_bytes
    of_all, of_half = (memory_plan(m, budget="1%").state_bytes for m in (MODEL, narrow))
    assert of_half <= 0.01 * memory_plan(narrow).adam_bytes < of_all


@pytest.mark.parametrize(
    "budget",
    [True, -1, 0.01, 2e9, float("nan"), "1", "one percent", "-1%", "nan%", "1 TBit"]
    + ["1e-3%", "", "%", (1,), {}],
)
def test_a_budget_that_is_none_is_refused(budget):
    with pytest.raises(ValueError, match="budget must be bytes") as error:
        memory_plan(MODEL, budget=budget)
    assert f"received budget={budget!r}" in str(error.value)
    assert 'budget="1%"' in str(error.value)


def test_a_budget_leaves_no_choice_of_an_optimizer():
    with pytest.raises(ValueError, match="Leave the optimizer out"):
        memory_plan(MODEL, ExtremeTensoring(), budget="1%")


def expression(shapes):
    return budgets.expression_of_tokens(variables_of(shapes))


def test_axes_of_tokens_are_told_by_name_and_by_the_length_of_the_vocabulary():
    assert expression(MODEL) == "embeddings|logits"
    shapes = {
        "e/embeddings": (61, 12),
        "d/kernel": (12, 40),
        "head(1)/kernel": (12, 61),
    }
    found = expression(shapes)
    assert found == r"embeddings|logits|^head\(1\)/kernel$"
    optimizer = ExtremeTensoring(level={found: 1, ".*": 2}, beta_1=0.0)
    slots = {row.path: row.slots for row in counted(optimizer, shapes).rows}
    assert slots["e/embeddings"] == slots["head(1)/kernel"] == 61 + 12
    assert slots["d/kernel"] < 12 + 40
    # Neither positions nor segments are tokens, however many there are.
    others = {"position_embedding/embeddings": (99, 12), "segment/embeddings": (2, 12)}
    assert expression(shapes | others | {"w/kernel": (12, 99)}) == found
    # As many tokens as the width tell nothing of what else is as wide.
    assert expression({"p/embeddings": (12, 12), "d/kernel": (12, 12)}) == (
        "embeddings|logits"
    )
    for without in ({"a": (9, 4)}, {"embeddings": (9, 4)}):
        assert expression(without) is None
        assert "No variables were told apart" in memory_plan(without, budget=40).reason


def test_the_arguments_fit_the_model_that_the_function_makes():
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
def test_the_reason_says_what_was_chosen_and_what_would_be_next():
    plan = memory_plan(MODEL, budget="1%")
    place = order(MODEL).index(plan.arguments)
    after = budgets.settings(variables_of(MODEL))[place + 1]
    assert f"{plan.state_bytes:,} bytes" in plan.reason
    assert f"{int(0.01 * plan.adam_bytes):,} (1% of Adam's)" in plan.reason
    assert f"Next would be {after.words}" in plan.reason
    assert f"{held(MODEL, after.arguments):,} bytes" in plan.reason
    assert "was not found to pay" in memory_plan(MODEL, budget="100%").reason


def test_the_printed_plan_is_the_table_of_the_report_with_all_that_is_held():
    plan = memory_plan(MODEL, budget="1%")
    report = str(counted(ExtremeTensoring(**plan.arguments), MODEL)).splitlines()
    text = str(plan).splitlines()
    rows = [line for line in report if line.startswith(("│", "┃"))]
    assert [line for line in text if line.startswith(("│", "┃"))] == rows
    joined = " ".join(" ".join(text).split())
    for count in (plan.weight_bytes, plan.state_bytes, plan.bytes, plan.adam_bytes):
        assert f"{count:,}" in joined
    assert "What ExtremeTensoring would hold" in joined
    assert "ExtremeTensoring(level=1, momentum_rank=" in joined
    assert plan.reason in joined
    # Every digit of the numbers of a large model.
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
        ({3: (3, 4)}, "must be paths of variables, text; received 3"),
        ({"a": (3, None)}, r"tuple of integers, 0 or more; received \(3, None\) for"),
        ({"a": (3, -1)}, r"tuple of integers, 0 or more; received \(3, -1\) for 'a'"),
        ({"a": 3}, "tuple of integers, 0 or more; received 3 for 'a'"),
        ({"a": "kernel"}, "tuple of integers, 0 or more; received 'kernel' for 'a'"),
        ({"a": ((3,), "float7")}, "must be one that Keras knows; received 'float7'"),
        ({"a": ((3,), "int32")}, "Only floating-point variables can be trained"),
    ],
)
def test_what_is_no_model_is_refused(given, message):
    with pytest.raises(ValueError, match=message):
        memory_plan(given)


@pytest.mark.parametrize("optimizer", ["adam", keras.optimizers.Adam, 3])
def test_what_is_no_optimizer_is_refused(optimizer):
    with pytest.raises(ValueError, match="takes a Keras optimizer, or None"):
        memory_plan(MODEL, optimizer)


def test_an_error_of_the_function_is_the_callers():
    def broken():
        raise RuntimeError("of its own")

    drawn = random.getstate()
    with pytest.raises(RuntimeError, match="of its own"):
        memory_plan(broken)
    assert random.getstate() == drawn


def test_variables_that_take_their_gradient_have_nothing_held():
    made = variables({"a/kernel": (9, 4), "a/scale": (1,)})
    made[1].overwrite_with_gradient = True
    shapes = {v.path: v for v in made}
    for optimizer in (keras.optimizers.Adam, ExtremeTensoring):
        built = optimizer()
        built.build(made)
        assert memory_plan(shapes, optimizer()).state == memory_report(built)
    assert memory_plan(shapes, budget="100%").rows[1].slots == 0


def test_a_plan_is_frozen():
    with pytest.raises(dataclasses.FrozenInstanceError):
        memory_plan(MODEL).frozen_bytes = 3


def test_the_plan_is_of_the_default_optimizer_without_another():
    assert memory_plan(MODEL).state == counted(et_optimizer.ExtremeTensoring(), MODEL)


def test_an_optimizer_that_cannot_be_made_again_is_refused_with_the_remedy():
    mapping = keras.optimizers.OptimizerMap(keras.optimizers.Adam(lambda: 0.1), {})
    with pytest.raises(ValueError, match="without functions of your own"):
        memory_plan(MODEL, keras.optimizers.MultiOptimizer(mapping))


def test_the_width_of_a_small_table_is_no_vocabulary():
    shapes = {
        "segment/embeddings": (2, 768),
        "a/kernel": (768, 768),
        "b/kernel": (9, 9),
    }
    chosen = memory_plan(shapes, budget="0.2%").arguments
    found = [one.arguments["level"] for one in budgets.settings(variables_of(shapes))]
    assert {"embeddings|logits": 1, ".*": 2} in found
    assert chosen["level"] in found
