"""Benchmarks of step time, memory and default arguments. See RESULTS.md."""
