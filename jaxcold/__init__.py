"""Item cold-start recommendation in JAX."""
