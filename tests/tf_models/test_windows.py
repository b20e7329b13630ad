"""From text to batches."""

import keras
import numpy as np
import pytest

from tf_models.data.windows import ShuffledWindows, window_count

LENGTH = 10
# Every byte differs, so a window's first byte says where it was cut.
TOKENS = np.arange(25 * LENGTH + 1, dtype=np.uint8)
STARTS = list(range(0, 25 * LENGTH, LENGTH))


# The order of seed 3. Results were published with it, and it is the same under every
# backend and every version of NumPy.
FIRST_EPOCH = [190, 120, 80, 160, 140, 50, 230, 170, 240, 210, 20, 30, 40]
FIRST_EPOCH += [10, 150, 90, 180, 60, 200, 70, 0, 100, 130, 110, 220]
SECOND_EPOCH = [90, 160, 240, 40, 20, 10, 220, 190, 30, 110, 50, 170, 130]
SECOND_EPOCH += [140, 70, 210, 60, 0, 180, 80, 230, 100, 200, 120, 150]


def batches(steps, *, tokens=TOKENS, batch_size=5, seed=3, first_step=0):
    return list(
        ShuffledWindows(
            tokens, LENGTH, batch_size, steps=steps, seed=seed, first_step=first_step
        )
    )


def starts(some_batches):
    return [int(row[0]) for inputs, _ in some_batches for row in inputs]


def test_targets_are_inputs_one_token_later():
    for inputs, targets in batches(steps=5):
        assert inputs.shape == targets.shape == (5, LENGTH)
        assert inputs.dtype == targets.dtype == np.int32
        np.testing.assert_array_equal(inputs, inputs[:, :1] + np.arange(LENGTH))
        np.testing.assert_array_equal(targets, inputs + 1)


def test_an_epoch_predicts_every_token_once_except_the_first():
    targets = np.concatenate([targets for _, targets in batches(steps=5)])
    assert sorted(targets.ravel()) == TOKENS[1:].tolist()


def test_every_epoch_has_its_own_order():
    first, second = starts(batches(steps=10))[:25], starts(batches(steps=10))[25:]
    assert sorted(first) == sorted(second) == STARTS
    assert first != STARTS
    assert first != second


def test_repeated_reading_and_other_random_numbers_do_not_change_batches():
    dataset = ShuffledWindows(TOKENS, LENGTH, 5, steps=5, seed=3)
    once = starts(dataset)
    keras.utils.set_random_seed(1)
    assert starts(dataset) == once
    assert starts(dataset[step] for step in (4, 3)) == once[20:] + once[15:20]
    keras.utils.set_random_seed(2)
    assert starts(batches(steps=5)) == once


def test_the_seed_selects_the_order():
    seeds = (3, 4, 3 + 2**32, 2**64 - 1)
    assert len({tuple(starts(batches(steps=5, seed=seed))) for seed in seeds}) == 4


def test_the_order_of_a_seed_is_the_published_one():
    assert starts(batches(steps=10)) == FIRST_EPOCH + SECOND_EPOCH


@pytest.mark.parametrize("first_step", [1, 4, 5, 8])
def test_first_step_skips_the_first_batches_of_a_run(first_step):
    whole = starts(batches(steps=12))
    resumed = batches(steps=12 - first_step, first_step=first_step)
    assert starts(resumed) == whole[first_step * 5 :]


def test_a_negative_first_step_is_refused():
    with pytest.raises(ValueError, match="first_step must be 0 or more.*=-1"):
        batches(steps=1, first_step=-1)


@pytest.mark.parametrize("dtype", [np.uint16, np.uint32])
def test_tokens_can_have_16_or_32_bits(dtype):
    base = np.iinfo(np.uint16).max - len(TOKENS)
    tokens = base + np.arange(len(TOKENS), dtype=dtype)
    for wide, narrow in zip(batches(5, tokens=tokens), batches(5)):
        np.testing.assert_array_equal(wide[0], base + narrow[0])


def test_the_length_is_the_number_of_steps():
    assert len(ShuffledWindows(TOKENS, LENGTH, 5, steps=7, seed=3)) == 7


def test_fit_trains_on_the_batches_in_order():
    seen = []

    class Model(keras.Model):
        def __init__(self):
            super().__init__()
            self.scale = self.add_weight(shape=())

        def call(self, x):
            seen.append(x)
            return self.scale * keras.ops.cast(x, "float32")

    model = Model()
    model.compile(loss="mse", run_eagerly=True)
    dataset = ShuffledWindows(TOKENS, LENGTH, 5, steps=7, seed=3)
    model.fit(dataset, shuffle=False, verbose=0)
    read = [keras.ops.convert_to_numpy(x) for x in seen[-7:]]
    np.testing.assert_array_equal(read, [inputs for inputs, _ in dataset])


def test_a_memory_map_larger_than_memory_is_read_in_place(tmp_path):
    length, windows = 2**20, 50_000
    tokens = np.lib.format.open_memmap(
        tmp_path / "tokens.npy", "w+", np.uint16, (length * windows + 1,)
    )  # 100 GB, a sparse file: only what is written takes space.
    # The order depends on the number of windows and not on their length.
    short = ShuffledWindows(
        np.arange(windows + 1, dtype=np.uint16), 1, 2, steps=3, seed=0
    )
    order = [int(window[0]) for inputs, _ in short for window in inputs]
    for window in order:
        tokens[window * length] = window
    tokens.flush()
    tokens = np.load(tmp_path / "tokens.npy", mmap_mode="r")
    dataset = ShuffledWindows(tokens, length, 2, steps=3, seed=0)
    rows = [row for inputs, _ in dataset for row in inputs]
    assert [row[0] for row in rows] == order
    assert not any(row[1:].any() for row in rows)


def test_a_batch_can_span_two_epochs():
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


def test_take_and_rebatched_keep_the_order_of_windows():
    dataset = ShuffledWindows(TOKENS, LENGTH, 4, steps=6, seed=3)
    whole = starts(dataset)
    assert starts(dataset.take(2)) == whole[:8]
    assert starts(dataset.take(9)) == whole
    assert starts(dataset.rebatched(3)) == whole
    assert starts(dataset.rebatched(5)) == whole[:20]
    later = ShuffledWindows(TOKENS, LENGTH, 4, steps=5, seed=3, first_step=1)
    assert starts(later.rebatched(5)) == whole[4:24]
