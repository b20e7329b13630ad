"""Keras's clipping by norm, without a copy of the gradients."""

from collections.abc import Sequence

from keras import ops

from et_optimizer.compilers.reductions import sum_of_squares
from et_optimizer.compilers.tracing import is_jax_program
from et_optimizer.types import KerasOptimizer, Tensor
from et_optimizer.views.formats import ScaledTensor
from et_optimizer.views.gradients import is_sparse


class Clipping(KerasOptimizer):
    """Mixed into a Keras optimizer: in a JAX program, clipping copies no gradient."""

    def _clip_gradients(self, grads: Sequence[Tensor]) -> Sequence[Tensor]:
        """The clipped gradients; see the base."""
        is_per_variable = self.clipnorm is not None and self.clipnorm > 0
        limit = self.clipnorm if is_per_variable else self.global_clipnorm
        can_scale = not any(is_sparse(g) or not is_jax_program(g) for g in grads)
        if not can_scale or limit is None or limit <= 0:
            return super()._clip_gradients(grads)
        norms = [ops.sqrt(sum_of_squares(gradient)) for gradient in grads]
        if not is_per_variable:
            total = ops.sqrt(sum(ops.square(norm) for norm in norms))
            # NaN if it is not finite: then no variable takes a step.
            norms = [total + (total - total)] * len(grads)
        return [
            ScaledTensor(gradient, limit / ops.maximum(norm, limit))
            for gradient, norm in zip(grads, norms)
        ]
