"""`keras.distribution`: eight devices or two processes train as one device does."""

import collections
import functools
import re

import keras
import numpy as np
import pytest

if keras.backend.backend() != "jax":
    pytest.skip("keras.distribution is for JAX", allow_module_level=True)

import jax

from et_optimizer import (
    SM3,
    Adafactor,
    ExtremeTensoring,
    Muon,
    SubsetNorm,
    random_bits,
)
from et_optimizer.compilers.bits import positions
from tests import distributed_training as training
from tests import jax_worker
from tests.optimizers import IN_A_SUBSPACE, OPTIMIZERS, in_float32

every_optimizer = pytest.mark.parametrize("make", OPTIMIZERS.values(), ids=OPTIMIZERS)


def mesh():
    devices = keras.distribution.list_devices()
    assert len(devices) == 8
    return keras.distribution.DeviceMesh((2, 4), ("batch", "model"), devices)


def data_parallel():
    return keras.distribution.DataParallel(devices=keras.distribution.list_devices())


def model_parallel():
    """Matrices sharded over four devices by rows or by columns, and a bias."""
    layouts = keras.distribution.LayoutMap(mesh())
    layouts[".*tokens.*"] = ("model", None)
    layouts[".*hidden.*kernel"] = (None, "model")
    layouts[".*hidden.*bias"] = ("model",)
    layouts[".*logits.*kernel"] = ("model", None)
    return keras.distribution.ModelParallel(
        layout_map=layouts, batch_dim_name="batch", auto_shard_dataset=False
    )


def trained(make, distribution):
    with distribution.scope() if distribution else one_device():
        model = training.model_of(keras)
        model.compile(make(learning_rate=0.005), training.loss_of(keras))
        x, y = training.data()
        model.fit(
            x,
            y,
            batch_size=training.BATCH,
            epochs=training.EPOCHS,
            shuffle=False,
            verbose=0,
        )
    return model


@pytest.mark.parametrize(
    ("dtype", "distribute"),
    [("bfloat16", data_parallel), ("int8", model_parallel)],
)
def test_eight_devices_train_as_one_except_for_rounding_of_quantized_momentum(
    dtype, distribute
):
    make = functools.partial(
        ExtremeTensoring, beta_1=0.9, momentum_dtype=dtype, **IN_A_SUBSPACE
    )
    one, model = trained(make, None), trained(make, distribute())
    # In each of eight steps, an entry of about 1 may be rounded in the other direction.
    atol = 8 * 0.005 * {"bfloat16": 2**-8, "int8": 2**-7}[dtype]
    for w, expected in zip(model.weights, one.weights):
        np.testing.assert_allclose(w.numpy(), expected.numpy(), rtol=0, atol=atol)


@pytest.mark.parametrize("dtype", ["int4", "int3"])
def test_packed_momentum_is_sharded_as_its_variable_and_trains_as_on_one_device(dtype):
    make = functools.partial(
        ExtremeTensoring, beta_1=0.9, momentum_rank=None, momentum_dtype=dtype
    )
    one, model = trained(make, None), trained(make, model_parallel())
    step = {"int4": 0.3352, "int3": 0.586}[dtype]
    for w, expected in zip(model.weights, one.weights):
        # Sums are in another order, so that single entries are rounded otherwise.
        different = np.abs(w.numpy() - expected.numpy()) > 1e-5
        assert np.mean(different) < 0.01
        np.testing.assert_allclose(w.numpy(), expected.numpy(), atol=8 * 0.005 * step)
    slots = {
        slot.path.split("_")[-3]: tuple(slot.value.sharding.spec)
        for slot in model.optimizer.variables
        if slot.dtype == "uint8"
    }
    assert slots["tokens"] == ("model", None)
    # 16 columns in 3 bits are 6 bytes, which four devices cannot share.
    columns = {"int4": (None, "model"), "int3": (None, None)}[dtype]
    assert slots["hidden"] == columns


def one_device():
    return jax.default_device(jax.devices()[0])


# Their state has low-rank momentum, maxima (not sums) over devices, and sketches.
@pytest.mark.parametrize(
    ("name", "distribute"),
    [
        ("ExtremeTensoring in a subspace", data_parallel),
        ("SM3-I everything on", model_parallel),
        ("Muon", model_parallel),
        ("SketchyShampoo everything on", model_parallel),
    ],
)
def test_eight_devices_train_as_one_device_does(name, distribute):
    make = in_float32(OPTIMIZERS[name])
    one, model = trained(make, None), trained(make, distribute())
    for variable in [*model.weights, *model.optimizer.variables]:
        assert len(variable.value.sharding.device_set) == 8
    for w, expected in zip(model.weights, one.weights):
        np.testing.assert_allclose(w.numpy(), expected.numpy(), rtol=0, atol=1e-5)
    if distribute is model_parallel:
        # The weights are still sharded after their steps.
        specs = [tuple(w.value.sharding.spec) for w in model.weights[:4]]
        assert specs[:3] == [("model", None), (None, "model"), ("model",)]
        assert specs[3] == ("model", None)


def assert_copies_are_equal(weight):
    """Asserts that all devices have equal bfloat16 copies of the same shard."""
    assert weight.dtype == "bfloat16"
    copies = {}
    for shard in weight.value.addressable_shards:
        copies.setdefault(str(shard.index), []).append(np.asarray(shard.data))
    for first, *others in copies.values():
        for other in others:
            np.testing.assert_array_equal(first, other)


def test_bfloat16_weights_are_rounded_equally_in_every_layout():
    keras.config.set_dtype_policy("bfloat16")
    # The bound below assumes one learning rate for all variables. "auto" makes that of
    # token embeddings eight times larger, and with it the errors of 16-bit gradients.
    make = functools.partial(in_float32(ExtremeTensoring), rate_scale=None)
    one = trained(make, None)
    for distribution in (data_parallel(), model_parallel()):
        model = trained(make, distribution)
        for weight, expected in zip(model.weights, one.weights):
            assert_copies_are_equal(weight)
            # Sums over the batch have another order, and gradients have 16 bits: some
            # entries are rounded in the other direction.
            found, wanted = (np.asarray(w.value, "float32") for w in (weight, expected))
            np.testing.assert_allclose(found, wanted, rtol=2**-6, atol=2**-10)
    bits = [
        jax.jit(
            lambda: random_bits.draw(np.int32(7), positions((16, 8), 7)),
            out_shardings=keras.distribution.TensorLayout(axes, mesh()).backend_layout,
        )()
        for axes in ((None, None), ("batch", "model"))
    ]
    np.testing.assert_array_equal(*bits)


@every_optimizer
def test_state_is_replicated_except_full_momentum_which_is_sharded_as_its_variable(
    make,
):
    with model_parallel().scope():
        model, optimizer = training.model_of(keras), make()
        optimizer.build(model.trainable_variables)
    by_path = {w.path.replace("/", "_"): w for w in model.trainable_variables}
    names = 0
    for slot in optimizer.variables[2:]:
        variable = by_path.get(slot.name.removesuffix("_momentum"))
        if variable is not None:
            names += 1
        if slot.dtype == "uint8":
            continue  # packed; see the test above
        if variable is not None and slot.shape == variable.shape:
            assert slot.value.sharding == variable.value.sharding
        else:
            assert slot.value.sharding.is_fully_replicated
    assert names == (len(by_path) if optimizer.momentum_decays()[0] else 0)


def collectives(make, shape, spec):
    """The count of each (collective, entries of its result) in a compiled step."""
    with model_parallel().scope():
        layout = keras.distribution.TensorLayout(spec, mesh())
        return counted(compiled_step(make, shape, layout).as_text())


def compiled_step(make, shape, layout=None):
    """The compiled program of one step on a variable."""
    optimizer = make(learning_rate=0.1)
    variable = keras.Variable(np.ones(shape, "float32"), name="weights", layout=layout)
    optimizer.build([variable])

    def step(state, weights, gradients):
        return optimizer.stateless_apply(state, gradients, weights)

    state = [v.value for v in optimizer.variables]
    shardings = [variable.value.sharding], [v.sharding for v in state]
    compiled = jax.jit(step, donate_argnums=(0, 1), out_shardings=shardings)
    return compiled.lower(state, [variable.value], [variable.value]).compile()


def counted(program):
    kinds = "all-reduce|all-gather|all-to-all|collective-permute|reduce-scatter"
    found = collections.Counter()
    operation = rf"= (\(.*?\)|\S+) ({kinds})(?:-start)?\("
    for results, kind in re.findall(operation, program):
        for sizes in re.findall(r"\w+\[([\d,]*)\]", results):
            entries = np.prod([int(n) for n in sizes.split(",") if n], dtype=int)
            found[kind, int(entries)] += 1
    return found


def test_the_count_of_collectives_includes_a_gather_of_a_variable():
    sharded = keras.distribution.TensorLayout(("model", None), mesh()).backend_layout
    replicated = keras.distribution.TensorLayout((None, None), mesh()).backend_layout
    gather = jax.jit(lambda x: x + 1.0, out_shardings=replicated)
    weights = jax.device_put(np.ones((512, 64), "float32"), sharded)
    program = gather.lower(weights).compile().as_text()
    assert counted(program) == {("all-gather", 512 * 64): 1}


GEOMETRIC = functools.partial(
    ExtremeTensoring, beta_1=0, combination="geometric", update_bound=None
)
RANK_ONE = functools.partial(ExtremeTensoring, beta_1=0, combination="rank_one")


def name_of(part):
    """The class and arguments of an optimizer, as a test's id."""
    return f"{part.func.__name__} {part.keywords}" if callable(part) else None


# A shape, its sharding, and the rows and columns of its matrix view.
A_MATRIX = ((512, 64), ("model", None), 512, 64)
HEADS = ((64, 4, 16), (None, "model", None), 64, 4 * 16)  # queries
SHARDED = [
    A_MATRIX,
    ((512, 64), (None, "model"), 512, 64),
    ((1000, 64), ("model", None), 1000, 64),  # 25 × 40, neither divides by 4
    ((4004, 64), ("model", None), 4004, 64),  # padded at level 3
    HEADS,
    ((4, 16, 64), ("model", None, None), 4 * 16, 64),  # the output of attention
]
# Their modes are finer than an axis, so that padding depends on its length.
FINE = [functools.partial(GEOMETRIC, level=2), functools.partial(RANK_ONE, level=3)]
COARSE = [
    functools.partial(GEOMETRIC, level=1),
    functools.partial(RANK_ONE, level=1),
    functools.partial(RANK_ONE, level=2, epsilon=1e-8),
    functools.partial(ExtremeTensoring, beta_1=0.9, momentum_rank=None),
    functools.partial(
        ExtremeTensoring, beta_1=0.9, momentum_rank=None, momentum_dtype="int4"
    ),
    *(functools.partial(SM3, level=k, momentum=0) for k in (1, 2)),
]
# With more than two axes its marginals are those of a stack of matrices.
ADAFACTOR = functools.partial(
    Adafactor, beta_1=0, multiply_by_parameter_scale=False, clip_threshold=None
)


def test_muon_exchanges_gram_matrices_of_kernels_sharded_along_their_longer_axis():
    make = functools.partial(Muon, orthogonalize=True)
    found = collectives(make, (512, 64), ("model", None))
    marginals = {("all-gather", 512): 1, ("all-reduce", 64): 1}
    scalars = {("all-reduce", 1): 3}  # the scale, the norm and the largest entry
    assert found == marginals | scalars | {("all-reduce", 64 * 64): 2}
    # Along the shorter one, the kernel's momentum is gathered.
    found = collectives(make, (512, 64), (None, "model"))
    assert found["all-gather", 512 * 64] == 4


@pytest.mark.parametrize(
    ("make", "shape", "spec", "rows", "columns"),
    [
        *((make, *cut) for make in FINE for cut in SHARDED),
        *((make, *A_MATRIX) for make in COARSE),
        (COARSE[0], *HEADS),
        *((ADAFACTOR, *cut) for cut in SHARDED[:2]),
    ],
    ids=name_of,
)
def test_devices_exchange_only_marginals(make, shape, spec, rows, columns):
    # Each device has a shard of the sharded axis's marginal, and a partial sum of every
    # entry of the other marginal.
    is_sharded_by_rows = spec.index("model") < (1 if rows == shape[0] else 2)
    expected = {
        ("all-gather", rows if is_sharded_by_rows else columns): 1,
        ("all-reduce", columns if is_sharded_by_rows else rows): 1,
    }
    # Whether there is NaN, which maxima ignore; or the scale of packed momentum.
    if make.func is SM3 or "momentum_dtype" in make.keywords:
        expected["all-reduce", 1] = 1
    assert collectives(make, shape, spec) == expected


@pytest.mark.parametrize(
    ("arguments", "shape", "spec", "rows", "columns"),
    [
        *(
            ({}, *cut)
            for cut in (
                *SHARDED[:2],
                ((64, 512), (None, "model"), 64, 512),
                HEADS,
            )
        ),
        *(
            (arguments, *cut)
            for arguments in (
                {"momentum_rank": 4, "momentum_dtype": "float32"},
                {"momentum_rank": 4, "momentum_dtype": "int8", "level": 2},
                {"momentum_rank": 4, "epsilon": 1e-8, "clip_threshold": 1.0},
            )
            for cut in SHARDED[:1]
        ),
    ],
    ids=str,
)
def test_devices_exchange_only_projections_of_momentum_in_a_subspace(
    arguments, shape, spec, rows, columns
):
    make = functools.partial(ExtremeTensoring, beta_1=0.9, **arguments)
    plan = make().plan_state([keras.Variable(np.ones(shape, "float32"))])
    rank = plan[0].momentum.rank
    found = collectives(make, shape, spec)
    assert {kind for kind, _ in found} <= {"all-reduce", "all-gather"}
    # Marginals, scales and norms, and products of the update with thin matrices, which
    # are sharded along the sharded axis and partial sums along the other.
    thin = {rank * rows, rank * columns}
    small = {entries for _, entries in found} - thin
    assert max(small) <= max(rows, columns)
    # The projection, two products for a new basis, and the rotation of the momentum.
    assert 2 <= sum(found[of] for of in found if of[1] in thin) <= 5
    assert max(thin) < rows * columns


@pytest.mark.parametrize(("axis", "slots"), [(0, 512), (1, 64)])
@pytest.mark.parametrize("spec", [("model", None), (None, "model")])
def test_devices_exchange_only_the_marginal_of_subset_norm(axis, slots, spec):
    make = functools.partial(SubsetNorm, axis={"weights": axis}, beta_1=0)
    is_sharded = spec[axis] == "model"
    expected = {("all-gather" if is_sharded else "all-reduce", slots): 1}
    assert collectives(make, (512, 64), spec) == expected


def test_devices_exchange_a_single_value_at_level_inf():
    make = functools.partial(ExtremeTensoring, level="inf", beta_1=0)
    for spec in (("model", None), (None, "model"), ("batch", "model")):
        found = collectives(make, (512, 64), spec)
        assert {entries for _, entries in found} == {1}


def test_devices_exchange_only_marginals_of_a_variable_sharded_along_both_axes():
    for make in (GEOMETRIC, RANK_ONE):
        make = functools.partial(make, level=2)
        found = collectives(make, (512, 64), ("batch", "model"))
        assert sum(entries * count for (_, entries), count in found.items()) < 2 * 576


def test_adafactors_stack_of_matrices_is_not_gathered():
    make = functools.partial(Adafactor, beta_1=0, multiply_by_parameter_scale=False)
    for axis in range(4):
        spec = [None] * 4
        spec[axis] = "model"
        found = collectives(make, (8, 4, 32, 16), tuple(spec))
        # Rows and columns of 32 stacked matrices, and the norm.
        assert {entries for _, entries in found} <= {32 * 32, 32 * 16, 1}


@pytest.mark.parametrize(
    ("make", "distribute"),
    [
        (functools.partial(GEOMETRIC, level=2, clip_threshold=1.0), data_parallel),
        (functools.partial(GEOMETRIC, level=2, clip_threshold=1.0), model_parallel),
        (functools.partial(GEOMETRIC, level="inf"), model_parallel),
        (functools.partial(RANK_ONE, clip_threshold=1.0), data_parallel),
        (functools.partial(RANK_ONE, level=2), model_parallel),
        (functools.partial(SM3, momentum=0), data_parallel),
        (functools.partial(SM3, variant="I", momentum=0), model_parallel),
        (functools.partial(Adafactor, beta_1=0), data_parallel),
        (functools.partial(Adafactor, beta_1=0), model_parallel),
        (functools.partial(SubsetNorm, beta_1=0), model_parallel),
    ],
)
def test_a_distributed_step_has_no_temporary_of_the_variables_size(make, distribute):
    shape = (2048, 1024)
    with distribute().scope():
        layout = None
        if distribute is model_parallel:
            layout = keras.distribution.TensorLayout(("model", None), mesh())
        needed = compiled_step(make, shape, layout).memory_analysis()
    assert needed.temp_size_in_bytes < 100_000  # a quarter of the variable: 2 MB


def test_devices_exchange_a_single_value_per_norm():
    clipped = functools.partial(GEOMETRIC, level=2, clip_threshold=1.0)
    found = collectives(clipped, (512, 64), ("model", None))
    assert found.pop(("all-reduce", 1)) == 1
    assert found == {("all-gather", 512): 1, ("all-reduce", 64): 1}
    # One norm of the weights and one of the update.
    make = functools.partial(Adafactor, beta_1=0)
    found = collectives(make, (64, 4, 16), (None, "model", None))
    assert found.pop(("all-reduce", 1)) == 2
    assert found == {("all-gather", 64 * 4): 1, ("all-reduce", 64 * 16): 1}


def test_two_processes_train_as_one_process_does(tmp_path):
    jax_worker.train(keras.distribution.list_devices()[:4], 0, 1, tmp_path)
    training.finish(training.start("tests.jax_worker", 2, tmp_path))
    for kind in ("data", "model"):
        one, first, second = (
            tmp_path / f"{kind}-{process}.npz" for process in ("1-0", "2-0", "2-1")
        )
        training.assert_close(one, first, tolerance=1e-6)
        training.assert_close(first, second, tolerance=0)
