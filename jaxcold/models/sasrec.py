"""SASRec whose items are ids, content, or content plus a small bounded delta.

Token i of a history is ``sqrt(d) E[item_i] + P[i]``; two transformer blocks look back; the last
hidden state times the table E scores what comes next. E is trained freely ("random"; "content"
starts at the content), is the content ("frozen"), or is the content plus a trainable delta whose
rows stay within a ball ("delta"). An item that nobody has clicked has its content and no delta.

A batch is a list of tokens, those of all its sequences one after another, and not a rectangle:
padding costs nothing. Attention alone looks at rectangles, one for each class of lengths.

Row 0 of E stands for no item. It is never recommended and is no class of the loss. With
``reference=True`` everything is as in the code published with the paper: rectangles padded on the
left, whose padding is seen with an attention logit lower by one, positions counted from the
longest sequence's start, and row 0 as a class and a candidate.

Source: "Let It Go? Not Quite: Addressing Item Cold Start in Sequential Recommendations with
Content-Based Initialization", RecSys 2025; Kang and McAuley, "Self-Attentive Sequential
Recommendation", ICDM 2018.
"""

import functools
import math
from collections.abc import Iterator, Mapping
from typing import Any, Literal, NamedTuple, get_args

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jax import Array

from jaxcold import parallel
from jaxcold.data import content as vectors
from jaxcold.data.pairs.batches import prefetch
from jaxcold.data.sequences import batches as packing
from jaxcold.data.sequences import evaluation as questions
from jaxcold.data.sequences.batches import Tokens
from jaxcold.data.sequences.dataset import SequenceDataset
from jaxcold.data.sequences.split import window_rows
from jaxcold.data.sequences.split import windows as make_windows
from jaxcold.models.attention import INIT, Block, drop_some, split_key
from jaxcold.models.layers import Compute, product, rounded
from jaxcold.sparse import fenchel_young_loss, linear_entmax_sum, sharded_entmax_sum
from jaxcold.types import DataError, Model, Representations, ShardingSpec

ItemTable = Literal["random", "content", "frozen", "delta"]
Loss = Literal["full", "sampled", "gbce"]

TABLES = ("items", "delta")  # parameters with a row per item


class SASRec(nnx.Module):
    """Positions, blocks, and what is trainable in the item table."""

    def __init__(
        self,
        items: int,
        dim: int,
        max_length: int,
        *,
        item_table: ItemTable,
        blocks: int,
        heads: int,
        dropout: float,
        rngs: nnx.Rngs,
        rows: int | None = None,
        compute: Compute = "float32",
    ):
        # Row 0 is no item: zeros, like what makes a table of `rows` rows divisible.
        start = INIT * jax.random.normal(rngs.params(), (items + 1, dim)).at[0].set(0)
        spare = (rows or items + 1) - (items + 1)
        start = jnp.pad(start, ((0, spare), (0, 0))) if spare else start
        # A trainable table from content starts there as soon as the content is known.
        self.items = nnx.Param(start) if item_table in ("random", "content") else None
        self.delta = nnx.Param(start) if item_table == "delta" else None
        self.position = nnx.Param(INIT * jax.random.normal(rngs.params(), (max_length, dim)))
        self.blocks = nnx.List(
            [Block(dim, heads, dropout, rngs=rngs, compute=compute) for _ in range(blocks)]
        )
        self.norm = nnx.LayerNorm(dim, epsilon=1e-8, use_fast_variance=False, rngs=rngs)
        self.dropout = dropout

    def table(self, content: Array | None) -> Array:
        """f[items + 1, d]: a row for no item, then all warm items.

        Args:
            content: of the same shape, its row 0 zero; None where the table needs none.
        """
        if self.items is not None:
            return self.items[...]
        assert content is not None
        return content if self.delta is None else content + self.delta[...]

    def __call__(
        self, table: Array, tokens: Tokens, key: Array | None = None, additive: bool = False
    ) -> Array:
        """Hidden states, [T, d].

        Args:
            table: [items + 1, d]; row 0 for no item.
            tokens: of the batch.
            key: of dropout; without one nothing is dropped.
            additive: tokens without an item are seen, with a logit lower by one.
        """
        return self.hidden(table[tokens.item], tokens, key, additive)

    def hidden(
        self, rows: Array, tokens: Tokens, key: Array | None = None, additive: bool = False
    ) -> Array:
        """As a call, with the tokens' rows of the table, [T, d]."""
        keys = split_key(key, len(self.blocks) + 1)
        x = math.sqrt(rows.shape[1]) * rows + self.position[...][tokens.position]
        x = drop_some(x, self.dropout, keys[0])
        for block, key in zip(self.blocks, keys[1:], strict=True):
            x = block(x, tokens, key, additive)
        return self.norm(x)


class Fixed(NamedTuple):
    """Arrays that no step changes."""

    content: Array | None  # f32[warm + 1, d] unit rows, row 0 zero


class Objective(NamedTuple):
    """What is minimised; the fields are explained at `build`."""

    loss: Loss
    alpha: float
    tau: float
    negatives: int
    calibration: float
    compute: Compute = "float32"


def _look_up(table: Array, ids: Array, axis: str) -> Array:
    """Rows of a table that is split over the devices, for this device's own ids."""
    at = parallel.local_index(parallel.gather(ids, axis), len(table), axis)
    return parallel.gather_rows(table, at, axis)


def _loss(
    params: nnx.State,
    extra: tuple[()],
    fixed: Fixed,
    tokens: Tokens,
    key: Array,
    *,
    graphdef: nnx.GraphDef,
    objective: Objective,
    reference: bool,
    items: int = 0,
    shard_items: bool = False,
    axis: str | None = None,
) -> tuple[Array, tuple[Array, tuple[()], dict[str, Array]]]:
    model = nnx.merge(graphdef, params)
    table = classes = model.table(fixed.content)
    drop, draw = jax.random.split(key)
    if axis is not None:  # what is dropped differs from device to device, what is drawn does not
        drop = jax.random.fold_in(drop, parallel.index(axis))
    if shard_items and axis is not None:
        return _split_loss(model, table, tokens, drop, draw, objective, items, axis)
    if reference:
        # The published code keeps the gradient from row 0, except in the product with the hidden
        # states where the table is trained from content.
        still = jnp.concatenate([jax.lax.stop_gradient(table[:1]), table[1:]])
        table, classes = still, classes if _drifts(model, fixed) else still
    hidden = model(table, tokens, drop, additive=reference)
    count = jnp.sum(tokens.target > 0, dtype=hidden.dtype)
    if reference:
        target = jnp.where(tokens.target > 0, tokens.target, -1)
    else:
        classes = classes[1 : items + 1] if shard_items else classes[1:]
        target = tokens.target - 1
    if objective.loss == "full":
        hidden, classes = (rounded(x, objective.compute) for x in (hidden, classes))
        total = linear_entmax_sum(hidden, classes, target, objective.alpha, tau=objective.tau)
    else:
        count_all = classes.shape[0]
        drawn = jax.random.randint(draw, (objective.negatives,), 0, count_all)
        rows = classes[jnp.clip(target, 0, count_all - 1)], classes[drawn]
        total = _sampled(hidden, *rows, drawn, target, count_all, objective)
    return total, (count, extra, {})


def _split_loss(
    model: SASRec,
    table: Array,
    tokens: Tokens,
    drop: Array,
    draw: Array,
    objective: Objective,
    items: int,
    axis: str,
) -> tuple[Array, tuple[Array, tuple[()], dict[str, Array]]]:
    """As `_loss`, of this device's tokens where each device has some rows of the table."""
    hidden = model.hidden(_look_up(table, tokens.item, axis), tokens, drop)
    if objective.loss == "full":
        # By their rows in the whole table: 0 is no item, and beyond the last item there is nothing.
        row = parallel.index(axis) * len(table) + jnp.arange(len(table))
        total = sharded_entmax_sum(
            parallel.gather(rounded(hidden, objective.compute), axis),
            rounded(table, objective.compute),
            parallel.gather(jnp.where(tokens.target > 0, tokens.target, -1), axis),
            objective.alpha,
            axis=axis,
            where=(row > 0) & (row <= items),
            tau=objective.tau,
        )
    else:
        drawn = jax.random.randint(draw, (objective.negatives,), 0, items)
        wrong = parallel.gather_rows(table, parallel.local_index(drawn + 1, len(table), axis), axis)
        rows = (
            _look_up(table, jnp.maximum(tokens.target, 1), axis),
            parallel.gather(wrong, axis)[: objective.negatives],
        )
        total = _sampled(hidden, *rows, drawn, tokens.target - 1, items, objective)
    return total, (jnp.sum(tokens.target > 0, dtype=hidden.dtype), (), {})


def _drifts(model: SASRec, fixed: Fixed) -> bool:
    return model.items is not None and fixed.content is not None


def _sampled(
    hidden: Array,
    right_rows: Array,
    wrong_rows: Array,
    drawn: Array,
    target: Array,
    items: int,
    objective: Objective,
) -> Array:
    """Sum of a loss over the target and some items drawn uniformly, the same for all tokens.

    "sampled" is the Fenchel-Young loss of these classes alone; for softmax the drawn logits are
    raised by the logarithm of how many items each stands for. "gbce" is the binary cross-entropy
    of gSASRec (Petrov and Macdonald, RecSys 2023), its positive term weighted by beta.
    """
    loss, alpha, tau, negatives, calibration, compute = objective
    at = jnp.clip(target, 0, items - 1)
    right = jnp.sum(hidden * right_rows, axis=1)
    wrong = product(hidden, wrong_rows.T, compute)
    other = drawn[None, :] != at[:, None]
    if loss == "sampled":
        if alpha == 1:
            wrong = wrong + tau * math.log(items / negatives)
        z = jnp.concatenate([right[:, None], jnp.where(other, wrong, -jnp.inf)], axis=1)
        label = jnp.where(target >= 0, 0, -1)
        if alpha == 1:
            return tau * jnp.sum(fenchel_young_loss(z / tau, label, 1.0))
        return jnp.sum(fenchel_young_loss(z, label, alpha, tau=tau))
    share = min(negatives / max(items - 1, 1), 1.0)
    beta = share * (calibration * (1 - 1 / share) + 1 / share)
    terms = -beta * jax.nn.log_sigmoid(right)
    terms -= jnp.sum(jnp.where(other, jax.nn.log_sigmoid(-wrong), 0), axis=1)
    return jnp.sum(jnp.where(target >= 0, terms, 0))


def contents(
    dataset: SequenceDataset, dim: int, reduce: str
) -> tuple[np.ndarray, vectors.Reduction | None]:
    """f32[num_items, d] unit rows: the content in the size of an embedding; and what made them so.

    Args:
        dataset: its content; warm items decide the reduction.
        dim: d.
        reduce: "always", see `jaxcold.data.content.fit_reduction`; or "never": the features as
            they are, of which there have to be d.

    Raises:
        DataError: if there is no content, or not in this size.
    """
    if dataset.content is None:
        raise DataError(f"{dataset.name}: has no content; set model.item_table=random")
    if reduce == "always":
        fitted = vectors.fit_reduction(dataset.content[: dataset.num_warm], dim)
        return fitted(dataset.content), fitted
    if dataset.content.shape[1] != dim:
        raise DataError(
            f"{dataset.name}: content has {dataset.content.shape[1]} features and model.dim is "
            f"{dim}; set model.reduce=always, or model.dim to the number of features"
        )
    return vectors.unit_rows(dataset.content), None


def build(
    dataset: SequenceDataset,
    *,
    batch_size: int,
    item_table: ItemTable = "delta",
    max_delta_norm: float = 0.5,
    loss: Loss = "full",
    alpha: float = 1.0,
    tau: float = 1.0,
    negatives: int = 256,
    calibration: float = 0.75,
    dim: int = 64,
    max_length: int = 64,
    blocks: int = 2,
    heads: int = 1,
    dropout: float = 0.3,
    windows: str = "last",
    compute: Compute = "float32",
    reduce: str = "always",
    reference: bool = False,
    devices: parallel.Devices = parallel.ONE,
) -> Model:
    """SASRec on a data set; its parts to represent are "val" and "test" of `data.questions`.

    The optimizer has to keep the bound of the delta: `jaxcold.train.transforms.sasrec`.

    Args:
        dataset: the data.
        batch_size: sequences of a batch.
        item_table: "random", "content", "frozen" or "delta", see the module.
        max_delta_norm: bound of the delta's rows, at least 0 and below 1; a row of content has
            norm 1.
        loss: "full" over all items; "sampled" or "gbce" over `negatives` for large catalogues.
        alpha: of the entmax in the loss, in [1, 2]; 1 is softmax cross-entropy.
        tau: its temperature.
        negatives: items drawn per step for the sampled losses.
        calibration: t of gBCE, in [0, 1].
        dim: d, the size of an embedding.
        max_length: items that the model looks back.
        blocks: of the transformer.
        heads: of its attention.
        dropout: rate, of embeddings, attention weights and in both layers of the feed-forward.
        windows: of a user's items, "last" or "all", see `jaxcold.data.sequences.split.windows`.
        compute: of the matrix products in training, see `jaxcold.models.semco.build`.
        reduce: content to embeddings, see `contents`.
        reference: the defects of the published code, see the module.
        devices: that train. Of several, each takes its share of a batch's sequences, and with
            ``devices.shard_items`` holds its part of the item table.

    Raises:
        ValueError: for an argument out of range, naming it and what it may be.
        DataError: see `contents`.
    """
    _check(locals())
    rows = make_windows(dataset.train, max_length, windows)
    lengths = rows.counts - 1
    if not len(lengths):
        raise DataError(
            f"{dataset.name}: no training user has two items; there is nothing to learn"
        )
    steps = -(-rows.rows // batch_size)
    room = packing.capacity_for(lengths, -(-batch_size // devices.n))
    content = None if item_table == "random" else contents(dataset, dim, reduce)[0]
    warm = dataset.num_warm
    if reference and devices.shard_items:
        raise ValueError("model.reference=True has row 0 as a class; it needs shard_items=False")
    table_rows = devices.rows(warm + 1) if devices.shard_items else warm + 1
    divided = devices.shard_items and devices.mesh is not None
    fixed = Fixed(None)
    if content is not None:
        known = content

        def content_rows(first: int, last: int) -> np.ndarray:
            found = np.zeros((last - first, dim), np.float32)
            ids = np.arange(max(first, 1), min(last, warm + 1))
            found[ids - first] = known[ids - 1]
            return found

        if divided:
            size = table_rows // devices.n
            fixed = Fixed(devices.stack(lambda k: content_rows(k * size, (k + 1) * size)))
        else:
            fixed = Fixed(devices.put(content_rows(0, table_rows)))

    def make(key: Array, compute: Compute = "float32") -> SASRec:
        return SASRec(
            warm,
            dim,
            max_length,
            item_table=item_table,
            blocks=blocks,
            heads=heads,
            dropout=dropout,
            rngs=nnx.Rngs(params=key),
            rows=table_rows,
            compute=compute,
        )

    def graph(compute: Compute) -> nnx.GraphDef:
        return nnx.split(nnx.eval_shape(lambda: make(jax.random.key(0), compute)))[0]

    graphdef = graph("float32")  # of what is served

    def init(seed: int) -> tuple[nnx.State, tuple[()]]:
        def fresh(content: Array | None) -> nnx.State:
            model = make(jax.random.key(seed))
            if item_table == "content":
                model.items = nnx.Param(jnp.array(content))
            if model.delta is not None:
                norm = jnp.linalg.norm(model.delta[...], axis=1, keepdims=True)
                scale = jnp.minimum(1, max_delta_norm / jnp.maximum(norm, 1e-7))
                model.delta = nnx.Param(model.delta[...] * scale)
            return nnx.split(model)[1]

        if not divided:
            return fresh(fixed.content), ()
        # A table is made in its parts.
        places = devices.shardings(jax.eval_shape(fresh, fixed.content), TABLES)
        return jax.jit(fresh, out_shardings=places)(fixed.content), ()

    def batches(rng: np.random.Generator) -> Iterator[Tokens]:
        order = rng.permutation(rows.rows)

        def packed() -> Iterator[Tokens]:
            for start in range(0, len(order), batch_size):
                inputs, targets = packing.inputs_and_targets(
                    rows.take(order[start : start + batch_size])
                )
                if reference:
                    tokens = packing.pad_shards(inputs, targets, devices.n)
                else:
                    tokens = packing.pack_shards(inputs, targets, room, devices.n)
                yield tokens if devices.mesh is None else devices.put(tokens, split=True)

        return prefetch(packed())

    def examples(rng: np.random.Generator, at: int) -> dict[str, np.ndarray]:
        """Users of a batch's windows, and the last target of each."""
        taken = rng.permutation(rows.rows)[at * batch_size : (at + 1) * batch_size]
        user = window_rows(dataset.train, max_length, windows)[taken]
        last = rows.indices[rows.indptr[taken + 1] - 1]
        return {"user": dataset.user_ids[user], "item": dataset.item_ids[last]}

    def represent(params: nnx.State, extra: tuple[()], part: str) -> Representations:
        on_host, known = params, fixed.content
        if devices.mesh is not None:  # one device is enough, and need not hold the whole table
            on_host, known = parallel.fetch((params, fixed.content))
        table = nnx.merge(graphdef, on_host).table(known)[: warm + 1]
        if content is not None:
            join: Any = np.concatenate if divided else jnp.concatenate
            table = join([table, content[warm:]])
        history = questions.histories(dataset, part, cold_vectors=content is not None)
        history = packing.truncate(history, max_length)
        user = np.zeros((history.rows, dim), np.float32)
        done = [np.zeros(0, np.int64)]
        pieces = packing.encoding_blocks(history, batch=batch_size if reference else None)
        for number, (members, tokens, last) in enumerate(pieces):
            if devices.mesh is not None and not parallel.is_owner(number):
                continue
            if divided:
                found = _encode_rows(graphdef, on_host, table[tokens.item], tokens, last)
            else:
                found = encode(graphdef, on_host, table, tokens, last, reference)
            user[members] = np.asarray(found)[: len(members)]
            done.append(members)
        if devices.mesh is not None:
            own = np.concatenate(done)
            parts = parallel.all_gather_hosts(user[own])
            for at, found in zip(parallel.all_gather_hosts(own), parts, strict=True):
                user[at] = found
        item = np.zeros((dataset.num_items + reference, dim), np.float32)
        item[: len(table) - 1] = table[1:]
        if reference:
            item[-1] = table[0]
        return Representations(user, item)

    bound = functools.partial(
        _loss,
        graphdef=graph(compute),
        objective=Objective(loss, alpha, tau, negatives, calibration, compute),
        reference=reference,
        items=warm,
        shard_items=devices.shard_items,
    )
    split = ShardingSpec(batch=Tokens._fields)
    if divided:
        split = split._replace(state=TABLES, fixed=("content",))
    total = int(lengths.sum())
    return Model(fixed, init, bound, represent, batches, steps, total, examples, devices, split)


@functools.partial(jax.jit, static_argnums=(0, 5))
def encode(
    graphdef: nnx.GraphDef,
    params: nnx.State,
    table: Array,
    tokens: Tokens,
    last: Array,
    additive: bool = False,
) -> Array:
    """Hidden states [n, d] of the tokens at the places `last` [n]; see `SASRec.__call__`."""
    return nnx.merge(graphdef, params)(table, tokens, additive=additive)[last]


@functools.partial(jax.jit, static_argnums=0)
def _encode_rows(
    graphdef: nnx.GraphDef, params: nnx.State, rows: Array, tokens: Tokens, last: Array
) -> Array:
    """As `encode`, with the tokens' rows of a table that stays where it is."""
    return nnx.merge(graphdef, params).hidden(rows, tokens)[last]


def encoder_arrays(params: nnx.State) -> dict[str, np.ndarray]:
    """Parameters by path, such as "blocks/0/query/kernel", "items" and "delta"."""
    leaves = jax.tree_util.tree_flatten_with_path(params)[0]
    return {_path(keys): np.asarray(leaf) for keys, leaf in leaves}


def encoder_from_arrays(
    options: Mapping[str, Any], arrays: Mapping[str, np.ndarray]
) -> tuple[nnx.GraphDef, nnx.State]:
    """The module without an item table of its own, and its parameters.

    Args:
        options: of `build`.
        arrays: of `encoder_arrays`; those of the item table are not looked at.

    Raises:
        KeyError, TypeError, ValueError: for options or arrays of another model.
    """

    def make() -> SASRec:
        return SASRec(
            0,
            options["dim"],
            options["max_length"],
            item_table="frozen",
            blocks=options["blocks"],
            heads=options["heads"],
            dropout=0.0,
            rngs=nnx.Rngs(params=0),
        )

    def filled(keys: tuple[Any, ...], leaf: jax.ShapeDtypeStruct) -> Array:
        rows = arrays[_path(keys)]
        if rows.shape != leaf.shape:
            raise ValueError(f"{_path(keys)} is {list(rows.shape)}, not {list(leaf.shape)}")
        return jnp.asarray(rows)

    graphdef, params = nnx.split(nnx.eval_shape(make))
    return graphdef, jax.tree_util.tree_map_with_path(filled, params)


def _path(keys: tuple[Any, ...]) -> str:
    return "/".join(str(key.key) for key in keys if hasattr(key, "key"))


def _check(options: dict[str, Any]) -> None:
    def need(good: bool, name: str, what: str) -> None:
        if not good:
            raise ValueError(f"model.{name} is {what}, not {options[name]!r}")

    need(options["item_table"] in get_args(ItemTable), "item_table", _one_of(get_args(ItemTable)))
    need(options["loss"] in get_args(Loss), "loss", _one_of(get_args(Loss)))
    need(options["compute"] in get_args(Compute), "compute", _one_of(get_args(Compute)))
    need(options["reduce"] in ("always", "never"), "reduce", "'always' or 'never'")
    need(0 <= options["max_delta_norm"] < 1, "max_delta_norm", "at least 0 and below 1")
    need(0 <= options["dropout"] < 1, "dropout", "at least 0 and below 1")
    need(0 <= options["calibration"] <= 1, "calibration", "between 0 and 1")
    need(1 <= options["alpha"] <= 2, "alpha", "between 1 and 2")
    need(options["tau"] > 0, "tau", "above 0")
    for name in ("dim", "max_length", "blocks", "heads", "negatives"):
        need(options[name] >= 1, name, "at least 1")
    need(options["dim"] % options["heads"] == 0, "heads", f"a divisor of dim={options['dim']}")
    if options["loss"] == "gbce":
        need(options["alpha"] == 1, "alpha", "1 with loss='gbce'")


def _one_of(names: tuple[str, ...]) -> str:
    return " or ".join(repr(name) for name in names)
