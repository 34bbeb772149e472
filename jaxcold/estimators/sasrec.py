"""The estimator face of the sequential model: fit on a log with times, recommend what comes next.

As in `jaxcold.estimators.semco`, external ids stop here and everything is immutable.
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
from jaxcold.estimators import base as estimator
from jaxcold.estimators.base import distinct, listed, some
from jaxcold.eval.evaluation import evaluate_model
from jaxcold.eval.ranking import top_k
from jaxcold.models import sasrec
from jaxcold.models.sequence_encoder import (
    encode_histories,
    encoder_arrays,
    encoder_from_arrays,
)
from jaxcold.train.early_stopping import EarlyStopping
from jaxcold.train.step import TrainState
from jaxcold.types import Csr, DataError, EvalSlice, Representations

MODEL = "sasrec"  # what model.json calls it

_SCORES = 2**20  # of a block of users, as far as its number of users stays in _USERS
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

    @classmethod
    def fit(
        cls,
        interactions: pd.DataFrame,
        content: pd.DataFrame | None,
        *,
        item_table: sasrec.ItemTable = "delta",
        max_delta_norm: float = 0.5,
        dim: int = 64,
        max_length: int = 64,
        epochs: int = 100,
        patience: int = 5,
        batch_size: int = 128,
        learning_rate: float = 1e-3,
        seed: int = 0,
        val_fraction: float = 0.1,
        progress: bool = True,
        **options: Any,
    ) -> "SASRec":
        """Trains on most users; the last items of the others choose the epoch that is kept.

        Each user's rows are sorted by time, equal times in the order of the frame; an item that
        follows itself counts once. Users with one item are left out.

        Args:
            interactions: columns ``user`` and ``item`` with ids, whole numbers or strings, and
                ``time``, numbers or dates; other columns are ignored.
            content: a row of numbers per item, the index holds item ids. Items that no training
                user took are cold: they can be recommended at once. None trains on ids alone:
                ``item_table="random"``, which ignores content.
            item_table: "random", "content", "frozen" or "delta", see `jaxcold.models.sasrec`.
            max_delta_norm: how far "delta" may move an item from its content, whose norm is 1.
            dim: size of an embedding; content is reduced to it.
            max_length: items that the model looks back.
            epochs: passes over the training users, at most.
            patience: epochs without a better NDCG@10 after which training ends.
            batch_size: users of a step.
            learning_rate: of Adam.
            seed: equal seeds and data give equal models on one machine.
            val_fraction: share of the users that is held out, between 0 and 1.
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
            if value < 1:
                raise ValueError(f"{name} is at least 1, not {value}")
        if not 0 < val_fraction < 1:
            raise ValueError(f"val_fraction is between 0 and 1, not {val_fraction}")
        if content is None or item_table == "random":
            content, item_table = None, "random"
        options = {
            "item_table": item_table,
            "max_delta_norm": max_delta_norm,
            "dim": dim,
            "max_length": max_length,
            **options,
        }
        _refuse_reference(options)
        dataset = _dataset(interactions, content, val_fraction, seed)
        training: dict[str, Any] = {"batch_size": batch_size, "learning_rate": learning_rate}
        model = sasrec.build(dataset, epochs=epochs, **training, **options)
        validation = {"val": evaluation.slices(dataset)["val/total"]}
        kept: dict[str, Any] = {"stopping": EarlyStopping(patience)}

        def on_epoch(epoch: int, state: TrainState) -> bool:
            metrics = evaluate_model(model, state.params, state.model_state, validation, [10])
            kept["stopping"] = kept["stopping"].update(epoch, metrics["val"].mean()["ndcg@10"])
            if kept["stopping"].best_epoch == epoch:
                # A copy: the next step donates the state's buffers.
                kept["params"] = jax.tree.map(np.array, state.params)
            return kept["stopping"].should_stop

        estimator.train(
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
            "epoch": kept["stopping"].best_epoch,
            "val_ndcg@10": kept["stopping"].best_score,
        }
        return cls.from_training(dataset, kept["params"], options)

    @classmethod
    def from_training(
        cls, dataset: SequenceDataset, params: Any, options: Mapping[str, Any]
    ) -> "SASRec":
        """What training leaves, made servable.

        Args:
            dataset: that the model was built on. With ``item_table="random"`` its cold items have
                no vectors, and the recommender does not know them.
            params: trained.
            options: keyword arguments of `jaxcold.models.sasrec.build`, where those that are
                missing have its defaults; what else there is, is for the record. JSON can hold
                it.

        Raises:
            DataError: if the data set lacks the content that the model was trained on.
            ValueError: for ``reference=True``, where lists depend on who else is asked.
        """
        known = inspect.signature(sasrec.build).parameters.values()
        defaults = [p for p in known if p.default is not p.empty and p.name != "devices"]
        options = estimator.plain({p.name: p.default for p in defaults} | {**options})
        _refuse_reference(options)
        arrays = encoder_arrays(params["main"])
        rows, delta = arrays.pop("items", None), arrays.pop("delta", None)
        warm = np.arange(dataset.num_items) < dataset.num_warm
        own = slice(1, dataset.num_warm + 1)  # of a table's rows
        ids = distinct(dataset.item_ids, "item")
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
        return self._embed(_features(content))

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
        new = estimator.new_items(self.items, ids)
        if isinstance(content, pd.DataFrame):
            found = distinct(content.index, "content item")
            for left, what in (
                (new[~new.isin(found)], "in ids but not in content"),
                (found[~found.isin(new)], "in content but not in ids"),
            ):
                if len(left):
                    raise DataError(f"{some('item', left)} {what}; give each new item one row")
            content = content.iloc[found.get_indexer(new)]
        rows = _features(content)
        if len(rows) != len(new):
            raise DataError(f"content has {len(rows)} rows for {len(new)} ids; give one per item")
        return dataclasses.replace(
            self,
            items=distinct([*self.items, *new], "item"),
            item=np.concatenate([self.item, self._embed(rows)]),
            warm=np.concatenate([self.warm, np.zeros(len(new), bool)]),
        )

    def recommend(
        self,
        histories: Mapping[Any, Iterable[Hashable]],
        k: int = 10,
        *,
        candidates: str | Iterable[Hashable] = "all",
        exclude_seen: bool = True,
        unknown: str = "error",
    ) -> pd.DataFrame:
        """The best k items to come next for each user.

        A list depends on its user's history alone, not on who else is asked.

        Args:
            histories: item ids by user, the latest last. As in training, an item that follows
                itself counts once.
            k: items per user.
            candidates: what may be recommended: "all", "warm", "cold", or item ids.
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
        """
        if unknown not in ("error", "drop"):
            raise ValueError(f'unknown is "error" or "drop", not {unknown!r}')
        names, history = self._histories(histories, unknown)
        pool = self._pool(candidates)
        asked = np.flatnonzero(history.counts)
        names, history = names.take(asked), history.take(asked)
        # The shape of a product decides how it is rounded: the users asked for must not decide it.
        size = int(np.clip(_SCORES // max(len(pool), 1), *_USERS))
        spare = -len(asked) % size
        seen = history if exclude_seen else history.take(np.zeros(0, int))
        indptr = np.zeros(len(asked) + spare + 1, np.int64)
        indptr[1:] = len(seen.indices)
        indptr[: seen.rows + 1] = seen.indptr
        user = np.concatenate([self._users(history), np.zeros((spare, self.item.shape[1]))])
        piece = EvalSlice(
            users=np.arange(len(user), dtype=np.int32),
            histories=Csr(indptr, seen.indices),
            positives=Csr(np.zeros(len(user) + 1, np.int64), np.zeros(0, np.int32)),
            exclude=Csr(indptr, seen.indices),
            candidates=pool,
            items=pool,
        )
        found = top_k(Representations(user, self.item), piece, k, block_users=size)
        return estimator.as_frame(found, names, self.items)

    def save(self, folder: str | os.PathLike) -> None:
        """Writes the recommender into a folder of its own; no pickle.

        The folder appears whole or not at all, and one that holds an older recommender holds that
        or this one at any moment, whatever interrupts the writing.

        Raises:
            DataError: if the folder holds anything else.
        """
        arrays: dict[str, Any] = {f"encoder/{path}": rows for path, rows in self.encoder.items()}
        arrays |= {"items/embedding": self.item, "items/warm": self.warm}
        if self.reduction is not None:
            arrays |= {f"reduction/{name}": x for name, x in self.reduction._asdict().items()}
        meta = {"width": self.width, "options": dict(self.options)}
        estimator.save(folder, MODEL, meta, arrays, {"items": self.items})

    @classmethod
    def load(cls, folder: str | os.PathLike) -> "SASRec":
        """Reads what `save` wrote: the same bits for embeddings and recommendations.

        Raises:
            DataError: naming the file that is absent or damaged, and what to do.
        """
        with estimator.saved(folder, MODEL) as found:
            arrays = found.arrays
            fields = [f"reduction/{name}" for name in vectors.Reduction._fields]
            loaded = cls(
                items=distinct(found.ids["items"], "item"),
                item=arrays["items/embedding"],
                warm=arrays["items/warm"],
                width=found.meta["width"],
                reduction=vectors.Reduction(*(arrays[name] for name in fields))
                if fields[0] in arrays
                else None,
                options=found.meta["options"],
                encoder={
                    name.removeprefix("encoder/"): rows
                    for name, rows in arrays.items()
                    if name.startswith("encoder/")
                },
            )
            shapes = loaded.item.shape, loaded.warm.shape
            count = len(loaded.items)
            if shapes != ((count, loaded.options["dim"]), (count,)):
                raise ValueError(f"{count} items with arrays of shapes {shapes}")
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

    def _histories(
        self, histories: Mapping[Any, Iterable[Hashable]], unknown: str
    ) -> tuple[pd.Index, Csr]:
        """Who asks, and rows of item numbers in the order of time."""
        if not isinstance(histories, Mapping):
            raise DataError(
                "histories is a mapping of users to lists of item ids; make a dictionary of it, "
                "for example by to_dict()"
            )
        lists = [listed(taken, f"histories[{name!r}]") for name, taken in histories.items()]
        ids = [item for taken in lists for item in taken]
        item = self.items.get_indexer(listed(ids, "histories"))
        user = np.repeat(np.arange(len(lists)), [len(taken) for taken in lists])
        known = item >= 0
        if unknown == "error" and not known.all():
            strange = dict.fromkeys(name for name, good in zip(ids, known, strict=True) if not good)
            raise DataError(
                f"histories: {some('item', strange)} unknown; add them with add_items, or leave "
                'them out by unknown="drop"'
            )
        item, user = item[known], user[known]
        changes = np.ones(len(item), bool)
        changes[1:] = (item[1:] != item[:-1]) | (user[1:] != user[:-1])
        names = pd.Index(list(histories), tupleize_cols=False)
        return names, Csr.from_pairs(user[changes], item[changes], len(lists))

    def _pool(self, candidates: str | Iterable[Hashable]) -> np.ndarray:
        """i32[C]: the numbers of the items that may be recommended, ascending."""
        if isinstance(candidates, str):
            known = {"all": np.ones(len(self.items), bool), "warm": self.warm, "cold": ~self.warm}
            if candidates not in known:
                raise ValueError(
                    f'candidates is "all", "warm", "cold" or a list of item ids, not {candidates!r}'
                )
            if candidates == "cold" and self.width is None:
                raise ValueError(
                    'candidates="cold": a model of ids alone (item_table="random") has no vectors '
                    "for cold items; fit one with content"
                )
            return np.flatnonzero(known[candidates]).astype(np.int32)
        return np.unique(estimator.rows_of(self.items, candidates, "candidates"))

    def _users(self, history: Csr) -> np.ndarray:
        """f32[n, dim]: what each history, none of them empty, leads to."""
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


def _features(content: pd.DataFrame | np.ndarray) -> np.ndarray:
    """f[n, F]: content as numbers, all of them finite."""
    table = estimator.numbers("content", content)
    finite = np.isfinite(table)
    if not finite.all():
        row, column = np.argwhere(~finite)[0]
        which = (
            f"item {content.index[row]!r}" if isinstance(content, pd.DataFrame) else f"row {row}"
        )
        raise DataError(
            f"content: {which} is not finite ({table[row, column]} in column {column}, counted "
            "from 0); write numbers, or leave the item out"
        )
    return table


def _dataset(
    interactions: pd.DataFrame, content: pd.DataFrame | None, val_fraction: float, seed: int
) -> SequenceDataset:
    """The log as a data set whose test questions, which nobody asks, are those of validation."""
    rows, items = _log(interactions)
    features = None
    if content is not None:
        if not isinstance(content, pd.DataFrame):
            raise DataError("content is a data frame with a row per item, indexed by item id")
        known = distinct(content.index, "content item")
        features = _features(content)
        at = estimator.content_rows(known, items)
        rows, items = rows.assign(item=at[rows["item"]]), known
    rows = sequences.drop_consecutive_duplicates(rows)
    rows = rows[rows.groupby("user")["user"].transform("size") >= 2]
    users = rows["user"].unique()
    held = max(round(val_fraction * len(users)), 1)
    if held >= len(users):
        raise DataError(
            f"interactions: {len(users)} users took two items or more, and {held} of them are to "
            f"be held out; give more data, or lower val_fraction={val_fraction:g}"
        )
    held_out = np.random.default_rng([seed, 2]).permutation(users)[:held]
    validates = rows["user"].isin(held_out)
    train, val = rows[~validates], rows[validates]
    cold = np.setdiff1d(np.arange(len(items)), train["item"])
    dataset = sequences.assemble("interactions", train, val, val, cold=cold)
    numbers = dataset.item_ids
    return dataclasses.replace(
        dataset,
        item_ids=items.to_numpy()[numbers],
        content=None if features is None else features[numbers],
    )


def _log(interactions: pd.DataFrame) -> tuple[pd.DataFrame, pd.Index]:
    """The log with users, items and times counted from 0, and the ids of the items."""
    fields = ("user", "item", "time")
    estimator.check_log(interactions, fields)
    time = interactions["time"].dtype
    if not (pd.api.types.is_numeric_dtype(time) or pd.api.types.is_datetime64_any_dtype(time)):
        raise DataError(
            f'interactions: column "time" holds {time}, not numbers or dates; convert it, for '
            "example by pandas.to_datetime"
        )
    codes, found = {}, {}
    for field in fields:
        codes[field], found[field] = estimator.coded(interactions, field, ordered=field == "time")
    distinct(found["user"], "user")
    return pd.DataFrame(codes), distinct(found["item"], "item")
