"""Matrix decompositions, with each backend's failures handled."""

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
