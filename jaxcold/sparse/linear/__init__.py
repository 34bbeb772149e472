"""Losses of ``h @ W.T`` that never hold the logits: one per row, their sum, the items sharded."""

from jaxcold.sparse.linear.per_row import linear_entmax_loss, linear_softmax_loss
from jaxcold.sparse.linear.sharded import sharded_entmax_sum
from jaxcold.sparse.linear.summed import linear_entmax_sum

__all__ = [
    "linear_entmax_loss",
    "linear_entmax_sum",
    "linear_softmax_loss",
    "sharded_entmax_sum",
]
