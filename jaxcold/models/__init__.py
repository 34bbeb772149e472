"""Models: the only package that imports flax."""
