"""Separated text files -> checked columns of integers, read by one host or shared by several.

Errors name the file and the line, counted from 1.
"""

import csv
import io
import os
import re
import warnings
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NoReturn

import numpy as np
import pandas as pd

from jaxcold.types import DataError

SEPARATORS = {"\t": "tabs", ",": "commas", ";": "semicolons", " ": "spaces", "|": "bars"}
# Ids may leave gaps, but a table of all ids up to the largest must stay in proportion to the file.
_IDS_PER_ROW = 100
_MIN_IDS = 1_000_000


@dataclass(frozen=True)
class Hosts:
    """The hosts that read a file together, as seen from one of them."""

    count: int
    index: int  # of this host
    all_gather: Callable[[np.ndarray], list[np.ndarray]]  # rows of this host -> those of each


ONE_HOST = Hosts(1, 0, lambda rows: [rows])


def check_ids(path: Path, field: str, ids: np.ndarray, feature_rows: int | None = None) -> None:
    """Stops at the first id that cannot be a row number, naming its line.

    Args:
        path: the file.
        field: its column.
        ids: of all rows of the file, before any filter.
        feature_rows: rows of the feature file that the ids number; None where there is none.

    Raises:
        DataError: for ids that are negative, that count from 1, or that are beyond the rows.
    """
    bad = (ids < 0) | (ids >= 2**31)
    if bad.any():
        row = int(np.argmax(bad))
        raise DataError(
            f"{path}: line {line_of(path, row)}: {field} {ids[row]} is outside 0 .. 2^31 - 1; "
            f"number {field} from 0"
        )
    row = int(np.argmax(ids))
    last = int(ids[row])
    if feature_rows is not None and last >= feature_rows:
        if last == feature_rows and ids.min() >= 1:
            raise DataError(
                f"{path}: {field} goes from {ids.min()} to {last} for {feature_rows} rows of "
                "features: ids start at 1; subtract 1 from each or add a first row to the features"
            )
        raise DataError(
            f"{path}: line {line_of(path, row)}: {field} {last} has no row in the features, which "
            f"have {feature_rows} (0 .. {feature_rows - 1}); number {field} by those rows, or add "
            "its row"
        )
    limit = max(_MIN_IDS, _IDS_PER_ROW * len(ids))
    if feature_rows is None and last >= limit:
        raise DataError(
            f"{path}: line {line_of(path, row)}: {field} {last} is far beyond the {len(ids)} rows "
            f"of the file; number {field} from 0 without gaps"
        )


def check_used(path: Path, field: str, ids: np.ndarray) -> None:
    """Stops if an id below the largest occurs in no row."""
    used = np.unique(ids)
    if len(used) == used[-1] + 1:
        return
    if used[0] == 1 and len(used) == used[-1]:
        raise DataError(
            f"{path}: {field} goes from 1 to {used[-1]}: ids start at 1; subtract 1 from each, or "
            "set data.allow_unused=True if 0 is an id without interactions"
        )
    gap = int(np.argmax(used != np.arange(len(used))))
    raise DataError(
        f"{path}: {field} {gap} has no interaction though ids go up to {used[-1]} (and "
        f"{used[-1] - len(used)} others have none); number {field} from 0 without gaps, or "
        "set data.allow_unused=True"
    )


def read_integers(
    path: Path,
    separator: str,
    required: Sequence[str],
    optional: Sequence[str] = (),
    hosts: Hosts = ONE_HOST,
) -> dict[str, np.ndarray]:
    """i64 columns of a separated text file with a header line.

    Args:
        path: the file.
        separator: of the fields.
        required: names of columns.
        optional: names of columns that are read where the file has them.
        hosts: each parses its shard of the lines and receives those of the others; to be called
            on every one of them.

    Raises:
        DataError: for a missing column or a value that is no 64-bit integer, with its line.
    """
    header = read_header(path, separator, required)
    names = [name for name in (*required, *optional) if name in header]
    columns: list[np.ndarray] = []
    if hosts.count > 1:
        columns = _read_shards(path, separator, header, names, hosts)
    if not columns:
        try:
            columns = _parse(path, separator, header, names)
        except (ValueError, OverflowError, Warning) as error:
            _raise_at_line(path, separator, header, names, error)
    if not len(columns[0]):
        raise DataError(f"{path}: has a header but no rows; write one line per interaction")
    return dict(zip(names, columns, strict=True))


def _read_shards(
    path: Path, separator: str, header: list[str], names: list[str], hosts: Hosts
) -> list[np.ndarray]:
    """The columns, of which this host parses one shard; [] if a host could not parse its own."""
    with open(path, "rb") as file:
        file.readline()
        begin, end = file.tell(), file.seek(0, os.SEEK_END)

        def edge(host: int) -> int:
            """Offset of the first line that begins at or after the first byte of a host."""
            if host == 0:
                return begin
            file.seek(begin + (end - begin) * host // hosts.count - 1)
            file.readline()
            return file.tell()

        first = edge(hosts.index)
        last = edge(hosts.index + 1) if hosts.index + 1 < hosts.count else end
        file.seek(first)
        shard = io.BytesIO(b"0\n" + file.read(last - first))
    try:
        columns = np.stack(_parse(shard, separator, header, names))
    except (ValueError, OverflowError, Warning):
        columns = None
    if any(failed.any() for failed in hosts.all_gather(np.array([columns is None]))):
        return []  # reading the whole file names the line of the error
    assert columns is not None
    return list(np.concatenate(hosts.all_gather(columns.T)).T)


def _parse(
    source: Path | io.BytesIO, separator: str, header: list[str], names: list[str]
) -> list[np.ndarray]:
    """The named columns below the first line."""
    kinds = {name: np.int64 if name in names else str for name in header}
    frame = strict_table(source, separator, header, skip=1, dtype=kinds)
    return [frame[name].to_numpy() for name in names]


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
        ValueError, OverflowError, OSError, Warning: for what pandas cannot read or has to guess.
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
        raise DataError(f"{path}: line 1: column {repeated[0]} is there twice; remove one of them")
    return header


def _raise_at_line(
    path: Path, separator: str, header: list[str], names: list[str], error: Exception
) -> NoReturn:
    """Raises the error of a failed parse with the line where it is."""
    try:
        for number, line in _iterate_rows(path):
            fields = line.split(separator)
            if len(fields) != len(header):
                other = [s for s in SEPARATORS if s != separator and s in line]
                separated = f", separated by {SEPARATORS[other[0]]}" if other else ""
                raise DataError(
                    f"{path}: line {number}: {len(fields)} fields{separated} where the header has "
                    f"{len(header)}; write {len(header)} fields separated by "
                    f"{SEPARATORS[separator]}"
                )
            for name in names:
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


def _iterate_rows(path: Path) -> Iterable[tuple[int, str]]:
    """(line number, text) of the rows below the header that are not blank."""
    with open(path, encoding="utf-8-sig") as file:
        for number, line in enumerate(file, start=1):
            line = line.rstrip("\n")
            if number > 1 and line:
                yield number, line


def line_of(path: Path, row: int) -> int:
    """Line, counted from 1, of the row-th row below the header."""
    return next(number for at, (number, _) in enumerate(_iterate_rows(path)) if at == row)
