"""Images of letters, drawn where a machine has none."""

import numpy as np
import pytest
from absl import app
from absl.testing import flagsaver
from PIL import Image

from tf_models.data import glyphs
from tf_models.data.images import load_images


def draw(folder, each=10):
    with flagsaver.as_parsed(image_dir=str(folder), each=str(each), seed="0"):
        glyphs.main(["glyphs"])


@pytest.fixture(scope="module", autouse=True)
def parsed_flags():
    glyphs.flags.FLAGS(["glyphs"])


@pytest.fixture(scope="module")
def folder(tmp_path_factory, parsed_flags):
    folder = tmp_path_factory.mktemp("letters") / "glyphs"
    draw(folder)
    return folder


def test_letters_that_look_alike_are_one_class():
    letters = glyphs.letters()
    # Latin ones come first: capitals of the same shape, and what is written the same.
    for alike in ("cCСс", "uU", "oOΟοОо", "AΑА", "BΒВ", "HΗН"):
        assert len(set(alike) & set(letters)) == 1, alike
    assert set("aAgGβЖЩΩ") <= set(letters)
    assert len(letters) > 100


def test_every_letter_is_in_many_faces_and_no_two_images_are_equal(folder):
    images = [np.asarray(Image.open(path)) for path in sorted(folder.rglob("*.png"))]
    assert len(images) == 10 * len(glyphs.letters())
    assert {image.shape for image in images} == {(glyphs.SIZE, glyphs.SIZE)}
    assert len({image.tobytes() for image in images}) == len(images)
    # None is lost at the edge, and none drowns in the noise.
    brightest = [np.sort(image, axis=None)[-10:].mean() for image in images]
    assert min(brightest) > 90


def test_the_studies_read_them_and_they_are_the_same_again(folder, tmp_path):
    data = load_images("folder", image_dir=str(folder), data_dir=str(tmp_path / "a"))
    assert data.classes == len(glyphs.letters())
    assert all(len(set(labels)) > 10 for _, labels in (data.validation, data.test))
    draw(tmp_path / "again")
    again = load_images(
        "folder", image_dir=str(tmp_path / "again"), data_dir=str(tmp_path / "b")
    )
    assert again.name == data.name  # with the digest of every image


def test_a_folder_that_is_there_is_left_as_it_is(folder):
    before = sorted(folder.rglob("*"))
    with pytest.raises(app.UsageError, match="not there yet"):
        draw(folder)
    assert sorted(folder.rglob("*")) == before
