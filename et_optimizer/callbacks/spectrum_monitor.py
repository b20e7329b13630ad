"""The spectra of Kronecker factors, measured while a model trains."""

import re
from collections.abc import Sequence

import keras
import numpy as np

from et_optimizer import checks, naming
from et_optimizer.callbacks.gradient_probe import (
    EPOCH,
    Data,
    Frequency,
    GradientProbe,
)
from et_optimizer.types import Level, Tensor, TensorIndices, Variable
from et_optimizer.views import gradients
from et_optimizer.views.tensor_index import (
    TensorIndex,
    check_level,
    check_overrides,
    index_variables,
)


class SpectrumMonitor(GradientProbe):
    """Measures how low-rank the covariances of Shampoo and Sketchy are on a model.

    Sketchy keeps ℓ eigenvectors of every Kronecker factor C_i, the decayed sum of
    G_(i) G_(i)ᵀ, where G_(i) is the unfolding of a gradient along mode i. That is a
    good bargain where the spectrum of C_i decays. Two numbers say so, for every mode of
    every variable chosen, under `logs["<path>/mode_<i>/…"]`:

    - `top_<rank>_mass`: the share of tr C_i in the `rank` largest eigenvalues, up to 1.
    - `intrinsic_dimension`: tr C_i / λ_max(C_i), from 1 to the mode's length.

    They go into `History`, and into the `logs` of callbacks that come after this one:
    put `keras.callbacks.TensorBoard`, `CSVLogger` or `WandbCallback` behind it in the
    list.

    What it costs. Each measurement computes the gradient of the loss on one batch of
    `data`, in inference mode, uncompiled: a few training steps' time, more on small
    models. For every mode of length d it multiplies the unfolding with its transpose
    and finds d eigenvalues in float64 on the host, O(d³): 0.1 s for d = 1024. It holds
    8·Σ d_i² bytes. Training itself is not touched: the weights end up the same, bit for
    bit.

    Args:
        data: What gradients are measured on: a batch `(x, y)` or `(x, y,
            sample_weight)`, or an iterable of batches such as a `tf.data.Dataset`, of
            which every measurement takes the next, from the start again at the end.
        variables: A regular expression, searched for in the paths of the trainable
            variables. `None` takes all that have two or more axes longer than 1 and
            whose modes are not longer than `longest_mode`. Defaults to `None`.
        rank: ℓ ≥ 1. Defaults to 32.
        frequency: `"epoch"` to measure at the end of every epoch, or an integer n to
            measure after every n batches of training instead, counted over all epochs.
            Defaults to `"epoch"`.
        decay: β in [0, 1): how much of the last measurement's covariance stays. 0 looks
            at one gradient alone. Defaults to 0.9.
        level, tensor_index, merge_axes: Which modes, as in
            `et_optimizer.SketchyShampoo`. Default to 1, `None` and `True`.
        longest_mode: See `variables`. Defaults to 2048.

    Raises:
        ValueError: when constructed, if an argument is out of its range; when training
            begins, or after the first batch where `fit` has yet to build the model,
            if `variables` matches no variable with modes to measure.

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
        self._covariances: dict[str, np.ndarray] = {}

    def take_in(self, variable: Variable, index: TensorIndex, gradient: Tensor) -> None:
        """Takes one more gradient into the covariances."""
        tensor = gradients.DenseGradient(gradient, index).as_tensor()
        tensor = keras.ops.convert_to_numpy(tensor).astype("float64")
        if not np.isfinite(tensor).all():
            return  # it would stay in the covariances
        for mode, length in enumerate(index.modes):
            if length > 1:
                self._take_in_mode(f"{naming.path(variable)}/mode_{mode}", tensor, mode)

    def choose(
        self, trainable: Sequence[Variable]
    ) -> list[tuple[Variable, TensorIndex]]:
        """Chooses matrices and tensors of modes that are not too long."""
        indices = index_variables(
            [(naming.path(v), tuple(v.shape)) for v in trainable],
            self.level,
            self.tensor_index,
            self.merge_axes,
        )
        chosen = [
            (variable, index)
            for variable, index in zip(trainable, indices)
            if self._is_chosen(naming.path(variable), index)
        ]
        if not chosen:
            paths = ", ".join(naming.path(v) for v in trainable)
            raise ValueError(
                "SpectrumMonitor needs a variable with two or more axes longer than 1; "
                f"received variables={self.variables!r}, which leaves none. The paths "
                f"of the variables are: {paths}. Match one of them, or raise "
                f"longest_mode={self.longest_mode}."
            )
        return chosen

    def _is_chosen(self, path: str, index: TensorIndex) -> bool:
        if self.variables is not None and not re.search(self.variables, path):
            return False
        long_axes = sum(length > 1 for length in index.shape)
        return long_axes > 1 and max(index.modes) <= self.longest_mode

    def _take_in_mode(self, name: str, tensor: np.ndarray, mode: int) -> None:
        rows = np.moveaxis(tensor, mode, 0).reshape(tensor.shape[mode], -1)
        last = self._covariances.get(name, 0.0)
        covariance = self._covariances[name] = self.decay * last + rows @ rows.T
        values = np.maximum(np.linalg.eigvalsh(covariance), 0.0)[::-1]
        trace = values.sum()
        if trace == 0.0:
            return
        mass, dimension = values[: self.rank].sum() / trace, trace / values[0]
        self._measured[f"{name}/top_{self.rank}_mass"] = float(mass)
        self._measured[f"{name}/intrinsic_dimension"] = float(dimension)
