"""How the batches of every data set are prepared ahead of the training."""

import tensorflow as tf

PREFETCHED_BATCHES = 2


def prefetched(batches):
    """Has a data set prepare its next batches while one is trained on.

    Args:
        batches: A `tf.data.Dataset`.

    Returns:
        A `tf.data.Dataset` of the same batches in the same order.
    """
    options = tf.data.Options()
    # There is nothing to tune, and an iterator that is done with waits, for up to
    # half a minute, for the thread that tunes.
    options.autotune.enabled = False
    return batches.prefetch(PREFETCHED_BATCHES).with_options(options)
