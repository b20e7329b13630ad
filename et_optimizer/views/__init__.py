"""Gradients as a rule sees them: through a tensor index, and as updates.

- `tensor_index`: how the entries of a variable are indexed by modes. Plain Python.
- `gradients`: the forms of a gradient, and the way from one to its view.
- `formats`: sparse rows, and a tensor to be scaled.
- `dense`, `sparse`: views of dense and sparse gradients: reductions over the slices of
  every mode, and broadcasts back.
- `updates`: what a step subtracts, made from a view where it is subtracted.
- `axes`: reductions and broadcasts between the axes of a view and its modes.
"""
