"""Draws letters in many typefaces, as a folder of images to tell apart.

An offline machine has few images. It has typefaces, though: those that come with
matplotlib. This draws the letters of the Latin, Greek and Cyrillic alphabets, but for
those that look like another one, in sixteen faces, turned, sheared, scaled, shifted,
blurred, and under noise: 104 classes, of which many look alike.

    pip install '.[tensorflow,studies]'
    python -m tf_models.data.glyphs --image_dir=glyphs
    python -m tf_models.compare --preset=images --images=folder --image_dir=glyphs \
        --steps=600

The same seed and the same release of matplotlib draw the same images.
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
    "image_dir", "glyphs", "The folder that is made; it must not be there yet."
)
EACH = flags.DEFINE_integer("each", 100, "Images of a letter.", lower_bound=1)
SEED = flags.DEFINE_integer("seed", 0, "Of what is done to the letters.", lower_bound=0)

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
# Pixels of an image, and those it is drawn at.
SIZE, DRAWN = 32, 96
# How much of their ink two letters must not share for eyes to tell them apart: more
# than u and U, 0.243, as E and F, 0.248.
UNLIKE = 0.245


def faces():
    """The paths of the typefaces."""
    folder = pathlib.Path(matplotlib.get_data_path(), "fonts/ttf")
    return [folder / f"{face}.ttf" for face in FACES]


def letters():
    """The letters, one of each that look alike: a list of characters."""
    in_all = set.intersection(*(set(TTFont(face).getBestCmap()) for face in faces()))
    plain = ImageFont.truetype(faces()[0], DRAWN // 2)
    chosen = {}
    for character in "".join(ALPHABETS):
        if ord(character) not in in_all:
            continue
        ink = _ink(character, plain)
        if all(_share_apart(ink, other) > UNLIKE for other in chosen.values()):
            chosen[character] = ink
    return list(chosen)


def _ink(character, face):
    """Whether there is ink, where the letter is stretched to fill a square."""
    image = Image.new("L", (2 * DRAWN, 2 * DRAWN))
    ImageDraw.Draw(image).text((DRAWN, DRAWN), character, 255, face, anchor="mm")
    filled = image.crop(image.getbbox()).resize((SIZE, SIZE))
    return np.asarray(filled) > 127


def _share_apart(one, other):
    return np.sum(one ^ other) / np.sum(one | other)


def drawn(character, face, rng):
    """One image of a letter.

    Args:
        character: The letter.
        face: The path of its typeface.
        rng: A `numpy.random.Generator`.

    Returns:
        A grey `PIL.Image.Image` of `SIZE` × `SIZE`.
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
    """Makes the folder: one folder a letter, called after its code point."""
    del argv
    folder = pathlib.Path(IMAGE_DIR.value).expanduser()
    if folder.exists():
        raise app.UsageError(
            f"--image_dir must name a folder that is not there yet; received {folder}. "
            "Remove it, or name another."
        )
    rng = np.random.default_rng(SEED.value)
    chosen, typefaces = letters(), faces()
    folder.parent.mkdir(parents=True, exist_ok=True)
    # Whole or not at all.
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
