"""Prefetching of batches."""

import tensorflow as tf

PREFETCHED_BATCHES = 2


def prefetched(batches):
    """Makes a data set prepare its next batches during training.

    Args:
        batches: A `tf.data.Dataset`.

    Returns:
        A `tf.data.Dataset` of the same batches in the same order.
    """
    options = tf.data.Options()
    # There is nothing to tune, and a finished iterator would wait up to half a minute
    # for the tuning thread.
    options.autotune.enabled = False
    return batches.prefetch(PREFETCHED_BATCHES).with_options(options)
