"""The subword vocabularies."""

import os
import pathlib
import subprocess
import sys

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from tf_models.data.subwords import (
    END_OF_TEXT,
    LARGEST,
    SMALLEST,
    load_subwords,
    train_subwords,
)

TEXTS = [
    "the optimizer keeps the tensor; the tensor keeps the optimizer\n" * 3,
    "def tensor(optimizer):\n    return optimizer\n",
    "Größe, größer: die Größten 🎉🎉\n" * 2,
]
SIZE = 300


@pytest.fixture(scope="module")
def subwords():
    return train_subwords(TEXTS, SIZE)


ODD_TEXTS = [
    "",
    " ",
    "\r\n\t \n\n  x",
    "\0\x01\x7f",
    "\N{REPLACEMENT CHARACTER}",
    "e\u0301 é ﬁ Å",
    "👩\u200d👩\u200d👧 🇫🇷 \U0010ffff",
    "שלום \u202e עולם",
    END_OF_TEXT,
    f"a{END_OF_TEXT}b <|endof text|>",
]


def test_decoding_restores_unusual_text(subwords):
    for text in ODD_TEXTS:
        tokens = subwords.encode_texts([text])
        assert subwords.decode(tokens) == text + END_OF_TEXT
        assert subwords.decode(tokens[:-1]) == text


def test_decoding_restores_every_text(subwords):
    @given(st.text())
    def check(text):
        assert subwords.decode(subwords.encode_texts([text])[:-1]) == text

    check()


def test_only_the_end_of_a_text_gives_the_end_token(subwords):
    tokens = subwords.encode_texts([TEXTS[0], "", END_OF_TEXT])
    assert subwords.end_of_text == 0
    assert np.count_nonzero(tokens == 0) == 3
    assert tokens[-1] == 0


def test_texts_and_their_utf_8_bytes_give_the_same_tokens(subwords):
    np.testing.assert_array_equal(
        subwords.encode_texts(TEXTS),
        subwords.encode_texts([text.encode() for text in TEXTS]),
    )


def test_an_empty_list_of_texts_gives_no_tokens(subwords):
    assert subwords.encode_texts([]).shape == (0,)


def test_a_vocabulary_has_the_requested_size_and_shortens_its_text(subwords):
    tokens = subwords.encode_texts(TEXTS)
    assert subwords.size == SIZE
    assert tokens.dtype == subwords.dtype == np.uint16
    assert tokens.max() < SIZE
    assert len(tokens) < 0.8 * sum(len(text.encode()) for text in TEXTS)


def test_the_smallest_vocabulary_is_bytes():
    tokens = train_subwords(TEXTS, SMALLEST).encode_texts(TEXTS)
    assert len(tokens) == sum(len(text.encode()) + 1 for text in TEXTS)


def test_a_saved_vocabulary_loads_unchanged(subwords, tmp_path):
    subwords.save(tmp_path / "vocabulary.json")
    loaded = load_subwords(tmp_path / "vocabulary.json")
    assert loaded.size == subwords.size
    for texts in (TEXTS, ODD_TEXTS):
        np.testing.assert_array_equal(
            loaded.encode_texts(texts), subwords.encode_texts(texts)
        )


TRAIN_AND_SAVE = """
import pathlib, sys
from tf_models.data.subwords import train_subwords
train_subwords(eval(sys.argv[1]), int(sys.argv[2])).save(pathlib.Path(sys.argv[3]))
"""


@pytest.mark.parametrize("threads", ["1", "4"])
def test_another_process_trains_the_same_vocabulary(subwords, tmp_path, threads):
    subwords.save(tmp_path / "here.json")
    arguments = [repr(TEXTS), str(SIZE), str(tmp_path / "there.json")]
    subprocess.run(
        [sys.executable, "-c", TRAIN_AND_SAVE, *arguments],
        check=True,
        cwd=pathlib.Path(__file__).parents[2],
        env=os.environ | {"RAYON_NUM_THREADS": threads, "PYTHONHASHSEED": threads},
    )
    here, there = tmp_path / "here.json", tmp_path / "there.json"
    assert here.read_bytes() == there.read_bytes()


def test_a_size_out_of_range_is_refused():
    for size in (-1, 0, SMALLEST - 1, LARGEST + 1, 300.0, "300", True, None):
        with pytest.raises(ValueError, match=f"from {SMALLEST} .*received {size!r}"):
            train_subwords(TEXTS, size)


def test_a_size_too_large_for_the_text_is_refused_with_the_possible_size():
    with pytest.raises(ValueError, match="received 5000 for a text that gives") as info:
        train_subwords(TEXTS, 5000)
    filled = int(str(info.value).split("Use ")[1].split()[0])
    assert train_subwords(TEXTS, filled).size == filled
    with pytest.raises(ValueError, match=f"gives {filled}"):
        train_subwords(TEXTS, filled + 1)
