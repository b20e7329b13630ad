"""The TFDS builder of scikit-learn's digits."""

import numpy as np
import pytest
import tensorflow_datasets as tfds
from sklearn.datasets import load_digits

from tf_models.data.digits import Digits, scaled_images, split_members

SIZES = {"train": 1259, "validation": 269, "test": 269}


class DigitsTest(tfds.testing.DatasetBuilderTestCase):
    """The checks TFDS documents for every builder."""

    DATASET_CLASS = Digits
    SPLITS = SIZES
    # It reads an installed package, and this directory only has to exist.
    EXAMPLE_DIR = tfds.core.Path(__file__).parent


@pytest.fixture(scope="module")
def splits(tmp_path_factory):
    builder = Digits(data_dir=tmp_path_factory.mktemp("digits"))
    builder.download_and_prepare()
    return {
        split: tfds.as_numpy(
            builder.as_dataset(split=split, as_supervised=True, batch_size=-1)
        )
        for split in SIZES
    }


def test_the_splits_contain_all_original_images_with_their_digits(splits):
    original = load_digits()
    images, labels = map(np.concatenate, zip(*splits.values()))
    ink = np.rint(images[..., 0] * (16 / 255))
    found = sorted(zip(ink.reshape(-1, 64).tolist(), labels.tolist()))
    assert found == sorted(zip(original.data.tolist(), original.target.tolist()))


def test_every_digit_is_split_in_the_same_proportions(splits):
    for split, share in (("train", 0.7), ("validation", 0.15), ("test", 0.15)):
        counts = np.bincount(splits[split][1], minlength=10)
        totals = np.bincount(load_digits().target)
        np.testing.assert_allclose(counts / totals, share, atol=0.006)


def test_the_splits_are_fixed_and_disjoint():
    labels = load_digits().target
    members = split_members(labels)
    assert sorted(sum(members.values(), [])) == list(range(1797))
    # Worked out once: a change of the splits would make all results incomparable.
    assert members["test"][:5] == [9, 39, 46, 49, 50]
    assert members["validation"][:5] == [8, 11, 17, 29, 41]


def test_full_ink_is_white_and_no_ink_is_black():
    assert scaled_images(np.array([0.0, 8.0, 16.0])).tolist() == [0, 128, 255]
