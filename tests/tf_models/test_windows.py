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


# The order of seed 3, as it was when results were first published with it.
FIRST_EPOCH = [120, 100, 20, 130, 10, 30, 170, 80, 210, 190, 0, 180, 200]
FIRST_EPOCH += [220, 70, 110, 50, 160, 40, 140, 230, 60, 90, 240, 150]
SECOND_EPOCH = [100, 120, 50, 10, 130, 110, 160, 40, 20, 210, 150, 180, 190]
SECOND_EPOCH += [200, 90, 170, 80, 140, 220, 30, 230, 60, 70, 0, 240]


def batches(steps, *, tokens=TOKENS, batch_size=5, seed=3, first_step=0):
    dataset = shuffled_windows(
        tokens, LENGTH, batch_size, steps=steps, seed=seed, first_step=first_step
    )
    return list(dataset.as_numpy_iterator())


def starts(some_batches):
    return [int(row[0]) for inputs, _ in some_batches for row in inputs]


def test_texts_are_joined_with_the_end_of_each_file_marked():
    examples = tf.data.Dataset.from_tensor_slices({"text": [b"ab", b"", b"c"]})
    expected = [*b"ab", END_OF_FILE, END_OF_FILE, *b"c", END_OF_FILE]
    assert token_stream(examples).tolist() == expected


def test_a_batch_has_the_asked_shape_and_targets_are_inputs_one_token_later():
    for inputs, targets in batches(steps=5):
        assert inputs.shape == targets.shape == (5, LENGTH)
        assert inputs.dtype == targets.dtype == np.int32
        np.testing.assert_array_equal(inputs, inputs[:, :1] + np.arange(LENGTH))
        np.testing.assert_array_equal(targets, inputs + 1)


def test_an_epoch_predicts_every_token_but_the_first_once():
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


def test_the_order_of_a_seed_stays_what_it_was():
    assert starts(batches(steps=10)) == FIRST_EPOCH + SECOND_EPOCH


@pytest.mark.parametrize("first_step", [1, 4, 5, 8])
def test_from_first_step_on_the_batches_are_those_of_the_whole_run(first_step):
    whole = starts(batches(steps=12))
    resumed = batches(steps=12 - first_step, first_step=first_step)
    assert starts(resumed) == whole[first_step * 5 :]


def test_a_first_step_before_the_beginning_is_refused():
    with pytest.raises(ValueError, match="first_step must be 0 or more.*=-1"):
        batches(steps=1, first_step=-1)


@pytest.mark.parametrize("dtype", [np.uint16, np.uint32])
def test_tokens_beyond_a_byte_are_kept(dtype):
    base = np.iinfo(np.uint16).max - len(TOKENS)
    tokens = base + np.arange(len(TOKENS), dtype=dtype)
    for wide, narrow in zip(batches(5, tokens=tokens), batches(5)):
        np.testing.assert_array_equal(wide[0], base + narrow[0])


def test_shapes_are_known_before_a_batch_is_read():
    dataset = shuffled_windows(TOKENS, LENGTH, 5, steps=7, seed=3)
    spec = tf.TensorSpec((5, LENGTH), tf.int32)
    assert dataset.element_spec == (spec, spec)
    assert len(dataset) == 7


def test_a_memory_map_larger_than_a_graph_can_hold_is_read_in_place(tmp_path):
    length, windows = 2**20, 1100
    # The order depends on the number of windows and not on their length.
    short = shuffled_windows(np.arange(windows + 1), 1, 2, steps=6, seed=0)
    order = [int(w[0]) for batch, _ in short.as_numpy_iterator() for w in batch]
    tokens = np.lib.format.open_memmap(
        tmp_path / "tokens.npy", "w+", np.uint16, (length * windows + 1,)
    )  # A sparse file: only what is written takes space.
    assert max(order) * length * tokens.itemsize > 2**31
    for window in order:
        tokens[window * length] = window
    tokens.flush()
    tokens = np.load(tmp_path / "tokens.npy", mmap_mode="r")
    dataset = shuffled_windows(tokens, length, 2, steps=6, seed=0)
    rows = [row for batch, _ in dataset.as_numpy_iterator() for row in batch]
    assert [row[0] for row in rows] == order
    assert not any(row[1:].any() for row in rows)


def test_batches_go_on_across_the_end_of_an_epoch():
    assert len(batches(steps=7, batch_size=4)) == 7
    assert sorted(starts(batches(steps=7, batch_size=4))[:25]) == STARTS


@pytest.mark.parametrize(("length", "windows"), [(10, 0), (11, 1), (20, 1), (21, 2)])
def test_a_window_needs_one_token_more_than_it_predicts(length, windows):
    assert window_count(TOKENS[:length], LENGTH) == windows


def test_a_text_too_short_for_a_window_is_refused_with_the_remedy():
    with pytest.raises(
        ValueError, match="received sequence_length=10 for 10 tokens. Make it 9 or less"
    ):
        batches(steps=1, tokens=TOKENS[:10])
