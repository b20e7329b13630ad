"""Take two steps with every optimizer: `python -m tests.steps_of_backend FILE`.

Writes the variables and the optimizers' state after each step, by name, to the .npz
FILE. The backend is that of the environment variable KERAS_BACKEND.
"""

import sys

import keras
import numpy as np
from keras import ops

from et_optimizer import Shampoo, SketchyShampoo
from tests.optimizers import OPTIMIZERS, in_float32
from tests.updates import take_step

# Their default ridge is so small that rounding shows in covariances of few gradients.
BY_DEFAULT = {"Shampoo()": Shampoo, "SketchyShampoo()": SketchyShampoo}
# A wide matrix, a vector, a scalar, and a tensor that momentum views as a tall matrix:
# both matrices have momentum of low rank, and Shampoo splits them into blocks.
SHAPES = [(7, 20), (5,), (), (2, 11, 8)]


def two_steps(make, shapes):
    """Step and name → value, for two steps on the same random gradients."""
    rng = np.random.default_rng(0)

    def draw():
        return [rng.standard_normal(shape).astype("float32") for shape in shapes]

    variables = [keras.Variable(v, name=f"variable_{i}") for i, v in enumerate(draw())]
    optimizer = in_float32(make)(learning_rate=0.1)
    optimizer.build(variables)
    found = {}
    for step in (1, 2):
        take_step(optimizer, [ops.convert_to_tensor(g) for g in draw()], variables)
        for v in [*variables, *optimizer.variables]:
            found[f"{step}: {v.name}"] = ops.convert_to_numpy(v)
    return found


def main(path):
    cases = {name: (make, SHAPES) for name, make in OPTIMIZERS.items()}
    cases |= {name: (make, SHAPES[:1]) for name, make in BY_DEFAULT.items()}
    found = {
        f"{name}: {key}": value
        for name, (make, shapes) in cases.items()
        for key, value in two_steps(make, shapes).items()
    }
    np.savez(path, **found)


if __name__ == "__main__":
    main(sys.argv[1])
