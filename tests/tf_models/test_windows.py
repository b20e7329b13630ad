"""From text to batches."""

import keras
import numpy as np
import pytest
import tensorflow as tf

from tf_models.data.byte_vocabulary import END_OF_FILE
from tf_models.data.windows import shuffled_windows, token_stream, window_count

LENGTH = 10
# Every byte differs, so a window's first byte says where it was cut.
TOKENS = np.arange(25 * LENGTH + 1, dtype=np.uint8)
STARTS = list(range(0, 25 * LENGTH, LENGTH))


def batches(steps, *, tokens=TOKENS, batch_size=5, seed=3):
    dataset = shuffled_windows(tokens, LENGTH, batch_size, steps=steps, seed=seed)
    return list(dataset.as_numpy_iterator())


def starts(some_batches):
    return [int(row[0]) for inputs, _ in some_batches for row in inputs]


def test_texts_are_joined_with_the_end_of_each_file_marked():
    examples = tf.data.Dataset.from_tensor_slices({"text": [b"ab", b"", b"c"]})
    expected = [*b"ab", END_OF_FILE, END_OF_FILE, *b"c", END_OF_FILE]
    assert token_stream(examples).tolist() == expected


def test_a_batch_has_the_asked_shape_and_targets_are_inputs_one_byte_later():
    for inputs, targets in batches(steps=5):
        assert inputs.shape == targets.shape == (5, LENGTH)
        assert inputs.dtype == targets.dtype == np.int32
        np.testing.assert_array_equal(inputs, inputs[:, :1] + np.arange(LENGTH))
        np.testing.assert_array_equal(targets, inputs + 1)


def test_an_epoch_predicts_every_byte_but_the_first_once():
    targets = np.concatenate([targets for _, targets in batches(steps=5)])
    assert sorted(targets.ravel()) == TOKENS[1:].tolist()


def test_every_epoch_is_shuffled_anew():
    first, second = starts(batches(steps=10))[:25], starts(batches(steps=10))[25:]
    assert sorted(first) == sorted(second) == STARTS
    assert first != STARTS
    assert first != second


def test_batches_are_the_same_however_often_and_after_whatever_they_are_read():
    dataset = shuffled_windows(TOKENS, LENGTH, 5, steps=5, seed=3)
    once = starts(dataset.as_numpy_iterator())
    keras.utils.set_random_seed(1)
    assert starts(dataset.as_numpy_iterator()) == once
    keras.utils.set_random_seed(2)
    assert starts(batches(steps=5)) == once


def test_the_seed_selects_the_order():
    assert starts(batches(steps=5, seed=4)) != starts(batches(steps=5, seed=3))


def test_batches_go_on_across_the_end_of_an_epoch():
    assert len(batches(steps=7, batch_size=4)) == 7
    assert sorted(starts(batches(steps=7, batch_size=4))[:25]) == STARTS


@pytest.mark.parametrize(("length", "windows"), [(10, 0), (11, 1), (20, 1), (21, 2)])
def test_a_window_needs_one_byte_more_than_it_predicts(length, windows):
    assert window_count(TOKENS[:length], LENGTH) == windows


def test_a_text_too_short_for_a_window_is_refused_with_the_remedy():
    with pytest.raises(
        ValueError, match="received sequence_length=10 for 10 bytes. Make it 9 or less"
    ):
        batches(steps=1, tokens=TOKENS[:10])
