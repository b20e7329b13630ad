"""What a run takes of the device's memory."""

import gc
import sys

import keras
import pytest

from tf_models.studies import device

MIB = 2**20


def allocated(mib):
    # Computed: of a NumPy array the framework may hold the array's own memory.
    return keras.ops.ones(mib * MIB // 4)


@pytest.fixture
def memory_on_top_of_more():
    gc.collect()  # What other tests left must not be freed while this one counts.
    before = allocated(8)
    memory = device.PeakMemory()
    if memory.bytes() is None:
        assert sys.platform != "linux"
        pytest.skip("The framework does not count this device's memory.")
    yield memory
    del before


def test_the_peak_does_not_count_the_initial_memory_in_use(memory_on_top_of_more):
    for _ in range(3):
        tensors = [allocated(2), allocated(2)]
        del tensors
        gc.collect()
    assert 4 * MIB <= memory_on_top_of_more.bytes() < 8 * MIB


def test_reset_forgets_an_earlier_peak(memory_on_top_of_more):
    tensors = [allocated(8), allocated(1)]
    del tensors[0]
    gc.collect()
    memory_on_top_of_more.reset()
    assert 1 * MIB <= memory_on_top_of_more.bytes() < 4 * MIB
