"""Stochastic rounding of 16-bit weights, and that it changes nothing else."""

import functools

import keras
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from keras import ops

import et_optimizer
from et_optimizer import random_bits
from et_optimizer.compilers.bits import positions
from et_optimizer.optimizers import rounding
from tests.optimizers import ONE_OF_EACH, OPTIMIZERS
from tests.reference import stochastic_rounding as reference
from tests.updates import compiled

DTYPES = ("bfloat16", "float16")
BACKEND = keras.backend.backend()
in_each_dtype = pytest.mark.parametrize("dtype", DTYPES)
# All under PyTorch; elsewhere, where each is compiled, one with every dtype of state.
MANY = OPTIMIZERS if BACKEND == "torch" else ONE_OF_EACH
every_optimizer = pytest.mark.parametrize("make", MANY.values(), ids=MANY)
one_of_each = pytest.mark.parametrize("make", ONE_OF_EACH.values(), ids=ONE_OF_EACH)
LARGEST = {"bfloat16": float.fromhex("0x1.fep127"), "float16": 65504.0}


def in_float32(tensor):
    return ops.convert_to_numpy(ops.cast(tensor, "float32"))


def rounded(numbers, dtype, iteration=0, index=0):
    """Stochastically rounded numbers, as float32."""
    numbers = np.asarray(numbers, "float32")
    seed = random_bits.seed(ops.convert_to_tensor(iteration), index)
    counters = positions(numbers.shape, seed)
    numbers = ops.convert_to_tensor(numbers)
    found = rounding.stochastic(numbers, dtype, seed, counters)
    assert keras.backend.standardize_dtype(found.dtype) == dtype
    return in_float32(found)


def nearest(numbers, dtype):
    numbers = ops.convert_to_tensor(np.asarray(numbers, "float32"))
    return in_float32(ops.cast(numbers, dtype))


def unsigned(integers):
    return ops.convert_to_numpy(integers).astype("int64") % 2**32


@given(st.integers(0, 2**31 - 1), st.integers(-999, 999), st.integers(0, 2**31 - 30))
def test_the_random_bits_equal_the_reference(iteration, index, first):
    seed = random_bits.seed(ops.convert_to_tensor(iteration, "int32"), index)
    expected = reference.seed(iteration, index)
    assert unsigned(seed) == expected
    entries = first + np.arange(30).reshape(2, 3, 5)
    np.testing.assert_array_equal(unsigned(positions((2, 3, 5), first)), entries)
    counters = positions((2, 3, 5), seed + first)
    found = unsigned(random_bits.draw(seed, counters))
    for entry, bits in zip(entries.ravel(), found.ravel()):
        assert bits == reference.random_bits(expected, int(entry))


def test_positions_of_entries_go_beyond_31_bits():
    found = unsigned(positions((2, 3), 2**31 - 2))
    np.testing.assert_array_equal(found.ravel(), 2**31 - 2 + np.arange(6))


@in_each_dtype
def test_rounding_equals_the_reference_on_all_scales(dtype):
    rng = np.random.default_rng(0)
    least, most = {"bfloat16": (-125, 126), "float16": (-30, 15)}[dtype]
    numbers = rng.choice([-1, 1], 500) * rng.uniform(1, 2, 500)
    numbers = (numbers * 2.0 ** rng.integers(least, most, 500)).astype("float32")
    seed = reference.seed(3, 2)
    expected = [
        reference.stochastic(float(x), dtype, reference.random_bits(seed, entry))
        for entry, x in enumerate(numbers)
    ]
    np.testing.assert_array_equal(rounded(numbers, dtype, 3, 2), expected)


@pytest.mark.one_backend
@given(
    st.floats(1.0, 2.0, exclude_max=True, width=32),
    st.integers(-20, 14),
    st.booleans(),
    st.sampled_from(DTYPES),
    st.integers(0, 1000),
)
def test_rounding_is_unbiased_and_gives_one_of_the_two_neighbours(
    fraction, exponent, is_negative, dtype, iteration
):
    x = float(np.float32((-fraction if is_negative else fraction) * 2.0**exponent))
    count = 2**14
    found = rounded(np.full(count, x), dtype, iteration).astype("float64")
    below, unit = reference.neighbours(x, dtype)
    ends = np.copysign([below, below + unit], x)
    assert set(found) <= set(ends)
    share = (abs(x) - below) / unit
    if share == 0.0:
        assert set(found) == {x}
    # Six standard deviations of a mean of independent draws.
    bound = 6 * unit * np.sqrt(share * (1 - share) / count)
    assert abs(found.mean() - x) <= bound


@in_each_dtype
def test_numbers_of_the_dtype_are_not_changed(dtype):
    bits = np.arange(2**16, dtype="uint16").view("int16")
    numbers = ops.convert_to_numpy(
        ops.cast(_numbers_of_bits(bits, dtype), "float32")
    ).copy()
    # Some backends flush subnormal numbers of float32 to 0.
    is_normal = np.abs(numbers) >= 2.0**-126
    is_kept = is_normal | (numbers == 0) | np.isinf(numbers)
    numbers = numbers[is_kept]
    assert np.sum(np.isinf(numbers)) == 2
    assert len(numbers) > 60000
    for iteration in range(3):
        found = rounded(numbers, dtype, iteration)
        np.testing.assert_array_equal(found, numbers)
        np.testing.assert_array_equal(np.signbit(found), np.signbit(numbers))


def _numbers_of_bits(bits, dtype):
    from et_optimizer.compilers.bits import from_bits

    return from_bits(ops.convert_to_tensor(bits), dtype)


@in_each_dtype
def test_nan_stays_nan_and_finite_numbers_stay_finite(dtype):
    nans = np.array([0x7FC00000, 0x7F800001, 0x7FFFFFFF, -1], "int64")
    nans = nans.astype("uint32").view("float32")
    assert np.isnan(nans).all()
    assert np.isnan(rounded(nans, dtype)).all()
    largest = LARGEST[dtype]
    beyond = np.float32([3.4e38, largest * (1 + 2**-13), largest])
    for sign in (1, -1):
        np.testing.assert_array_equal(rounded(sign * beyond, dtype), sign * largest)
        assert rounded([sign * np.inf], dtype)[0] == sign * np.inf


@pytest.mark.one_backend
@in_each_dtype
def test_the_spacing_changes_at_powers_of_two(dtype):
    bits = reference.FORMATS[dtype][0]
    for sign in (1, -1):
        below, above = 1 - 2.0 ** -(bits + 1), 1 + 2.0**-bits
        count = 4096
        found = set(rounded(np.full(count, sign * below), dtype))
        assert found == {sign * (1 - 2.0**-bits), sign * 1.0}
        found = set(rounded(np.full(count, sign * above), dtype))
        assert found == {sign * 1.0, sign * (1 + 2.0 ** -(bits - 1))}


def test_subnormal_numbers_round_to_their_neighbours():
    # Those of float16 are multiples of 2^-24, which are normal in float32.
    found = rounded(np.full(4096, -2.25 * 2.0**-24), "float16")
    assert set(found) == {-2 * 2.0**-24, -3 * 2.0**-24}
    assert abs(found.mean() + 2.25 * 2.0**-24) < 0.05 * 2.0**-24
    # One in 1024 numbers 2^-34 is rounded up: 256, with a standard deviation of 16.
    tiny = rounded(np.full(2**18, 2.0**-34), "float16")
    assert set(tiny) == {0.0, 2.0**-24}
    assert abs(np.sum(tiny > 0) - 256) < 6 * 16
    # Those of bfloat16 are subnormal in float32 too, and some backends flush them to 0.
    found = rounded(np.full(4096, 2.25 * 2.0**-133), "bfloat16")
    assert set(found) <= {0.0, 2 * 2.0**-133, 3 * 2.0**-133}
    if BACKEND == "torch":
        assert set(found) == {2 * 2.0**-133, 3 * 2.0**-133}


@pytest.mark.one_backend
def test_random_bits_of_steps_variables_and_entries_are_independent():
    def bits(iteration, index):
        seed = random_bits.seed(ops.convert_to_tensor(iteration), index)
        words = unsigned(random_bits.draw(seed, positions((4096,), seed)))
        return (words[:, None] >> np.arange(32)) & 1

    first = bits(5, 3)
    # Six standard deviations of the mean of 4096 draws.
    bound = 6 * 0.5 / np.sqrt(4096)
    assert np.abs(first.mean(0) - 0.5).max() < bound
    others = [bits(6, 3), bits(5, 4), bits(4, 4), np.roll(first, 1, 0)]
    others += [np.roll(first, 64, 0), np.roll(bits(6, 3), -1, 0), bits(5, -1 - 3)]
    for other in others:
        assert np.abs((first == other).mean(0) - 0.5).max() < bound
    # Bits of the same word are independent too.
    assert np.abs((first[:, 1:] == first[:, :-1]).mean(0) - 0.5).max() < bound


SHAPES = [(7, 12), (5,), (), (3, 4, 5), (12, 7), (300, 16)]
SHAPES = SHAPES[:4] if BACKEND == "jax" else SHAPES  # JAX compiles every step.


def variables_of(dtype, shapes=SHAPES):
    rng = np.random.default_rng(0)
    values = [nearest(rng.standard_normal(shape), "bfloat16") for shape in shapes]
    return [
        keras.Variable(value, dtype=dtype, name=f"v{index}")
        for index, value in enumerate(values)
    ]


def gradients_of(dtype, step, shapes=SHAPES):
    rng = np.random.default_rng(step + 1)
    return [
        ops.convert_to_tensor(nearest(rng.standard_normal(shape), "bfloat16"), dtype)
        for shape in shapes
    ]


def one_step(make, dtype, **arguments):
    optimizer = make(learning_rate=0.01, weight_decay=0.1, **arguments)
    variables = variables_of(dtype)
    if BACKEND == "jax":  # An eager step would compile every operation.
        return run(optimizer, variables, dtype, 1)
    optimizer.apply(gradients_of(dtype, 0), variables)
    return [in_float32(variable.value) for variable in variables]


@every_optimizer
def test_a_16_bit_step_is_the_float32_step_rounded_once(make):
    expected = one_step(make, "float32")
    found = one_step(make, "bfloat16")
    to_nearest = one_step(make, "bfloat16", stochastic_rounding=False)
    for index, (wide, half, near) in enumerate(zip(expected, found, to_nearest)):
        once = rounded(wide, "bfloat16", 0, index)
        # 16-bit gradients may take another path, which changes the last bit of float32
        # and so a few of the roundings.
        assert np.mean(half != once) <= 0.02
        np.testing.assert_allclose(half, once, rtol=2**-7, atol=1e-30)
        np.testing.assert_allclose(near, nearest(wide, "bfloat16"), rtol=2**-7)
        assert np.mean(near != nearest(wide, "bfloat16")) <= 0.02


def run(optimizer, variables, dtype, steps):
    """Weights after steps, compiled by XLA if the backend has it."""
    optimizer.build(variables)
    if BACKEND == "jax":
        own = [variable.value for variable in optimizer.variables]
        values = [variable.value for variable in variables]
        step = compiled(optimizer.stateless_apply)
        for count in range(steps):
            values, own = step(own, gradients_of(dtype, count), values)
        return [in_float32(value) for value in values]
    step = compiled(lambda gradients: optimizer.apply(gradients, variables))
    for count in range(steps):
        step(gradients_of(dtype, count))
    return [in_float32(variable.value) for variable in variables]


@pytest.mark.one_backend
@one_of_each
def test_stochastic_rounding_does_not_change_float32_weights(make):
    kept = [
        run(
            make(
                0.01, stochastic_rounding=is_stochastic, weight_decay=0.1, use_ema=True
            ),
            variables_of("float32"),
            "float32",
            3,
        )
        for is_stochastic in (True, False)
    ]
    for stochastic, to_nearest in zip(*kept):
        np.testing.assert_array_equal(stochastic, to_nearest)


RUNS = [(name, "bfloat16") for name in ONE_OF_EACH]
# TensorFlow's XLA compiles float16 as JAX's does.
RUNS += [("ExtremeTensoring", "float16")] if BACKEND != "tensorflow" else []


@pytest.mark.parametrize(("name", "dtype"), RUNS)
def test_two_runs_are_bit_identical(name, dtype):
    make = OPTIMIZERS[name]
    one, other = (run(make(0.01), variables_of(dtype), dtype, 3) for _ in range(2))
    for first, second in zip(one, other):
        np.testing.assert_array_equal(first, second)
        assert np.isfinite(first).all()


def test_matrices_updated_by_blocks_are_rounded_like_whole_ones(monkeypatch):
    from et_optimizer.compilers import row_blocks

    shape = (70, 24)

    def weights(largest):
        monkeypatch.setattr(row_blocks, "MAX_ENTRIES", largest)
        optimizer = et_optimizer.ExtremeTensoring(0.01, momentum_rank=10)
        variables = variables_of("bfloat16", [shape])
        optimizer.build(variables)
        gradient = gradients_of("bfloat16", 0, [shape])
        if BACKEND == "jax":
            own = [v.value for v in optimizer.variables]
            step = compiled(optimizer.stateless_apply)
            return in_float32(step(own, gradient, [variables[0].value])[0][0])
        compiled(lambda given: optimizer.apply(given, variables))(gradient)
        return in_float32(variables[0].value)

    whole, by_blocks = weights(2**18), weights(24 * 16)
    # Products are summed in another order, which changes a few of the roundings.
    assert np.mean(whole != by_blocks) <= 0.02
    np.testing.assert_allclose(whole, by_blocks, rtol=2**-7)
    assert not np.array_equal(whole, in_float32(variables_of("bfloat16", [shape])[0]))


@pytest.mark.one_backend
def test_steps_far_below_half_a_unit_accumulate():
    # 64 steps of 1/16 of half a unit below 1: rounding to nearest loses all of them.
    def mean(is_stochastic):
        variable = keras.Variable(np.ones((64, 64)), dtype="bfloat16")
        optimizer = et_optimizer.SubsetNorm(
            2.0**-13, beta_1=0.0, stochastic_rounding=is_stochastic, update_bound=None
        )
        optimizer.build([variable])
        gradient = ops.ones((64, 64), "bfloat16")
        for _ in range(64):
            optimizer.apply([gradient], [variable])
        return in_float32(variable.value).mean()

    assert mean(False) == 1.0
    # In each of 64 × 64 entries one in 32 of 64 steps of 2^-8 is taken.
    deviation = np.sqrt(64 / 32) * 2.0**-8
    assert abs(mean(True) - (1 - 64 * 2.0**-13)) < 6 * deviation / 64


@pytest.mark.one_backend
def test_weight_decay_is_rounded_stochastically():
    # Rounding to nearest loses this product of learning rate and weight decay.
    def mean(is_stochastic):
        variable = keras.Variable(np.ones((64, 64)), dtype="bfloat16")
        optimizer = et_optimizer.ExtremeTensoring(
            1e-3, beta_1=0.0, weight_decay=0.1, stochastic_rounding=is_stochastic
        )
        optimizer.build([variable])
        for _ in range(50):
            optimizer.apply([ops.zeros((64, 64), "bfloat16")], [variable])
        return in_float32(variable.value).mean()

    assert mean(False) == 1.0
    # One in 39 of 50 steps of 2^-8 is taken.
    deviation = np.sqrt(50 / 39) * 2.0**-8
    assert abs(mean(True) - (1 - 1e-4) ** 50) < 6 * deviation / 64


@pytest.mark.one_backend
def test_moving_averages_of_weights_are_rounded_stochastically():
    # 1/100 of the distance is below half a unit: to nearest the average never moves.
    def average(is_stochastic, **arguments):
        variable = keras.Variable(np.ones((64, 64)), dtype="bfloat16")
        optimizer = et_optimizer.ExtremeTensoring(
            0.0,
            use_ema=True,
            ema_momentum=0.99,
            stochastic_rounding=is_stochastic,
            **arguments,
        )
        optimizer.build([variable])
        gradient = ops.ones((64, 64), "bfloat16")
        for _ in range(arguments.get("gradient_accumulation_steps", 1)):
            optimizer.apply([gradient], [variable])
        variable.assign(ops.full((64, 64), 1.125))
        for _ in range(20):
            optimizer.apply([gradient], [variable])
        assert in_float32(variable.value).mean() == 1.125
        return in_float32(optimizer._model_variables_moving_average[0].value).mean()

    assert average(False) == 1.0
    # 20 roundings to a spacing of 2^-7, each with a standard deviation of 2^-8 at most.
    expected = 1.0 + 0.125 * (1 - 0.99**20)
    bound = 6 * np.sqrt(20) * 2.0**-8 / 64
    assert abs(average(True) - expected) < bound
    # Keras updates it at every step, even one that only accumulates gradients.
    assert abs(average(True, gradient_accumulation_steps=16) - expected) < bound


@pytest.mark.skipif(BACKEND != "torch", reason="only PyTorch computes in float8")
def test_weights_in_float8_are_computed_in_float32():
    variable = keras.Variable(np.ones((4, 4)), dtype="float8_e4m3fn")
    optimizer = et_optimizer.ExtremeTensoring(0.5, beta_1=0.0, weight_decay=0.5)
    optimizer.build([variable])
    optimizer.apply([ops.ones((4, 4), "bfloat16")], [variable])
    # 1 − 0.5 · 0.5 − 0.5 = 0.25, which float8 represents.
    np.testing.assert_array_equal(in_float32(variable.value), 0.25)


def sparse(values, indices, rows):
    if BACKEND == "tensorflow":
        import tensorflow as tf

        shape = (rows, values.shape[1])
        return tf.IndexedSlices(ops.cast(values, "bfloat16"), indices, shape)
    from jax.experimental import sparse as of_jax

    values = ops.cast(values, "bfloat16")
    return of_jax.BCOO((values, indices[:, None]), shape=(rows, values.shape[1]))


@pytest.mark.skipif(BACKEND == "torch", reason="Keras has no sparse gradients here")
@pytest.mark.parametrize("decay", [None, 0.5])
@pytest.mark.parametrize("is_traced", [False, True])
def test_sparse_gradients_are_rounded_like_dense_ones(decay, is_traced):
    rows, width = 40, 6
    indices = np.array([3, 17, 3, 39, 3, 17], "int32")
    rng = np.random.default_rng(0)
    values = nearest(rng.standard_normal((6, width)), "bfloat16")
    dense = np.zeros((rows, width), "float32")
    np.add.at(dense, indices, values)
    start = variables_of("bfloat16", [(rows, width)])[0]
    start = in_float32(start.value)

    def stepped(gradient):
        variable = variables_of("bfloat16", [(rows, width)])[0]
        make = functools.partial(et_optimizer.ExtremeTensoring, 0.01, beta_1=0.0)
        optimizer = make(weight_decay=decay)
        optimizer.build([variable])
        if not is_traced:
            optimizer.apply([gradient], [variable])
        elif BACKEND == "jax":
            own = [v.value for v in optimizer.variables]
            step = compiled(optimizer.stateless_apply)
            return in_float32(step(own, [gradient], [variable.value])[0][0])
        else:
            compiled(lambda: optimizer.apply([gradient], [variable]))()
        return in_float32(variable.value)

    found = stepped(sparse(ops.convert_to_tensor(values), indices, rows))
    # Rows are summed in float32, so the dense gradient is in float32 too.
    expected = stepped(ops.convert_to_tensor(dense, "float32"))
    assert np.mean(found != expected) <= 0.02
    np.testing.assert_allclose(found, expected, rtol=2**-7)
    others = np.setdiff1d(np.arange(rows), indices)
    assert np.any(found[[3, 17, 39]] != start[[3, 17, 39]])
    np.testing.assert_array_equal(found[others], expected[others])
    if decay is None:
        np.testing.assert_array_equal(found[others], start[others])


def test_a_loaded_bfloat16_model_trains_on_bit_for_bit(tmp_path):
    keras.config.set_dtype_policy("bfloat16")
    keras.utils.set_random_seed(0)
    model = keras.Sequential(
        [keras.Input((10,)), keras.layers.Dense(24, "relu"), keras.layers.Dense(3)]
    )
    jit = BACKEND != "torch"
    model.compile(et_optimizer.ExtremeTensoring(1e-3), "mse", jit_compile=jit)
    rng = np.random.default_rng(0)
    x, y = rng.standard_normal((32, 10)), rng.standard_normal((32, 3))
    how = {"batch_size": 8, "shuffle": False, "verbose": 0}
    model.fit(x, y, **how)
    model.save(tmp_path / "model.keras")
    again = keras.models.load_model(tmp_path / "model.keras")
    for one in (model, again):
        one.fit(x, y, **how)
    for first, second in zip(model.weights, again.weights):
        assert keras.backend.standardize_dtype(second.dtype) == "bfloat16"
        np.testing.assert_array_equal(in_float32(first), in_float32(second))
