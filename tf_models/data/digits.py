"""scikit-learn's handwritten digits, as a TFDS data set.

1797 small images from an installed package, for image classification without a
network.
"""

import hashlib

import numpy as np
import tensorflow_datasets as tfds
from sklearn.datasets import load_digits

HELD_OUT_SHARE = 0.15  # Of the images of each digit, for validation and for test.
BRIGHTEST = 16  # The largest pixel value of scikit-learn.


class Digits(tfds.core.GeneratorBasedBuilder):
    """1797 handwritten digits of 8 × 8 grey pixels.

    An example is `{"image": ..., "label": ...}`: a `uint8` image of shape (8, 8, 1),
    scaled from the original's 0 to 16 to 0 to 255, white ink on black, and the digit.

    The splits are fixed: of each digit's images, in the order of the SHA-256 hash of
    their index, the first 15% are `test`, the next 15% `validation` and the rest
    `train`. A person's handwriting can be in all three.

    Example:

    ```python
    builder = Digits()
    builder.download_and_prepare()  # Copies local data; downloads nothing.
    train = builder.as_dataset(split="train", as_supervised=True)
    ```
    """

    VERSION = tfds.core.Version("1.0.0")
    RELEASE_NOTES = {"1.0.0": "First version."}

    def _info(self):
        return self.dataset_info_from_configs(
            description="Handwritten digits of 8 × 8 pixels, from scikit-learn.",
            features=tfds.features.FeaturesDict(
                {
                    "image": tfds.features.Image(shape=(8, 8, 1)),
                    "label": tfds.features.ClassLabel(num_classes=10),
                }
            ),
            supervised_keys=("image", "label"),
            homepage="https://scikit-learn.org/stable/datasets/toy_dataset.html",
            citation=(
                "E. Alpaydin, C. Kaynak (1998). Optical Recognition of Handwritten "
                "Digits. UCI Machine Learning Repository. doi:10.24432/C50P49"
            ),
        )

    def _split_generators(self, dl_manager):
        del dl_manager  # The images are already on this machine.
        ink, labels = load_digits(return_X_y=True)
        images = scaled_images(ink.reshape(-1, 8, 8, 1))
        return {
            split: self._generate_examples(images, labels, members)
            for split, members in split_members(labels).items()
        }

    def _generate_examples(self, images, labels, members):
        for index in members:
            yield index, {"image": images[index], "label": int(labels[index])}


def scaled_images(ink):
    """Turns ink of 0 to 16 into pixels of 0 to 255, rounded, as `uint8`."""
    return np.rint(ink * (255 / BRIGHTEST)).astype(np.uint8)


def split_members(labels):
    """Divides the examples into splits, with the same shares of each digit.

    Args:
        labels: Integer array of shape (examples,).

    Returns:
        A dictionary of `"train"`, `"validation"` and `"test"`: disjoint ascending
        lists of indices that cover all examples.
    """
    members = {"train": [], "validation": [], "test": []}
    for label in np.unique(labels):
        of_label = sorted(np.flatnonzero(labels == label).tolist(), key=_index_hash)
        held_out = round(HELD_OUT_SHARE * len(of_label))
        members["test"] += of_label[:held_out]
        members["validation"] += of_label[held_out : 2 * held_out]
        members["train"] += of_label[2 * held_out :]
    return {split: sorted(indices) for split, indices in members.items()}


def _index_hash(index):
    return hashlib.sha256(str(index).encode()).digest()
