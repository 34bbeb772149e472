"""Tables of users on disk: CSV, TSV and Parquet files with columns of ids."""

import pathlib
from collections.abc import Sequence

import numpy as np
import pandas as pd

from jaxcold.types import DataError

SEPARATORS = {".csv": ",", ".tsv": "\t", ".tab": "\t", ".inter": "\t", ".txt": "\t"}


def read(path: pathlib.Path, ids: Sequence[str], others: Sequence[str] = ()) -> pd.DataFrame:
    """A table on disk.

    Args:
        path: a CSV, TSV or Parquet file.
        ids: columns of ids, which are read as text, every one of them there.
        others: columns that the table has to have.

    Raises:
        DataError: one line: the file, the row or column, and the remedy.
    """
    if not path.is_file():
        raise DataError(f"{path}: no such file; name a table")
    text = dict.fromkeys(ids, str)
    try:
        if path.suffix == ".parquet":
            table = pd.read_parquet(path)
        elif path.suffix in SEPARATORS:
            table = pd.read_csv(path, sep=SEPARATORS[path.suffix], dtype=text)
        else:
            known = ", ".join((*SEPARATORS, ".parquet"))
            raise DataError(f"{path}: has to end in one of {known}")
    except ImportError:
        raise DataError(f'{path}: needs pyarrow; pip install ".[parquet]"') from None
    except (ValueError, OSError) as error:  # pandas' and pyarrow's errors among them
        if isinstance(error, DataError):
            raise
        raise DataError(f"{path}: cannot be read ({' '.join(str(error).split())})") from None
    missing = [name for name in (*ids, *others) if name not in table.columns]
    if missing:
        columns = ", ".join(map(str, table.columns[:20]))
        raise DataError(f"{path}: has no column {missing[0]}; it has {columns}")
    for name in ids:
        absent = table[name].isna()
        if absent.any():
            raise DataError(
                f"{path}: row {row_of(absent)}: {name} is empty; fill it in or remove it"
            )
        table[name] = table[name].astype(str)
    return table


def row_of(bad: pd.Series | np.ndarray) -> int:
    """The first row at fault, counted from 1 without the header."""
    return int(np.argmax(np.asarray(bad))) + 1


def to_ids(ids: pd.Series) -> pd.Series:
    """Ids that were read as text, as whole numbers if all of them are: "007" is none."""
    try:
        numbers = ids.astype(np.int64)
    except (ValueError, OverflowError):
        return ids
    return numbers if (numbers.astype(str) == ids).all() else ids
