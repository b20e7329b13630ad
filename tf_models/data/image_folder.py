"""A folder of the user's own images, as a TFDS data set.

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
# Of all hashes of a path; the rest, 80%, is the training split's.
TEST_SHARE = 0.1
VALIDATION_SHARE = 0.1


@dataclasses.dataclass(kw_only=True)
class LabelledImagesConfig(tfds.core.BuilderConfig):
    """Which folder a `LabelledImages` reads, and how. `folder_config` makes it.

    Attributes:
        name: Also the data set's directory name, so one name must mean one content.
        image_dir: The folder.
        labels: Names of the classes, in order.
        size: Height and width of an example's image.
        on_bad_file: `"skip"` or `"refuse"`.
    """

    image_dir: str
    labels: tuple
    size: int
    on_bad_file: str


def folder_config(image_dir, *, size=DEFAULT_SIZE, on_bad_file="skip"):
    """Makes the config of a folder as it is now.

    Its name holds a digest of all images' paths and contents, so that a folder is
    prepared once, and anew when it has changed, and a copy of it is the same data set.

    Args:
        image_dir: A folder with one folder a label.
        size: Height and width that all images are brought to.
        on_bad_file: What is done with a file that is empty, damaged, unreadable, in
            no label's folder or of a name that is not UTF-8, and with a folder that
            cannot be listed: `"skip"` leaves it out and names it in a warning,
            `"refuse"` raises a `ValueError` that names it.

    Returns:
        A `LabelledImagesConfig`.

    Raises:
        ValueError: `size` is not positive, `on_bad_file` is neither of the two, or
            `image_dir` is no folder or has images of fewer than two labels.
    """
    if size < 1:
        raise ValueError(f"size must be at least 1 pixel; received size={size}.")
    check_on_bad_file(on_bad_file)
    root = tfds.core.Path(image_dir).expanduser()
    if not root.is_dir():
        raise ValueError(
            "image_dir must be a folder with one folder of images a label; received "
            f"{str(image_dir)!r}, which is no folder. Check the path."
        )
    paths, unlisted = files_under(root, SUFFIXES)
    # TFDS can hold no other; the images in them are dealt with as bad files.
    labels = tuple(sorted(filter(is_utf8, {label_of(path) for path in paths} - {None})))
    if len(labels) < 2:
        raise ValueError(
            "image_dir must hold images of at least two labels, each in the folder of "
            f"its label (label/name.png); received {str(image_dir)!r} with "
            f"{len(paths)} images and the labels {', '.join(labels) or '(none)'}. "
            f"Images are files that end in {', '.join(SUFFIXES)}; "
            "folders that are links are not read."
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
    """Images from a folder of the user's, labelled by the folders they are in.

    An example is `{"image": ..., "label": ..., "path": ...}`: a `uint8` RGB image of
    shape (size, size, 3), see `read_image`; its class; and its path relative to the
    folder, with forward slashes. Images are the files named `.png`, `.jpg`, `.jpeg`,
    `.bmp` and `.gif`, at any depth; hidden files, all other files and folders that are
    links are left alone.

    A file is in `test` if the SHA-256 hash of its path falls in the lowest tenth, in
    `validation` if in the next, else in `train`: the split is the same on every
    machine, and a file that comes or goes moves no other.

    What was skipped stays on record: `info.metadata["skipped"]` is a dictionary of the
    paths and of what is wrong with each.

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
                "LabelledImages must be told which folder to read; received no config. "
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
        """The image; None, on record and with a warning, where it is skipped."""
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
    """The label of an image, from its relative path; None if it is in no folder."""
    label, slash, _ = path.partition("/")
    return label if slash else None


def split_of(path):
    """Names the split a file is in: `split_by_path` of its relative path, 80/10/10."""
    return split_by_path(path, test=TEST_SHARE, validation=VALIDATION_SHARE)


def read_image(file, size):
    """Reads an image file and brings it to RGB and to size × size.

    It is turned the way its EXIF data says. What is transparent becomes white. Of an
    animation it is the first frame. The longer side is cut to the length of the
    shorter one, the same at both ends, and what is left is resized, bilinearly and with
    antialiasing: nothing is stretched.

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
    # What Pillow raises for damaged content is of many types, by format and place:
    # OSError, SyntaxError, struct.error, DecompressionBombError, …
    except Exception as error:
        raise BadFileError(f"it is damaged or no image ({error})") from error
    return np.asarray(image)


def _rgb(image):
    if image.mode.startswith("I"):
        # Pillow would clip the 16 bits of a grey pixel to 8, not scale them.
        image = Image.fromarray((np.asarray(image) / 257).astype(np.uint8))
    if image.has_transparency_data:
        image = image.convert("RGBA")
        white = Image.new("RGBA", image.size, "white")
        image = Image.alpha_composite(white, image)
    return image.convert("RGB")
