"""Data sets of the studies, from files on this machine or from TFDS."""

# What the studies can be told to read.
TEXTS = ("stdlib", "lm1b", "folder")
IMAGES = ("digits", "cifar10", "folder")
