"""The variables of real models, as lists of shapes."""

from tf_models.models.transformer import transformer_language_model


def gpt2_like(layers=4, width=768, vocabulary=50257, positions=1024):
    """GPT-2 with 4 of its 12 blocks: 67.7 million weights."""
    block = [
        *[(width,)] * 2,
        *[(width, 3 * width), (3 * width,), (width, width), (width,)],
        *[(width,)] * 2,
        *[(width, 4 * width), (4 * width,), (4 * width, width), (width,)],
    ]
    return [(vocabulary, width), (positions, width), *block * layers, *[(width,)] * 2]


def resnet50(classes=1000):
    """ResNet-50: 25.6 million weights in 161 variables."""
    shapes = [(7, 7, 3, 64), (64,), (64,)]
    channels = 64
    for width, blocks in [(64, 3), (128, 4), (256, 6), (512, 3)]:
        for block in range(blocks):
            kernels = [(1, 1, channels, width), (3, 3, width, width)]
            kernels.append((1, 1, width, 4 * width))
            if block == 0:
                kernels.append((1, 1, channels, 4 * width))
            for kernel in kernels:
                shapes += [kernel, (kernel[-1],), (kernel[-1],)]
            channels = 4 * width
    return [*shapes, (channels, classes), (classes,)]


def wide_recommender():
    """Eight embedding tables of odd sizes and a tower: 54.2 million weights."""
    tables = [500_009, 200_003, 100_000, 30_522, 5_003, 1_000, 365, 24]
    tower = [8 * 64 + 13, 1024, 512, 256, 1]
    dense = [s for i, o in zip(tower, tower[1:]) for s in [(i, o), (o,)]]
    return [*[(rows, 64) for rows in tables], (500_009, 1), *dense]


def bert_large(layers=24, width=1024, vocabulary=30522, positions=512):
    """The encoder and pooler of BERT-Large: 335.1 million weights."""
    block = [
        *[(width, width), (width,)] * 4,
        *[(width,)] * 2,
        *[(width, 4 * width), (4 * width,), (4 * width, width), (width,)],
        *[(width,)] * 2,
    ]
    embeddings = [(vocabulary, width), (positions, width), (2, width)]
    return [*embeddings, *[(width,)] * 2, *block * layers, (width, width), (width,)]


def demo_transformer():
    """The byte-level Transformer of `make demo`: 474 880 weights."""
    model = transformer_language_model(256, 96)
    return [tuple(variable.shape) for variable in model.trainable_variables]


MODELS = {
    "GPT-2-like": gpt2_like,
    "ResNet-50": resnet50,
    "wide recommender": wide_recommender,
    "demo Transformer": demo_transformer,
    "24 layers": lambda: bert_large(width=256, vocabulary=8000),
}
