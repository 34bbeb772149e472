"""SASRec whose items are ids, content, or content plus a small bounded delta.

Token i of a history is ``sqrt(d) E[item_i] + P[i]``; two transformer blocks look back; the last
hidden state times the table E scores what comes next. E is trained freely ("random"; "content"
starts at the content), is the content ("frozen"), or is the content plus a trainable delta whose
rows stay within a ball ("delta"). An item that nobody has clicked has its content and no delta.

A batch is a list of tokens, those of all its sequences one after another, without padding.
Attention alone pads them, into buckets of like lengths.

Row 0 of E stands for no item. It is never recommended and is no class of the loss. With
``reference=True`` everything is as in the code published with the paper: batches padded on the
left, whose padding is seen with an attention logit lower by one, positions counted from the
longest sequence's start, and row 0 as a class and a candidate.

Source: "Let It Go? Not Quite: Addressing Item Cold Start in Sequential Recommendations with
Content-Based Initialization", RecSys 2025; Kang and McAuley, "Self-Attentive Sequential
Recommendation", ICDM 2018.
"""

import functools
from collections.abc import Callable
from typing import Any, NamedTuple, get_args

import jax
import jax.numpy as jnp
import numpy as np
import optax
from flax import nnx
from jax import Array

from jaxcold import parallel
from jaxcold.data import content as vectors
from jaxcold.data.sequences.batches import Tokens, truncate
from jaxcold.data.sequences.dataset import SequenceDataset
from jaxcold.models.layers import Compute, rounded
from jaxcold.models.negatives import Loss, Objective, sampled_loss
from jaxcold.models.sequence_batches import SequenceBatches
from jaxcold.models.sequence_encoder import ItemTable, Layers, SASRec, encode_histories
from jaxcold.models.transforms import clip_row_norm
from jaxcold.sparse import linear_entmax_sum, sharded_entmax_sum
from jaxcold.types import Csr, DataError, Model, ShardingSpec


class Constants(NamedTuple):
    """Arrays that no step changes."""

    content: Array | None  # f32[warm + 1, d] unit rows, row 0 zero


def _look_up(table: Array, ids: Array, axis: str) -> Array:
    """Rows of a table that is sharded over the devices, for this device's own ids."""
    at = parallel.local_index(parallel.gather(ids, axis), len(table), axis)
    return parallel.gather_rows(table, at, axis)


def _loss(
    params: dict[str, nnx.State],
    model_state: tuple[()],
    constants: Constants,
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
    model = nnx.merge(graphdef, params["main"])
    table = classes = model.table(constants.content)
    drop, draw = jax.random.split(key)
    if axis is not None:  # dropout differs from device to device, the drawn items do not
        drop = jax.random.fold_in(drop, parallel.index(axis))
    if shard_items and axis is not None:
        return _sharded_loss(model, table, tokens, drop, draw, objective, items, axis)
    if reference:
        # The published code keeps the gradient from row 0, except in the product with the hidden
        # states where the table is trained from content.
        frozen_row = jnp.concatenate([jax.lax.stop_gradient(table[:1]), table[1:]])
        table, classes = frozen_row, classes if _drifts(model, constants) else frozen_row
    hidden = model(table, tokens, drop, additive=reference)
    is_target = tokens.target > 0
    count = jnp.sum(is_target if tokens.weight is None else tokens.weight, dtype=hidden.dtype)
    if reference:
        target = jnp.where(tokens.target > 0, tokens.target, -1)
    else:
        classes = classes[1 : items + 1] if shard_items else classes[1:]
        target = tokens.target - 1
    if objective.loss == "full":
        hidden, classes = (rounded(x, objective.compute) for x in (hidden, classes))
        total = linear_entmax_sum(
            hidden,
            classes,
            target,
            objective.alpha,
            tau=objective.tau,
            weights=tokens.weight,
        )
    else:
        count_all = classes.shape[0]
        drawn = jax.random.randint(draw, (objective.negatives,), 0, count_all)
        rows = classes[jnp.clip(target, 0, count_all - 1)], classes[drawn]
        total = sampled_loss(hidden, *rows, drawn, target, count_all, objective, tokens.weight)
    return total, (count, model_state, {})


def _sharded_loss(
    model: SASRec,
    table: Array,
    tokens: Tokens,
    drop: Array,
    draw: Array,
    objective: Objective,
    items: int,
    axis: str,
) -> tuple[Array, tuple[Array, tuple[()], dict[str, Array]]]:
    """As `_loss`, of this device's tokens, with the table sharded over the devices."""
    hidden = model.hidden(_look_up(table, tokens.item, axis), tokens, drop)
    if objective.loss == "full":
        # Row numbers in the whole table: row 0 is no item, nor are rows beyond the last item.
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
        drawn_rows = parallel.gather_rows(
            table, parallel.local_index(drawn + 1, len(table), axis), axis
        )
        rows = (
            _look_up(table, jnp.maximum(tokens.target, 1), axis),
            parallel.gather(drawn_rows, axis)[: objective.negatives],
        )
        total = sampled_loss(hidden, *rows, drawn, tokens.target - 1, items, objective)
    return total, (jnp.sum(tokens.target > 0, dtype=hidden.dtype), (), {})


def _averaged(loss: Callable[..., Any], decay: float) -> Callable[..., Any]:
    """The loss, whose model state becomes the moving average of the parameters that it is given."""

    def averaged(params: dict[str, nnx.State], model_state: nnx.State, *given: Any, **axis: Any):  # type: ignore[no-untyped-def]
        total, (weight, _, metrics) = loss(params, (), *given, **axis)
        average = jax.tree.map(
            lambda old, new: decay * old + (1 - decay) * new, model_state, params["main"]
        )
        return total, (weight, average, metrics)

    return averaged


def served(params: dict[str, Any], model_state: Any) -> dict[str, Any]:
    """The parameters that score: the average where there is one, see `build`."""
    return {"main": model_state} if jax.tree.leaves(model_state) else params


def _drifts(model: SASRec, constants: Constants) -> bool:
    return model.items is not None and constants.content is not None


def embed_content(
    dataset: SequenceDataset, dim: int, reduce: str
) -> Callable[[np.ndarray], np.ndarray]:
    """Raw features [n, F] of new items to f32[n, d] unit rows, as `contents` makes those of all."""
    fitted = contents(dataset, dim, reduce)[1]
    return vectors.unit_rows if fitted is None else fitted.__call__


def contents(
    dataset: SequenceDataset, dim: int, reduce: str
) -> tuple[np.ndarray, vectors.Reduction | None]:
    """f32[num_items, d] unit rows: the content in the size of an embedding; and what made them so.

    Args:
        dataset: its content; warm items decide the reduction.
        dim: d.
        reduce: "always", see `jaxcold.data.content.fit_reduction`; or "never": the features as
            they are, which must then be d.

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
    epochs: int,
    learning_rate: float = 1e-3,
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
    layers: Layers = "sasrec",
    average: float = 0.0,
    devices: parallel.Devices = parallel.ONE,
) -> Model:
    """SASRec on a data set, trained by Adam at a constant rate.

    Args:
        dataset: the data.
        batch_size: sequences of a batch.
        epochs: passes over the training windows, at most.
        learning_rate: of Adam.
        item_table: "random", "content", "frozen" or "delta", see the module.
        max_delta_norm: bound of the delta's rows after every step, at least 0 and below 1; a row of
            content has norm 1.
        loss: "full" over all items; "sampled" or "gbce" over `negatives` for large catalogues.
        alpha: of the entmax in the loss, in [1, 2]; 1 is softmax cross-entropy.
        tau: its temperature.
        negatives: items drawn per step for the sampled losses.
        calibration: t of gBCE, in [0, 1].
        dim: d, the size of an embedding.
        max_length: items of a history that are read, the last ones.
        blocks: of the transformer.
        heads: of its attention.
        dropout: rate, of embeddings, attention weights and in both layers of the feed-forward.
        windows: of a user's items, "last" or "all", see `jaxcold.data.sequences.split.windows`.
        compute: of the matrix products in training, see `jaxcold.models.semco.build`.
        reduce: content to embeddings, see `contents`.
        reference: the defects of the published code, see the module.
        layers: "sasrec", or the gated ones of "ligr", see `jaxcold.models.attention`.
        average: of parameters that is evaluated and served: the decay per step of a moving average
            over training, 0 for the last parameters alone.
        devices: that train. Of several, each takes its shard of a batch's sequences, and with
            ``devices.shard_items`` holds its shard of the item table.

    Raises:
        ValueError: for an argument out of range, naming it and what it may be.
        DataError: see `contents`.
    """
    _check(locals())
    if reference and devices.shard_items:
        raise ValueError("model.reference=True has row 0 as a class; it needs shard_items=False")
    if dataset.weights is not None and devices.shard_items:
        raise ValueError("weights of clicks need shard_items=False")
    batches = SequenceBatches(dataset, max_length, windows, batch_size, reference, devices)
    content = None if item_table == "random" else contents(dataset, dim, reduce)[0]
    warm = dataset.num_warm
    table_rows = devices.rows(warm + 1) if devices.shard_items else warm + 1
    sharded = devices.shard_items and devices.mesh is not None
    constants = Constants(None)
    if content is not None:
        constants = Constants(_content_table(content, warm, table_rows, sharded, devices))

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
            layers=layers,
        )

    def graph(compute: Compute) -> nnx.GraphDef:
        return nnx.split(nnx.eval_shape(lambda: make(jax.random.key(0), compute)))[0]

    graphdef = graph("float32")  # of what is served

    def init(seed: int) -> tuple[dict[str, nnx.State], Any]:
        params = fresh_params(seed)
        # A copy: a step donates both.
        return params, jax.tree.map(jnp.array, params["main"]) if average else ()

    def fresh_params(seed: int) -> dict[str, nnx.State]:
        def fresh(content: Array | None) -> dict[str, nnx.State]:
            model = make(jax.random.key(seed))
            if item_table == "content":
                model.items = nnx.Param(jnp.array(content))
            if model.delta is not None:
                norm = jnp.linalg.norm(model.delta[...], axis=1, keepdims=True)
                scale = jnp.minimum(1, max_delta_norm / jnp.maximum(norm, 1e-7))
                model.delta = nnx.Param(model.delta[...] * scale)
            return {"main": nnx.split(model)[1]}

        if not sharded:
            return fresh(constants.content)
        # A sharded table is made in its shards.
        shapes = jax.eval_shape(fresh, constants.content)
        placed = devices.shardings(shapes, _tables(item_table))
        return jax.jit(fresh, out_shardings=placed)(constants.content)

    def encode_items(
        params: dict[str, nnx.State], model_state: Any, new: np.ndarray | None = None
    ) -> np.ndarray:
        if new is not None:
            if content is None:
                raise ValueError("item_table='random' has no vectors for new items")
            return embed_content(dataset, dim, reduce)(new)
        # One device is enough.
        params = served(params, model_state)
        main, known = parallel.fetch((params["main"], constants.content))
        table = np.asarray(nnx.merge(graphdef, main).table(known))[: warm + 1]
        item = np.zeros((dataset.num_items + reference, dim), np.float32)
        item[:warm] = table[1:]
        if content is not None:
            item[warm : dataset.num_items] = content[warm:]
        if reference:
            item[-1] = table[0]  # the padding item is a candidate there
        return item

    def encode_users(
        params: dict[str, nnx.State],
        model_state: Any,
        item_vectors: np.ndarray,
        histories: Csr,
    ) -> np.ndarray:
        params = served(params, model_state)
        main = parallel.fetch(params["main"]) if devices.mesh is not None else params["main"]
        return encode_histories(
            graphdef,
            main,
            item_vectors,
            truncate(histories, max_length),
            together=devices.mesh is not None,
            reference_batch=batch_size if reference else None,
        )

    objective = Objective(loss, alpha, tau, negatives, calibration, compute)
    sharding = ShardingSpec(batch=Tokens._fields)
    if sharded:
        constant = ("content",) if content is not None else ()
        sharding = sharding._replace(state=_tables(item_table), constants=constant)
    loss_of = functools.partial(
        _loss,
        graphdef=graph(compute),
        objective=objective,
        reference=reference,
        items=warm,
        shard_items=devices.shard_items,
    )
    bound = max_delta_norm if item_table == "delta" else None
    # Row 0 can be told from others only where a device has the whole table; it matters in the
    # published code alone, where it is not zero.
    return Model(
        constants=constants,
        init=init,
        losses={"main": _averaged(loss_of, average) if average else loss_of},
        optimizers={"main": optimizer(learning_rate, bound, keep_first=reference)},
        batches=batches.epoch,
        encode_items=encode_items,
        encode_users=encode_users,
        steps_per_epoch=batches.steps,
        examples_per_epoch=batches.targets,
        epochs=epochs,
        examples=batches.examples,
        devices=devices,
        sharding=sharding,
    )


def optimizer(
    learning_rate: float, max_delta_norm: float | None, *, keep_first: bool = True
) -> optax.GradientTransformation:
    """Adam at a constant rate; the rows of the parameter "delta", if there is one, are clipped.

    Args:
        learning_rate: constant.
        max_delta_norm: see `jaxcold.models.transforms.clip_row_norm`; None: there is no delta.
        keep_first: never clip row 0, that of padding.
    """
    adam = optax.adam(learning_rate, b1=0.9, b2=0.999, eps=1e-8)
    if max_delta_norm is None:
        return adam

    def is_delta(params: Any) -> Any:
        return jax.tree_util.tree_map_with_path(lambda path, _: path[0].key == "delta", params)

    clip = clip_row_norm(max_delta_norm, first=int(keep_first))
    return optax.chain(adam, optax.masked(clip, is_delta))


def _tables(item_table: ItemTable) -> tuple[str, ...]:
    """The parameters with a row per item."""
    return {"random": ("items",), "content": ("items",), "delta": ("delta",)}.get(item_table, ())


def _content_table(
    content: np.ndarray, warm: int, rows: int, sharded: bool, devices: parallel.Devices
) -> Array:
    """f32[rows, d] on the devices: row 0 zero, then the content of warm items, then zeros."""

    def block(first: int, last: int) -> np.ndarray:
        table = np.zeros((last - first, content.shape[1]), np.float32)
        ids = np.arange(max(first, 1), min(last, warm + 1))
        table[ids - first] = content[ids - 1]
        return table

    if not sharded:
        return devices.put(block(0, rows))
    size = rows // devices.n
    return devices.stack(lambda shard: block(shard * size, (shard + 1) * size))


def _check(options: dict[str, Any]) -> None:
    def need(good: bool, name: str, what: str) -> None:
        if not good:
            raise ValueError(f"model.{name} is {what}, not {options[name]!r}")

    need(options["item_table"] in get_args(ItemTable), "item_table", _one_of(get_args(ItemTable)))
    need(options["layers"] in get_args(Layers), "layers", _one_of(get_args(Layers)))
    need(options["loss"] in get_args(Loss), "loss", _one_of(get_args(Loss)))
    need(options["compute"] in get_args(Compute), "compute", _one_of(get_args(Compute)))
    need(options["reduce"] in ("always", "never"), "reduce", "'always' or 'never'")
    need(0 <= options["max_delta_norm"] < 1, "max_delta_norm", "at least 0 and below 1")
    need(0 <= options["dropout"] < 1, "dropout", "at least 0 and below 1")
    need(0 <= options["calibration"] <= 1, "calibration", "between 0 and 1")
    need(1 <= options["alpha"] <= 2, "alpha", "between 1 and 2")
    need(0 <= options["average"] < 1, "average", "at least 0 and below 1")
    need(options["tau"] > 0, "tau", "above 0")
    for name in ("dim", "max_length", "blocks", "heads", "negatives"):
        need(options[name] >= 1, name, "at least 1")
    need(options["dim"] % options["heads"] == 0, "heads", f"a divisor of dim={options['dim']}")
    if options["loss"] == "gbce":
        need(options["alpha"] == 1, "alpha", "1 with loss='gbce'")


def _one_of(names: tuple[str, ...]) -> str:
    return " or ".join(repr(name) for name in names)
