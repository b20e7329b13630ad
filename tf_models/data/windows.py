"""Text to batches: a stream of bytes, cut into windows, shuffled and batched.

Everything here is a function of its arguments alone. The same text, sizes and seed
give the same batches in the same order whenever and however often they are read,
which is what makes the runs of a comparison comparable.
"""

import numpy as np
import tensorflow as tf

from tf_models.data import byte_vocabulary

PREFETCHED_BATCHES = 2


def token_stream(examples):
    """Joins the texts of a data set into one array of tokens.

    Args:
        examples: A `tf.data.Dataset` of dictionaries with a string `"text"`.

    Returns:
        A NumPy array of `uint8`: each text's bytes, each followed by
        `byte_vocabulary.END_OF_FILE`.
    """
    end = np.array([byte_vocabulary.END_OF_FILE], np.uint8)
    pieces = []
    for example in examples.as_numpy_iterator():
        pieces += [byte_vocabulary.encode(example["text"]), end]
    return np.concatenate(pieces)


def window_count(tokens, sequence_length):
    """Counts the windows a stream holds.

    Windows stand side by side: each predicts `sequence_length` bytes and reads one
    more before them, so that every byte but the first is predicted once an epoch.

    Args:
        tokens: One-dimensional array of tokens.
        sequence_length: Number of bytes a window predicts.

    Returns:
        The number of whole windows.
    """
    return max(0, (len(tokens) - 1) // sequence_length)


def shuffled_windows(tokens, sequence_length, batch_size, *, steps, seed):
    """Makes the batches of a run from a stream of tokens.

    Every window comes once before any comes again; each epoch has an order of its
    own. The order is computed from the seed and the window's number and not drawn
    from a generator, so no other random number, and no earlier reading of the data
    set, can change it.

    Args:
        tokens: One-dimensional array of tokens (`uint8`).
        sequence_length: Number of bytes a window predicts.
        batch_size: Windows a batch.
        steps: Number of batches.
        seed: Integer that selects the order.

    Returns:
        A `tf.data.Dataset` of `steps` pairs `(inputs, targets)`, both `int32` of
        shape `(batch_size, sequence_length)`. `targets` is `inputs` one byte later.

    Raises:
        ValueError: the stream is too short for one window.
    """
    windows = window_count(tokens, sequence_length)
    if not windows:
        raise ValueError(
            "sequence_length must be less than the number of bytes in the text; "
            f"received sequence_length={sequence_length} for {len(tokens)} bytes. "
            f"Make it {max(1, len(tokens) - 1)} or less."
        )
    stream = tf.constant(tokens)
    offsets = tf.range(sequence_length + 1, dtype=tf.int64)

    def window_at(position):
        return tf.random.experimental.index_shuffle(
            position % windows,
            seed=tf.stack([tf.constant(seed, tf.int64), position // windows]),
            max_index=tf.constant(windows - 1, tf.int64),
        )

    def inputs_and_targets(window):
        index = window[:, tf.newaxis] * sequence_length + offsets
        batch = tf.cast(tf.gather(stream, index), tf.int32)
        return batch[:, :-1], batch[:, 1:]

    dataset = tf.data.Dataset.range(steps * batch_size).map(window_at)
    dataset = dataset.batch(batch_size, drop_remainder=True)
    dataset = dataset.map(inputs_and_targets).prefetch(PREFETCHED_BATCHES)
    options = tf.data.Options()
    # There is nothing to tune, and an iterator that is done with waits, for up to
    # half a minute, for the thread that tunes.
    options.autotune.enabled = False
    return dataset.with_options(options)
