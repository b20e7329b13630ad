"""A small decoder-only Transformer language model, of Keras layers only.

Chen et al. (2020, arXiv:1902.04620) study extreme tensoring on such a model of
Tensor2Tensor. Its small sizes train in seconds on a CPU.
"""

import keras

# Sizes by name: `base` is that of the paper, and `base_12` is twice as deep. `tiny`
# trains 1200 steps in half a minute on two cores, and `tiny_4` is twice as deep.
SIZES = {
    "tiny": {"layers": 2, "width": 128, "heads": 4, "feed_forward_width": 512},
    "tiny_4": {"layers": 4, "width": 128, "heads": 4, "feed_forward_width": 512},
    "small": {"layers": 4, "width": 256, "heads": 4, "feed_forward_width": 1024},
    "base": {"layers": 6, "width": 512, "heads": 8, "feed_forward_width": 2048},
    "base_12": {"layers": 12, "width": 512, "heads": 8, "feed_forward_width": 2048},
}


@keras.saving.register_keras_serializable(package="tf_models")
class TokenAndPositionEmbedding(keras.layers.Layer):
    """Adds learned embeddings of tokens and positions.

    Args:
        vocabulary_size: Number of different tokens.
        sequence_length: Number of positions, the length of every input.
        width: Length of an embedding.

    Call arguments:
        tokens: Integers of shape `(batch, sequence_length)`.

    Call returns:
        Floats of shape `(batch, sequence_length, width)`.
    """

    def __init__(self, vocabulary_size, sequence_length, width, **kwargs):
        super().__init__(**kwargs)
        self.vocabulary_size = vocabulary_size
        self.sequence_length = sequence_length
        self.width = width
        self.token = keras.layers.Embedding(vocabulary_size, width, name="token")
        self.position = keras.layers.Embedding(sequence_length, width, name="position")

    def build(self, input_shape):
        self.token.build(input_shape)
        self.position.build((self.sequence_length,))
        self.built = True

    def call(self, tokens):
        return self.token(tokens) + self.position(
            keras.ops.arange(self.sequence_length)
        )

    def get_config(self):
        return super().get_config() | {
            "vocabulary_size": self.vocabulary_size,
            "sequence_length": self.sequence_length,
            "width": self.width,
        }


@keras.saving.register_keras_serializable(package="tf_models")
class DecoderBlock(keras.layers.Layer):
    """Causal self-attention and a feed-forward layer, each with a residual.

    Both normalize their input ("pre-norm"), so that the residual path is the identity
    from the embedding to the logits, and no optimizer needs a long warm-up to stay
    finite.

    Args:
        width: Length of the vector at each position.
        heads: Number of attention heads; divides `width`.
        feed_forward_width: Width of the hidden layer after the attention.

    Call arguments:
        x: Floats of shape `(batch, positions, width)`.

    Call returns:
        Floats of the same shape.
    """

    def __init__(self, width, heads, feed_forward_width, **kwargs):
        super().__init__(**kwargs)
        self.width = width
        self.heads = heads
        self.feed_forward_width = feed_forward_width
        self.attention_norm = keras.layers.LayerNormalization(name="attention_norm")
        self.attention = keras.layers.MultiHeadAttention(
            num_heads=heads, key_dim=width // heads, name="attention"
        )
        self.feed_forward_norm = keras.layers.LayerNormalization(
            name="feed_forward_norm"
        )
        self.expand = keras.layers.Dense(
            feed_forward_width, activation="relu", name="expand"
        )
        self.contract = keras.layers.Dense(width, name="contract")

    def build(self, input_shape):
        self.attention_norm.build(input_shape)
        self.attention.build(input_shape, input_shape)
        self.feed_forward_norm.build(input_shape)
        self.expand.build(input_shape)
        self.contract.build((*input_shape[:-1], self.feed_forward_width))
        self.built = True

    def call(self, x):
        normalized = self.attention_norm(x)
        x = x + self.attention(normalized, normalized, use_causal_mask=True)
        return x + self.contract(self.expand(self.feed_forward_norm(x)))

    def get_config(self):
        return super().get_config() | {
            "width": self.width,
            "heads": self.heads,
            "feed_forward_width": self.feed_forward_width,
        }


def transformer_language_model(
    vocabulary_size,
    sequence_length,
    *,
    layers=2,
    width=128,
    heads=4,
    feed_forward_width=512,
):
    """Builds the language model: tokens in, logits of the next tokens out.

    Args:
        vocabulary_size: Number of different tokens.
        sequence_length: Number of tokens the model reads at once.
        layers: Number of decoder blocks.
        width: Length of the vector at each position.
        heads: Number of attention heads; divides `width`.
        feed_forward_width: Width of each block's hidden layer.

    Returns:
        A `keras.Model` from integers of shape `(batch, sequence_length)` to logits
        of shape `(batch, sequence_length, vocabulary_size)`. The logits at a position
        depend only on the tokens up to that position.

    Raises:
        ValueError: `width` is not a multiple of `heads`.
    """
    if width % heads:
        raise ValueError(
            f"width must be a multiple of heads; received width={width} and "
            f"heads={heads}. Change one of them."
        )
    tokens = keras.Input((sequence_length,), dtype="int32", name="tokens")
    x = TokenAndPositionEmbedding(
        vocabulary_size, sequence_length, width, name="embedding"
    )(tokens)
    for index in range(layers):
        x = DecoderBlock(width, heads, feed_forward_width, name=f"block_{index}")(x)
    x = keras.layers.LayerNormalization(name="final_norm")(x)
    # In float32 even with mixed precision, because the loss exponentiates them.
    if keras.config.dtype_policy().variable_dtype == "float32":
        logits = keras.layers.Dense(vocabulary_size, dtype="float32", name="logits")(x)
    else:
        # The matrix and the product have 16 bits here, like all others.
        x = keras.layers.Dense(vocabulary_size, name="logits")(x)
        logits = keras.layers.Activation("linear", dtype="float32", name="wide")(x)
    return keras.Model(tokens, logits, name="transformer_language_model")
