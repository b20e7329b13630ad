"""What a run trains: a model on data, and the number that says how well it does.

A task is a frozen dataclass of plain values, so that it can be written down beside a
result and compared with another's. `load` reads its data and returns a `LoadedTask`.
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

# The windows that are evaluated are the same for every run, every seed and every batch
# size: about this many tokens, drawn from all over the split.
EVALUATED_TOKENS = 128 * 1024
EVALUATION_BATCH_TOKENS = 4 * 1024
EVALUATION_SEED = 0
EVALUATION_BATCH_IMAGES = 256
# The largest float has this logarithm; NaN is not less than it either.
LARGEST_LOSS = math.log(sys.float_info.max)


@dataclasses.dataclass(frozen=True)
class LoadedTask:
    """A task with its data, ready to be trained.

    Attributes:
        data: What the data are, for people; with the task, it says which they are.
        measure: The name of the number that is measured, of which less is better:
            `"perplexity"`, `"error"` or `"excess loss"`.
        unit: What the measure counts: `"a byte"`, `"% of images"`, `"nats"`.
        metrics: Names of the Keras metrics it needs besides the loss.
        make_model: Takes nothing, returns a new model of logits.
        training_batches: Takes `steps`, `seed` and `first_step`, returns so many
            batches, those of the run from there on: a `keras.utils.PyDataset` or, of
            images, a `tf.data.Dataset`.
        validation: The batches that rates are chosen on, likewise.
        test: The batches that nothing is chosen on.
        score: Takes what `model.evaluate` returned as a dict, returns the measure.
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
        sequence_length: Tokens a window predicts.
        batch_size: Windows a training batch.
    """

    text: str = "stdlib"
    text_dir: str | None = None
    subwords: int | None = None
    model: str = "tiny"
    sequence_length: int = 96
    batch_size: int = 16

    def for_seed(self, seed):
        """The same text, whatever the seed."""
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
            unit=f"a {text.unit}",
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
    """Telling the classes of images apart.

    Attributes:
        images: `"digits"`, `"cifar10"` or `"folder"`.
        image_dir: The folder, for `"folder"`.
        size: Height and width the images are scaled to; `None` for their own.
        model: `"resnet18"` or `"mlp"`.
        width: Channels of the ResNet's first stage, or units of the MLP's layers.
        batch_size: Images a training batch.
        augment: Whether training images are shifted, and mirrored where that leaves
            the class as it is.
    """

    images: str = "digits"
    image_dir: str | None = None
    size: int | None = None
    model: str = "resnet18"
    width: int = 64
    batch_size: int = 128
    augment: bool = True

    def for_seed(self, seed):
        """The same images, whatever the seed."""
        del seed
        return self

    def load(self, data_dir=None, on_bad_file="skip", console=None):
        """Reads the images; see `load_images`. Returns a `LoadedTask`.

        Raises:
            RuntimeError: there is no TensorFlow.
        """
        try:
            from tf_models.data import images
        except ImportError as missing:
            raise RuntimeError(
                "Images are read and augmented by TFDS and tf.data, which must find "
                f"TensorFlow; received: {missing}. Install it (pip install "
                "tensorflow), under whichever backend you train."
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
    """Logistic regression on Gaussian data, by whole gradients.

    How near an optimizer comes to the minimum is a matter of its preconditioner alone
    here: there is no noise, one minimum, and one start. So the measure is what the
    objective lacks of its minimum, on the examples trained on; there is no other split,
    and test and validation are the same.

    Attributes:
        examples, features, classes: Sizes of the data.
        condition_number: Of the features' covariance.
        data_seed: Selects the data.
    """

    examples: int = 10_000
    features: int = 512
    classes: int = 10
    condition_number: float = 1e4
    data_seed: int = 0

    @property
    def model(self):
        """What the results call the model."""
        return "logistic"

    def for_seed(self, seed):
        """The data of this seed: a run has nothing else that could be drawn."""
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
            del seed, first_step  # Every batch is all there is.
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
    """One batch, again and again.

    Args:
        batch: A tuple of arrays.
        times: How often.
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
    """The name of a task's class in `TASKS`."""
    return type(task).__name__.lower()


def evaluation_windows(tokens, sequence_length):
    """Makes the fixed batches that a stream of tokens is evaluated on.

    Args:
        tokens: One-dimensional array of tokens.
        sequence_length: Number of tokens a window predicts.

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
    """e to the loss; infinite where no float is as large."""
    loss = logs["loss"]
    return math.exp(loss) if loss < LARGEST_LOSS else math.inf


def error(logs):
    """The share of wrong answers in per cent; NaN with a loss that is not finite."""
    return 100.0 * (1.0 - logs["accuracy"]) if np.isfinite(logs["loss"]) else math.nan


def loss_of_logits():
    """The loss of every task."""
    return keras.losses.SparseCategoricalCrossentropy(from_logits=True)
