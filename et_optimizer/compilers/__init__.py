"""What compilers and devices need.

Code that depends on the backend, on tracing or on where tensors live belongs here, and
the rest of the library calls it. (`tf_keras` and TensorFlow's checkpoints are
TensorFlow's own.)

- `tracing`: whether a value is known yet, and functions traced once.
- `symbolic`: variables without memory.
- `barriers`: what a compiler must not fuse, merge or reorder.
- `reductions`: sums and maxima along the axes of a matrix.
- `row_blocks`: large matrices, a block of rows at a time.
- `bits`: tensors as integers, and counters of entries.
- `layouts`: tensors that are sharded or replicated over devices.
- `batching`, `scatter`: which small variables are updated together, and how rows are.
- `linear_algebra`: decompositions, with failures of a backend handled.
- `autodiff`: the gradients of a model's loss.
"""
