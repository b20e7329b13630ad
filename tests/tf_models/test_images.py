"""From images to batches."""

import io

import keras
import numpy as np
import pytest
import tensorflow as tf
import tensorflow_datasets as tfds
from PIL import Image
from rich.console import Console

from tf_models.data.digits import Digits
from tf_models.data.images import (
    ImageData,
    evaluation_batches,
    image_batches,
    load_images,
    resized,
)


def numbered(count, *, side=8, flips=False):
    """Images that are told apart by their labels, which are their numbers."""
    images = np.random.default_rng(0).integers(1, 256, (count, side, side, 3), np.uint8)
    split = images, np.arange(count, dtype=np.int32)
    held_out = images[:5], np.arange(5, dtype=np.int32)
    return ImageData("folder", count, (side, side, 3), split, held_out, split, flips)


def batches(data, steps, *, batch_size=5, seed=3, **options):
    dataset = image_batches(data, batch_size, steps=steps, seed=seed, **options)
    return list(dataset.as_numpy_iterator())


def labels(some_batches):
    return [int(label) for _, labels in some_batches for label in labels]


def assert_same(some_batches, others):
    assert len(some_batches) == len(others)
    for (images, labels), (other_images, other_labels) in zip(some_batches, others):
        np.testing.assert_array_equal(images, other_images)
        np.testing.assert_array_equal(labels, other_labels)


def original(images, data):
    """Undoes the standardization."""
    mean, deviation = data.mean_and_deviation
    return np.rint(images * deviation + mean)


# Batches.


def test_a_batch_has_static_shapes_and_images_with_their_labels():
    data = numbered(23)
    dataset = image_batches(data, 5, steps=4, seed=3)
    images, labels = dataset.element_spec
    assert images.shape == (5, 8, 8, 3) and images.dtype == "float32"
    assert labels.shape == (5,) and labels.dtype == "int32"
    augmented = image_batches(data, 5, steps=4, seed=3, augment=True)
    assert augmented.element_spec[0].shape == (5, 8, 8, 3)
    for images, labels in dataset.as_numpy_iterator():
        np.testing.assert_array_equal(original(images, data), data.train[0][labels])


def test_the_train_split_is_standardized_channel_by_channel():
    data = numbered(20)
    images = np.concatenate([images for images, _ in batches(data, 4)])
    np.testing.assert_allclose(images.mean(axis=(0, 1, 2)), 0, atol=1e-5)
    np.testing.assert_allclose(images.std(axis=(0, 1, 2)), 1, atol=1e-5)


def test_mean_and_deviation_are_those_of_a_large_train_split():
    images = np.random.default_rng(1).integers(0, 256, (2345, 2, 3, 2), np.uint8)
    split = images, np.zeros(2345, np.int32)
    data = ImageData("folder", 2, (2, 3, 2), split, split, split, False)
    mean, deviation = data.mean_and_deviation
    np.testing.assert_allclose(mean, images.mean(axis=(0, 1, 2)), rtol=1e-6)
    np.testing.assert_allclose(deviation, images.std(axis=(0, 1, 2)), rtol=1e-6)


def test_a_constant_channel_becomes_zero():
    images = np.full((4, 8, 8, 1), 255, np.uint8), np.zeros(4, np.int32)
    data = ImageData("folder", 2, (8, 8, 1), images, images, images, False)
    np.testing.assert_array_equal(batches(data, 1, batch_size=4)[0][0], 0)


def test_every_epoch_has_each_image_once_in_a_new_order():
    found = labels(batches(numbered(20), 8))
    first, second = found[:20], found[20:]
    assert sorted(first) == sorted(second) == list(range(20))
    assert first != second
    assert first != list(range(20))


def test_a_batch_can_span_two_epochs():
    found = labels(batches(numbered(23), 10))
    assert len(found) == 50
    assert sorted(found[:23]) == sorted(found[23:46]) == list(range(23))


@pytest.mark.parametrize("augment", [False, True])
def test_repeated_reading_and_other_random_numbers_do_not_change_batches(augment):
    data = numbered(20, flips=True)
    dataset = image_batches(data, 5, steps=6, seed=3, augment=augment)
    once = list(dataset.as_numpy_iterator())
    keras.utils.set_random_seed(1)
    assert_same(list(dataset.as_numpy_iterator()), once)
    keras.utils.set_random_seed(2)
    assert_same(batches(data, 6, augment=augment), once)


@pytest.mark.parametrize("augment", [False, True])
def test_a_run_from_a_later_step_sees_the_batches_of_the_whole_run(augment):
    data = numbered(13, flips=True)
    whole = batches(data, 7, augment=augment)
    for first_step in (0, 1, 5, 7):
        rest = batches(data, 7 - first_step, augment=augment, first_step=first_step)
        assert_same(rest, whole[first_step:])


def test_an_example_does_not_depend_on_the_batch_size():
    data = numbered(13, flips=True)
    images = np.concatenate([i for i, _ in batches(data, 6, augment=True)])
    alone = batches(data, 30, batch_size=1, augment=True)
    np.testing.assert_array_equal(np.concatenate([i for i, _ in alone]), images)


def test_the_seed_selects_order_and_augmentation():
    data = numbered(20)
    assert labels(batches(data, 4, seed=4)) != labels(batches(data, 4, seed=3))
    one = numbered(1)
    first, second = (batches(one, 4, seed=seed, augment=True) for seed in (3, 4))
    assert not np.array_equal(first[0][0], second[0][0])


# Augmentation.


def crops(image, padding, *, flips):
    """All crops of an image that is padded with zeros, by shift and mirroring."""
    side = len(image)
    padded = np.pad(image, [(padding, padding), (padding, padding), (0, 0)])
    found = {}
    for down in range(2 * padding + 1):
        for right in range(2 * padding + 1):
            crop = padded[down : down + side, right : right + side]
            found[crop.tobytes()] = (down, right, False)
            if flips:
                found[crop[:, ::-1].tobytes()] = (down, right, True)
    return found


@pytest.mark.parametrize(
    ("side", "padding", "flips"), [(8, 1, True), (8, 1, False), (16, 2, False)]
)
def test_augmentation_gives_all_shifts_up_to_an_eighth_and_all_mirror_images(
    side, padding, flips
):
    data = numbered(1, side=side, flips=flips)
    possible = crops(data.train[0][0], padding, flips=flips)
    steps = 40 * len(possible)
    (images, _), *_ = batches(data, 1, batch_size=steps, augment=True)
    drawn = [
        possible[image.astype(np.uint8).tobytes()] for image in original(images, data)
    ]
    assert set(drawn) == set(possible.values())
    # All are equally likely: 40 each, with a standard deviation of about 6.
    assert all(abs(drawn.count(crop) - 40) < 30 for crop in possible.values())


def test_each_image_of_a_batch_has_its_own_crop():
    data = numbered(20, flips=True)
    kinds = []
    for images, numbers in batches(data, 4, augment=True):
        for image, number in zip(original(images, data).astype(np.uint8), numbers):
            kinds.append(crops(data.train[0][number], 1, flips=True)[image.tobytes()])
    assert len(set(kinds)) > 5


def test_augmentation_does_not_change_the_order_of_images():
    data = numbered(20)
    assert labels(batches(data, 8, augment=True)) == labels(batches(data, 8))


# Evaluation.


def test_evaluation_has_each_image_once_in_order():
    data = numbered(13)
    found = list(evaluation_batches(data, data.test, 5).as_numpy_iterator())
    assert [len(labels) for _, labels in found] == [5, 5, 3]
    assert labels(found) == list(range(13))
    images = np.concatenate([images for images, _ in found])
    np.testing.assert_array_equal(original(images, data), data.test[0])


def test_held_out_images_are_standardized_with_the_train_split():
    data = numbered(40)
    (images, _), *_ = evaluation_batches(data, data.validation, 5).as_numpy_iterator()
    mean, deviation = data.mean_and_deviation
    np.testing.assert_allclose(
        images, (data.validation[0] - mean) / deviation, rtol=1e-5, atol=1e-6
    )
    assert np.abs(images.mean(axis=(0, 1, 2))).max() > 1e-3


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"batch_size": 0}, "batch_size must be at least 1; received 0"),
        ({"first_step": -1}, "first_step must be 0 or more; .* first_step=-1"),
    ],
)
def test_an_argument_out_of_range_is_refused(arguments, message):
    with pytest.raises(ValueError, match=message):
        batches(numbered(5), 4, **arguments)


def test_an_evaluation_batch_size_of_0_is_refused():
    data = numbered(5)
    with pytest.raises(ValueError, match="batch_size must be at least 1; received 0"):
        evaluation_batches(data, data.test, 0)


# Data sets.


@pytest.fixture(scope="module")
def data_dir(tmp_path_factory):
    return tmp_path_factory.mktemp("tensorflow_datasets")


def test_load_images_returns_the_digits_of_the_builder(data_dir):
    data = load_images("digits", data_dir=data_dir)
    assert (data.name, data.classes, data.shape) == ("digits", 10, (8, 8, 1))
    assert not data.flips
    builder = Digits(data_dir=data_dir)
    for split in ("train", "validation", "test"):
        images, labels = getattr(data, split)
        assert images.dtype == np.uint8 and labels.dtype == np.int32
        expected = tfds.as_numpy(builder.as_dataset(split=split, batch_size=-1))
        np.testing.assert_array_equal(images, expected["image"])
        np.testing.assert_array_equal(labels, expected["label"])


def test_digits_are_resized_to_the_requested_size(data_dir):
    data = load_images("digits", size=32, data_dir=data_dir)
    assert data.shape == (32, 32, 1)
    assert data.train[0].shape == (1259, 32, 32, 1)
    assert data.train[0].dtype == np.uint8


def test_resizing_is_bilinear_with_antialiasing():
    step = np.array([[[[0], [200]], [[0], [200]]]], np.uint8)
    assert resized(step, 4)[0, 0, :, 0].tolist() == [0, 50, 150, 200]
    assert resized(step, 1)[0, 0, :, 0].tolist() == [100]
    assert resized(step, 2) is resized(step, None) is step


def test_the_console_shows_a_description_of_the_images(data_dir):
    console = Console(file=io.StringIO(), width=200)
    load_images("digits", data_dir=data_dir, console=console)
    said = console.file.getvalue()
    assert "digits, 8 × 8 × 1, 10 classes, 1,259 to train on, 269 to val" in said


def cifar_10(splits_read):
    """Mocks what TFDS reads, as it documents: a few images in each split."""

    def as_dataset(self, split, **kwargs):
        splits_read.append(str(split))
        images = np.full((3, 32, 32, 3), len(splits_read), np.uint8)
        return tf.data.Dataset.from_tensor_slices({"image": images, "label": [0, 1, 2]})

    return tfds.testing.mock_data(as_dataset_fn=as_dataset)


def test_cifar_10_holds_out_the_last_5_000_training_images(tmp_path):
    splits_read = []
    with cifar_10(splits_read):
        data = load_images("cifar10", data_dir=tmp_path)
    assert splits_read == ["train[:45000]", "train[45000:]", "test"]
    assert (data.classes, data.shape, data.flips) == (10, (32, 32, 3), True)
    assert [s[0].max() for s in (data.train, data.validation, data.test)] == [1, 2, 3]
    assert data.test[1].tolist() == [0, 1, 2]


@pytest.mark.parametrize(
    "failure", [ConnectionError, tfds.download.DownloadError, TimeoutError]
)
def test_cifar_10_without_a_network_is_an_error_with_the_remedy(
    tmp_path, monkeypatch, failure
):
    def no_network(self, *args, **kwargs):
        raise failure("no route to host")

    monkeypatch.setattr(tfds.download.DownloadManager, "download", no_network)
    monkeypatch.setattr(
        tfds.download.DownloadManager, "download_and_extract", no_network
    )
    with pytest.raises(
        OSError, match="no route to host.*Prepare it on a machine with.*digits"
    ):
        load_images("cifar10", data_dir=tmp_path)


def write_images(root):
    for label, level in (("bright", 250), ("dark", 5)):
        (root / label).mkdir(parents=True)
        for number in range(20):
            image = Image.new("RGB", (6, 5), (level, level, level))
            image.save(root / label / f"{number}.png")


def test_a_folder_is_read_with_its_labels(tmp_path):
    write_images(tmp_path / "images")
    data = load_images("folder", image_dir=tmp_path / "images", data_dir=tmp_path)
    assert (data.classes, data.shape, data.flips) == (2, (32, 32, 3), False)
    splits = data.train, data.validation, data.test
    assert sum(len(labels) for _, labels in splits) == 40
    for images, labels in splits:
        np.testing.assert_array_equal(images.max(axis=(1, 2, 3)) < 128, labels)


def test_every_reading_of_a_folder_logs_its_skipped_files(tmp_path, caplog):
    write_images(tmp_path / "images")
    (tmp_path / "images" / "dark" / "empty.png").write_bytes(b"")
    for _ in range(2):
        caplog.clear()
        with caplog.at_level("WARNING", logger="absl"):
            load_images(
                "folder", size=8, image_dir=tmp_path / "images", data_dir=tmp_path
            )
        assert "skipped 1 of its files: dark/empty.png: it is empty" in caplog.text
    with pytest.raises(ValueError, match="dark/empty.png.*it is empty"):
        load_images(
            "folder",
            image_dir=tmp_path / "images",
            data_dir=tmp_path,
            on_bad_file="refuse",
        )


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"name": "mnist"}, "one of digits, cifar10, folder; received 'mnist'"),
        ({"name": "digits", "size": 0}, "received size=0. Leave it out"),
        ({"name": "folder"}, "image_dir must be given .* received image_dir=None"),
        ({"name": "digits", "image_dir": "photos"}, "received image_dir='photos'"),
    ],
)
def test_an_invalid_argument_is_refused(arguments, message):
    with pytest.raises(ValueError, match=message):
        load_images(**arguments)
