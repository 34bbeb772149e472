"""Logs of clicks as data sets: what trains, and what is held out to choose with."""

import dataclasses
from collections.abc import Mapping
from typing import Any

import numpy as np
import pandas as pd

from jaxcold.data.pairs.dataset import ColdSplit, ContentFeatures, Dataset, Interactions
from jaxcold.data.sequences import split as sequences
from jaxcold.data.sequences.dataset import SequenceDataset
from jaxcold.estimators import frames
from jaxcold.estimators.frames import to_distinct_index
from jaxcold.types import Csr, DataError

VAL_FRACTION = 0.1  # of the items with clicks, or of the users, that a fit holds out by default
_FEWEST = 5  # items that are worth holding out


@dataclasses.dataclass(frozen=True)
class PairLog:
    """Clicks in internal numbers, and the ids that they stand for."""

    user: np.ndarray  # i64[n]
    item: np.ndarray  # i64[n]
    weight: np.ndarray | None  # f32[n]
    users: pd.Index  # [U]
    items: pd.Index  # [I]: those of the content

    @classmethod
    def read(
        cls, interactions: Any, names: Mapping[str, str], items: pd.Index, min_rating: float | None
    ) -> "PairLog":
        """The clicks of a frame."""
        rows = frames.read_log(interactions, names, min_rating)
        codes, ids = {}, {}
        for field in ("user", "item"):
            codes[field], values = frames.encode_column(rows[field], names[field])
            ids[field] = to_distinct_index(values, field)
        at = frames.match_content(items, ids["item"])
        weight = rows["weight"].to_numpy(np.float32) if "weight" in rows else None
        return cls(codes["user"], at[codes["item"]], weight, ids["user"], items)

    @property
    def is_clicked(self) -> np.ndarray:
        """bool[I]."""
        return np.bincount(self.item, minlength=len(self.items)) > 0

    def split(self, content: ContentFeatures, val_fraction: float | None, seed: int) -> Dataset:
        """A data set whose pairs train, but for those of the items that are held out."""
        histories, weight = group(self.user, self.item, len(self.users), self.weight)
        user, item = histories.row_of_entry.astype(np.int32), histories.indices
        if weight is not None and (weight == weight[0]).all():
            weight = None
        clicked = np.flatnonzero(self.is_clicked).astype(np.int32)
        count = round((VAL_FRACTION if val_fraction is None else val_fraction) * len(clicked))
        if val_fraction is None and count < _FEWEST:
            count = 0
        drawn = np.random.default_rng([seed, 2]).permutation(clicked)[:count]
        is_val = np.isin(item, drawn)
        # Nothing can be said of a user all of whose items are held out.
        is_known = np.bincount(user[~is_val], minlength=len(self.users))[user] > 0
        pairs = np.stack([user, item], axis=1)
        none = pairs[:0]
        sets = dict.fromkeys(("warm_val", "warm_test", "cold_test"), none)
        sets |= {"warm_train": pairs[~is_val], "cold_val": pairs[is_val & is_known]}
        if is_val.all() or (count and not len(sets["cold_val"])):
            raise DataError(
                f"interactions: {len(clicked)} items with clicks are too few to hold out "
                f"val_fraction={val_fraction} of them; give more data, or val_fraction=0"
            )
        everything = Interactions(user, item, len(self.users), len(self.items), weight=weight)
        training = everything.take(np.flatnonzero(~is_val))
        warm = np.unique(training.item)
        cold = np.setdiff1d(np.arange(len(self.items), dtype=np.int32), warm)
        split = ColdSplit(
            train=training,
            warm_items=warm,
            cold_val_items=np.sort(drawn),
            cold_test_items=np.setdiff1d(cold, drawn),
            pairs=sets,
        )
        return Dataset(
            "log", training, split, content, self.users.to_numpy(), self.items.to_numpy()
        )


@dataclasses.dataclass(frozen=True)
class SequenceLog:
    """Clicks in internal numbers and in the order of time, and the ids that they stand for."""

    rows: pd.DataFrame  # columns user, item, time and perhaps weight; sorted
    users: pd.Index  # [U]
    items: pd.Index  # [I]: those of the content; without content those of the log
    content: ContentFeatures | None  # one table

    @classmethod
    def read(
        cls, interactions: Any, names: Mapping[str, str], min_rating: float | None
    ) -> "SequenceLog":
        """The clicks of a frame, without content.

        Equal rows count once, and so does an item that follows itself.
        """
        log = frames.read_log(interactions, names, min_rating)
        frames.check_times(log["time"], names["time"])
        codes, values = {}, {}
        for field in ("user", "item", "time"):
            codes[field], values[field] = frames.encode_column(
                log[field], names[field], ordered=field == "time"
            )
        rows = pd.DataFrame(codes)
        if "weight" in log:
            # Of equal rows the one of the largest weight counts.
            rows["weight"] = log["weight"].to_numpy()
            rows["weight"] = rows.groupby(["user", "item", "time"])["weight"].transform("max")
        rows = sequences.drop_consecutive_duplicates(sequences.drop_repeated_rows(rows))
        users = to_distinct_index(values["user"], "user")
        return cls(rows, users, to_distinct_index(values["item"], "item"), None)

    def with_items(self, items: pd.Index) -> "SequenceLog":
        """The same clicks in the numbers of the items of content."""
        at = frames.match_content(items, self.items)
        return dataclasses.replace(
            self, rows=self.rows.assign(item=at[self.rows["item"]]), items=items
        )

    @property
    def is_clicked(self) -> np.ndarray:
        """bool[I]."""
        return np.bincount(self.rows["item"], minlength=len(self.items)) > 0

    def split(self, val_fraction: float | None, seed: int) -> SequenceDataset:
        """A data set whose validation sequences are those of users that are held out.

        Its test sequences, which are not used, are those of validation; with `val_fraction` 0 both
        are those of training.
        """
        val_fraction = VAL_FRACTION if val_fraction is None else val_fraction
        rows = self.rows[self.rows.groupby("user")["user"].transform("size") >= 2]
        users = rows["user"].unique()
        num_val = max(round(val_fraction * len(users)), 1) if val_fraction else 0
        if num_val >= len(users):
            raise DataError(
                f"interactions: {len(users)} users took two items or more, and {num_val} of them "
                f"are to be held out; give more data, or lower val_fraction={val_fraction:g}"
            )
        held_out = np.random.default_rng([seed, 2]).permutation(users)[:num_val]
        is_val = rows["user"].isin(held_out)
        train = rows[~is_val]
        val = rows[is_val] if num_val else train
        cold = np.setdiff1d(np.arange(len(self.items)), train["item"])
        dataset = sequences.assemble("interactions", train, val, val, cold=cold)
        weights = None
        if "weight" in train and train["weight"].nunique() > 1:
            weights = train["weight"].to_numpy(np.float32)  # sorted as `assemble` sorts
        kept = dataset.item_ids
        content = None
        if self.content is not None:
            (table,) = self.content.tables.values()
            content = table[kept]
        return dataclasses.replace(
            dataset,
            item_ids=self.items.to_numpy()[kept],
            user_ids=self.users.to_numpy()[dataset.user_ids],
            content=content,
            weights=weights,
        )


def group(
    row: np.ndarray,
    item: np.ndarray,
    rows: int,
    weights: np.ndarray | None = None,
    *,
    ordered: bool = False,
) -> tuple[Csr, np.ndarray | None]:
    """Histories from entries in the order of time, and their weights.

    A set of items holds each once, with its largest weight; in a sequence an item that follows
    itself counts once.
    """
    keys = [] if weights is None else [-weights]
    order = np.argsort(row, kind="stable") if ordered else np.lexsort((*keys, item, row))
    row, item = row[order], item[order]
    is_new = np.ones(len(row), bool)
    is_new[1:] = (row[1:] != row[:-1]) | (item[1:] != item[:-1])
    kept = None if weights is None else weights[order[is_new]]
    return Csr.from_pairs(row[is_new], item[is_new], rows), kept
