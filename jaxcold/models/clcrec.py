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
from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jax import Array

from jaxcold.data.pairs.batches import prefetch, shuffled_pairs
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
    xavier,
)
from jaxcold.models.layers import unit_rows
from jaxcold.types import Csr, DataError, Model

HIDDEN = 256
# Pairs whose rows are gathered at once on a CPU: 32 of 129 rows of 64 numbers are 1 MB, which stay
# in its cache until their gradient is known. Another device takes all at once.
BLOCK = 32


class Constants(NamedTuple):
    """What no step changes."""

    content: Array  # f32[I, C]
    warm: Array  # i32[Iw] warm items, ascending
    warm_content: Array  # f32[Iw, C]: gathered once


class Batch(NamedTuple):
    """Pairs with their slots."""

    user: Any  # i32[B]
    slots: Any  # i32[B, 1 + n] places of items among the warm ones; the positive first
    draws: Any  # i32[B, 1 + n] how often a slot was drawn to show its content
    weight: Any  # f32[B]; 0 marks padding


class Rows(NamedTuple):
    """A row per warm item, or per slot of some pairs."""

    features: Array  # f32[n, D] F(x)
    inverse_norm: Array  # f32[n] of the features
    ids: Array  # f32[n, D] e


def encode(params: Any, content: Array) -> Array:
    """F: [n, C] -> [n, D]."""
    main = params["main"]
    hidden = jax.nn.leaky_relu(apply_dense(main["first"], content), 0.01)
    return apply_dense(main["second"], hidden)


def _slot_losses(
    rows: Rows, user: Array, draws: Array, weight: Array, *, tau: float, lam: float, reference: bool
) -> tuple[Array, dict[str, Array]]:
    """``lam RE + (1 - lam) UI`` of b pairs, and both terms; sums over the pairs.

    Args:
        rows: of b (1 + n) slots.
        user: [b, D].
        draws: i32[b, 1 + n].
        weight: [b].
        tau: as in `build`.
        lam: as in `build`.
        reference: as in `build`.
    """
    features, ids = (x.reshape(*draws.shape, -1) for x in (rows.features, rows.ids))

    def scores(of: Array, rows: Array) -> Array:
        return jnp.einsum("bd,bnd->bn", of, rows)

    def cross_entropy(logits: Array) -> Array:
        return jnp.sum(-jax.nn.log_softmax(logits / tau, axis=1)[:, 0] * weight)

    cosine = scores(unit_rows(ids[:, 0]), features) * rows.inverse_norm.reshape(draws.shape)
    if reference:  # the gradient into F counts a slot as often as it was drawn
        fixed = jax.lax.stop_gradient(features)
        features = fixed + draws.astype(fixed.dtype)[:, :, None] * (features - fixed)
    taste = jnp.where(draws > 0, scores(user, features), scores(user, ids))
    sums = {"re": cross_entropy(cosine), "ui": cross_entropy(taste)}
    return lam * sums["re"] + (1 - lam) * sums["ui"], sums


@functools.partial(jax.custom_vjp, nondiff_argnums=(0, 1))
def _sum_over_blocks(
    function: Callable[..., Any], block: int, tables: Rows, user: Array, batch: Batch
) -> Any:
    """The sum of `_slot_losses` over blocks of pairs, with the gradient taken on the way.

    The rows of all slots would be written to memory and read again several times.

    Args:
        function: (rows of the slots, user, draws, weight) -> (sum, other sums).
        block: pairs at once.
        tables: of the warm items.
        user: [B, D].
        batch: B pairs.
    """
    return _with_gradient(function, block, tables, user, batch)[0]


def _with_gradient(
    function: Callable[..., Any], block: int, tables: Rows, user: Array, batch: Batch
) -> tuple[Any, tuple[Rows, Array]]:
    """The sums, and their gradient with respect to the tables and the users' rows."""
    pairs = len(user)
    block = min(block, pairs)

    def blocks(x: Array) -> Array:
        padding = [(0, -pairs % block), *([(0, 0)] * (x.ndim - 1))]
        return jnp.pad(x, padding).reshape(-1, block, *x.shape[1:])  # of weight 0

    def step(gradient: Rows, inputs: Any) -> tuple[Rows, Any]:
        user, slots, draws, weight = inputs
        # Without this the gather's indices have two dimensions, which halves its speed on a CPU.
        slots = slots.reshape(-1)
        rows = jax.tree.map(lambda table: table[slots], tables)
        (value, sums), (of_rows, of_user) = jax.value_and_grad(
            function, argnums=(0, 1), has_aux=True
        )(rows, user, draws, weight)
        gradient = jax.tree.map(lambda table, g: table.at[slots].add(g), gradient, of_rows)
        return gradient, (value, sums, of_user)

    inputs = jax.tree.map(blocks, (user, batch.slots, batch.draws, batch.weight))
    zeros = jax.tree.map(jnp.zeros_like, tables)
    gradient, (values, sums, of_user) = jax.lax.scan(step, zeros, inputs)
    result = jax.tree.map(jnp.sum, (values, sums))
    return result, (gradient, of_user.reshape(-1, user.shape[1])[:pairs])


def _backward(
    function: Callable[..., Any], block: int, gradient: tuple[Rows, Array], cotangent: Any
) -> tuple[Rows, Array, None]:
    del function, block
    scale = cotangent[0]  # the other sums are for the log
    return *jax.tree.map(lambda g: g * scale, gradient), None


_sum_over_blocks.defvjp(_with_gradient, _backward)


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
    main = params["main"]
    user, ids = main["user"][batch.user], main["item"][constants.warm]
    features = encode(params, constants.warm_content)
    square = jnp.sum(features * features, axis=1)
    inverse = jnp.where(square == 0, 0.0, jax.lax.rsqrt(jnp.where(square == 0, 1.0, square)))
    total, sums = _sum_over_blocks(
        functools.partial(_slot_losses, tau=tau, lam=lam, reference=reference),
        BLOCK if jax.default_backend() == "cpu" else len(user),
        Rows(features, inverse, ids),
        user,
        batch,
    )
    # How often each item is in a slot gives the mean of the slots' norms without their rows.
    share = jnp.broadcast_to(batch.weight[:, None] / batch.slots.shape[1], batch.slots.shape)
    times = jnp.zeros(len(ids), share.dtype).at[batch.slots.reshape(-1)].add(share.reshape(-1))
    norm = functools.partial(jnp.linalg.norm, axis=1)
    norms = (jnp.sum(norm(user) * batch.weight) + jnp.sum(norm(ids) * times)) / 2
    count = jnp.sum(batch.weight)
    terms = {name: value / count for name, value in (sums | {"norms": norms}).items()}
    return total + l2 * norms, (count, model_state, terms)


def _batches(
    rng: np.random.Generator, *, sampler: Sampler, histories: Csr, negatives: int, fraction: float
) -> Iterator[Batch]:
    pairs = shuffled_pairs(sampler.user, sampler.item, sampler.batch_size, rng)
    for user, item, weight in zip(*pairs, strict=True):
        drawn = distinct_negatives(rng, histories.take(user), len(sampler.warm), negatives)
        positive = np.searchsorted(sampler.warm, item).astype(np.int32)
        slots = np.concatenate([positive[:, None], drawn], axis=1)
        count = int(weight.sum()) * slots.shape[1]  # padding rows come last
        shown = rng.integers(0, count, int(fraction * count))
        draws = np.bincount(shown, minlength=slots.size).reshape(slots.shape).astype(np.int32)
        yield Batch(user, slots, draws, weight)


def distinct_negatives(rng: np.random.Generator, taken: Csr, items: int, count: int) -> np.ndarray:
    """i32[B, count]: in each row distinct numbers below `items` that are not taken, ascending.

    Args:
        rng: decides.
        taken: B rows, each of at most ``items - count`` numbers.
        items: their number.
        count: of each row.
    """
    rows = rng.integers(0, items, (taken.rows, count), np.int32)
    left = np.arange(taken.rows)
    while len(left):
        part = np.sort(rows[left], axis=1)
        rows[left] = part
        again = np.zeros(part.shape, bool)
        again[:, 1:] = part[:, 1:] == part[:, :-1]
        # Few are taken: these are looked up among the drawn, not the other way round.
        mine = taken.take(left)
        drawn = (part + np.arange(len(left))[:, None] * items).ravel()
        key = mine.row_of_entry * items + mine.indices
        place = np.searchsorted(drawn, key)
        place[place == drawn.size] = 0
        again.reshape(-1)[place[drawn[place] == key]] = True
        is_bad = again.any(axis=1)
        left, part, again = left[is_bad], part[is_bad], again[is_bad]
        part[again] = rng.integers(0, items, np.count_nonzero(again), np.int32)
        rows[left] = part
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
    train, warm = dataset.split.train, sampler.warm
    histories = Csr.from_pairs(train.user, np.searchsorted(warm, train.item), train.num_users)
    most = histories.counts.max()
    if not 1 <= negatives <= len(warm) - most:
        raise DataError(
            f"model.negatives: between 1 and the {len(warm) - most} warm items that the "
            f"busiest user leaves, not {negatives}"
        )
    content = content_rows(dataset.content)
    constants = Constants(*map(jnp.asarray, (content, warm.astype(np.int32), content[warm])))
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
        batches=lambda rng: prefetch(
            _batches(
                rng,
                sampler=sampler,
                histories=histories,
                negatives=negatives,
                fraction=content_fraction,
            )
        ),
    )


ENCODERS = Encoders(
    cold=lambda params, model_state, constants, content: encode(params, content),
    users=lambda params, model_state, constants: params["main"]["user"],
    warm=lambda params, model_state, constants: params["main"]["item"],
)
