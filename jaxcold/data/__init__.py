"""Data sets: reading, checking, splitting. NumPy, pandas and SciPy only; never JAX."""
