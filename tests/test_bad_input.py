"""Bad input raises an error that names the value, the rule and the remedy.

An argument that all classes inherit is tried on one class, an argument of its own on
each class that declares it.
"""

import inspect

import keras
import numpy as np
import pytest
from keras import ops

import et_optimizer
from et_optimizer import (
    SM3,
    Adafactor,
    ExtremeTensoring,
    PreconditionedOptimizer,
    Shampoo,
    SketchyAdagrad,
    SketchyShampoo,
    SubsetNorm,
)
from et_optimizer.optimizers.levels import LevelledOptimizer
from tests.optimizers import ALL_CLASSES, LION, OPTIMIZERS

pytestmark = pytest.mark.one_backend

# All optimizers share the checks of gradients and variables, so three stand for all:
# a rule that takes any gradient, one that needs dense gradients, and one that is built
# outside the library.
FEW = ("ExtremeTensoring", "SketchyShampoo everything on", LION)
few_optimizers = pytest.mark.parametrize("make", [OPTIMIZERS[n] for n in FEW], ids=FEW)
each_class = pytest.mark.parametrize(
    "make", [OPTIMIZERS[n] for n in (*ALL_CLASSES, LION)], ids=(*ALL_CLASSES, LION)
)


# Argument, values that are refused, part of the error.
OUT_OF_RANGE = [
    ("level", [0, -1, 1.5, "2", None, [1, 2]], "level must be 1, 2, 3"),
    ("beta_1", [-0.1, 1.0, "0.9", None, float("nan")], r"number in \[0, 1\)"),
    ("momentum", [-0.1, 1.0, "0.9", None, float("nan")], r"number in \[0, 1\)"),
    ("beta_2", [-0.1, 1.0, 1.5, "0.9", float("nan")], r"in \[0, 1\) or None"),
    ("epsilon", [-1e-8, 1e-40, float("inf"), None, "0"], "must be 0 or a number"),
    ("clip_threshold", [0.0, -1.0, 1e-50, float("inf"), "1"], "between 1.2e-38"),
    ("statistic", ["max", None, 1], "'mean' or 'sum'"),
    ("variant", ["III", 2, None], "'I' or 'II'"),
    ("momentum_dtype", ["float16", None, 8], "'float32' or 'bfloat16' or 'int8'"),
    ("momentum_rank", [-1, 2.0, True, "all", [2]], '"auto", an integer ≥ 0'),
    ("refresh_every", [0, -1, 2.0, True, None], "an integer, 1 or more"),
    ("update_bound", [0.0, -1.0, 1e-50, float("inf"), "3"], "between 1.2e-38.*or None"),
    ("momentum_of", ["weights", None, 1], "'update' or 'gradient'"),
    ("combination", ["sum", None, 2], "'rank_one' or 'geometric'"),
    ("tensor_index", ["kernel", 3, [(4, 4)]], "must be None, a dict"),
    ("beta_2_decay", [0.8, 0, -1.5, None], r"number in \[-1, 0\)"),
    ("epsilon_1", [0.0, -1.0, 1e-50, None], "between 1.2e-38.*1e-30"),
    ("epsilon_2", [-1e-3, None], "must be 0 or a number"),
    ("relative_step", [1, None, "yes"], "True or False"),
    ("multiply_by_parameter_scale", [0, None], "True or False"),
    ("cap_learning_rate", [0, None], "True or False"),
    ("min_dim_size_to_factor", [-1, 2.0, True, None], "an integer, 0 or more"),
    ("rank", [0, -1, 2.0, True, None], "an integer, 1 or more"),
    ("block_size", [0, 2.0, None], "an integer, 1 or more"),
    ("update_every", [0, 2.0, None], "an integer, 1 or more"),
    ("start_preconditioning_step", [0, 2.0, None], "an integer, 1 or more"),
    ("graft", ["adam", 1, True], "'extreme_tensoring' or 'rmsprop' or 'sgd'"),
    ("relative_epsilon", [-1e-8, None, float("nan")], "must be 0 or a number"),
    ("merge_axes", [0, None], "True or False"),
    ("nonfinite", ["ignore", None], "'skip' or 'raise'"),
    ("stochastic_rounding", [None, "no", "auto", 0, 1], "True or False"),
    ("rate_scale", [0, -1.0, True, "8", float("inf"), [1]], '"auto", a number between'),
    ("spike_threshold", [0.0, -1.0, float("inf"), "10"], "between 1.2e-38.*or None"),
]
EVERY_CLASS = (
    ExtremeTensoring,
    SM3,
    Adafactor,
    SubsetNorm,
    Shampoo,
    SketchyShampoo,
    SketchyAdagrad,
)


def declaring_class(optimizer, argument):
    """The class whose code checks an argument of an optimizer."""
    for shared in (PreconditionedOptimizer, LevelledOptimizer):
        if issubclass(optimizer, shared) and argument in signature(shared):
            return shared
    return optimizer


def signature(optimizer):
    return inspect.signature(optimizer).parameters


# Class that checks it and argument → the case, with the first class that has it.
CASES = {}
for _optimizer in EVERY_CLASS:
    for _argument, *_rest in OUT_OF_RANGE:
        if _argument in signature(_optimizer):
            _key = (declaring_class(_optimizer, _argument), _argument)
            CASES.setdefault(_key, (_optimizer, _argument, *_rest))


@pytest.mark.parametrize(
    ("optimizer", "argument", "values", "message"),
    CASES.values(),
    ids=[f"{optimizer.__name__} {name}" for optimizer, name, *_ in CASES.values()],
)
def test_arguments_out_of_range_are_refused_by_the_constructor(
    optimizer, argument, values, message
):
    for value in values:
        with pytest.raises(ValueError, match=message) as error:
            optimizer(**{argument: value})
        assert argument in str(error.value) and repr(value) in str(error.value)


def test_every_argument_of_every_optimizer_is_tried_out_of_range():
    # Keras checks its own arguments; test_subset_norm tries axis.
    tried_elsewhere = {*keras.optimizers.Adam().get_config(), "kwargs", "axis"}
    tried_elsewhere -= {"beta_1", "beta_2", "epsilon", "amsgrad"}
    for optimizer in EVERY_CLASS:
        for argument in set(signature(optimizer)) - tried_elsewhere:
            assert (declaring_class(optimizer, argument), argument) in CASES


@each_class
def test_unknown_arguments_are_refused(make):
    with pytest.raises(ValueError, match="not recognized.*lerning_rate"):
        make(lerning_rate=0.1)


@pytest.mark.parametrize(
    "sizes", [(4, 0), (4, -2), (4.0, 2), "42", 8, (True, 8), {4: 2}]
)
def test_a_tensor_index_that_is_no_tuple_of_positive_integers_is_refused(sizes):
    with pytest.raises(ValueError, match="positive integers"):
        ExtremeTensoring(tensor_index={"kernel": sizes})


def test_a_tensor_index_by_an_invalid_regular_expression_is_refused():
    with pytest.raises(ValueError, match=r"regular expression; received '\(kernel'"):
        ExtremeTensoring(tensor_index={"(kernel": (4, 2)})


# Arguments that may be a dict from regular expressions on paths, with a bad value.
BY_PATH = [
    (ExtremeTensoring, "level", 0),
    (ExtremeTensoring, "momentum_rank", -1),
    (ExtremeTensoring, "rate_scale", 0.0),
    (SubsetNorm, "axis", "rows"),
]


@pytest.mark.parametrize(("optimizer", "argument", "value"), BY_PATH)
def test_keys_and_values_of_a_dict_by_path_are_checked(optimizer, argument, value):
    with pytest.raises(ValueError, match=f"{argument} must be .*{value!r}"):
        optimizer(**{argument: {"kernel": 1, "bias": value}})
    with pytest.raises(ValueError, match=rf"{argument} must be a regular .*'\(kernel'"):
        optimizer(**{argument: {"(kernel": 1}})
    fitting, model = optimizer(**{argument: {"dense/embeddings": 1}}), model_and_start()
    with pytest.raises(ValueError, match=f"{argument} .*variable: 'dense/embeddings'"):
        fitting.build(model[0].trainable_variables)
    assert not fitting.built


def test_the_rank_one_combination_of_sums_is_refused_with_both_remedies():
    with pytest.raises(ValueError, match="statistic='mean', or combination='geometri"):
        ExtremeTensoring(statistic="sum", combination="rank_one")


def model_and_start():
    model = keras.Sequential([keras.Input((3,)), keras.layers.Dense(4, name="dense")])
    return model, [w.numpy() for w in model.weights]


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        ({"embedding": (12,)}, "matches no variable: 'embedding'.*dense/kernel"),
        ({"kernel$": (2, 5)}, "dense/kernel'.*multiply to 10.*which has 12"),
        (lambda path, shape: (2,) if "kernel" in path else None, "multiply to 2,"),
        (lambda path, shape: "12", "positive integers"),
    ],
)
def test_a_tensor_index_that_does_not_fit_raises_before_anything_changes(
    overrides, message
):
    model, start = model_and_start()
    optimizer = ExtremeTensoring(tensor_index=overrides)
    gradients = [ops.ones(w.shape) for w in model.weights]
    with pytest.raises(ValueError, match=message):
        optimizer.apply(gradients, model.trainable_variables)
    assert not optimizer.built
    assert len(optimizer.variables) == 2
    for before, weight in zip(start, model.weights):
        np.testing.assert_array_equal(before, weight.numpy())


@few_optimizers
@pytest.mark.parametrize("dtype", ["int32", "bool"])
def test_variables_of_integers_are_refused(make, dtype):
    # PyTorch has no trainable variable of these dtypes.
    variable = keras.Variable(
        np.zeros((3, 2)), dtype=dtype, trainable=False, name="bad"
    )
    with pytest.raises(ValueError, match=f"'bad' of dtype {dtype}"):
        make().build([variable])


def trained(**kwargs):
    model, _ = model_and_start()
    model.compile(ExtremeTensoring(**kwargs), "mse")
    model.fit(np.ones((4, 3)), np.zeros((4, 4)), verbose=0)
    return model


FULL_MOMENTUM = {"level": 1, "beta_1": 0.9, "momentum_rank": None}
SUBSPACE_MOMENTUM = {"level": 1, "beta_1": 0.9, "momentum_rank": 1}


@pytest.mark.parametrize(
    ("saved", "loading"),
    [
        ({"level": 1}, {"level": 1, "tensor_index": {"bias": (2, 2)}}),
        ({"level": "inf"}, {"level": 1}),
        ({"level": 1, "beta_1": 0}, {"level": 1, "beta_1": 0.9}),
        ({"level": 1}, {"level": {"kernel": "inf"}}),
        # Version 0.1 had no momentum by default, or full momentum.
        (
            {"level": 2, "beta_1": 0, "combination": "geometric"},
            {"level": 2, "beta_1": 0.9},
        ),
        (FULL_MOMENTUM, SUBSPACE_MOMENTUM),
        (SUBSPACE_MOMENTUM, FULL_MOMENTUM),
        (SUBSPACE_MOMENTUM, SUBSPACE_MOMENTUM | {"momentum_dtype": "int8"}),
        (SUBSPACE_MOMENTUM, SUBSPACE_MOMENTUM | {"momentum_rank": {"kernel": 0}}),
        ({"level": 1}, {"level": 1, "tensor_index": {"kernel": (12,)}}),
    ],
)
def test_state_saved_with_other_arguments_is_refused_and_nothing_changes(
    saved, loading
):
    store = {}
    trained(**saved).optimizer.save_own_variables(store)
    model = trained(**loading)
    before = [v.numpy() for v in model.optimizer.variables]
    with pytest.raises(ValueError, match="does not fit.*Make the optimizer"):
        model.optimizer.load_own_variables(store)
    for value, variable in zip(before, model.optimizer.variables):
        np.testing.assert_array_equal(value, variable.numpy())


@pytest.mark.parametrize("make", EVERY_CLASS[1:])
def test_state_of_another_class_is_refused_and_nothing_changes(make):
    store = {}
    trained(level="inf", beta_1=0).optimizer.save_own_variables(store)
    model, _ = model_and_start()
    model.compile(make(), "mse")
    model.fit(np.ones((4, 3)), np.zeros((4, 4)), verbose=0)
    before = [ops.convert_to_numpy(v) for v in model.optimizer.variables]
    with pytest.raises(ValueError, match=f"does not fit this {make.__name__}"):
        model.optimizer.load_own_variables(store)
    for value, variable in zip(before, model.optimizer.variables):
        np.testing.assert_array_equal(value, ops.convert_to_numpy(variable))


@few_optimizers
@pytest.mark.parametrize("shape", [(4, 3), (12,), (3, 4, 1), ()])
def test_a_gradient_of_another_shape_is_refused_and_changes_no_weight(make, shape):
    variable = keras.Variable(np.ones((3, 4), "float32"))
    with pytest.raises(ValueError, match=r"its variable's shape; received .* \(3, 4\)"):
        make().apply([ops.ones(shape)], [variable])
    np.testing.assert_array_equal(variable.numpy(), np.ones((3, 4)))


BAD_GRADIENTS = {
    "shape": (lambda g: ops.transpose(g), r"for \(3, 4\) of variable 'second'"),
    "fewer axes": (lambda g: g[0], r"received \(4,\) for \(3, 4\)"),
    "dtype": (lambda g: ops.cast(g, "int32"), "dtype int32 for variable 'second'"),
}


@few_optimizers
@pytest.mark.parametrize("steps", [None, 2])
@pytest.mark.parametrize("bad", BAD_GRADIENTS)
def test_all_gradients_are_checked_before_anything_changes(make, steps, bad):
    variables = [
        keras.Variable(np.ones((3, 4), "float32"), name=n) for n in ("first", "second")
    ]
    optimizer = make(weight_decay=0.1, gradient_accumulation_steps=steps)
    optimizer.build(variables)
    before = [np.array(ops.convert_to_numpy(v)) for v in optimizer.variables]
    good, (corrupt, message) = ops.ones((3, 4)), BAD_GRADIENTS[bad]
    with pytest.raises(ValueError, match=message):
        optimizer.apply([good, corrupt(good)], variables)
    for variable in variables:
        np.testing.assert_array_equal(variable.numpy(), 1.0)
    for value, variable in zip(before, optimizer.variables):
        np.testing.assert_array_equal(value, ops.convert_to_numpy(variable))


def test_an_empty_variable_refuses_a_gradient_of_another_shape():
    variable = keras.Variable(np.ones((0, 4), "float32"))
    optimizer = ExtremeTensoring()
    optimizer.apply([ops.ones((0, 4))], [variable])
    with pytest.raises(ValueError, match=r"received \(3, 4\) for \(0, 4\)"):
        optimizer.apply([ops.ones((3, 4))], [variable])


def test_fewer_gradients_than_variables_are_refused():
    variables = [keras.Variable(np.ones(3, "float32")) for _ in range(2)]
    optimizer = ExtremeTensoring()
    with pytest.raises(ValueError, match="1 gradients for 2 variables"):
        optimizer.apply([ops.ones(3)], variables)
    assert not optimizer.built


@pytest.mark.parametrize(
    ("optimizer", "received", "meant"),
    [
        (ExtremeTensoring, "momentum", "beta_1"),
        (SM3, "beta_1", "momentum"),
        (Adafactor, "epsilon", "epsilon_1"),
        (Shampoo, "eps", "epsilon"),
        (SubsetNorm, "rho", "beta_2"),
        (SketchyShampoo, "lr", "learning_rate"),
        (SketchyAdagrad, "weight_deacy", "weight_decay"),
    ],
)
def test_the_error_for_a_misnamed_argument_suggests_the_right_name(
    optimizer, received, meant
):
    message = rf"by {optimizer.__name__}: {received}=0.9. Did you mean {meant}\?"
    with pytest.raises(ValueError, match=message):
        optimizer(**{received: 0.9})


@pytest.mark.parametrize("received", ["preconditioner", "momentum", "momentum_of"])
def test_internal_names_and_arguments_of_other_classes_are_no_arguments(received):
    with pytest.raises(ValueError, match=f"not recognized.*{received}.*It takes learn"):
        ExtremeTensoring(**{received: 0.9})


def test_a_subclass_with_its_own_argument_refuses_unknown_ones():
    class Custom(ExtremeTensoring):
        def __init__(self, own, **kwargs):
            super().__init__(**kwargs)
            self.own = own

    assert Custom(own=1, level=2).level == 2
    with pytest.raises(ValueError, match="by Custom: levle=2. Did you mean level"):
        Custom(own=1, levle=2)


def test_arguments_that_determine_the_state_are_read_only():
    optimizer = ExtremeTensoring(beta_2=0.9)
    for argument in ("beta_2", "statistic", "epsilon", "combination", "momentum_rank"):
        with pytest.raises(AttributeError):
            setattr(optimizer, argument, 0.5)
    assert optimizer.get_config()["beta_2"] == 0.9


def test_load_weights_with_another_level_raises_and_keeps_the_state(tmp_path):
    trained(level=1).save_weights(tmp_path / "model.weights.h5")
    model = trained(level="inf")
    before = [v.numpy() for v in model.optimizer.variables]
    with pytest.raises(ValueError, match="does not fit.*Make the optimizer"):
        model.load_weights(tmp_path / "model.weights.h5")
    for value, variable in zip(before, model.optimizer.variables):
        np.testing.assert_array_equal(value, variable.numpy())


def test_memory_report_refuses_an_unbuilt_optimizer_and_a_string():
    with pytest.raises(ValueError, match="not built.*optimizer.build"):
        et_optimizer.memory_report(ExtremeTensoring())
    with pytest.raises(ValueError, match="type str"):
        et_optimizer.memory_report("adam")
