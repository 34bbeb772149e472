"""SEMCo: a content encoder trained with sampled entmax, so that new items need no clicks.

An item's embedding is a function of its content alone; a user is the mean of the embeddings of
the items in the training history; the score is their cosine.

Reference: Meehan and Pauwels, Sparse Contrastive Learning for Content-Based Cold Item
Recommendation, SIGIR 2026, sections 3.2 and 3.3.1.
"""

import functools
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any, Literal, NamedTuple, get_args

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jax import Array

from jaxcold import parallel
from jaxcold.data import vectors
from jaxcold.data.batches import (
    SAMPLE,
    apart,
    prefetch,
    room_for,
    round_up,
    shuffled_pairs,
    touched_items,
)
from jaxcold.data.dataset import Dataset
from jaxcold.models import encoders
from jaxcold.models.layers import (
    Compute,
    Moments,
    catalogue_moments,
    rounded,
    sums,
    unit_rows,
)
from jaxcold.sparse import fenchel_young_loss
from jaxcold.types import Csr, Model, Representations, Split

ENCODE = ("all", "active")
BATCH_NORM = ("catalogue", "batch")
USER_VECTOR = ("mean", "leave_one_out")
GRADIENT = ("autodiff", "fenchel_young")
Gradient = Literal["autodiff", "fenchel_young"]

# Logit of a column that is not there: so far below a cosine that no map gives it a probability.
ABSENT = -1e9


class Fixed(NamedTuple):
    """What no step changes; items are numbered among the N warm ones.

    Of n devices each has the rows of its items, and of the histories these items, from 0. Its part
    of `indptr` has U + 1 entries; parts of `indices` end in zeros that make them equally long.
    """

    features: tuple[Array, ...]  # M x f32[N, D_m] unit rows; empty when streamed from the host
    present: tuple[Array, ...] | None  # M x bool[N]
    moments: tuple[Moments, ...]
    indptr: Array  # i32[U + 1] users' training histories
    indices: Array  # i32[nnz]
    other: tuple[Moments, ...] | None = None  # after training, where not `moments`
    length: Array | None = None  # i32[U] of whole histories, where `indptr` is of parts
    whole: tuple[Array, Array] | None = None  # all of indptr and indices, where asked for

    @property
    def served(self) -> tuple[Moments, ...]:
        """The statistics that normalise items after training."""
        return self.other or self.moments


class Epoch(NamedTuple):
    """One epoch of shuffled training pairs, placed on the device once; of many, a step at a time.

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


# The arrays of `Fixed` and `Batch` that are split over devices.
SPLIT = Split(fixed=("features", "present", "indptr", "indices"), batch=("features",))


class Histories(NamedTuple):
    """The histories of a batch's users, end to end, each distinct user's once."""

    item: Array  # i32[T]
    row: Array  # i32[T]: the batch row it belongs to, B where the place is unused
    leader: Array  # i32[B]: the first row of the same user, which carries the history
    length: Array  # i32[B]: of the row's user, on all devices; 0 for rows of weight 0


def gather_histories(fixed: Fixed, user: Array, weight: Array, slots: Array) -> Histories:
    """Expands compressed rows into flat ids of one shape.

    Args:
        fixed: users' histories as compressed rows.
        user: i32[B].
        weight: [B]; rows of weight 0 get no history.
        slots: i32[T] = arange(T); T is at least the entries of the distinct users.

    Returns:
        On one of many devices, the part of the histories that it has.
    """
    rows = user.shape[0]
    place = jnp.arange(rows)
    users = fixed.indptr.shape[0] - 1
    own = jnp.where(weight > 0, fixed.indptr[user + 1] - fixed.indptr[user], 0)
    length = own if fixed.length is None else jnp.where(weight > 0, fixed.length[user], 0)
    leader = jnp.full(users, rows, place.dtype).at[user].min(place)[user]
    carried = jnp.where(leader == place, own, 0)
    end = jnp.cumsum(carried)
    row = jnp.repeat(place, carried, total_repeat_length=slots.shape[0])
    used = slots < end[-1]
    at = fixed.indptr[user[row]] + slots - (end - carried)[row]
    item = fixed.indices[jnp.where(used, at, 0)]
    return Histories(item, jnp.where(used, row, rows), leader, length)


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
    labels = parallel.share(jnp.where(weight > 0, jnp.arange(len(weight)), 0), axis)
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
    total, length = parallel.scatter_sum(total, axis), parallel.share(length, axis)
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
    targets = parallel.rows(rows, positive, axis)
    users = user_vectors(rows, histories, targets if leave_out else None, axis)
    losses = sampled_entmax(
        users,
        parallel.gather(targets, axis),
        parallel.padded(weight, axis),
        alpha=alpha,
        tau=tau,
        gradient=gradient,
        compute=compute,
        axis=axis,
    )
    if leave_out:  # a history of the positive alone says nothing about the user
        weight = jnp.where(histories.length > 1, weight, 0.0)
    return jnp.sum(losses * parallel.share(weight, axis)), jnp.sum(weight)


def unpack(
    fixed: Fixed, batch: Batch, items: int, axis: str | None = None
) -> tuple[Histories, Array, Array]:
    """Histories, positives i32[B] and weights f32[B] of a batch.

    Args:
        fixed: of the model.
        batch: one step's.
        items: of each device; where another has the positive, it is `items`.
        axis: of the devices.
    """
    epoch, at = batch.epoch, batch.at
    user, weight = epoch.user[at], epoch.weight[at]
    positive = parallel.here(epoch.item[at], items, axis)
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


def choose(name: str, value: str, choices: Sequence[str]) -> None:
    """Raises a ValueError that lists the choices, unless `value` is one of them."""
    if value not in choices:
        raise ValueError(f"model.{name} is one of {', '.join(choices)}, not {value!r}")


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


class Prepared(NamedTuple):
    """A data set made ready for training and embedding, whatever the encoder."""

    fixed: Fixed
    batches: Callable[[np.random.Generator], Iterator[Batch]]
    steps_per_epoch: int
    examples_per_epoch: int
    represent: Callable[[nnx.State], Representations]
    widths: tuple[int, ...]  # features of each mode
    items: int  # that each device encodes
    examples: Callable[[np.random.Generator, int], dict[str, np.ndarray]]  # of `Model`


def prepare(
    dataset: Dataset,
    *,
    batch_size: int,
    encode: str = "all",
    batch_norm: str = "catalogue",
    stream: bool = False,
    compute: Compute = "float32",
    devices: parallel.Devices = parallel.ONE,
    whole: bool = False,
) -> Prepared:
    """The half of `build` that knows the data; the arguments are explained there.

    With `whole` every device gets all histories too, where they are split.
    """
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

    # Of so many items each device knows features and histories; the last ones may not exist.
    parts = devices.n
    items = devices.rows(len(warm)) // parts
    owner = histories.indices // items
    entries_of_part = np.bincount(owner, minlength=parts)

    def warm_rows(mode: int, ids: np.ndarray) -> np.ndarray:
        known = np.where((ids >= 0) & (ids < len(warm)), warm[np.minimum(ids, len(warm) - 1)], -1)
        found = vectors.take_unit_rows(tables[mode], present[mode], known)
        return found if compute == "float32" else found.astype(jnp.bfloat16)

    def of_part(part: int) -> np.ndarray:
        return np.arange(part * items, (part + 1) * items)

    def features(mode: int) -> Array:
        return devices.stack(lambda part: warm_rows(mode, of_part(part)))

    def there(mask: np.ndarray) -> Array:
        known = np.pad(mask[warm], (0, parts * items - len(warm)))
        return devices.stack(lambda part: known[of_part(part)])

    def indptr(part: int) -> np.ndarray:
        before = np.concatenate([[0], np.cumsum(owner == part)])
        return before[histories.indptr].astype(np.int32)

    def indices(part: int) -> np.ndarray:
        own = histories.indices[owner == part] - np.int32(part * items)
        return np.pad(own, (0, entries_of_part.max() - len(own)))

    def moments_of(items: np.ndarray) -> tuple[Moments, ...]:
        return tuple(
            catalogue_moments(table, items[p[items]])
            for table, p in zip(tables, present, strict=True)
        )

    lengths, whole_lengths, everything = histories.counts, None, None
    if devices.mesh is not None:
        whole_lengths = devices.put(lengths.astype(np.int32))
        if whole:
            everything = devices.put((histories.indptr.astype(np.int32), histories.indices))
    fixed = Fixed(
        features=() if stream else tuple(map(features, range(len(modes)))),
        present=tuple(map(there, present)) if some_missing else None,
        moments=devices.put(moments_of(warm)),
        indptr=devices.stack(indptr),
        indices=devices.stack(indices),
        other=devices.put(moments_of(np.arange(len(local)))) if batch_norm == "batch" else None,
        length=whole_lengths,
        whole=everything,
    )

    def represent(params: nnx.State) -> Representations:
        served, many = fixed.served, devices.mesh is not None
        if many:  # one device of each host is enough
            params, served = parallel.fetch((params, served))
        encoder = encoders.trained(params, served)
        item = encoders.encode(encoder, tables, present, together=many)
        return Representations(vectors.history_means(split.train.by_user(), item), item)

    def needs(user: np.ndarray, item: np.ndarray) -> tuple[int, int, np.ndarray]:
        """History entries and touched items that a step makes room for, and these items."""
        users = np.unique(user)
        if parts == 1 and encode == "all":
            return int(lengths[users].sum()), 0, np.zeros(0, np.int64)
        taken = histories.take(users).indices
        entries = int(np.bincount(taken // items).max())  # the fullest part decides
        if encode == "all":
            return entries, 0, np.zeros(0, np.int64)
        ids = touched_items(item, taken, len(warm))
        return entries, int(np.bincount(ids // items).max()), ids

    # One shape is one compiled program. A step that needs more gets more, whatever came before.
    sample = shuffled_pairs(pair_user, pair_item, batch_size, np.random.default_rng(0), SAMPLE)
    room = room_for(needs(*step)[:2] for step in zip(*sample[:2], strict=True))

    @functools.cache
    def counter(size: int) -> Array:
        return devices.put(np.arange(size, dtype=np.int32))

    def batches(rng: np.random.Generator) -> Iterator[Batch]:
        pairs = shuffled_pairs(pair_user, pair_item, batch_size, rng)
        # An epoch is small beside the rest of one device, not beside its part on many.
        placed = devices.put(pairs) if devices.mesh is None else None

        def made() -> Iterator[Batch]:
            for i, step in enumerate(zip(*pairs[:2], strict=True)):
                *need, ids = needs(*step)
                entries, capacity = (
                    r if n <= r else round_up(n) for n, r in zip(need, room, strict=True)
                )
                capacity = min(capacity, items) if encode == "active" else 0
                epoch = placed or devices.put([part[i : i + 1] for part in pairs])
                at = devices.put(np.int32(i if placed else 0))
                features: tuple[Array, ...] = ()
                if stream:
                    own = apart(ids, items, parts, capacity).reshape(-1)
                    found = tuple(warm_rows(mode, own) for mode in range(len(modes)))
                    features = devices.put(found, split=True)
                epoch = Epoch._make((*epoch, counter(entries), counter(capacity)))
                yield Batch(epoch, at, features)

        yield from prefetch(made()) if stream or devices.mesh is not None else made()

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
        items,
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
