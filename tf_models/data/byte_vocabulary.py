"""The byte vocabulary: a token is a byte of UTF-8, and 0 ends a file."""

import numpy as np

SIZE = 256
# Python source cannot contain this byte.
END_OF_FILE = 0


def encode(text):
    """Turns a text into its tokens.

    Args:
        text: A `str`, or the `bytes` of its UTF-8 encoding.

    Returns:
        A NumPy array of `uint8`, one element per byte.
    """
    if isinstance(text, str):
        text = text.encode("utf-8")
    return np.frombuffer(text, dtype=np.uint8)


def encode_texts(texts):
    """Turns texts into one sequence of tokens.

    Args:
        texts: Sequence of `str` or of `bytes` in UTF-8.

    Returns:
        A NumPy array of `uint8`: the bytes of each text, followed by `END_OF_FILE`.
    """
    end = np.array([END_OF_FILE], np.uint8)
    pieces = [piece for text in texts for piece in (encode(text), end)]
    return np.concatenate(pieces) if pieces else end[:0]


def decode(tokens):
    """Turns tokens back into a text.

    Args:
        tokens: Integers from 0 to 255, in one dimension.

    Returns:
        A `str`. Bytes that are not UTF-8, for example half a character at the start of
        a window, become U+FFFD.
    """
    return np.asarray(tokens, dtype=np.uint8).tobytes().decode("utf-8", "replace")
