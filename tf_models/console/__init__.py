"""What the programs share: their flags, what they write, and how Ctrl-C ends them."""
