"""CLCRec: contrastive learning between the ids and the content of items, from scratch.

Wei et al., Contrastive Learning for Cold-Start Recommendation, ACM MM 2021, in the variant of
ColdRec (github.com/YuanchenBei/ColdRec). With x the content of an item, e its vector, u the user's
and F a network of two layers, a pair has the slots 0 (its positive) and 1..n (negatives):

- RE: cross-entropy of the slots' logits ``cos(e_positive, F(x_slot)) / tau``, target slot 0.
- UI: the same with ``u . r_slot / tau``, where r is e, or F(x) for a fraction of all slots.
- loss: ``lam RE + (1 - lam) UI + l2 (mean |u| + mean |e_slot|) / 2``.

A cold item is served as F(x), a warm one as e.
"""

import functools
from collections.abc import Iterator
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jax import Array

from jaxcold.data.pairs.batches import shuffled_pairs
from jaxcold.data.pairs.dataset import Dataset
from jaxcold.models.backbone import (
    Encoders,
    Sampler,
    apply_dense,
    check,
    content_rows,
    dense,
    keys_of,
    make_model,
    summed,
    weighted_mean,
    xavier,
)
from jaxcold.models.layers import unit_rows
from jaxcold.types import DataError, Model

HIDDEN = 256


class Constants(NamedTuple):
    """What no step changes."""

    content: Array  # f32[I, C]


class Batch(NamedTuple):
    """Pairs with their slots."""

    user: Any  # i32[B]
    slots: Any  # i32[B, 1 + n] items; the positive first
    draws: Any  # i32[B, 1 + n] how often a slot was drawn to show its content
    weight: Any  # f32[B]; 0 marks padding


def encode(params: Any, content: Array) -> Array:
    """F: [n, C] -> [n, D]."""
    main = params["main"]
    hidden = jax.nn.leaky_relu(apply_dense(main["first"], content), 0.01)
    return apply_dense(main["second"], hidden)


def loss_terms(
    params: Any, constants: Constants, batch: Batch, *, tau: float, reference: bool
) -> dict[str, Array]:
    """RE, UI and the norms' term, each a mean over the pairs of weight 1: "re", "ui", "norms"."""
    tables = params["main"]
    user = tables["user"][batch.user]
    ids = tables["item"][batch.slots]
    features = encode(params, constants.content)
    shown = features[batch.slots]
    cosine = jnp.einsum("bd,bnd->bn", unit_rows(ids[:, 0]), unit_rows(features)[batch.slots])
    # The published code's gradient into F counts a slot as often as it was drawn.
    times = batch.draws if reference else jnp.minimum(batch.draws, 1)
    times = times.astype(shown.dtype)
    fixed = jax.lax.stop_gradient(shown)
    shown = fixed + times[:, :, None] * (shown - fixed)
    rows = jnp.where((batch.draws > 0)[:, :, None], shown, ids)
    scores = jnp.einsum("bd,bnd->bn", user, rows)

    def cross_entropy(logits: Array) -> Array:
        return weighted_mean(-jax.nn.log_softmax(logits / tau, axis=1)[:, 0], batch.weight)

    norm = functools.partial(jnp.linalg.norm, axis=-1)
    norms = (weighted_mean(norm(user), batch.weight) + weighted_mean(norm(ids), batch.weight)) / 2
    return {"re": cross_entropy(cosine), "ui": cross_entropy(scores), "norms": norms}


def _loss(
    params: Any,
    model_state: Any,
    constants: Constants,
    batch: Batch,
    key: Array,
    *,
    tau: float,
    lam: float,
    l2: float,
    reference: bool,
) -> tuple[Array, tuple[Array, Any, dict[str, Array]]]:
    del key
    terms = loss_terms(params, constants, batch, tau=tau, reference=reference)
    mean = lam * terms["re"] + (1 - lam) * terms["ui"] + l2 * terms["norms"]
    total, count = summed(mean, batch.weight)
    return total, (count, model_state, terms)


def _batches(
    rng: np.random.Generator, *, sampler: Sampler, negatives: int, fraction: float
) -> Iterator[Batch]:
    pairs = shuffled_pairs(sampler.user, sampler.item, sampler.batch_size, rng)
    for user, item, weight in zip(*pairs, strict=True):
        drawn = _distinct_negatives(rng, sampler, user, negatives)
        slots = np.concatenate([item[:, None], drawn], axis=1)
        count = int(weight.sum()) * slots.shape[1]  # padding rows come last
        shown = rng.integers(0, count, int(fraction * count))
        draws = np.bincount(shown, minlength=slots.size).reshape(slots.shape).astype(np.int32)
        yield Batch(user, slots, draws, weight)


def _distinct_negatives(
    rng: np.random.Generator, sampler: Sampler, user: np.ndarray, count: int
) -> np.ndarray:
    """i32[B, n]: distinct warm items that the user has not taken, in ascending order."""
    rows = np.sort(sampler.negatives(rng, np.repeat(user[:, None], count, axis=1)), axis=1)
    left = np.arange(len(rows))
    while len(left):
        part = rows[left]
        again = np.zeros(part.shape, bool)
        again[:, 1:] = part[:, 1:] == part[:, :-1]
        is_bad = again.any(axis=1)
        left, part, again = left[is_bad], part[is_bad], again[is_bad]
        owner = user[left][np.nonzero(again)[0]]
        part[again] = sampler.negatives(rng, owner)
        rows[left] = np.sort(part, axis=1)
    return rows


def build(
    dataset: Dataset,
    *,
    batch_size: int,
    epochs: int,
    learning_rate: float = 1e-3,
    dim: int = 64,
    negatives: int = 128,
    tau: float = 2.0,
    lam: float = 0.5,
    content_fraction: float = 0.5,
    l2: float = 1e-4,
    reference: bool = False,
) -> Model:
    """CLCRec on a data set of pairs; it needs no backbone.

    Args:
        dataset: content, split and training pairs.
        batch_size: B, pairs per step.
        epochs: passes over the pairs.
        learning_rate: of Adam, constant.
        dim: D, width of the vectors.
        negatives: n of each pair, distinct warm items that its user has not taken.
        tau: temperature of both losses.
        lam: weight of RE; UI has the rest.
        content_fraction: of the slots of a batch that are drawn, with replacement, to be content.
        l2: weight of the vectors' norms; there is no weight decay.
        reference: the published code's gradient: a slot that was drawn k times counts k times in
            the gradient of F. Mended, it counts once.

    Raises:
        ValueError: for an argument out of range.
        DataError: if a user has taken too many warm items for n negatives.
    """
    check(
        positive={"model.tau": tau, "train.learning_rate": learning_rate, "model.dim": dim},
        from_zero={"model.l2": l2, "model.content_fraction": content_fraction, "model.lam": lam},
    )
    sampler = Sampler.of(dataset, batch_size)
    most = dataset.split.train.by_user().counts.max()
    if not 1 <= negatives <= len(sampler.warm) - most:
        raise DataError(
            f"model.negatives: between 1 and the {len(sampler.warm) - most} warm items that the "
            f"busiest user leaves, not {negatives}"
        )
    constants = Constants(jnp.asarray(content_rows(dataset.content)))
    users, items = dataset.interactions.num_users, dataset.interactions.num_items

    def init(seed: int) -> tuple[dict[str, Any], tuple[()]]:
        keys = keys_of(seed)
        main = {
            "user": xavier(next(keys), users, dim),
            "item": xavier(next(keys), items, dim),
            "first": dense(next(keys), constants.content.shape[1], HIDDEN),
            "second": dense(next(keys), HIDDEN, dim),
        }
        return {"main": main}, ()

    loss = functools.partial(_loss, tau=tau, lam=lam, l2=l2, reference=reference)
    return make_model(
        dataset,
        constants,
        sampler,
        ENCODERS,
        init=init,
        losses={"main": loss},
        optimizers={"main": optax.adam(learning_rate)},
        epochs=epochs,
        batches=functools.partial(
            _batches, sampler=sampler, negatives=negatives, fraction=content_fraction
        ),
    )


ENCODERS = Encoders(
    cold=lambda params, model_state, constants, content: encode(params, content),
    users=lambda params, model_state, constants: params["main"]["user"],
    warm=lambda params, model_state, constants: params["main"]["item"],
)
