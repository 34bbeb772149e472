"""Data sets: reading, checking, splitting. NumPy, pandas and SciPy only; never JAX."""

from jaxcold.data.pairs.dataset import ColdSplit, ContentFeatures, Dataset, Interactions
from jaxcold.data.pairs.load import load
from jaxcold.data.pairs.split import make_split
from jaxcold.data.pairs.split_file import read_split, write_split

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
