"""The library's version, in a file that packaging can read without Keras."""

__version__ = "0.2.0"
