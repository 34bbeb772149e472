"""Recommenders as vectors of users and items: who gets what, and how right that is."""

import dataclasses
from collections.abc import Hashable, Iterable, Mapping, Sequence
from typing import Any, ClassVar, Self

import numpy as np
import pandas as pd

from jaxcold.data import content as vectors
from jaxcold.data.pairs.dataset import ContentFeatures
from jaxcold.estimators import arguments, features, frames, ranking
from jaxcold.estimators.columns import describe
from jaxcold.estimators.features import Content, Modes
from jaxcold.estimators.frames import format_ids, to_index
from jaxcold.estimators.logs import group
from jaxcold.eval.evaluation import evaluate_model
from jaxcold.models.content_knn import concatenated_unit_rows
from jaxcold.types import Csr, DataError, EvalSlice, Representations, untrained

CONTENT_KNN = "content_knn"  # what `served` says of the vectors of content-KNN
FALLBACKS = ("popular", "central")


@dataclasses.dataclass(frozen=True, eq=False, kw_only=True)
class Lists:
    """Items and users as vectors; a user's score for an item is the dot product.

    Everything is immutable: adding or removing anything gives a new recommender.
    """

    KIND: ClassVar[str]  # in model.json
    ORDERED: ClassVar[bool] = False  # a history is a sequence, not a set

    users: pd.Index  # [U] external ids
    items: pd.Index  # [I] external ids
    item: np.ndarray  # f32[I, D] vectors
    warm: np.ndarray  # bool[I]: the item has clicks
    histories: Csr  # U rows of items: ascending, or in the order of time
    weights: np.ndarray | None = None  # f32[n], of the entries of `histories`; None: 1
    modes: Modes  # the content that it takes
    options: Mapping[str, Any]  # how it was trained
    history: pd.DataFrame = dataclasses.field(default_factory=pd.DataFrame)  # the training's curve
    encoder: Any = None  # of the method; None where `served` is a baseline

    @property
    def served(self) -> str:
        """Whose vectors these are: the kind of this model, or "content_knn".

        A fit that holds items or users out serves content-KNN where it is the better one on them.
        """
        return self.options.get("served", self.KIND)

    @property
    def widths(self) -> Mapping[str, int]:
        """Content mode -> number of its features, in the model's order."""
        return self.modes.widths

    @property
    def columns(self) -> Mapping[str, list[str | int] | None]:
        """Content mode -> names of its columns; None of a mode that was an array."""
        return self.modes.columns

    @property
    def described_columns(self) -> list[str]:
        """A line for each raw column that the model was fitted on: what it became."""
        return describe(self.modes.raw)

    @property
    def cold_items(self) -> pd.Index:
        """Ids of the items without clicks."""
        return self.items[~self.warm]

    def representations(self) -> Representations:
        """Vectors of all users f32[U, D] and items f32[I, D], in the order of their ids."""
        return Representations(self._user_rows(self.histories, self.weights), self.item)

    def user_vectors(
        self,
        users: Iterable[Hashable] | None = None,
        *,
        histories: frames.Histories | None = None,
        unknown: str = "error",
    ) -> np.ndarray:
        """f32[n, D]: vectors of users, in the order asked for; zero for an empty history.

        Args:
            users: see `recommend`.
            histories: see `recommend`.
            unknown: see `recommend`.
        """
        return self._user_rows(*self._asked(users, histories, unknown)[1:])

    def embed(self, content: Content) -> np.ndarray:
        """Vectors of items from their content: the same bits alone as in any company.

        Args:
            content: as for `fit`, every mode of the model; row i of an array is one item.

        Returns:
            f32[n, D] unit rows, in the order of the rows; of several frames, in that of the ids as
            they first appear.

        Raises:
            DataError: naming the mode that is absent, unknown or of the wrong width, or a column
                that is absent or unknown.
            ValueError: if the model was trained without content.
        """
        return self._embed_content(content, None)[1]

    def serve(self, name: str, content: ContentFeatures) -> Self:
        """The same recommender with the vectors of a baseline in place of its own.

        Args:
            name: "content_knn".
            content: of all items, as the model takes it.
        """
        return dataclasses.replace(
            self,
            item=concatenated_unit_rows(content),
            encoder=None,
            options={**self.options, "served": name},
        )

    def recommend(
        self,
        users: Iterable[Hashable] | Mapping[Any, Iterable[Hashable]] | None = None,
        k: int = 10,
        *,
        histories: frames.Histories | None = None,
        candidates: frames.Candidates = None,
        exclude_seen: bool = True,
        unknown: str = "error",
        fallback: str | None = None,
    ) -> pd.DataFrame:
        """The best k items of each user.

        Args:
            users: ids of users of the log; unset, all of them, unless `histories` is given. A
                dictionary is read as `histories`.
            k: items per user.
            histories: item ids by user, for anybody: name to items, the latest last, or a list of
                lists whose users are then 0, 1, ...
            candidates: what may be recommended: unset or "all", every item; "warm" or "cold",
                those with or without clicks; item ids; or a dictionary of item ids by user.
            exclude_seen: leave out what the user took.
            unknown: users and items of a history that the model does not know are an "error", or
                "drop" them; a user of whom nothing is left then has no rows, unless there is a
                fallback.
            fallback: what users without history get: "popular", the candidates with the most
                clicks; "central", those closest to the mean of the warm items; unset, such users
                are an error.

        Returns:
            Columns user, item, rank (from 1) and score (the dot product; of "popular" the number
            of users), users in the order asked for, best items first, equal scores in the order of
            `items`. With a fallback also the column fallback: whether the row is one. A user for
            whom fewer than k candidates remain has fewer rows.

        Raises:
            DataError: naming ids that are unknown, or a user without history.
            ValueError: if k < 1, or if both users and histories are given.
            TypeError: if k is not a whole number.
        """
        k = arguments.check_integer("k", k, 1)
        if fallback is not None and fallback not in FALLBACKS:
            raise ValueError(f'fallback is "popular", "central" or None, not {fallback!r}')
        names, taken, weights = self._asked(users, histories, unknown)
        empty = taken.counts == 0
        if fallback is None and empty.any() and unknown == "error":
            raise DataError(
                f"{format_ids('user', names[empty])} without history: nothing says what to "
                'recommend; leave such users out, give them items, or pass fallback="popular"'
            )
        pool = self._candidates(candidates, names if fallback else names[~empty])
        known = np.flatnonzero(~empty)
        own = taken.take(known)
        own_pool = pool.take(known) if isinstance(pool, Csr) and fallback else pool
        lists = ranking.rank(
            self._user_rows(own, weights),
            self.item,
            own if exclude_seen else Csr.empty(len(known)),
            own_pool,
            k,
            users=pd.Index(known),
            items=self.items,
            block_users=self._block_users(own_pool),
        )
        if fallback is not None:
            nobody = np.flatnonzero(empty)
            user, item = self._fallback_vectors(fallback, len(nobody))
            others = ranking.rank(
                user,
                item,
                Csr.empty(len(nobody)),
                pool.take(nobody) if isinstance(pool, Csr) else pool,
                k,
                users=pd.Index(nobody),
                items=self.items,
            )
            lists = pd.concat([lists.assign(fallback=False), others.assign(fallback=True)])
            lists = lists.sort_values("user", kind="stable", ignore_index=True)
        return lists.assign(user=names.take(lists["user"].to_numpy(np.int64)))

    def recommend_users(
        self, items: Iterable[Hashable], k: int = 10, *, exclude_seen: bool = True
    ) -> pd.DataFrame:
        """The k users of the log who have the highest scores for each item.

        Args:
            items: ids.
            k: users per item.
            exclude_seen: leave out users who took the item.

        Returns:
            Columns item, user, rank (from 1) and score, items in the order asked for.

        Raises:
            DataError: naming ids that are unknown.
        """
        k = arguments.check_integer("k", k, 1)
        names = to_index(items, "items")
        rows = frames.lookup_rows(self.items, names, "items")
        takers = Csr.from_pairs(
            self.histories.indices, self.histories.row_of_entry, len(self.items)
        )
        lists = ranking.rank(
            self.item[rows],
            self.representations().user,
            takers.take(rows) if exclude_seen else Csr.empty(len(rows)),
            np.flatnonzero(self.histories.counts).astype(np.int32),
            k,
            users=names,
            items=self.users,
        )
        return lists.set_axis(["item", "user", "rank", "score"], axis=1)

    def similar_items(
        self,
        items: Iterable[Hashable] | None = None,
        k: int = 10,
        *,
        content: Content | None = None,
        candidates: frames.Candidates = None,
    ) -> pd.DataFrame:
        """The k items most similar to each of some items, by the cosine of their vectors.

        Args:
            items: ids; an item is not similar to itself.
            k: similar items of each.
            content: of items that are not known, in place of `items`; see `embed`.
            candidates: see `recommend`.

        Returns:
            Columns item, similar, rank (from 1) and score (the cosine), in the order asked for; of
            arrays of content, item is the number of the row.

        Raises:
            DataError: naming ids that are unknown.
            ValueError: unless either items or content is given.
        """
        k = arguments.check_integer("k", k, 1)
        if (items is None) == (content is None):
            raise ValueError("give items or content, one of the two")
        if items is None:
            names, rows = self._embed_content(content, None)
            own = Csr.empty(len(rows))
        else:
            names = to_index(items, "items")
            at = frames.lookup_rows(self.items, names, "items")
            rows, own = self.item[at], Csr(np.arange(len(at) + 1), at)
        lists = ranking.rank(
            vectors.unit_rows(rows),
            vectors.unit_rows(self.item),
            own,
            self._candidates(candidates, names),
            k,
            users=names,
            items=self.items,
        )
        return lists.set_axis(["item", "similar", "rank", "score"], axis=1)

    def explain(
        self, user: Hashable, item: Hashable, *, history: Iterable[Hashable] | None = None
    ) -> pd.DataFrame:
        """What each item that a user took adds to the score of another item.

        A user's vector is a scaled sum over the history, and a score is linear in it, so the parts
        are exact.

        Args:
            user: id; of the log, unless there is a history.
            item: id of any item that the model knows.
            history: ids of the items that the user took.

        Returns:
            Columns item and part, the largest part first; the parts sum to the score.

        Raises:
            DataError: naming an id that is unknown, or a user without history.
            ValueError: of a model that reads a history as a sequence.
        """
        if self.ORDERED and self.served == self.KIND:
            raise ValueError("a model of sequences has no parts that sum to the score")
        asked = [user] if history is None else {user: history}  # a dictionary holds histories
        _, taken, weights = self._asked(asked, None, "error")
        (row,) = frames.lookup_rows(self.items, [item], "item")
        if not len(taken.indices):
            raise DataError(f"{format_ids('user', [user])} without history: nothing to explain")
        rows = self.item[taken.indices].astype(np.float64)
        weight = np.ones(len(rows)) if weights is None else weights.astype(np.float64)
        user_row = self._user_rows(taken, weights)[0].astype(np.float64)
        part = np.zeros(len(rows))
        blocks = [(rows, slice(None))] if self.served != self.KIND else self._click_blocks(rows)
        for clicks, at in blocks:
            total = weight @ clicks
            scale = user_row[at] @ total / max(total @ total, np.finfo(float).tiny)
            part += scale * weight * (clicks @ self.item[row, at].astype(np.float64))
        order = np.argsort(-part, kind="stable")
        return pd.DataFrame({"item": self.items[taken.indices[order]], "part": part[order]})

    def evaluate(
        self,
        clicks: Any,
        cutoffs: Sequence[int] = (10, 20),
        *,
        histories: frames.Histories | None = None,
        candidates: str | Iterable[Hashable] | None = None,
        exclude_seen: bool = True,
        unknown: str = "error",
    ) -> dict[str, float]:
        """The metrics of the lists against clicks that were held out; see `jaxcold.eval.metrics`.

        Args:
            clicks: a frame with the columns user and item, as in `fit`. Those of items that are no
                candidates do not count.
            cutoffs: list lengths.
            histories: what each user took before; unset, what the model knows.
            candidates: one list for all users, see `recommend`.
            exclude_seen: leave out what the user took.
            unknown: users and items that the model does not know are an "error", or "drop" them.

        Returns:
            Means by name, such as "ndcg@10".

        Raises:
            DataError: naming ids that are unknown, or if no click is left.
        """
        cutoffs = [arguments.check_integer("cutoffs", k, 1) for k in cutoffs]
        names = self._log_names()
        log = frames.read_log(clicks, {field: names[field] for field in ("user", "item")})
        known, taken, weights = self._asked(None, histories, unknown)
        row = known.get_indexer(to_index(log["user"], "clicks"))
        item = self.items.get_indexer(to_index(log["item"], "clicks"))
        for what, at, ids in (("user", row, log["user"]), ("item", item, log["item"])):
            if unknown == "error" and (at < 0).any():
                absent = format_ids(what, pd.Index(ids[at < 0]).unique())
                raise DataError(f'clicks: {absent} unknown; leave it out, or pass unknown="drop"')
        pool = self._candidates(candidates, known)
        if isinstance(pool, Csr):
            raise DataError("candidates: give one list for all users; `evaluate` takes no other")
        counts = (row >= 0) & (item >= 0) & np.isin(item, pool)
        if not counts.any():
            raise DataError("clicks: none is of a known user and a candidate; nothing to evaluate")
        pairs = np.unique(np.stack([row[counts], item[counts]], axis=1), axis=0)
        users, at = np.unique(pairs[:, 0], return_inverse=True)
        eval_slice = EvalSlice(
            users=users.astype(np.int32),
            histories=taken,
            positives=Csr.from_pairs(at, pairs[:, 1], len(users)),
            exclude=taken.take(users) if exclude_seen else Csr.empty(len(users)),
            candidates=pool,
            items=pool,
            list_without_history=False,
        )
        model = untrained(lambda *_: self.item, lambda *_: self._user_rows(taken, weights))
        return evaluate_model(model, {}, (), {"": eval_slice}, cutoffs)[""].mean()

    def _embed(self, content: ContentFeatures) -> np.ndarray:
        """f32[n, D] unit rows of items, from content as the model takes it."""
        raise NotImplementedError

    def _encode_users(self, histories: Csr, weights: np.ndarray | None) -> np.ndarray:
        """f32[n, D]: vectors of users; zero for an empty history."""
        return vectors.history_means(histories, self.item, weights)

    def _click_blocks(self, rows: np.ndarray) -> list[tuple[np.ndarray, slice]]:
        """What clicks on items f[n, D] add up to, up to a scale, in each block of a user's vector.

        Returns:
            Per block f[n, d], and where the block is.
        """
        return [(rows, slice(None))]

    def _block_users(self, pool: np.ndarray | Csr) -> int | None:
        """Users that are scored at once, where a list must not depend on who else is asked."""
        del pool
        return None

    def _user_rows(self, histories: Csr, weights: np.ndarray | None) -> np.ndarray:
        if self.served != self.KIND:
            return vectors.history_means(histories, self.item, weights)
        return self._encode_users(histories, weights)

    def _embed_content(self, content: Content, ids: pd.Index | None) -> tuple[pd.Index, np.ndarray]:
        """Ids and vectors of content that the user gives."""
        if not self.modes.widths:
            raise ValueError(
                "the model knows ids alone (item_table='random'), and no content; fit one with "
                "content"
            )
        names, given, _ = features.to_features(content, ids, self.modes, self._log_names()["item"])
        if self.served != self.KIND:
            return names, concatenated_unit_rows(given)
        return names, self._embed(given)

    def _candidates(self, candidates: frames.Candidates, names: pd.Index) -> np.ndarray | Csr:
        if isinstance(candidates, str) and candidates == "cold" and not self.modes.widths:
            raise ValueError(
                'candidates="cold": a model of ids alone (item_table="random") has no vectors '
                "for cold items; fit one with content"
            )
        return frames.to_candidates(candidates, names, self.items, self.warm)

    def _fallback_vectors(self, fallback: str, count: int) -> tuple[np.ndarray, np.ndarray]:
        """Vectors of users without history, and the items to go with them."""
        if fallback == "popular":
            clicks = np.bincount(self.histories.indices, minlength=len(self.items))
            return np.ones((count, 1), np.float32), clicks.astype(np.float32)[:, None]
        chosen = self.warm if self.warm.any() else ~self.warm
        mean = vectors.unit_rows(self.item[chosen].mean(axis=0, keepdims=True))
        return np.repeat(mean, count, axis=0), self.item

    def _log_names(self) -> dict[str, str]:
        """Our names of a log's columns -> those of the log of training."""
        return {"user": "user", "item": "item", "time": "time"} | self.options.get("log", {})

    def _asked(
        self,
        users: Any,
        histories: frames.Histories | None,
        unknown: str,
    ) -> tuple[pd.Index, Csr, np.ndarray | None]:
        """Who is asked about, what they took, and the weights of that."""
        if unknown not in ("error", "drop"):
            raise ValueError(f'unknown is "error" or "drop", not {unknown!r}')
        if users is not None and histories is not None:
            raise ValueError("give users or histories, not both")
        if isinstance(users, Mapping):
            users, histories = None, users
        if histories is not None:
            names, row, item = frames.to_histories(histories, self.items, unknown)
            return names, group(row, item, len(names), ordered=self.ORDERED)[0], None
        if users is None:
            return self.users, self.histories, self.weights
        names = to_index(users, "users")
        rows = self.users.get_indexer(names)
        if unknown == "error" and (rows < 0).any():
            raise DataError(
                f"{format_ids('user', names[rows < 0])} not in the training log; give the items "
                "they took as histories={user: [items]}"
            )
        indptr = np.append(self.histories.indptr, self.histories.indptr[-1])  # -1: an empty row
        entries = Csr(indptr, np.arange(len(self.histories.indices), dtype=np.int32)).take(
            np.where(rows < 0, len(self.users), rows)
        )
        taken = Csr(entries.indptr, self.histories.indices[entries.indices])
        weights = None if self.weights is None else self.weights[entries.indices]
        return names, taken, weights
