"""SEMCo on data frames: fit, embed new items, recommend, save, load.

Everything is immutable: adding items gives a new recommender.
"""

import dataclasses
import os
from collections.abc import Hashable, Iterable, Mapping, Sequence
from typing import Any

import numpy as np
import pandas as pd

from jaxcold import parallel
from jaxcold.data import content as vectors
from jaxcold.data.pairs.dataset import ColdSplit, ContentFeatures, Dataset, Interactions
from jaxcold.estimators import base, frames, schema
from jaxcold.estimators.frames import format_ids, to_distinct_index, to_index
from jaxcold.models import encoders, semco
from jaxcold.types import Csr, DataError, Model, Representations

MODEL = "semco"  # in model.json

# Temperatures by gradient and alpha, for users with tens of items. Measured on citeulike-a, where
# the exact gradient was ahead with its own (experiments/RESULTS.md). Softmax has one gradient.
TAU = {
    "fenchel_young": {1.0: 0.15, 1.5: 1.25, 2.0: 5.0},
    "autodiff": {1.0: 0.15, 1.5: 2.0, 2.0: 12.0},
}

Content = Mapping[str, pd.DataFrame | np.ndarray]


@dataclasses.dataclass(frozen=True, eq=False)
class SEMCo:
    """Recommends items by their content, those without a single interaction included.

    Made by `SEMCo.fit` or `SEMCo.load`. A user is the set of items that the user took: neither
    order nor repetition counts, and a user who was never seen in training is as good as another.

    Example:
        >>> import numpy as np, pandas as pd
        >>> log = pd.DataFrame({"user": ["ann", "ann", "bob"], "item": [10, 11, 12]})
        >>> text = pd.DataFrame(np.eye(4), index=[10, 11, 12, 13])
        >>> model = SEMCo.fit(log, {"text": text}, epochs=1, hidden=4, out=2, progress=False)
        >>> model.cold_items.tolist()
        [13]
        >>> model.recommend(["bob"], k=3, candidates="cold")[["user", "item", "rank"]]
          user  item  rank
        0  bob    13     1
        >>> model.embed({"text": np.eye(4)[:1]}).shape
        (1, 2)
    """

    users: pd.Index  # [U] external ids
    items: pd.Index  # [I] external ids
    item: np.ndarray  # f32[I, out] embeddings
    warm: np.ndarray  # bool[I]: the item has interactions
    histories: Csr  # U rows of items, ascending
    widths: Mapping[str, int]  # content mode -> number of its features, in the model's order
    options: Mapping[str, Any]  # how it was trained; for the record
    encoder: encoders.Encoder
    # mode -> names of its columns, in the model's order; None of a mode that was an array
    columns: Mapping[str, list[str | int] | None] = dataclasses.field(default_factory=dict)

    @classmethod
    def fit(
        cls,
        interactions: pd.DataFrame,
        content: Content,
        *,
        items: Iterable[Hashable] | None = None,
        alpha: float = 2.0,
        tau: float | None = None,
        epochs: int = 15,
        batch_size: int = 2048,
        learning_rate: float = 1e-3,
        l2: float = 1e-4,
        seed: int = 0,
        min_rating: float | None = None,
        progress: bool = True,
        **options: Any,
    ) -> "SEMCo":
        """Trains on every interaction; nothing is held out.

        Args:
            interactions: columns ``user`` and ``item`` with ids, whole numbers or strings; other
                columns are ignored and a repeated pair counts once. Columns that look like
                ratings or weights are named in a warning.
            content: mode name to features: a frame whose index holds item ids, or an array whose
                row i belongs to ``items[i]``. Later frames may have the columns of a frame in
                another order; those of arrays go by position. An item that a frame lacks, or
                whose row is all NaN, lacks that mode. Items without interactions are cold: they
                can be recommended at once.
            items: ids of the rows of arrays.
            alpha: 1 softmax, 1.5 entmax15, 2 sparsemax, or anything between.
            tau: temperature; unset, a value that suits alpha and gradient.
            epochs: passes over the interactions.
            batch_size: interactions of a step; their items are each other's negatives.
            learning_rate: of Adam; it decays to 0 by a cosine over all steps.
            l2: coupled weight decay.
            seed: equal seeds and data give equal models on one machine.
            min_rating: keeps the rows whose column ``rating`` is at least this; unset, all rows.
            progress: show a bar.
            **options: of `jaxcold.models.semco.build`: gradient, hidden, out, attention_layers,
                encode, batch_norm, user_vector, stream, compute.

        Raises:
            DataError: naming the column, mode or id at fault.
            ValueError: for an argument out of range.
            DivergedError: if the loss is not finite.
        """
        base.check_options("SEMCo", cls.fit, semco.build, options)
        base.check_integer("epochs", epochs, 1)
        base.check_integer("batch_size", batch_size, 1)
        base.check_integer("seed", seed, 0)
        base.check_learning_rate(learning_rate)
        base.check_number("alpha", alpha)
        base.check_number("l2", l2)
        if l2 < 0:
            raise ValueError(f"l2 is a number from 0, not {l2}")
        for name, value in (("tau", tau), ("min_rating", min_rating)):
            if value is not None:
                base.check_number(name, value)
        options = {"gradient": "fenchel_young", **options}
        ids, features = _to_features(content, items)
        dataset = _to_dataset(interactions, ids, features, min_rating)
        tau = _default_tau(alpha, options["gradient"]) if tau is None else tau
        options = {
            "alpha": alpha,
            "tau": tau,
            "batch_size": batch_size,
            "epochs": epochs,
            "learning_rate": learning_rate,
            "l2": l2,
            **options,
        }
        with base.translate_messages():
            model = semco.build(dataset, **options)
        state = base.train(
            "SEMCo",
            model,
            seed=seed,
            progress=progress,
            remedy="a lower learning_rate or another tau",
        )
        options |= {"seed": seed}
        fitted = cls.from_training(dataset, model, state.params, state.model_state, options)
        columns = {
            mode: frames.to_column_names(f"content[{mode!r}]", table)
            for mode, table in content.items()
        }
        return dataclasses.replace(fitted, columns=columns)

    @classmethod
    def from_training(
        cls,
        dataset: Dataset,
        model: Model,
        params: Any,
        model_state: Any,
        options: Mapping[str, Any],
    ) -> "SEMCo":
        """A recommender from the result of a training.

        Args:
            dataset: that the model was built on; its training pairs become the users' histories.
            model: from `jaxcold.models.semco.build` or `jaxcold.models.distillation.build`.
            params: trained.
            model_state: of the training.
            options: how it was trained, for the record; JSON can hold it.
        """
        train, tables = dataset.split.train, dataset.content.tables
        served = parallel.fetch(model.constants.served)
        warm = np.zeros(len(dataset.item_ids), bool)
        warm[dataset.split.warm_items] = True
        order = np.lexsort((train.item, train.user))
        return cls(
            users=to_distinct_index(dataset.user_ids, "user"),
            items=to_distinct_index(dataset.item_ids, "item"),
            item=model.encode_items(params, model_state),
            warm=warm,
            histories=Csr.from_pairs(train.user[order], train.item[order], train.num_users),
            widths={mode: table.shape[1] for mode, table in tables.items()},
            options=base.to_json_values(options),
            encoder=encoders.trained(encoders.joined(params), served),
        )

    @property
    def cold_items(self) -> pd.Index:
        """Ids of the items without interactions."""
        return self.items[~self.warm]

    def representations(self) -> Representations:
        """Vectors of all users f32[U, out] and items f32[I, out], in the order of their ids."""
        return Representations(vectors.history_means(self.histories, self.item), self.item)

    def embed(self, content: Content) -> np.ndarray:
        """Embeds items from their content: the same bits alone as in any company.

        Args:
            content: every mode of the model, as for `fit`; row i of each array is one item.

        Returns:
            f32[n, out] unit rows, in the order of the rows; of frames, in that of the ids as they
            first appear.

        Raises:
            DataError: naming the mode that is absent, unknown or of the wrong width, or a column
                that is absent or unknown.
        """
        return self._embed(_to_features(content, None, self.widths, self.columns)[1])

    def add_items(self, ids: Iterable[Hashable], content: Content) -> "SEMCo":
        """A recommender that knows more items, cold ones; `self` stays as it is.

        Args:
            ids: of the new items.
            content: every mode of the model: an array with a row per id, or a frame indexed by
                these ids, in any order.

        Raises:
            DataError: for an id that is known already or content that does not fit.
        """
        ids = to_index(ids, "ids")
        if not len(ids):
            return self
        new = frames.check_new_items(self.items, ids)
        rows, features = _to_features(content, new, self.widths, self.columns)
        if len(rows) != len(new):
            others = rows[~rows.isin(new)]
            raise DataError(f"{format_ids('item', others)} in content but not in ids")
        return dataclasses.replace(
            self,
            items=to_distinct_index([*self.items, *new], "item"),
            item=np.concatenate([self.item, self._embed(features)]),
            warm=np.concatenate([self.warm, np.zeros(len(new), bool)]),
        )

    def recommend(
        self,
        users: Iterable[Hashable] | None = None,
        k: int = 10,
        *,
        histories: frames.Histories | None = None,
        candidates: frames.Candidates = None,
        exclude_seen: bool = True,
        unknown: str = "error",
    ) -> pd.DataFrame:
        """The best k items of each user.

        ``recommend(histories={item: [item]})`` gives the items most similar to one.

        Args:
            users: ids of users of the training log; unset, all of them, unless `histories` is
                given.
            k: items per user.
            histories: item ids by user, for anybody: name to items, or a list of lists whose
                users are then 0, 1, ...
            candidates: what may be recommended: unset or "all", every item; "warm" or "cold",
                those with or without interactions; item ids; or a dictionary of item ids by
                user.
            exclude_seen: leave out what the user took.
            unknown: items of a history that the model does not know are an "error", or "drop"
                them; a user of whom nothing is left then has no rows.

        Returns:
            Columns user, item, rank (from 1) and score (the cosine), users in the order asked for,
            best items first, equal scores in the order of `items`. A user for whom fewer than k
            candidates remain has fewer rows.

        Raises:
            DataError: naming ids that are unknown, or a user without history.
            ValueError: if k < 1, or if both users and histories are given.
            TypeError: if k is not a whole number.
        """
        k = base.check_integer("k", k, 1)
        if unknown not in ("error", "drop"):
            raise ValueError(f'unknown is "error" or "drop", not {unknown!r}')
        if users is not None and histories is not None:
            raise ValueError("give users or histories, not both")
        if histories is None:
            names, taken = self._logged_histories(users)
        else:
            names, row, item = frames.to_histories(histories, self.items, unknown)
            pairs = np.unique(np.stack([row, item], axis=1), axis=0)
            taken = Csr.from_pairs(pairs[:, 0], pairs[:, 1], len(names))
        if unknown == "drop":
            kept = np.flatnonzero(taken.counts)
            names, taken = names[kept], taken.take(kept)
        empty = names[taken.counts == 0]
        if len(empty):
            raise DataError(
                f"{format_ids('user', empty)} without history: nothing says what to recommend; "
                "leave such users out, or give them items"
            )
        pool = frames.to_candidates(candidates, names, self.items, self.warm)
        user = vectors.history_means(taken, self.item)
        hidden = taken if exclude_seen else taken.take(np.zeros(0, int))
        if not exclude_seen:
            hidden = Csr(np.zeros(len(names) + 1, np.int64), hidden.indices)
        return base.recommend(user, self.item, hidden, pool, k, users=names, items=self.items)

    def save(self, folder: str | os.PathLike) -> None:
        """Writes the recommender into a folder of its own; no pickle.

        The folder appears whole or not at all, and one that holds an older recommender holds that
        or this one at any moment, whatever interrupts the writing.

        Raises:
            DataError: if the folder holds anything else.
        """
        arrays: dict[str, Any] = {
            **encoders.encoder_arrays(self.encoder),
            "items/embedding": self.item,
            "items/warm": self.warm,
            "histories/indptr": self.histories.indptr,
            "histories/indices": self.histories.indices,
        }
        meta = {
            "modes": [
                {"name": mode, "width": width, "columns": self.columns.get(mode)}
                for mode, width in self.widths.items()
            ],
            "options": dict(self.options),
        }
        ids = {"users": self.users, "items": self.items}
        base.write_model(folder, MODEL, meta, arrays, ids)

    @classmethod
    def load(cls, folder: str | os.PathLike) -> "SEMCo":
        """Reads what `save` wrote: the same bits for embeddings and recommendations.

        Raises:
            DataError: naming the file that is absent or damaged, and what to do.
        """
        with base.read_model(folder, MODEL, ("users", "items")) as saved:
            arrays, users, items = saved.arrays, saved.ids["users"], saved.ids["items"]
            widths, columns = schema.check_modes(saved.meta["modes"])
            schema.check_arrays(arrays, schema.semco_arrays(arrays, widths, len(users), len(items)))
            histories = Csr(arrays["histories/indptr"], arrays["histories/indices"])
            schema.check_rows("histories", histories, len(items))
            return cls(
                users=users,
                items=items,
                item=arrays["items/embedding"],
                warm=arrays["items/warm"],
                histories=histories,
                widths=widths,
                options=saved.meta["options"],
                encoder=encoders.encoder_from_arrays(arrays),
                columns=columns,
            )

    def _embed(self, features: ContentFeatures) -> np.ndarray:
        return encoders.encode(self.encoder, list(features.tables.values()), _presence(features))

    def _logged_histories(self, users: Iterable[Hashable] | None) -> tuple[pd.Index, Csr]:
        """Users of the training log and their histories."""
        if users is None:
            return self.users, self.histories
        names = to_index(users, "users")
        rows = self.users.get_indexer(names)
        if (rows < 0).any():
            raise DataError(
                f"{format_ids('user', names[rows < 0])} not in the training log; give the items "
                "they took as histories={user: [items]}"
            )
        return names, self.histories.take(rows)


def _presence(features: ContentFeatures) -> list[np.ndarray]:
    return [features.present[mode] for mode in features.tables]


def _default_tau(alpha: float, gradient: str) -> float:
    values = TAU.get(gradient, {})
    if values and alpha not in values:
        known = ", ".join(f"{a:g}" for a in values)
        raise ValueError(f"tau has defaults for alpha {known}; pass tau for alpha={alpha:g}")
    return values.get(alpha, 1.0)  # of an unknown gradient: the model names the known ones


def _to_features(
    content: Content,
    items: Iterable[Hashable] | None,
    widths: Mapping[str, int] | None = None,
    columns: Mapping[str, Sequence[str | int] | None] | None = None,
) -> tuple[pd.Index, ContentFeatures]:
    """Frames and arrays to tables with a row per item.

    Args:
        content: as for `SEMCo.fit`.
        items: ids of the rows of arrays; unset, where the model is known, they are numbered.
        widths: of the modes that a trained model takes.
        columns: names of their columns, where known.

    Returns:
        The ids, in the order of `items`, then as they first appear, and their features.
    """
    if not isinstance(content, Mapping) or not content:
        raise DataError('content is a dictionary of modes, such as {"text": frame}')
    if widths is not None:
        for mode in content:
            if mode not in widths:
                raise DataError(f"content mode {mode!r} is unknown; known: {', '.join(widths)}")
        for mode in widths:
            if mode not in content:
                raise DataError(
                    f"content mode {mode!r} is absent; give it rows of NaN for items without it"
                )
        content = {mode: content[mode] for mode in widths}
    named = None if items is None else to_distinct_index(items, "item")
    parts: dict[str, tuple[pd.Index, np.ndarray]] = {}
    for mode, given in content.items():
        index = named
        if isinstance(given, pd.DataFrame):
            index = to_distinct_index(given.index, f"content[{mode!r}] item")
        given = frames.order_columns(f"content[{mode!r}]", given, (columns or {}).get(mode))
        table = frames.to_table(f"content[{mode!r}]", given)
        if index is None:
            if widths is None:
                raise DataError(f"content[{mode!r}] is an array; say whose rows it holds by items=")
            index = named = pd.RangeIndex(len(table))
        if len(index) != len(table):
            raise DataError(
                f"content[{mode!r}] has {len(table)} rows for {len(index)} items; give one per item"
            )
        if widths is not None and table.shape[1] != widths[mode]:
            raise DataError(
                f"content[{mode!r}] has {table.shape[1]} columns; the model was trained on "
                f"{widths[mode]}"
            )
        parts[mode] = index, table
    ids = pd.Index([]) if named is None else named
    for index, _ in parts.values():
        ids = index if not len(ids) else ids.append(index[~index.isin(ids)])
    ids = to_distinct_index(ids, "item")
    tables, present = {}, {}
    for mode, (index, table) in parts.items():
        finite = frames.is_finite(table)
        there = ~np.isnan(table).all(axis=1)
        broken = there & ~finite.all(axis=1)
        if broken.any():
            row = int(np.argmax(broken))
            value = frames.describe_value(content[mode], row, int(np.argmin(finite[row])))
            raise DataError(
                f"content[{mode!r}]: {format_ids('item', index[broken])} not finite ({value}); "
                "write numbers, or NaN in the whole row of an item that lacks the mode"
            )
        if not index.equals(ids):
            rows = index.get_indexer(ids)
            table, there = table[rows], there[rows] & (rows >= 0)
        tables[mode], present[mode] = table, there
    nothing = ~np.any(list(present.values()), axis=0)
    if nothing.any():
        raise DataError(
            f"{format_ids('item', ids[nothing])} without content in any mode; give content "
            "or remove"
        )
    return ids, ContentFeatures(tables, present)


def _to_dataset(
    interactions: pd.DataFrame,
    items: pd.Index,
    content: ContentFeatures,
    min_rating: float | None,
) -> Dataset:
    """The log as a data set whose pairs are all for training; its ids count from 0."""
    interactions = frames.check_log(interactions, ("user", "item"), min_rating)
    codes, ids = {}, {}
    for field in ("user", "item"):
        codes[field], values = frames.encode_column(interactions, field)
        ids[field] = to_distinct_index(values, field)
    rows = frames.match_content(items, ids["item"])
    pairs = np.unique(np.stack([codes["user"], rows[codes["item"]]], axis=1), axis=0)
    pairs = pairs.astype(np.int32)
    users, count = ids["user"], len(items)
    train = Interactions(
        np.ascontiguousarray(pairs[:, 0]), np.ascontiguousarray(pairs[:, 1]), len(users), count
    )
    warm = np.unique(train.item)
    none = np.zeros((0, 2), np.int32)
    split = ColdSplit(
        train=train,
        warm_items=warm,
        cold_val_items=np.zeros(0, np.int32),
        cold_test_items=np.setdiff1d(np.arange(count, dtype=np.int32), warm),
        pairs={
            "warm_train": pairs,
            **dict.fromkeys(("warm_val", "warm_test", "cold_val", "cold_test"), none),
        },
    )
    return Dataset("log", train, split, content, users.to_numpy(), items.to_numpy())
