"""A callback that measures the spectra of Kronecker factors."""

from collections.abc import Sequence

import numpy as np

from et_optimizer import checks, naming
from et_optimizer.callbacks.gradient_probe import EPOCH, Data, Frequency, GradientProbe
from et_optimizer.types import Level, TensorIndices, Variable
from et_optimizer.views.tensor_index import (
    TensorIndex,
    check_level,
    check_overrides,
    index_variables,
)


class SpectrumMonitor(GradientProbe):
    """Measures how low-rank the covariances of Shampoo and Sketchy are on a model.

    Sketchy keeps ℓ eigenvectors of every Kronecker factor C_i, the decayed sum of
    G_(i) G_(i)ᵀ, where G_(i) is the unfolding of a gradient along mode i. This loses
    little if the spectrum of C_i decays fast. Two statistics show whether it does, for
    every mode of every chosen variable, logged as `"<path>/mode_<i>/…"`:

    - `top_<rank>_mass`: the share of tr C_i in the `rank` largest eigenvalues, up to 1.
    - `intrinsic_dimension`: tr C_i / λ_max(C_i), from 1 to the mode's length.

    The values go into `History` and into the `logs` of later callbacks: put
    `keras.callbacks.TensorBoard`, `CSVLogger` or `WandbCallback` after this one in the
    list.

    Cost: each measurement computes the gradient of the loss on one batch of `data`, in
    inference mode and uncompiled, which takes as long as a few training steps, or more
    on small models. For every mode of length d it multiplies the unfolding by its
    transpose and computes d eigenvalues in float64 on the host, O(d³): 0.1 s for
    d = 1024. It stores 8·Σ d_i² bytes. Training does not change: the weights end up the
    same, bit for bit.

    Args:
        data: The data to compute gradients on: a batch `(x, y)` or `(x, y,
            sample_weight)`, or an iterable of batches such as a `tf.data.Dataset`. Each
            measurement takes the next batch and starts again at the end.
        variables: A regular expression, searched for in the paths of the trainable
            variables. `None` matches all. Of those that match, the callback measures
            the ones that have two or more axes longer than 1 and no mode longer than
            `longest_mode`. Defaults to `None`.
        rank: ℓ ≥ 1. Defaults to 32.
        frequency: `"epoch"` to measure at the end of every epoch, or an integer n to
            measure after every n training batches, counted over all epochs. Defaults to
            `"epoch"`.
        decay: β in [0, 1), the factor that multiplies the covariance at each
            measurement before the new one is added. With 0 each measurement is of one
            gradient. Defaults to 0.9.
        level, tensor_index, merge_axes: The modes, as in `et_optimizer.SketchyShampoo`.
            Default to 1, `None` and `True`.
        longest_mode: See `variables`. Defaults to 2048.

    Raises:
        ValueError: when constructed, if an argument is out of range; when training
            begins, or after the first batch if `fit` builds the model, if `variables`
            matches no variable that can be measured.

    Example:

    ```python
    monitor = et_optimizer.callbacks.SpectrumMonitor((x[:256], y[:256]), rank=32)
    history = model.fit(x, y, epochs=5, callbacks=[monitor])
    history.history["dense/kernel/mode_0/top_32_mass"]
    ```

    Reference:
        [Feinberg, Chen, Sun, Anil, Hazan, 2023](https://arxiv.org/abs/2302.03764),
        Sketchy: Memory-efficient Adaptive Regularization with Frequent Directions,
        Section 5.2.
    """

    def __init__(
        self,
        data: Data,
        variables: str | None = None,
        rank: int = 32,
        frequency: Frequency = EPOCH,
        decay: float = 0.9,
        level: Level = 1,
        tensor_index: TensorIndices = None,
        merge_axes: bool = True,
        longest_mode: int = 2048,
    ):
        super().__init__(data, variables, frequency)
        checks.whole("rank", rank, 1)
        checks.decay("decay", decay)
        check_level(level)
        check_overrides(tensor_index)
        checks.boolean("merge_axes", merge_axes)
        checks.whole("longest_mode", longest_mode, 1)
        self.rank = rank
        self.decay = decay
        self.level = level
        self.tensor_index = tensor_index
        self.merge_axes = merge_axes
        self.longest_mode = longest_mode
        self.requirement = (
            "a variable with two or more axes longer than 1 and no mode longer than "
            f"longest_mode={longest_mode}"
        )
        self._covariances: dict[str, np.ndarray] = {}

    def choose(
        self, trainable: Sequence[Variable]
    ) -> list[tuple[Variable, TensorIndex]]:
        """Chooses matrices and tensors whose modes are not too long."""
        indices = index_variables(
            [(naming.path(v), tuple(v.shape)) for v in trainable],
            [self.level] * len(trainable),
            self.tensor_index,
            self.merge_axes,
        )
        return [
            (variable, index)
            for variable, index in zip(trainable, indices)
            if self.matches(variable)
            and sum(length > 1 for length in index.shape) > 1
            and 1 < max(index.modes, default=0) <= self.longest_mode
        ]

    def add(self, variable: Variable, key: TensorIndex, gradient: np.ndarray) -> None:
        """Adds a gradient to the covariances of its modes."""
        gradient = gradient.reshape([axis.length for axis in key.axes])
        padding = [(0, axis.cells - axis.length) for axis in key.axes]
        tensor = np.pad(gradient, padding).reshape(key.modes)
        for mode, length in enumerate(key.modes):
            if length > 1:
                name = f"{naming.path(variable)}/mode_{mode}"
                unfolding = np.moveaxis(tensor, mode, 0).reshape(length, -1)
                last = self.decay * self._covariances.get(name, 0.0)
                self._covariances[name] = last + unfolding @ unfolding.T

    def statistics(self) -> dict[str, float]:
        """The spectra's statistics, by the names of their logs."""
        found = {}
        for name, covariance in self._covariances.items():
            values = np.maximum(np.linalg.eigvalsh(covariance), 0.0)[::-1]
            trace = values.sum()
            if trace > 0.0:
                mass = float(values[: self.rank].sum() / trace)
                found[f"{name}/top_{self.rank}_mass"] = mass
                found[f"{name}/intrinsic_dimension"] = float(trace / values[0])
        return found
