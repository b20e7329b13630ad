"""The models of the studies, of Keras layers only."""
