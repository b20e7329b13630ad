"""`make fuzz`: a random search for NaN, and for refused steps that change something.

A seed determines a configuration: a class, its arguments, variables and gradients. For
every configuration the weights and the state stay finite, and a step that is refused
changes nothing.

    KERAS_BACKEND=jax python -m tests.fuzz 10000        # seeds 0 to 9999
    KERAS_BACKEND=jax python -m tests.fuzz 500 2000     # seeds 2000 to 2499
"""

import inspect
import sys
import warnings

import keras
import numpy as np
from keras import ops

import et_optimizer

CLASSES = ("ExtremeTensoring", "Muon", "SM3", "Adafactor", "SubsetNorm")
CLASSES += ("Shampoo", "SketchyShampoo", "SketchyAdagrad")
SHAPES = [(), (1,), (5,), (0, 3), (4, 3), (1, 7), (2, 3, 4), (2, 1, 3, 2)]
SHAPES += [(2, 2, 1, 2, 3), (1, 2, 2, 1, 2, 2), (12, 16), (9, 4, 8)]
CHOICES = {
    "level": [1, 2, 3, "inf"],
    "beta_1": [0.0, 0.9],
    "momentum": [0.0, 0.9],
    "beta_2": [None, 0.0, 0.9, 0.999],
    "epsilon": [0.0, 1e-8, 1.0],
    "combination": ["rank_one", "geometric"],
    "variant": ["I", "II"],
    "clip_threshold": [None, 1.0],
    "update_bound": [None, 3.0],
    "spike_threshold": [None, 3.0],
    "momentum_rank": ["auto", None, 0, 1],
    "momentum_dtype": ["float32", "bfloat16", "int8", "int4", "int3"],
    "orthogonalize": ["auto", True, "stack"],
    "stochastic_rounding": [True, False],
    "rate_scale": ["auto", None, 1e-30, 8.0],
    "refresh_every": [1, 3],
    "rank": [1, 3],
    "update_every": [1, 2],
    "graft": ["extreme_tensoring", "rmsprop", "sgd", None],
    "multiply_by_parameter_scale": [True, False],
}
KERAS_CHOICES = {
    "weight_decay": [None, 0.1],
    "clipnorm": [None, 1.0],
    "use_ema": [False, True],
    "gradient_accumulation_steps": [None, 2],
}
SCALES = [0.0, 1e-30, 1e-8, 1.0, 1e12, 1e18, 1e30, np.nan, np.inf]
DTYPES = ["float32", "bfloat16", "float16"]
# Compiled programs are discarded after this many seeds.
SEEDS_PER_CACHE = 200


def check(seed):
    """Takes a few steps with the configuration of a seed; raises if it fails."""
    rng = np.random.default_rng(seed)

    def one_of(choices):
        return choices[rng.integers(len(choices))]

    make = getattr(et_optimizer, one_of(CLASSES))
    own = inspect.signature(make).parameters
    choices = {name: values for name, values in CHOICES.items() if name in own}
    choices |= KERAS_CHOICES
    arguments = {
        name: one_of(values) for name, values in choices.items() if rng.random() < 0.5
    }
    dtype = one_of(DTYPES)
    shapes = SHAPES
    if arguments.keys() & {"use_ema", "gradient_accumulation_steps"}:
        # On TensorFlow Keras 3.15 cannot add to a matrix without rows.
        shapes = [shape for shape in SHAPES if 0 not in shape]
    variables = [
        keras.Variable(np.ones(one_of(shapes), "float32"), dtype=dtype)
        for _ in range(rng.integers(1, 3))
    ]
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        optimizer = make(learning_rate=1e-3, **arguments)
    optimizer.build(variables)
    for _ in range(6):
        step = [gradient(rng, tuple(v.shape), dtype, one_of(SCALES)) for v in variables]
        optimizer.apply(step, variables)
        for variable in [*variables, *slots(optimizer)]:
            value = ops.convert_to_numpy(ops.cast(variable, "float32"))
            assert np.all(np.isfinite(value)), f"{make.__name__} {arguments} {dtype}"
    before = [ops.convert_to_numpy(ops.cast(v, "float32")) for v in variables]
    wrong = [ops.ones((*v.shape, 2), dtype) for v in variables]
    try:
        optimizer.apply(wrong, variables)
    except ValueError:
        for value, variable in zip(before, variables):
            after = ops.convert_to_numpy(ops.cast(variable, "float32"))
            np.testing.assert_array_equal(value, after)
    else:
        raise AssertionError(f"{make.__name__} accepted gradients of the wrong shape")


def slots(optimizer):
    """All variables except Keras's gradient accumulators, which may contain NaN."""
    accumulators = getattr(optimizer, "_accumulated_gradients", None) or ()
    excluded = set(map(id, accumulators))
    return [v for v in optimizer.variables if id(v) not in excluded]


def gradient(rng, shape, dtype, scale):
    """A gradient of a scale, or with one entry of it; often sparse on TensorFlow."""
    values = rng.standard_normal(shape)
    if np.isfinite(scale) and rng.random() < 0.5:
        values = values * scale
    elif values.size:
        values = np.array(values)
        values.flat[rng.integers(values.size)] = scale
    with np.errstate(over="ignore"):
        values = ops.cast(values.astype("float32"), dtype)
    if keras.backend.backend() != "tensorflow" or not shape or rng.random() < 0.5:
        return values
    import tensorflow as tf

    rows = rng.integers(0, shape[0], rng.integers(0, 6)) if shape[0] else []
    rows = tf.constant(rows, tf.int64)
    return tf.IndexedSlices(tf.gather(values, rows), rows, shape)


def discard_programs():
    """Discards JAX's compiled programs, which it keeps for every shape."""
    if keras.backend.backend() == "jax":
        import jax

        jax.clear_caches()


def main():
    from rich.progress import track

    count, first = [*map(int, sys.argv[1:]), 0][:2]
    checked, failed = 0, []
    try:
        for seed in track(range(first, first + count), keras.backend.backend()):
            try:
                check(seed)
            except Exception as error:
                failed.append(seed)
                print(f"seed {seed}: {type(error).__name__}: {str(error)[:300]}")
            checked += 1
            if checked % SEEDS_PER_CACHE == 0:
                discard_programs()
    except KeyboardInterrupt:
        rest = f"{count - checked} {first + checked}"
        name = keras.backend.backend()
        print(f"To continue: KERAS_BACKEND={name} python -m tests.fuzz {rest}")
    print(f"{checked} seeds from {first} on; {len(failed)} failed: {failed}")
    sys.exit(bool(failed))


if __name__ == "__main__":
    main()
