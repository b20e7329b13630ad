"""Tasks: a model, its data and the measure of its quality.

A task is a frozen dataclass of plain values, so that it can be saved with a result and
compared. `load` reads its data and returns a `LoadedTask`.
"""

import dataclasses
import math
import sys
from collections.abc import Callable, Iterable

import keras
import numpy as np

from tf_models.data.gaussian import gaussian_classification, least_loss
from tf_models.data.text import load_text
from tf_models.data.windows import ShuffledWindows, window_count
from tf_models.models.classifiers import logistic_regression, mlp
from tf_models.models.resnet import resnet_18
from tf_models.models.transformer import SIZES, transformer_language_model

# All runs, seeds and batch sizes are evaluated on the same windows: about this many
# tokens from the whole split.
EVALUATED_TOKENS = 128 * 1024
EVALUATION_BATCH_TOKENS = 4 * 1024
EVALUATION_SEED = 0
EVALUATION_BATCH_IMAGES = 256
# The logarithm of the largest float. NaN is not less than it either.
LARGEST_LOSS = math.log(sys.float_info.max)


@dataclasses.dataclass(frozen=True)
class LoadedTask:
    """A task with its data, ready for training.

    Attributes:
        data: The name of the data. With the task, it identifies them.
        measure: `"perplexity"`, `"error"` or `"excess loss"`. Lower is better.
        unit: The unit of the measure: `"per byte"`, `"% of images"`, `"nats"`.
        metrics: Names of the Keras metrics that it needs besides the loss.
        make_model: Function without arguments that returns a new model of logits.
        training_batches: Function of `steps`, `seed` and `first_step` that returns
            `steps` batches of a run from its `first_step` on: a
            `keras.utils.PyDataset` or, for images, a `tf.data.Dataset`.
        validation: The batches on which learning rates are chosen.
        test: Batches that influence no choice.
        score: Function from the dict that `model.evaluate` returns to the measure.
        examples_per_step: Tokens or images in a training batch.
    """

    data: str
    measure: str
    unit: str
    metrics: tuple[str, ...]
    make_model: Callable
    training_batches: Callable
    validation: Iterable
    test: Iterable
    score: Callable
    examples_per_step: int


@dataclasses.dataclass(frozen=True, kw_only=True)
class Language:
    """Predicting the next token of a text with a Transformer.

    Attributes:
        text: `"stdlib"`, `"lm1b"` or `"folder"`.
        text_dir: The folder, for `"folder"`.
        subwords: Size of the subword vocabulary; `None` for bytes.
        model: One of `transformer.SIZES`.
        sequence_length: Tokens that a window predicts.
        batch_size: Windows per training batch.
    """

    text: str = "stdlib"
    text_dir: str | None = None
    subwords: int | None = None
    model: str = "tiny"
    sequence_length: int = 96
    batch_size: int = 16

    def for_seed(self, seed):
        """Returns this task: the text does not depend on the seed."""
        del seed
        return self

    def load(self, data_dir=None, on_bad_file="skip", console=None):
        """Reads the text; see `load_text`. Returns a `LoadedTask`."""
        text = load_text(
            self.text,
            subwords=self.subwords,
            data_dir=data_dir,
            text_dir=self.text_dir,
            on_bad_file=on_bad_file,
            console=console,
        )

        def make_model():
            return transformer_language_model(
                text.vocabulary_size, self.sequence_length, **SIZES[self.model]
            )

        def training_batches(steps, seed, first_step=0):
            return ShuffledWindows(
                text.train,
                self.sequence_length,
                self.batch_size,
                steps=steps,
                seed=seed,
                first_step=first_step,
            )

        return LoadedTask(
            data=text.name,
            measure="perplexity",
            unit=f"per {text.unit}",
            metrics=(),
            make_model=make_model,
            training_batches=training_batches,
            validation=evaluation_windows(text.validation, self.sequence_length),
            test=evaluation_windows(text.test, self.sequence_length),
            score=perplexity,
            examples_per_step=self.batch_size * self.sequence_length,
        )


@dataclasses.dataclass(frozen=True, kw_only=True)
class Images:
    """Classifying images.

    Attributes:
        images: `"digits"`, `"cifar10"` or `"folder"`.
        image_dir: The folder, for `"folder"`.
        size: Height and width to which images are scaled; `None` for their own.
        model: `"resnet18"` or `"mlp"`.
        width: Channels of the ResNet's first stage, or units of the MLP's layers.
        batch_size: Images per training batch.
        augment: Whether to shift training images, and to mirror them if that keeps
            their class.
    """

    images: str = "digits"
    image_dir: str | None = None
    size: int | None = None
    model: str = "resnet18"
    width: int = 64
    batch_size: int = 128
    augment: bool = True

    def for_seed(self, seed):
        """Returns this task: the images do not depend on the seed."""
        del seed
        return self

    def load(self, data_dir=None, on_bad_file="skip", console=None):
        """Reads the images; see `load_images`. Returns a `LoadedTask`.

        Raises:
            RuntimeError: TensorFlow is not installed.
        """
        try:
            from tf_models.data import images
        except ImportError as missing:
            raise RuntimeError(
                "Images are read and augmented by TFDS and tf.data, which need "
                f"TensorFlow; received: {missing}. Install it (pip install "
                "tensorflow); any Keras backend can train."
            ) from missing
        data = images.load_images(
            self.images,
            size=self.size,
            data_dir=data_dir,
            image_dir=self.image_dir,
            on_bad_file=on_bad_file,
            console=console,
        )

        def make_model():
            if self.model == "mlp":
                hidden = (self.width, self.width)
                return mlp(data.shape, data.classes, hidden=hidden)
            return resnet_18(data.shape, data.classes, width=self.width)

        def training_batches(steps, seed, first_step=0):
            return images.image_batches(
                data,
                self.batch_size,
                steps=steps,
                seed=seed,
                first_step=first_step,
                augment=self.augment,
            )

        return LoadedTask(
            data=data.name,
            measure="error",
            unit="% of images",
            metrics=("accuracy",),
            make_model=make_model,
            training_batches=training_batches,
            validation=images.evaluation_batches(
                data, data.validation, EVALUATION_BATCH_IMAGES
            ),
            test=images.evaluation_batches(data, data.test, EVALUATION_BATCH_IMAGES),
            score=error,
            examples_per_step=self.batch_size,
        )


@dataclasses.dataclass(frozen=True, kw_only=True)
class Convex:
    """Logistic regression on Gaussian data, with full-batch gradients.

    The result depends only on the preconditioner: there is no noise, one minimum and
    one initial point. The measure is the distance of the objective from its minimum,
    on the training examples. Validation and test split are the same.

    Attributes:
        examples, features, classes: Sizes of the data.
        condition_number: The condition number of the features' covariance.
        data_seed: Selects the data.
    """

    examples: int = 10_000
    features: int = 512
    classes: int = 10
    condition_number: float = 1e4
    data_seed: int = 0

    @property
    def model(self):
        """The name of the model in results."""
        return "logistic"

    def for_seed(self, seed):
        """The task with the data of a seed: nothing else in a run is random."""
        return dataclasses.replace(self, data_seed=seed)

    def load(self, data_dir=None, on_bad_file="skip", console=None):
        """Draws the data. Returns a `LoadedTask`."""
        del data_dir, on_bad_file, console
        x, y = gaussian_classification(
            examples=self.examples,
            features=self.features,
            classes=self.classes,
            condition_number=self.condition_number,
            seed=self.data_seed,
        )
        minimum = least_loss(x, y)
        whole = Repeated((x, y), 1)

        def training_batches(steps, seed, first_step=0):
            del seed, first_step  # Every batch holds all examples.
            return Repeated((x, y), steps)

        return LoadedTask(
            data=f"Gaussian, condition number {self.condition_number:g}",
            measure="excess loss",
            unit="nats",
            metrics=(),
            make_model=lambda: logistic_regression(self.features, self.classes),
            training_batches=training_batches,
            validation=whole,
            test=whole,
            score=lambda logs: logs["loss"] - minimum,
            examples_per_step=self.examples,
        )


class Repeated(keras.utils.PyDataset):
    """One batch, repeated.

    Args:
        batch: A tuple of arrays.
        times: The number of repetitions.
    """

    def __init__(self, batch, times):
        super().__init__()
        self._batch = batch
        self._times = times

    def __len__(self):
        return self._times

    def __getitem__(self, index):
        return self._batch


TASKS = {"language": Language, "images": Images, "convex": Convex}


def kind(task):
    """The name of a task in `TASKS`."""
    return type(task).__name__.lower()


def evaluation_windows(tokens, sequence_length):
    """Makes the fixed evaluation batches of a sequence of tokens.

    Args:
        tokens: One-dimensional array of tokens.
        sequence_length: Number of tokens that a window predicts.

    Returns:
        A `ShuffledWindows`.
    """
    windows = min(
        max(1, EVALUATED_TOKENS // sequence_length),
        window_count(tokens, sequence_length),
    )
    batch_size = max(1, min(windows, EVALUATION_BATCH_TOKENS // sequence_length))
    return ShuffledWindows(
        tokens,
        sequence_length,
        batch_size,
        steps=windows // batch_size,
        seed=EVALUATION_SEED,
    )


def perplexity(logs):
    """exp(loss); infinite if that overflows."""
    loss = logs["loss"]
    return math.exp(loss) if loss < LARGEST_LOSS else math.inf


def error(logs):
    """The error rate in per cent; NaN if the loss is not finite."""
    return 100.0 * (1.0 - logs["accuracy"]) if np.isfinite(logs["loss"]) else math.nan


def loss_of_logits():
    """The loss of every task."""
    return keras.losses.SparseCategoricalCrossentropy(from_logits=True)
