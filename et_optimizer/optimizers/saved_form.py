"""Refusing saved state that has another form than what an optimizer holds."""

import json

import ml_dtypes
import numpy as np


class SavedForm:
    """For an optimizer, in Keras or tf_keras, with `built` and `variables`.

    It says what it holds by `_plans`, and by `check_fits(saved, own)` raises a
    `ValueError` unless something saved has that form.
    """

    # How many variables an optimizer saves that was never built: in Keras 3 its
    # iteration and learning rate.
    unbuilt_variables = 2
    _restored_plans = None

    def load_own_variables(self, store):
        """Loads the state; refuses, before changing it, that of another index."""
        saved = [tuple(store[str(i)].shape) for i in range(len(store.keys()))]
        if self.built and len(saved) > self.unbuilt_variables:
            self.check_fits(saved, [tuple(v.shape) for v in self.variables])
        super().load_own_variables({key: _read(store[key]) for key in store.keys()})

    # What `tf.train.Checkpoint` saves of an object itself and restores before any
    # variable below it: here the form of the slots, so that a checkpoint of another
    # level is refused while nothing has been changed, or, if it is restored before
    # the optimizer is built, when that is about to happen.

    def _serialize_to_tensors(self):
        import tensorflow as tf

        return {"plans": tf.constant(json.dumps(self._plans()))}

    def _restore_from_tensors(self, restored_tensors):
        import tensorflow as tf

        if tf.executing_eagerly():
            saved = json.loads(restored_tensors["plans"].numpy().decode())
            saved = [[(n, tuple(s), d) for n, s, d in plan] for plan in saved]
            if self.built:
                self.check_fits(saved, self._plans())
            # Past the frameworks, which would put a list of their own in its place.
            object.__setattr__(self, "_restored_plans", saved)
        return tf.no_op()

    def _copy_trackable_to_cpu(self, object_map):
        """Nothing: the form, unlike the variables, does not change while saved."""


def _read(saved):
    """An array that was saved; NumPy's files do not say what bfloat16 is."""
    array = np.asarray(saved)
    return array.view(ml_dtypes.bfloat16) if array.dtype == np.dtype("V2") else array
