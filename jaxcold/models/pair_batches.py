"""Pairs of users and items as arrays on the devices: what the steps of SEMCo's models read.

Content features and users' histories stay on the devices; an epoch is a sequence of batches of one
shape. The encoder and the loss are up to the method.
"""

import functools
from collections.abc import Callable, Iterator, Sequence
from typing import NamedTuple

import jax.numpy as jnp
import numpy as np
from flax import nnx
from jax import Array

from jaxcold import parallel
from jaxcold.data import content as vectors
from jaxcold.data.pairs.batches import (
    SAMPLE,
    capacity_of_steps,
    check_batch_size,
    group_by_shard,
    prefetch,
    relative_weights,
    round_up,
    shuffled_pairs,
    touched_items,
)
from jaxcold.data.pairs.dataset import ContentFeatures, Dataset
from jaxcold.models import encoders
from jaxcold.models.layers import Compute, Moments, catalogue_moments
from jaxcold.types import Csr, ShardingSpec

ENCODE = ("all", "active")
BATCH_NORM = ("catalogue", "batch")


class Constants(NamedTuple):
    """Arrays that no step changes; items are numbered among the N warm ones.

    Each of n devices has the features of its items, and of the histories only its items, counted
    from 0. Its shard of `indptr` has U + 1 entries; shards of `indices` are padded with zeros to
    equal lengths.
    """

    features: tuple[Array, ...]  # M x f32[N, D_m] unit rows; empty when streamed from the host
    present: tuple[Array, ...] | None  # M x bool[N]
    moments: tuple[Moments, ...]
    indptr: Array  # i32[U + 1] users' training histories
    indices: Array  # i32[nnz]
    # Statistics of another catalogue that normalise items after training; None: `moments`.
    served_moments: tuple[Moments, ...] | None = None
    length: Array | None = None  # i32[U] of whole histories, where `indptr` is sharded
    unsharded: tuple[Array, Array] | None = None  # the whole indptr and indices, on every device
    weights: Array | None = None  # f32[nnz] of the entries of histories; None: 1

    @property
    def served(self) -> tuple[Moments, ...]:
        """The statistics that normalise items after training."""
        return self.served_moments or self.moments


class Epoch(NamedTuple):
    """One epoch of shuffled training pairs, placed on the device once; of many, a step at a time.

    S steps of B pairs. The lengths of `slots` and `active` are capacities: they give the
    ragged histories of a batch, and the set of items it touches, a shape that does not change.
    """

    user: Array  # i32[S, B]
    item: Array  # i32[S, B]
    weight: Array  # f32[S, B] of the pairs, 0 for padding of the last batch
    slots: Array  # i32[T] = arange, T >= history entries of any batch
    active: Array  # i32[K] = arange, K >= items touched by any batch; empty for encode="all"


class Batch(NamedTuple):
    """Step `at` of an epoch; `features`: its active items' rows, when the host streams them."""

    epoch: Epoch
    at: Array  # i32[]
    features: tuple[Array, ...] = ()


# The arrays of `Constants` and `Batch` that are sharded over devices.
SHARDING = ShardingSpec(
    constants=("features", "present", "indptr", "indices", "weights"), batch=("features",)
)


class Histories(NamedTuple):
    """The concatenated histories of a batch's users, each distinct user's once."""

    item: Array  # i32[T]
    row: Array  # i32[T]: the batch row it belongs to, B where the slot is unused
    first_row: Array  # i32[B]: the first row of the same user, to which the history belongs
    length: Array  # i32[B]: of the row's user, on all devices; 0 for rows of weight 0
    weight: Array | None = None  # f32[T], 0 where the slot is unused; None: 1


def gather_histories(constants: Constants, user: Array, weight: Array, slots: Array) -> Histories:
    """Expands compressed rows into flat ids of one shape.

    Args:
        constants: users' histories as compressed rows.
        user: i32[B].
        weight: [B]; rows of weight 0 get no history.
        slots: i32[T] = arange(T); T is at least the entries of the distinct users.

    Returns:
        On one of many devices, the part of the histories that it has.
    """
    rows = user.shape[0]
    row_number = jnp.arange(rows, dtype=jnp.int32)
    users = constants.indptr.shape[0] - 1
    own = jnp.where(weight > 0, constants.indptr[user + 1] - constants.indptr[user], 0)
    length = own if constants.length is None else jnp.where(weight > 0, constants.length[user], 0)
    first_row = jnp.full(users, rows, row_number.dtype).at[user].min(row_number)[user]
    entries = jnp.where(first_row == row_number, own, 0)
    end = jnp.cumsum(entries)
    row = jnp.repeat(row_number, entries, total_repeat_length=slots.shape[0])
    used = slots < end[-1]
    at = constants.indptr[user[row]] + slots - (end - entries)[row]
    at = jnp.where(used, at, 0)
    weights = None
    if constants.weights is not None:
        weights = jnp.where(used, constants.weights[at], 0.0)
    item = constants.indices[at]
    return Histories(item, jnp.where(used, row, rows), first_row, length, weights)


def unpack(
    constants: Constants, batch: Batch, items: int, axis: str | None = None
) -> tuple[Histories, Array, Array]:
    """Histories, positives i32[B] and weights f32[B] of a batch.

    Args:
        constants: of the model.
        batch: one step's.
        items: of each device; where another has the positive, it is `items`.
        axis: of the devices.
    """
    epoch, at = batch.epoch, batch.at
    user, weight = epoch.user[at], epoch.weight[at]
    positive = parallel.local_index(epoch.item[at], items, axis)
    return gather_histories(constants, user, weight, epoch.slots), positive, weight


def choose(name: str, value: str, choices: Sequence[str]) -> None:
    """Raises a ValueError that lists the choices, unless `value` is one of them."""
    if value not in choices:
        raise ValueError(f"model.{name} is one of {', '.join(choices)}, not {value!r}")


class Prepared(NamedTuple):
    """A data set made ready for training and embedding, whatever the encoder."""

    constants: Constants
    batches: Callable[[np.random.Generator], Iterator[Batch]]
    steps_per_epoch: int
    examples_per_epoch: int
    # (parameters of an encoder, content of n items or None for all) -> f32[n, out]
    encode_items: Callable[[nnx.State, ContentFeatures | None], np.ndarray]
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
    unsharded_histories: bool = False,
) -> Prepared:
    """The half of `semco.build` that knows the data; the arguments are explained there.

    With `unsharded_histories` every device gets all histories too, where they are sharded.
    """
    choose("encode", encode, ENCODE)
    choose("batch_norm", batch_norm, BATCH_NORM)
    check_batch_size(batch_size, len(dataset.split.train.user))
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
    pair_weight, entry_weight = split.train.weight, None
    if pair_weight is not None:
        pair_weight = relative_weights(pair_weight)
        entry_weight = pair_weight[np.argsort(pair_user, kind="stable")]

    # Every device has features and histories of `items` items; the last ones may be padding.
    shards = devices.n
    items = devices.rows(len(warm)) // shards
    owner = histories.indices // items
    entries_of_shard = np.bincount(owner, minlength=shards)

    def warm_rows(mode: int, ids: np.ndarray) -> np.ndarray:
        known = np.where((ids >= 0) & (ids < len(warm)), warm[np.minimum(ids, len(warm) - 1)], -1)
        rows = vectors.take_unit_rows(tables[mode], present[mode], known)
        return rows if compute == "float32" else rows.astype(jnp.bfloat16)

    def ids_of(shard: int) -> np.ndarray:
        return np.arange(shard * items, (shard + 1) * items)

    def features(mode: int) -> Array:
        return devices.stack(lambda shard: warm_rows(mode, ids_of(shard)))

    def presence(mask: np.ndarray) -> Array:
        known = np.pad(mask[warm], (0, shards * items - len(warm)))
        return devices.stack(lambda shard: known[ids_of(shard)])

    def indptr(shard: int) -> np.ndarray:
        before = np.concatenate([[0], np.cumsum(owner == shard)])
        return before[histories.indptr].astype(np.int32)

    def indices(shard: int) -> np.ndarray:
        own = histories.indices[owner == shard] - np.int32(shard * items)
        return np.pad(own, (0, entries_of_shard.max() - len(own)))

    def weights_of(shard: int) -> np.ndarray:
        assert entry_weight is not None
        own = entry_weight[owner == shard]
        return np.pad(own, (0, entries_of_shard.max() - len(own)))

    def moments_of(items: np.ndarray) -> tuple[Moments, ...]:
        return tuple(
            catalogue_moments(table, items[p[items]])
            for table, p in zip(tables, present, strict=True)
        )

    lengths, length, unsharded = histories.counts, None, None
    if devices.mesh is not None:
        length = devices.put(lengths.astype(np.int32))
        if unsharded_histories:
            unsharded = devices.put((histories.indptr.astype(np.int32), histories.indices))
    constants = Constants(
        features=() if stream else tuple(map(features, range(len(modes)))),
        present=tuple(map(presence, present)) if some_missing else None,
        moments=devices.put(moments_of(warm)),
        indptr=devices.stack(indptr),
        indices=devices.stack(indices),
        served_moments=(
            devices.put(moments_of(np.arange(len(local)))) if batch_norm == "batch" else None
        ),
        length=length,
        unsharded=unsharded,
        weights=None if entry_weight is None else devices.stack(weights_of),
    )

    def encode_items(params: nnx.State, features: ContentFeatures | None) -> np.ndarray:
        features = content if features is None else features
        served, several = constants.served, devices.mesh is not None
        if several:  # one device of each host is enough
            params, served = parallel.fetch((params, served))
        rows = [features.tables[mode] for mode in modes]
        masks = [features.present[mode] for mode in modes]
        together = several and features is content
        return encoders.encode(encoders.trained(params, served), rows, masks, together=together)

    def needs(user: np.ndarray, item: np.ndarray) -> tuple[int, int, np.ndarray]:
        """Capacities in history entries and in items that a step needs, and those items."""
        users = np.unique(user)
        if shards == 1 and encode == "all":
            return int(lengths[users].sum()), 0, np.zeros(0, np.int64)
        taken = histories.take(users).indices
        entries = int(np.bincount(taken // items).max())  # the fullest shard decides
        if encode == "all":
            return entries, 0, np.zeros(0, np.int64)
        ids = touched_items(item, taken, len(warm))
        return entries, int(np.bincount(ids // items).max()), ids

    # One shape is one compiled program. A step that needs more gets a larger one of its own.
    sample = shuffled_pairs(pair_user, pair_item, batch_size, np.random.default_rng(0), SAMPLE)
    capacities = capacity_of_steps(needs(*step)[:2] for step in zip(*sample[:2], strict=True))

    @functools.cache
    def counter(size: int) -> Array:
        return devices.put(np.arange(size, dtype=np.int32))

    def batches(rng: np.random.Generator) -> Iterator[Batch]:
        pairs = shuffled_pairs(pair_user, pair_item, batch_size, rng, weight=pair_weight)
        # An epoch is small beside the arrays of one device, not beside a shard of them.
        placed = devices.put(pairs) if devices.mesh is None else None

        def steps() -> Iterator[Batch]:
            for i, step in enumerate(zip(*pairs[:2], strict=True)):
                *need, ids = needs(*step)
                entries, capacity = (
                    r if n <= r else round_up(n) for n, r in zip(need, capacities, strict=True)
                )
                capacity = min(capacity, items) if encode == "active" else 0
                epoch = placed or devices.put([array[i : i + 1] for array in pairs])
                at = devices.put(np.int32(i if placed else 0))
                features: tuple[Array, ...] = ()
                if stream:
                    own = group_by_shard(ids, items, shards, capacity).reshape(-1)
                    rows = tuple(warm_rows(mode, own) for mode in range(len(modes)))
                    features = devices.put(rows, sharded=True)
                epoch = Epoch._make((*epoch, counter(entries), counter(capacity)))
                yield Batch(epoch, at, features)

        yield from prefetch(steps()) if stream or devices.mesh is not None else steps()

    def examples(rng: np.random.Generator, at: int) -> dict[str, np.ndarray]:
        pairs = shuffled_pairs(pair_user, pair_item, batch_size, rng)
        real = pairs.weight[at] > 0
        return {
            "user": dataset.user_ids[pairs.user[at][real]],
            "item": dataset.item_ids[warm[pairs.item[at][real]]],
        }

    return Prepared(
        constants,
        batches,
        -(-len(pair_user) // batch_size),
        len(pair_user),
        encode_items,
        tuple(table.shape[1] for table in tables),
        items,
        examples,
    )
