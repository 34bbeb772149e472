"""SEMCo's half that knows the data: what its steps read, on one device or many.

A data set becomes arrays that stay on the devices and epochs of batches of one shape,
whatever the encoder and the loss.
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
    group_by_shard,
    prefetch,
    round_up,
    shuffled_pairs,
    touched_items,
)
from jaxcold.data.pairs.dataset import Dataset
from jaxcold.models import encoders
from jaxcold.models.layers import Compute, Moments, catalogue_moments
from jaxcold.types import Csr, Representations, ShardingSpec

ENCODE = ("all", "active")
BATCH_NORM = ("catalogue", "batch")


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
SPLIT = ShardingSpec(fixed=("features", "present", "indptr", "indices"), batch=("features",))


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
    positive = parallel.local_index(epoch.item[at], items, axis)
    return gather_histories(fixed, user, weight, epoch.slots), positive, weight


def choose(name: str, value: str, choices: Sequence[str]) -> None:
    """Raises a ValueError that lists the choices, unless `value` is one of them."""
    if value not in choices:
        raise ValueError(f"model.{name} is one of {', '.join(choices)}, not {value!r}")


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
    """The half of `semco.build` that knows the data; the arguments are explained there.

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
    room = capacity_of_steps(needs(*step)[:2] for step in zip(*sample[:2], strict=True))

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
                    own = group_by_shard(ids, items, parts, capacity).reshape(-1)
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
