"""Settings shared by all tests."""

import os

from hypothesis import settings

# The same examples on every run, and no deadline: the clock decides nothing here.
settings.register_profile(
    "deterministic", derandomize=True, deadline=None, max_examples=25
)
settings.load_profile("deterministic")
os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "2")
