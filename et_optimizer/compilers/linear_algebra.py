"""Matrix decompositions and products, as each backend and platform has them."""

from collections.abc import Callable

import keras
from keras import ops

from et_optimizer.types import Tensor


def eigh(matrix: Tensor) -> tuple[Tensor, Tensor]:
    """The eigenvalues of a symmetric matrix, ascending, and its eigenvectors."""
    if keras.backend.backend() != "torch":
        return ops.eigh(matrix)
    import torch

    try:
        return ops.eigh(matrix)
    # LAPACK's divide and conquer does not converge in float32 for some matrices with
    # mostly zero rows, such as those of a vocabulary in the first steps.
    except torch.linalg.LinAlgError:
        values, vectors = ops.eigh(ops.cast(matrix, "float64"))
        return ops.cast(values, matrix.dtype), ops.cast(vectors, matrix.dtype)


def in_fast_precision(function: Callable[[Tensor], Tensor], matrix: Tensor) -> Tensor:
    """A function of a float32 matrix, made of products that need not be precise.

    On GPUs and TPUs it is computed in bfloat16, whose products take a fraction of the
    time there; CPUs have no such products. TensorFlow does not know the platform while
    it traces: its products are in float32, or TF32 as it is set up.

    Args:
        function: Computes in its argument's dtype.
        matrix: A float32 tensor.

    Returns:
        A float32 tensor.
    """

    def in_bfloat16(matrix: Tensor) -> Tensor:
        return ops.cast(function(ops.cast(matrix, "bfloat16")), "float32")

    backend = keras.backend.backend()
    if backend == "jax":
        import jax

        return jax.lax.platform_dependent(matrix, cpu=function, default=in_bfloat16)
    if backend == "torch" and matrix.device.type == "cuda":
        return in_bfloat16(matrix)
    return function(matrix)
