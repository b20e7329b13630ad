"""The models that the studies train, of Keras layers only."""
