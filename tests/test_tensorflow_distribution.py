"""`tf.distribute`: several devices and several processes train as one would."""

import functools
import signal
import subprocess
import sys

import keras
import numpy as np
import pytest

if keras.backend.backend() != "tensorflow":
    pytest.skip("tf.distribute is TensorFlow's", allow_module_level=True)

import tensorflow as tf

from et_optimizer import ExtremeTensoring, Shampoo
from tests import distributed_training as training
from tests.optimizers import OPTIMIZERS, SLOTS_OF_EACH_KIND, in_float32


def dataset():
    return tf.data.Dataset.from_tensor_slices(training.data()).batch(training.BATCH)


def by_fit(make, strategy):
    with strategy.scope():
        model = training.model_of(keras)
        optimizer = make(learning_rate=0.005)
        model.compile(optimizer, training.loss_of(keras))
    model.fit(dataset(), epochs=training.EPOCHS, verbose=0)
    return model, optimizer


def by_loop(make, strategy):
    make = functools.partial(make, learning_rate=0.005)
    return training.loop(strategy, make, dataset())


def weights(model):
    return [w.numpy() for w in model.weights]


# Sketches under tf_keras, whose step is the same (test_tf_keras.py).
@pytest.mark.parametrize("name", SLOTS_OF_EACH_KIND[1:3])
def test_two_mirrored_devices_train_as_one_does(name):
    make = in_float32(OPTIMIZERS[name])
    mirrored = training.mirrored()
    start = weights(training.model_of(keras))
    one = weights(by_fit(make, tf.distribute.get_strategy())[0])
    for train in (by_fit, by_loop):
        model, optimizer = train(make, mirrored)
        for before, expected, found in zip(start, one, weights(model)):
            np.testing.assert_allclose(found, expected, rtol=0, atol=1e-6)
            assert np.any(found != before)
        for slot in optimizer.variables:
            on_one, on_other = slot.value.values
            assert "CPU:0" in on_one.device and "CPU:1" in on_other.device
            np.testing.assert_array_equal(on_one.numpy(), on_other.numpy())


def test_weights_in_bfloat16_are_rounded_alike_on_mirrored_devices():
    keras.config.set_dtype_policy("bfloat16")
    start = weights(training.model_of(keras))
    # On a CPU TensorFlow adds up no gradients in bfloat16 over devices.
    model, _ = training.loop(
        training.mirrored(), ExtremeTensoring, dataset(), gradient_dtype="float32"
    )
    for before, weight in zip(start, model.weights):
        assert keras.backend.standardize_dtype(weight.dtype) == "bfloat16"
        on_one, on_other = (copy.numpy() for copy in weight.value.values)
        np.testing.assert_array_equal(on_one, on_other)
        assert np.any(on_one != before)


def test_a_mirrored_model_is_saved_and_goes_on(tmp_path):
    mirrored = training.mirrored()
    model, _ = by_fit(ExtremeTensoring, mirrored)
    model.save(tmp_path / "model.keras")
    model.fit(dataset(), verbose=0)
    with mirrored.scope():
        again = keras.models.load_model(tmp_path / "model.keras")
    again.fit(dataset(), verbose=0)
    for expected, found in zip(weights(model), weights(again)):
        np.testing.assert_array_equal(found, expected)


def test_steps_that_are_not_finite_are_counted_or_refused_on_mirrored_devices():
    def spoiled(nonfinite):
        mirrored = training.mirrored()
        with mirrored.scope():
            model = training.model_of(keras)
            model.compile(Shampoo(nonfinite=nonfinite), lambda y, z: z[:, 0] * np.nan)
        model.fit(dataset(), verbose=0)
        return model.optimizer.skipped_steps

    assert set(spoiled("skip").values()) == {4}
    with pytest.raises(ValueError, match="Every gradient must be finite"):
        spoiled("raise")


# What docs/distribution.md says of Keras 3.15, with any optimizer. Should one of these
# fail one day, what it is about has become possible.

# In a process of its own: a strategy that failed while it was traced cannot be used.
TRY_WHAT_FAILS = """
import functools
import keras
from tests import conftest  # its two devices
from tests.test_tensorflow_distribution import ExtremeTensoring, by_fit, training

for make in (ExtremeTensoring, keras.optimizers.Adam):
    for arguments in (
        {"gradient_accumulation_steps": 2},
        {"use_ema": True, "ema_overwrite_frequency": 2},
    ):
        mirrored = training.mirrored()
        try:
            by_fit(functools.partial(make, **arguments), mirrored)
        except RuntimeError as error:
            print("merge_call failed" if "merge_call" in str(error) else error)
"""


def test_keras_cannot_accumulate_nor_overwrite_on_mirrored_devices():
    said = subprocess.run(
        [sys.executable, "-c", TRY_WHAT_FAILS],
        cwd=training.ROOT,
        capture_output=True,
        text=True,
    )
    assert said.stdout.count("merge_call failed") == 4, said.stderr[-4000:]


@pytest.mark.parametrize("make", [ExtremeTensoring, keras.optimizers.Adam])
def test_keras_clips_before_the_gradients_of_mirrored_devices_are_added(make):
    clipped = functools.partial(make, global_clipnorm=0.1)
    mirrored = training.mirrored()
    one = weights(by_fit(clipped, tf.distribute.get_strategy())[0])
    two = weights(by_fit(clipped, mirrored)[0])
    assert max(np.abs(a - b).max() for a, b in zip(one, two)) > 1e-4


def test_two_processes_train_as_one_does_in_a_loop_of_ones_own(tmp_path):
    worker = "tests.tensorflow_worker"
    training.finish(training.start(worker, 1, tmp_path, "loop", -1))
    training.finish(training.start(worker, 2, tmp_path, "loop", -1))
    training.assert_close(tmp_path / "1-0.npz", tmp_path / "2-0.npz", tolerance=1e-6)
    training.assert_close(tmp_path / "2-0.npz", tmp_path / "2-1.npz", tolerance=0)


def test_keras_fit_in_two_processes_is_still_impossible(tmp_path):
    # As docs/distribution.md says. Should this fail one day, it has become possible.
    processes = training.start("tests.tensorflow_worker", 2, tmp_path, "fit", -1)
    for process in processes:
        said = process.communicate(timeout=240)[0]
        assert process.returncode != 0
        assert "convert a value (PerReplica" in said


def test_a_killed_worker_of_tf_keras_goes_on_as_if_nothing_had_happened(tmp_path):
    pytest.importorskip("tf_keras")
    worker = "tests.tensorflow_worker"
    alone, undisturbed, disturbed = (
        tmp_path / name for name in ("alone", "undisturbed", "disturbed")
    )
    for folder in (alone, undisturbed, disturbed):
        folder.mkdir()
    training.finish(training.start(worker, 1, alone, "tf_keras", -1))
    training.finish(training.start(worker, 2, undisturbed, "tf_keras", -1))
    training.assert_close(alone / "1-0.npz", undisturbed / "2-0.npz", tolerance=1e-6)
    # Step 6 is in the middle of the second epoch of 4 steps.
    other, killed = training.start(worker, 2, disturbed, "tf_keras", 6)
    killed.communicate(timeout=240)
    assert killed.returncode == -signal.SIGKILL
    # It waits for the killed one; whoever runs a cluster starts both again.
    other.kill()
    other.communicate()
    assert not list(disturbed.glob("*.npz"))
    training.finish(training.start(worker, 2, disturbed, "tf_keras", -1))
    for rank in range(2):
        name = f"2-{rank}.npz"
        training.assert_close(undisturbed / name, disturbed / name, tolerance=0)
