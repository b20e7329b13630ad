"""The byte-level vocabulary."""

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from tf_models.data import byte_vocabulary


@given(st.text())
def test_decoding_restores_every_text(text):
    tokens = byte_vocabulary.encode(text)
    assert len(tokens) == len(text.encode("utf-8"))
    assert byte_vocabulary.decode(tokens) == text


@given(st.binary())
def test_the_tokens_are_the_256_bytes(data):
    assert byte_vocabulary.encode(data).tolist() == list(data)
    assert byte_vocabulary.SIZE == np.iinfo(byte_vocabulary.encode(data).dtype).max + 1


def test_an_incomplete_character_decodes_to_the_replacement_character():
    window = byte_vocabulary.encode("aé")[:2]
    assert byte_vocabulary.decode(window) == "a\N{REPLACEMENT CHARACTER}"
