"""The entmax family: sparse maps and their Fenchel-Young losses."""

from jaxcold.sparse.activations import (
    budget,
    entmax,
    entmax15,
    normmax,
    sparsemax,
    support_size,
    threshold,
)
from jaxcold.sparse.losses import entmax15_loss, entmax_loss, fenchel_young_loss, sparsemax_loss

__all__ = [
    "budget",
    "entmax",
    "entmax15",
    "entmax15_loss",
    "entmax_loss",
    "fenchel_young_loss",
    "normmax",
    "sparsemax",
    "sparsemax_loss",
    "support_size",
    "threshold",
]
