"""The program that draws a folder of letters."""

import numpy as np
import pytest
from absl import app
from absl.testing import flagsaver
from PIL import Image

from tf_models.data import glyphs
from tf_models.data.images import load_images

EACH = 6  # Images of a letter.


def draw(folder):
    with flagsaver.as_parsed(image_dir=str(folder), each=str(EACH), seed="0"):
        glyphs.main(["glyphs"])


@pytest.fixture(scope="module", autouse=True)
def parsed_flags():
    glyphs.flags.FLAGS(["glyphs"])


@pytest.fixture(scope="module")
def folder(tmp_path_factory, parsed_flags):
    folder = tmp_path_factory.mktemp("letters") / "glyphs"
    draw(folder)
    return folder


def test_letters_that_look_alike_form_one_class():
    letters = glyphs.letters()
    # Capitals that have the shape of small letters, and letters of other alphabets.
    for alike in ("cCСс", "uU", "oOΟοОо", "AΑА", "BΒВ", "HΗН"):
        assert len(set(alike) & set(letters)) == 1, alike
    assert set("aAgGβЖЩΩ") <= set(letters)
    assert len(letters) > 100


def test_every_letter_has_different_images_of_the_same_size(folder):
    images = [np.asarray(Image.open(path)) for path in sorted(folder.rglob("*.png"))]
    assert len(images) == EACH * len(glyphs.letters())
    assert {image.shape for image in images} == {(glyphs.SIZE, glyphs.SIZE)}
    assert len({image.tobytes() for image in images}) == len(images)
    # No letter is cut off at the edge or drowned in noise.
    brightest = [np.sort(image, axis=None)[-10:].mean() for image in images]
    assert min(brightest) > 90


def test_the_image_studies_can_read_the_folder(folder, tmp_path):
    data = load_images("folder", image_dir=str(folder), data_dir=str(tmp_path))
    assert data.classes == len(glyphs.letters())
    assert all(len(set(labels)) > 10 for _, labels in (data.validation, data.test))


def test_the_same_seed_draws_the_same_images():
    one, other = (
        np.asarray(glyphs.drawn("g", glyphs.faces()[0], np.random.default_rng(seed)))
        for seed in (3, 3)
    )
    np.testing.assert_array_equal(one, other)


def test_an_existing_folder_is_refused_and_kept(folder):
    before = sorted(folder.rglob("*"))
    with pytest.raises(app.UsageError, match="does not exist"):
        draw(folder)
    assert sorted(folder.rglob("*")) == before
