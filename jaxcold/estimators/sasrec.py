"""SASRec on data frames: fit on a log with times, recommend the next items, save, load.

As in `jaxcold.estimators.semco`, everything is immutable.
"""

import dataclasses
import functools
import inspect
import os
from collections.abc import Hashable, Iterable, Mapping
from typing import Any

import jax
import numpy as np
import pandas as pd

from jaxcold.data import content as vectors
from jaxcold.data.sequences import batches as packing
from jaxcold.data.sequences import evaluation
from jaxcold.data.sequences import split as sequences
from jaxcold.data.sequences.dataset import SequenceDataset
from jaxcold.estimators import base, frames, schema
from jaxcold.estimators.frames import format_ids, to_distinct_index, to_index
from jaxcold.eval.evaluation import evaluate_model
from jaxcold.models import sasrec
from jaxcold.models.sequence_encoder import (
    encode_histories,
    encoder_arrays,
    encoder_from_arrays,
)
from jaxcold.train.early_stopping import EarlyStopping
from jaxcold.train.step import TrainState
from jaxcold.types import Csr, DataError

MODEL = "sasrec"  # in model.json

_SCORES = 2**20  # of a block of users, within the bounds of _USERS
_USERS = (32, 256)


@dataclasses.dataclass(frozen=True, eq=False)
class SASRec:
    """Recommends what a user takes next, by the order of what they took; new items included.

    Made by `SASRec.fit`, `SASRec.from_training` or `SASRec.load`. It knows items and no users: a
    user is a list of items, the latest last. An item is warm if training read it; a cold one is
    placed by its content.

    Example:
        >>> import numpy as np, pandas as pd
        >>> log = pd.DataFrame([(u, (u + t) % 6, t) for u in range(20) for t in range(4)])
        >>> log.columns = ["user", "item", "time"]
        >>> text = pd.DataFrame(np.random.default_rng(0).normal(size=(7, 3)))
        >>> small = {"dim": 2, "max_length": 4, "blocks": 1, "dropout": 0.0}
        >>> model = SASRec.fit(log, text, epochs=1, progress=False, **small)
        >>> model.cold_items.tolist()
        [6]
        >>> model.recommend({"ann": [3, 4]}, candidates="cold")[["user", "item", "rank"]]
          user  item  rank
        0  ann     6     1
        >>> model.add_items([7, 8], np.ones((2, 3))).cold_items.tolist()
        [6, 7, 8]
    """

    items: pd.Index  # [I] external ids
    item: np.ndarray  # f32[I, dim]: trained rows of warm items, reduced content of cold ones
    warm: np.ndarray  # bool[I]: training read the item
    width: int | None  # number of raw content features; None for a table without content
    reduction: vectors.Reduction | None  # raw content to `dim` numbers; None takes it as it is
    options: Mapping[str, Any]  # of `jaxcold.models.sasrec.build`, and how it was trained
    encoder: Mapping[str, np.ndarray]  # parameters by path, without the item table
    columns: list[str | int] | None = None  # names of the content's columns; None of an array

    @classmethod
    def fit(
        cls,
        interactions: pd.DataFrame,
        content: pd.DataFrame | None,
        *,
        item_table: sasrec.ItemTable = "delta",
        max_delta_norm: float = 0.5,
        dim: int | None = None,
        max_length: int = 64,
        epochs: int = 100,
        patience: int = 5,
        batch_size: int = 128,
        learning_rate: float = 1e-3,
        seed: int = 0,
        val_fraction: float = 0.1,
        min_rating: float | None = None,
        progress: bool = True,
        **options: Any,
    ) -> "SASRec":
        """Trains on most users; the last items of the others choose the epoch that is kept.

        Each user's rows are sorted by time, equal times in the order of the frame; an item that
        follows itself counts once, and so do equal rows. Users with one item are left out.

        Args:
            interactions: columns ``user`` and ``item`` with ids, whole numbers or strings, and
                ``time``, numbers or dates; other columns are ignored. Columns that look like
                ratings or weights are named in a warning.
            content: a row of numbers per item, the index holds item ids. Items that no training
                user took are cold: they can be recommended at once. None trains on ids alone:
                ``item_table="random"``, which ignores content.
            item_table: "random", "content", "frozen" or "delta", see `jaxcold.models.sasrec`.
            max_delta_norm: how far "delta" may move an item from its content, whose norm is 1.
            dim: size of an embedding, to which content is reduced; unset, 64 or the number of
                features or of warm items, if that is lower.
            max_length: items that the model looks back.
            epochs: passes over the training users, at most.
            patience: epochs without a better NDCG@10 after which training ends.
            batch_size: users of a step.
            learning_rate: of Adam.
            seed: equal seeds and data give equal models on one machine.
            val_fraction: fraction of the users that is held out, between 0 and 1.
            min_rating: keeps the rows whose column ``rating`` is at least this; unset, all rows.
            progress: show a bar.
            **options: of `jaxcold.models.sasrec.build`: loss, alpha, tau, negatives, calibration,
                blocks, heads, dropout, windows, compute, reduce.

        Raises:
            DataError: naming the column, row or id at fault.
            ValueError: for an argument out of range.
            DivergedError: if the loss is not finite.

        Source: "Let It Go? Not Quite", sections 3 and 4.1, and its code for the early stopping.
        """
        for name, value in (("epochs", epochs), ("patience", patience), ("batch_size", batch_size)):
            base.check_integer(name, value, 1)
        base.check_integer("max_length", max_length, 1)
        base.check_integer("seed", seed, 0)
        base.check_learning_rate(learning_rate)
        base.check_number("max_delta_norm", max_delta_norm)
        base.check_number("val_fraction", val_fraction)
        if dim is not None:
            base.check_integer("dim", dim, 1)
        if min_rating is not None:
            base.check_number("min_rating", min_rating)
        base.check_options("SASRec", cls.fit, sasrec.build, options)
        if not 0 < val_fraction < 1:
            raise ValueError(f"val_fraction is between 0 and 1, not {val_fraction}")
        if content is None or item_table == "random":
            content, item_table = None, "random"
        _refuse_reference(options)
        dataset = _to_dataset(interactions, content, val_fraction, seed, min_rating)
        if dim is None:
            dim = _default_dim(dataset, **options)
        options = {
            "item_table": item_table,
            "max_delta_norm": max_delta_norm,
            "dim": dim,
            "max_length": max_length,
            **options,
        }
        training: dict[str, Any] = {"batch_size": batch_size, "learning_rate": learning_rate}
        with base.translate_messages():
            model = sasrec.build(dataset, epochs=epochs, **training, **options)
        validation = {"val": evaluation.slices(dataset)["val/total"]}
        best: dict[str, Any] = {"stopping": EarlyStopping(patience)}

        def on_epoch(epoch: int, state: TrainState) -> bool:
            metrics = evaluate_model(model, state.params, state.model_state, validation, [10])
            best["stopping"] = best["stopping"].update(epoch, metrics["val"].mean()["ndcg@10"])
            if best["stopping"].best_epoch == epoch:
                # A copy: the next step donates the state's buffers.
                best["params"] = jax.tree.map(np.array, state.params)
            return best["stopping"].should_stop

        base.train(
            "SASRec",
            model,
            seed=seed,
            progress=progress,
            remedy="a lower learning_rate",
            on_epoch=on_epoch,
        )
        options |= {
            **training,
            "seed": seed,
            "epoch": best["stopping"].best_epoch,
            "val_ndcg@10": best["stopping"].best_score,
        }
        fitted = cls.from_training(dataset, best["params"], options)
        return dataclasses.replace(fitted, columns=frames.to_column_names("content", content))

    @classmethod
    def from_training(
        cls, dataset: SequenceDataset, params: Any, options: Mapping[str, Any]
    ) -> "SASRec":
        """A recommender from the result of a training.

        Args:
            dataset: that the model was built on. With ``item_table="random"`` its cold items have
                no vectors, and the recommender does not know them.
            params: trained.
            options: keyword arguments of `jaxcold.models.sasrec.build`, where those that are
                missing have its defaults; others are kept for the record. JSON can hold them.

        Raises:
            DataError: if the data set lacks the content that the model was trained on.
            ValueError: for ``reference=True``, where lists depend on who else is asked.
        """
        known = inspect.signature(sasrec.build).parameters.values()
        defaults = [p for p in known if p.default is not p.empty and p.name != "devices"]
        options = base.to_json_values({p.name: p.default for p in defaults} | {**options})
        _refuse_reference(options)
        arrays = encoder_arrays(params["main"])
        rows, delta = arrays.pop("items", None), arrays.pop("delta", None)
        warm = np.arange(dataset.num_items) < dataset.num_warm
        own = slice(1, dataset.num_warm + 1)  # of a table's rows
        ids = to_distinct_index(dataset.item_ids, "item")
        fitted, width = None, None
        if options["item_table"] == "random":
            assert rows is not None
            ids, warm, item = ids[warm], warm[warm], rows[own]
        else:
            item, fitted = sasrec.contents(dataset, options["dim"], options["reduce"])
            assert dataset.content is not None
            width = dataset.content.shape[1]
            if rows is not None:
                item[warm] = rows[own]
            elif delta is not None:
                item[warm] += delta[own]
        return cls(ids, item, warm, width, fitted, options, arrays)

    @property
    def cold_items(self) -> pd.Index:
        """Ids of the items that no training user took."""
        return self.items[~self.warm]

    def embed(self, content: pd.DataFrame | np.ndarray) -> np.ndarray:
        """Vectors of items that nobody took, from their content.

        Args:
            content: raw features as for `fit`, a row per item.

        Returns:
            f32[n, dim] unit rows, in the order of the rows.

        Raises:
            DataError: for rows of another width, or with values that are not finite.
            ValueError: if the model was trained without content.
        """
        content = frames.order_columns("content", content, self.columns)
        return self._embed(frames.to_finite_table(content))

    def add_items(self, ids: Iterable[Hashable], content: pd.DataFrame | np.ndarray) -> "SASRec":
        """A recommender that knows more items, cold ones; `self` stays as it is.

        Args:
            ids: of the new items.
            content: raw features as for `fit`: an array with a row per id, or a frame indexed by
                these ids, in any order.

        Raises:
            DataError: for an id that is known already or content that does not fit.
            ValueError: if the model was trained without content.
        """
        ids = to_index(ids, "ids")
        if not len(ids):
            return self
        new = frames.check_new_items(self.items, ids)
        if isinstance(content, pd.DataFrame):
            given = to_distinct_index(content.index, "content item")
            for unmatched, what in (
                (new[~new.isin(given)], "in ids but not in content"),
                (given[~given.isin(new)], "in content but not in ids"),
            ):
                if len(unmatched):
                    names = format_ids("item", unmatched)
                    raise DataError(f"{names} {what}; give each new item one row")
            content = content.iloc[given.get_indexer(new)]
        content = frames.order_columns("content", content, self.columns)
        rows = frames.to_finite_table(content)
        if len(rows) != len(new):
            raise DataError(f"content has {len(rows)} rows for {len(new)} ids; give one per item")
        return dataclasses.replace(
            self,
            items=to_distinct_index([*self.items, *new], "item"),
            item=np.concatenate([self.item, self._embed(rows)]),
            warm=np.concatenate([self.warm, np.zeros(len(new), bool)]),
        )

    def recommend(
        self,
        histories: frames.Histories,
        k: int = 10,
        *,
        candidates: frames.Candidates = None,
        exclude_seen: bool = True,
        unknown: str = "error",
    ) -> pd.DataFrame:
        """The best k items to come next for each user.

        A list depends on its user's history alone, not on who else is asked.

        Args:
            histories: item ids by user, the latest last: name to items, or a list of lists whose
                users are then 0, 1, ... As in training, an item that follows
                itself counts once.
            k: items per user.
            candidates: what may be recommended: unset or "all", every item; "warm" or "cold";
                item ids; or a dictionary of item ids by user.
            exclude_seen: leave out what the history holds.
            unknown: items of a history that the model does not know are an "error", or "drop"
                them.

        Returns:
            Columns user, item, rank (from 1) and score (the dot product), users in the order
            asked for, best items first, equal scores in the order of `items`. A user for whom
            fewer than k candidates remain has fewer rows; one without history has none.

        Raises:
            DataError: naming ids that are unknown.
            ValueError: for another argument out of range.
            TypeError: if k is not a whole number.
        """
        k = base.check_integer("k", k, 1)
        names, history = self._to_histories(histories, unknown)
        asked = np.flatnonzero(history.counts)
        names, history = names[asked], history.take(asked)
        if isinstance(candidates, str) and candidates == "cold" and self.width is None:
            raise ValueError(
                'candidates="cold": a model of ids alone (item_table="random") has no vectors '
                "for cold items; fit one with content"
            )
        pool = frames.to_candidates(candidates, names, self.items, self.warm)
        count = len(self.items) if isinstance(pool, Csr) else len(pool)
        nothing = Csr(np.zeros(len(names) + 1, np.int64), np.zeros(0, np.int32))
        return base.recommend(
            self._encode_users(history),
            self.item,
            history if exclude_seen else nothing,
            pool,
            k,
            users=names,
            items=self.items,
            block_users=int(np.clip(_SCORES // max(count, 1), *_USERS)),
        )

    def save(self, folder: str | os.PathLike) -> None:
        """Writes the recommender into a folder of its own, whole or not at all; no pickle.

        Raises:
            DataError: if the folder holds anything else.
        """
        arrays: dict[str, Any] = {f"encoder/{path}": rows for path, rows in self.encoder.items()}
        arrays |= {"items/embedding": self.item, "items/warm": self.warm}
        if self.reduction is not None:
            arrays |= {f"reduction/{name}": x for name, x in self.reduction._asdict().items()}
        meta = {"width": self.width, "columns": self.columns, "options": dict(self.options)}
        base.write_model(folder, MODEL, meta, arrays, {"items": self.items})

    @classmethod
    def load(cls, folder: str | os.PathLike) -> "SASRec":
        """Reads what `save` wrote: the same bits for embeddings and recommendations.

        Raises:
            DataError: naming the file that is absent or damaged, and what to do.
        """
        with base.read_model(folder, MODEL, ("items",)) as saved:
            arrays, options, width = saved.arrays, saved.meta["options"], saved.meta["width"]
            items = saved.ids["items"]
            if width is not None and (type(width) is not int or width < 1):
                raise ValueError(f"width is {width!r:.20}")
            columns = saved.meta["columns"]
            if columns is not None:
                columns = schema.check_columns(columns, width or 0)
            schema.check_arrays(arrays, schema.sasrec_arrays(arrays, options, width, len(items)))
            fields = [f"reduction/{name}" for name in vectors.Reduction._fields]
            if fields[0] in arrays and not (arrays["reduction/scale"] > 0).all():
                raise ValueError("reduction/scale is not positive")
            loaded = cls(
                items=items,
                item=arrays["items/embedding"],
                warm=arrays["items/warm"],
                width=width,
                reduction=vectors.Reduction(*(arrays[name] for name in fields))
                if fields[0] in arrays
                else None,
                options=options,
                encoder={
                    name.removeprefix("encoder/"): rows
                    for name, rows in arrays.items()
                    if name.startswith("encoder/")
                },
                columns=columns,
            )
            _ = loaded._served
            return loaded

    def _embed(self, rows: np.ndarray) -> np.ndarray:
        if self.width is None:
            raise ValueError(
                "the model knows ids alone (item_table='random'), and no content; fit one with "
                "content"
            )
        if rows.shape[1] != self.width:
            raise DataError(
                f"content has {rows.shape[1]} columns; the model was trained on {self.width}"
            )
        return vectors.unit_rows(rows) if self.reduction is None else self.reduction(rows)

    def _to_histories(self, histories: frames.Histories, unknown: str) -> tuple[pd.Index, Csr]:
        """Users, and rows of items in the order of time, consecutive duplicates once."""
        names, user, item = frames.to_histories(histories, self.items, unknown)
        changes = np.ones(len(item), bool)
        changes[1:] = (item[1:] != item[:-1]) | (user[1:] != user[:-1])
        return names, Csr.from_pairs(user[changes], item[changes], len(names))

    def _encode_users(self, history: Csr) -> np.ndarray:
        """f32[n, dim] user vectors of histories, none of them empty."""
        graphdef, params = self._served
        # With the lengths of buckets, the programs and their rounding are the same for everybody.
        length = self.options["max_length"]
        read = packing.truncate(history, length)
        return encode_histories(graphdef, params, self.item, read, longest=length)

    @functools.cached_property
    def _served(self) -> tuple[Any, Any]:
        """The encoder."""
        return encoder_from_arrays(self.options, self.encoder)


def _refuse_reference(options: Mapping[str, Any]) -> None:
    if options.get("reference"):
        raise ValueError(
            "reference=True repeats defects of published code, by which a list depends on who "
            "else is asked; train without it to serve"
        )


def _default_dim(
    dataset: SequenceDataset, *, reduce: str = "always", heads: int = 1, **_: Any
) -> int:
    """64, or what the content allows: its features and, where it is reduced, the warm items."""
    if dataset.content is None:
        return 64
    features = dataset.content.shape[1]
    if reduce != "always":
        return features
    size = min(64, features, dataset.num_warm)
    return max(size - size % max(heads, 1), 1)


def _to_dataset(
    interactions: pd.DataFrame,
    content: pd.DataFrame | None,
    val_fraction: float,
    seed: int,
    min_rating: float | None,
) -> SequenceDataset:
    """The log as a data set; its test sequences, which are not used, are those of validation."""
    rows, items = _encode_log(interactions, min_rating)
    features = None
    if content is not None:
        if not isinstance(content, pd.DataFrame):
            raise DataError("content is a data frame with a row per item, indexed by item id")
        known = to_distinct_index(content.index, "content item")
        features = frames.to_finite_table(content)
        at = frames.match_content(known, items)
        rows, items = rows.assign(item=at[rows["item"]]), known
    rows = sequences.drop_consecutive_duplicates(rows)
    rows = rows[rows.groupby("user")["user"].transform("size") >= 2]
    users = rows["user"].unique()
    num_val = max(round(val_fraction * len(users)), 1)
    if num_val >= len(users):
        raise DataError(
            f"interactions: {len(users)} users took two items or more, and {num_val} of them are "
            f"to be held out; give more data, or lower val_fraction={val_fraction:g}"
        )
    held_out = np.random.default_rng([seed, 2]).permutation(users)[:num_val]
    is_val = rows["user"].isin(held_out)
    train, val = rows[~is_val], rows[is_val]
    cold = np.setdiff1d(np.arange(len(items)), train["item"])
    dataset = sequences.assemble("interactions", train, val, val, cold=cold)
    kept_items = dataset.item_ids
    return dataclasses.replace(
        dataset,
        item_ids=items.to_numpy()[kept_items],
        content=None if features is None else features[kept_items],
    )


def _encode_log(
    interactions: pd.DataFrame, min_rating: float | None
) -> tuple[pd.DataFrame, pd.Index]:
    """The log with users, items and times as codes from 0, and the ids of the items."""
    fields = ["user", "item", "time"]
    interactions = frames.check_log(interactions, fields, min_rating)
    frames.check_times(interactions["time"])
    codes, values = {}, {}
    for field in fields:
        codes[field], values[field] = frames.encode_column(
            interactions, field, ordered=field == "time"
        )
    to_distinct_index(values["user"], "user")
    return pd.DataFrame(codes).drop_duplicates(), to_distinct_index(values["item"], "item")
