"""Muon (Jordan et al., 2024), with a momentum of updates in few bits."""

import math
from collections.abc import Mapping
from dataclasses import InitVar, field
from typing import Any, Literal

import keras

from et_optimizer import checks
from et_optimizer.momenta import Momentum
from et_optimizer.momenta.selection import polar
from et_optimizer.optimizers.extreme_tensoring import ExtremeTensoringRule
from et_optimizer.optimizers.learning_rates import token_paths
from et_optimizer.optimizers.levels import LevelledOptimizer
from et_optimizer.types import (
    ByPath,
    LearningRate,
    NamedShapes,
    Orthogonalize,
    RateScale,
    Shape,
)
from et_optimizer.views.tensor_index import matrix_shape, values_by_path

AUTO, STACK = "auto", "stack"


@keras.saving.register_keras_serializable(package="et_optimizer")
class Muon(LevelledOptimizer):
    r"""Optimizer that implements Muon, with a momentum of 4 or 3 bits per entry.

    Muon subtracts the polar factor of a momentum: all singular values of a kernel's
    update are made equal. Here the momentum averages updates of extreme tensoring at
    level 1 rather than gradients, and is stored in few bits. For the m × n kernel of a
    hidden layer:

        u = min(max(rank-one update of ExtremeTensoring, −b), b)
        M ← β₁ M̂ + (1 − β₁) u,   N = β₁ M + (1 − β₁) u
        x ← x − η · 0.2 √max(m, n) · U Vᵀ,   N = U Σ Vᵀ

    M̂ is M as it is stored: in `"int4"` or `"int3"` with subtractive dither, so that
    its error has mean 0. b is `update_bound`, which also bounds the entries of the step
    over η. The polar factor U Vᵀ comes from two steps of Newton–Schulz iteration, which
    make singular values about 1 (0.6 to 1.4) rather than exactly 1. Its scale gives the
    update about the size of Adam's (Liu et al., 2025).

    Embeddings, the output projection (LM head) and vectors are updated as by
    `ExtremeTensoring(beta_1=…, beta_2=…)`, with momentum of low rank: `momentum_rank`
    is for them.

    Memory, besides Keras's iteration and learning rate and one int32 per variable that
    counts skipped steps: for the m × n kernel of a hidden layer m·n/2 bytes in int4 or
    3·m·n/8 in int3, 8 bytes for the scale and the seed of the dither, and 4·(m + n) for
    the statistics; for all other variables as `ExtremeTensoring`, where momentum in a
    subspace is in int8 and that of vectors in bfloat16. For a 2000 × 512 kernel in
    int4: 512 008 + 10 048 bytes, 6.4% of Adam's 8 192 000.

    Args:
        learning_rate: A float, a `keras.optimizers.schedules.LearningRateSchedule`,
            or a callable without arguments that returns the learning rate. Learning
            rates are on Adam's scale, except for embeddings; see `rate_scale`. Defaults
            to 0.002.
        beta_1: Decay in [0, 1) of the moving averages of updates (momentum). 0 keeps no
            momentum: the polar factor is that of the update. Defaults to 0.95.
        beta_2: Decay in [0, 1) of a bias-corrected moving average of the squared
            gradients; `None` accumulates them. Defaults to 0.99.
        orthogonalize: Which variables get the polar factor. `"auto"`: those of two or
            more axes whose own name contains "kernel", as in Keras's layers, except for
            the output projection, as `rate_scale` recognizes it, and for depthwise
            convolutions. More than two axes are split into rows and columns where these
            are fewest. `True` or `False`; or `"stack"` for a variable whose first axis
            stacks kernels, such as those of experts, each of which gets its own. Or a
            dict from regular expressions on paths to these; variables that no
            expression matches get `"auto"`. A variable that is no matrix, or no stack
            of matrices, never gets it.

    Raises:
        ValueError: when constructed, if an argument is out of its range; when
            built, if an argument by path does not fit the variables or a variable is
            not floating-point; when state is loaded, if it has another momentum; and as
            `nonfinite` says. No weight has been changed then.

    Compute: for a kernel with k = min(m, n), two steps of 4·m·n·k + 2·k³ operations,
    next to the 6·m·n·B of a training step on B tokens.

    Example:

    ```python
    model.compile(optimizer=et_optimizer.Muon(), loss=loss)
    model.fit(dataset)

    # Less memory still, and no polar factor for a classifier's last layer.
    et_optimizer.Muon(momentum_dtype="int3", orthogonalize={"predictions": False})
    ```

    Reference:
        - [Jordan et al., 2024](https://kellerjordan.github.io/posts/muon/), Muon: An
          optimizer for hidden layers in neural networks.
        - [Liu et al., 2025](https://arxiv.org/abs/2502.16982), Muon is Scalable for LLM
          Training, for the scale.
        - [Schuchman, 1964](https://doi.org/10.1109/TCOM.1964.1088973), Dither Signals
          and Their Effect on Quantization Noise.
    """

    rule = ExtremeTensoringRule
    slot_argument_names = ("level", "tensor_index", "orthogonalize")

    learning_rate: InitVar[LearningRate] = field(default=0.002, kw_only=False)
    beta_1: float = 0.95
    beta_2: float | None = 0.99
    momentum_dtype: Literal["float32", "bfloat16", "int8", "int4", "int3"] = "int4"
    orthogonalize: ByPath[Orthogonalize] = "auto"
    update_bound: float | None = 3.0
    rate_scale: ByPath[RateScale] = "auto"

    @classmethod
    def check_arguments(cls, given: Mapping[str, Any]) -> None:
        """Raises `ValueError` for a bad value; see the base."""
        super().check_arguments(given)
        for one in values_by_path("orthogonalize", given["orthogonalize"]):
            checks.choice("orthogonalize", one, (AUTO, True, False, STACK))

    def momenta(self, named_shapes: NamedShapes) -> list[Momentum]:
        """The polar factor for the kernels of hidden layers; see the base."""
        given = self.by_path("orthogonalize", named_shapes)
        of_tokens = token_paths(named_shapes)

        def own(
            path: str, shape: Shape, one: Orthogonalize, momentum: Momentum
        ) -> Momentum:
            stack = shape[:1] if one == STACK else ()
            is_left_out = path in of_tokens or not _is_kernel(path)
            if one is False or (one == AUTO and is_left_out) or math.prod(shape) == 0:
                return momentum
            if matrix_shape(shape[len(stack) :]) is None:
                return momentum
            return polar(shape, len(stack), self.momentum_dtype, self.beta_1)

        momenta = super().momenta(named_shapes)
        return [
            own(*named, one, momentum)
            for named, one, momentum in zip(named_shapes, given, momenta)
        ]


def _is_kernel(path: str) -> bool:
    """Whether a variable is a kernel of a Keras layer that mixes its channels."""
    return "kernel" in path.rpartition("/")[2] and "depthwise" not in path
