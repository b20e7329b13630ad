"""The library's version, apart so that packaging can read it without Keras."""

__version__ = "0.2.0"
