"""Small classifiers, of Keras layers only."""

import keras


def mlp(input_shape, classes, *, hidden=(512, 512)):
    """Builds a multilayer perceptron: examples in, logits out.

    Args:
        input_shape: Shape of an example, with any number of axes.
        classes: Number of classes.
        hidden: Widths of the hidden layers, each followed by a ReLU. With none the
            model is linear.

    Returns:
        A `keras.Model` from floats of shape `(batch, *input_shape)` to logits of shape
        `(batch, classes)`.
    """
    inputs = keras.Input(input_shape, name="inputs")
    x = keras.layers.Flatten(name="flatten")(inputs)
    for index, width in enumerate(hidden):
        x = keras.layers.Dense(
            width,
            activation="relu",
            kernel_initializer="he_normal",
            name=f"hidden_{index}",
        )(x)
    logits = keras.layers.Dense(classes, name="logits")(x)
    return keras.Model(inputs, logits, name="mlp")


def logistic_regression(features, classes):
    """Builds multinomial logistic regression: a single matrix.

    With the cross-entropy of its logits it is a convex problem. The matrix is
    initially zero, so that every run starts at the same point, with loss log(classes).

    Args:
        features: Length of an example.
        classes: Number of classes.

    Returns:
        A `keras.Model` from floats of shape `(batch, features)` to logits of shape
        `(batch, classes)`.
    """
    inputs = keras.Input((features,), name="inputs")
    logits = keras.layers.Dense(
        classes, use_bias=False, kernel_initializer="zeros", name="logits"
    )(inputs)
    return keras.Model(inputs, logits, name="logistic_regression")
