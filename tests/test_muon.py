"""Muon: against a transcription, its polar factor, and which variables get it."""

import functools
import json
import math

import keras
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from keras import ops

from et_optimizer import (
    ExtremeTensoring,
    Muon,
    TensorIndex,
    memory_plan,
    memory_report,
)
from et_optimizer.momenta import polar
from et_optimizer.views.tensor_index import matrix_shape
from tests.optimizers import slots_of
from tests.reference import muon as reference
from tests.test_memory_plan import allocated
from tests.updates import compiled, lengths_and_modes, random_gradients, take_step

BACKEND = keras.backend.backend()
# PyTorch compiles nothing, and the other backends compile each case.
ALL_OR_FIRST = slice(None) if BACKEND == "torch" else slice(3)

MODEL = {
    "net/embedding/embeddings": (50, 12),
    "net/position_embedding/embeddings": (16, 12),
    "net/query/kernel": (12, 2, 6),
    "net/query/bias": (2, 6),
    "net/gru/bias": (2, 18),
    "net/depthwise/kernel": (3, 3, 4, 1),
    "net/conv/kernel": (3, 3, 4, 6),
    "net/experts/kernel": (4, 12, 8),
    "net/dense/kernel": (12, 40),
    "net/dense/bias": (40,),
    "net/norm/gamma": (12,),
    "net/scale": (),
    "net/logits/kernel": (12, 50),
    "net/logits/bias": (50,),
}
HIDDEN = [f"net/{layer}/kernel" for layer in ("query", "conv", "experts", "dense")]


def variable_of(shape, name="kernel"):
    value = np.random.default_rng(1).standard_normal(shape)
    return keras.Variable(value.astype("float32"), name=name)


def apply(optimizer, gradients, variables):
    take_step(optimizer, [ops.convert_to_tensor(g) for g in gradients], variables)


def rows_of(shape):
    return matrix_shape(shape)[0]


def expected_changes(shape, gradients, **arguments):
    """The reference's changes of a variable."""
    index = lengths_and_modes(TensorIndex.from_shape(shape, 1))
    arguments = {"beta_1": 0.95, "beta_2": 0.99, "update_bound": 3.0} | arguments
    return reference.changes(gradients, index, rows_of(shape), **arguments)


KERNELS = [(6, 9), (8, 2, 5), (3, 3, 4, 6), (9, 6), (5, 1, 7)][ALL_OR_FIRST]


@pytest.mark.parametrize("beta_1", [0.95, 0.0])
@pytest.mark.parametrize("update_bound", [3.0, 0.5])
@pytest.mark.parametrize("shape", KERNELS)
def test_a_step_equals_the_reference_at_every_scale(shape, update_bound, beta_1):
    is_first = shape == KERNELS[0]
    if BACKEND != "torch" and not is_first and (update_bound, beta_1) != (3.0, 0.95):
        pytest.skip("compiled for one shape")
    arguments = {"update_bound": update_bound, "beta_1": beta_1}
    sizes = (1e-6, 1.0, 1e6)
    steps = {size: size * random_gradients(shape, 3, 4) for size in sizes}
    variables = {
        size: variable_of(shape, f"kernel_{i}") for i, size in enumerate(sizes)
    }
    optimizer = Muon(0.1, momentum_dtype="float32", **arguments)
    optimizer.build(list(variables.values()))
    changes = {s: expected_changes(shape, steps[s], **arguments) for s in sizes}
    expected = {s: v.numpy().astype("float64") for s, v in variables.items()}
    for step in range(4):
        apply(optimizer, [steps[s][step] for s in sizes], list(variables.values()))
        for size, variable in variables.items():
            change = next(changes[size])
            expected[size] = expected[size] - 0.1 * change
            np.testing.assert_allclose(
                variable.numpy(), expected[size], rtol=1e-5, atol=3e-6
            )


@pytest.mark.one_backend
@pytest.mark.parametrize("shape", [(6, 9), (9, 6), (3, 3, 4, 6)])
def test_a_step_is_near_that_of_the_exact_polar_factor(shape):
    steps = random_gradients(shape, 0, 4)
    rows = rows_of(shape)
    variable, optimizer = variable_of(shape), Muon(1.0, momentum_dtype="float32")
    exact = expected_changes(shape, steps, factor=reference.exact)
    for gradient, change in zip(steps, exact):
        before = variable.numpy()
        apply(optimizer, [gradient], [variable])
        found = (before - variable.numpy()).reshape(rows, -1)
        size = 0.2 * math.sqrt(max(found.shape))
        change = change.reshape(rows, -1)
        # That of Adam: at most k of the m·n squares of U Vᵀ, over m·n.
        rms = 0.2 * math.sqrt(max(found.shape) * min(found.shape) / found.size)
        np.testing.assert_allclose(np.sqrt(np.mean(change**2)), rms, rtol=1e-6)
        # Both have the same singular vectors, and singular values of 0.62 to 1.38.
        difference = np.linalg.norm(found / size - change / size, 2)
        assert difference <= 1 - polar.RANGE[0] + 1e-3


@functools.lru_cache(maxsize=1)
def compiled_factor():
    return compiled(polar.polar_factor)


def factor(matrix):
    found = compiled_factor()(ops.convert_to_tensor(np.asarray(matrix, "float32")))
    return ops.convert_to_numpy(found).astype("float64")


def orthogonal(rng, n):
    return np.linalg.qr(rng.standard_normal((n, n)))[0]


def with_singular_values(values, shape, rng):
    """A matrix with these singular values, and its singular vectors."""
    left = orthogonal(rng, shape[0])[:, : len(values)]
    right = orthogonal(rng, shape[1])[: len(values)]
    return left * values @ right, left, right


def root_of_eighth_powers(values):
    """‖(X Xᵀ)²‖^(1/4), to which singular values are relative."""
    return np.sum(np.asarray(values) ** 8) ** (1 / 8)


MATRICES = [(4, 9), (9, 4), (12, 12), (1, 7), (40, 24)][ALL_OR_FIRST]


@pytest.mark.parametrize("shape", MATRICES)
def test_singular_values_come_within_the_range_and_vectors_stay(shape):
    rng, count = np.random.default_rng(0), min(shape)
    # From LEAST of the root that they are relative to.
    least = 1.01 * polar.LEAST * count ** (1 / 8)
    values = np.geomspace(1.0, least, count)
    for size in (1.0, 1e-6):
        matrix, left, right = with_singular_values(size * values, shape, rng)
        aligned = left.T @ factor(matrix) @ right.T
        found = np.diag(aligned)
        assert np.all(found >= polar.RANGE[0] - 5e-3)
        assert np.all(found <= polar.RANGE[1] + 5e-3)
        np.testing.assert_allclose(aligned, np.diag(found), atol=1e-4)
        outside = factor(matrix) - left * found @ right
        np.testing.assert_allclose(outside, 0.0, atol=1e-4)


@pytest.mark.one_backend
def test_the_range_is_where_the_polynomials_take_the_interval():
    values = np.geomspace(polar.LEAST, 1.0, 20001)
    assert polar.STEPS == reference.STEPS
    for a, b, c in polar.STEPS:
        values = a * values + b * values**3 + c * values**5
    np.testing.assert_allclose([values.min(), values.max()], polar.RANGE, atol=5e-3)


@pytest.mark.one_backend
@pytest.mark.parametrize("shape", [(6, 9), (9, 6), (40, 24)])
def test_the_factor_equals_the_reference(shape):
    matrix = np.random.default_rng(0).standard_normal(shape)
    np.testing.assert_allclose(
        factor(matrix), reference.newton_schulz(matrix), atol=1e-5
    )


@pytest.mark.one_backend
def test_in_bfloat16_as_on_accelerators_all_but_the_smallest_come_near_the_range(
    monkeypatch,
):
    def in_bfloat16(function, matrix):
        return ops.cast(function(ops.cast(matrix, "bfloat16")), "float32")

    monkeypatch.setattr(polar, "in_fast_precision", in_bfloat16)
    rng = np.random.default_rng(0)
    left, _ = np.linalg.qr(rng.standard_normal((64, 64)))
    right, _ = np.linalg.qr(rng.standard_normal((96, 64)))
    matrix = left * np.geomspace(1.0, 0.1, 64) @ right.T
    found = polar.polar_factor(ops.convert_to_tensor(matrix, "float32"))
    values = np.linalg.svd(ops.convert_to_numpy(found), compute_uv=False)
    assert polar.RANGE[0] - 0.05 < values.min() < values.max() < polar.RANGE[1] + 0.05


@pytest.mark.one_backend
def test_smaller_singular_values_grow_by_a_factor_of_20():
    rng = np.random.default_rng(0)
    values = np.array([1.0, 1e-3, 1e-4])
    matrix, left, right = with_singular_values(values, (5, 8), rng)
    found = np.diag(left.T @ factor(matrix) @ right.T)
    growth = found[1:] / values[1:]
    assert np.all((growth > 20) & (growth < 22))


@given(
    shape=st.sampled_from([(4, 9), (9, 4)]),
    seed=st.integers(0, 2**32 - 1),
)
def test_the_factor_of_a_rotated_matrix_is_the_rotated_factor(shape, seed):
    rng = np.random.default_rng(seed)
    matrix = rng.standard_normal(shape)
    left, right = (orthogonal(rng, n) for n in shape)
    np.testing.assert_allclose(
        factor(left @ matrix @ right), left @ factor(matrix) @ right, atol=3e-5
    )
    np.testing.assert_allclose(factor(matrix.T), factor(matrix).T, atol=3e-5)
    np.testing.assert_array_equal(factor(-matrix), -factor(matrix))


def test_the_factor_does_not_depend_on_the_matrixs_scale():
    matrix = np.random.default_rng(0).standard_normal((4, 9)).astype("float32")
    expected = factor(matrix)
    for exponent in (-90, -20, 20, 90):
        found = factor(matrix * np.float32(2.0) ** exponent)
        np.testing.assert_allclose(found, expected, atol=1e-6)
    for size in (1e-30, 1e30):
        np.testing.assert_allclose(factor(size * matrix), expected, atol=1e-5)


def test_a_matrix_of_zeros_stays_one_and_each_of_a_stack_gets_its_own_factor():
    np.testing.assert_array_equal(factor(np.zeros((4, 9))), 0.0)
    stack = np.random.default_rng(0).standard_normal((2, 2, 4, 9))
    stack *= np.array([1e-8, 1.0, 0.0, 1e8]).reshape(2, 2, 1, 1)
    found = factor(stack)
    for index in np.ndindex(2, 2):
        np.testing.assert_allclose(found[index], factor(stack[index]), atol=1e-5)
    np.testing.assert_array_equal(found[1, 0], 0.0)


def test_a_matrix_with_one_large_entry_gets_a_finite_factor():
    matrix = np.full((4, 9), 1e-20, "float32")
    matrix[1, 2] = 1e30
    found = factor(matrix)
    assert np.all(np.isfinite(found))
    assert polar.RANGE[0] - 5e-3 <= found[1, 2] <= polar.RANGE[1] + 5e-3


def orthogonalized(orthogonalize, shapes=None, **arguments):
    """Path → how many leading axes stack matrices, of those with a polar factor."""
    shapes = shapes or MODEL
    optimizer = Muon(orthogonalize=orthogonalize, **arguments)
    plans = optimizer.plan_state(allocated(shapes))
    return {
        path: plan.momentum.stack
        for path, plan in zip(shapes, plans)
        if isinstance(plan.momentum, polar.PolarMomentum)
    }


@pytest.mark.one_backend
def test_kernels_are_orthogonalized_except_those_of_tokens():
    of_hidden = dict.fromkeys(HIDDEN, 0)
    assert orthogonalized("auto") == of_hidden
    assert orthogonalized("auto", momentum_dtype="float32") == of_hidden
    assert orthogonalized("auto", beta_1=0.0) == of_hidden
    # A learning rate of one's own changes nothing.
    assert orthogonalized("auto", rate_scale=None) == of_hidden
    # A classifier's last layer is no LM head, and a row or a column is a vector.
    shapes = {"dense/kernel": (12, 3), "row/kernel": (1, 9), "column/kernel": (9, 1, 1)}
    assert orthogonalized("auto", shapes) == {"dense/kernel": 0}


@pytest.mark.one_backend
def test_orthogonalize_takes_true_false_stack_and_a_dict_by_path():
    matrices = [path for path, shape in MODEL.items() if len(shape) > 1]
    assert orthogonalized(True) == dict.fromkeys(matrices, 0)
    assert orthogonalized(False) == {}
    of_axes = {path: 1 for path, shape in MODEL.items() if len(shape) > 2}
    assert orthogonalized("stack") == of_axes
    assert orthogonalized({"embedding": True, "dense": False, "experts": "stack"}) == {
        "net/embedding/embeddings": 0,
        "net/position_embedding/embeddings": 0,
        "net/query/kernel": 0,
        "net/conv/kernel": 0,
        "net/experts/kernel": 1,
    }
    # The first expression that matches wins.
    assert orthogonalized({"query.kernel": True, ".*": False}) == {
        "net/query/kernel": 0
    }


@pytest.mark.one_backend
@pytest.mark.parametrize(
    "given", ["always", None, 2, {"kernel": "no"}, {"kernel": None}]
)
def test_a_bad_value_of_orthogonalize_is_refused(given):
    with pytest.raises(ValueError, match="orthogonalize must be"):
        Muon(orthogonalize=given)


@pytest.mark.one_backend
def test_an_expression_that_matches_no_path_is_refused_before_anything_is_built():
    with pytest.raises(ValueError, match="orthogonalize must|regular expression"):
        Muon(orthogonalize={"(": True})
    optimizer = Muon(orthogonalize={"logit$": False})
    with pytest.raises(ValueError, match="orthogonalize has an exp.*'logit\\$'.*dense"):
        optimizer.build(allocated(MODEL))
    assert not optimizer.built


def test_each_matrix_of_a_stack_gets_its_own_direction():
    shape = (3, 4, 6)
    variable = variable_of(shape)
    arguments = {"momentum_dtype": "float32", "orthogonalize": "stack"}
    optimizer = Muon(1.0, **arguments)
    before = variable.numpy()
    gradient = random_gradients(shape, 0, 1)[0]
    gradient[1] = 0.0
    apply(optimizer, [gradient], [variable])
    change = (before - variable.numpy()) / (0.2 * math.sqrt(6))
    np.testing.assert_array_equal(change[1], 0.0)
    for expert in (0, 2):
        values = np.linalg.svd(change[expert])[1]
        assert np.all(np.abs(values - 1) <= 1 - polar.RANGE[0] + 1e-2)


TOKENS_AND_VECTORS = {path: s for path, s in MODEL.items() if path not in HIDDEN}


@pytest.mark.two_backends
def test_other_variables_are_updated_as_by_extreme_tensoring():
    shapes = TOKENS_AND_VECTORS | {"net/dense/kernel": (12, 40)}
    if BACKEND != "torch":  # One of each kind: others take long to compile.
        del shapes["net/scale"], shapes["net/norm/gamma"], shapes["net/logits/bias"]
        del shapes["net/position_embedding/embeddings"]
    arguments = {"momentum_rank": 2, "refresh_every": 2}
    ours = Muon(0.1, **arguments)
    theirs = ExtremeTensoring(
        0.1, beta_1=0.95, beta_2=0.99, momentum_dtype="int4", **arguments
    )
    found, expected = allocated(shapes), allocated(shapes)
    rng = np.random.default_rng(0)
    for _ in range(4):
        step = [rng.standard_normal(s).astype("float32") for s in shapes.values()]
        apply(ours, step, found)
        apply(theirs, step, expected)
    for path, one, other in zip(shapes, found, expected):
        are_equal = np.array_equal(one.numpy(), other.numpy())
        assert are_equal == (path not in HIDDEN), path
        assert np.any(one.numpy() != 0)
    # The same state, too.
    state = {v.name: v for v in slots_of(theirs)}
    for slot in slots_of(ours):
        if not slot.name.startswith("net_dense_kernel"):
            np.testing.assert_array_equal(
                ops.convert_to_numpy(slot), ops.convert_to_numpy(state[slot.name])
            )


@pytest.mark.one_backend
def test_beta_1_of_0_keeps_no_momentum():
    optimizer = Muon(beta_1=0.0)
    optimizer.build(allocated(MODEL))
    assert not [v.name for v in slots_of(optimizer) if "momentum" in v.name]
    assert memory_report(optimizer).momentum_bytes == 0


@pytest.mark.skipif(BACKEND != "tensorflow", reason="IndexedSlices are TensorFlow's")
@pytest.mark.parametrize("beta_1", [0.95, 0.0])
@pytest.mark.parametrize("momentum_dtype", ["int4", "float32"])
def test_a_sparse_gradient_is_updated_like_its_dense_form(beta_1, momentum_dtype):
    import tensorflow as tf

    indices = np.array([3, 17, 3, 39, 3, 17], "int32")
    shape = (40, 6)

    def stepped(is_sparse):
        table = variable_of(shape, "embeddings")
        optimizer = Muon(
            0.1, orthogonalize=True, beta_1=beta_1, momentum_dtype=momentum_dtype
        )
        rng = np.random.default_rng(0)
        for _ in range(2):
            values = rng.standard_normal((6, 6)).astype("float32")
            gradient = tf.IndexedSlices(tf.constant(values), indices, shape)
            gradient = gradient if is_sparse else tf.convert_to_tensor(gradient)
            optimizer.apply([gradient], [table])
        return table.numpy()

    found, expected = stepped(True), stepped(False)
    np.testing.assert_allclose(found, expected, rtol=1e-5, atol=1e-5)
    assert np.all(found[[3, 17, 39]] != variable_of(shape).numpy()[[3, 17, 39]])


@pytest.mark.one_backend
def test_an_optimizer_from_the_configuration_is_equal():
    arguments = {
        "learning_rate": 0.01,
        "beta_1": 0.9,
        "beta_2": None,
        "momentum_dtype": "int3",
        "orthogonalize": {"logits": False, "experts": "stack", ".*": "auto"},
        "update_bound": None,
        "weight_decay": 0.1,
    }
    optimizer = Muon(**arguments)
    config = json.loads(json.dumps(optimizer.get_config()))
    for name, value in arguments.items():
        assert (
            config[name] == pytest.approx(value)
            if name == "learning_rate"
            else (config[name] == value)
        )
    again = Muon.from_config(config)
    assert again.get_config() == optimizer.get_config()
    default = Muon().get_config()
    assert Muon.from_config(default).get_config() == default
    assert default["orthogonalize"] == "auto" and default["momentum_dtype"] == "int4"


@pytest.mark.one_backend
def test_keras_keeps_the_name_muon_and_each_class_is_loaded_as_itself():
    for name in ("muon", "Muon"):
        assert type(keras.optimizers.get(name)) is keras.optimizers.Muon
    assert type(keras.optimizers.get("et_optimizer>Muon")) is Muon
    for make in (Muon, keras.optimizers.Muon):
        for serialize, deserialize in (
            (keras.optimizers.serialize, keras.optimizers.deserialize),
            (
                keras.saving.serialize_keras_object,
                keras.saving.deserialize_keras_object,
            ),
        ):
            assert type(deserialize(serialize(make()))) is make


@pytest.mark.one_backend
@pytest.mark.parametrize(("dtype", "bits"), [("int4", 4), ("int3", 3)])
@pytest.mark.parametrize("shape", [(24, 40), (40, 24), (8, 2, 8), (2000, 512)])
def test_the_memory_of_a_kernel_is_as_documented(shape, dtype, bits):
    rows, columns = matrix_shape(shape)
    plan = memory_plan({"dense/kernel": shape}, Muon(momentum_dtype=dtype))
    statistics = 4 * sum(shape)
    assert len(shape) > 2 or statistics == 4 * (rows + columns)
    assert plan.state_bytes == bits * rows * columns // 8 + 8 + statistics
    if shape == (2000, 512) and dtype == "int4":
        assert plan.state_bytes == 512_008 + 10_048
        assert f"{100 * plan.state_bytes / plan.adam_bytes:.1f}%" == "6.4%"
    optimizer = Muon(momentum_dtype=dtype)
    optimizer.build([variable_of(shape)])
    report = memory_report(optimizer)
    assert report.bytes == plan.state_bytes and report.counters == 1
    assert sum(v.numpy().nbytes for v in slots_of(optimizer)) == report.bytes


@pytest.mark.one_backend
@pytest.mark.parametrize("orthogonalize", ["auto", "stack"])
def test_momentum_in_int8_has_one_scale_per_row(orthogonalize):
    # As one matrix, 48 × 8; as a stack, four of 12 × 8.
    optimizer = Muon(momentum_dtype="int8", orthogonalize=orthogonalize)
    optimizer.build([variable_of((4, 12, 8))])
    slots = {v.name: (tuple(v.shape), v.dtype) for v in slots_of(optimizer)}
    assert slots["kernel_momentum"] == ((4, 12, 8), "int8")
    assert slots["kernel_momentum_scale"] == ((4, 12, 1), "float32")


@pytest.mark.one_backend
@pytest.mark.parametrize(
    "arguments",
    [{"momentum_dtype": "int3"}, {"momentum_dtype": "int8"}, {"orthogonalize": False}],
)
def test_state_with_other_slots_is_refused(arguments):
    saved, store = Muon(), {}
    saved.build([variable_of((64, 96))])
    saved.save_own_variables(store)
    ((name, value),) = arguments.items()
    optimizer = Muon(**arguments)
    optimizer.build([variable_of((64, 96))])
    with pytest.raises(
        ValueError, match=f"saved with {name}=.*, here {name}={value!r}"
    ):
        optimizer.load_own_variables(store)


@pytest.mark.parametrize("dtype", ["int4", "int3", "float32"])
def test_a_small_network_learns(dtype):
    model = keras.Sequential(
        [keras.Input((10,)), keras.layers.Dense(32, "relu"), keras.layers.Dense(1)]
    )
    rng = np.random.default_rng(0)
    x = rng.standard_normal((64, 10)).astype("float32")
    y = np.sin(x[:, :1]) + x[:, 1:2] * x[:, 2:3]
    optimizer = Muon(0.02, momentum_dtype=dtype)
    model.compile(optimizer, "mse", jit_compile=BACKEND != "torch")
    loss = model.fit(x, y, epochs=61, batch_size=64, verbose=0).history["loss"]
    assert loss[-1] < 0.5 * loss[0]
