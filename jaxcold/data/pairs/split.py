"""The cold-item split, made from a seed.

Source: Meehan and Pauwels, Sparse Contrastive Learning for Content-Based Cold Item Recommendation,
SIGIR 2026, section 4.1.2.
"""

import numpy as np

from jaxcold.data.pairs.dataset import ColdSplit, Interactions
from jaxcold.types import DataError

COLD_FRACTION = 0.2
HELD_OUT_FRACTION = 0.1  # of the warm pairs, for validation, and as much for test


def make_split(interactions: Interactions, seed: int) -> ColdSplit:
    """The cold-item split of the SEMCo paper (4.1.2), from a seed.

    20 % of the items that occur are cold, half of them for validation and half for test. The
    pairs of the others go 80/10/10 into warm training, validation and test; a held-out warm pair
    whose user or item does not occur in training moves to training. Items without any
    interaction belong to no set.

    Args:
        interactions: all pairs.
        seed: of the generator; equal seeds and data give equal splits.

    Returns:
        The split; inside each set pairs keep the order of the interactions.

    Raises:
        DataError: if a set of the split would be empty.
    """
    generator = np.random.default_rng(seed)
    items = generator.permutation(np.unique(interactions.item))
    cold = round(COLD_FRACTION * len(items))
    cold_val, cold_test, warm = np.split(items, [cold // 2, cold])
    set_of_item = np.full(interactions.num_items, -1, np.int8)
    for number, members in enumerate((warm, cold_val, cold_test)):
        set_of_item[members] = number
    set_of_row = set_of_item[interactions.item]

    warm_rows = generator.permutation(np.flatnonzero(set_of_row == 0))
    held_out = round(HELD_OUT_FRACTION * len(warm_rows))
    val, test, train = np.split(warm_rows, [held_out, 2 * held_out])
    user_trained = np.zeros(interactions.num_users, bool)
    item_trained = np.zeros(interactions.num_items, bool)
    user_trained[interactions.user[train]] = True
    item_trained[interactions.item[train]] = True

    def has_training_rows(rows: np.ndarray) -> np.ndarray:
        return user_trained[interactions.user[rows]] & item_trained[interactions.item[rows]]

    moved = [rows[~has_training_rows(rows)] for rows in (val, test)]
    rows_of = {
        "warm_train": np.concatenate([train, *moved]),
        "warm_val": val[has_training_rows(val)],
        "warm_test": test[has_training_rows(test)],
        "cold_val": np.flatnonzero(set_of_row == 1),
        "cold_test": np.flatnonzero(set_of_row == 2),
    }
    empty = [set_name for set_name, rows in rows_of.items() if not len(rows)]
    if empty:
        raise DataError(
            f"split: {len(interactions.item)} interactions of {len(items)} items leave "
            f"{empty[0]} empty; give more data or a split_file"
        )
    pairs = interactions.pairs()
    return ColdSplit(
        train=interactions.take(np.sort(rows_of["warm_train"])),
        warm_items=np.sort(warm),
        cold_val_items=np.sort(cold_val),
        cold_test_items=np.sort(cold_test),
        pairs={set_name: pairs[np.sort(rows)] for set_name, rows in rows_of.items()},
    )
