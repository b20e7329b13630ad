"""What a tensor index costs, measured while a model trains."""

import math
import re
from collections.abc import Sequence
from typing import Any

import keras
import numpy as np

from et_optimizer import checks, naming
from et_optimizer.callbacks.gradient_probe import (
    EPOCH,
    Data,
    Frequency,
    GradientProbe,
)
from et_optimizer.types import Level, Tensor, Variable
from et_optimizer.views.tensor_index import TensorIndex, check_level


class PreconditionerQuality(GradientProbe):
    r"""Measures the factor that extreme tensoring loses to AdaGrad, level by level.

    With S_i the slice sums of Σₜ gₜ² over T gradients, extreme tensoring's
    preconditioner is H_T[I] = Π_i S_i[I_i]^(1/2p), and AdaGrad's, Ĥ_T[I], the root of
    the entry's own sum. H_T is never the smaller one, and the regret bound of extreme
    tensoring is AdaGrad's times

        √(Tr H_T / Tr Ĥ_T) ≥ 1.

    The closer to 1, the less a level gives up. This callback measures the factor for
    every variable and level, whatever optimizer trains the model, under
    `logs["<path>/level_<level>/trace_ratio"]`, and for all variables together, their
    traces added up, under `logs["level_<level>/trace_ratio"]`. They go into `History`,
    and into the `logs` of callbacks that come after this one: put
    `keras.callbacks.TensorBoard` or `CSVLogger` behind it in the list.

    What it costs. It holds the true accumulator that extreme tensoring avoids: one
    float64 a weight of the chosen variables, 8·Σ d bytes, in the host's memory,
    whatever the number of levels. Each measurement computes the gradient of the loss on
    one batch of `data`, in inference mode, uncompiled: a few training steps' time; and
    reads the accumulator once for every axis and level. Training itself is not touched:
    the weights end up the same, bit for bit. A second `fit` of the same model goes on
    with the sums of the first.

    Args:
        data: What gradients are measured on: a batch `(x, y)` or `(x, y,
            sample_weight)`, or an iterable of batches such as a `tf.data.Dataset`, of
            which every measurement takes the next, from the start again at the end.
            With the training data, the gradients are such as training sees.
        levels: Levels to compare, each 1, 2, 3, … or `"inf"`. Defaults to
            `(1, 2, 3, "inf")`.
        variables: A regular expression, searched for in the paths of the trainable
            variables. `None` takes all. Defaults to `None`.
        frequency: `"epoch"` to measure at the end of every epoch, or an integer n to
            measure after every n batches of training instead, counted over all epochs.
            T is the number of measurements: the more, the closer to what the optimizer
            itself sees. Defaults to `"epoch"`.
        beta_2: Decay in [0, 1) of the sums from one measurement to the next, as in an
            optimizer with a moving average; `None` adds up, as the theorem does.
            Defaults to `None`.

    Raises:
        ValueError: when constructed, if an argument is out of its range; when training
            begins, or after the first batch where `fit` has yet to build the model,
            if `variables` matches no variable.

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
        """Chooses the variables whose paths match; begins anew for another model."""
        if self._model_of_sums is not self.model:
            self._sums, self._model_of_sums = {}, self.model
        chosen = [
            (variable, index)
            for index, variable in enumerate(trainable)
            if re.search(self.variables or "", naming.path(variable))
            and math.prod(variable.shape)
        ]
        if not chosen:
            paths = ", ".join(naming.path(v) for v in trainable)
            raise ValueError(
                "PreconditionerQuality needs a trainable variable; received "
                f"variables={self.variables!r}, which matches none. The paths of the "
                f"variables are: {paths}."
            )
        return chosen

    def take_in(self, variable: Variable, index: int, gradient: Tensor) -> None:
        """Takes one more gradient into the sums of squares."""
        values = keras.ops.convert_to_numpy(gradient).astype("float64")
        if not np.isfinite(values).all():
            return  # it would stay in the sums
        np.square(values, out=values)
        if index in self._sums:
            decay = 1.0 if self.beta_2 is None else self.beta_2
            values += decay * self._sums[index]
        self._sums[index] = values

    def measured(self) -> dict[str, float]:
        """The trace ratios of all levels, by the names of their logs."""
        ratios = {}
        exact = {key: np.sqrt(sums).sum() for key, sums in self._sums.items()}
        for level in self.levels:
            tensored = {
                key: trace(sums, TensorIndex.from_shape(sums.shape, level))
                for key, sums in self._sums.items()
            }
            for variable, key in self._chosen:
                # A variable without any gradient has no preconditioner.
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

    The modes refine the axes, so an entry's Π_i S_i^(1/2p) is a product of one number
    an axis, and the sum over all entries is the product of the axes' sums: only vectors
    are made, and the padding is left out of each.

    Args:
        sums: NumPy array of Σ g² for every entry of a variable.
        index: The `TensorIndex`.

    Returns:
        Tr H, a float.
    """
    power = 1.0 / (2.0 * index.order)
    if index.is_one_slice:
        return sums.size * math.sqrt(sums.sum())
    lengths = [axis.length for axis in index.axes]
    viewed = sums.reshape(lengths)
    total = 1.0
    for number, axis in enumerate(index.axes):
        others = tuple(i for i in range(len(lengths)) if i != number)
        marginal = np.zeros(axis.cells)
        marginal[: axis.length] = viewed.sum(axis=others)
        total *= _positions(marginal.reshape(axis.modes), power)[: axis.length].sum()
    return float(total)


def _positions(grid: np.ndarray, power: float) -> np.ndarray:
    """For each position of an axis, the product over its slices' sums to a power."""
    vectors = [
        grid.sum(axis=tuple(i for i in range(grid.ndim) if i != mode)) ** power
        for mode in range(grid.ndim)
    ]
    product = np.ones(())
    for vector in vectors:
        product = np.multiply.outer(product, vector)
    return product.ravel()


def _checked_levels(levels: Any) -> tuple[Level, ...]:
    if isinstance(levels, str) or not hasattr(levels, "__iter__"):
        found = ()
    else:
        found = tuple(levels)
    if not found:
        raise ValueError(
            "levels must be a sequence of levels, at least one; received "
            f"levels={levels!r}. Use for example (1, 2, 3, 'inf')."
        )
    for level in found:
        check_level(level)
    return found
