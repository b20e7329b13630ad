"""Gradients on batches of one's own, while a model trains."""

import re
from collections.abc import Iterable, Iterator, Sequence
from typing import Any, Final, Literal, TypeAlias

import keras

from et_optimizer import checks
from et_optimizer.types import Tensor, Variable

EPOCH: Final = "epoch"
# `(x, y)` or `(x, y, sample_weight)`, of arrays or of structures of them.
Batch: TypeAlias = tuple[Any, Any] | tuple[Any, Any, Any]
Data: TypeAlias = Batch | Iterable[Any]
Frequency: TypeAlias = int | Literal["epoch"]
Logs: TypeAlias = dict[str, Any] | None


class GradientProbe(keras.callbacks.Callback):
    """A callback that measures gradients, now and then, and logs what it finds.

    A subclass implements `choose` and `take_in`.

    Args:
        data: A batch `(x, y)` or `(x, y, sample_weight)`, or an iterable of batches,
            of which every measurement takes the next, from the start again at the end.
        variables: A regular expression, searched for in the paths of the trainable
            variables, or `None`.
        frequency: `"epoch"`, or the number of batches of training from one measurement
            to the next.

    Raises:
        ValueError: when constructed, if `variables` is no expression or `frequency` is
            out of its range.
    """

    def __init__(self, data: Data, variables: str | None, frequency: Frequency):
        super().__init__()
        check_pattern(variables)
        if frequency != EPOCH:
            checks.whole("frequency", frequency, 1, otherwise=repr(EPOCH))
        self.data = data
        self.variables = variables
        self.frequency = frequency
        self._batches = endless(data, type(self).__name__)
        self._chosen: list[tuple[Variable, Any]] = []
        self._measured: dict[str, float] = {}
        self._seen = 0
        self._next_batch = 0

    def choose(self, trainable: Sequence[Variable]) -> list[tuple[Variable, Any]]:
        """Chooses what is measured: a list of pairs `(variable, tensor index)`."""
        raise NotImplementedError

    def take_in(self, variable: Variable, index: Any, gradient: Tensor) -> None:
        """Takes in the gradient of one chosen variable, a tensor."""
        raise NotImplementedError

    def measured(self) -> dict[str, float]:
        """What is known by now: a dict from the names of the logs to floats."""
        return dict(self._measured)

    def on_train_begin(self, logs: Logs = None) -> None:
        """Chooses the variables, unless the model has yet to make them."""
        self._chosen = []
        if self.model.built:
            self._chosen = self.choose(self.model.trainable_variables)

    def on_epoch_begin(self, epoch: int, logs: Logs = None) -> None:
        """Batches are numbered anew."""
        self._next_batch = 0

    def on_train_batch_end(self, batch: int, logs: Logs = None) -> None:
        """Measures, where the batch is one to measure after."""
        if not self._chosen:
            self._chosen = self.choose(self.model.trainable_variables)
        before = self._seen
        # With `steps_per_execution` several batches end at once.
        self._seen += batch + 1 - self._next_batch
        self._next_batch = batch + 1
        if self.frequency != EPOCH:
            if self._seen // self.frequency > before // self.frequency:
                self.measure()
        if logs is not None:
            logs.update(self._measured)

    def on_epoch_end(self, epoch: int, logs: Logs = None) -> None:
        """Measures, and logs."""
        if self.frequency == EPOCH:
            self.measure()
        if logs is not None:
            logs.update(self._measured)

    def measure(self) -> dict[str, float]:
        """Measures the gradient on one more batch.

        Returns:
            A dict from the names of the logs to floats.
        """
        variables = [variable for variable, _ in self._chosen]
        found = _gradients(self.model, next(self._batches), variables)
        for (variable, index), gradient in zip(self._chosen, found):
            if gradient is not None:
                self.take_in(variable, index, gradient)
        self._measured = self.measured()
        return dict(self._measured)


def check_pattern(variables: Any) -> None:
    """Raises `ValueError` unless `variables` is `None` or a regular expression."""
    try:
        re.compile(variables or "")
    except (re.error, TypeError) as error:
        raise ValueError(
            "variables must be None or a regular expression on variable paths; "
            f"received variables={variables!r} ({error})."
        ) from None


def endless(data: Data, callback: str) -> Iterator[Batch]:
    """Batches without end, from one batch or an iterable of them."""
    is_batch = isinstance(data, tuple) and len(data) in (2, 3)
    while True:
        yielded = False
        for batch in [data] if is_batch else data:
            yielded = True
            yield keras.utils.unpack_x_y_sample_weight(batch)
        if not yielded:
            raise ValueError(
                f"{callback}'s data has no batch. Give a tuple (x, y), or an "
                "iterable of such tuples that can be gone through again."
            )


def _gradients(
    model: Any, batch: Batch, variables: Sequence[Variable]
) -> Sequence[Tensor | None]:
    """The gradients of a model's loss on a batch, in inference mode.

    In a `StatelessScope`, where nothing that the model assigns on the way (metrics,
    seeds) outlasts the call.
    """
    found = {
        "tensorflow": _tensorflow_gradients,
        "jax": _jax_gradients,
        "torch": _torch_gradients,
    }[keras.backend.backend()]
    return found(model, batch, variables)


def _loss(model: Any, batch: Any, state: Iterable[Any] = ()) -> Tensor:
    x, y, sample_weight = batch
    with keras.StatelessScope(state_mapping=list(state)):
        predictions = model(x, training=False)
        return model.compute_loss(
            x=x, y=y, y_pred=predictions, sample_weight=sample_weight, training=False
        )


def _tensorflow_gradients(
    model: Any, batch: Batch, variables: Sequence[Variable]
) -> Sequence[Tensor | None]:
    import tensorflow as tf

    with tf.GradientTape() as tape:
        loss = _loss(model, batch)
    found = tape.gradient(loss, [variable.value for variable in variables])
    return [None if g is None else tf.convert_to_tensor(g) for g in found]


def _jax_gradients(
    model: Any, batch: Batch, variables: Sequence[Variable]
) -> Sequence[Tensor | None]:
    import jax

    # While `fit` runs, the values are in its own state.
    model.jax_state_sync()
    values = [variable.value for variable in variables]
    return jax.grad(lambda new: _loss(model, batch, zip(variables, new)))(values)


def _torch_gradients(
    model: Any, batch: Batch, variables: Sequence[Variable]
) -> Sequence[Tensor | None]:
    import torch

    values = [variable.value for variable in variables]
    return torch.autograd.grad(_loss(model, batch), values, allow_unused=True)
