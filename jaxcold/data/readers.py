"""One function per on-disk format; each checks what it reads once, so that nobody checks again.

Every complaint is one :class:`DataError` line: the place (file, and the line of it, counted from
1), what is wrong, and what to do about it. No pickle is ever read.
"""

import csv
import io
import os
import re
import warnings
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, NoReturn

import jax
import numpy as np
import pandas as pd

from jaxcold import parallel
from jaxcold.data.pairs.dataset import PARTS, ColdSplit, ContentFeatures, Interactions
from jaxcold.data.pairs.split import checked_split
from jaxcold.types import DataError, MissingDataError

_CHUNK_BYTES = 1 << 24
SEPARATORS = {"\t": "tabs", ",": "commas", ";": "semicolons", " ": "spaces", "|": "bars"}
_PART_FILES = {
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
    path: Path, duplicates: str = "error", allow_unused: bool = False
) -> Interactions:
    """Reads an ``.inter`` file: tab separated, header ``userID itemID rating timestamp``.

    Other columns are ignored, and so is the rating: a row is an interaction. Timestamps that are
    absent or all equal say nothing about order and give ``time=None``.

    Args:
        path: the file.
        duplicates: "error", or "drop" to keep the first row of each pair.
        allow_unused: take ids below the largest that no row mentions for users or items without
            interactions, instead of for a mistake.

    Raises:
        DataError: for anything but a table of distinct pairs of ids counted from 0.
    """
    if duplicates not in ("error", "drop"):
        raise DataError(f"data.duplicates={duplicates!r}: must be 'error' or 'drop'")
    table = read_integers(path, "\t", ("userID", "itemID"), optional=("timestamp",))
    user, item, time = table["userID"], table["itemID"], table.get("timestamp")
    check_ids(path, "userID", user)
    check_ids(path, "itemID", item)
    repeated = pd.Series(user * 2**31 + item).duplicated().to_numpy()
    if repeated.any() and duplicates == "error":
        row = int(np.argmax(repeated))
        first = int(np.argmax((user == user[row]) & (item == item[row])))
        raise DataError(
            f"{path}: line {_line_of(path, row)}: userID {user[row]} with itemID {item[row]} "
            f"stands in line {_line_of(path, first)} already; remove one of the two, or set "
            "data.duplicates=drop to keep the first"
        )
    user, item = user[~repeated], item[~repeated]
    if time is not None:
        time = None if (time == time[0]).all() else time[~repeated]
    if not allow_unused:
        _check_used(path, "userID", user)
        _check_used(path, "itemID", item)
    return Interactions(
        user.astype(np.int32), item.astype(np.int32), int(user.max()) + 1, int(item.max()) + 1, time
    )


def read_authors_split(
    root: Path, allow_unused: bool = False, published: str = ""
) -> tuple[Interactions, ColdSplit]:
    """Reads ``cold_item/*.csv``, the layout of the SEMCo and ColdRec authors.

    Five comma separated files with header ``user,item``. The pickle beside them is not read:
    all that it holds follows from the tables.

    Raises:
        DataError: if a file is missing, malformed, or contradicts another.
    """
    folder = root / "cold_item"
    require(folder, _PART_FILES.values(), published)
    pairs = {}
    for part, name in _PART_FILES.items():
        table = read_integers(folder / name, ",", ("user", "item"))
        for field, ids in table.items():
            check_ids(folder / name, field, ids)
        pairs[part] = np.stack([table["user"], table["item"]], axis=1)
    user, item = np.concatenate(list(pairs.values())).T
    if not allow_unused:
        _check_used(folder / "*.csv", "user", user)
        _check_used(folder / "*.csv", "item", item)
    repeated = pd.Series(user * 2**31 + item).duplicated().to_numpy()
    everything = Interactions(
        user[~repeated].astype(np.int32),
        item[~repeated].astype(np.int32),
        int(user.max()) + 1,
        int(item.max()) + 1,
    )
    item_sets = {
        "warm_items": np.unique(np.concatenate([pairs[p][:, 1] for p in PARTS[:3]])),
        "cold_val_items": np.unique(pairs["cold_val"][:, 1]),
        "cold_test_items": np.unique(pairs["cold_test"][:, 1]),
    }

    def place(part: str, row: int) -> str:
        if part in _PART_FILES:
            path = folder / _PART_FILES[part]
            return f"{path}: line {_line_of(path, row)}"
        return f"{folder}: {part}"

    return everything, checked_split(pairs, everything, place, item_sets)


def find_features(
    folder: Path, pattern: str, modes: Sequence[str] | None, published: str = ""
) -> dict[str, Path]:
    """Content mode -> feature file, in the order of ``modes``, else of the file names.

    The mode's name is the file's, less ``_feat.npy`` or ``.npy``.

    Raises:
        DataError: if a named mode has no file, or there is none at all.
    """
    found = {
        re.sub(r"(_feat)?\.npy$", "", path.name): path for path in sorted(folder.glob(pattern))
    }
    source = f"; published at {published}" if published else ""
    if not found:
        raise DataError(
            f"{folder}: no content, that is no file {pattern}{source}; put the feature files there"
        )
    if modes is None:
        return found
    if not modes or len(set(modes)) != len(modes):
        raise DataError(f"data.modes={list(modes)}: name each mode once, of {', '.join(found)}")
    unknown = [mode for mode in modes if mode not in found]
    if unknown:
        raise DataError(
            f"{folder}: content mode {unknown[0]} has no file {pattern.replace('*', unknown[0])}"
            f"{source}; put it there, or choose data.modes from {', '.join(found)}"
        )
    return {mode: found[mode] for mode in modes}


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
        finite = np.isfinite(chunk)
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


def check_ids(path: Path, field: str, ids: np.ndarray) -> None:
    """Stops at the first id that no table of 32-bit numbers can hold, naming its line."""
    bad = (ids < 0) | (ids >= 2**31)
    if bad.any():
        row = int(np.argmax(bad))
        raise DataError(
            f"{path}: line {_line_of(path, row)}: {field} {ids[row]} is outside 0 .. 2^31 - 1; "
            f"number {field} from 0"
        )


def _check_used(path: Path, field: str, ids: np.ndarray) -> None:
    used = np.unique(ids)
    if len(used) != used[-1] + 1:
        gap = int(np.argmax(used != np.arange(len(used))))
        raise DataError(
            f"{path}: {field} {gap} has no interaction though ids go up to {used[-1]} (and "
            f"{used[-1] - len(used)} others have none); number {field} from 0 without gaps, or "
            "set data.allow_unused=True"
        )


def read_integers(
    path: Path, separator: str, required: Sequence[str], optional: Sequence[str] = ()
) -> dict[str, np.ndarray]:
    """i64 columns of a separated text file with a header line.

    Several hosts read a share of the lines each, and tell one another.
    """
    header = read_header(path, separator, required)
    wanted = [name for name in (*required, *optional) if name in header]
    known: list[np.ndarray] = []
    if jax.process_count() > 1:
        known = _read_in_shares(path, separator, header, wanted)
    if not known:
        try:
            known = _parsed(path, separator, header, wanted)
        except (ValueError, OverflowError, Warning) as error:
            _explain(path, separator, header, wanted, error)
    if not len(known[0]):
        raise DataError(f"{path}: has a header but no rows; write one line per interaction")
    return dict(zip(wanted, known, strict=True))


def _read_in_shares(
    path: Path, separator: str, header: list[str], wanted: list[str]
) -> list[np.ndarray]:
    """The columns, of which this host has read a share; none where a host could not read its own.

    To be called on every host.
    """
    hosts, host = jax.process_count(), jax.process_index()
    with open(path, "rb") as file:
        file.readline()
        begin, end = file.tell(), file.seek(0, os.SEEK_END)

        def edge(host: int) -> int:
            """Where the first line begins that does so in this host's bytes, or after them."""
            if host == 0:
                return begin
            file.seek(begin + (end - begin) * host // hosts - 1)
            file.readline()
            return file.tell()

        first, last = edge(host), edge(host + 1) if host + 1 < hosts else end
        file.seek(first)
        share = io.BytesIO(b"0\n" + file.read(last - first))
    try:
        columns = np.stack(_parsed(share, separator, header, wanted))
    except (ValueError, OverflowError, Warning):
        columns = None
    if any(bad.any() for bad in parallel.all_gather_hosts(np.array([columns is None]))):
        return []  # read as a whole, what is wrong has its line
    assert columns is not None
    return list(np.concatenate(parallel.all_gather_hosts(columns.T)).T)


def _parsed(
    source: Path | io.BytesIO, separator: str, header: list[str], wanted: list[str]
) -> list[np.ndarray]:
    """The wanted columns below the first line."""
    kinds = {name: np.int64 if name in wanted else str for name in header}
    frame = strict_table(source, separator, header, skip=1, dtype=kinds)
    return [frame[name].to_numpy() for name in wanted]


def strict_table(
    source: Path | io.BytesIO, separator: str, names: list[str], skip: int, **options: Any
) -> pd.DataFrame:
    """A separated text file below its first lines; quotes mean nothing.

    Args:
        source: UTF-8 text.
        separator: of the fields.
        names: of the columns.
        skip: lines that are left out.
        **options: more for `pandas.read_csv`.

    Raises:
        ValueError, OverflowError, OSError, Warning: where pandas finds or guesses something odd.
    """
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        return pd.read_csv(
            source,
            sep=separator,
            header=None,
            names=names,
            skiprows=skip,
            index_col=False,
            quoting=csv.QUOTE_NONE,
            encoding="utf-8-sig",
            **options,
        )


def read_header(path: Path, separator: str, required: Sequence[str]) -> list[str]:
    """Names of the columns; the needed ones are among them, each once."""
    try:
        with open(path, encoding="utf-8-sig") as file:
            line = file.readline().rstrip("\n")
    except FileNotFoundError:
        raise DataError(f"{path}: no such file; put the table there") from None
    except UnicodeDecodeError:
        raise DataError(f"{path}: is not UTF-8 text; save the table as plain text") from None
    expected = separator.join(required).replace("\t", "<tab>")
    if not line.strip():
        raise DataError(
            f"{path}: {'line 1 is blank' if os.path.getsize(path) else 'is empty'}; begin the "
            f"file with the header {expected}"
        )
    header = line.split(separator)
    missing = [name for name in required if name not in header]
    if missing:
        for other, plural in SEPARATORS.items():
            if other != separator and set(required) <= set(line.split(other)):
                raise DataError(
                    f"{path}: line 1: columns are separated by {plural}; "
                    f"separate them by {SEPARATORS[separator]}"
                )
        raise DataError(
            f"{path}: line 1: no column {missing[0]} in the header "
            f"{line[:60].replace(separator, ' ')!r}; begin the file with {expected}"
        )
    repeated = [name for name in header if header.count(name) > 1]
    if repeated:
        raise DataError(
            f"{path}: line 1: column {repeated[0]} stands there twice; remove one of them"
        )
    return header


def _explain(
    path: Path, separator: str, header: list[str], wanted: list[str], error: Exception
) -> NoReturn:
    """Finds the line that a fast read choked on."""
    try:
        for number, line in _rows(path):
            fields = line.split(separator)
            if len(fields) != len(header):
                other = [s for s in SEPARATORS if s != separator and s in line]
                found = f", separated by {SEPARATORS[other[0]]}" if other else ""
                raise DataError(
                    f"{path}: line {number}: {len(fields)} fields{found} where the header has "
                    f"{len(header)}; write {len(header)} fields separated by "
                    f"{SEPARATORS[separator]}"
                )
            for name in wanted:
                value = fields[header.index(name)]
                if value.isascii() and value.isdecimal() and len(value) < 19:
                    continue
                whole = re.fullmatch(r"\s*([+-]?\d+)(\.0*)?\s*", value, re.ASCII)
                if not whole:
                    raise DataError(
                        f"{path}: line {number}: {name} {value[:40]!r} is not an integer; "
                        "write whole numbers"
                    )
                if not -(2**63) <= int(whole[1]) < 2**63:
                    raise DataError(
                        f"{path}: line {number}: {name} {value[:40]} does not fit 64 bits; "
                        "write a smaller number"
                    )
    except UnicodeDecodeError:
        raise DataError(f"{path}: is not UTF-8 text; save the table as plain text") from None
    reason = " ".join(str(error).split())
    raise DataError(f"{path}: cannot be read ({reason}); write it again as plain text") from error


def _rows(path: Path) -> Iterable[tuple[int, str]]:
    """(line number, text) of the rows below the header that are not blank."""
    with open(path, encoding="utf-8-sig") as file:
        for number, line in enumerate(file, start=1):
            line = line.rstrip("\n")
            if number > 1 and line:
                yield number, line


def _line_of(path: Path, row: int) -> int:
    """Line, counted from 1, of the row-th row below the header."""
    return next(number for at, (number, _) in enumerate(_rows(path)) if at == row)
