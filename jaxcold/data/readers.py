"""One function per on-disk format; each checks its file, so that later code need not.

An error is one :class:`DataError` line: the place (file, and its line, counted from 1), what is
wrong, and the remedy. No pickle is ever read.
"""

import re
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path

import numpy as np
import pandas as pd

from jaxcold.data.pairs.dataset import SETS, ColdSplit, ContentFeatures, Interactions
from jaxcold.data.pairs.split_file import check_split
from jaxcold.data.text_tables import (
    ONE_HOST,
    Hosts,
    check_ids,
    check_used,
    line_of,
    read_integers,
)
from jaxcold.types import DataError, MissingDataError

_CHUNK_BYTES = 1 << 24
SPLIT_FILES = {
    "warm_train": "warm_train.csv",
    "warm_val": "warm_val.csv",
    "warm_test": "warm_test.csv",
    "cold_val": "cold_item_val.csv",
    "cold_test": "cold_item_test.csv",
}


def require(root: Path, files: Iterable[str], published: str = "") -> None:
    """Stops with one line when files of a data set are absent.

    Args:
        root: folder of the data set.
        files: paths relative to it.
        published: where they can be had, for the message.

    Raises:
        MissingDataError: naming every missing file, where it is published and where to put it.
    """
    missing = [name for name in files if not (root / name).is_file()]
    if missing:
        source = f"; published at {published}" if published else ""
        raise MissingDataError(
            f"{root}: {', '.join(missing)} not found{source}; put the files into that folder, or "
            "name another one by data.root or $JAXCOLD_DATA"
        )


def read_interactions(
    path: Path,
    duplicates: str = "error",
    allow_unused: bool = False,
    feature_rows: int | None = None,
    hosts: Hosts = ONE_HOST,
) -> Interactions:
    """Reads an ``.inter`` file: tab separated, header ``userID itemID rating timestamp``.

    Other columns are ignored, and so is the rating: a row is an interaction. Timestamps that are
    absent or all equal give no order and hence ``time=None``.

    Args:
        path: the file.
        duplicates: "error", or "drop" to keep the first row of each pair.
        allow_unused: accept ids below the largest that occur in no row.
        feature_rows: rows of the feature files, which item ids must not exceed.
        hosts: that read the file together.

    Raises:
        DataError: for anything but a table of distinct pairs of ids counted from 0.
    """
    if duplicates not in ("error", "drop"):
        raise DataError(f"data.duplicates={duplicates!r}: must be 'error' or 'drop'")
    table = read_integers(path, "\t", ("userID", "itemID"), ("timestamp",), hosts)
    user, item, time = table["userID"], table["itemID"], table.get("timestamp")
    check_ids(path, "userID", user)
    check_ids(path, "itemID", item, feature_rows)
    repeated = pd.Series(user * 2**31 + item).duplicated().to_numpy()
    if repeated.any() and duplicates == "error":
        row = int(np.argmax(repeated))
        first = int(np.argmax((user == user[row]) & (item == item[row])))
        raise DataError(
            f"{path}: line {line_of(path, row)}: userID {user[row]} with itemID {item[row]} "
            f"occurs in line {line_of(path, first)} already; remove one of the two, or set "
            "data.duplicates=drop to keep the first"
        )
    user, item = user[~repeated], item[~repeated]
    if time is not None:
        time = None if (time == time[0]).all() else time[~repeated]
    if not allow_unused:
        check_used(path, "userID", user)
        check_used(path, "itemID", item)
    return Interactions(
        user.astype(np.int32), item.astype(np.int32), int(user.max()) + 1, int(item.max()) + 1, time
    )


def read_authors_split(
    root: Path,
    allow_unused: bool = False,
    published: str = "",
    feature_rows: int | None = None,
    hosts: Hosts = ONE_HOST,
) -> tuple[Interactions, ColdSplit]:
    """Reads ``cold_item/*.csv``, the layout of the SEMCo and ColdRec authors.

    Five comma separated files with header ``user,item``. The pickle beside them is not read:
    all that it holds follows from the tables.

    Args:
        root: folder that holds ``cold_item``.
        allow_unused: see :func:`read_interactions`.
        published: where the files can be had, for the message.
        feature_rows: see :func:`read_interactions`.
        hosts: that read the files together.

    Raises:
        DataError: if a file is missing, malformed, or contradicts another.
    """
    folder = root / "cold_item"
    require(folder, SPLIT_FILES.values(), published)
    pairs = {}
    for set_name, name in SPLIT_FILES.items():
        table = read_integers(folder / name, ",", ("user", "item"), hosts=hosts)
        check_ids(folder / name, "user", table["user"])
        check_ids(folder / name, "item", table["item"], feature_rows)
        pairs[set_name] = np.stack([table["user"], table["item"]], axis=1)
    user, item = np.concatenate(list(pairs.values())).T
    if not allow_unused:
        check_used(folder / "*.csv", "user", user)
        check_used(folder / "*.csv", "item", item)
    repeated = pd.Series(user * 2**31 + item).duplicated().to_numpy()
    everything = Interactions(
        user[~repeated].astype(np.int32),
        item[~repeated].astype(np.int32),
        int(user.max()) + 1,
        int(item.max()) + 1,
    )
    item_sets = {
        "warm_items": np.unique(np.concatenate([pairs[p][:, 1] for p in SETS[:3]])),
        "cold_val_items": np.unique(pairs["cold_val"][:, 1]),
        "cold_test_items": np.unique(pairs["cold_test"][:, 1]),
    }

    def place(set_name: str, row: int) -> str:
        if set_name in SPLIT_FILES:
            path = folder / SPLIT_FILES[set_name]
            return f"{path}: line {line_of(path, row)}"
        return f"{folder}: {set_name}"

    return everything, check_split(pairs, everything, place, item_sets)


def find_features(
    folder: Path, pattern: str, modes: Sequence[str] | None, published: str = ""
) -> dict[str, Path]:
    """Content mode -> feature file, in the order of ``modes``, else of the file names.

    The mode's name is the file's, less ``_feat.npy`` or ``.npy``.

    Raises:
        DataError: if a named mode has no file, or there is none at all.
    """
    files = {
        re.sub(r"(_feat)?\.npy$", "", path.name): path for path in sorted(folder.glob(pattern))
    }
    source = f"; published at {published}" if published else ""
    if not files:
        raise DataError(
            f"{folder}: no content, that is no file {pattern}{source}; put the feature files there"
        )
    if modes is None:
        return files
    if not modes or len(set(modes)) != len(modes):
        raise DataError(f"data.modes={list(modes)}: name each mode once, of {', '.join(files)}")
    unknown = [mode for mode in modes if mode not in files]
    if unknown:
        raise DataError(
            f"{folder}: content mode {unknown[0]} has no file {pattern.replace('*', unknown[0])}"
            f"{source}; put it there, or choose data.modes from {', '.join(files)}"
        )
    return {mode: files[mode] for mode in modes}


def read_features(
    files: Mapping[str, Path],
    num_items: int,
    mmap: bool = False,
    missing_modes: bool = False,
    allow_unused: bool = False,
) -> ContentFeatures:
    """Reads one ``.npy`` per content mode: floats [I, D], row i for item i.

    Args:
        files: mode -> file.
        num_items: items of the interactions.
        mmap: leave the tables on disk; they are checked in chunks and read when used.
        missing_modes: a row of zeros, or of NaN alone, says that the item lacks the mode. When
            False every row counts: zeros are a value (unit norm leaves them zero) and NaN an
            error.
        allow_unused: accept rows beyond the items of the interactions.

    Returns:
        The tables in their stored dtype. Missing rows are zero; those of NaN are made so, which
        a table that stays on disk cannot be.

    Raises:
        DataError: unless the tables are finite, of equal length and one row per item.
    """
    tables, present = {}, {}
    for mode, path in files.items():
        table = _open_table(path)
        if len(table) != num_items and not (allow_unused and len(table) > num_items):
            raise DataError(
                f"{path}: has {len(table)} rows for {num_items} items; row i must be the features "
                "of item i: add or remove rows"
                + ("" if len(table) < num_items else ", or set data.allow_unused=True")
            )
        present[mode] = _check_rows(path, table, missing_modes, mmap)
        if not mmap:
            table = np.array(table)
            table[~present[mode]] = 0
        tables[mode] = table
    lengths = {mode: len(table) for mode, table in tables.items()}
    if len(set(lengths.values())) > 1:
        raise DataError(
            f"{', '.join(map(str, files.values()))}: have {list(lengths.values())} rows; "
            "give every mode one row per item"
        )
    check_present(", ".join(map(str, files.values())), present)
    return ContentFeatures(tables, present)


def count_feature_rows(files: Iterable[Path]) -> int:
    """Rows of the longest of the feature files, of which only the headers are read."""
    return max(len(_open_table(path)) for path in files)


def check_present(place: str, present: Mapping[str, np.ndarray]) -> None:
    """Stops if an item lacks every content mode: nothing could be said about it.

    Raises:
        DataError: naming the first such item.
    """
    anything = np.any(list(present.values()), axis=0)
    if not anything.all():
        raise DataError(
            f"{place}: item {np.argmin(anything)} has no content in any mode (and "
            f"{np.count_nonzero(~anything) - 1} others); give it a row in one, remove the item, "
            "or set data.missing_modes=False to use rows of zeros as they are"
        )


def _open_table(path: Path) -> np.ndarray:
    """The array of an ``.npy`` file, still on disk, known to be floats [I, D].

    Mapping first makes a header that promises more than the file holds an error and not an
    allocation.
    """
    remedy = "write it with numpy.save from a float16, float32 or float64 array"
    try:
        table = np.lib.format.open_memmap(path, mode="r")
    except FileNotFoundError:
        raise DataError(f"{path}: no such file; put the feature file there") from None
    except Exception:  # a spoilt header raises anything, its tokenizer's errors included
        raise DataError(f"{path}: is cut short, empty or no plain .npy array; {remedy}") from None
    if table.dtype.kind != "f" or table.dtype.itemsize > 8:
        raise DataError(f"{path}: holds {table.dtype}; {remedy}")
    if table.ndim != 2 or not table.shape[1]:
        raise DataError(
            f"{path}: has shape {list(table.shape)}, not [items, features]; give it both axes"
        )
    return table


def _check_rows(path: Path, table: np.ndarray, missing_modes: bool, mmap: bool) -> np.ndarray:
    """bool[I]: rows that hold content. Only a chunk of the table is in memory at a time."""
    present = np.ones(len(table), bool)
    step = max(1, _CHUNK_BYTES // (table.itemsize * table.shape[1]))
    for start in range(0, len(table), step):
        chunk = table[start : start + step]
        # float64 beyond float32 would become infinite where models compute.
        finite = np.abs(chunk) <= np.finfo(np.float32).max
        good = finite.all(axis=1)
        if missing_modes:
            absent = ~chunk.any(axis=1)
            if not mmap:
                absent |= np.isnan(chunk).all(axis=1)
            present[start : start + step] = ~absent
            good |= absent
        if not good.all():
            row = int(np.argmin(good))
            column = int(np.argmin(finite[row]))
            if np.isfinite(chunk[row, column]):
                raise DataError(
                    f"{path}: row {start + row} (counted from 0) holds {chunk[row, column]} in "
                    f"column {column}, beyond the range of float32; scale the features"
                )
            if not missing_modes:
                remedy = ", or set data.missing_modes=True if whole rows of NaN mark missing modes"
            elif mmap:
                remedy = ", or zeros in the whole row of an item that lacks the mode"
            else:
                remedy = ", or NaN in the whole row of an item that lacks the mode"
            raise DataError(
                f"{path}: row {start + row} (counted from 0) holds {chunk[row, column]} in column "
                f"{column}; write finite numbers{remedy}"
            )
    return present
