"""The base of callbacks that measure gradients while a model trains."""

import re
from collections.abc import Iterable, Iterator, Sequence
from typing import Any, Final, Literal, TypeAlias

import keras
import numpy as np

from et_optimizer import checks, naming
from et_optimizer.compilers.autodiff import loss_gradients
from et_optimizer.types import Variable

EPOCH: Final = "epoch"
# `(x, y)` or `(x, y, sample_weight)`: arrays or nested structures of arrays.
Batch: TypeAlias = tuple[Any, Any] | tuple[Any, Any, Any]
Data: TypeAlias = Batch | Iterable[Any]
Frequency: TypeAlias = int | Literal["epoch"]
Logs: TypeAlias = dict[str, Any] | None


class GradientProbe(keras.callbacks.Callback):
    """A callback that measures gradients at regular intervals and logs statistics.

    A subclass implements `choose`, `add` and `statistics`, and says in `requirement`
    what kind of variable it measures.

    Args:
        data: A batch `(x, y)` or `(x, y, sample_weight)`, or an iterable of batches.
            Each measurement takes the next batch and starts again at the end.
        variables: A regular expression, searched for in the paths of the trainable
            variables. `None` matches all.
        frequency: `"epoch"`, or the number of training batches between measurements.

    Raises:
        ValueError: when constructed, if `variables` is not a regular expression or
            `frequency` is out of range.
    """

    requirement: str

    def __init__(self, data: Data, variables: str | None, frequency: Frequency):
        super().__init__()
        _check_pattern(variables)
        if frequency != EPOCH:
            checks.whole("frequency", frequency, 1, otherwise=repr(EPOCH))
        self.data = data
        self.variables = variables
        self.frequency = frequency
        self._batches = _endless(data, type(self).__name__)
        self._chosen: list[tuple[Variable, Any]] = []
        self._measured: dict[str, float] = {}
        self._batches_seen = 0
        self._next_batch = 0

    def choose(self, trainable: Sequence[Variable]) -> list[tuple[Variable, Any]]:
        """The variables to measure, as pairs `(variable, what to give to `add`)`."""
        raise NotImplementedError

    def add(self, variable: Variable, key: Any, gradient: np.ndarray) -> None:
        """Adds one gradient, in float64 and without NaN or infinity."""
        raise NotImplementedError

    def statistics(self) -> dict[str, float]:
        """The statistics of the gradients so far, by the names of their logs."""
        raise NotImplementedError

    def matches(self, variable: Variable) -> bool:
        """Whether `variables` matches a variable's path."""
        return re.search(self.variables or "", naming.path(variable)) is not None

    def on_train_begin(self, logs: Logs = None) -> None:
        """Chooses the variables if the model has been built."""
        self._chosen = self._choose() if self.model.built else []

    def on_epoch_begin(self, epoch: int, logs: Logs = None) -> None:
        """Keras numbers batches from 0 in each epoch."""
        self._next_batch = 0

    def on_train_batch_end(self, batch: int, logs: Logs = None) -> None:
        """Measures after every `frequency` batches."""
        self._chosen = self._chosen or self._choose()
        before = self._batches_seen
        # With `steps_per_execution` several batches end at once.
        self._batches_seen += batch + 1 - self._next_batch
        self._next_batch = batch + 1
        self._log(
            logs,
            self.frequency != EPOCH
            and self._batches_seen // self.frequency > before // self.frequency,
        )

    def on_epoch_end(self, epoch: int, logs: Logs = None) -> None:
        """Measures if `frequency` is `"epoch"`."""
        self._log(logs, self.frequency == EPOCH)

    def measure(self) -> dict[str, float]:
        """Measures the gradient of the next batch.

        Returns:
            A dict from the names of the logs to floats.
        """
        variables = [variable for variable, _ in self._chosen]
        gradients = loss_gradients(self.model, next(self._batches), variables)
        for (variable, key), gradient in zip(self._chosen, gradients):
            if gradient is not None:
                array = keras.ops.convert_to_numpy(gradient).astype("float64")
                # NaN and infinity would stay in the running sums.
                if np.isfinite(array).all():
                    self.add(variable, key, array)
        self._measured = self.statistics()
        return dict(self._measured)

    def _log(self, logs: Logs, is_due: bool) -> None:
        if is_due:
            self.measure()
        if logs is not None:
            logs.update(self._measured)

    def _choose(self) -> list[tuple[Variable, Any]]:
        trainable = self.model.trainable_variables
        chosen = self.choose(trainable)
        if not chosen:
            raise ValueError(
                f"{type(self).__name__} needs {self.requirement}; received "
                f"variables={self.variables!r}, which leaves none. The paths of the "
                f"trainable variables are: {', '.join(map(naming.path, trainable))}."
            )
        return chosen


def _check_pattern(variables: Any) -> None:
    try:
        re.compile(variables or "")
    except (re.error, TypeError) as error:
        raise ValueError(
            "variables must be None or a regular expression on variable paths; "
            f"received variables={variables!r} ({error})."
        ) from None


def _endless(data: Data, callback: str) -> Iterator[Batch]:
    """Repeats one batch or an iterable of batches without end."""
    is_batch = isinstance(data, tuple) and len(data) in (2, 3)
    while True:
        is_empty = True
        for batch in [data] if is_batch else data:
            is_empty = False
            yield keras.utils.unpack_x_y_sample_weight(batch)
        if is_empty:
            raise ValueError(
                f"{callback}'s data has no batch. Give a tuple (x, y), or an "
                "iterable of such tuples that can be iterated over again."
            )
