"""A data set of sequences once it is loaded and split.

Item ids count from 0: warm items first, cold items after them. There is no padding item in the
data; a model that needs one adds its own.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import NamedTuple

import numpy as np

from jaxcold.types import Csr


class EvalSequences(NamedTuple):
    """Histories, and the item that came next."""

    user: np.ndarray  # i32[n] row of SequenceDataset.user_ids
    history: Csr  # n rows: item ids in the order of time; rows may be empty
    target: np.ndarray  # i32[n] item id


@dataclass(frozen=True)
class SequenceDataset:
    """All that a sequential experiment reads.

    An item is warm if a training user took it, cold otherwise. Under :func:`random_cold_split` and
    :func:`leave_one_out_split` it is warm unless it was drawn cold;
    ``statistics["warm_items_untrained"]`` counts the warm items that do not occur in ``train``.
    """

    name: str
    num_warm: int  # items 0 .. num_warm - 1 are warm: they occur in `train`
    num_items: int  # items num_warm .. num_items - 1 are cold
    train: Csr  # a row per training user: warm items in the order of time
    val: EvalSequences  # warm items only
    test: EvalSequences  # cold items in histories and targets included
    content: np.ndarray | None  # f16|f32|f64 [num_items, F], row = item id; may be memory-mapped
    user_ids: np.ndarray  # external ids; row r < train.rows is the user of train row r
    item_ids: np.ndarray  # external ids, row = item id
    statistics: Mapping[str, int]  # counts for the report
    sources: Mapping[str, str] = field(default_factory=dict)  # file that was read -> its SHA-256
    weights: np.ndarray | None = None  # f32[n], of the entries of `train` as targets; None: 1

    def without_tests(self) -> "SequenceDataset":
        """The data to choose with: no test sequence is left. Cold items keep their content."""
        none = Csr.empty(0)
        empty = np.zeros(0, np.int32)
        return replace(self, test=EvalSequences(empty, none, empty))
