"""Temporary memory of a compiled training step, by XLA's memory analysis."""

import keras
import pytest

from benchmarks import training_memory

pytestmark = pytest.mark.skipif(
    keras.backend.backend() != "jax", reason="needs JAX for XLA's memory analysis"
)
WIDTH, LAYERS = 128, 2


def temporaries_of_update(name):
    """The temporary bytes per weight of a Transformer's optimizer update."""
    import jax

    model = training_memory.STEPS[name].model(WIDTH, LAYERS)
    optimizer = model.optimizer
    optimizer.build(model.trainable_variables)
    weights = [variable.value for variable in model.trainable_variables]
    state = [variable.value for variable in optimizer.variables]

    def update(state, gradients, weights):
        return optimizer.stateless_apply(state, gradients, weights)[::-1]

    compiled = jax.jit(update, donate_argnums=(0, 2)).lower(state, weights, weights)
    memory = compiled.compile().memory_analysis()
    return memory.temp_size_in_bytes / model.count_params()


@pytest.mark.parametrize(
    "name", ["ExtremeTensoring 1 in bfloat16", "ExtremeTensoring() in bfloat16"]
)
def test_a_bfloat16_update_makes_no_float32_copy_of_all_weights(name):
    assert temporaries_of_update(name) < 4


def test_a_training_step_reuses_the_memory_of_weights_and_state():
    model = training_memory.STEPS["ExtremeTensoring 1 in bfloat16"].model(WIDTH, 1)
    batch = training_memory.batch_of_tokens()
    memory = training_memory.compiled(model, batch).memory_analysis()
    new = memory.output_size_in_bytes - memory.alias_size_in_bytes
    # Only the loss and a pointer to each output are new.
    outputs = len(model.variables) + len(model.optimizer.variables)
    assert new < 16 * outputs + 1024
