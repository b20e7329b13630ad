"""Measurements: step time, memory, and how the defaults do. See RESULTS.md."""
