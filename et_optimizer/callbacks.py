"""Callbacks that look at what the optimizers' theories are about."""

import re

import keras
import numpy as np

from et_optimizer import checks, gradients, naming
from et_optimizer.tensor_index import (
    check_level,
    check_overrides,
    index_variables,
)

EPOCH = "epoch"


class SpectrumMonitor(keras.callbacks.Callback):
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
            begins, if `variables` matches no variable with modes to measure.

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
        data,
        variables=None,
        rank=32,
        frequency=EPOCH,
        decay=0.9,
        level=1,
        tensor_index=None,
        merge_axes=True,
        longest_mode=2048,
    ):
        super().__init__()
        _check_pattern(variables)
        checks.whole("rank", rank, 1)
        if frequency != EPOCH:
            checks.whole("frequency", frequency, 1, otherwise=repr(EPOCH))
        checks.decay("decay", decay)
        check_level(level)
        check_overrides(tensor_index)
        checks.boolean("merge_axes", merge_axes)
        checks.whole("longest_mode", longest_mode, 1)
        self.data = data
        self.variables = variables
        self.rank = rank
        self.frequency = frequency
        self.decay = decay
        self.level = level
        self.tensor_index = tensor_index
        self.merge_axes = merge_axes
        self.longest_mode = longest_mode
        self._batches = _endless(data)
        self._chosen = []
        self._covariances = {}
        self._measured = {}
        self._seen = 0
        self._next_batch = 0

    def on_train_begin(self, logs=None):
        """Chooses the variables."""
        self._chosen = self._choose(self.model.trainable_variables)

    def on_epoch_begin(self, epoch, logs=None):
        """Batches are numbered anew."""
        self._next_batch = 0

    def on_train_batch_end(self, batch, logs=None):
        """Measures, where the batch is one to measure after."""
        before = self._seen
        # With `steps_per_execution` several batches end at once.
        self._seen += batch + 1 - self._next_batch
        self._next_batch = batch + 1
        if self.frequency != EPOCH:
            if self._seen // self.frequency > before // self.frequency:
                self.measure()
        if logs is not None:
            logs.update(self._measured)

    def on_epoch_end(self, epoch, logs=None):
        """Measures, and logs."""
        if self.frequency == EPOCH:
            self.measure()
        if logs is not None:
            logs.update(self._measured)

    def measure(self):
        """Takes one more gradient into the covariances.

        Returns:
            A dict from the names of the logs to floats.
        """
        variables = [variable for variable, _ in self._chosen]
        found = _gradients(self.model, next(self._batches), variables)
        for (variable, index), gradient in zip(self._chosen, found):
            if gradient is None:
                continue
            tensor = gradients.DenseGradient(gradient, index).as_tensor()
            tensor = keras.ops.convert_to_numpy(tensor).astype("float64")
            if not np.isfinite(tensor).all():
                continue  # it would stay in the covariances
            for mode, length in enumerate(index.modes):
                if length > 1:
                    self._take_in(f"{naming.path(variable)}/mode_{mode}", tensor, mode)
        return dict(self._measured)

    def _choose(self, trainable):
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

    def _is_chosen(self, path, index):
        if self.variables is not None and not re.search(self.variables, path):
            return False
        long_axes = sum(length > 1 for length in index.shape)
        return long_axes > 1 and max(index.modes) <= self.longest_mode

    def _take_in(self, name, tensor, mode):
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


def _check_pattern(variables):
    try:
        re.compile(variables or "")
    except (re.error, TypeError) as error:
        raise ValueError(
            "variables must be None or a regular expression on variable paths; "
            f"received variables={variables!r} ({error})."
        ) from None


def _endless(data):
    """Batches without end, from one batch or an iterable of them."""
    is_batch = isinstance(data, tuple) and len(data) in (2, 3)
    while True:
        yielded = False
        for batch in [data] if is_batch else data:
            yielded = True
            yield keras.utils.unpack_x_y_sample_weight(batch)
        if not yielded:
            raise ValueError(
                "SpectrumMonitor's data has no batch. Give a tuple (x, y), or an "
                "iterable of such tuples that can be gone through again."
            )


def _gradients(model, batch, variables):
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


def _loss(model, batch, state=()):
    x, y, sample_weight = batch
    with keras.StatelessScope(state_mapping=list(state)):
        predictions = model(x, training=False)
        return model.compute_loss(
            x=x, y=y, y_pred=predictions, sample_weight=sample_weight, training=False
        )


def _tensorflow_gradients(model, batch, variables):
    import tensorflow as tf

    with tf.GradientTape() as tape:
        loss = _loss(model, batch)
    found = tape.gradient(loss, [variable.value for variable in variables])
    return [None if g is None else tf.convert_to_tensor(g) for g in found]


def _jax_gradients(model, batch, variables):
    import jax

    # While `fit` runs, the values are in its own state.
    model.jax_state_sync()
    values = [variable.value for variable in variables]
    return jax.grad(lambda new: _loss(model, batch, zip(variables, new)))(values)


def _torch_gradients(model, batch, variables):
    import torch

    values = [variable.value for variable in variables]
    return torch.autograd.grad(_loss(model, batch), values, allow_unused=True)
