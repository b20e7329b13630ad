"""Text to batches: a stream of tokens, cut into windows, shuffled and batched.

Everything here is a function of its arguments alone. The same text, sizes and seed
give the same batches in the same order whenever and however often they are read, under
each of Keras's backends, which is what makes the runs of a comparison comparable.

In lm1b a text is a sentence. The paper packs sequences of at most 256 tokens to at most
4096 tokens a batch: here that is windows of 256 tokens, each sentence followed by the
token that ends a text, 16 windows a batch.
"""

import copy
import functools

import keras
import numpy as np


def window_count(tokens, sequence_length):
    """Counts the windows a stream holds.

    Windows stand side by side: each predicts `sequence_length` tokens and reads one
    more before them, so that every token but the first is predicted once an epoch.

    Args:
        tokens: One-dimensional array of tokens.
        sequence_length: Number of tokens a window predicts.

    Returns:
        The number of whole windows.
    """
    return max(0, (len(tokens) - 1) // sequence_length)


class ShuffledWindows(keras.utils.PyDataset):
    """The batches of a run from a stream of tokens.

    Every window comes once before any comes again; each epoch has an order of its
    own. The order is drawn from the seed and the epoch's number alone, so no other
    random number, and no earlier reading of the data set, can change it. A run that was
    stopped after `k` steps goes on exactly with `first_step=k`.

    A batch is a pair `(inputs, targets)`, both `int32` arrays of shape
    `(batch_size, sequence_length)`. `targets` is `inputs` one token later.

    Args:
        tokens: One-dimensional array of unsigned integers: an array or a memory map,
            of which no more is read than the windows of the next batch.
        sequence_length: Number of tokens a window predicts.
        batch_size: Windows a batch.
        steps: Number of batches.
        seed: Integer that selects the order, from 0 and below 2⁶⁴.
        first_step: Number of batches of this order to leave out at its beginning.

    Raises:
        ValueError: the stream is too short for one window, or `first_step` negative.
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
                "Leave it out to begin at the beginning."
            )
        # A memory map's own class would make a map of every slice.
        self._stream = np.asarray(tokens)
        self._sequence_length = sequence_length
        self._batch_size = batch_size
        self._steps = steps
        self._first = first_step * batch_size

        # A batch may lie across the end of an epoch.
        @functools.lru_cache(maxsize=2)
        def order_of(epoch):
            # NumPy promises never to change what this older generator draws.
            high, low = divmod(seed, 2**32)
            generator = np.random.RandomState([low, high, epoch])
            return generator.permutation(self._windows)

        self._order_of = order_of

    def __len__(self):
        return self._steps

    def __getitem__(self, index):
        first = self._first + index * self._batch_size
        positions = range(first, first + self._batch_size)
        places = (divmod(position, self._windows) for position in positions)
        length = self._sequence_length
        starts = [self._order_of(epoch)[place] * length for epoch, place in places]
        rows = [self._stream[start : start + length + 1] for start in starts]
        batch = np.stack(rows).astype(np.int32)
        return batch[:, :-1], batch[:, 1:]

    def take(self, steps):
        """The first `steps` of these batches, or all where there are fewer."""
        found = copy.copy(self)
        found._steps = min(steps, self._steps)
        return found

    def rebatched(self, batch_size):
        """The same windows in whole batches of another size."""
        found = copy.copy(self)
        found._steps = self._steps * self._batch_size // batch_size
        found._batch_size = batch_size
        return found
