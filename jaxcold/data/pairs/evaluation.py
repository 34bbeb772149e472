"""Evaluation slices of pairs: the users with held-out items of a set, and the items that compete.

Source: Meehan and Pauwels, Sparse Contrastive Learning for Content-Based Cold Item Recommendation,
SIGIR 2026, section 4.1.2.
"""

import numpy as np

from jaxcold.data.pairs.dataset import ColdSplit
from jaxcold.types import Csr, EvalSlice


def slices(split: ColdSplit) -> dict[str, EvalSlice]:
    """The slices by name.

    For SET in val, test:

    - ``SET/warm``: all warm items compete, less the user's training items.
    - ``SET/cold``: all cold items compete, validation and test together.
    - ``SET/cold_own``: only the cold items of the set compete.

    Every slice has the training histories of all users: row u is user u. Exposure is counted over
    the warm items, or over the cold items of the set.
    """
    histories = split.train.by_user()
    result = {}
    for name, own in (("val", split.cold_val_items), ("test", split.cold_test_items)):
        warm, cold = split.pairs[f"warm_{name}"], split.pairs[f"cold_{name}"]
        result[f"{name}/warm"] = _slice(
            warm, histories, split.warm_items, split.warm_items, exclude_history=True
        )
        result[f"{name}/cold"] = _slice(cold, histories, split.cold_items, own)
        result[f"{name}/cold_own"] = _slice(cold, histories, own, own)
    return result


def _slice(
    pairs: np.ndarray,
    histories: Csr,
    candidates: np.ndarray,
    items: np.ndarray,
    *,
    exclude_history: bool = False,
) -> EvalSlice:
    pairs = pairs[np.lexsort((pairs[:, 1], pairs[:, 0]))]
    users, row = np.unique(pairs[:, 0], return_inverse=True)
    positives = Csr.from_pairs(row, pairs[:, 1], len(users))
    exclude = histories.take(users) if exclude_history else Csr.empty(len(users))
    return EvalSlice(users.astype(np.int32), histories, positives, exclude, candidates, items)
