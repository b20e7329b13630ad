"""Batches of images: data sets in memory, shuffled, augmented and batched.

The same data, sizes and seed give the same batches in the same order, however often
they are read. A run that is resumed at a later step sees the same batches.
"""

import contextlib
import dataclasses
import functools
import os

import numpy as np
import tensorflow as tf
import tensorflow_datasets as tfds
from rich.console import Console
from rich.markup import escape

from tf_models.data import IMAGES
from tf_models.data.digits import Digits
from tf_models.data.folder_files import log_skipped
from tf_models.data.image_folder import DEFAULT_SIZE, LabelledImages, folder_config

# Of CIFAR-10's 50,000 training images; the others are for validation.
CIFAR_10_TRAIN = 45_000

# Images to decode, resize or average at once.
CHUNK = 1000
# Augmentation pads each side by this share of its length: 4 pixels of 32.
PADDING_SHARE = 1 / 8
PREFETCHED_BATCHES = 2


@dataclasses.dataclass(frozen=True, eq=False)
class ImageData:
    """A data set of labelled images, in memory.

    Attributes:
        name: A name, for folders with a digest of the content.
        classes: Number of classes.
        shape: Shape of an image, (height, width, channels).
        train: `uint8` images of shape (n, *shape) and their `int32` labels, (n,).
        validation: The validation split, in the same form.
        test: The test split, in the same form.
        flips: Whether mirror images certainly have the same class.
    """

    name: str
    classes: int
    shape: tuple
    train: tuple[np.ndarray, np.ndarray]
    validation: tuple[np.ndarray, np.ndarray]
    test: tuple[np.ndarray, np.ndarray]
    flips: bool

    @functools.cached_property
    def mean_and_deviation(self):
        """Mean and standard deviation of each channel over the train split.

        Both are `float32` of shape (channels,). The deviation of a constant channel is
        replaced by 1.
        """
        total = squares = 0.0
        images, _ = self.train
        for chunk in _chunks(images):
            chunk = chunk.astype(np.float64)
            total += chunk.sum(axis=(0, 1, 2))
            squares += np.square(chunk).sum(axis=(0, 1, 2))
        pixels = images.size // images.shape[-1]
        mean = total / pixels
        deviation = np.sqrt(np.maximum(squares / pixels - mean**2, 0))
        deviation[deviation == 0] = 1
        return mean.astype(np.float32), deviation.astype(np.float32)


# Loading.


def load_images(
    name, *, size=None, data_dir=None, image_dir=None, on_bad_file="skip", console=None
):
    """Reads a data set, and prepares it on first use.

    Args:
        name: `"digits"` (of scikit-learn, 8 × 8 gray), `"cifar10"` (32 × 32 RGB,
            downloaded on first use) or `"folder"` (the user's images, RGB).
        size: Height and width to which images are resized, bilinearly. `None` for their
            own size, and for 32 in case of a folder.
        data_dir: Directory of prepared data sets; `None` for the default of TFDS.
        image_dir: The folder for `"folder"`, with one folder of images for each label.
        on_bad_file: How to treat empty or damaged files of the folder: `"skip"` logs
            them whenever the folder is read, `"refuse"` raises a `ValueError`.
        console: A `rich.console.Console` for messages; `None` for none.

    Returns:
        An `ImageData`.

    Raises:
        ValueError: `name` or `size` is not one of these, `image_dir` is missing or
            superfluous, or `folder_config` or `LabelledImages` refuses the folder.
        OSError: CIFAR-10 is not prepared and cannot be downloaded.
    """
    if name not in IMAGES:
        raise ValueError(f"name must be one of {', '.join(IMAGES)}; received {name!r}.")
    if size is not None and size < 1:
        raise ValueError(
            f"size must be at least 1 pixel; received size={size}. Leave it out for "
            "the size of the images."
        )
    if (name == "folder") != bool(image_dir):
        raise ValueError(
            'image_dir must be given for "folder", and only then; received '
            f"image_dir={image_dir!r} for {name!r}."
        )
    console = console or Console(quiet=True)
    data_dir = data_dir and os.path.expanduser(data_dir)
    tfds.disable_progress_bar()
    source = escape(str(image_dir or name))
    with console.status(f"Reading the images of {source}"):
        if name == "digits":
            data = _digits(size, data_dir)
        elif name == "cifar10":
            data = _cifar_10(size, data_dir)
        else:
            data = _folder(image_dir, size, on_bad_file, data_dir)
    height, width, channels = data.shape
    console.print(
        f"Images: {source}, {height} × {width} × {channels}, "
        f"{data.classes} classes, {len(data.train[1]):,} to train on, "
        f"{len(data.validation[1]):,} to validate on, {len(data.test[1]):,} to test on."
    )
    return data


def _digits(size, data_dir):
    builder = Digits(data_dir=data_dir)
    _prepare(builder)
    return _read("digits", builder, size, "train", "validation", flips=False)


def _cifar_10(size, data_dir):
    builder = tfds.builder("cifar10", data_dir=data_dir)
    try:
        _prepare(builder)
    except (OSError, tfds.download.DownloadError) as error:
        raise OSError(
            "CIFAR-10 must be prepared or downloaded from www.cs.toronto.edu; received "
            f"no data: {error}. Prepare it on a machine with a network, by `python -c "
            "\"import tensorflow_datasets as tfds; tfds.load('cifar10')\"`, and copy "
            "~/tensorflow_datasets/cifar10 into this machine's data_dir; or choose "
            '"digits", which needs no network.'
        ) from error
    train = f"train[:{CIFAR_10_TRAIN}]"
    validation = f"train[{CIFAR_10_TRAIN}:]"
    return _read("cifar10", builder, size, train, validation, flips=True)


def _folder(image_dir, size, on_bad_file, data_dir):
    config = folder_config(
        image_dir, size=size or DEFAULT_SIZE, on_bad_file=on_bad_file
    )
    builder = LabelledImages(config=config, data_dir=data_dir)
    _prepare(builder)
    log_skipped(image_dir, builder.info.metadata["skipped"])
    # A mirrored letter or arrow may have another class.
    return _read(
        f"folder {config.name}", builder, size, "train", "validation", flips=False
    )


def _prepare(builder):
    # TFDS announces a "download" even for local data.
    with contextlib.redirect_stdout(None):
        builder.download_and_prepare()


def _read(name, builder, size, train, validation, *, flips):
    splits = [_arrays(builder, split, size) for split in (train, validation, "test")]
    return ImageData(
        name,
        builder.info.features["label"].num_classes,
        splits[0][0].shape[1:],
        *splits,
        flips,
    )


def _arrays(builder, split, size):
    """The resized images and the labels of a split, in order."""
    examples = builder.as_dataset(split=split, as_supervised=True, shuffle_files=False)
    images, labels = zip(*tfds.as_numpy(examples.batch(CHUNK)))
    return resized(np.concatenate(images), size), np.concatenate(labels, dtype=np.int32)


def resized(images, size):
    """Resizes images to size × size.

    Args:
        images: A `uint8` array of shape (n, height, width, channels).
        size: The new height and width; `None` to keep the old ones.

    Returns:
        A `uint8` array, interpolated bilinearly and with antialiasing.
    """
    if size is None or images.shape[1:3] == (size, size):
        return images
    return np.concatenate(
        [
            np.rint(tf.image.resize(chunk, (size, size), antialias=True)).astype(
                "uint8"
            )
            for chunk in _chunks(images)
        ]
    )


def _chunks(images):
    return (images[start : start + CHUNK] for start in range(0, len(images), CHUNK))


# Batches.


def image_batches(data, batch_size, *, steps, seed, first_step=0, augment=False):
    """Makes the training batches of a run.

    Every epoch has each image once, in its own order. Order and augmentation depend
    only on the seed and the position of an example in the run, not on other random
    numbers or earlier reading.

    Augmentation pads an image with zeros by an eighth of its height and width on each
    side, takes a random crop of the original size and, if `data.flips`, mirrors it with
    probability 1/2. Then images are standardized by the mean and standard deviation of
    each channel over the train split.

    Args:
        data: An `ImageData`.
        batch_size: Images per batch.
        steps: Number of batches.
        seed: Integer that selects order and augmentation.
        first_step: Number of batches to skip at the start.
        augment: Whether to augment.

    Returns:
        A `tf.data.Dataset` of `steps` pairs `(images, labels)`: `float32` of shape
        `(batch_size, *data.shape)` and `int32` of shape `(batch_size,)`.

    Raises:
        ValueError: `batch_size` is not positive or `first_step` is negative.
    """
    _check_batch_size(batch_size)
    if first_step < 0:
        raise ValueError(
            f"first_step must be 0 or more; received first_step={first_step}. Leave "
            "it out to start with the first batch."
        )
    images, labels = data.train
    seed = tf.constant(seed, tf.int64)

    def index_at(position):
        return tf.random.experimental.index_shuffle(
            position % len(labels),
            seed=tf.stack([seed, position // len(labels)]),
            max_index=tf.constant(len(labels) - 1, tf.int64),
        )

    def crop_at(position):
        return _crop(data, seed=tf.stack([seed, position]))

    def gather(index):
        return images[index], labels[index]

    def examples_at(index):
        # The images stay in host memory: a tensor could be on a GPU.
        types = tf.uint8, tf.int32
        image_batch, label_batch = tf.numpy_function(gather, [index], types)
        image_batch.set_shape((batch_size, *data.shape))
        label_batch.set_shape((batch_size,))
        return image_batch, label_batch

    def cropped(examples, crops):
        return _cropped(examples[0], crops, data.shape), examples[1]

    first, last = first_step * batch_size, (first_step + steps) * batch_size
    positions = tf.data.Dataset.range(first, last)
    batches = positions.map(index_at).batch(batch_size, drop_remainder=True)
    batches = batches.map(examples_at)
    if augment:
        crops = positions.map(crop_at).batch(batch_size, drop_remainder=True)
        batches = tf.data.Dataset.zip(batches, crops).map(cropped)
    return _standardized_and_prefetched(batches, data)


def evaluation_batches(data, images_and_labels, batch_size):
    """Makes the batches of a split: each image once, in order, not augmented.

    Args:
        data: The `ImageData` whose train split defines the standardization, see
            `image_batches`.
        images_and_labels: `data.validation`, `data.test` or `data.train`.
        batch_size: Images per batch; the last batch may be smaller.

    Returns:
        A `tf.data.Dataset` of pairs `(images, labels)`, `float32` and `int32`.

    Raises:
        ValueError: `batch_size` is not positive.
    """
    _check_batch_size(batch_size)
    with tf.device("CPU:0"):  # Not in the memory of a GPU.
        examples = tf.data.Dataset.from_tensor_slices(images_and_labels)
    return _standardized_and_prefetched(examples.batch(batch_size), data)


def _check_batch_size(batch_size):
    if batch_size < 1:
        raise ValueError(f"batch_size must be at least 1; received {batch_size}.")


def _crop(data, seed):
    """The random crop of an example: first row, first column and mirroring."""
    rows, columns = _paddings(data.shape)
    choices = tf.constant([2 * rows + 1, 2 * columns + 1, 2 if data.flips else 1])
    chosen = tf.random.stateless_uniform((3,), seed) * tf.cast(choices, tf.float32)
    return tf.cast(chosen, tf.int32)


def _cropped(images, crops, shape):
    """Pads the images, then crops each by its row of `crops`."""
    height, width, _ = shape
    rows, columns = _paddings(shape)
    images = tf.pad(images, [[0, 0], [rows, rows], [columns, columns], [0, 0]])
    first_row, first_column, is_mirrored = tf.split(crops, 3, axis=1)
    right = tf.range(width)
    across = tf.where(is_mirrored == 1, right[::-1], right)
    images = tf.gather(images, first_row + tf.range(height), axis=1, batch_dims=1)
    return tf.gather(images, first_column + across, axis=2, batch_dims=1)


def _paddings(shape):
    return [round(PADDING_SHARE * length) for length in shape[:2]]


def _standardized_and_prefetched(batches, data):
    mean, deviation = data.mean_and_deviation

    def standardized(images, labels):
        return (tf.cast(images, tf.float32) - mean) / deviation, labels

    options = tf.data.Options()
    # There is nothing to tune, and a finished iterator would wait up to half a minute
    # for the tuning thread.
    options.autotune.enabled = False
    batches = batches.map(standardized).prefetch(PREFETCHED_BATCHES)
    return batches.with_options(options)
