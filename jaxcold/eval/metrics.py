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

Where lists have ``TopK.ties``, each value is the expectation over random orders of the candidates
with equal scores, drawn for each user. Of a group of m tied candidates after g better ones,
c = min(max(k - g, 0), m) places lie within the cut-off, and each member takes each place with
probability 1 / m: a held-out member counts c / m hits and the mean gain of the c places times that;
x counts c / m. With h held-out items in the best group that has any, the first hit is at the j-th
place of the group with probability h / (m - j + 1) times that of no hit before. gini is that of the
expected x; an item is covered unless it is missed in all lists, which is a product over users.

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
    exposure: dict[str, np.ndarray]  # "exposure@20": f64[S] lists that show the item
    covered: dict[str, np.ndarray]  # "coverage@20": f64[S] probability that some list does
    holders: np.ndarray  # i64[H] users who hold the item out
    found: dict[str, np.ndarray]  # "found@20": f64[H] of these, those whose list shows it

    def mean(self) -> dict[str, float]:
        """One number per metric and cut-off; NaN for a mean over no user or item."""
        groups = self.per_user | self.per_item | self.covered
        values = {name: _mean(value) for name, value in groups.items()}
        for name, counts in self.exposure.items():
            values[name.replace("exposure", "gini")] = gini_diversity(counts)
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
        ValueError: if the users differ, a user holds nothing out, or a cut-off is out of range or
            not among those that the ties of the lists were counted for.
    """
    _check(topk, eval_slice, cutoffs)
    positives = _distinct(eval_slice.positives)
    held = positives.counts  # i64[n]
    items, holder_counts = np.unique(positives.indices, return_counts=True)
    lists = topk.items
    if topk.ties is not None:  # the group that a list cuts is in `ties` as a whole
        cut = np.flatnonzero(topk.ties.members)
        lists = lists.copy()
        beyond = np.arange(lists.shape[1]) >= topk.ties.above[cut, None]
        lists[cut] = np.where(beyond, -1, lists[cut])
    hits = _hits(lists, topk, positives)
    # The ideal list has min(|P|, k) items, which may be more than the candidates.
    last = int((hits.start + hits.size).max(initial=lists.shape[1]))
    ideal_length = min(int(held.max(initial=0)), max(cutoffs, default=0))
    gain = 1 / np.log2(np.arange(max(last, ideal_length)) + 2)
    ideal = np.concatenate([[0.0], np.cumsum(gain)])
    item_row = np.searchsorted(items, hits.item)
    per_user, per_item, exposure, covered, found_by = {}, {}, {}, {}, {}
    for k in cutoffs:
        places = np.clip(k - hits.start, 0, hits.size)
        mean_gain = np.where(
            hits.size == 1,
            places * gain[hits.start],
            (ideal[hits.start + places] - ideal[hits.start]) / hits.size,
        )
        found = np.bincount(hits.row, places / hits.size, len(held))
        per_user[f"recall@{k}"] = found / held
        per_user[f"ndcg@{k}"] = (
            np.bincount(hits.row, mean_gain, len(held)) / ideal[np.minimum(held, k)]
        )
        per_user[f"hr@{k}"], per_user[f"mrr@{k}"] = _first_hit(hits, k, len(held))
        per_item[f"mdg@{k}"] = np.bincount(item_row, mean_gain, len(items)) / holder_counts
        found_by[f"found@{k}"] = np.bincount(item_row, places / hits.size, len(items))
        shown, missed = _shown(lists, topk, eval_slice, k)
        exposure[f"exposure@{k}"], covered[f"coverage@{k}"] = shown, 1 - np.exp(missed)
    return Metrics(
        topk.users,
        per_user,
        items,
        per_item,
        eval_slice.items,
        exposure,
        covered,
        holder_counts,
        found_by,
    )


class _Hits(NamedTuple):
    """Held-out items that lists show, or may show, by user and then by place."""

    row: np.ndarray  # i64[h]
    item: np.ndarray  # i32[h]
    start: np.ndarray  # i64[h]: candidates with a higher score
    size: np.ndarray  # i64[h]: candidates with this score; 1 where the lists are taken as they are


def _hits(lists: np.ndarray, topk: TopK, positives: Csr) -> _Hits:
    """The hits in the whole groups of the lists, and those in the groups that `TopK.ties` has."""
    row, start = np.nonzero(_member(lists, positives))
    item, size = lists[row, start], np.ones(len(row), np.int64)
    if topk.ties is None:
        return _Hits(row, item, start, size)
    follows = np.pad(topk.scores[:, 1:] == topk.scores[:, :-1], ((0, 0), (1, 1)))
    tied = np.flatnonzero(follows[row, start] | follows[row, start + 1])
    tied_rows, at = np.unique(row[tied], return_inverse=True)
    first, members = _groups(topk.scores[tied_rows])
    start[tied], size[tied] = first[at, start[tied]], members[at, start[tied]]
    cut = _distinct(topk.ties.positives)
    cut_row = cut.row_of_entry
    row = np.concatenate([row, cut_row])
    order = np.argsort(row, kind="stable")  # a list's cut group is its last
    values = (
        (item, cut.indices),
        (start, topk.ties.above[cut_row]),
        (size, topk.ties.members[cut_row]),
    )
    return _Hits(row[order], *(np.concatenate(pair)[order] for pair in values))


def _groups(scores: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Of each place of descending scores [n, K]: i64[n, K] where its group begins, its size."""
    first = np.ones(scores.shape, bool)
    first[:, 1:] = scores[:, 1:] != scores[:, :-1]
    start = np.maximum.accumulate(np.where(first, np.arange(scores.shape[1]), 0), axis=1)
    number = np.cumsum(first).reshape(scores.shape)
    return start, np.bincount(number.ravel())[number]


def _first_hit(hits: _Hits, k: int, n: int) -> tuple[np.ndarray, np.ndarray]:
    """f64[n] each: the probability of a hit, and the expectation of 1 / rank of the first."""
    first = np.flatnonzero(np.diff(hits.row, prepend=-1))
    row, start, size = hits.row[first], hits.start[first], hits.size[first]
    of_group = hits.start == np.repeat(start, np.diff(first, append=len(hits.row)))
    relevant = np.bincount(hits.row[of_group], minlength=n)[row]
    places = np.clip(k - start, 0, size)
    hr, mrr = np.zeros((2, n))
    missed = np.ones(len(row))
    left = np.flatnonzero(places)
    place = 0
    while len(left):
        untried = size[left] - place
        mrr[row[left]] += missed[left] * relevant[left] / untried / (start[left] + place + 1)
        missed[left] *= (untried - relevant[left]) / untried
        place += 1
        left = left[(places[left] > place) & (missed[left] > 0)]
    hr[row] = 1 - missed
    return hr, mrr


def _shown(
    lists: np.ndarray, topk: TopK, eval_slice: EvalSlice, k: int
) -> tuple[np.ndarray, np.ndarray]:
    """f64[S] each, of the items of the slice: in how many lists, log probability of none.

    Args:
        lists: the items of `topk` without those of the groups that its lists cut.
        topk: scores and ties.
        eval_slice: with the items to count.
        k: cut-off.
    """
    sure = lists[:, :k]
    size = 1 + int(max(lists.max(initial=-1), eval_slice.items.max(initial=-1)))
    if topk.ties is None:
        shown = np.bincount(sure[sure >= 0], minlength=size)[eval_slice.items].astype(np.float64)
        return shown, np.where(shown > 0, -np.inf, 0.0)
    size = max(size, 1 + int(eval_slice.candidates.max(initial=-1)))
    maybe, share = np.zeros(0, np.int32), np.zeros(0)
    if k < lists.shape[1]:
        rows = np.flatnonzero((topk.scores[:, k - 1] == topk.scores[:, k]) & (lists[:, k] >= 0))
        start, members = _groups(topk.scores[rows])
        inside = start == start[:, k, None]
        sure = sure.copy()
        sure[rows] = np.where(inside[:, :k], -1, sure[rows])
        row, column = np.nonzero(inside)
        maybe = lists[rows[row], column]
        share = ((k - start[:, k]) / members[:, k])[row]
    shown = np.bincount(sure[sure >= 0], minlength=size).astype(np.float64)
    missed = np.where(shown > 0, -np.inf, 0.0)
    shown += np.bincount(maybe, share, size)
    missed += np.bincount(maybe, np.log1p(-share), size)
    shown[eval_slice.candidates] += topk.ties.exposure[k]
    missed[eval_slice.candidates] += topk.ties.log_unseen[k]
    return shown[eval_slice.items], missed[eval_slice.items]


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
        if topk.ties is not None and k not in topk.ties.exposure:
            raise ValueError(f"ties were not counted at cut-off {k}; rank with tie_cutoffs=[{k}]")
