"""SEMCo: a content encoder trained with sampled entmax, so that new items need no clicks.

An item's embedding is a function of its content alone; a user is the mean of the embeddings of
the items in the training history; the score is their cosine.

Reference: Meehan and Pauwels, Sparse Contrastive Learning for Content-Based Cold Item
Recommendation, SIGIR 2026, sections 3.2 and 3.3.1.
"""

import functools
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any, Literal, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jax import Array

from jaxcold.data import vectors
from jaxcold.data.batches import (
    Pairs,
    history_entries,
    prefetch,
    round_up,
    shuffled_pairs,
    touched_items,
)
from jaxcold.data.dataset import Dataset
from jaxcold.files import check_mapped
from jaxcold.models import encoders
from jaxcold.models.layers import Moments, catalogue_moments, unit_rows
from jaxcold.sparse import fenchel_young_loss
from jaxcold.types import Csr, Model, Representations

ENCODE = ("all", "active")
BATCH_NORM = ("catalogue", "batch")
USER_VECTOR = ("mean", "leave_one_out")
GRADIENT = ("autodiff", "fenchel_young")
Gradient = Literal["autodiff", "fenchel_young"]

# Logit of a column that is not there: so far below a cosine that no map gives it a probability.
ABSENT = -1e9


class Fixed(NamedTuple):
    """What no step changes, on the device; items are numbered among the N warm ones."""

    features: tuple[Array, ...]  # M x f32[N, D_m] unit rows; empty when streamed from the host
    present: tuple[Array, ...] | None  # M x bool[N]
    moments: tuple[Moments, ...]
    indptr: Array  # i32[U + 1] users' training histories
    indices: Array  # i32[nnz]
    other: tuple[Moments, ...] | None = None  # after training, where not `moments`

    @property
    def served(self) -> tuple[Moments, ...]:
        """The statistics that normalise items after training."""
        return self.other or self.moments


class Epoch(NamedTuple):
    """One epoch of shuffled training pairs, placed on the device once.

    S steps of B pairs. The lengths of `slots` and `active` are capacities: they give the
    ragged histories of a batch, and the set of items it touches, a shape that does not change.
    """

    user: Array  # i32[S, B]
    item: Array  # i32[S, B]
    weight: Array  # f32[S, B], 0 for padding of the last batch
    slots: Array  # i32[T] = arange, T >= history entries of any batch
    active: Array  # i32[K] = arange, K >= items touched by any batch; empty for encode="all"


class Batch(NamedTuple):
    """Step `at` of an epoch; `features`: its active items' rows, when the host streams them."""

    epoch: Epoch
    at: Array  # i32[]
    features: tuple[Array, ...] = ()


class Histories(NamedTuple):
    """The histories of a batch's users, end to end, each distinct user's once."""

    item: Array  # i32[T]
    row: Array  # i32[T]: the batch row it belongs to, B where the place is unused
    leader: Array  # i32[B]: the first row of the same user, which carries the history
    length: Array  # i32[B]: of the row's user; 0 for rows of weight 0


def gather_histories(fixed: Fixed, user: Array, weight: Array, slots: Array) -> Histories:
    """Expands compressed rows into flat ids of one shape.

    Args:
        fixed: users' histories as compressed rows.
        user: i32[B].
        weight: [B]; rows of weight 0 get no history.
        slots: i32[T] = arange(T); T is at least the entries of the distinct users.
    """
    rows = user.shape[0]
    place = jnp.arange(rows)
    users = fixed.indptr.shape[0] - 1
    length = jnp.where(weight > 0, fixed.indptr[user + 1] - fixed.indptr[user], 0)
    leader = jnp.full(users, rows, place.dtype).at[user].min(place)[user]
    carried = jnp.where(leader == place, length, 0)
    end = jnp.cumsum(carried)
    row = jnp.repeat(place, carried, total_repeat_length=slots.shape[0])
    used = slots < end[-1]
    at = fixed.indptr[user[row]] + slots - (end - carried)[row]
    item = fixed.indices[jnp.where(used, at, 0)]
    return Histories(item, jnp.where(used, row, rows), leader, length)


@jax.custom_vjp
def logits(users: Array, items: Array, bias: Array) -> Array:
    """``users @ items.T + bias``: [B, d], [B, d], [B] -> [B, B]; `bias` gets no gradient.

    Both halves are written for memory: the bias is one more column of the product instead of a
    pass over [B, B], and the gradient never transposes its cotangent [B, B], which costs a CPU
    twice the product itself.
    """
    ones = jnp.ones((len(users), 1), users.dtype)
    return jnp.concatenate([users, ones], 1) @ jnp.concatenate([items, bias[:, None]], 1).T


def _logits_forward(users: Array, items: Array, bias: Array) -> tuple[Array, Any]:
    return logits(users, items, bias), (users, items)


def _logits_backward(kept: Any, g: Array) -> tuple[Array, Array, None]:
    users, items = kept
    # Between barriers the transposes stay on the small arrays; XLA would move them to the large.
    small = jax.lax.optimization_barrier(jax.lax.optimization_barrier(users.T) @ g)
    return g @ items, small.T, None


logits.defvjp(_logits_forward, _logits_backward)


def sampled_entmax(
    users: Array,
    items: Array,
    weight: Array,
    *,
    alpha: float,
    tau: Array | float,
    gradient: Gradient,
) -> Array:
    """Sampled entmax of a batch (paper, equation 7): row j's target is column j.

    Args:
        users: [B, d] unit rows.
        items: [B, d] unit rows, the positives; each row's negatives are the others'.
        weight: [B]; pairs of weight 0 are neither targets nor negatives.
        alpha: 1 softmax, 1.5 entmax15, 2 sparsemax.
        tau: temperature. For alpha > 1 the cosine is divided by it twice for the
            probabilities and once for the score (tau_0 = tau); once for softmax (tau_0 = 1).
        gradient: see `jaxcold.sparse.fenchel_young_loss`.

    Returns:
        [B] losses, not weighted.
    """
    # Padding has no column to hit; its row is given one and counts for nothing.
    labels = jnp.where(weight > 0, jnp.arange(len(weight)), 0)
    return fenchel_young_loss(
        logits(users / tau, items, jnp.where(weight > 0, 0.0, ABSENT)),
        labels,
        alpha,
        tau=tau if alpha > 1 else 1.0,
        gradient=gradient if alpha > 1 else "fenchel_young",
    )


def user_vectors(item_rows: Array, histories: Histories, positive: Array | None) -> Array:
    """Unit means of the embeddings of each row's history.

    Args:
        item_rows: [n, D] embeddings.
        histories: of the B rows; its `item` are rows of `item_rows`.
        positive: i32[B] the item to leave out of its own row's mean, or None.

    Returns:
        [B, D] unit rows; zero where nothing is left.
    """
    item, row, leader, length = histories
    total = jax.ops.segment_sum(
        item_rows[item], row, num_segments=length.shape[0], indices_are_sorted=True
    )[leader]
    if positive is not None:
        total = total - item_rows[positive]
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
) -> tuple[Array, Array]:
    """The loss of a batch on item embeddings: its weighted sum, and the sum of the weights.

    Args:
        rows: [n, d] item embeddings.
        histories: of the batch's users; its `item` are rows of `rows`.
        positive: i32[B] rows of `rows`.
        weight: [B].
        alpha: see `sampled_entmax`.
        tau: see `sampled_entmax`.
        gradient: see `sampled_entmax`.
        user_vector: see `build`.
    """
    leave_out = user_vector == "leave_one_out"
    users = user_vectors(rows, histories, positive if leave_out else None)
    losses = sampled_entmax(users, rows[positive], weight, alpha=alpha, tau=tau, gradient=gradient)
    if leave_out:  # a history of the positive alone says nothing about the user
        weight = jnp.where(histories.length > 1, weight, 0.0)
    return jnp.sum(losses * weight), jnp.sum(weight)


def unpack(fixed: Fixed, batch: Batch) -> tuple[Histories, Array, Array]:
    """Histories, positives i32[B] and weights f32[B] of a batch."""
    epoch, at = batch.epoch, batch.at
    user, positive, weight = epoch.user[at], epoch.item[at], epoch.weight[at]
    return gather_histories(fixed, user, weight, epoch.slots), positive, weight


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
) -> tuple[Array, tuple[Array, Any, dict[str, Array]]]:
    del key  # nothing random inside a step
    encoder = nnx.merge(graphdef, params)
    histories, positive, weight = unpack(fixed, batch)

    features, present = fixed.features, fixed.present
    if encode == "active":
        # The ids that the batch touches, ascending, and each id's place among them.
        touched = jnp.zeros(num_items, bool).at[positive].set(True)
        used = histories.row < len(positive)
        touched = touched.at[jnp.where(used, histories.item, num_items)].set(True, mode="drop")
        place = jnp.cumsum(touched) - 1
        active = jnp.nonzero(touched, size=len(batch.epoch.active), fill_value=0)[0]
        histories = histories._replace(item=place[histories.item])
        positive = place[positive]
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
    )
    return total, (count, extra, {})


def choose(name: str, value: str, choices: Sequence[str]) -> None:
    """Raises a ValueError that lists the choices, unless `value` is one of them."""
    if value not in choices:
        raise ValueError(f"model.{name} is one of {', '.join(choices)}, not {value!r}")


def check(
    gradient: str,
    user_vector: str,
    alpha: float,
    *,
    positive: Mapping[str, float],
    sizes: Mapping[str, int],
) -> None:
    """Raises a ValueError that names the first option out of range and what it may be."""
    choose("gradient", gradient, GRADIENT)
    choose("user_vector", user_vector, USER_VECTOR)
    if not 1 <= alpha <= 2:
        raise ValueError(f"model.alpha is between 1 (softmax) and 2 (sparsemax), not {alpha}")
    for name, value in positive.items():
        if not value > 0:
            raise ValueError(f"model.{name} is positive, not {value}")
    for name, size in sizes.items():
        if size < 1:
            raise ValueError(f"model.{name} is at least 1, not {size}")


class Prepared(NamedTuple):
    """A data set made ready for training and embedding, whatever the encoder."""

    fixed: Fixed
    batches: Callable[[np.random.Generator], Iterator[Batch]]
    steps_per_epoch: int
    examples_per_epoch: int
    represent: Callable[[nnx.State], Representations]
    widths: tuple[int, ...]  # features of each mode
    examples: Callable[[np.random.Generator, int], dict[str, np.ndarray]]  # of `Model`


def prepare(
    dataset: Dataset,
    *,
    batch_size: int,
    encode: str = "all",
    batch_norm: str = "catalogue",
    stream: bool = False,
) -> Prepared:
    """The half of `build` that knows the data; the arguments are explained there."""
    choose("encode", encode, ENCODE)
    choose("batch_norm", batch_norm, BATCH_NORM)
    if batch_size < 1:
        raise ValueError(f"batch_size is at least 1, not {batch_size}")
    if stream and encode != "active":
        raise ValueError("features stay on the host (data.mmap) only with model.encode='active'")

    content, split = dataset.content, dataset.split
    modes = list(content.tables)
    tables = [content.tables[mode] for mode in modes]
    present = [content.present[mode] for mode in modes]
    warm = split.warm_items
    some_missing = any(not p.all() for p in present)

    # Inside the step items are numbered among the warm ones: 0..N-1.
    local = np.full(dataset.interactions.num_items, -1, np.int32)
    local[warm] = np.arange(len(warm))
    pair_user, pair_item = split.train.user, local[split.train.item]
    histories = Csr.from_pairs(pair_user, pair_item, split.train.num_users)

    def warm_rows(ids: np.ndarray) -> tuple[np.ndarray, ...]:
        rows = warm[ids]
        for table in tables:
            check_mapped(table)
        return tuple(
            vectors.unit_rows(np.where(p[rows][:, None], table[rows], 0))
            for table, p in zip(tables, present, strict=True)
        )

    def moments_of(items: np.ndarray) -> tuple[Moments, ...]:
        return tuple(
            catalogue_moments(table, items[p[items]])
            for table, p in zip(tables, present, strict=True)
        )

    fixed = Fixed(
        features=() if stream else jax.tree.map(jnp.asarray, warm_rows(np.arange(len(warm)))),
        present=tuple(jnp.asarray(p[warm]) for p in present) if some_missing else None,
        moments=moments_of(warm),
        indptr=jnp.asarray(histories.indptr, jnp.int32),
        indices=jnp.asarray(histories.indices),
        other=moments_of(np.arange(len(local))) if batch_norm == "batch" else None,
    )

    def represent(params: nnx.State) -> Representations:
        for table in tables:
            check_mapped(table)
        item = encoders.encode(encoders.trained(params, fixed.served), tables, present)
        return Representations(vectors.history_means(split.train.by_user(), item), item)

    def needs(pairs: Pairs) -> tuple[int, int, list[np.ndarray]]:
        """History entries and touched items to make room for, and the items of each step."""
        ids = []
        if encode == "active":
            ids = list(touched_items(pairs, histories, len(warm)))
        return history_entries(pairs, histories), max(map(len, ids), default=0), ids

    # Epochs differ little: room found for one with a margin fits them all, and one shape is one
    # compiled program. An epoch that needs more gets more.
    probe = needs(shuffled_pairs(pair_user, pair_item, batch_size, np.random.default_rng(0)))
    room = tuple(round_up(int(1.1 * need)) for need in probe[:2])

    def batches(rng: np.random.Generator) -> Iterator[Batch]:
        pairs = shuffled_pairs(pair_user, pair_item, batch_size, rng)
        *need, ids = needs(pairs)
        entries, capacity = (r if n <= r else round_up(n) for n, r in zip(need, room, strict=True))
        slots = np.arange(entries, dtype=np.int32)
        capacity = min(capacity, len(warm)) if encode == "active" else 0
        user, item, weight = map(jnp.asarray, pairs)
        epoch = Epoch(user, item, weight, jnp.asarray(slots), jnp.arange(capacity))
        indices = [jnp.asarray(i, jnp.int32) for i in range(len(pairs.user))]
        if not stream:
            yield from (Batch(epoch, i) for i in indices)
            return

        def streamed() -> Iterator[Batch]:
            for i, rows in zip(indices, ids, strict=True):
                padded = np.pad(rows, (0, capacity - len(rows)))
                yield Batch(epoch, i, jax.tree.map(jnp.asarray, warm_rows(padded)))

        yield from prefetch(streamed())

    def examples(rng: np.random.Generator, at: int) -> dict[str, np.ndarray]:
        pairs = shuffled_pairs(pair_user, pair_item, batch_size, rng)
        real = pairs.weight[at] > 0
        return {
            "user": dataset.user_ids[pairs.user[at][real]],
            "item": dataset.item_ids[warm[pairs.item[at][real]]],
        }

    return Prepared(
        fixed,
        batches,
        -(-len(pair_user) // batch_size),
        len(pair_user),
        represent,
        tuple(table.shape[1] for table in tables),
        examples,
    )


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

    Raises:
        ValueError: for an argument out of range, naming it and the choices.
    """
    check(gradient, user_vector, alpha, positive={"tau": tau}, sizes={"hidden": hidden, "out": out})
    data = prepare(
        dataset, batch_size=batch_size, encode=encode, batch_norm=batch_norm, stream=stream
    )
    shape = encoders.Shape(data.widths, hidden, out, attention_layers)
    graphdef, _ = shape.split()

    def init(seed: int) -> tuple[nnx.State, None]:
        return nnx.split(shape.make(jax.random.key(seed)))[1], None

    def represent(params: nnx.State, extra: None, part: str = "test") -> Representations:
        del extra, part  # the same users in every part
        return data.represent(params)

    loss = functools.partial(
        _loss,
        graphdef=graphdef,
        num_items=len(dataset.split.warm_items),
        alpha=alpha,
        tau=tau,
        gradient=gradient,
        encode=encode,
        user_vector=user_vector,
    )
    sizes = data.steps_per_epoch, data.examples_per_epoch
    return Model(data.fixed, init, loss, represent, data.batches, *sizes, data.examples)
