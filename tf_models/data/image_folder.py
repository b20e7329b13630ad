"""A user's folder of images, as a TFDS data set.

The label of an image is the name of the folder it is in:

    photos/cat/anything.png
    photos/cat/2024/more.jpg
    photos/dog/anything.gif
"""

import dataclasses
import io

import numpy as np
import tensorflow_datasets as tfds
from PIL import Image, ImageOps

from tf_models.data.folder_files import (
    BadFileError,
    check_on_bad_file,
    content_digest,
    files_under,
    is_utf8,
    read_bytes,
    skip_or_refuse,
    split_by_path,
)

SUFFIXES = (".bmp", ".gif", ".jpeg", ".jpg", ".png")
DEFAULT_SIZE = 32
# Shares of the files; the rest, 80%, are the training split.
TEST_SHARE = 0.1
VALIDATION_SHARE = 0.1


@dataclasses.dataclass(kw_only=True)
class LabelledImagesConfig(tfds.core.BuilderConfig):
    """The configuration of `LabelledImages`, made by `folder_config`.

    Attributes:
        name: The name of the prepared directory, unique for the content.
        image_dir: The folder.
        labels: Names of the classes, in order.
        size: Height and width of the images of examples.
        on_bad_file: `"skip"` or `"refuse"`.
    """

    image_dir: str
    labels: tuple
    size: int
    on_bad_file: str


def folder_config(image_dir, *, size=DEFAULT_SIZE, on_bad_file="skip"):
    """Makes the configuration of a folder with its current content.

    Its name contains a digest of the paths and contents of all images. So a folder is
    prepared once and again after a change, and a copy of it is the same data set.

    Args:
        image_dir: A folder with one folder for each label.
        size: Height and width to which all images are resized.
        on_bad_file: How to treat files that are empty, damaged, unreadable, outside the
            labels' folders or have names that are not UTF-8, and folders that cannot be
            listed: `"skip"` leaves them out with a warning, `"refuse"` raises a
            `ValueError`.

    Returns:
        A `LabelledImagesConfig`.

    Raises:
        ValueError: `size` is not positive, `on_bad_file` is unknown, or `image_dir` is
            no folder or has images of fewer than two labels.
    """
    if size < 1:
        raise ValueError(f"size must be at least 1 pixel; received size={size}.")
    check_on_bad_file(on_bad_file)
    root = tfds.core.Path(image_dir).expanduser()
    if not root.is_dir():
        raise ValueError(
            "image_dir must be a folder with one folder of images per label; received "
            f"{str(image_dir)!r}, which is no folder. Check the path."
        )
    paths, unlisted = files_under(root, SUFFIXES)
    # TFDS accepts no other labels; their images count as bad files.
    labels = tuple(sorted(filter(is_utf8, {label_of(path) for path in paths} - {None})))
    if len(labels) < 2:
        raise ValueError(
            "image_dir must hold images of at least two labels, each in the folder of "
            f"its label (label/name.png); received {str(image_dir)!r} with "
            f"{len(paths)} images and the labels {', '.join(labels) or '(none)'}. "
            f"Images are files that end in {', '.join(SUFFIXES)}; "
            "links to folders are not followed."
            + "".join(f" In it, {path}: {bad}." for path, bad in unlisted.items())
        )
    digest = content_digest(
        root, [*paths, *sorted(unlisted)], settings=(size, on_bad_file)
    )
    return LabelledImagesConfig(
        name=f"{digest}-{size}-{on_bad_file}",
        description=f"Images of {len(labels)} labels, {size} × {size}.",
        image_dir=str(root),
        labels=labels,
        size=size,
        on_bad_file=on_bad_file,
    )


class LabelledImages(tfds.core.GeneratorBasedBuilder):
    """Images of a user's folder, labelled by the names of their folders.

    An example is `{"image": ..., "label": ..., "path": ...}`: a `uint8` RGB image of
    shape (size, size, 3), see `read_image`; its class; and its path relative to the
    folder, with forward slashes. Images are the files with the suffixes `.png`, `.jpg`,
    `.jpeg`, `.bmp` and `.gif`, at any depth. Hidden files, other files and links to
    folders are ignored.

    The tenth of the files with the lowest SHA-256 hashes of their paths is `test`, the
    next tenth `validation`, and the rest `train`. So the splits are the same on every
    machine, and adding or removing files does not move others.

    `info.metadata["skipped"]` is a dictionary from the paths of skipped files to their
    faults.

    Example:

    ```python
    builder = LabelledImages(config=folder_config("photos", size=64))
    builder.download_and_prepare()  # Copies local files; downloads nothing.
    train = builder.as_dataset(split="train", as_supervised=True)
    ```
    """

    VERSION = tfds.core.Version("1.0.0")
    RELEASE_NOTES = {"1.0.0": "First version."}

    def _info(self):
        config = self.builder_config
        if config is None:
            raise ValueError(
                "LabelledImages needs the folder to read; received no config. "
                'Write LabelledImages(config=folder_config("photos")).'
            )
        return self.dataset_info_from_configs(
            description="Images in a local folder, by label.",
            features=tfds.features.FeaturesDict(
                {
                    "image": tfds.features.Image(shape=(config.size, config.size, 3)),
                    "label": tfds.features.ClassLabel(names=config.labels),
                    "path": tfds.features.Text(),
                }
            ),
            supervised_keys=("image", "label"),
            metadata=tfds.core.MetadataDict(skipped={}),
        )

    def _split_generators(self, dl_manager):
        del dl_manager  # The images are already on this machine.
        paths, unlisted = files_under(self._root, SUFFIXES)
        for path, error in unlisted.items():
            self._bad_file(path, error)
        splits = {"train": [], "validation": [], "test": []}
        for path in paths:
            splits[split_of(path)].append(path)
        return {
            split: self._generate_examples(split, paths)
            for split, paths in splits.items()
        }

    def _generate_examples(self, split, paths):
        seen = set()
        for path in paths:
            image = self._read(path)
            if image is not None:
                seen.add(label_of(path))
                yield path, {"image": image, "label": label_of(path), "path": path}
        needed = self.builder_config.labels if split == "train" else ()
        missing = [label for label in needed if label not in seen]
        if missing or not seen:
            raise ValueError(
                "Every split needs an image, and the train split one of every label; "
                f"received {self.builder_config.image_dir!r}, where the {split} split "
                f"has none{' of ' + ', '.join(missing) if missing else ''}. Add images "
                "(some ten of each label are enough), or repair those named as skipped."
            )

    def _read(self, path):
        """The image, or None with a warning if it is skipped."""
        try:
            if not is_utf8(path):
                raise BadFileError("its name is not UTF-8")
            if label_of(path) is None:
                raise BadFileError("it is in no label's folder")
            return read_image(self._root / path, self.builder_config.size)
        except BadFileError as error:
            self._bad_file(path, error)
            return None

    @property
    def _root(self):
        return tfds.core.Path(self.builder_config.image_dir)

    def _bad_file(self, path, error):
        skip_or_refuse(
            self.info.metadata["skipped"],
            self._root,
            path,
            error,
            on_bad_file=self.builder_config.on_bad_file,
        )


def label_of(path):
    """The label of an image, from its relative path; None outside all folders."""
    label, slash, _ = path.partition("/")
    return label if slash else None


def split_of(path):
    """Assigns a file to a split by its relative path: `split_by_path`, 80/10/10."""
    return split_by_path(path, test=TEST_SHARE, validation=VALIDATION_SHARE)


def read_image(file, size):
    """Reads an image file as RGB of size × size.

    The image is rotated as its EXIF data say. Transparent pixels become white, and an
    animation gives its first frame. The longer side is center-cropped to the length of
    the shorter one, and the rest is resized, bilinearly and with antialiasing.

    Args:
        file: A path, as `tfds.core.Path` makes it.
        size: Height and width of the result.

    Returns:
        A `uint8` array of shape (size, size, 3).

    Raises:
        BadFileError: the file is empty, damaged or cannot be read.
    """
    try:
        content = read_bytes(file)
    except OSError as error:
        raise BadFileError(f"it cannot be read ({error})") from error
    if not content:
        raise BadFileError("it is empty")
    try:
        image = ImageOps.exif_transpose(Image.open(io.BytesIO(content)))
        image = ImageOps.fit(_rgb(image), (size, size), Image.Resampling.BILINEAR)
    # For damaged content Pillow raises OSError, SyntaxError, struct.error,
    # DecompressionBombError and others.
    except Exception as error:
        raise BadFileError(f"it is damaged or no image ({error})") from error
    return np.asarray(image)


def _rgb(image):
    if image.mode.startswith("I"):
        # Pillow would clip 16-bit pixels to 8 bits instead of scaling them.
        image = Image.fromarray((np.asarray(image) / 257).astype(np.uint8))
    if image.has_transparency_data:
        image = image.convert("RGBA")
        white = Image.new("RGBA", image.size, "white")
        image = Image.alpha_composite(white, image)
    return image.convert("RGB")
