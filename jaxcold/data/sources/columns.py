"""Columns of the tables in which sequential logs are published, read strictly."""

import importlib
from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np
import pandas as pd

from jaxcold.data import text_tables
from jaxcold.types import DataError


def read_csv(path: Path, columns: Sequence[str]) -> Iterator[pd.DataFrame]:
    """Named text columns of a csv with quoted fields, in blocks; the index counts its rows."""
    try:
        with pd.read_csv(
            path, dtype=str, keep_default_na=False, chunksize=500_000, encoding="utf-8"
        ) as blocks:
            for block in blocks:
                check_columns(path, block.columns, columns)
                yield block[list(columns)].fillna("")
    except (ValueError, OSError) as error:
        if isinstance(error, DataError):
            raise
        reason = " ".join(str(error).split())
        raise DataError(f"{path}: cannot be read ({reason}); write it again as csv") from None


def read_text(path: Path, separator: str, names: list[str], skip: int = 0) -> pd.DataFrame:
    """Text columns of a separated file; row r is line r + skip + 1."""
    try:
        options = {"dtype": str, "keep_default_na": False, "skip_blank_lines": False}
        table = text_tables.strict_table(path, separator, names, skip, **options)
    except (ValueError, OSError, Warning) as error:
        reason = " ".join(str(error).split())
        raise DataError(
            f"{path}: cannot be read ({reason}); write {len(names)} fields a line, separated by "
            f"{text_tables.SEPARATORS[separator]}"
        ) from None
    if not len(table):
        raise DataError(f"{path}: has no rows; write one line per interaction")
    return table.fillna("")  # a row too short lacks its last fields


def read_parquet(
    path: Path, columns: Sequence[str], filters: list[tuple] | None = None
) -> pd.DataFrame:
    """Named columns of a parquet file, none of them with missing values."""
    try:
        parquet = importlib.import_module("pyarrow.parquet")
    except ImportError:
        raise DataError(
            f"{path}: parquet files are read by pyarrow, which is not installed; "
            "run pip install pyarrow"
        ) from None
    try:
        check_columns(path, parquet.read_schema(path).names, columns)
        table = pd.read_parquet(path, engine="pyarrow", columns=list(columns), filters=filters)
    except DataError:
        raise
    except Exception as error:  # spoilt bytes raise errors of pyarrow, of zlib and of others
        reason = " ".join(str(error).split())[:120]
        raise DataError(f"{path}: is no readable parquet file ({reason}); copy it again") from None
    for column in columns:
        absent = np.flatnonzero(table[column].isna())
        if len(absent):
            raise DataError(
                f"{path}: row {absent[0]} (counted from 0): {column} is missing; fill it in or "
                "remove the row"
            )
    return table[list(columns)]


def check_columns(path: Path, present: Sequence[str] | pd.Index, wanted: Sequence[str]) -> None:
    """Stops unless a table has the columns that are needed, naming the first that is missing."""
    missing = [column for column in wanted if column not in present]
    if missing:
        raise DataError(
            f"{path}: no column {missing[0]} among {', '.join(map(str, present))[:80]}; it needs "
            f"{', '.join(wanted)}"
        )


def is_number(text: str) -> bool:
    """Whether a text is a finite number."""
    return bool(np.isfinite(pd.to_numeric(pd.Series([text]), errors="coerce").iloc[0]))


def to_numbers(path: Path, field: str, text: pd.Series, skip: int = 0) -> np.ndarray:
    """f64 or i64 of a text column whose row r is line r + skip + 1."""
    numbers = pd.to_numeric(text, errors="coerce").to_numpy()
    bad = np.flatnonzero(~np.isfinite(numbers))
    if len(bad):
        raise DataError(
            f"{path}: line {bad[0] + skip + 1}: {field} {text.iloc[bad[0]][:40]!r} is not a "
            "number; write one"
        )
    return numbers


def to_integers(path: Path, field: str, text: pd.Series, skip: int = 0) -> np.ndarray:
    """i64 of a text column whose row r is line r + skip + 1."""
    numbers = to_numbers(path, field, text, skip)
    bad = np.flatnonzero((numbers != np.floor(numbers)) | (np.abs(numbers) >= 2.0**63))
    if len(bad):
        raise DataError(
            f"{path}: line {bad[0] + skip + 1}: {field} {text.iloc[bad[0]][:40]!r} is not a whole "
            "number of 64 bits; write one"
        )
    return numbers.astype(np.int64)
