"""Gradients of a model's loss outside a training step."""

from collections.abc import Iterable, Sequence
from typing import Any

import keras

from et_optimizer.types import Tensor, Variable


def loss_gradients(
    model: Any, batch: Any, variables: Sequence[Variable]
) -> Sequence[Tensor | None]:
    """The gradients of a model's loss on one batch, in inference mode.

    The model runs in a `StatelessScope`, so what it assigns (metrics, seeds) is
    discarded.

    Args:
        model: A compiled Keras model.
        batch: `(x, y, sample_weight)`.
        variables: Trainable variables of the model.

    Returns:
        One gradient per variable, `None` where the loss does not depend on it.
    """
    backend = keras.backend.backend()
    if backend == "jax":
        # During `fit` the current values are in the trainer's own state.
        model.jax_state_sync()
    values = [variable.value for variable in variables]
    if backend == "jax":
        import jax

        return jax.grad(lambda new: _loss(model, batch, zip(variables, new)))(values)
    if backend == "torch":
        import torch

        return torch.autograd.grad(_loss(model, batch), values, allow_unused=True)
    import tensorflow as tf

    with tf.GradientTape() as tape:
        loss = _loss(model, batch)
    found = tape.gradient(loss, values)
    # Sparse gradients (IndexedSlices) become dense.
    return [None if g is None else tf.convert_to_tensor(g) for g in found]


def _loss(model: Any, batch: Any, state: Iterable[Any] = ()) -> Tensor:
    x, y, sample_weight = batch
    with keras.StatelessScope(state_mapping=list(state)):
        predictions = model(x, training=False)
        return model.compute_loss(
            x=x, y=y, y_pred=predictions, sample_weight=sample_weight, training=False
        )
