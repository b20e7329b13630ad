"""The TFDS builder of a folder of images."""

import hashlib
import os
import pathlib
import re
import shutil
import tempfile

import numpy as np
import pytest
import tensorflow_datasets as tfds
from PIL import Image

from tf_models.data.folder_files import BadFileError, files_under
from tf_models.data.image_folder import (
    SUFFIXES,
    LabelledImages,
    folder_config,
    read_image,
    split_of,
)

LABELS = {"green": (0, 255, 0), "red": (255, 0, 0)}
ENDINGS = (".png", ".jpg", ".jpeg", ".bmp", ".gif", ".PNG")
IMAGES_A_LABEL = 24


def write_images(root, *, size=(6, 4)):
    """Writes images of one color per label, in all formats."""
    for label, color in LABELS.items():
        for number in range(IMAGES_A_LABEL):
            suffix = ENDINGS[number % len(ENDINGS)]
            folder = root / label / ("more" if number % 2 else "")
            folder.mkdir(parents=True, exist_ok=True)
            Image.new("RGB", size, color).save(folder / f"{number}{suffix}")
    # Neither is an image: the one is hidden, the other something else.
    (root / "green" / ".hidden.png").write_bytes(b"")
    (root / "green" / "notes.txt").write_text("not an image")


def image_paths(root):
    paths, unlisted = files_under(tfds.core.Path(root), SUFFIXES)
    assert not unlisted
    return paths


def split_sizes(root):
    splits = [split_of(path) for path in image_paths(root)]
    return {split: splits.count(split) for split in ("train", "validation", "test")}


def build(root, data_dir, **options):
    builder = LabelledImages(
        data_dir=data_dir, config=folder_config(root, size=4, **options)
    )
    builder.download_and_prepare()
    return builder


def examples(builder):
    return {
        example["path"].decode(): (split, example["image"], int(example["label"]))
        for split in ("train", "validation", "test")
        for example in tfds.as_numpy(builder.as_dataset(split=split))
    }


@pytest.fixture
def folder(tmp_path):
    write_images(tmp_path / "images")
    return tmp_path / "images"


class LabelledImagesTest(tfds.testing.DatasetBuilderTestCase):
    """The checks TFDS documents for every builder."""

    DATASET_CLASS = LabelledImages

    @classmethod
    def setUpClass(cls):
        super().setUpClass()
        directory = tempfile.TemporaryDirectory()
        cls.addClassCleanup(directory.cleanup)
        root = pathlib.Path(directory.name)
        write_images(root)
        # TFDS takes equal images in two splits for one example in both.
        rng = np.random.default_rng(0)
        for path in image_paths(root):
            noise = rng.integers(0, 256, (4, 4, 3), np.uint8)
            Image.fromarray(noise).save(root / path)
        cls.EXAMPLE_DIR = root
        cls.SPLITS = split_sizes(root)
        cls.BUILDER_CONFIG_NAMES_TO_TEST = [folder_config(root, size=4)]

    def _make_builder(self, config=None):
        return super()._make_builder(config or self.BUILDER_CONFIG_NAMES_TO_TEST[0])


def test_an_example_is_an_image_with_the_label_of_its_folder(folder, tmp_path):
    builder = build(folder, tmp_path / "data")
    found = examples(builder)
    assert len(found) == 2 * IMAGES_A_LABEL
    names = builder.info.features["label"].names
    assert names == sorted(LABELS)
    for path, (split, image, label) in found.items():
        assert path.split("/")[0] == names[label]
        assert split == split_of(path)
        # JPEG keeps colours only nearly.
        expected = np.full((4, 4, 3), LABELS[names[label]])
        np.testing.assert_allclose(image, expected, atol=3)


def test_the_path_of_a_file_determines_its_split():
    assert split_of("green/0.png") == "train"
    paths = [f"label/image_{number}.png" for number in range(10_000)]
    shares = [split_of(path) for path in paths]
    for split, share in (("train", 0.8), ("validation", 0.1), ("test", 0.1)):
        assert shares.count(split) / 10_000 == pytest.approx(share, abs=0.01)
    # As they were when results were first published with them.
    digest = hashlib.sha256(" ".join(shares).encode()).hexdigest()
    assert digest.startswith("d92ea57afe5065f6")


def damage(folder):
    """Adds a file of each kind that cannot be used; returns what is said of each."""
    whole = (folder / "red" / "0.png").read_bytes()
    photo = Image.effect_noise((64, 64), 80)
    photo.save(folder / "red" / "cut.jpg")
    jpeg = (folder / "red" / "cut.jpg").read_bytes()
    (folder / "red" / "cut.jpg").write_bytes(jpeg[: len(jpeg) // 2])
    (folder / "red" / "cut.png").write_bytes(whole[:-30])
    (folder / "red" / "empty.png").write_bytes(b"")
    (folder / "red" / "text.gif").write_text("not an image")
    (folder / "red" / "gone.bmp").symlink_to(folder / "nowhere.bmp")
    os.mkfifo(folder / "red" / "pipe.png")
    (folder / "unlabelled.png").write_bytes(whole)
    return {
        "red/cut.jpg": "damaged",
        "red/cut.png": "damaged",
        "red/empty.png": "empty",
        "red/text.gif": "damaged or no image",
        "red/gone.bmp": "cannot be read",
        "red/pipe.png": "no regular file",
        "unlabelled.png": "in no label's folder",
    }


def test_unusable_files_are_skipped_logged_and_recorded(folder, tmp_path, caplog):
    good = examples(build(folder, tmp_path / "data")).keys()
    bad = damage(folder)
    with caplog.at_level("WARNING", logger="absl"):
        builder = build(folder, tmp_path / "data")
    assert examples(builder).keys() == good
    messages = [record.getMessage() for record in caplog.records]
    for path, problem in bad.items():
        assert any(
            path in message and problem in message and message.startswith("Skipped")
            for message in messages
        )
    again = LabelledImages(
        data_dir=tmp_path / "data", config=folder_config(folder, size=4)
    )
    assert again.info.metadata["skipped"].keys() == bad.keys()


@pytest.mark.parametrize(
    ("name", "problem"), [("empty.png", "it is empty"), ("text.gif", "it is damaged")]
)
def test_refuse_raises_an_error_with_file_fault_and_remedy(
    folder, tmp_path, name, problem
):
    file = folder / "red" / name
    file.write_text("" if name == "empty.png" else "not an image")
    with pytest.raises(ValueError, match=f"red/{name}.*{problem}.*Repair or remove"):
        build(folder, tmp_path / "data", on_bad_file="refuse")
    file.unlink()
    assert examples(build(folder, tmp_path / "data", on_bad_file="refuse"))


@pytest.mark.parametrize("target", [".", "red", "green/more"])
def test_links_to_folders_do_not_duplicate_images(folder, tmp_path, target):
    before = folder_config(folder)
    (folder / "green" / "link").symlink_to(folder / target, target_is_directory=True)
    (folder / "another label").symlink_to(folder / "red", target_is_directory=True)
    assert folder_config(folder) == before
    assert len(examples(build(folder, tmp_path / "data"))) == 2 * IMAGES_A_LABEL


def test_the_error_for_labels_that_are_links_says_that_links_are_not_followed(
    folder, tmp_path
):
    (tmp_path / "links").mkdir()
    for label in LABELS:
        (tmp_path / "links" / label).symlink_to(folder / label)
    with pytest.raises(ValueError, match="links to folders are not followed"):
        folder_config(tmp_path / "links")


@pytest.fixture
def unlistable(monkeypatch):
    """Has the listing of folders of a name fail."""
    listed = os.listdir

    def make_unlistable(name):
        def listdir(path):
            if os.path.basename(path) == name:
                raise PermissionError(13, "Permission denied", str(path))
            return listed(path)

        monkeypatch.setattr(os, "listdir", listdir)

    return make_unlistable


@pytest.mark.parametrize("on_bad_file", ["skip", "refuse"])
def test_an_unlistable_subfolder_is_skipped_or_refused(
    folder, tmp_path, caplog, unlistable, on_bad_file
):
    (folder / "red" / "closed").mkdir()
    Image.new("RGB", (4, 4)).save(folder / "red" / "closed" / "0.png")
    unlistable("closed")
    fault = r"red/closed: it cannot be read \(.*Permission denied"
    if on_bad_file == "refuse":
        with pytest.raises(BadFileError, match=fault):
            build(folder, tmp_path / "data", on_bad_file=on_bad_file)
        return
    with caplog.at_level("WARNING", logger="absl"):
        builder = build(folder, tmp_path / "data", on_bad_file=on_bad_file)
    assert len(examples(builder)) == 2 * IMAGES_A_LABEL
    assert re.search(f"Skipped {fault}", caplog.text)
    assert builder.info.metadata["skipped"].keys() == {"red/closed"}


def test_an_unlistable_subfolder_changes_the_name(folder, unlistable):
    (folder / "red" / "closed").mkdir()
    name = folder_config(folder).name
    unlistable("closed")
    assert folder_config(folder).name != name


def test_the_error_for_missing_labels_names_unlistable_folders(folder, unlistable):
    unlistable("red")
    with pytest.raises(ValueError, match="labels green.*In it, red: it cannot be read"):
        folder_config(folder)


@pytest.mark.parametrize("on_bad_file", ["skip", "refuse"])
def test_a_name_that_is_not_utf_8_is_skipped_or_refused(
    folder, tmp_path, caplog, on_bad_file
):
    odd = os.fsdecode(b"caf\xe9")
    try:
        (folder / odd).mkdir()
    except OSError:
        pytest.skip("This file system has no such names.")
    shutil.copy(folder / "red" / "0.png", folder / odd / "0.png")
    shutil.copy(folder / "red" / "0.png", folder / "red" / f"{odd}.png")
    if on_bad_file == "refuse":
        with pytest.raises(BadFileError, match=r"caf\\udce9.*name is not UTF-8"):
            build(folder, tmp_path / "data", on_bad_file=on_bad_file)
        return
    with caplog.at_level("WARNING", logger="absl"):
        builder = build(folder, tmp_path / "data", on_bad_file=on_bad_file)
    assert len(examples(builder)) == 2 * IMAGES_A_LABEL
    assert builder.info.features["label"].names == sorted(LABELS)
    skipped = {r"caf\udce9/0.png", r"red/caf\udce9.png"}
    assert builder.info.metadata["skipped"].keys() == skipped
    assert all(f"Skipped {path}: its name is not" in caplog.text for path in skipped)


def test_a_copied_folder_has_the_same_name(folder, tmp_path):
    shutil.copytree(folder, tmp_path / "copy", copy_function=shutil.copyfile)
    assert folder_config(tmp_path / "copy").name == folder_config(folder).name


def test_the_name_changes_exactly_when_the_images_change(folder):
    def name():
        return folder_config(folder).name

    first = name()
    assert name() == first
    (folder / "green" / "notes.txt").write_text("no image, no change")
    assert name() == first
    Image.new("RGB", (3, 3)).save(folder / "green" / "new.png")
    added = name()
    assert added != first
    file = folder / "green" / "new.png"
    os.utime(file, (1, 1))
    assert name() == added
    content = file.read_bytes()
    file.write_bytes(content[:-1] + b"?")
    os.utime(file, (1, 1))
    edited = name()  # Neither size nor time says so.
    assert edited not in (added, first)
    file.unlink()
    assert name() == first
    assert folder_config(folder, size=8).name != first
    assert folder_config(folder, on_bad_file="refuse").name != first


def test_the_longer_side_is_cropped_without_stretching(tmp_path):
    pixels = np.zeros((20, 60, 3), np.uint8)
    pixels[:, 20:40] = 200  # The middle third, which is what is kept.
    Image.fromarray(pixels).save(tmp_path / "wide.png")
    Image.fromarray(pixels.swapaxes(0, 1)).save(tmp_path / "tall.png")
    for name in ("wide.png", "tall.png"):
        image = read_image(tfds.core.Path(tmp_path / name), 10)
        # Smoothing reaches across the edges of what is kept.
        np.testing.assert_array_equal(image[1:-1, 1:-1], np.full((8, 8, 3), 200))
        assert image.min() > 150


@pytest.mark.parametrize(
    ("mode", "pixel", "suffix", "rgb"),
    [
        ("L", 100, ".bmp", (100, 100, 100)),
        ("1", 1, ".png", (255, 255, 255)),
        ("I;16", 100 * 257, ".png", (100, 100, 100)),
        ("RGBA", (10, 20, 30, 255), ".png", (10, 20, 30)),
        ("RGBA", (10, 20, 30, 0), ".png", (255, 255, 255)),
        ("LA", (40, 255), ".png", (40, 40, 40)),
        ("P", 0, ".gif", (0, 0, 0)),
        ("CMYK", (0, 0, 0, 0), ".jpg", (255, 255, 255)),
    ],
)
def test_every_pixel_format_becomes_rgb(tmp_path, mode, pixel, suffix, rgb):
    file = tfds.core.Path(tmp_path / f"image{suffix}")
    Image.new(mode, (4, 4), pixel).save(os.fspath(file))
    image = read_image(file, 4)
    assert image.dtype == np.uint8
    np.testing.assert_array_equal(image, np.broadcast_to(rgb, (4, 4, 3)))


def test_a_photo_is_rotated_by_its_exif_orientation(tmp_path):
    pixels = np.zeros((8, 8), np.uint8)
    pixels[:4] = 255
    exif = Image.Exif()
    exif[0x0112] = 3  # Orientation: upside down.
    Image.fromarray(pixels).save(tmp_path / "photo.png", exif=exif)
    image = read_image(tfds.core.Path(tmp_path / "photo.png"), 8)
    np.testing.assert_array_equal(image[..., 0], pixels[::-1])


def test_a_file_that_is_no_image_is_a_bad_file(tmp_path):
    (tmp_path / "text.png").write_text("not an image")
    with pytest.raises(BadFileError, match="damaged or no image"):
        read_image(tfds.core.Path(tmp_path / "text.png"), 4)


@pytest.mark.parametrize(
    ("files", "message"),
    [
        ([], r"at least two labels.*0 images and the labels \(none\)"),
        (["cat/a.png", "cat/b.png"], "2 images and the labels cat"),
        (["a.png", "cat/b.png"], "2 images and the labels cat"),
        (["cat/a.tiff", "dog/b.tiff"], r"0 images.*end in \.bmp"),
    ],
)
def test_a_folder_with_fewer_than_two_labels_is_refused(tmp_path, files, message):
    for path in files:
        (tmp_path / path).parent.mkdir(exist_ok=True)
        Image.new("RGB", (4, 4)).save(tmp_path / path)
    with pytest.raises(ValueError, match=message):
        folder_config(tmp_path)


def test_too_few_images_for_three_splits_are_refused_with_the_remedy(tmp_path):
    for label in LABELS:
        (tmp_path / "images" / label).mkdir(parents=True)
        Image.new("RGB", (4, 4)).save(tmp_path / "images" / label / "0.png")
    with pytest.raises(ValueError, match="Every split needs an image.*Add images"):
        build(tmp_path / "images", tmp_path / "data")


def test_a_label_without_usable_images_is_refused_by_name(folder, tmp_path):
    (folder / "blue").mkdir()
    for number in range(IMAGES_A_LABEL):
        (folder / "blue" / f"{number}.png").write_bytes(b"")
    with pytest.raises(ValueError, match="the train split has none of blue"):
        build(folder, tmp_path / "data")


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"size": 0}, "size must be at least 1 pixel; received size=0"),
        ({"on_bad_file": "stop"}, "one of skip, refuse; received on_bad_file='stop'"),
    ],
)
def test_an_unknown_option_is_refused(folder, options, message):
    with pytest.raises(ValueError, match=message):
        folder_config(folder, **options)


def test_a_missing_folder_is_refused(tmp_path):
    with pytest.raises(ValueError, match="nowhere.*is no folder. Check the path"):
        folder_config(tmp_path / "nowhere")


def test_a_builder_without_a_config_is_refused_with_the_remedy(tmp_path):
    with pytest.raises(ValueError, match=r"Write LabelledImages\(config="):
        LabelledImages(data_dir=tmp_path)
