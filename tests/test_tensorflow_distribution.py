"""`tf.distribute`: several devices or processes train as one device does."""

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

from et_optimizer import ExtremeTensoring
from tests import distributed_training as training
from tests import tensorflow_worker
from tests.optimizers import OPTIMIZERS, in_float32


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


@pytest.mark.parametrize(
    ("name", "train"),
    [
        ("ExtremeTensoring in a subspace", by_fit),
        ("SM3-I everything on", by_loop),
    ],
)
def test_two_mirrored_devices_train_as_one_device_does(name, train):
    make = in_float32(OPTIMIZERS[name])
    start = weights(training.model_of(keras))
    one = weights(train(make, tf.distribute.get_strategy())[0])
    model, optimizer = train(make, training.mirrored())
    for before, expected, found in zip(start, one, weights(model)):
        np.testing.assert_allclose(found, expected, rtol=0, atol=1e-6)
        assert np.any(found != before)
    for slot in optimizer.variables:
        on_one, on_other = slot.value.values
        assert "CPU:0" in on_one.device and "CPU:1" in on_other.device
        np.testing.assert_array_equal(on_one.numpy(), on_other.numpy())


def test_bfloat16_weights_are_rounded_equally_on_mirrored_devices():
    keras.config.set_dtype_policy("bfloat16")
    start = weights(training.model_of(keras))
    # TensorFlow cannot add bfloat16 gradients over CPU devices.
    model, _ = training.loop(
        training.mirrored(), ExtremeTensoring, dataset(), gradient_dtype="float32"
    )
    for before, weight in zip(start, model.weights):
        assert keras.backend.standardize_dtype(weight.dtype) == "bfloat16"
        on_one, on_other = (copy.numpy() for copy in weight.value.values)
        np.testing.assert_array_equal(on_one, on_other)
        assert np.any(on_one != before)


def test_a_saved_mirrored_model_continues_as_if_never_saved(tmp_path):
    mirrored = training.mirrored()
    model, _ = by_fit(ExtremeTensoring, mirrored)
    model.save(tmp_path / "model.keras")
    model.fit(dataset(), verbose=0)
    with mirrored.scope():
        again = keras.models.load_model(tmp_path / "model.keras")
    again.fit(dataset(), verbose=0)
    for expected, found in zip(weights(model), weights(again)):
        np.testing.assert_array_equal(found, expected)


def test_nonfinite_steps_are_counted_or_refused_on_mirrored_devices():
    def skipped_steps(nonfinite):
        mirrored = training.mirrored()
        with mirrored.scope():
            model = training.model_of(keras)
            model.compile(
                ExtremeTensoring(nonfinite=nonfinite), lambda y, z: z[:, 0] * np.nan
            )
        model.fit(dataset(), verbose=0)
        return model.optimizer.skipped_steps

    assert set(skipped_steps("skip").values()) == {4}
    with pytest.raises(ValueError, match="Every gradient, .* must be finite"):
        skipped_steps("raise")


# Limitations of Keras 3.15 with any optimizer, as documented in docs/distribution.md.
# If one of these tests fails with a later Keras, the limitation is gone.

# Run in its own process, because a strategy is unusable after a failed trace.
FAILING_PROGRAM = """
import functools
import keras
from tests import conftest  # its two devices
from tests.test_tensorflow_distribution import ExtremeTensoring, by_fit, training

for make, arguments in (
    (ExtremeTensoring, {"gradient_accumulation_steps": 2}),
    (keras.optimizers.SGD, {"gradient_accumulation_steps": 2}),
    (ExtremeTensoring, {"use_ema": True, "ema_overwrite_frequency": 2}),
    (keras.optimizers.SGD, {"use_ema": True, "ema_overwrite_frequency": 2}),
):
    try:
        by_fit(functools.partial(make, **arguments), training.mirrored())
    except RuntimeError as error:
        print("merge_call failed" if "merge_call" in str(error) else error)
"""


def test_keras_cannot_accumulate_gradients_or_overwrite_averages_when_mirrored():
    done = subprocess.run(
        [sys.executable, "-c", FAILING_PROGRAM],
        cwd=training.ROOT,
        capture_output=True,
        text=True,
    )
    assert done.stdout.count("merge_call failed") == 4, done.stderr[-4000:]


def test_keras_clips_the_gradients_of_each_mirrored_device_before_adding_them():
    clipped = functools.partial(keras.optimizers.Adam, global_clipnorm=0.1)
    one = weights(by_loop(clipped, tf.distribute.get_strategy())[0])
    two = weights(by_loop(clipped, training.mirrored())[0])
    assert max(np.abs(a - b).max() for a, b in zip(one, two)) > 1e-4


def test_two_processes_train_as_one_does_in_a_custom_loop_but_keras_fit_fails(
    tmp_path,
):
    tensorflow_worker.main(0, 1, None, tmp_path, "loop", -1)
    started = training.start("tests.tensorflow_worker", 2, tmp_path, "loop, fit", -1)
    for output in training.finish(started):
        assert "convert a value (PerReplica" in output
    training.assert_close(tmp_path / "1-0.npz", tmp_path / "2-0.npz", tolerance=1e-6)
    training.assert_close(tmp_path / "2-0.npz", tmp_path / "2-1.npz", tolerance=0)


def test_a_killed_and_restarted_worker_of_tf_keras_ends_with_the_same_weights(tmp_path):
    pytest.importorskip("tf_keras")
    worker = "tests.tensorflow_worker"
    alone, undisturbed, disturbed = (
        tmp_path / name for name in ("alone", "undisturbed", "disturbed")
    )
    for folder in (alone, undisturbed, disturbed):
        folder.mkdir()
    tensorflow_worker.main(0, 1, None, alone, "tf_keras", -1)
    training.finish(training.start(worker, 2, undisturbed, "tf_keras", -1))
    training.assert_close(alone / "1-0.npz", undisturbed / "2-0.npz", tolerance=1e-6)
    # Step 6 is in the middle of the second epoch of 4 steps.
    other, killed = training.start(worker, 2, disturbed, "tf_keras", 6)
    killed.communicate(timeout=240)
    assert killed.returncode == -signal.SIGKILL
    # The other worker waits for the killed one; a cluster restarts both.
    other.kill()
    other.communicate()
    assert not list(disturbed.glob("*.npz"))
    training.finish(training.start(worker, 2, disturbed, "tf_keras", -1))
    for rank in range(2):
        name = f"2-{rank}.npz"
        training.assert_close(undisturbed / name, disturbed / name, tolerance=0)
