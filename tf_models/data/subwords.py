"""Subword vocabularies: byte-level byte-pair encoding, trained on the text itself.

Byte-pair encoding begins with the 256 bytes and again and again makes the most
frequent pair of neighbouring tokens a token of its own. As every byte is a token,
every text can be encoded and decoded without loss, and there is no unknown token.

Reference:
    Sennrich et al., 2016, "Neural Machine Translation of Rare Words with Subword
    Units", https://arxiv.org/abs/1508.07909.
"""

import itertools
import pathlib

import numpy as np
import tokenizers
from tokenizers import decoders, models, pre_tokenizers, trainers

from tf_models.console.output import replacing

# How the token that ends a text is shown. It has number 0, as the byte that does.
END_OF_TEXT = "<|endoftext|>"
SMALLEST = 257  # 256 bytes and the end of a text.
LARGEST = 2**20  # Beyond any in use: more is a slip of the pen.
# A pair that occurs once saves nothing and may never come again.
LEAST_FREQUENCY = 2


def check_size(size):
    """Has a size refused that no vocabulary can have.

    Args:
        size: Number of tokens.

    Raises:
        ValueError: `size` is no integer from `SMALLEST` to `LARGEST`.
    """
    if type(size) is not int or not SMALLEST <= size <= LARGEST:
        raise ValueError(
            f"A subword vocabulary must have from {SMALLEST} tokens (the 256 bytes and "
            f"the end of a text) to {LARGEST}; received {size!r}. 8192 suits a few "
            "megabytes of text, 32000 a few hundred."
        )


def train_subwords(texts, size):
    """Learns a vocabulary from texts. The same texts give the same vocabulary.

    Args:
        texts: Iterable of `str` or of `bytes` in UTF-8, read once.
        size: Number of tokens, with the 256 bytes and the end of a text.

    Returns:
        A `Subwords` of exactly this size.

    Raises:
        ValueError: `size` is out of range, or the texts hold too few pairs that
            occur twice to fill it.
    """
    check_size(size)
    tokenizer = tokenizers.Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=size,
        min_frequency=LEAST_FREQUENCY,
        show_progress=False,
        special_tokens=[END_OF_TEXT],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
    )
    tokenizer.train_from_iterator(map(_as_str, texts), trainer=trainer)
    subwords = Subwords(tokenizer)
    if subwords.size < size:
        raise ValueError(
            "A subword vocabulary must not be larger than the text can fill; received "
            f"{size} for a text that fills {subwords.size}. Ask for {subwords.size} or "
            "fewer, or give more text."
        )
    return subwords


def load_subwords(path):
    """Reads a vocabulary that `Subwords.save` wrote.

    Args:
        path: The file's path.

    Returns:
        A `Subwords`.
    """
    text = pathlib.Path(path).read_text(encoding="utf-8")
    return Subwords(tokenizers.Tokenizer.from_str(text))


class Subwords:
    """A vocabulary of subwords: texts to tokens and back.

    Attributes:
        size: Number of tokens.
        dtype: The smallest unsigned NumPy type that holds one.
        end_of_text: The number of the token that ends a text.

    Args:
        tokenizer: A trained byte-level `tokenizers.Tokenizer`.
    """

    def __init__(self, tokenizer):
        # A text that spells the end token out is text, and does not end there.
        tokenizer.encode_special_tokens = True
        self._tokenizer = tokenizer
        self.size = tokenizer.get_vocab_size()
        self.dtype = np.min_scalar_type(self.size - 1)
        self.end_of_text = tokenizer.token_to_id(END_OF_TEXT)

    def encode_texts(self, texts):
        """Turns texts into one row of tokens.

        Args:
            texts: Sequence of `str` or of `bytes` in UTF-8.

        Returns:
            A one-dimensional NumPy array of `dtype`: each text's tokens, each
            followed by `end_of_text`.
        """
        encodings = self._tokenizer.encode_batch_fast([_as_str(t) for t in texts])
        end = (self.end_of_text,)
        tokens = itertools.chain.from_iterable((*e.ids, *end) for e in encodings)
        return np.fromiter(tokens, self.dtype)

    def decode(self, tokens):
        """Turns tokens back into a text.

        Args:
            tokens: Integers below `size`, in one dimension.

        Returns:
            A `str`, in which the end of a text is `END_OF_TEXT`. Bytes that are not
            UTF-8, as where a window begins inside a character, become U+FFFD.
        """
        ids = np.asarray(tokens).tolist()
        return self._tokenizer.decode(ids, skip_special_tokens=False)

    def save(self, path):
        """Writes the vocabulary as a JSON file of the `tokenizers` library.

        Args:
            path: A `pathlib.Path`; its file is whole or not there.
        """
        with replacing(path) as temporary:
            pathlib.Path(temporary).write_text(
                self._tokenizer.to_str(), encoding="utf-8"
            )


def _as_str(text):
    return text.decode("utf-8") if isinstance(text, bytes) else text
