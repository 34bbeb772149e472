"""The vectors of users and items that any method ends in, saved and served as they are."""

import dataclasses
import os
from collections.abc import Hashable, Iterable, Mapping
from typing import Any

import numpy as np
import pandas as pd

from jaxcold.data.pairs.dataset import Dataset
from jaxcold.data.sequences.dataset import SequenceDataset
from jaxcold.estimators import arguments, frames, ranking, schema
from jaxcold.estimators.frames import to_distinct_index
from jaxcold.types import Csr, Model

KIND = "vectors"  # what model.json calls it


@dataclasses.dataclass(frozen=True, eq=False)
class Vectors:
    """Recommends by the dot products of users' and items' vectors; its users and items are fixed.

    Made by `Vectors.from_training` or `Vectors.load`. Other methods take it as a backbone or a
    teacher. Of a sequential method it holds the items alone: a user there is a history, which
    only the method can encode.
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
            seen = Csr.empty(0)
            user = np.zeros((0, item.shape[1]), np.float32)
        else:
            ids, seen = np.asarray(dataset.user_ids), dataset.split.train.by_user()
            user = np.asarray(model.encode_users(params, model_state, item, seen), np.float32)
        known = len(dataset.item_ids)  # not the padding item of published code
        return cls(
            to_distinct_index(ids, "user") if len(ids) else pd.Index([]),
            to_distinct_index(dataset.item_ids, "item"),
            user,
            item[:known],
            seen,
            arguments.to_json_values(options),
        )

    def recommend(
        self,
        users: Iterable[Hashable],
        k: int = 10,
        *,
        candidates: frames.Candidates = None,
    ) -> pd.DataFrame:
        """The best k items of each user, among those that the user has not taken.

        Args:
            users: ids.
            k: items per user.
            candidates: ids of the items that may be recommended, or a dictionary of such lists by
                user; unset, all.

        Returns:
            Columns user, item, rank (from 1) and score, best items first.

        Raises:
            DataError: naming ids that are unknown.
        """
        names = frames.to_index(users, "users")
        k = arguments.check_integer("k", k, 1)
        rows = frames.lookup_rows(self.users, names, "users", what="user")
        warm = np.ones(len(self.items), bool)
        pool = frames.to_candidates(candidates, names, self.items, warm)
        return ranking.rank(
            self.user[rows],
            self.item,
            self.seen.take(rows),
            pool,
            k,
            users=names,
            items=self.items,
        )

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
        schema.write_model(folder, KIND, {"options": dict(self.options)}, arrays, ids)

    @classmethod
    def load(cls, folder: str | os.PathLike) -> "Vectors":
        """Reads what `save` wrote, to the same bits.

        Raises:
            DataError: naming the file that is absent or damaged, and what to do.
        """
        with schema.read_model(folder, KIND, ("users", "items")) as saved:
            arrays, users, items = saved.arrays, saved.ids["users"], saved.ids["items"]
            size = arrays["items/vectors"].shape[1]
            expected: schema.Schema = {
                "users/vectors": ((len(users), size), "float32"),
                "items/vectors": ((len(items), size), "float32"),
                "seen/indptr": ((len(users) + 1,), "int64"),
                "seen/indices": ((None,), "int32"),
            }
            schema.check_arrays(arrays, expected)
            seen = Csr(arrays["seen/indptr"], arrays["seen/indices"])
            schema.check_rows("seen", seen, len(items), ascending=False)
            return cls(
                users=users,
                items=items,
                user=arrays["users/vectors"],
                item=arrays["items/vectors"],
                seen=seen,
                options=saved.meta["options"],
            )
