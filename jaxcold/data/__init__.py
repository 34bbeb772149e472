"""Data sets: reading, checking, splitting. NumPy, pandas and SciPy only; never JAX."""

from jaxcold.data.dataset import ColdSplit, ContentFeatures, Dataset, Interactions
from jaxcold.data.loading import load
from jaxcold.data.splits import make_split, read_split, write_split

__all__ = [
    "ColdSplit",
    "ContentFeatures",
    "Dataset",
    "Interactions",
    "load",
    "make_split",
    "read_split",
    "write_split",
]
