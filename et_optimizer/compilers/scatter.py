"""How a program changes some rows of a variable."""

import keras


def replaces_rows_in_place():
    """Whether rows of a variable are replaced in place.

    TensorFlow assigns a `tf.IndexedSlices` to a variable row by row. Other backends
    make a new value, which a compiler writes over the old one.
    """
    return keras.backend.backend() == "tensorflow"
