"""Batches of text: windows of a sequence of tokens, shuffled and batched.

The same text, sizes and seed give the same batches in the same order, however often
they are read and under every Keras backend, so that runs can be compared.

In lm1b a text is a sentence. The paper packs sequences of at most 256 tokens into
batches of at most 4096 tokens. Here these are windows of 256 tokens, with a token after
each sentence that ends it, and 16 windows per batch.
"""

import copy
import functools

import keras
import numpy as np


def window_count(tokens, sequence_length):
    """Counts the windows of a sequence of tokens.

    The windows are adjacent: each predicts `sequence_length` tokens and reads one more
    before them, so that every token except the first is predicted once per epoch.

    Args:
        tokens: One-dimensional array of tokens.
        sequence_length: Number of tokens that a window predicts.

    Returns:
        The number of complete windows.
    """
    return max(0, (len(tokens) - 1) // sequence_length)


class ShuffledWindows(keras.utils.PyDataset):
    """The batches of a run, from a sequence of tokens.

    Every epoch has each window once, in its own order. The order depends only on the
    seed and the number of the epoch, not on other random numbers or earlier reading. A
    run that was stopped after `k` steps continues exactly with `first_step=k`.

    A batch is a pair `(inputs, targets)`, both `int32` arrays of shape
    `(batch_size, sequence_length)`. `targets` is `inputs` one token later.

    Args:
        tokens: One-dimensional array of unsigned integers. Of a memory map, only the
            windows of the next batch are read.
        sequence_length: Number of tokens that a window predicts.
        batch_size: Windows per batch.
        steps: Number of batches.
        seed: Integer that selects the order, from 0 and below 2⁶⁴.
        first_step: Number of batches to skip at the start.

    Raises:
        ValueError: there are too few tokens for a window, or `first_step` is negative.
    """

    def __init__(
        self, tokens, sequence_length, batch_size, *, steps, seed, first_step=0
    ):
        super().__init__()
        self._windows = window_count(tokens, sequence_length)
        if not self._windows:
            raise ValueError(
                "sequence_length must be less than the number of tokens in the text; "
                f"received sequence_length={sequence_length} for {len(tokens)} tokens. "
                f"Make it {max(1, len(tokens) - 1)} or less."
            )
        if first_step < 0:
            raise ValueError(
                f"first_step must be 0 or more; received first_step={first_step}. "
                "Leave it out to start with the first batch."
            )
        # A slice of a `np.memmap` would be a `np.memmap` again.
        self._tokens = np.asarray(tokens)
        self._sequence_length = sequence_length
        self._batch_size = batch_size
        self._steps = steps
        self._first = first_step * batch_size

        # A batch may span two epochs.
        @functools.lru_cache(maxsize=2)
        def order_of(epoch):
            # NumPy guarantees that the numbers of this generator never change.
            high, low = divmod(seed, 2**32)
            generator = np.random.RandomState([low, high, epoch])
            return generator.permutation(self._windows)

        self._order_of = order_of

    def __len__(self):
        return self._steps

    def __getitem__(self, index):
        first = self._first + index * self._batch_size
        positions = range(first, first + self._batch_size)
        indices = (divmod(position, self._windows) for position in positions)
        length = self._sequence_length
        starts = [self._order_of(epoch)[index] * length for epoch, index in indices]
        rows = [self._tokens[start : start + length + 1] for start in starts]
        batch = np.stack(rows).astype(np.int32)
        return batch[:, :-1], batch[:, 1:]

    def take(self, steps):
        """The first `steps` of these batches, or all if there are fewer."""
        found = copy.copy(self)
        found._steps = min(steps, self._steps)
        return found

    def rebatched(self, batch_size):
        """The same windows in complete batches of another size."""
        found = copy.copy(self)
        found._steps = self._steps * self._batch_size // batch_size
        found._batch_size = batch_size
        return found
