"""What compilers and devices need.

The only package that asks which backend runs, what is being traced and where tensors
live. Everything else is written as if none of this mattered.

- `tracing`: whether a value is known yet, and functions traced once.
- `symbolic`: variables without memory.
- `barriers`: what a compiler must not fuse, merge or reorder.
- `reductions`: sums and maxima along the axes of a matrix.
- `row_blocks`: large matrices, a block of rows at a time.
- `bits`: tensors as integers, and counters of entries.
- `layouts`: tensors that are sharded or replicated over devices.
- `linear_algebra`: what backends compute with different care.
"""
