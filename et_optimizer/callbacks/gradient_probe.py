"""Gradients on batches of one's own, while a model trains."""

import re
from collections.abc import Iterable, Iterator, Sequence
from typing import Any, Final, Literal, TypeAlias

import keras

from et_optimizer import checks
from et_optimizer.compilers.autodiff import loss_gradients
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
        found = loss_gradients(self.model, next(self._batches), variables)
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
