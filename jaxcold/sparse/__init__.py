"""The entmax family: sparse maps and their Fenchel-Young losses."""

from jaxcold.sparse.activations import entmax, entmax15, sparsemax
from jaxcold.sparse.losses import entmax15_loss, entmax_loss, fenchel_young_loss, sparsemax_loss

__all__ = [
    "entmax",
    "entmax15",
    "entmax15_loss",
    "entmax_loss",
    "fenchel_young_loss",
    "sparsemax",
    "sparsemax_loss",
]
