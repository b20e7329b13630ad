"""Keras optimizers, one file a paper: its rule and its Keras class.

- `extreme_tensoring`, `sm3`, `adafactor`, `subset_norm`, `shampoo`: the papers.
- `rule`: the interface of a rule. `rank_one`: an estimate that two papers share.
- `base`: the Keras optimizer that all of them are. `levels`: those with a `level`.
- `options`: the arguments that all of them share.
- `step`: one step of one variable, as a pure function.
- `slots`: the state of a variable. `saved_state`: how it is saved and refused.
- `nonfinite`, `clipping`, `averages`, `rounding`, `learning_rates`, `batched`: one
  concern each.
"""
