"""A data set of pairs once it is loaded: interactions, content and a split.

Everything here is plain and immutable. Readers make it, splits divide it, models and evaluation
only read it. U users, I items, D feature width, n pairs.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import NamedTuple

import numpy as np

from jaxcold.types import Csr, Representations

SETS = ("warm_train", "warm_val", "warm_test", "cold_val", "cold_test")


class Interactions(NamedTuple):
    """Who took what: one row per distinct pair, in file order."""

    user: np.ndarray  # i32[n]
    item: np.ndarray  # i32[n]
    num_users: int
    num_items: int
    time: np.ndarray | None = None  # i64[n], in the file's unit; None where there is no order
    weight: np.ndarray | None = None  # f32[n], above 0: how much a pair counts; None: 1

    def by_user(self) -> Csr:
        """Csr of ``num_users`` rows: the items of each user, in file order."""
        return Csr.from_pairs(self.user, self.item, self.num_users)

    def take(self, rows: np.ndarray) -> "Interactions":
        """The interactions at those rows; users and items keep their ids and numbers."""
        time = None if self.time is None else self.time[rows]
        weight = None if self.weight is None else self.weight[rows]
        return self._replace(user=self.user[rows], item=self.item[rows], time=time, weight=weight)

    def pairs(self) -> np.ndarray:
        """i32[n, 2]: user and item side by side."""
        return np.stack([self.user, self.item], axis=1)


class ContentFeatures(NamedTuple):
    """One table per content mode, row i for item i, in the dtype it was stored in.

    A table may be memory-mapped. Where ``present`` is False the row is not meant to be read.
    """

    tables: Mapping[str, np.ndarray]  # name -> f16 | f32 | f64 [I, D]
    present: Mapping[str, np.ndarray]  # name -> bool[I]


@dataclass(frozen=True)
class ColdSplit:
    """Items divided into warm and cold, and pairs into five sets (:data:`SETS`).

    Every warm item occurs in training and no cold item does; the item sets are ascending.
    """

    train: Interactions  # the pairs of warm_train, with their times
    warm_items: np.ndarray  # i32[Iw]
    cold_val_items: np.ndarray  # i32[Iv]
    cold_test_items: np.ndarray  # i32[It]
    pairs: Mapping[str, np.ndarray]  # set -> i32[n, 2]: user, item

    @property
    def cold_items(self) -> np.ndarray:
        """i32[Iv + It]: validation and test items together, ascending."""
        return np.sort(np.concatenate([self.cold_val_items, self.cold_test_items]))


@dataclass(frozen=True)
class Dataset:
    """All that an experiment reads."""

    name: str
    interactions: Interactions
    split: ColdSplit
    content: ContentFeatures
    user_ids: np.ndarray  # [U] external ids, for reports
    item_ids: np.ndarray  # [I] external ids
    oracle: Representations | None = None  # the best possible ranking, where it is known
    sources: Mapping[str, str] = field(default_factory=dict)  # file that was read -> its SHA-256

    def without_tests(self) -> "Dataset":
        """The data to choose with: no pair of a test set is left in the split or elsewhere.

        Cold test items stay candidates; who took them is gone, and so are the times.
        """
        pairs = {
            set_name: rows[:0] if set_name.endswith("_test") else rows
            for set_name, rows in self.split.pairs.items()
        }
        user, item = np.concatenate(list(pairs.values())).T
        return replace(
            self,
            interactions=self.interactions._replace(user=user, item=item, time=None),
            split=replace(self.split, pairs=pairs),
        )
