"""Draws letters in many typefaces, as a folder of images to classify.

An offline machine has few images, but it has the typefaces of matplotlib. This program
draws the letters of the Latin, Greek and Cyrillic alphabets, except for those that look
like another one, in sixteen typefaces, rotated, sheared, scaled, shifted, blurred and
noisy: 104 classes, many of them similar.

    pip install '.[tensorflow,studies]'
    python -m tf_models.data.glyphs --image_dir=glyphs
    python -m tf_models.compare --preset=images --images=folder --image_dir=glyphs \
        --steps=600

The same seed and release of matplotlib give the same images.
"""

import pathlib
import string
import sys
import tempfile

import matplotlib
import numpy as np
from absl import app, flags
from fontTools.ttLib import TTFont
from PIL import Image, ImageDraw, ImageFilter, ImageFont
from rich.progress import track

IMAGE_DIR = flags.DEFINE_string(
    "image_dir", "glyphs", "The new folder, which must not exist yet."
)
EACH = flags.DEFINE_integer("each", 100, "Images per letter.", lower_bound=1)
SEED = flags.DEFINE_integer(
    "seed", 0, "Seed of the random transformations.", lower_bound=0
)

FACES = (
    *(
        f"DejaVu{family}{style}"
        for family in ("Sans", "SansMono")
        for style in ("", "-Bold", "-Oblique", "-BoldOblique")
    ),
    *(f"DejaVuSerif{style}" for style in ("", "-Bold", "-Italic", "-BoldItalic")),
    *(f"STIXGeneral{style}" for style in ("", "Bol", "Italic", "BolIta")),
)
# Latin, Greek, Cyrillic.
ALPHABETS = (
    string.ascii_letters,
    *(
        "".join(map(chr, range(ord(first), ord(last) + 1)))
        for first, last in ("Αω", "Ая")
    ),
)
# Pixels of an image, and of the drawing before it is reduced.
SIZE, DRAWN = 32, 96
# The share of their ink by which two letters must differ to be distinguishable: more
# than u and U, 0.243, at most E and F, 0.248.
UNLIKE = 0.245


def faces():
    """The paths of the typefaces."""
    folder = pathlib.Path(matplotlib.get_data_path(), "fonts/ttf")
    return [folder / f"{face}.ttf" for face in FACES]


def letters():
    """A list of letters, with one of each group that looks alike."""
    in_all = set.intersection(*(set(TTFont(face).getBestCmap()) for face in faces()))
    plain = ImageFont.truetype(faces()[0], DRAWN // 2)
    chosen = {}
    for character in "".join(ALPHABETS):
        if ord(character) not in in_all:
            continue
        ink = _ink(character, plain)
        if all(_difference(ink, other) > UNLIKE for other in chosen.values()):
            chosen[character] = ink
    return list(chosen)


def _ink(character, face):
    """The pixels with ink, after the letter is stretched to a square."""
    image = Image.new("L", (2 * DRAWN, 2 * DRAWN))
    ImageDraw.Draw(image).text((DRAWN, DRAWN), character, 255, face, anchor="mm")
    filled = image.crop(image.getbbox()).resize((SIZE, SIZE))
    return np.asarray(filled) > 127


def _difference(one, other):
    """The share of the ink of both letters that only one of them has."""
    return np.sum(one ^ other) / np.sum(one | other)


def drawn(character, face, rng):
    """Draws one image of a letter.

    Args:
        character: The letter.
        face: The path of its typeface.
        rng: A `numpy.random.Generator`.

    Returns:
        A gray `PIL.Image.Image` of `SIZE` × `SIZE`.
    """
    image = Image.new("L", (DRAWN, DRAWN))
    font = ImageFont.truetype(face, round(DRAWN * rng.uniform(0.5, 0.8)))
    ImageDraw.Draw(image).text(
        (DRAWN / 2, DRAWN / 2), character, 255, font, anchor="mm"
    )
    turn, shear = rng.uniform(-0.35, 0.35), rng.uniform(-0.4, 0.4)
    cos, sin = np.cos(turn), np.sin(turn)
    around = np.array([[cos, -sin], [sin, cos]]) @ np.array([[1, shear], [0, 1]])
    middle = np.full(2, DRAWN / 2)
    shift = middle - around @ middle + DRAWN * rng.uniform(-0.1, 0.1, 2)
    affine = (*around[0], shift[0], *around[1], shift[1])
    image = image.transform(image.size, Image.Transform.AFFINE, affine, Image.BILINEAR)
    image = image.filter(ImageFilter.GaussianBlur(rng.uniform(0, 2)))
    pixels = np.asarray(image.resize((SIZE, SIZE), Image.BOX), "float32")
    ink, paper = rng.uniform(140, 255), rng.uniform(0, 60)
    pixels = paper + (ink - paper) * pixels / 255 + rng.normal(0, 20, pixels.shape)
    return Image.fromarray(np.clip(pixels, 0, 255).astype("uint8"))


def main(argv):
    """Makes the folder, with a folder for each letter, named by its code point."""
    del argv
    folder = pathlib.Path(IMAGE_DIR.value).expanduser()
    if folder.exists():
        raise app.UsageError(
            f"--image_dir must name a folder that does not exist; received {folder}. "
            "Remove it, or name another."
        )
    rng = np.random.default_rng(SEED.value)
    chosen, typefaces = letters(), faces()
    folder.parent.mkdir(parents=True, exist_ok=True)
    # All or nothing.
    with tempfile.TemporaryDirectory(dir=folder.parent) as unfinished:
        images = pathlib.Path(unfinished, folder.name)
        for character in track(chosen, f"Drawing {len(chosen)} letters"):
            of_letter = images / f"{ord(character):04X}"
            of_letter.mkdir(parents=True)
            for number in range(EACH.value):
                face = typefaces[number % len(typefaces)]
                drawn(character, face, rng).save(of_letter / f"{number:04}.png")
        images.rename(folder)
    return 0


if __name__ == "__main__":
    sys.exit(app.run(main))
