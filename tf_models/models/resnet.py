"""ResNet-18 for small images, of Keras layers only.

The network of the CIFAR-10 study of Chen et al. (2020, arXiv:1902.04620), at any width.
"""

import keras

# The running averages must forget their initial values even in short runs.
BATCH_NORM_MOMENTUM = 0.9
BATCH_NORM_EPSILON = 1e-5


def resnet_18(input_shape, classes, *, width=64):
    """Builds ResNet-18 for CIFAR-10: images in, logits out.

    Because its images are small, it starts with a 3 × 3 convolution of stride 1 and no
    pooling, unlike that for ImageNet. Four stages of two basic blocks follow, with 1,
    2, 4 and 8 times the width; all except the first halve the image. Global average
    pooling comes last.

    Args:
        input_shape: Shape of an image, (height, width, channels).
        classes: Number of classes.
        width: Channels of the first stage. The paper has 64: 11,173,962 trainable
            weights for 32 × 32 × 3 and 10 classes.

    Returns:
        A `keras.Model` from floats of shape `(batch, *input_shape)` to logits of shape
        `(batch, classes)`.

    Raises:
        ValueError: `input_shape` does not have three axes.

    Reference:
        [He, Zhang, Ren, Sun, 2016](https://arxiv.org/abs/1512.03385), Deep Residual
        Learning for Image Recognition.
    """
    if len(input_shape) != 3:
        raise ValueError(
            "input_shape must be (height, width, channels); received "
            f"{tuple(input_shape)}. Give grey images a last axis of length 1."
        )
    images = keras.Input(input_shape, name="images")
    x = keras.layers.ReLU(name="stem_relu")(_convolution(images, width, 3, 1, "stem"))
    for stage, multiple in enumerate((1, 2, 4, 8)):
        strides = 1 if stage == 0 else 2
        x = _basic_block(x, multiple * width, strides, f"stage_{stage}_block_0")
        x = _basic_block(x, multiple * width, 1, f"stage_{stage}_block_1")
    x = keras.layers.GlobalAveragePooling2D(name="average")(x)
    logits = keras.layers.Dense(classes, name="logits")(x)
    return keras.Model(images, logits, name="resnet_18")


def _basic_block(x, channels, strides, name):
    """Two convolutions with a shortcut: the identity or a 1 × 1 convolution."""
    residual = _convolution(x, channels, 3, strides, f"{name}_first")
    residual = keras.layers.ReLU(name=f"{name}_first_relu")(residual)
    residual = _convolution(residual, channels, 3, 1, f"{name}_second")
    if strides != 1 or x.shape[-1] != channels:
        x = _convolution(x, channels, 1, strides, f"{name}_shortcut")
    x = keras.layers.Add(name=f"{name}_add")([x, residual])
    return keras.layers.ReLU(name=f"{name}_relu")(x)


def _convolution(x, channels, kernel_size, strides, name):
    """A convolution without bias and its batch normalization."""
    x = keras.layers.Conv2D(
        channels,
        kernel_size,
        strides=strides,
        padding="same",
        use_bias=False,
        kernel_initializer="he_normal",
        name=f"{name}_convolution",
    )(x)
    return keras.layers.BatchNormalization(
        momentum=BATCH_NORM_MOMENTUM,
        epsilon=BATCH_NORM_EPSILON,
        name=f"{name}_norm",
    )(x)
