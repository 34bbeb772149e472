"""Writes a user's tables in the layout of the experiments.

python -m experiments.import_data clicks.csv items.csv --user=customer --item=sku --time=when \
    --out=data/shop

CLICKS has a row per click, ITEMS a row per item; both are CSV, TSV or Parquet. The folder gets
NAME.inter, the features of the items, and ids.json, the original ids: reports and saved models use
these. It is whole or not there at all.

- Users and items are numbered from 0 in the order of their ids. Ids that are all whole numbers stay
  numbers.
- The numeric columns of ITEMS are the features; others are named and left out, and so are items
  that nobody clicked. Without a numeric column there are no features: encode a column of text by
  experiments.encode_text.
- --time may hold whole numbers or dates. Without --time the rows are in the order of time.
- --min_rating keeps the clicks whose column --rating is at least that.
- Rows with the same user, item and time count once.
"""

import pathlib
import secrets
import shutil
from collections.abc import Sequence

import numpy as np
import pandas as pd
from absl import app, flags

from experiments import main, tables
from experiments.tables import row_of
from jaxcold.data.original_ids import write_ids
from jaxcold.types import DataError

_USER = flags.DEFINE_string("user", "user", "Column of CLICKS with the users.")
_ITEM = flags.DEFINE_string("item", "item", "Column of both tables with the items.")
_TIME = flags.DEFINE_string("time", None, "Column of CLICKS with the times.")
_RATING = flags.DEFINE_string("rating", "rating", "Column of CLICKS that --min_rating reads.")
_MIN_RATING = flags.DEFINE_float("min_rating", None, "Keep clicks that are rated at least this.")
_MODE = flags.DEFINE_string("mode", "text", "The features become MODE_feat.npy.")
_OUT = flags.DEFINE_string("out", None, "Folder to write; its last part is the data set's name.")

EXAMPLE = (
    "python -m experiments.import_data clicks.csv items.csv --user=COLUMN --item=COLUMN "
    "--time=COLUMN --out=DIR"
)


def import_data(
    clicks_path: pathlib.Path,
    items_path: pathlib.Path,
    out: pathlib.Path,
    *,
    user: str = "user",
    item: str = "item",
    time: str | None = None,
    rating: str = "rating",
    min_rating: float | None = None,
    mode: str = "text",
) -> list[str]:
    """Writes the folder of a data set; see the head of this file.

    Args:
        clicks_path: table with the columns of `user`, `item` and, if named, `time` and `rating`.
        items_path: table with the column of `item`; its numeric columns are the features.
        out: a folder that is not there yet, or empty.
        user: column.
        item: column.
        time: column; None: the order of the rows.
        rating: column that `min_rating` reads.
        min_rating: keeps rows rated at least this; None: all.
        mode: of the content.

    Returns:
        Lines that say what was read and what was left out.

    Raises:
        DataError: one line: the file, the row or column, and the remedy.
    """
    if out.exists() and (not out.is_dir() or any(out.iterdir())):
        raise DataError(f"--out={out}: is there already; name a new folder")
    if not mode or "/" in mode:
        raise DataError(f"--mode={mode}: must be a word")
    log, lines = _clicks(clicks_path, user, item, time, rating, min_rating)
    items = tables.read(items_path, (item,))
    features, left_out = _features(items_path, items, item)
    lines += left_out
    ids = {}
    log["userID"], ids["user"] = _numbered(log["userID"])
    log["itemID"], ids["item"] = _numbered(log["itemID"])
    row = pd.Index(items[item]).get_indexer(ids["item"].astype(str))
    if (row < 0).any():
        raise DataError(
            f"{items_path}: has no row for {item} {ids['item'][np.argmin(row)]!s} of {clicks_path} "
            f"(and {np.count_nonzero(row < 0) - 1} others); add its row, or remove its clicks"
        )
    if len(row) < len(items):
        lines.append(f"{len(items) - len(row):,} items without clicks are left out")
    _write(out, log, features[row], ids, mode)
    lines.append(
        f"{out}: {len(log):,} clicks of {len(ids['user']):,} users on {len(ids['item']):,} items, "
        f"{features.shape[1]} features"
    )
    if log.duplicated(["userID", "itemID"]).any():
        lines.append("users clicked an item again: pairs need --config.data.duplicates=drop")
    return lines


def _clicks(
    path: pathlib.Path,
    user: str,
    item: str,
    time: str | None,
    rating: str,
    min_rating: float | None,
) -> tuple[pd.DataFrame, list[str]]:
    """The log with the original ids as text, and what to say of it."""
    timed = [] if time is None else [time]
    rated = [] if min_rating is None else [rating]
    table = tables.read(path, (user, item), (*timed, *rated))
    lines = [f"{path}: {len(table):,} rows"]
    when = np.arange(len(table)) if time is None else _times(path, table, time)
    log = pd.DataFrame(
        {"userID": table[user], "itemID": table[item], "rating": 1, "timestamp": when}
    )
    if min_rating is not None:
        log = log[_numbers(path, table, rating) >= min_rating]
        lines.append(f"{len(log):,} of them have a {rating} of at least {min_rating:g}")
    if log.empty:
        raise DataError(f"{path}: no row is left; write one per click, or lower --min_rating")
    distinct = log.drop_duplicates()
    if len(distinct) < len(log):
        lines.append(f"{len(log) - len(distinct):,} rows repeat another one and are left out")
    return distinct, lines


def _numbers(path: pathlib.Path, table: pd.DataFrame, column: str) -> np.ndarray:
    """A column as f64."""
    values = pd.to_numeric(table[column], errors="coerce").to_numpy(np.float64)
    bad = ~np.isfinite(values)
    if bad.any():
        raise DataError(
            f"{path}: row {row_of(bad)}: {column} is '{table[column].iloc[row_of(bad) - 1]}'; "
            "write finite numbers"
        )
    return values


def _times(path: pathlib.Path, table: pd.DataFrame, column: str) -> np.ndarray:
    """i64: whole numbers as they are, dates as microseconds since 1970."""
    values = table[column]
    if not pd.api.types.is_numeric_dtype(values):
        dates = pd.to_datetime(values, errors="coerce", utc=True, format="mixed")
        bad = dates.isna()
        if bad.any():
            raise DataError(
                f"{path}: row {row_of(bad)}: {column} is '{values.iloc[row_of(bad) - 1]}'; write "
                "whole numbers or dates such as 2024-05-01 12:00:00"
            )
        return dates.dt.tz_localize(None).to_numpy("datetime64[us]").astype(np.int64)
    numbers = _numbers(path, table, column)
    bad = (numbers % 1 != 0) | (np.abs(numbers) > 2**62)
    if bad.any():
        raise DataError(
            f"{path}: row {row_of(bad)}: {column} is '{values.iloc[row_of(bad) - 1]}'; write whole "
            "numbers or dates such as 2024-05-01 12:00:00"
        )
    return values.to_numpy().astype(np.int64)


def _features(path: pathlib.Path, table: pd.DataFrame, item: str) -> tuple[np.ndarray, list[str]]:
    """f32[rows, F] of the numeric columns, F may be 0, and what to say of the others."""
    repeated = table[item].duplicated()
    if repeated.any():
        name = table[item].iloc[row_of(repeated) - 1]
        raise DataError(
            f"{path}: row {row_of(repeated)}: {item} {name} is there already; keep one row per item"
        )
    columns = [name for name in table.columns if name != item]
    numeric = [name for name in columns if pd.api.types.is_numeric_dtype(table[name])]
    for name in numeric:
        values = _numbers(path, table, name)
        bad = np.abs(values) > np.finfo(np.float32).max
        if bad.any():
            raise DataError(
                f"{path}: row {row_of(bad)}: {name} is beyond float32; scale the column"
            )
    others = ", ".join(str(name) for name in columns if name not in numeric)
    lines = [f"{path}: {others}: not numeric, left out"] if others else []
    if not numeric:
        lines.append("no features: encode a column by experiments.encode_text into --out")
    return table[numeric].to_numpy(np.float32), lines


def _numbered(ids: pd.Series) -> tuple[np.ndarray, np.ndarray]:
    """Numbers from 0 in the order of the ids, and the ids."""
    values, number = np.unique(tables.to_ids(ids).to_numpy(), return_inverse=True)
    return number, values


def _write(
    out: pathlib.Path,
    log: pd.DataFrame,
    features: np.ndarray,
    ids: dict[str, np.ndarray],
    mode: str,
) -> None:
    """Writes the folder beside its place, then moves it there."""
    out = out.absolute()
    partial = out.with_name(f"{out.name}.{secrets.token_hex(4)}.part")
    try:
        partial.mkdir(parents=True)
        log.to_csv(partial / f"{out.name}.inter", sep="\t", index=False)
        if features.shape[1]:
            np.save(partial / f"{mode}_feat.npy", features, allow_pickle=False)
        write_ids(partial, ids)
        partial.rename(out)
    finally:
        shutil.rmtree(partial, ignore_errors=True)


def _command(argv: Sequence[str]) -> int:
    if len(argv) != 3 or not _OUT.value:
        return main.stop(f"a table of clicks, one of items, and --out are required: {EXAMPLE}")
    clicks, items, out = (pathlib.Path(value) for value in (*argv[1:], _OUT.value))

    def job() -> None:
        lines = import_data(
            clicks,
            items,
            out,
            user=_USER.value,
            item=_ITEM.value,
            time=_TIME.value,
            rating=_RATING.value,
            min_rating=_MIN_RATING.value,
            mode=_MODE.value,
        )
        print("\n".join(lines))
        print(
            f"now: python -m experiments.main --config=experiments/CONFIG.py --config.data.name="
            f"{out.name} --config.data.root={out} --workdir=DIR"
        )

    return main.answer(job, DataError)


if __name__ == "__main__":
    app.run(_command, flags_parser=main.parse_flags)
