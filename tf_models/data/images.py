"""Images to batches: data sets in memory, shuffled, augmented and batched.

Everything here is a function of its arguments alone. The same data, sizes and seed give
the same batches in the same order whenever and however often they are read, and a run
that begins at a later step sees what the whole run saw from there on.
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
from tf_models.data.prefetching import prefetched

# The first of CIFAR-10's 50,000 training images; the others are for validation.
CIFAR_10_TRAIN = 45_000

# Images that are decoded, resized or averaged at once.
CHUNK = 1000
# Augmentation pads each side by this share of its length: 4 pixels for 32.
PADDING_SHARE = 1 / 8


@dataclasses.dataclass(frozen=True, eq=False)
class ImageData:
    """A data set of labelled images, in memory.

    Attributes:
        name: What the images are; of a folder, with a digest of its content.
        classes: Number of classes.
        shape: Shape of an image, (height, width, channels).
        train: `uint8` images of shape (n, *shape) and their `int32` labels, (n,).
        validation: The same, of the validation split.
        test: The same, of the test split.
        flips: Whether an image's mirror image is sure to be of the same class.
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
        """Of each channel's pixels over the train split, `float32` of (channels,).

        The deviation of a channel that never changes is given as 1.
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
    """Prepares a data set, the first time, and reads it.

    Args:
        name: `"digits"` (scikit-learn's, 8 × 8 grey), `"cifar10"` (32 × 32 RGB,
            downloaded the first time) or `"folder"` (of the user's own, RGB).
        size: Height and width the images are brought to, bilinearly. `None` for their
            own, and for 32 of a folder.
        data_dir: Directory of prepared data sets; `None` for TFDS's default.
        image_dir: The folder, with one folder of images a label; for `"folder"` only.
        on_bad_file: What is done with a file of the folder that is empty or damaged:
            `"skip"` names it in the log every time the folder is read and goes on,
            `"refuse"` raises a `ValueError`.
        console: A `rich.console.Console` that says what is read; `None` for silence.

    Returns:
        An `ImageData`.

    Raises:
        ValueError: `name` or `size` is none of the above, `image_dir` is missing or
            not called for, or the folder is not what `folder_config` and
            `LabelledImages` ask for.
        OSError: CIFAR-10 is not prepared and cannot be downloaded.
    """
    if name not in IMAGES:
        raise ValueError(f"name must be one of {', '.join(IMAGES)}; received {name!r}.")
    if size is not None and size < 1:
        raise ValueError(
            f"size must be at least 1 pixel; received size={size}. Leave it out for "
            "the images' own."
        )
    if (name == "folder") != bool(image_dir):
        raise ValueError(
            'image_dir must name a folder for "folder", and for nothing else; received '
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
            f"no data: {error}. Prepare it where there is a network, with `python -c "
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
    # A mirrored letter, or an arrow, is another: what these are nobody knows here.
    return _read(
        f"folder {config.name}", builder, size, "train", "validation", flips=False
    )


def _prepare(builder):
    # TFDS announces a "download", of unknown size, where there is none.
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
    """A split's images, brought to the size, and labels, in its own order."""
    examples = builder.as_dataset(split=split, as_supervised=True, shuffle_files=False)
    images, labels = zip(*tfds.as_numpy(examples.batch(CHUNK)))
    return resized(np.concatenate(images), size), np.concatenate(labels, dtype=np.int32)


def resized(images, size):
    """Brings images to size × size.

    Args:
        images: A `uint8` array of shape (n, height, width, channels).
        size: The new height and width; `None` to leave them.

    Returns:
        A `uint8` array, interpolated bilinearly, with antialiasing where it shrinks.
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

    Every image comes once before any comes again; each epoch has an order of its own.
    Order and augmentation are computed from the seed and the example's position in the
    run and not drawn from a generator, so no other random number, and no earlier
    reading, can change them.

    Images are standardized: less the mean of their channel over the train split,
    divided by its deviation. Augmentation comes before that. It pads an image with
    zeros by an eighth of its height and width on each side, cuts one of its own size
    out at random and, where `data.flips`, mirrors every other one, at random too.

    Args:
        data: An `ImageData`.
        batch_size: Images a batch.
        steps: Number of batches.
        seed: Integer that selects order and augmentation.
        first_step: Number of batches of this order to leave out at its beginning.
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
            "it out to begin at the beginning."
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
        # The images stay where they are: as a tensor they would lie on a GPU.
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
    """Makes the batches of a split: every image once, in its own order, as it is.

    Args:
        data: The `ImageData` whose train split standardizes them, as in
            `image_batches`.
        images_and_labels: `data.validation`, `data.test` or `data.train`.
        batch_size: Images a batch; the last one holds what is left.

    Returns:
        A `tf.data.Dataset` of pairs `(images, labels)`, `float32` and `int32`.

    Raises:
        ValueError: `batch_size` is not positive.
    """
    _check_batch_size(batch_size)
    with tf.device("CPU:0"):  # Not in a GPU's memory.
        examples = tf.data.Dataset.from_tensor_slices(images_and_labels)
    return _standardized_and_prefetched(examples.batch(batch_size), data)


def _check_batch_size(batch_size):
    if batch_size < 1:
        raise ValueError(f"batch_size must be at least 1; received {batch_size}.")


def _crop(data, seed):
    """An example's random crop: first row, first column, and whether it is mirrored."""
    rows, columns = _paddings(data.shape)
    choices = tf.constant([2 * rows + 1, 2 * columns + 1, 2 if data.flips else 1])
    chosen = tf.random.stateless_uniform((3,), seed) * tf.cast(choices, tf.float32)
    return tf.cast(chosen, tf.int32)


def _cropped(images, crops, shape):
    """Pads the images, then cuts each out of its own by its row of `crops`."""
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

    return prefetched(batches.map(standardized))
