"""The vectors of users and items that any method ends in, saved and served as they are."""

import dataclasses
import os
from collections.abc import Hashable, Iterable, Mapping
from typing import Any

import numpy as np
import pandas as pd

from jaxcold.data.pairs.dataset import Dataset
from jaxcold.data.sequences.dataset import SequenceDataset
from jaxcold.estimators import base
from jaxcold.estimators.base import distinct
from jaxcold.eval.ranking import top_k
from jaxcold.types import Csr, EvalSlice, Model, Representations

KIND = "vectors"  # what model.json calls it


@dataclasses.dataclass(frozen=True, eq=False)
class Vectors:
    """Recommends by the dot products of users' and items' vectors; what it knows is fixed.

    Made by `Vectors.from_training` or `Vectors.load`. Also what a method takes as a backbone or a
    teacher from elsewhere. Of a sequential method it holds the items alone: who a user is, is a
    history that only the method can encode.
    """

    users: pd.Index  # [U] external ids
    items: pd.Index  # [I] external ids
    user: np.ndarray  # f32[U, D]
    item: np.ndarray  # f32[I, D]
    seen: Csr  # U rows of items that are not recommended again
    options: Mapping[str, Any]  # how it was trained; for the record

    @classmethod
    def from_training(
        cls,
        dataset: Dataset | SequenceDataset,
        model: Model,
        params: Any,
        model_state: Any,
        options: Mapping[str, Any],
    ) -> "Vectors":
        """The vectors of a trained model.

        Args:
            dataset: that the model was built on.
            model: from a method's ``build``.
            params: trained.
            model_state: of the training.
            options: how it was trained; JSON can hold it.
        """
        item = np.asarray(model.encode_items(params, model_state), np.float32)
        if isinstance(dataset, SequenceDataset):
            ids = np.asarray(dataset.user_ids)[:0]
            seen = Csr(np.zeros(1, np.int64), np.zeros(0, np.int32))
            user = np.zeros((0, item.shape[1]), np.float32)
        else:
            ids, seen = np.asarray(dataset.user_ids), dataset.split.train.by_user()
            user = np.asarray(model.encode_users(params, model_state, item, seen), np.float32)
        known = len(dataset.item_ids)  # not the padding item of published code
        return cls(
            distinct(ids, "user") if len(ids) else pd.Index([]),
            distinct(dataset.item_ids, "item"),
            user,
            item[:known],
            seen,
            base.plain(options),
        )

    def recommend(
        self,
        users: Iterable[Hashable],
        k: int = 10,
        *,
        candidates: Iterable[Hashable] | None = None,
    ) -> pd.DataFrame:
        """The best k items of each user, among those that the user has not taken.

        Args:
            users: ids.
            k: items per user.
            candidates: ids of the items that may be recommended; unset, all.

        Returns:
            Columns user, item, rank (from 1) and score, best items first.

        Raises:
            DataError: naming ids that are unknown.
        """
        names = base.listed(users, "users")
        rows = base.rows_of(self.users, names, "users", what="user")
        pool = np.arange(len(self.items), dtype=np.int32)
        if candidates is not None:
            pool = np.unique(base.rows_of(self.items, candidates, "candidates"))
        seen = self.seen.take(rows)
        task = EvalSlice(
            users=np.arange(len(rows), dtype=np.int32),
            histories=seen,
            positives=Csr(np.zeros(len(rows) + 1, np.int64), np.zeros(0, np.int32)),
            exclude=seen,
            candidates=pool,
            items=pool,
        )
        lists = top_k(Representations(self.user[rows], self.item), task, k)
        return base.as_frame(lists, names, self.items)

    def save(self, folder: str | os.PathLike) -> None:
        """Writes the vectors into a folder of their own; no pickle.

        Raises:
            DataError: if the folder holds anything else.
        """
        arrays = {
            "users/vectors": self.user,
            "items/vectors": self.item,
            "seen/indptr": self.seen.indptr,
            "seen/indices": self.seen.indices,
        }
        ids = {"users": self.users, "items": self.items}
        base.save(folder, KIND, {"options": dict(self.options)}, arrays, ids)

    @classmethod
    def load(cls, folder: str | os.PathLike) -> "Vectors":
        """Reads what `save` wrote, to the same bits.

        Raises:
            DataError: naming the file that is absent or damaged, and what to do.
        """
        with base.saved(folder, KIND) as found:
            arrays = found.arrays
            return cls(
                users=pd.Index(found.ids["users"]),
                items=distinct(found.ids["items"], "item"),
                user=arrays["users/vectors"],
                item=arrays["items/vectors"],
                seen=Csr(arrays["seen/indptr"], arrays["seen/indices"]),
                options=found.meta["options"],
            )
