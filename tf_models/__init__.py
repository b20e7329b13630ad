"""Models, data pipelines and studies that use `et_optimizer`."""

import importlib.util
import os

# Read when TensorFlow and Keras are first imported, so set before either is. All are
# defaults: a value the user has exported stands. The backend is the first there is.
for _backend in ("tensorflow", "jax", "torch"):
    if importlib.util.find_spec(_backend):
        os.environ.setdefault("KERAS_BACKEND", _backend)
os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "2")
# Its operations round differently from one machine to the next, and say so at length.
os.environ.setdefault("TF_ENABLE_ONEDNN_OPTS", "0")
# Keeps a step's buffers for the next. Otherwise each step on a CPU gives tens of
# megabytes back to the system and takes them again, page by page, which cost a third
# of the time of the step that `compare` trains with.
os.environ.setdefault("TF_CPU_ALLOCATOR_USE_BFC", "true")
