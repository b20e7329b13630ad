"""Data sets that need no network, and the pipelines that read them."""
