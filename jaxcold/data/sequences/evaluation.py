"""What a sequential model is asked: who gets which list, and what is right.

Four modes follow from two switches: may cold items be recommended, and are they in the histories
that the model reads. A model without vectors for cold items can only answer with both off.

Source: "Let It Go? Not Quite", section 4, and the code published with it.
"""

import numpy as np

from jaxcold.data.sequences.dataset import SequenceDataset
from jaxcold.types import Csr, EvalSlice

# Name -> whether cold items are recommended, and whether they are dropped from the histories.
MODES = {
    "open": (True, False),
    "open_warm_input": (True, True),
    "closed": (False, False),
    "closed_warm_input": (False, True),
}
WHO = ("total", "warm", "cold")  # all questions, those whose target is warm, those where it is cold


def histories(dataset: SequenceDataset, part: str, *, cold_vectors: bool = True) -> Csr:
    """What the model reads, a row per question of a part.

    Args:
        dataset: the data.
        part: "val"; or "test", where the questions come twice, the second time without cold items.
        cold_vectors: whether the model has vectors for cold items; if not, the rows with them are
            empty, since nobody asks about those.
    """
    if part == "val":
        return dataset.val.history
    whole, warm = dataset.test.history, _warm(dataset.test.history, dataset.num_warm)
    if not cold_vectors:
        whole = Csr(np.zeros_like(whole.indptr), np.zeros(0, np.int32))
    return Csr(
        np.concatenate([whole.indptr, whole.indptr[-1] + warm.indptr[1:]]),
        np.concatenate([whole.indices, warm.indices]),
    )


def slices(
    dataset: SequenceDataset, *, cold_vectors: bool = True, padding: bool = False
) -> dict[str, EvalSlice]:
    """The questions by name: "val/total", and "test/MODE/WHO" (`MODES`, `WHO`).

    Users are rows of `histories` of the part. What a user has had is never recommended, so a
    target in the history is a miss. A user without history gets no list. Where nobody's target is
    cold there is no such slice.

    Args:
        dataset: the data.
        cold_vectors: whether the model has vectors for cold items.
        padding: the item ``num_items``, which is no item, competes too: it does in the code
            published with the paper.
    """
    every = np.arange(dataset.num_items + padding, dtype=np.int32)
    warm = np.delete(every, np.s_[dataset.num_warm : dataset.num_items])
    found = {"val/total": _slice(dataset.val.history, dataset.val.target, warm, 0, None)}
    test = histories(dataset, "test")
    count = len(dataset.test.target)
    cold = dataset.test.target >= dataset.num_warm
    for mode, (recommended, dropped) in MODES.items():
        if not cold_vectors and (recommended or not dropped):
            continue
        first = count if dropped else 0
        read = test.take(np.arange(first, first + count))
        for who in WHO:
            rows = {"total": None, "warm": ~cold, "cold": cold}[who]
            if rows is None or rows.any():
                found[f"test/{mode}/{who}"] = _slice(
                    read, dataset.test.target, every if recommended else warm, first, rows
                )
    return found


def _slice(
    read: Csr, target: np.ndarray, candidates: np.ndarray, first: int, rows: np.ndarray | None
) -> EvalSlice:
    chosen = np.arange(len(target)) if rows is None else np.flatnonzero(rows)
    history = read.take(chosen)
    return EvalSlice(
        users=(first + chosen).astype(np.int32),
        positives=Csr(np.arange(len(chosen) + 1), target[chosen]),
        exclude=_nothing_for_nobody(history, candidates),
        candidates=candidates,
        items=candidates,
    )


def _nothing_for_nobody(history: Csr, candidates: np.ndarray) -> Csr:
    """The histories; an empty one is everything, so that nothing is left to recommend."""

    empty = np.flatnonzero(history.counts == 0)
    row = np.concatenate([history.row_of_entry, np.repeat(empty, len(candidates))])
    value = np.concatenate([history.indices, np.tile(candidates, len(empty))])
    return Csr.from_pairs(row, value, history.rows)


def _warm(history: Csr, num_warm: int) -> Csr:
    """The histories without cold items."""
    kept = history.indices < num_warm
    return Csr.from_pairs(history.row_of_entry[kept], history.indices[kept], history.rows)
