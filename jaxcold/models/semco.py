"""SEMCo: a content encoder trained with sampled entmax, so that new items need no clicks.

An item's embedding is a function of its content alone; a user is the mean of the embeddings of
the items in the training history; the score is their cosine.

Reference: Meehan and Pauwels, Sparse Contrastive Learning for Content-Based Cold Item
Recommendation, SIGIR 2026, sections 3.2 and 3.3.1.
"""

import functools
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
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
from jaxcold.models.layers import (
    Affine,
    Dense,
    ModalityFusion,
    Moments,
    NormedDense,
    catalogue_moments,
    unit_rows,
)
from jaxcold.sparse import fenchel_young_loss
from jaxcold.types import Csr, Model, Representations

ENCODE = ("all", "active")
BATCH_NORM = ("catalogue", "batch")
USER_VECTOR = ("mean", "leave_one_out")
GRADIENT = ("autodiff", "fenchel_young")
Gradient = Literal["autodiff", "fenchel_young"]

# Rows encoded by one call outside training. One fixed shape means one compiled program, and that
# an item's embedding has the same bits alone as inside the catalogue.
BLOCK = 1024

# Logit of a column that is not there: so far below a cosine that no map gives it a probability.
ABSENT = -1e9


class ContentEncoder(nnx.Module):
    """f(X_1, .., X_M): per mode Dense, batch norm, ReLU; attention over modes; Dense; unit rows."""

    def __init__(
        self,
        widths: Sequence[int],
        hidden: int,
        out: int,
        attention_layers: int = 1,
        *,
        rngs: nnx.Rngs,
    ):
        self.modes = nnx.List([NormedDense(width, hidden, rngs=rngs) for width in widths])
        self.fusion = (
            ModalityFusion(len(widths), hidden, attention_layers, rngs=rngs)
            if len(widths) > 1
            else None
        )
        self.final = Dense(hidden, out, rngs=rngs)

    def fold(self, moments: Sequence[Moments]) -> tuple[Affine, ...]:
        """The first layers with the batch norm of that catalogue folded in."""
        return tuple(mode.fold(m) for mode, m in zip(self.modes, moments, strict=True))

    def __call__(
        self,
        features: Sequence[Array],
        first: Sequence[Affine],
        present: Sequence[Array] | None = None,
    ) -> Array:
        """Embeds items.

        Args:
            features: M arrays [n, D_m] of unit rows.
            first: M folded first layers, from `fold`.
            present: M arrays bool[n], False where the item lacks the mode; None means all there.

        Returns:
            [n, out] unit rows; zero for an item without any mode.
        """
        hidden = [
            jax.nn.relu(x @ layer.kernel + layer.bias[None, :])
            for x, layer in zip(features, first, strict=True)
        ]
        fused = hidden[0] if self.fusion is None else self.fusion(hidden, present)
        rows = unit_rows(self.final(fused))
        if present is not None:
            rows = jnp.where(jnp.any(jnp.stack(present), axis=0)[:, None], rows, 0.0)
        return rows


class DistilledEncoder(nnx.Module):
    """A content encoder, the teacher, with a student on its outputs: Dense, ReLU, Dense, unit rows.

    Called like `ContentEncoder`; its rows are the student's.
    """

    def __init__(
        self,
        widths: Sequence[int],
        hidden: int,
        out: int,
        attention_layers: int,
        student: tuple[int, int],
        *,
        rngs: nnx.Rngs,
    ):
        self.teacher = ContentEncoder(widths, hidden, out, attention_layers, rngs=rngs)
        self.student = Student(out, *student, rngs=rngs)

    def fold(self, moments: Sequence[Moments]) -> tuple[Affine, ...]:
        """As `ContentEncoder.fold`: the student has no batch norm."""
        return self.teacher.fold(moments)

    def __call__(
        self,
        features: Sequence[Array],
        first: Sequence[Affine],
        present: Sequence[Array] | None = None,
    ) -> Array:
        """Embeds items as `ContentEncoder` does: [n, out] unit rows of the student."""
        return self.student(self.teacher(features, first, present))


class Student(nnx.Module):
    """Dense, ReLU, Dense, unit rows, on the teacher's item embeddings (paper, section 3.3.2)."""

    def __init__(self, inputs: int, hidden: int, out: int, *, rngs: nnx.Rngs):
        self.first = Dense(inputs, hidden, rngs=rngs)
        self.second = Dense(hidden, out, rngs=rngs)

    def __call__(self, teacher: Array) -> Array:
        """[n, inputs] -> [n, out] unit rows; a zero row (no content at all) stays zero."""
        rows = unit_rows(self.second(jax.nn.relu(self.first(teacher))))
        return jnp.where(jnp.any(teacher != 0, axis=-1, keepdims=True), rows, 0.0)


class Fixed(NamedTuple):
    """What no step changes, on the device; items are numbered among the N warm ones."""

    features: tuple[Array, ...]  # M x f32[N, D_m] unit rows; empty when streamed from the host
    present: tuple[Array, ...] | None  # M x bool[N]
    moments: tuple[Moments, ...]
    indptr: Array  # i32[U + 1] users' training histories
    indices: Array  # i32[nnz]
    served: tuple[Moments, ...] | None = None  # after training, where other than `moments`


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


class Encoder(NamedTuple):
    """A trained encoder: an item's embedding follows from this and its content alone."""

    graphdef: nnx.GraphDef
    params: nnx.State
    first: tuple[Affine, ...]  # the first layers, with a catalogue's statistics folded in


class Shape(NamedTuple):
    """The sizes of an encoder; from its parameters or before there are any."""

    widths: tuple[int, ...]  # features of each mode
    hidden: int
    out: int
    attention_layers: int = 1
    student: tuple[int, int] | None = None  # hidden and output width; then the rest is the teacher

    def make(self, key: Array) -> ContentEncoder | DistilledEncoder:
        """The encoder with fresh parameters."""
        rngs = nnx.Rngs(params=key)
        if self.student is None:
            return ContentEncoder(*self[:4], rngs=rngs)
        return DistilledEncoder(*self[:4], self.student, rngs=rngs)

    def split(self) -> tuple[nnx.GraphDef, nnx.State]:
        """Graph and parameters, shapes without values."""
        return nnx.split(nnx.eval_shape(lambda: self.make(jax.random.key(0))))

    @classmethod
    def of(cls, widths: Iterable[int], arrays: Mapping[str, Any]) -> "Shape":
        """From the parameters of `_named`."""
        distilled = "student/second/kernel/value" in arrays
        teacher = "teacher/" if distilled else ""
        hidden, out = arrays[f"{teacher}final/kernel/value"].shape
        layers = 2 if f"{teacher}fusion/second/kernel/value" in arrays else 1
        student = arrays["student/second/kernel/value"].shape if distilled else None
        return cls(tuple(widths), hidden, out, layers, student)


def _named(params: nnx.State) -> dict[str, Any]:
    """Parameters by the path of each: {"final/kernel/value": ...}."""
    return {
        jax.tree_util.keystr(path, simple=True, separator="/"): leaf
        for path, leaf in jax.tree_util.tree_flatten_with_path(params)[0]
    }


def encoder_arrays(encoder: Encoder) -> dict[str, np.ndarray]:
    """All numbers of an encoder, by name."""
    arrays = _named(encoder.params)
    for m, layer in enumerate(encoder.first):
        arrays |= {f"first/{m}/kernel": layer.kernel, f"first/{m}/bias": layer.bias}
    return {name: np.asarray(array) for name, array in arrays.items()}


def encoder_from_arrays(arrays: Mapping[str, np.ndarray]) -> Encoder:
    """The encoder of `encoder_arrays`; other names are left alone.

    Raises:
        KeyError: for a name that is absent.
        ValueError: for shapes that do not belong together.
    """
    count = sum(name.startswith("first/") for name in arrays) // 2
    first = tuple(
        Affine(*(jnp.asarray(arrays[f"first/{m}/{part}"]) for part in ("kernel", "bias")))
        for m in range(count)
    )
    graphdef, abstract = Shape.of((layer.kernel.shape[0] for layer in first), arrays).split()
    leaves = []
    for name, leaf in _named(abstract).items():
        if arrays[name].shape != leaf.shape:
            raise ValueError(f"{name} has shape {arrays[name].shape}, not {leaf.shape}")
        leaves.append(jnp.asarray(arrays[name]))
    return Encoder(graphdef, jax.tree.unflatten(jax.tree.structure(abstract), leaves), first)


@functools.partial(jax.jit, static_argnums=0)
def _fold(
    graphdef: nnx.GraphDef, params: nnx.State, moments: tuple[Moments, ...]
) -> tuple[Affine, ...]:
    return nnx.merge(graphdef, params).fold(moments)


@functools.partial(jax.jit, static_argnums=0)
def _embed_block(
    graphdef: nnx.GraphDef,
    params: nnx.State,
    first: tuple[Affine, ...],
    features: tuple[Array, ...],
    present: tuple[Array, ...],
) -> Array:
    return nnx.merge(graphdef, params)(features, first, present)


def trained(model: Model, params: nnx.State) -> Encoder:
    """The encoder of a model that `build` made, with trained parameters."""
    fixed: Fixed = model.fixed
    widths = (moments.mean.shape[0] for moments in fixed.moments)
    graphdef, _ = Shape.of(widths, _named(params)).split()
    return Encoder(graphdef, params, _fold(graphdef, params, fixed.served or fixed.moments))


def embed(
    graphdef: nnx.GraphDef,
    params: nnx.State,
    moments: tuple[Moments, ...],
    tables: Sequence[np.ndarray],
    present: Sequence[np.ndarray],
) -> np.ndarray:
    """Embeds items with the statistics of a catalogue; see `encode`.

    Args:
        graphdef: structure of the encoder.
        params: its parameters.
        moments: of the catalogue whose statistics normalise the first layers.
        tables: M arrays [n, D_m] of raw features of any float type, possibly memory-mapped.
        present: M arrays bool[n].

    Returns:
        f32[n, out] unit rows.
    """
    return encode(Encoder(graphdef, params, _fold(graphdef, params, moments)), tables, present)


def encode(
    encoder: Encoder, tables: Sequence[np.ndarray], present: Sequence[np.ndarray]
) -> np.ndarray:
    """Embeds items in blocks of one compiled shape: the same bits alone or in any company.

    Args:
        encoder: trained.
        tables: M arrays [n, D_m] of raw features of any float type, possibly memory-mapped.
        present: M arrays bool[n]; where False the item lacks the mode.

    Returns:
        f32[n, out] unit rows.
    """
    count = len(tables[0])
    blocks = []
    for at in range(0, count, BLOCK):
        there = [np.asarray(p[at : at + BLOCK]) for p in present]
        rows = [
            vectors.unit_rows(np.where(p[:, None], table[at : at + BLOCK], 0))
            for table, p in zip(tables, there, strict=True)
        ]
        pad = BLOCK - len(there[0])
        block = _embed_block(
            *encoder,
            tuple(np.pad(x, ((0, pad), (0, 0))) for x in rows),
            tuple(np.pad(p, (0, pad)) for p in there),
        )
        blocks.append(np.asarray(block)[: BLOCK - pad])
    return np.concatenate(blocks)


def choose(name: str, value: str, choices: Sequence[str]) -> None:
    """Raises a ValueError that lists the choices, unless `value` is one of them."""
    if value not in choices:
        raise ValueError(f"model.{name} is one of {', '.join(choices)}, not {value!r}")


class Prepared(NamedTuple):
    """A data set made ready for training and embedding, whatever the encoder."""

    fixed: Fixed
    batches: Callable[[np.random.Generator], Iterator[Batch]]
    steps_per_epoch: int
    represent: Callable[[nnx.GraphDef, nnx.State], Representations]
    widths: tuple[int, ...]  # features of each mode


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
        served=moments_of(np.arange(len(local))) if batch_norm == "batch" else None,
    )

    def represent(graphdef: nnx.GraphDef, params: nnx.State) -> Representations:
        item = embed(graphdef, params, fixed.served or fixed.moments, tables, present)
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

    return Prepared(
        fixed,
        batches,
        -(-len(pair_user) // batch_size),
        represent,
        tuple(table.shape[1] for table in tables),
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
    choose("gradient", gradient, GRADIENT)
    choose("user_vector", user_vector, USER_VECTOR)
    if not 1 <= alpha <= 2:
        raise ValueError(f"model.alpha is between 1 (softmax) and 2 (sparsemax), not {alpha}")
    if not tau > 0:
        raise ValueError(f"model.tau is positive, not {tau}")
    for name, value in (("hidden", hidden), ("out", out)):
        if value < 1:
            raise ValueError(f"{name} is at least 1, not {value}")
    data = prepare(
        dataset, batch_size=batch_size, encode=encode, batch_norm=batch_norm, stream=stream
    )
    shape = Shape(data.widths, hidden, out, attention_layers)
    graphdef, _ = shape.split()

    def init(seed: int) -> tuple[nnx.State, None]:
        return nnx.split(shape.make(jax.random.key(seed)))[1], None

    def represent(params: nnx.State, extra: None) -> Representations:
        del extra
        return data.represent(graphdef, params)

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
    return Model(data.fixed, init, loss, represent, data.batches, data.steps_per_epoch)
