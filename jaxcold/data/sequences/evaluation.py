"""Evaluation slices of sequences: which users get which lists, and what is right.

Four modes follow from two switches: may cold items be recommended, and are they in the histories
that are read. A model without vectors for cold items can only be evaluated with both off.

Source: "Let It Go? Not Quite", section 4, and the code published with it.
"""

import numpy as np

from jaxcold.data.sequences.dataset import EvalSequences, SequenceDataset
from jaxcold.types import Csr, EvalSlice

# Name -> whether cold items are recommended, and whether they are dropped from the histories.
MODES = {
    "open": (True, False),
    "open_warm_input": (True, True),
    "closed": (False, False),
    "closed_warm_input": (False, True),
}
TARGETS = ("total", "warm", "cold")  # all targets, the warm ones, the cold ones


def slices(
    dataset: SequenceDataset, *, cold_vectors: bool = True, padding_item: bool = False
) -> dict[str, EvalSlice]:
    """The slices by name: "val/total", and "test/MODE/TARGETS" (`MODES`, `TARGETS`).

    User r of a slice is row r of the evaluation sequences of its split, in every mode. An item of
    the history is never recommended, so a target in the history is a miss. Users without history
    are in the slice and get no list, which counts as a miss. Slices without users are left out.
    Without cold items all modes are equal, and "open" alone is there.

    Args:
        dataset: the data.
        cold_vectors: whether the model has vectors for cold items.
        padding_item: the item ``num_items``, which is no item, competes too: it does in the code
            published with the paper.
    """
    items = np.arange(dataset.num_items + padding_item, dtype=np.int32)
    warm = np.delete(items, np.s_[dataset.num_warm : dataset.num_items])
    val = dataset.val
    result = {"val/total": _slice(val, val.history, warm, np.arange(len(val.target)))}
    test = dataset.test
    is_cold = test.target >= dataset.num_warm
    histories = {False: test.history, True: without_cold(test.history, dataset.num_warm)}
    targets = {"total": np.full(len(is_cold), True), "warm": ~is_cold, "cold": is_cold}
    # Where no item is cold the modes are one.
    modes = MODES if dataset.num_items > dataset.num_warm else {"open": MODES["open"]}
    for mode, (cold_recommended, cold_dropped) in modes.items():
        if modes is MODES and not cold_vectors and (cold_recommended or not cold_dropped):
            continue
        candidates = items if cold_recommended else warm
        for name in TARGETS:
            if targets[name].any() or name == "total":
                rows = np.flatnonzero(targets[name])
                read = histories[cold_dropped]
                result[f"test/{mode}/{name}"] = _slice(test, read, candidates, rows)
    return result


def without_cold(history: Csr, num_warm: int) -> Csr:
    """The histories without cold items."""
    kept = history.indices < num_warm
    return Csr.from_pairs(history.row_of_entry[kept], history.indices[kept], history.rows)


def _slice(
    sequences: EvalSequences, histories: Csr, candidates: np.ndarray, rows: np.ndarray
) -> EvalSlice:
    return EvalSlice(
        users=rows.astype(np.int32),
        histories=histories,
        positives=Csr(np.arange(len(rows) + 1), sequences.target[rows]),
        exclude=histories.take(rows),
        candidates=candidates,
        items=candidates,
        list_without_history=False,
    )
