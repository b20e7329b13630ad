"""Text to batches: a stream of tokens, cut into windows, shuffled and batched.

Everything here is a function of its arguments alone. The same text, sizes and seed
give the same batches in the same order whenever and however often they are read,
which is what makes the runs of a comparison comparable.

In lm1b a text is a sentence. The paper packs sequences of at most 256 tokens to at most
4096 tokens a batch: here that is windows of 256 tokens, each sentence followed by the
token that ends a text, 16 windows a batch.
"""

import numpy as np
import tensorflow as tf

from tf_models.data import byte_vocabulary
from tf_models.data.prefetching import prefetched


def token_stream(examples):
    """Joins the texts of a data set into one array of tokens.

    Args:
        examples: A `tf.data.Dataset` of dictionaries with a string `"text"`.

    Returns:
        A NumPy array of `uint8`: each text's bytes, each followed by
        `byte_vocabulary.END_OF_FILE`.
    """
    return byte_vocabulary.encode_texts(
        [example["text"] for example in examples.as_numpy_iterator()]
    )


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


def shuffled_windows(tokens, sequence_length, batch_size, *, steps, seed, first_step=0):
    """Makes the batches of a run from a stream of tokens.

    Every window comes once before any comes again; each epoch has an order of its
    own. The order is computed from the seed and the window's number and not drawn
    from a generator, so no other random number, and no earlier reading of the data
    set, can change it. A run that was stopped after `k` steps goes on exactly with
    `first_step=k`.

    Args:
        tokens: One-dimensional array of unsigned integers: an array or a memory map,
            of which no more is read than the windows of the next batches.
        sequence_length: Number of tokens a window predicts.
        batch_size: Windows a batch.
        steps: Number of batches.
        seed: Integer that selects the order.
        first_step: Number of batches of this order to leave out at its beginning.

    Returns:
        A `tf.data.Dataset` of `steps` pairs `(inputs, targets)`, both `int32` of
        shape `(batch_size, sequence_length)`. `targets` is `inputs` one token later.

    Raises:
        ValueError: the stream is too short for one window, or `first_step` negative.
    """
    windows = window_count(tokens, sequence_length)
    if not windows:
        raise ValueError(
            "sequence_length must be less than the number of tokens in the text; "
            f"received sequence_length={sequence_length} for {len(tokens)} tokens. "
            f"Make it {max(1, len(tokens) - 1)} or less."
        )
    if first_step < 0:
        raise ValueError(
            f"first_step must be 0 or more; received first_step={first_step}. Leave "
            "it out to begin at the beginning."
        )
    # A memory map's own class would make a map of every slice.
    stream = np.asarray(tokens)

    def window_at(position):
        return tf.random.experimental.index_shuffle(
            position % windows,
            seed=tf.stack([tf.constant(seed, tf.int64), position // windows]),
            max_index=tf.constant(windows - 1, tf.int64),
        )

    def gather(windows):
        starts = windows * sequence_length
        rows = [stream[start : start + sequence_length + 1] for start in starts]
        return np.stack(rows).astype(np.int32)

    def inputs_and_targets(windows):
        # The stream stays outside the graph, which can hold no more than 2 GB.
        batch = tf.numpy_function(gather, [windows], tf.int32)
        batch.set_shape((batch_size, sequence_length + 1))
        return batch[:, :-1], batch[:, 1:]

    first, last = first_step * batch_size, (first_step + steps) * batch_size
    dataset = tf.data.Dataset.range(first, last).map(window_at)
    dataset = dataset.batch(batch_size, drop_remainder=True)
    return prefetched(dataset.map(inputs_and_targets))
