"""FREEDOM: LightGCN on a denoised graph of clicks, with a frozen graph of similar items.

Zhou and Shen, A Tale of Two Graphs: Freezing and Denoising Graph Structures for Multimodal
Recommendation, ACM MM 2023. Users and warm items have vectors of their own, E. With S the frozen
item graph, ``h = S E``, where an item's neighbours are the k nearest warm items in each mode,
itself included, with equal weights; and u, g the mean over 0 to 2 propagations of E on the
normalised graph of clicks: an item is served as g + h.

Each epoch trains on a fraction of the edges, drawn without replacement with odds proportional to
``1 / sqrt(d_u d_i)``. The loss is ``L(u . e_i, u . e_j) + lam sum_m L(u . W_m x_i, u . W_m x_j)``
with L the mean of ``-log sigmoid(a - b)`` and x a trainable copy of a mode's features.

The graph of items has warm ones alone. A cold item is served as h, of the warm items nearest to its
content; as a backbone for methods that make vectors of cold items, the rest matters.
"""

import functools
from collections.abc import Iterator, Mapping
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jax import Array

from jaxcold.data.content import take_unit_rows
from jaxcold.data.pairs.dataset import ContentFeatures, Dataset
from jaxcold.models.backbone import (
    Batch,
    Encoders,
    Sampler,
    apply_dense,
    check,
    dense,
    dots,
    keys_of,
    make_model,
    summed,
    weighted_mean,
    xavier,
)
from jaxcold.types import Model

LAYERS = 2
_BLOCK = 1024  # items whose neighbours are found at once


class Edges(NamedTuple):
    """Edges of the graph of clicks."""

    user: Any  # i32[E]
    item: Any  # i32[E]


class Constants(NamedTuple):
    """What no step changes."""

    edges: Edges  # all of them
    neighbours: Array  # i32[I, N] warm items; of a cold item, of which it has none among its own
    neighbour_weight: Array  # f32[N], sum 1
    is_warm: Array  # bool[I]


class GraphBatch(NamedTuple):
    """Pairs, and the edges of the epoch."""

    pairs: Batch
    edges: Edges


def propagate(tables: Any, edges: Edges) -> tuple[Array, Array]:
    """U [U, D] and g [I, D]: LightGCN's mean over the propagations."""
    user, item = tables["user"], tables["item"]
    users, items = len(user), len(item)
    ones = jnp.ones(len(edges.user), user.dtype)
    degree_u = jax.ops.segment_sum(ones, edges.user, users)
    degree_i = jax.ops.segment_sum(ones, edges.item, items)
    weight = jax.lax.rsqrt(degree_u[edges.user] * degree_i[edges.item])[:, None]
    sum_u, sum_i = user, item
    for _ in range(LAYERS):
        user, item = (
            jax.ops.segment_sum(weight * item[edges.item], edges.user, users),
            jax.ops.segment_sum(weight * user[edges.user], edges.item, items),
        )
        sum_u, sum_i = sum_u + user, sum_i + item
    return sum_u / (LAYERS + 1), sum_i / (LAYERS + 1)


def smooth(table: Array, neighbours: Array, weight: Array) -> Array:
    """H [n, D]: weighted mean of the rows of each item's neighbours."""
    return jnp.einsum("nkd,k->nd", table[neighbours], weight)


def vectors(params: Any, constants: Constants, edges: Edges) -> tuple[Array, Array]:
    """U [U, D] and the items' vectors [I, D]; of cold ones, h alone."""
    tables = params["main"]
    user, known = propagate(tables, edges)
    similar = smooth(tables["item"], constants.neighbours, constants.neighbour_weight)
    return user, jnp.where(constants.is_warm[:, None], known, 0) + similar


def loss_terms(
    params: Any, constants: Constants, batch: GraphBatch
) -> tuple[Array, dict[str, Array]]:
    """The loss of the items' vectors, and that of each mode by its name."""
    pairs, main = batch.pairs, params["main"]
    user, known = propagate(main, batch.edges)
    user = user[pairs.user]

    def item(ids: Array) -> Array:
        """Vectors of warm items; only the batch's have to be smoothed."""
        near = constants.neighbours[ids]
        return known[ids] + smooth(main["item"], near, constants.neighbour_weight)

    def ranking(better: Array, worse: Array) -> Array:
        difference = dots(user, better) - dots(user, worse)
        return weighted_mean(jax.nn.softplus(-difference), pairs.weight)

    of_modes = {}
    for mode, features in main["features"].items():
        layer = main["projection"][mode]
        better, worse = (features[ids] for ids in (pairs.positive, pairs.negative))
        of_modes[mode] = ranking(apply_dense(layer, better), apply_dense(layer, worse))
    return ranking(item(pairs.positive), item(pairs.negative)), of_modes


def _loss(
    params: Any,
    model_state: Any,
    constants: Constants,
    batch: GraphBatch,
    key: Array,
    *,
    lam: float,
) -> tuple[Array, tuple[Array, Any, dict[str, Array]]]:
    del key
    main, of_modes = loss_terms(params, constants, batch)
    total, count = summed(main + lam * sum(of_modes.values()), batch.pairs.weight)
    metrics = {"ranking": main, **{f"ranking/{mode}": term for mode, term in of_modes.items()}}
    return total, (count, model_state, metrics)


def kept_edges(rng: np.random.Generator, edges: Edges, dropout: float) -> Edges:
    """The edges that an epoch trains on: ``floor((1 - dropout) E)``, as the module says."""
    degree_u, degree_i = np.bincount(edges.user), np.bincount(edges.item)
    odds = 1 / np.sqrt(degree_u[edges.user] * degree_i[edges.item])
    count = int((1 - dropout) * len(edges.user))
    # The smallest of exponential variables of these rates are a draw without replacement.
    order = rng.exponential(size=len(odds)) / odds
    kept = np.sort(np.argpartition(order, count - 1)[:count])
    return Edges(edges.user[kept], edges.item[kept])


@functools.partial(jax.jit, static_argnames="count")
def _best(rows: Array, others: Array, count: int) -> Array:
    return jax.lax.top_k(jnp.matmul(rows, others.T, precision="highest"), count)[1]


def nearest(content: ContentFeatures, of: ContentFeatures, warm: np.ndarray, k: int) -> np.ndarray:
    """i32[n, M k]: for each item of `content` and each mode, the k warm items of largest cosine.

    Args:
        content: of n items.
        of: content of all items of the data set.
        warm: ids of warm items.
        k: at most their number.
    """
    result = []
    for mode, table in content.tables.items():
        others = jnp.asarray(take_unit_rows(of.tables[mode], of.present[mode], warm))
        columns = []
        for start in range(0, len(table), _BLOCK):
            ids = np.arange(start, start + _BLOCK)
            ids[ids >= len(table)] = -1
            rows = take_unit_rows(table, content.present[mode], ids)
            columns.append(np.asarray(_best(rows, others, k))[: len(table) - start])
        result.append(warm[np.concatenate(columns)])
    return np.concatenate(result, axis=1).astype(np.int32)


def build(
    dataset: Dataset,
    *,
    batch_size: int,
    epochs: int,
    learning_rate: float = 1e-3,
    dim: int = 64,
    k: int = 10,
    edge_dropout: float = 0.8,
    lam: float = 1e-3,
    text_weight: float = 0.9,
) -> Model:
    """FREEDOM on a data set of pairs.

    Args:
        dataset: content, split and training pairs.
        batch_size: pairs per step.
        epochs: passes over the pairs.
        learning_rate: of Adam, constant.
        dim: D, width of the vectors.
        k: neighbours of an item in each mode.
        edge_dropout: fraction of the edges that an epoch leaves out.
        lam: weight of each mode's loss.
        text_weight: of the mode "text" in the item graph, where there are several; the others
            share the rest. Without such a mode all have equal weights.

    Raises:
        ValueError: for an argument out of range.
    """
    check(
        positive={"train.learning_rate": learning_rate, "model.dim": dim, "model.k": k},
        from_zero={"model.lam": lam, "model.edge_dropout": edge_dropout},
    )
    if not (edge_dropout < 1 and 0 <= text_weight <= 1):
        raise ValueError(
            "model.edge_dropout is below 1 and model.text_weight between 0 and 1, not "
            f"{edge_dropout} and {text_weight}"
        )
    content, warm = dataset.content, dataset.split.warm_items
    users, items = dataset.interactions.num_users, dataset.interactions.num_items
    k = min(k, len(warm))
    train = dataset.split.train
    edges = Edges(train.user, train.item)
    is_warm = np.zeros(items, bool)
    is_warm[warm] = True
    weight = np.repeat(_mode_weights(content.tables, text_weight) / k, k)
    constants = Constants(
        Edges(*map(jnp.asarray, edges)),
        jnp.asarray(nearest(content, content, warm, k)),
        jnp.asarray(weight, jnp.float32),
        jnp.asarray(is_warm),
    )
    sampler = Sampler.of(dataset, batch_size)

    def init(seed: int) -> tuple[dict[str, Any], tuple[()]]:
        keys = keys_of(seed)
        tables = content.tables.items()
        main = {
            "user": xavier(next(keys), users, dim),
            "item": xavier(next(keys), items, dim),
            "features": {mode: jnp.asarray(table, jnp.float32) for mode, table in tables},
            "projection": {mode: dense(next(keys), t.shape[1], dim) for mode, t in tables},
        }
        return {"main": main}, ()

    def batches(rng: np.random.Generator) -> Iterator[GraphBatch]:
        kept = Edges(*map(jnp.asarray, kept_edges(rng.spawn(1)[0], edges, edge_dropout)))
        for pairs in sampler.epoch(rng):
            yield GraphBatch(pairs, kept)

    model = make_model(
        dataset,
        constants,
        sampler,
        ENCODERS,
        init=init,
        losses={"main": functools.partial(_loss, lam=lam)},
        optimizers={"main": optax.adam(learning_rate)},
        epochs=epochs,
        batches=batches,
    )

    def encode_items(params: Any, model_state: Any, new: Any = None) -> np.ndarray:
        if new is None:
            return np.asarray(_all_items(params, constants))
        near = jnp.asarray(nearest(new, content, warm, k))
        return np.asarray(smooth(params["main"]["item"], near, constants.neighbour_weight))

    return model._replace(encode_items=encode_items)


def _mode_weights(tables: Mapping[str, np.ndarray], text_weight: float) -> np.ndarray:
    """f64[M], sum 1."""
    if "text" not in tables or len(tables) == 1:
        return np.full(len(tables), 1 / len(tables))
    rest = (1 - text_weight) / (len(tables) - 1)
    return np.array([text_weight if mode == "text" else rest for mode in tables])


@jax.jit
def _all_items(params: Any, constants: Constants) -> Array:
    return vectors(params, constants, constants.edges)[1]


ENCODERS = Encoders(
    cold=lambda params, model_state, constants, content: _all_items(params, constants),
    users=lambda params, model_state, constants: vectors(params, constants, constants.edges)[0],
)
