"""Data sets of the studies, from files on this machine or from TFDS."""

# The names of the studies' data.
TEXTS = ("stdlib", "lm1b", "folder")
IMAGES = ("digits", "cifar10", "folder")
