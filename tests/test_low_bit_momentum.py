"""Momentum in 4 and 3 bits: against a transcription, its error, and its memory."""

import functools
import math

import keras
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from keras import ops

from et_optimizer import (
    ExtremeTensoring,
    Muon,
    TensorIndex,
    memory_plan,
    memory_report,
)
from et_optimizer.momenta import quantization
from tests.optimizers import momentum_forms, slots_of
from tests.reference import dither as reference
from tests.reference import rank_one, stochastic_rounding
from tests.updates import compiled, lengths_and_modes, random_gradients, take_step

BACKEND = keras.backend.backend()
in_each_width = pytest.mark.parametrize("bits", [4, 3])
SHAPES = [(1,), (3,), (7, 5, 3), (6, 8), (5, 16), (2, 3, 24)]
seeds = st.integers(-(2**31), 2**31 - 1)


def half(bits):
    return (2**bits - 1) / 2


@functools.lru_cache(maxsize=64)
def quantizer(shape, bits):
    """A function from a tensor and a seed to the state and what it stands for."""
    dithered = quantization.of_dtype(f"int{bits}", shape)

    def stored(tensor, seed):
        state = dithered.quantize(tensor, dithered.scale(tensor), seed)
        return state, dithered.dequantize(state)

    return compiled(stored)


def quantized(tensor, bits, seed=0):
    """The packed bytes, scale and seed of a tensor, and the dequantized tensor."""
    tensor = np.asarray(tensor, "float32")
    quantize = quantizer(tensor.shape, bits)
    state, found = quantize(
        ops.convert_to_tensor(tensor), ops.convert_to_tensor(np.int32(seed))
    )
    packed, scale, seed = (ops.convert_to_numpy(one) for one in state)
    found = ops.convert_to_numpy(found)
    assert found.shape == tensor.shape and found.dtype == "float32"
    assert (packed.dtype, scale.dtype, seed.dtype) == ("uint8", "float32", "int32")
    return packed, float(scale), int(seed), found.astype("float64")


def as_list(array):
    return np.asarray(array).ravel().tolist()


@in_each_width
@pytest.mark.parametrize("shape", SHAPES)
def test_the_state_and_what_it_stands_for_equal_the_reference(shape, bits):
    rng = np.random.default_rng(0)
    for seed, size in [(0, 1.0), (-(2**31), 1e-18), (2**31 - 1, 1e12), (77, 1e-6)]:
        tensor = (size * rng.standard_normal(shape)).astype("float32")
        packed, scale, stored_seed, found = quantized(tensor, bits, seed)
        plan = quantization.of_dtype(f"int{bits}", shape).slots("momentum")
        assert [shape for shape, _ in plan.values()] == [packed.shape, (), ()]
        assert stored_seed % 2**32 == reference.seed_of_state(seed)
        # Some backends flush the squares of entries below 1e-19 to 0.
        rtol = 0.02 if size == 1e-18 else 1e-6
        expected = reference.scale(as_list(tensor), bits)
        np.testing.assert_allclose(scale, expected, rtol=rtol)
        exact = reference.unrounded(as_list(tensor), scale, stored_seed, bits)
        wanted = reference.integers(as_list(tensor), scale, stored_seed, bits)
        integers = reference.unpacked(as_list(packed), bits)
        assert reference.packed(integers, bits) == as_list(packed)
        # Between two integers float32 may take either.
        is_clear = np.abs(np.mod(exact, 1.0) - 0.5) > 1e-4
        np.testing.assert_array_equal(
            np.array(integers)[is_clear], np.array(wanted)[is_clear]
        )
        assert len(integers) == len(wanted) and np.mean(is_clear) > 0.9
        numbers = reference.numbers(integers, scale, stored_seed, bits)
        numbers = np.array(numbers[: tensor.size]).reshape(shape)
        np.testing.assert_allclose(found, numbers, rtol=0, atol=1e-6 * scale)


@in_each_width
def test_entries_are_packed_along_the_last_axis_where_it_is_divisible(bits):
    shapes = {4: {(6, 8): (6, 4), (5, 3, 2): (5, 3, 1), (6, 7): (21,), (3,): (2,)}}
    shapes[3] = {(6, 8): (6, 3), (5, 3, 16): (5, 3, 6), (6, 4): (9,), (3,): (3,)}
    for shape, packed in shapes[bits].items():
        slots = quantization.of_dtype(f"int{bits}", shape).slots("momentum")
        assert slots == {
            "momentum": (packed, "uint8"),
            "momentum_scale": ((), "float32"),
            "momentum_seed": ((), "int32"),
        }


@in_each_width
@given(
    shape=st.sampled_from([(3,), (7, 5, 3), (5, 16)]),
    exponent=st.integers(-15, 12),
    tail=st.floats(0.0, 2.0),
    seed=seeds,
)
def test_where_nothing_clips_the_error_is_at_most_half_a_step(
    bits, shape, exponent, tail, seed
):
    rng = np.random.default_rng(seed % 2**32)
    tensor = rng.standard_normal(shape) * np.exp(tail * rng.standard_normal(shape))
    tensor = (10.0**exponent * tensor).astype("float32")
    _, scale, _, found = quantized(tensor, bits, seed)
    error = np.abs(found - tensor)
    fits = np.abs(tensor) <= half(bits) * scale * (1 - 1e-5)
    assert np.all(error[fits] <= scale / 2 * (1 + 1e-5))
    # The others are stored as the outermost of the integers.
    outermost = found[~fits] * np.sign(tensor[~fits]) / scale
    assert np.all(np.abs(outermost - half(bits)) <= 0.5 * (1 + 1e-5))


@in_each_width
def test_the_error_averages_out_over_seeds_for_every_entry(bits):
    rng = np.random.default_rng(0)
    # Of a uniform distribution, nothing clips: √3 root mean squares at most.
    tensor = rng.uniform(-1, 1, (4, 16)).astype("float32")
    count = 500
    runs = [quantized(tensor, bits, seed) for seed in range(count)]
    scale = runs[0][1]
    assert np.max(np.abs(tensor)) < half(bits) * scale
    errors = np.stack([found - tensor for *_, found in runs])
    # A uniform error has the variance s²/12.
    deviation = scale / math.sqrt(12)
    assert np.max(np.abs(errors.mean(0))) < 6 * deviation / math.sqrt(count)
    np.testing.assert_allclose(errors.std(0), deviation, rtol=0.15)
    # It has the same distribution for all values of an entry.
    assert abs(
        np.corrcoef(errors.ravel(), np.tile(tensor, (count, 1, 1)).ravel())[0, 1]
    ) < 6 / math.sqrt(errors.size)


@pytest.mark.one_backend
@pytest.mark.parametrize(("bits", "expected"), [(4, 0.0115), (3, 0.038)])
def test_the_mean_squared_error_for_a_gaussian_is_as_documented(bits, expected):
    tensor = np.random.default_rng(0).standard_normal((512, 512))
    *_, found = quantized(tensor, bits)
    tensor = tensor.astype("float32")
    share = np.mean((found - tensor) ** 2) / np.mean(tensor**2)
    assert abs(share / expected - 1) < 0.05


@in_each_width
def test_zeros_are_stored_as_zeros_with_the_scale_0(bits):
    for seed in (0, 12345):
        _, scale, _, found = quantized(np.zeros((5, 16)), bits, seed)
        assert scale == 0.0
        np.testing.assert_array_equal(found, 0.0)


@in_each_width
@pytest.mark.parametrize("size", [1e-18, 3.0, -1e12])
def test_a_single_entry_keeps_its_sign_and_half_of_its_size(size, bits):
    # The dither may move it to the next integer.
    for seed in range(5):
        _, scale, _, found = quantized([size], bits, seed)
        np.testing.assert_allclose(scale, reference.STEPS[bits] * abs(size), rtol=1e-6)
        assert abs(found[0] - np.float32(size)) <= scale / 2 * (1 + 1e-5)
        assert np.sign(found[0]) == np.sign(size)


@in_each_width
@pytest.mark.parametrize("spike", [1e6, -1e15, 3e30])
def test_a_huge_spike_is_clipped_and_leaves_the_others_unbiased(spike, bits):
    tensor = np.random.default_rng(0).standard_normal((64, 64)).astype("float32")
    tensor[3, 5] = spike
    _, scale, _, found = quantized(tensor, bits)
    # In the scale, entries above 1e15 count as 1e15: their squares could overflow.
    rms = min(abs(spike), 1e15) / 64
    np.testing.assert_allclose(scale, reference.STEPS[bits] * rms, rtol=1e-5)
    assert half(bits) - 0.5 <= found[3, 5] / scale * np.sign(spike) <= half(bits) + 0.5
    error = np.delete((found - tensor).ravel(), 3 * 64 + 5)
    assert np.max(np.abs(error)) <= scale / 2 * (1 + 1e-5)
    assert abs(error.mean()) < 6 * scale / math.sqrt(12 * error.size)


def matrix(name="kernel", shape=(6, 8)):
    value = np.random.default_rng(1).standard_normal(shape)
    return keras.Variable(value.astype("float32"), name=name)


def extreme_tensoring(bits, **arguments):
    return ExtremeTensoring(
        0.1,
        momentum_rank=None,
        momentum_dtype=f"int{bits}",
        update_bound=None,
        **arguments,
    )


def apply(optimizer, gradients, variables):
    given = [None if g is None else ops.convert_to_tensor(g) for g in gradients]
    take_step(optimizer, given, variables)


def momentum_slots(optimizer, name="kernel"):
    """The packed bytes, the scale and the seed of a variable's momentum."""
    slots = {v.name: v for v in slots_of(optimizer)}
    names = [f"{name}_momentum{suffix}" for suffix in ("", "_scale", "_seed")]
    return [slots[name] for name in names]


def stored_momentum(optimizer, bits, variable):
    """The momentum, read from the slots by the reference, and its scale."""
    packed, scale, seed = (
        ops.convert_to_numpy(slot) for slot in momentum_slots(optimizer, variable.name)
    )
    integers = reference.unpacked(as_list(packed), bits)
    found = reference.numbers(integers, float(scale), int(seed), bits)
    shape = tuple(variable.shape)
    return np.array(found[: math.prod(shape)]).reshape(shape), float(scale)


def state_of(variables):
    return [np.array(ops.convert_to_numpy(v)) for v in variables]


def assert_equal_bits(some, others):
    for one, other in zip(some, others, strict=True):
        assert one.dtype == other.dtype
        np.testing.assert_array_equal(one, other)


@in_each_width
def test_a_step_averages_the_stored_momentum_and_moves_by_the_exact_average(bits):
    shapes = {"even": (6, 8), "odd": (7, 5, 3)}
    variables = [matrix(name, shape) for name, shape in shapes.items()]
    optimizer = extreme_tensoring(bits)
    optimizer.build(variables)
    steps = {name: random_gradients(s, 0, 4) for name, s in shapes.items()}
    updates = {
        name: rank_one.updates(
            steps[name], lengths_and_modes(TensorIndex.from_shape(s, 1)), beta_2=0.999
        )
        for name, s in shapes.items()
    }
    for step in range(4):
        before = [
            (stored_momentum(optimizer, bits, v)[0], v.numpy()) for v in variables
        ]
        apply(optimizer, [steps[v.name][step] for v in variables], variables)
        for index, (variable, (average, start)) in enumerate(zip(variables, before)):
            average = 0.9 * average + 0.1 * next(updates[variable.name])
            expected = start - 0.1 * average / (1 - 0.9 ** (step + 1))
            np.testing.assert_allclose(variable.numpy(), expected, rtol=1e-5, atol=3e-6)
            found, scale = stored_momentum(optimizer, bits, variable)
            fits = np.abs(average) <= half(bits) * scale * (1 - 1e-4)
            assert np.mean(fits) > 0.8
            assert np.all(np.abs(found - average)[fits] <= scale / 2 * (1 + 1e-4))
            *_, seed = momentum_slots(optimizer, variable.name)
            drawn = stochastic_rounding.seed(step, index)
            assert int(seed.numpy()) % 2**32 == reference.seed_of_state(drawn)


def assert_readable(optimizer, bits, variables, index=0):
    """A gradient of 0 moves a variable by the momentum that the reference reads."""
    variable = variables[index]
    momentum, _ = stored_momentum(optimizer, bits, variable)
    before, step = variable.numpy(), int(optimizer.iterations) + 1
    gradients = [np.zeros(v.shape, "float32") for v in variables]
    apply(optimizer, gradients, variables)
    expected = before - 0.1 * 0.9 * momentum / (1 - 0.9**step)
    assert np.max(np.abs(momentum)) > 0.1
    np.testing.assert_allclose(variable.numpy(), expected, rtol=1e-5, atol=3e-6)


@in_each_width
def test_a_nan_in_the_gradient_keeps_the_bits_and_the_state_stays_readable(bits):
    variable, optimizer = matrix(), extreme_tensoring(bits, weight_decay=0.1)
    optimizer.exclude_from_weight_decay([variable])
    first, second = random_gradients((6, 8), 0, 2)
    apply(optimizer, [first], [variable])
    before = state_of([variable, *slots_of(optimizer)])
    for bad in (np.nan, np.inf):
        second[2, 3] = bad
        apply(optimizer, [second], [variable])
        assert_equal_bits(before, state_of([variable, *slots_of(optimizer)]))
    assert optimizer.skipped_steps == {"kernel": 2}
    assert_readable(optimizer, bits, [variable])


@pytest.mark.filterwarnings("ignore:Gradients do not exist")
@in_each_width
def test_a_step_without_a_gradient_keeps_the_bits_and_the_state_stays_readable(bits):
    variables, optimizer = [matrix(), matrix("other")], extreme_tensoring(bits)
    optimizer.build(variables)
    first, second = random_gradients((2, 6, 8), 0, 2)
    apply(optimizer, first, variables)
    before = state_of([variables[0], *momentum_slots(optimizer)])
    apply(optimizer, [None, second[1]], variables)
    assert_equal_bits(before, state_of([variables[0], *momentum_slots(optimizer)]))
    assert_readable(optimizer, bits, variables)


OF_MODELS = {
    "ExtremeTensoring in 4 bits": lambda: extreme_tensoring(4),
    "ExtremeTensoring in 3 bits": lambda: extreme_tensoring(3),
    "Muon in 4 bits": lambda: Muon(0.1),
}
OF_MODELS = OF_MODELS if BACKEND == "torch" else dict(list(OF_MODELS.items())[1:])


@pytest.mark.parametrize("make", OF_MODELS.values(), ids=OF_MODELS)
def test_a_saved_and_resumed_run_equals_the_uninterrupted_one_bit_for_bit(
    make, tmp_path
):
    model = keras.Sequential(
        [keras.Input((10,)), keras.layers.Dense(24, "relu"), keras.layers.Dense(3)]
    )
    model.compile(make(), "mse", jit_compile=BACKEND != "torch")
    rng = np.random.default_rng(0)
    x, y = rng.standard_normal((24, 10)), rng.standard_normal((24, 3))

    def state(model):
        return state_of([*model.weights, *model.optimizer.variables])

    how = {"batch_size": 8, "shuffle": False, "verbose": 0}
    model.fit(x, y, **how)
    model.save(tmp_path / "model.keras")
    again = keras.models.load_model(tmp_path / "model.keras")
    assert_equal_bits(state(model), state(again))
    assert {v.dtype for v in again.optimizer.variables} >= {"uint8", "int32"}
    saved = state(again)
    # One step, and then three more.
    for examples in (8, 24):
        for one in (model, again):
            one.fit(x[:examples], y[:examples], **how)
        assert_equal_bits(state(model), state(again))
    kernels = [i for i, w in enumerate(model.weights) if len(w.shape) == 2]
    assert kernels
    for i in kernels:
        assert np.all(saved[i] != state(model)[i])


@in_each_width
def test_a_loaded_state_is_read_with_the_stored_seed(bits):
    variable, optimizer = matrix(shape=(7, 5)), extreme_tensoring(bits)
    for gradient in random_gradients((7, 5), 0, 2):
        apply(optimizer, [gradient], [variable])
    other, again = matrix(shape=(7, 5)), extreme_tensoring(bits)
    other.assign(variable.value)
    again.build([other])
    store = {}
    optimizer.save_own_variables(store)
    again.load_own_variables(store)
    assert_equal_bits(state_of(optimizer.variables), state_of(again.variables))
    assert_readable(again, bits, [other])


def bytes_of_momentum(shape, bits):
    count = math.prod(shape)
    return (-(-count // 2) if bits == 4 else 3 * -(-count // 8)) + 8


@pytest.mark.one_backend
@in_each_width
@pytest.mark.parametrize("shape", [(7, 5, 3), (6, 8), (5, 16), (2, 3, 24), (200, 64)])
def test_momentum_takes_4_or_3_bits_per_entry_and_8_bytes(shape, bits):
    expected = bytes_of_momentum(shape, bits)
    if shape[-1] % 8 == 0:
        assert expected == bits * math.prod(shape) / 8 + 8
    variable, optimizer = matrix(shape=shape), extreme_tensoring(bits)
    optimizer.build([variable])
    report = memory_report(optimizer)
    statistics = sum(4 * n for n in shape)
    assert report.bytes == expected + statistics
    assert memory_plan({"kernel": shape}, extreme_tensoring(bits)).state == report
    counted = [v.numpy().nbytes for v in momentum_slots(optimizer)]
    assert sum(counted) == expected and counted[1:] == [4, 4]
    # Besides these: Keras's int iteration and float32 learning rate, and the counter.
    everything = sum(v.numpy().nbytes for v in optimizer.variables)
    of_keras = sum(v.numpy().nbytes for v in optimizer.variables[:2])
    assert everything == expected + statistics + of_keras + 4


@pytest.mark.one_backend
@in_each_width
def test_the_report_counts_the_scale_and_the_seed_as_momentum(bits):
    optimizer = extreme_tensoring(bits)
    optimizer.build([matrix()])
    report = memory_report(optimizer)
    assert report.momentum_bytes == bytes_of_momentum((6, 8), bits)


@pytest.mark.one_backend
@in_each_width
def test_momentum_in_a_subspace_is_in_int8_and_that_of_vectors_in_bfloat16(bits):
    shapes = {"wide": (64, 96), "small": (12, 12), "vector": (50,), "scalar": ()}
    variables = [matrix(name, shape) for name, shape in shapes.items()]
    optimizer = ExtremeTensoring(momentum_rank=8, momentum_dtype=f"int{bits}")
    optimizer.build(variables)
    assert momentum_forms(optimizer) == {
        "wide_momentum_basis": ((64, 8), "bfloat16"),
        "wide_momentum": ((8, 96), "int8"),
        "wide_momentum_scale": ((8, 1), "float32"),
        # Its basis would take as much memory as the whole momentum.
        "small_momentum": ((12, 6) if bits == 4 else (54,), "uint8"),
        "small_momentum_scale": ((), "float32"),
        "small_momentum_seed": ((), "int32"),
        "vector_momentum": ((50,), "bfloat16"),
        "scalar_momentum": ((), "bfloat16"),
    }


@pytest.mark.skipif(BACKEND != "jax", reason="needs JAX's analysis of memory")
@pytest.mark.parametrize(("bits", "most"), [(4, 0.2), (3, 0.3)])
@pytest.mark.parametrize("shape", [(3000, 768), (1500, 767)])
def test_the_compiled_step_never_materializes_the_momentum(shape, bits, most):
    import jax

    variable = keras.Variable(np.zeros(shape, "float32"), name="kernel")
    optimizer = extreme_tensoring(bits)
    optimizer.build([variable])

    def step(weights, state, gradients):
        return optimizer.stateless_apply(state, gradients, weights)

    state = [v.value for v in optimizer.variables]
    donating = jax.jit(step, donate_argnums=(0, 1))
    lowered = donating.lower([variable.value], state, [variable.value])
    temporary = lowered.compile().memory_analysis().temp_size_in_bytes
    assert temporary < most * 4 * math.prod(shape)
