"""Subword vocabularies: byte-level byte-pair encoding, trained on the text.

Byte-pair encoding starts from the 256 bytes and repeatedly merges the most frequent
pair of adjacent tokens into a new token. Because every byte is a token, every text can
be encoded and decoded without loss, and there is no unknown token.

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

# The text of the token that ends a text. Its number is 0, as in the byte vocabulary.
END_OF_TEXT = "<|endoftext|>"
SMALLEST = 257  # 256 bytes and the end of a text.
LARGEST = 2**20  # Larger than any vocabulary in use.
# A pair that occurs only once saves nothing.
LEAST_FREQUENCY = 2


def check_size(size):
    """Refuses impossible sizes of a vocabulary.

    Args:
        size: Number of tokens.

    Raises:
        ValueError: `size` is not an integer from `SMALLEST` to `LARGEST`.
    """
    if type(size) is not int or not SMALLEST <= size <= LARGEST:
        raise ValueError(
            f"A subword vocabulary must have from {SMALLEST} tokens (the 256 bytes and "
            f"the end of a text) to {LARGEST}; received {size!r}. 8192 suits a few "
            "megabytes of text, 32000 a few hundred."
        )


def train_subwords(texts, size):
    """Trains a vocabulary on texts. The same texts give the same vocabulary.

    Args:
        texts: Iterable of `str` or of `bytes` in UTF-8, read once.
        size: Number of tokens, including the 256 bytes and the end of a text.

    Returns:
        A `Subwords` of exactly this size.

    Raises:
        ValueError: `size` is out of range, or too large for the texts.
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
            "A subword vocabulary must not be larger than its text allows; received "
            f"{size} for a text that gives {subwords.size} tokens. Use {subwords.size} "
            "or fewer, or more text."
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
        dtype: The smallest unsigned NumPy type for a token.
        end_of_text: The number of the token that ends a text.

    Args:
        tokenizer: A trained byte-level `tokenizers.Tokenizer`.
    """

    def __init__(self, tokenizer):
        # The text of the end token is ordinary text in the input.
        tokenizer.encode_special_tokens = True
        self._tokenizer = tokenizer
        self.size = tokenizer.get_vocab_size()
        self.dtype = np.min_scalar_type(self.size - 1)
        self.end_of_text = tokenizer.token_to_id(END_OF_TEXT)

    def encode_texts(self, texts):
        """Turns texts into one sequence of tokens.

        Args:
            texts: Sequence of `str` or of `bytes` in UTF-8.

        Returns:
            A one-dimensional NumPy array of `dtype`: the tokens of each text, followed
            by `end_of_text`.
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
            UTF-8, for example half a character at the start of a window, become U+FFFD.
        """
        ids = np.asarray(tokens).tolist()
        return self._tokenizer.decode(ids, skip_special_tokens=False)

    def save(self, path):
        """Writes the vocabulary as a JSON file of the `tokenizers` library.

        Args:
            path: A `pathlib.Path`, written atomically.
        """
        with replacing(path) as temporary:
            pathlib.Path(temporary).write_text(
                self._tokenizer.to_str(), encoding="utf-8"
            )


def _as_str(text):
    return text.decode("utf-8") if isinstance(text, bytes) else text
