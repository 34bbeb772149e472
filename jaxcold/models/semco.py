"""SEMCo: a content encoder trained with sampled entmax, so that new items need no clicks.

An item's embedding is a function of its content alone; a user is the mean of the embeddings of
the items in the training history; the score is their cosine.

Reference: Meehan and Pauwels, Sparse Contrastive Learning for Content-Based Cold Item
Recommendation, SIGIR 2026, sections 3.2 and 3.3.1.
"""

import functools
import math
from collections.abc import Mapping
from typing import Any, Literal, get_args

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jax import Array

from jaxcold import parallel
from jaxcold.data.content import history_means
from jaxcold.data.pairs.dataset import ContentFeatures, Dataset
from jaxcold.models import encoders
from jaxcold.models.layers import Compute, rounded, sums, unit_rows
from jaxcold.models.pair_batches import (
    SHARDING,
    Batch,
    Constants,
    Histories,
    choose,
    prepare,
    unpack,
)
from jaxcold.models.transforms import adam_coupled_l2, cosine
from jaxcold.sparse import fenchel_young_loss
from jaxcold.types import Csr, Model

USER_VECTOR = ("mean", "leave_one_out")
GRADIENT = ("autodiff", "fenchel_young")
Gradient = Literal["autodiff", "fenchel_young"]

# Logit of an absent column: so far below any cosine that its probability is zero.
ABSENT = -1e9


@functools.partial(jax.custom_vjp, nondiff_argnums=(3,))
def logits(users: Array, items: Array, bias: Array, compute: Compute = "float32") -> Array:
    """``users @ items.T + bias``: [b, d], [B, d], [B] -> [b, B]; `bias` gets no gradient.

    Forward and backward are written to save memory traffic: the bias is one more column of the
    product instead of a pass over [B, B], and the gradient never transposes its cotangent [B, B],
    which costs a CPU twice the product itself.
    """
    ones = jnp.ones((len(users), 1), users.dtype)
    left = jnp.concatenate([users, ones], 1)
    right = jnp.concatenate([items, bias[:, None]], 1)
    return sums(rounded(left, compute), rounded(right, compute).T)


def _logits_forward(
    users: Array, items: Array, bias: Array, compute: Compute
) -> tuple[Array, tuple[Array, Array]]:
    residuals = rounded(users, compute), rounded(items, compute)
    return logits(users, items, bias, compute), residuals


def _logits_backward(
    compute: Compute, residuals: tuple[Array, Array], g: Array
) -> tuple[Array, Array, None]:
    users, items = residuals
    g = rounded(g, compute)
    # The barriers keep the transposes on [B, d] arrays; XLA would move them to the [B, B] one.
    transposed = jax.lax.optimization_barrier(sums(jax.lax.optimization_barrier(users.T), g))
    return sums(g, items), transposed.T, None


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
        users: [b, d] unit rows, the device's shard of the batch; all of it on one device.
        items: [B, d] unit rows, the positives; the other rows' positives are a row's negatives.
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
    # A padding row has no target; it gets an arbitrary one and weight 0.
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
    """Unit means of the embeddings of each row's history, by weight where entries have one.

    Args:
        item_rows: [n, D] embeddings, those of the device's items.
        histories: of the B rows; its `item` are rows of `item_rows`.
        left_out: [b, D] one embedding per row, times its weight, that its mean leaves out; or
            None.
        axis: of the devices, which add up their items' embeddings; each returns its shard of the
            B rows, b.

    Returns:
        [b, D] unit rows; zero for an empty history.
    """
    item, row, first_row, length, weight = histories
    rows = item_rows[item] if weight is None else item_rows[item] * weight[:, None]
    total = jax.ops.segment_sum(rows, row, num_segments=length.shape[0], indices_are_sorted=True)[
        first_row
    ]
    total, length = parallel.scatter_sum(total, axis), parallel.shard(length, axis)
    if left_out is not None:
        total = total - left_out
        length = length - 1
    # The divisor cancels in the unit norm; it keeps the sums in the range of their items.
    mean = total / jnp.maximum(length, 1)[:, None]
    # A history of the positive alone leaves exactly zero, not rounding noise.
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
        positive: i32[B] rows of `rows`; len(rows) for items of other devices.
        weight: [B].
        alpha: see `sampled_entmax`.
        tau: see `sampled_entmax`.
        gradient: see `sampled_entmax`.
        user_vector: see `build`.
        compute: see `build`.
        axis: of the devices. Each one's sum is over its shard of the rows, against the positives
            of all; the sum of the weights is that of the whole batch.
    """
    leave_out = user_vector == "leave_one_out"
    targets = parallel.gather_rows(rows, positive, axis)
    left_out = targets if leave_out else None
    if leave_out and histories.weight is not None:
        left_out = targets * parallel.shard(weight, axis)[:, None]
    users = user_vectors(rows, histories, left_out, axis)
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
    if leave_out:  # nothing is known of a user whose history is the positive alone
        weight = jnp.where(histories.length > 1, weight, 0.0)
    return jnp.sum(losses * parallel.shard(weight, axis)), jnp.sum(weight)


def _loss(
    params: dict[str, nnx.State],
    model_state: tuple[()],
    constants: Constants,
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
) -> tuple[Array, tuple[Array, tuple[()], dict[str, Array]]]:
    del key  # nothing random inside a step
    encoder = nnx.merge(graphdef, params["main"])
    histories, positive, weight = unpack(constants, batch, num_items, axis)

    features, present = constants.features, constants.present
    if encode == "active":
        # The ids that the batch touches, ascending, and the rank of each id among them.
        capacity = len(batch.epoch.active)
        touched = jnp.zeros(num_items, bool).at[positive].set(True, mode="drop")
        used = histories.row < len(positive)
        touched = touched.at[jnp.where(used, histories.item, num_items)].set(True, mode="drop")
        rank = jnp.cumsum(touched) - 1
        active = jnp.nonzero(touched, size=capacity, fill_value=0)[0]
        histories = histories._replace(item=rank[histories.item])
        positive = rank.at[positive].get(mode="fill", fill_value=capacity)
        features = batch.features or tuple(x[active] for x in features)
        present = None if present is None else tuple(p[active] for p in present)

    rows = encoder(features, encoder.fold(constants.moments), present)
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
    return total, (count / parallel.size(axis), model_state, {})


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


def check_training(epochs: int, learning_rate: float, l2: float) -> None:
    """Raises a ValueError that names the first of these out of range."""
    if epochs < 1:
        raise ValueError(f"train.epochs is at least 1, not {epochs}")
    if not 0 < learning_rate < math.inf:
        raise ValueError(f"train.learning_rate is a positive number, not {learning_rate}")
    if not 0 <= l2 < math.inf:
        raise ValueError(f"model.l2 is a number from 0, not {l2}")


def build(
    dataset: Dataset,
    *,
    batch_size: int,
    epochs: int,
    alpha: float,
    tau: float,
    l2: float = 1e-4,
    learning_rate: float = 1e-3,
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
        epochs: passes over the pairs; the learning rate decays to 0 by a cosine over them.
        alpha: of the entmax, in [1, 2]: 1 softmax, 1.5 entmax15, 2 sparsemax.
        tau: temperature of `sampled_entmax`.
        l2: weight decay added to the gradient, of every parameter.
        learning_rate: of Adam, at the first step.
        gradient: "fenchel_young" (exact) or "autodiff" (the authors'), for alpha > 1.
        hidden: h, width of each mode's first layer.
        out: width of the embeddings.
        attention_layers: 1 (the authors' code) or 2 (the paper's text).
        encode: "all" encodes every warm item in each step, "active" the items of the batch and of
            its users' histories; the results agree to rounding.
        batch_norm: statistics that normalise items after training: "catalogue" those of the warm
            items, as in training, so that an item's embedding does not depend on other items;
            "batch" those of all items at once (the authors' code). Training is the same.
        user_vector: "mean" of the history, the positive included, or "leave_one_out".
        stream: keep features on the host and send only the rows a step needs (encode="active").
        compute: of the matrix products in training: "float32", as exact as the backend multiplies
            by default, or "bfloat16", operands and features rounded and summed in float32.
            Parameters, normalisation, losses and all that is served stay in float32.
        devices: that train; of several, each has the features of its shard of the items and
            encodes those.

    Raises:
        ValueError: for an argument out of range, naming it and the choices.
    """
    sizes_of = {"hidden": hidden, "out": out}
    check(gradient, user_vector, compute, alpha, positive={"tau": tau}, sizes=sizes_of)
    check_training(epochs, learning_rate, l2)
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

    def init(seed: int) -> tuple[dict[str, nnx.State], tuple[()]]:
        return {"main": nnx.split(shape.make(jax.random.key(seed)))[1]}, ()

    def encode_items(
        params: dict[str, nnx.State], model_state: Any, content: ContentFeatures | None = None
    ) -> np.ndarray:
        del model_state
        return data.encode_items(params["main"], content)

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
    schedule = cosine(learning_rate, epochs * data.steps_per_epoch)
    return Model(
        constants=data.constants,
        init=init,
        losses={"main": loss},
        optimizers={"main": adam_coupled_l2(schedule, l2)},
        batches=data.batches,
        encode_items=encode_items,
        encode_users=encode_users,
        steps_per_epoch=data.steps_per_epoch,
        examples_per_epoch=data.examples_per_epoch,
        epochs=epochs,
        examples=data.examples,
        devices=devices,
        sharding=SHARDING,
        in_flight=2 if stream else 16,  # streamed features wait with their step
    )


def encode_users(
    params: Any, model_state: Any, item_vectors: np.ndarray, histories: Csr
) -> np.ndarray:
    """f32[m, out] unit means of the items' vectors in each history; zero for an empty one."""
    del params, model_state
    return history_means(histories, item_vectors)
