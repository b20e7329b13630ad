"""A callback that measures what a tensor index loses to AdaGrad."""

import functools
import math
from collections.abc import Sequence
from typing import Any

import numpy as np

from et_optimizer import checks, naming
from et_optimizer.callbacks.gradient_probe import EPOCH, Data, Frequency, GradientProbe
from et_optimizer.types import Level, Variable
from et_optimizer.views.tensor_index import TensorIndex, check_level


class PreconditionerQuality(GradientProbe):
    r"""Measures the factor that extreme tensoring loses to AdaGrad at each level.

    Let S_i be the slice sums of Σₜ gₜ² over T gradients. Extreme tensoring's
    preconditioner is H_T[I] = Π_i S_i[I_i]^(1/2p); AdaGrad's, Ĥ_T[I], is the square
    root of the entry's own sum. H_T is never smaller than Ĥ_T, and the regret bound of
    extreme tensoring is AdaGrad's times

        √(Tr H_T / Tr Ĥ_T) ≥ 1.

    The closer this factor is to 1, the less a level loses. The callback measures it for
    every variable and level, whatever optimizer trains the model. It logs
    `"<path>/level_<level>/trace_ratio"` for each variable, and
    `"level_<level>/trace_ratio"` for all variables, whose traces it adds. The values go
    into `History` and into the `logs` of later callbacks: put
    `keras.callbacks.TensorBoard` or `CSVLogger` after this one in the list.

    Cost: the callback stores the full accumulator that extreme tensoring avoids, one
    float64 per element of the chosen variables, 8·Σ d bytes of host memory, whatever
    the number of levels. Each measurement computes the gradient of the loss on one
    batch of `data`, in inference mode and uncompiled, which takes as long as a few
    training steps; and it reads the accumulator once per axis and level. Training does
    not change: the weights end up the same, bit for bit. A second `fit` of the same
    model continues with the sums of the first.

    Args:
        data: The data to compute gradients on: a batch `(x, y)` or `(x, y,
            sample_weight)`, or an iterable of batches such as a `tf.data.Dataset`. Each
            measurement takes the next batch and starts again at the end. With the
            training data the gradients resemble those of training.
        levels: Levels to compare, each 1, 2, 3, … or `"inf"`. Defaults to
            `(1, 2, 3, "inf")`.
        variables: A regular expression, searched for in the paths of the trainable
            variables. `None` takes all. Defaults to `None`.
        frequency: `"epoch"` to measure at the end of every epoch, or an integer n to
            measure after every n training batches, counted over all epochs. T is the
            number of measurements: more of them come closer to what an optimizer
            accumulates. Defaults to `"epoch"`.
        beta_2: Decay in [0, 1) of the sums from one measurement to the next, as in an
            optimizer with a moving average. `None` accumulates sums, as in the theorem.
            Defaults to `None`.

    Raises:
        ValueError: when constructed, if an argument is out of range; when training
            begins, or after the first batch if `fit` builds the model, if `variables`
            matches no variable.

    Example:

    ```python
    quality = et_optimizer.callbacks.PreconditionerQuality((x[:256], y[:256]))
    history = model.fit(x, y, epochs=5, callbacks=[quality])
    history.history["level_2/trace_ratio"]
    history.history["dense/kernel/level_2/trace_ratio"]
    ```

    Reference:
        [Chen, Agarwal, Hazan, Zhang, Zhang, 2020](https://arxiv.org/abs/1902.04620),
        Extreme Tensoring for Low-Memory Preconditioning, Sections 4 and 5.
    """

    requirement = "a trainable variable"

    def __init__(
        self,
        data: Data,
        levels: Sequence[Level] = (1, 2, 3, "inf"),
        variables: str | None = None,
        frequency: Frequency = EPOCH,
        beta_2: float | None = None,
    ):
        super().__init__(data, variables, frequency)
        checks.decay("beta_2", beta_2, or_none=True)
        self.levels = _checked_levels(levels)
        self.beta_2 = beta_2
        self._sums: dict[int, np.ndarray] = {}
        self._model_of_sums: Any = None

    def choose(self, trainable: Sequence[Variable]) -> list[tuple[Variable, int]]:
        """Chooses the variables whose paths match; a new model resets the sums."""
        if self._model_of_sums is not self.model:
            self._sums, self._model_of_sums = {}, self.model
        return [
            (variable, key)
            for key, variable in enumerate(trainable)
            if self.matches(variable) and math.prod(variable.shape)
        ]

    def add(self, variable: Variable, key: int, gradient: np.ndarray) -> None:
        """Adds the squares of a gradient to the sums."""
        decay = 1.0 if self.beta_2 is None else self.beta_2
        self._sums[key] = np.square(gradient) + decay * self._sums.get(key, 0.0)

    def statistics(self) -> dict[str, float]:
        """The trace ratios of all levels, by the names of their logs."""
        ratios = {}
        exact = {key: np.sqrt(sums).sum() for key, sums in self._sums.items()}
        for level in self.levels:
            tensored = {
                key: trace(sums, TensorIndex.from_shape(sums.shape, level))
                for key, sums in self._sums.items()
            }
            for variable, key in self._chosen:
                # The ratio is undefined until a gradient is not zero.
                if exact.get(key):
                    name = f"{naming.path(variable)}/level_{level}/trace_ratio"
                    ratios[name] = math.sqrt(tensored[key] / exact[key])
            total = sum(exact.values())
            if total:
                ratio = math.sqrt(sum(tensored.values()) / total)
                ratios[f"level_{level}/trace_ratio"] = ratio
        return ratios


def trace(sums: np.ndarray, index: TensorIndex) -> float:
    """The trace of extreme tensoring's preconditioner.

    The modes refine the axes, so Π_i S_i^(1/2p) is a product of one factor per axis,
    and the sum over all entries is the product of the axes' sums. Only vectors are
    formed, and the padding of each is left out.

    Args:
        sums: Σ g² for every entry of a variable.
        index: The variable's `TensorIndex`.

    Returns:
        Tr H.
    """
    power = 1.0 / (2.0 * index.order)
    if index.is_one_slice:
        return sums.size * math.sqrt(sums.sum())
    viewed = sums.reshape([axis.length for axis in index.axes])
    total = 1.0
    for number, axis in enumerate(index.axes):
        marginal = np.zeros(axis.cells)
        marginal[: axis.length] = _sum_except(viewed, number)
        grid = marginal.reshape(axis.modes)
        roots = [_sum_except(grid, mode) ** power for mode in range(grid.ndim)]
        factors = functools.reduce(np.multiply.outer, roots).ravel()
        total *= factors[: axis.length].sum()
    return float(total)


def _sum_except(array: np.ndarray, axis: int) -> np.ndarray:
    """The sums over all axes except one."""
    return array.sum(axis=tuple(i for i in range(array.ndim) if i != axis))


def _checked_levels(levels: Any) -> tuple[Level, ...]:
    is_sequence = hasattr(levels, "__iter__") and not isinstance(levels, str)
    found = tuple(levels) if is_sequence else ()
    if not found:
        raise ValueError(
            "levels must be a sequence of levels, at least one; received "
            f"levels={levels!r}. Use for example (1, 2, 3, 'inf')."
        )
    for level in found:
        check_level(level)
    return found
