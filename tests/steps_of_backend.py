"""What every optimizer does in two steps: `python -m tests.steps_of_backend FILE`.

Writes the variables and what is held for them after each, by name, to the .npz FILE.
The backend is that of the environment variable KERAS_BACKEND.
"""

import sys

import keras
import numpy as np
from keras import ops

from et_optimizer import Shampoo, SketchyShampoo
from tests.optimizers import OPTIMIZERS, in_float32
from tests.updates import take_step

# With a ridge so small that rounding shows in the covariances of few gradients.
BY_DEFAULT = {"Shampoo()": Shampoo, "SketchyShampoo()": SketchyShampoo}
SHAPES = [(6, 8), (5,), (), (11, 4, 3), (20, 3)]


def two_steps(make):
    """The values by step and name in two steps on the same random gradients."""
    rng = np.random.default_rng(0)

    def draw():
        return [rng.standard_normal(shape).astype("float32") for shape in SHAPES]

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
    found = {
        f"{name}: {of}": value
        for name, make in (OPTIMIZERS | BY_DEFAULT).items()
        for of, value in two_steps(make).items()
    }
    np.savez(path, **found)


if __name__ == "__main__":
    main(sys.argv[1])
