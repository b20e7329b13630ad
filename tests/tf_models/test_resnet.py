"""ResNet-18."""

import keras
import numpy as np
import pytest

from tf_models.models.resnet import resnet_18


def numbers(variables):
    return sum(int(np.prod(variable.shape)) for variable in variables)


def test_at_paper_size_it_is_the_published_network():
    model = resnet_18((32, 32, 3), 10)
    assert numbers(model.trainable_variables) == 11_173_962
    kernels = [v for v in model.trainable_variables if v.path.endswith("/kernel")]
    # 17 convolutions, 3 of them shortcuts more, and the dense layer.
    assert len(kernels) == 17 + 3 + 1


@pytest.mark.parametrize(("side", "last"), [(32, 4), (8, 1), (28, 4)])
def test_three_of_the_four_stages_halve_the_image(side, last):
    model = resnet_18((side, side, 1), 10, width=2)
    final = model.get_layer("stage_3_block_1_relu").output
    assert final.shape == (None, last, last, 16)
    assert model.get_layer("stage_0_block_1_relu").output.shape[1:] == (side, side, 2)


def test_there_is_one_unbounded_logit_per_class():
    model = resnet_18((8, 8, 1), 7, width=2)
    logits = model(100 * np.random.default_rng(0).normal(size=(5, 8, 8, 1))).numpy()
    assert logits.shape == (5, 7)
    assert (logits < 0).any()
    assert model.layers[-1].activation is keras.activations.linear


def test_a_block_with_zero_convolutions_is_the_identity():
    model = resnet_18((8, 8, 1), 10, width=2)
    model.get_layer("stage_0_block_1_second_norm").gamma.assign([0.0, 0.0])
    before_and_after = keras.Model(
        model.inputs,
        [model.get_layer(f"stage_0_block_{block}_relu").output for block in (0, 1)],
    )
    before, after = before_and_after([np.ones((1, 8, 8, 1))])
    np.testing.assert_array_equal(before, after)


def test_it_learns(eager):
    model = resnet_18((8, 8, 1), 2, width=2)
    model.compile(
        keras.optimizers.Adam(0.01),
        keras.losses.SparseCategoricalCrossentropy(from_logits=True),
    )
    images = np.random.default_rng(0).normal(size=(16, 8, 8, 1)).astype("float32")
    labels = (images[:, :4].mean(axis=(1, 2, 3)) > 0).astype("int32")
    losses = [model.train_on_batch(images, labels) for _ in range(10)]
    assert losses[-1] < 0.7 * losses[0]


def test_an_image_without_channels_is_refused_with_the_remedy():
    with pytest.raises(ValueError, match=r"received \(8, 8\). Give grey .* length 1"):
        resnet_18((8, 8), 10)
