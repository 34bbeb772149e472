"""SEMCo: a content encoder trained with sampled entmax, so that new items need no clicks.

An item's embedding is a function of its content alone; a user is the mean of the embeddings of
the items in the training history; the score is their cosine.

Reference: Meehan and Pauwels, Sparse Contrastive Learning for Content-Based Cold Item
Recommendation, SIGIR 2026, sections 3.2 and 3.3.1.
"""

import functools
from collections.abc import Mapping
from typing import Any, Literal, get_args

import jax
import jax.numpy as jnp
from flax import nnx
from jax import Array

from jaxcold import parallel
from jaxcold.data.pairs.dataset import Dataset
from jaxcold.models import encoders
from jaxcold.models.layers import (
    Compute,
    rounded,
    sums,
    unit_rows,
)
from jaxcold.models.semco_data import SPLIT, Batch, Fixed, Histories, choose, prepare, unpack
from jaxcold.sparse import fenchel_young_loss
from jaxcold.types import Model, Representations

USER_VECTOR = ("mean", "leave_one_out")
GRADIENT = ("autodiff", "fenchel_young")
Gradient = Literal["autodiff", "fenchel_young"]

# Logit of a column that is not there: so far below a cosine that no map gives it a probability.
ABSENT = -1e9


@functools.partial(jax.custom_vjp, nondiff_argnums=(3,))
def logits(users: Array, items: Array, bias: Array, compute: Compute = "float32") -> Array:
    """``users @ items.T + bias``: [b, d], [B, d], [B] -> [b, B]; `bias` gets no gradient.

    Both halves are written for memory: the bias is one more column of the product instead of a
    pass over [B, B], and the gradient never transposes its cotangent [B, B], which costs a CPU
    twice the product itself.
    """
    ones = jnp.ones((len(users), 1), users.dtype)
    left = jnp.concatenate([users, ones], 1)
    right = jnp.concatenate([items, bias[:, None]], 1)
    return sums(rounded(left, compute), rounded(right, compute).T)


def _logits_forward(
    users: Array, items: Array, bias: Array, compute: Compute
) -> tuple[Array, tuple[Array, Array]]:
    kept = rounded(users, compute), rounded(items, compute)
    return logits(users, items, bias, compute), kept


def _logits_backward(
    compute: Compute, kept: tuple[Array, Array], g: Array
) -> tuple[Array, Array, None]:
    users, items = kept
    g = rounded(g, compute)
    # Between barriers the transposes stay on the small arrays; XLA would move them to the large.
    small = jax.lax.optimization_barrier(sums(jax.lax.optimization_barrier(users.T), g))
    return sums(g, items), small.T, None


logits.defvjp(_logits_forward, _logits_backward)


def sampled_entmax(
    users: Array,
    items: Array,
    weight: Array,
    *,
    alpha: float,
    tau: Array | float,
    gradient: Gradient,
    compute: Compute = "float32",
    axis: str | None = None,
) -> Array:
    """Sampled entmax of a batch (paper, equation 7): row j's target is column j.

    Args:
        users: [b, d] unit rows, the device's share of the batch; all of it on one device.
        items: [B, d] unit rows, the positives; each row's negatives are the others'.
        weight: [B]; pairs of weight 0 are neither targets nor negatives.
        alpha: 1 softmax, 1.5 entmax15, 2 sparsemax.
        tau: temperature. For alpha > 1 the cosine is divided by it twice for the
            probabilities and once for the score (tau_0 = tau); once for softmax (tau_0 = 1).
        gradient: see `jaxcold.sparse.fenchel_young_loss`.
        compute: of the products, see `build`.
        axis: of the devices, see `jaxcold.parallel`.

    Returns:
        [b] losses, not weighted.
    """
    # Padding has no column to hit; its row is given one and counts for nothing.
    labels = parallel.shard(jnp.where(weight > 0, jnp.arange(len(weight)), 0), axis)
    return fenchel_young_loss(
        logits(users / tau, items, jnp.where(weight > 0, 0.0, ABSENT), compute),
        labels,
        alpha,
        tau=tau if alpha > 1 else 1.0,
        gradient=gradient if alpha > 1 else "fenchel_young",
    )


def user_vectors(
    item_rows: Array, histories: Histories, left_out: Array | None, axis: str | None = None
) -> Array:
    """Unit means of the embeddings of each row's history.

    Args:
        item_rows: [n, D] embeddings, those of the device's items.
        histories: of the B rows; its `item` are rows of `item_rows`.
        left_out: [b, D] what does not count in its own row's mean, or None.
        axis: of the devices, which add up their items' embeddings; each returns its share of the
            B rows, b.

    Returns:
        [b, D] unit rows; zero where nothing is left.
    """
    item, row, leader, length = histories
    total = jax.ops.segment_sum(
        item_rows[item], row, num_segments=length.shape[0], indices_are_sorted=True
    )[leader]
    total, length = parallel.scatter_sum(total, axis), parallel.shard(length, axis)
    if left_out is not None:
        total = total - left_out
        length = length - 1
    # The mean's divisor cancels in the unit norm but keeps the scale of sums out of its rounding.
    mean = total / jnp.maximum(length, 1)[:, None]
    # A history that was only the positive has no direction: exactly zero, not rounding noise.
    return unit_rows(jnp.where((length > 0)[:, None], mean, 0.0))


def contrast(
    rows: Array,
    histories: Histories,
    positive: Array,
    weight: Array,
    *,
    alpha: float,
    tau: Array | float,
    gradient: Gradient,
    user_vector: str,
    compute: Compute = "float32",
    axis: str | None = None,
) -> tuple[Array, Array]:
    """The loss of a batch on item embeddings: its weighted sum, and the sum of the weights.

    Args:
        rows: [n, d] item embeddings, those of the device's items.
        histories: of the batch's users; its `item` are rows of `rows`.
        positive: i32[B] rows of `rows`; beyond their end what other devices have.
        weight: [B].
        alpha: see `sampled_entmax`.
        tau: see `sampled_entmax`.
        gradient: see `sampled_entmax`.
        user_vector: see `build`.
        compute: see `build`.
        axis: of the devices. Each one's sum is over its share of the rows, against the positives
            of all; the sum of the weights is that of the whole batch.
    """
    leave_out = user_vector == "leave_one_out"
    targets = parallel.gather_rows(rows, positive, axis)
    users = user_vectors(rows, histories, targets if leave_out else None, axis)
    losses = sampled_entmax(
        users,
        parallel.gather(targets, axis),
        parallel.pad_rows(weight, axis),
        alpha=alpha,
        tau=tau,
        gradient=gradient,
        compute=compute,
        axis=axis,
    )
    if leave_out:  # a history of the positive alone says nothing about the user
        weight = jnp.where(histories.length > 1, weight, 0.0)
    return jnp.sum(losses * parallel.shard(weight, axis)), jnp.sum(weight)


def _loss(
    params: nnx.State,
    extra: Any,
    fixed: Fixed,
    batch: Batch,
    key: Array,
    *,
    graphdef: nnx.GraphDef,
    num_items: int,
    alpha: float,
    tau: float,
    gradient: Gradient,
    encode: str,
    user_vector: str,
    compute: Compute = "float32",
    axis: str | None = None,
) -> tuple[Array, tuple[Array, Any, dict[str, Array]]]:
    del key  # nothing random inside a step
    encoder = nnx.merge(graphdef, params)
    histories, positive, weight = unpack(fixed, batch, num_items, axis)

    features, present = fixed.features, fixed.present
    if encode == "active":
        # The ids that the batch touches, ascending, and each id's place among them.
        room = len(batch.epoch.active)
        touched = jnp.zeros(num_items, bool).at[positive].set(True, mode="drop")
        used = histories.row < len(positive)
        touched = touched.at[jnp.where(used, histories.item, num_items)].set(True, mode="drop")
        place = jnp.cumsum(touched) - 1
        active = jnp.nonzero(touched, size=room, fill_value=0)[0]
        histories = histories._replace(item=place[histories.item])
        positive = place.at[positive].get(mode="fill", fill_value=room)
        features = batch.features or tuple(x[active] for x in features)
        present = None if present is None else tuple(p[active] for p in present)

    rows = encoder(features, encoder.fold(fixed.moments), present)
    total, count = contrast(
        rows,
        histories,
        positive,
        weight,
        alpha=alpha,
        tau=tau,
        gradient=gradient,
        user_vector=user_vector,
        compute=compute,
        axis=axis,
    )
    return total, (count / parallel.size(axis), extra, {})


def check(
    gradient: str,
    user_vector: str,
    compute: str,
    alpha: float,
    *,
    positive: Mapping[str, float],
    sizes: Mapping[str, int],
) -> None:
    """Raises a ValueError that names the first option out of range and what it may be."""
    choose("gradient", gradient, GRADIENT)
    choose("user_vector", user_vector, USER_VECTOR)
    choose("compute", compute, get_args(Compute))
    if not 1 <= alpha <= 2:
        raise ValueError(f"model.alpha is between 1 (softmax) and 2 (sparsemax), not {alpha}")
    for name, value in positive.items():
        if not value > 0:
            raise ValueError(f"model.{name} is positive, not {value}")
    for name, size in sizes.items():
        if size < 1:
            raise ValueError(f"model.{name} is at least 1, not {size}")


def build(
    dataset: Dataset,
    *,
    batch_size: int,
    alpha: float,
    tau: float,
    gradient: Gradient = "fenchel_young",
    hidden: int = 192,
    out: int = 64,
    attention_layers: int = 1,
    encode: str = "all",
    batch_norm: str = "catalogue",
    user_vector: str = "mean",
    stream: bool = False,
    compute: Compute = "float32",
    devices: parallel.Devices = parallel.ONE,
) -> Model:
    """SEMCo base on a data set.

    Args:
        dataset: content, split and training pairs.
        batch_size: B, pairs per step; a batch's items are its negatives.
        alpha: of the entmax, in [1, 2]: 1 softmax, 1.5 entmax15, 2 sparsemax.
        tau: temperature of `sampled_entmax`.
        gradient: "fenchel_young" (exact) or "autodiff" (the authors'), for alpha > 1.
        hidden: h, width of each mode's first layer.
        out: width of the embeddings.
        attention_layers: 1 (the authors' code) or 2 (the paper's text).
        encode: "all" encodes every warm item in each step, "active" the items of the batch and of
            its users' histories; the results agree to rounding.
        batch_norm: statistics that normalise items after training: "catalogue" those of the warm
            items, as in training, so that an item's embedding does not depend on its company;
            "batch" those of all items at once (the authors' code). Training is the same.
        user_vector: "mean" of the history, the positive included, or "leave_one_out".
        stream: keep features on the host and send only the rows a step needs (encode="active").
        compute: of the matrix products in training: "float32", as exact as the backend multiplies
            by default, or "bfloat16", operands and features rounded and summed in float32.
            Parameters, normalisation, losses and all that is served stay in float32.
        devices: that train; of several, each encodes its part of the items, and no other device
            has their features.

    Raises:
        ValueError: for an argument out of range, naming it and the choices.
    """
    sizes_of = {"hidden": hidden, "out": out}
    check(gradient, user_vector, compute, alpha, positive={"tau": tau}, sizes=sizes_of)
    data = prepare(
        dataset,
        batch_size=batch_size,
        encode=encode,
        batch_norm=batch_norm,
        stream=stream,
        compute=compute,
        devices=devices,
    )
    shape = encoders.Shape(data.widths, hidden, out, attention_layers, compute=compute)
    graphdef, _ = shape.split()

    def init(seed: int) -> tuple[nnx.State, None]:
        return nnx.split(shape.make(jax.random.key(seed)))[1], None

    def represent(params: nnx.State, extra: None, part: str = "test") -> Representations:
        del extra, part  # the same users in every part
        return data.represent(params)

    loss = functools.partial(
        _loss,
        graphdef=graphdef,
        num_items=data.items,
        alpha=alpha,
        tau=tau,
        gradient=gradient,
        encode=encode,
        user_vector=user_vector,
        compute=compute,
    )
    sizes = data.steps_per_epoch, data.examples_per_epoch
    model = Model(
        data.fixed, init, loss, represent, data.batches, *sizes, data.examples, devices, SPLIT
    )
    return model._replace(in_flight=2) if stream else model  # features wait with their step
