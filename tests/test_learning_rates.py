"""`rate_scale`: separate learning rates for embeddings, and by path."""

import keras
import numpy as np
import pytest

from et_optimizer import Adafactor, ExtremeTensoring, SubsetNorm
from et_optimizer.memory.shapes import VariableShape
from et_optimizer.optimizers.learning_rates import TOKEN_SCALE
from tests.optimizers import IN_A_SUBSPACE, ONE_OF_EACH

VOCABULARY, WIDTH, LENGTH = 48, 8, 6


def variables(**shapes):
    """Variables of these shapes, with the same values in every call."""
    generator = np.random.default_rng(0)
    return {
        name: keras.Variable(generator.standard_normal(shape), name=name)
        for name, shape in shapes.items()
    }


def scales(shapes, optimizer=None):
    """The factor of each variable's learning rate, by path."""
    shapes = [VariableShape(path, shape, "float32") for path, shape in shapes.items()]
    plans = (optimizer or ExtremeTensoring()).plan_state(shapes)
    return {shape.path: plan.rate_scale for shape, plan in zip(shapes, plans)}


def changes(optimizer, steps=3, **shapes):
    """The changes of variables after some steps, by name."""
    trained = variables(**shapes)
    before = {name: keras.ops.convert_to_numpy(v) for name, v in trained.items()}
    generator = np.random.default_rng(1)
    for _ in range(steps):
        gradients = [generator.standard_normal(v.shape) for v in trained.values()]
        optimizer.apply(
            [keras.ops.convert_to_tensor(g, "float32") for g in gradients],
            list(trained.values()),
        )
    return {
        name: keras.ops.convert_to_numpy(v) - before[name]
        for name, v in trained.items()
    }


@pytest.mark.one_backend
def test_auto_scales_embeddings_and_the_output_projection_of_a_model():
    tokens = keras.Input((LENGTH,), dtype="int32")
    x = keras.layers.Embedding(VOCABULARY, WIDTH, name="tokens")(tokens)
    x = keras.layers.EinsumDense("abc,cde->abde", (None, 2, 4), name="heads")(x)
    x = keras.layers.Reshape((LENGTH, WIDTH))(x)
    x = keras.layers.Dense(VOCABULARY // 2, name="expand")(x)
    x = keras.layers.Dense(WIDTH, name="contract")(x)
    x = keras.layers.LayerNormalization(name="norm")(x)
    model = keras.Model(tokens, keras.layers.Dense(VOCABULARY, name="logits")(x))
    found = scales({v.path: tuple(v.shape) for v in model.trainable_variables})
    scaled = {"tokens/embeddings", "logits/kernel"}
    assert scaled < set(found)
    for path, scale in found.items():
        assert scale == (TOKEN_SCALE if path in scaled else 1.0), path


TABLES = {"word_embeddings": (48, 8), "position/embeddings": (64, 8)}


@pytest.mark.one_backend
@pytest.mark.parametrize(
    ("shapes", "scaled"),
    [
        (TABLES | {"head": (8, 48)}, [*TABLES, "head"]),
        (TABLES | {"head": (8, 64)}, [*TABLES]),
        (TABLES | {"head": (48, 8)}, [*TABLES]),
        (
            TABLES | {"more_embeddings": (16, 8), "k": (8, 16)},
            [*TABLES, "more_embeddings"],
        ),
        # Two matrices have the shape of the output projection.
        (TABLES | {"expand": (8, 48), "logits": (8, 48)}, [*TABLES]),
        # The name of an untied output projection in KerasHub.
        (TABLES | {"reverse_embeddings": (8, 48)}, [*TABLES, "reverse_embeddings"]),
        ({"scale": (), "kernel": (8, 48)}, []),
        ({"embeddings": (48, 1), "scale": ()}, ["embeddings"]),
        ({"embeddings": (8, 8), "kernel": (8, 8), "query": (8, 8)}, ["embeddings"]),
        ({"position_embeddings": (16, 8), "k": (8, 16)}, ["position_embeddings"]),
        ({"lora_embeddings_a": (48, 4), "patch_embedding/kernel": (48, 8)}, []),
        ({"embedding": (48, 12, 8)}, []),
    ],
)
def test_auto_scales_embeddings_and_their_transposed_shape(shapes, scaled):
    found = scales(shapes)
    for name, scale in found.items():
        assert scale == (TOKEN_SCALE if name in scaled else 1.0), name


@pytest.mark.one_backend
@pytest.mark.parametrize(
    ("make", "expected"),
    [
        (ExtremeTensoring, [4.0, TOKEN_SCALE, TOKEN_SCALE]),
        (SubsetNorm, [4.0, 1.0, 1.0]),
    ],
)
def test_variables_that_no_expression_matches_get_the_default(make, expected):
    shapes = TABLES | {"head": (8, 48)}
    found = scales(shapes, make(rate_scale={"word": 4.0}))
    assert list(found.values()) == expected
    found = scales(shapes, make(rate_scale={"word": 4.0, ".*": None}))
    assert list(found.values()) == [4.0, 1.0, 1.0]
    assert set(scales(shapes, make(rate_scale=2.0)).values()) == {2.0}


@pytest.mark.one_backend
def test_configurations_of_version_0_2_load_with_one_learning_rate():
    config = ExtremeTensoring().get_config()
    assert ExtremeTensoring.from_config(config).rate_scale == "auto"
    del config["rate_scale"]
    assert ExtremeTensoring.from_config(config).rate_scale is None
    assert ExtremeTensoring.from_config({"level": 2}).rate_scale == "auto"


@pytest.mark.one_backend
def test_adafactors_cap_also_limits_the_scaled_learning_rate():
    make = dict(learning_rate=2.0, multiply_by_parameter_scale=False)
    one, other = (
        changes(Adafactor(rate_scale=scale, **make), one=(6, 4))["one"]
        for scale in (None, 8.0)
    )
    np.testing.assert_array_equal(one, other)


@pytest.mark.parametrize("make", ONE_OF_EACH.values(), ids=ONE_OF_EACH)
def test_rate_scale_multiplies_the_learning_rate(make):
    shapes = {"one": (6, 4), "other": (6, 4), "vector": (5,)}
    # Products with powers of 2 are exact.
    plain = changes(make(learning_rate=2.0**-5, rate_scale=None), **shapes)
    scale = {"other": 0.25}
    got = changes(make(learning_rate=2.0**-5, rate_scale=scale), **shapes)
    smaller = changes(make(learning_rate=2.0**-7, rate_scale=None), **shapes)
    for name, expected in {**plain, "other": smaller["other"]}.items():
        np.testing.assert_allclose(got[name], expected, rtol=1e-5, atol=1e-7)
        assert np.any(expected != 0.0)


@pytest.mark.one_backend
def test_update_bound_is_relative_to_the_scaled_learning_rate():
    make = dict(learning_rate=0.5, update_bound=0.01, beta_1=0.0)
    got = changes(ExtremeTensoring(rate_scale=4.0, **make), steps=1, one=(6, 4))
    assert np.max(np.abs(got["one"])) == pytest.approx(0.5 * 4.0 * 0.01, rel=1e-6)


@pytest.mark.skipif(
    keras.backend.backend() != "tensorflow", reason="IndexedSlices are TensorFlow's"
)
@pytest.mark.parametrize("make", ONE_OF_EACH.values(), ids=ONE_OF_EACH)
def test_a_sparse_gradient_of_an_embedding_has_its_learning_rate(make):
    import tensorflow as tf

    values = np.random.default_rng(2).standard_normal((3, 8)).astype("float32")
    rows = tf.IndexedSlices(values, (4, 1, 4), (48, 8))
    after = []
    for gradient in (rows, tf.convert_to_tensor(rows)):
        table = variables(embeddings=(48, 8))["embeddings"]
        optimizer = make(learning_rate=0.01, rate_scale="auto", momentum_rank=0)
        for _ in range(2):
            optimizer.apply([gradient], [table])
        after.append(keras.ops.convert_to_numpy(table))
    np.testing.assert_allclose(*after, rtol=1e-5, atol=1e-6)


@pytest.mark.one_backend
def test_rate_scale_does_not_change_weight_decay():
    def after(scale):
        optimizer = ExtremeTensoring(0.1, weight_decay=0.5, rate_scale=scale)
        trained = variables(one=(6, 4))["one"]
        optimizer.apply([keras.ops.zeros((6, 4))], [trained])
        return keras.ops.convert_to_numpy(trained)

    start = keras.ops.convert_to_numpy(variables(one=(6, 4))["one"])
    for scale in (None, 8.0):
        np.testing.assert_allclose(after(scale), start * (1.0 - 0.05), rtol=1e-6)


@pytest.mark.one_backend
def test_rate_scale_is_auto_for_extreme_tensoring_and_none_for_the_baselines():
    assert ExtremeTensoring().rate_scale == "auto"
    assert Adafactor().rate_scale is SubsetNorm().rate_scale is None
    table = {"embeddings": (48, 8)}
    plain, by_default = (
        changes(ExtremeTensoring(0.1, **arguments), steps=1, **table)["embeddings"]
        for arguments in ({"rate_scale": None}, {})
    )
    # Changes are exact to 2.4e-7, a weight's last place, times the factor of 8.
    np.testing.assert_allclose(by_default, TOKEN_SCALE * plain, rtol=1e-5, atol=3e-6)
    assert np.max(np.abs(plain)) > 0.01


@pytest.mark.one_backend
@pytest.mark.parametrize("scale", ["auto", None, 2.0, {"a": 2.0, "b": None}])
def test_rate_scale_is_in_the_configuration(scale):
    optimizer = ExtremeTensoring(rate_scale=scale, **IN_A_SUBSPACE)
    again = keras.optimizers.deserialize(keras.optimizers.serialize(optimizer))
    assert again.rate_scale == scale


@pytest.mark.one_backend
def test_an_expression_that_matches_no_variable_is_refused():
    optimizer = ExtremeTensoring(rate_scale={"embeddings": 2.0})
    with pytest.raises(ValueError, match="rate_scale.*embeddings"):
        optimizer.build(list(variables(kernel=(4, 4)).values()))
