"""Keras optimizers, one file per paper: its rule and its Keras class.

- `extreme_tensoring`, `sm3`, `adafactor`, `subset_norm`, `shampoo`: the papers.
- `rule`: the interface of a rule. `rank_one`: an estimate that two papers share.
- `base`: the base class of all of them, with the arguments that they share. `levels`:
  the base of those with a `level`. `options`: how arguments are declared and checked.
- `step`: one step of one variable, as a pure function. `updating`: the steps of all.
- `slots`: the state of a variable. `building`: the state of all. `saved_state`: how it
  is saved and refused.
- `nonfinite`, `clipping`, `averages`, `rounding`, `learning_rates`, `batched`: one
  concern each.
"""
