"""The first seeds of the random search of `make fuzz`."""

import keras
import pytest

from tests import fuzz

# JAX compiles each operation for each shape.
SEEDS = {"torch": 220, "tensorflow": 40, "jax": 5}[keras.backend.backend()]
SEEDS_PER_TEST = 5


@pytest.mark.parametrize("start", range(0, SEEDS, SEEDS_PER_TEST))
def test_no_configuration_gives_nan_or_changes_weights_in_a_refused_step(start):
    for seed in range(start, start + SEEDS_PER_TEST):
        fuzz.check(seed)
