"""Losses of next-item prediction over a target and some items drawn at random."""

import math
from typing import Literal, NamedTuple

import jax
import jax.numpy as jnp
from jax import Array

from jaxcold.models.layers import Compute, product
from jaxcold.sparse import fenchel_young_loss

Loss = Literal["full", "sampled", "gbce"]


class Objective(NamedTuple):
    """The loss and its options, explained at `jaxcold.models.sasrec.build`."""

    loss: Loss
    alpha: float
    tau: float
    negatives: int
    calibration: float
    compute: Compute = "float32"


def sampled_loss(
    hidden: Array,
    target_rows: Array,
    drawn_rows: Array,
    drawn: Array,
    target: Array,
    items: int,
    objective: Objective,
    weights: Array | None = None,
) -> Array:
    """Sum of a loss over the target and some items drawn uniformly, the same for all tokens.

    "sampled" is the Fenchel-Young loss of these classes alone; for softmax the drawn logits are
    raised by the logarithm of how many items each stands for. "gbce" is the binary cross-entropy
    of gSASRec (Petrov and Macdonald, RecSys 2023), its positive term weighted by beta. `weights`
    [T] multiply the losses of the tokens; None: 1.
    """
    loss, alpha, tau, negatives, calibration, compute = objective
    at = jnp.clip(target, 0, items - 1)
    positive = jnp.sum(hidden * target_rows, axis=1)
    negative = product(hidden, drawn_rows.T, compute)
    is_negative = drawn[None, :] != at[:, None]
    if loss == "sampled":
        if alpha == 1:
            negative = negative + tau * math.log(items / negatives)
        z = jnp.concatenate([positive[:, None], jnp.where(is_negative, negative, -jnp.inf)], axis=1)
        label = jnp.where(target >= 0, 0, -1)
        if alpha == 1:
            return tau * jnp.sum(fenchel_young_loss(z / tau, label, 1.0, weights=weights))
        return jnp.sum(fenchel_young_loss(z, label, alpha, tau=tau, weights=weights))
    rate = min(negatives / max(items - 1, 1), 1.0)
    beta = rate * (calibration * (1 - 1 / rate) + 1 / rate)
    terms = -beta * jax.nn.log_sigmoid(positive)
    terms -= jnp.sum(jnp.where(is_negative, jax.nn.log_sigmoid(-negative), 0), axis=1)
    if weights is not None:
        terms = terms * weights
    return jnp.sum(jnp.where(target >= 0, terms, 0))
