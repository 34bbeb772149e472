"""A split of sequences as one ``.npz``: written from a data set, read back and checked."""

import os
from collections.abc import Mapping
from pathlib import Path

import numpy as np
import pandas as pd

from jaxcold.data.sequences.dataset import EvalSequences, SequenceDataset
from jaxcold.data.sequences.split import COLD_SPLIT_ARRAYS
from jaxcold.files import write_arrays
from jaxcold.types import Csr, DataError

_AGAIN = "write the split again with write_sequence_split"
_ROWS = ("train", "val_history", "test_history")
_ARRAYS = (
    "num_warm",
    "user_ids",
    "item_ids",
    "fact_names",
    "fact_values",
    *(f"{name}_{array}" for name in ("val", "test") for array in ("user", "target")),
    *(f"{rows}_{array}" for rows in _ROWS for array in ("indptr", "indices")),
)


def write_sequence_split(path: str | os.PathLike, dataset: SequenceDataset) -> None:
    """Writes all of a data set but its content as one ``.npz`` of plain arrays.

    The file appears whole or not at all; equal splits give equal bytes.
    """
    arrays = {
        "num_warm": np.array(dataset.num_warm),
        "user_ids": dataset.user_ids,
        "item_ids": dataset.item_ids,
        "fact_names": np.array(list(dataset.statistics), dtype=str),
        "fact_values": np.array(list(dataset.statistics.values()), np.int64),
    }
    for name, sequences in (("val", dataset.val), ("test", dataset.test)):
        arrays |= {f"{name}_user": sequences.user, f"{name}_target": sequences.target}
    sources = (dataset.train, dataset.val.history, dataset.test.history)
    for rows, csr in zip(_ROWS, sources, strict=True):
        arrays |= {f"{rows}_indptr": csr.indptr, f"{rows}_indices": csr.indices}
    write_arrays(path, arrays)


def read_arrays(path: str | os.PathLike) -> dict[str, np.ndarray]:
    """Reads a split file of either kind.

    Returns:
        The arrays of :func:`write_sequence_split`, or the four of
        :data:`~jaxcold.data.sequences.split.COLD_SPLIT_ARRAYS`, each known to be there.

    Raises:
        DataError: if the file is absent, damaged, or of neither kind.
    """
    path = Path(path)
    remedy = "write it with write_sequence_split, or give the arrays " + ", ".join(
        COLD_SPLIT_ARRAYS
    )
    try:
        with open(path, "rb") as file, np.load(file, allow_pickle=False) as archive:
            wanted = COLD_SPLIT_ARRAYS if "cold_items" in archive.files else _ARRAYS
            missing = [name for name in wanted if name not in archive.files]
            arrays = {name: archive[name] for name in wanted if name in archive.files}
    except FileNotFoundError:
        raise DataError(f"{path}: no such split file; unset data.split_file to make one") from None
    except Exception:  # spoilt bytes raise anything, the errors of zipfile and zlib included
        raise DataError(f"{path}: is not a readable .npz of plain arrays; {remedy}") from None
    if missing:
        raise DataError(f"{path}: has no array {missing[0]}; {remedy}")
    return arrays


def training_rows(path: str | os.PathLike) -> tuple[np.ndarray, np.ndarray] | None:
    """External user and item of every training interaction of :func:`write_sequence_split`.

    None where the file is no such split, whatever else it is.
    """
    try:
        with open(path, "rb") as file, np.load(file, allow_pickle=False) as split:
            user, item = split["user_ids"], split["item_ids"]
            indptr, indices = split["train_indptr"], split["train_indices"]
        return user[Csr(indptr, indices).row_of_entry], item[indices]
    except Exception:  # spoilt bytes raise anything; whoever reads the file next says what is wrong
        return None


def checked_cold_split(
    path: str | os.PathLike, arrays: Mapping[str, np.ndarray], rows: pd.DataFrame
) -> Mapping[str, np.ndarray]:
    """The four arrays of a random-cold split, once they are shown to fit the log.

    Raises:
        DataError: unless they are sets of the log's items and users, and no user is in two.
    """
    owner: dict[object, str] = {}
    for name in COLD_SPLIT_ARRAYS:
        ids = arrays[name]
        _check_ids(path, name, ids)
        kind = "item" if name == "cold_items" else "user"
        # By hash: ids of another type are strangers, where a sort would fail.
        strange = np.flatnonzero(~pd.Series(ids).isin(rows[kind].unique()))
        if len(strange):
            raise DataError(
                f"{path}: {name}[{strange[0]}]: {kind} {ids[strange[0]]} has no interaction; "
                "give the split of this data set"
            )
        for row, user in enumerate(ids.tolist() if kind == "user" else ()):
            if owner.setdefault(user, name) != name:
                raise DataError(
                    f"{path}: {name}[{row}]: user {user} is in {owner[user]} already; keep "
                    "one of the two"
                )
    return arrays


def checked_dataset(
    path: str | os.PathLike, name: str, arrays: Mapping[str, np.ndarray], rows: pd.DataFrame
) -> SequenceDataset:
    """The data set, without content, that :func:`write_sequence_split` wrote.

    Args:
        path: of the file, to begin messages with.
        name: of the data set.
        arrays: of the file.
        rows: columns user and item of the log, every pair of the split is among them.

    Raises:
        DataError: if the arrays contradict one another or the log.
    """
    for array in ("user_ids", "item_ids"):
        _check_ids(path, array, arrays[array])
    for array in _ARRAYS:
        if array not in ("user_ids", "item_ids", "fact_names"):
            _check_integers(path, array, arrays[array], 0 if array == "num_warm" else 1)
    num_users, num_items = len(arrays["user_ids"]), len(arrays["item_ids"])
    num_warm = int(arrays["num_warm"])
    if not 0 < num_warm <= num_items:
        raise DataError(f"{path}: num_warm is {num_warm} of {num_items} items; {_AGAIN}")
    if arrays["fact_names"].dtype.kind != "U" or len(arrays["fact_names"]) != len(
        arrays["fact_values"]
    ):
        raise DataError(f"{path}: fact_names are no names of the fact_values; {_AGAIN}")
    train = _csr(path, "train", arrays, num_warm)
    if (train.counts < 2).any() or train.rows > num_users:
        raise DataError(f"{path}: train has {train.rows} rows for {num_users} users; {_AGAIN}")
    read = []
    for split, limit in (("val", num_warm), ("test", num_items)):
        sequences = EvalSequences(
            user=arrays[f"{split}_user"].astype(np.int32),
            history=_csr(path, f"{split}_history", arrays, limit),
            target=arrays[f"{split}_target"].astype(np.int32),
        )
        lengths = {len(sequences.user), sequences.history.rows, len(sequences.target)}
        if len(lengths) > 1 or not len(sequences.user):
            raise DataError(f"{path}: {split} has {sorted(lengths)} sequences; {_AGAIN}")
        _check_range(path, f"{split}_user", arrays[f"{split}_user"], num_users)
        _check_range(path, f"{split}_target", arrays[f"{split}_target"], limit)
        read.append(sequences)
    dataset = SequenceDataset(
        name=name,
        num_warm=num_warm,
        num_items=num_items,
        train=train,
        val=read[0],
        test=read[1],
        content=None,
        user_ids=arrays["user_ids"],
        item_ids=arrays["item_ids"],
        statistics=dict(
            zip(arrays["fact_names"].tolist(), arrays["fact_values"].tolist(), strict=True)
        ),
    )
    _check_pairs(path, dataset, rows)
    return dataset


def _check_pairs(path: str | os.PathLike, dataset: SequenceDataset, rows: pd.DataFrame) -> None:
    """Stops at the first user and item of the split that are no row of the log."""
    known_users, known_items = pd.Index(dataset.user_ids), pd.Index(dataset.item_ids)
    user = known_users.get_indexer(rows["user"])
    item = known_items.get_indexer(rows["item"])
    pairs = np.unique((user * dataset.num_items + item)[(user >= 0) & (item >= 0)])
    for owner, csr in (
        (np.arange(dataset.train.rows), dataset.train),
        (dataset.val.user, dataset.val.history),
        (dataset.test.user, dataset.test.history),
        (dataset.val.user, _one_each(dataset.val.target)),
        (dataset.test.user, _one_each(dataset.test.target)),
    ):
        users = np.repeat(owner.astype(np.int64), csr.counts)
        strange = np.flatnonzero(~np.isin(users * dataset.num_items + csr.indices, pairs))
        if len(strange):
            who = dataset.user_ids[users[strange[0]]]
            what = dataset.item_ids[csr.indices[strange[0]]]
            raise DataError(
                f"{path}: user {who} never took item {what}; give the split of this data set"
            )


def _one_each(values: np.ndarray) -> Csr:
    return Csr(np.arange(len(values) + 1), values)


def _csr(path: str | os.PathLike, name: str, arrays: Mapping[str, np.ndarray], limit: int) -> Csr:
    indptr, indices = arrays[f"{name}_indptr"], arrays[f"{name}_indices"]
    if not len(indptr) or indptr[0] or indptr[-1] != len(indices) or (np.diff(indptr) < 0).any():
        raise DataError(f"{path}: {name}_indptr does not divide {name}_indices; {_AGAIN}")
    _check_range(path, f"{name}_indices", indices, limit)
    return Csr(indptr.astype(np.int64), indices.astype(np.int32))


def _check_range(path: str | os.PathLike, name: str, values: np.ndarray, limit: int) -> None:
    bad = np.flatnonzero((values < 0) | (values >= limit))
    if len(bad):
        raise DataError(
            f"{path}: {name}[{bad[0]}] is {values[bad[0]]}, not in 0 .. {limit - 1}; {_AGAIN}"
        )


def _check_integers(path: str | os.PathLike, name: str, array: np.ndarray, axes: int) -> None:
    if array.dtype.kind not in "iu" or array.ndim != axes:
        raise DataError(
            f"{path}: {name} is {array.dtype}{list(array.shape)}, not "
            f"{'integers [n]' if axes else 'an integer'}; {_AGAIN}"
        )


def _check_ids(path: str | os.PathLike, name: str, ids: np.ndarray) -> None:
    if ids.dtype.kind not in "iuU" or ids.ndim != 1:
        raise DataError(
            f"{path}: {name} is {ids.dtype}{list(ids.shape)}, not ids [n]; write integers or text"
        )
    if not len(ids):
        raise DataError(f"{path}: {name} is empty; every set needs at least one id")
    again = np.flatnonzero(pd.Series(ids).duplicated())
    if len(again):
        raise DataError(f"{path}: {name}[{again[0]}]: {ids[again[0]]} is there twice; name it once")
