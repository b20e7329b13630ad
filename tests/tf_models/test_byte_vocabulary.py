"""The byte-level vocabulary."""

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from tf_models.data import byte_vocabulary


@given(st.text())
def test_decoding_gives_back_every_text(text):
    tokens = byte_vocabulary.encode(text)
    assert len(tokens) == len(text.encode("utf-8"))
    assert byte_vocabulary.decode(tokens) == text


@given(st.binary())
def test_every_byte_is_a_token_and_nothing_else_is(data):
    assert byte_vocabulary.encode(data).tolist() == list(data)
    assert byte_vocabulary.SIZE == np.iinfo(byte_vocabulary.encode(data).dtype).max + 1


def test_a_window_that_cuts_a_character_can_still_be_read():
    window = byte_vocabulary.encode("aé")[:2]
    assert byte_vocabulary.decode(window) == "a\N{REPLACEMENT CHARACTER}"
