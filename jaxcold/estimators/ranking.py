"""Ranked lists as data frames."""

import numpy as np
import pandas as pd

from jaxcold.estimators import frames
from jaxcold.eval.ranking import top_k
from jaxcold.types import Csr, EvalSlice, Representations

_LIST_BLOCK = 2**22  # entries that per-user candidates exclude at once


def rank(
    user: np.ndarray,
    item: np.ndarray,
    exclude: Csr,
    candidates: np.ndarray | Csr,
    k: int,
    *,
    users: pd.Index,
    items: pd.Index,
    block_users: int | None = None,
) -> pd.DataFrame:
    """The best k candidates of each user, as a frame.

    Args:
        user: f32[n, D].
        item: f32[I, D].
        exclude: n rows of items that are not recommended.
        candidates: from `frames.to_candidates`.
        k: length of a list, at least 1; memory follows the candidates where they are fewer.
        users: [n] ids.
        items: [I] ids.
        block_users: users that are scored at once. If set, the last block is padded, so that a
            list does not depend on who else is asked: the shape of a product decides how it is
            rounded.
    """
    per_user = isinstance(candidates, Csr)
    # Per-user lists are scored against the whole catalogue, for the same reason.
    pool = np.arange(len(item), dtype=np.int32) if isinstance(candidates, Csr) else candidates
    k = max(min(k, len(pool)), 1)
    block = max(len(users), 1)
    if per_user:
        block = block_users or max(_LIST_BLOCK // max(len(pool), 1), 1)
    parts = []
    for start in range(0, max(len(users), 1), block):
        rows = np.arange(start, min(start + block, len(users)))
        hidden = exclude.take(rows)
        if isinstance(candidates, Csr):
            hidden = _exclude_others(hidden, candidates.take(rows), len(item))
        padding = -len(rows) % block_users if block_users else 0
        count = len(rows) + padding
        vectors = np.concatenate([user[rows], np.zeros((padding, item.shape[1]), user.dtype)])
        indptr = np.concatenate([hidden.indptr, np.full(padding, hidden.indptr[-1])])
        nothing = Csr.empty(count)
        eval_slice = EvalSlice(
            users=np.arange(count, dtype=np.int32),
            histories=nothing,
            positives=nothing,
            exclude=Csr(indptr, hidden.indices),
            candidates=pool,
            items=pool,
        )
        lists = top_k(Representations(vectors, item), eval_slice, k, block_users=block_users)
        parts.append(frames.lists_to_frame(lists, users[rows], items))
    return pd.concat(parts, ignore_index=True) if len(parts) > 1 else parts[0]


def _exclude_others(exclude: Csr, candidates: Csr, count: int) -> Csr:
    """For each user, what is excluded and all items that are no candidates."""
    hidden = np.ones((candidates.rows, count), bool)
    hidden[candidates.row_of_entry, candidates.indices] = False
    hidden[exclude.row_of_entry, exclude.indices] = True
    row, item = np.nonzero(hidden)
    return Csr.from_pairs(row, item, candidates.rows)
