"""Accuracy and fairness of ranked lists at any number of cut-offs.

All values are float64 and unrounded. The rank of the first recommended item is 1. A recommended
item that the user holds out is a hit.

per user u with held-out items P, at cut-off k:
  recall  hits / |P|
  ndcg    sum over hits of 1 / log2(rank + 1), over the same sum for ranks 1 .. min(|P|, k)
  hr      1 if there is a hit, else 0
  mrr     1 / rank of the first hit, 0 without one
per item i that some user holds out:
  mdg     mean over the users who hold i out of 1 / log2(rank + 1), 0 where i is not in the list
per slice, over the items of ``EvalSlice.items``, with x the number of lists that show an item:
  gini      1 - sum_{i<j} |x_i - x_j| / (n^2 mean(x)): 1 when all are shown equally often
  coverage  fraction of the items with x > 0

Sources: recall, ndcg and gini as in Meehan and Pauwels, "On inherited popularity bias in cold-start
item recommendation", RecSys 2025; mdg (mean discounted gain) as in Zhu et al., "Fairness among new
items in cold start recommender systems", SIGIR 2021.
"""

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

from jaxcold.types import Csr, EvalSlice, TopK


class Metrics(NamedTuple):
    """Values per user and item, by names such as "recall@20"."""

    users: np.ndarray  # i32[n]
    per_user: dict[str, np.ndarray]  # recall, ndcg, hr, mrr: f64[n]
    items: np.ndarray  # i32[H], ascending: the items that some user holds out
    per_item: dict[str, np.ndarray]  # mdg: f64[H]
    pool: np.ndarray  # i32[S]: the items of the slice whose exposure counts
    exposure: dict[str, np.ndarray]  # "exposure@20": i64[S] lists that show the item

    def mean(self) -> dict[str, float]:
        """One number per metric and cut-off; NaN for a mean over no user or item."""
        values = {name: _mean(value) for name, value in (self.per_user | self.per_item).items()}
        for name, counts in self.exposure.items():
            cutoff = name.partition("@")[2]
            values[f"gini@{cutoff}"] = gini_diversity(counts)
            values[f"coverage@{cutoff}"] = _mean(counts > 0)
        return values


def evaluate(topk: TopK, eval_slice: EvalSlice, cutoffs: Sequence[int]) -> Metrics:
    """Metrics of ranked lists against the held-out items of a slice.

    Args:
        topk: lists for exactly the users of the slice, in their order; -1 is no item.
        eval_slice: the held-out items, and the items whose exposure counts.
        cutoffs: list lengths to report, each from 1. One beyond the length of the given lists is
            allowed where they have room for every candidate: a longer list would be the same.

    Returns:
        Values per user and per item, and their means through ``Metrics.mean``.

    Raises:
        ValueError: if the users differ, a user holds nothing out, or a cut-off is out of range.
    """
    _check(topk, eval_slice, cutoffs)
    positives = _distinct(eval_slice.positives)
    held = positives.counts  # i64[n]
    items, holder_counts = np.unique(positives.indices, return_counts=True)
    hit = _member(topk.items, positives)  # bool[n, K]
    length = topk.items.shape[1]
    # The ideal list has min(|P|, k) items, which may be more than the candidates.
    ideal_length = min(int(held.max(initial=0)), max(cutoffs, default=0))
    rank = np.arange(1, max(length, ideal_length) + 1)
    gain = 1 / np.log2(rank + 1)
    ideal = np.concatenate([[0.0], np.cumsum(gain)])
    per_user, per_item, exposure = {}, {}, {}
    for k in cutoffs:
        hits = hit[:, :k]
        row, column = np.nonzero(hits)
        per_user[f"recall@{k}"] = hits.sum(1) / held
        per_user[f"ndcg@{k}"] = (hits * gain[: hits.shape[1]]).sum(1) / ideal[np.minimum(held, k)]
        per_user[f"hr@{k}"] = hits.any(1).astype(np.float64)
        per_user[f"mrr@{k}"] = (hits / rank[: hits.shape[1]]).max(1, initial=0.0)
        per_item[f"mdg@{k}"] = (
            np.bincount(np.searchsorted(items, topk.items[row, column]), gain[column], len(items))
            / holder_counts
        )
        exposure[f"exposure@{k}"] = _exposure(topk.items[:, :k], eval_slice.items)
    return Metrics(topk.users, per_user, items, per_item, eval_slice.items, exposure)


def gini_diversity(counts: np.ndarray) -> float:
    """1 - Gini coefficient of exposure counts, in (0, 1]; NaN where nothing is shown at all.

    Args:
        counts: [S] non-negative exposures, zeros included.

    Returns:
        1 for equal exposure, 1 / S if one item takes it all.
    """
    n, total = len(counts), float(np.sum(counts))
    if not n or not total:
        return float("nan")
    # The i-th sorted value (from 0) is the larger one of i pairs, the smaller of n - 1 - i.
    weight = 2 * np.arange(n) - n + 1
    return float(1 - np.dot(weight, np.sort(counts).astype(np.float64)) / (n * total))


def _exposure(lists: np.ndarray, pool: np.ndarray) -> np.ndarray:
    """i64[S]: in how many lists each item of the pool occurs."""
    ids = lists[lists >= 0]
    size = max(ids.max(initial=-1), pool.max(initial=-1)) + 1
    return np.bincount(ids, minlength=size)[pool]


def _member(lists: np.ndarray, sets: Csr) -> np.ndarray:
    """bool[n, K]: whether entry [r, c] of the lists is in row r of the sets (sorted rows)."""
    width = int(max(lists.max(initial=0), sets.indices.max(initial=0))) + 1
    row = np.arange(len(lists), dtype=np.int64)[:, None]
    known = np.repeat(row[:, 0], sets.counts) * width + sets.indices
    asked = row * width + lists
    place = np.searchsorted(known, asked)
    place[place == len(known)] = 0
    return (lists >= 0) & (known[place] == asked) if len(known) else np.zeros(lists.shape, bool)


def _distinct(csr: Csr) -> Csr:
    """The rows, sorted and without duplicates."""
    row = csr.row_of_entry
    order = np.lexsort((csr.indices, row))
    row, value = row[order], csr.indices[order]
    first = np.ones(len(row), bool)
    first[1:] = (row[1:] != row[:-1]) | (value[1:] != value[:-1])
    return Csr.from_pairs(row[first], value[first], csr.rows)


def _mean(values: np.ndarray) -> float:
    return float(values.mean()) if len(values) else float("nan")


def _check(topk: TopK, eval_slice: EvalSlice, cutoffs: Sequence[int]) -> None:
    if not np.array_equal(topk.users, eval_slice.users):
        raise ValueError("the lists and the slice name different users; rank this slice first")
    if eval_slice.positives.rows != len(eval_slice.users):
        raise ValueError(
            f"positives has {eval_slice.positives.rows} rows for {len(eval_slice.users)} users; "
            "give one per user"
        )
    empty = np.flatnonzero(eval_slice.positives.counts == 0)
    if len(empty):
        raise ValueError(
            f"user {eval_slice.users[empty[0]]} holds nothing out; leave it out of the slice"
        )
    length = topk.items.shape[1]
    has_all = length >= len(eval_slice.candidates)
    for k in cutoffs:
        if k < 1 or (k > length and not has_all):
            raise ValueError(f"cut-off {k} is outside 1..{length}, the length of the lists")
