"""Some seeds of the random search that `make fuzz` makes at length."""

import keras
import pytest

from tests import fuzz

# JAX compiles each operation for each shape.
SEEDS = {"torch": 220, "tensorflow": 40, "jax": 5}[keras.backend.backend()]
TOGETHER = 5


@pytest.mark.parametrize("start", range(0, SEEDS, TOGETHER))
def test_no_configuration_makes_nan_or_changes_weights_on_a_refusal(start):
    for seed in range(start, start + TOGETHER):
        fuzz.check(seed)
