"""The layouts in which sequential logs are published, those of Let It Go? Not Quite among them.

Readers return rows: a frame with columns ``user``, ``item`` and ``time``, in the order of the
file, one row per interaction. A user may take an item again, so no pair is a duplicate here. The
tables that the paper's authors prepared are read by :func:`read_prepared`, content included.

File names and columns were taken from the authors' repository ArtemF42/let-it-go (commit
8f157253) and from the pages of the raw data sets.
"""

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
import pandas as pd

from jaxcold.data import readers, text_tables
from jaxcold.data.sequences import split as sequences
from jaxcold.data.sequences.dataset import SequenceDataset
from jaxcold.data.sources import amazon_m2, s3rec
from jaxcold.data.sources import columns as source_columns
from jaxcold.data.text_tables import ONE_HOST, Hosts
from jaxcold.types import DataError

MIN_PLAY_SECONDS = 60  # a shorter play of a track is no interaction (Zvuk)
BEAUTY_MIN_RATING = 3  # a rating up to it is no interaction (Beauty)
ITEM_LIST = "item_ids.txt"

_PREPARED = {
    "parquet": (
        "train_interactions.parquet",
        "val_interactions.parquet",
        "test_interactions.parquet",
        "ground_truth.parquet",
    ),
    # The authors' preparation of Amazon-M2 writes other names than that of Beauty and Zvuk.
    "csv": ("train_data.csv", "val_data.csv", "test_inputs.csv", "test_target.csv"),
}


def find_files(layout: str, name: str, folder: Path, with_content: bool = True) -> list[Path]:
    """The tables that are read from a folder in one of the layouts, once they have been read.

    Args:
        layout: see :func:`~jaxcold.data.sequences.load.load_sequences`.
        name: of the data set.
        folder: that holds the files.
        with_content: whether the embeddings of prepared tables are read.
    """
    if layout == "inter":
        return [folder / f"{name}.inter"]
    if layout == "s3rec":
        return [folder / s3rec.FILES[name][0]]
    if layout == "zvuk":
        return [folder / "zvuk-interactions.parquet"]
    if layout == "amazon_m2":
        return [folder / file for file in (amazon_m2.TRAIN, amazon_m2.TEST, amazon_m2.TRUTH)]
    if layout == "beauty":
        return sorted(folder.glob("reviews_*.parquet")) or sorted(folder.glob("ratings_*.csv"))
    tables = folder / "processed"
    kind = "csv" if (tables / _PREPARED["csv"][0]).is_file() else "parquet"
    embeddings = [folder / "item_embeddings" / f"embeddings_{s}.npy" for s in ("warm", "cold")]
    return [tables / file for file in _PREPARED[kind]] + (embeddings if with_content else [])


def read_inter(
    path: Path,
    min_rating: float | None = None,
    feature_rows: int | None = None,
    hosts: Hosts = ONE_HOST,
) -> pd.DataFrame:
    """Reads an ``.inter`` file: tab separated, header ``userID itemID rating timestamp``.

    Args:
        path: the file.
        min_rating: keep the rows rated above it; None keeps all and needs no ratings.
        feature_rows: rows of the features, which no item id of any row may exceed.
        hosts: that read the file together.

    Raises:
        DataError: if it is malformed, or its timestamps say nothing about the order.
    """
    table = text_tables.read_integers(path, "\t", ("userID", "itemID", "timestamp"), hosts=hosts)
    user, item, time = (table[field] for field in ("userID", "itemID", "timestamp"))
    text_tables.check_ids(path, "userID", user)
    text_tables.check_ids(path, "itemID", item, feature_rows)
    if len(time) > 1 and (time == time[0]).all():
        raise DataError(
            f"{path}: timestamp is {time[0]} in every row and gives no order; write the time, or "
            "the position in the user's sequence"
        )
    rows = pd.DataFrame({"user": user, "item": item, "time": time})
    if min_rating is None:
        return rows
    header = text_tables.read_header(path, "\t", ("userID", "itemID", "rating", "timestamp"))
    text = source_columns.read_text(path, "\t", header, skip=1)["rating"]
    return rows[source_columns.to_numbers(path, "rating", text, skip=1) > min_rating]


def read_beauty(folder: Path, min_rating: float | None = None, published: str = "") -> pd.DataFrame:
    """Reads Amazon reviews of one category: ``reviews_*.parquet`` or ``ratings_*.csv``.

    The paper starts from the 5-core reviews (198,502 rows of Beauty), columns ``reviewerID``,
    ``asin``, ``overall`` and ``unixReviewTime``. The csv of all ratings has no such core; its
    columns are user, item, rating and timestamp, with or without a header.

    Args:
        folder: holds one such file.
        min_rating: keep the rows rated above it; None means 3, as the paper.
        published: where the file can be had, for the message.

    Raises:
        DataError: if there is no such file, more than one, or it is malformed.
    """
    files = sorted(folder.glob("reviews_*.parquet")) or sorted(folder.glob("ratings_*.csv"))
    if not files:
        readers.require(folder, ["reviews_Beauty_5.parquet or ratings_Beauty.csv"], published)
    if len(files) > 1:
        raise DataError(
            f"{folder}: {files[0].name} and {files[1].name}; leave one of them in the folder"
        )
    path = files[0]
    if path.suffix == ".parquet":
        columns = ("reviewerID", "asin", "overall", "unixReviewTime")
        table = source_columns.read_parquet(path, columns).set_axis(
            ["user", "item", "rating", "time"], axis=1
        )
        for column, field, kinds in (("rating", columns[2], "iuf"), ("time", columns[3], "iu")):
            if table[column].dtype.kind not in kinds:
                raise DataError(f"{path}: {field} holds {table[column].dtype}; write numbers")
    else:
        table = source_columns.read_text(path, ",", ["user", "item", "rating", "time"])
        skip = int(not source_columns.is_number(table["rating"].iloc[0]))
        table = table.iloc[skip:].reset_index(drop=True)
        for column in ("user", "item"):
            blank = np.flatnonzero(table[column] == "")
            if len(blank):
                raise DataError(
                    f"{path}: line {blank[0] + skip + 1}: the {column} is blank; write its id"
                )
        table["rating"] = source_columns.to_numbers(path, "rating", table["rating"], skip)
        table["time"] = source_columns.to_integers(path, "timestamp", table["time"], skip)
    least = BEAUTY_MIN_RATING if min_rating is None else min_rating
    return table.loc[table["rating"] > least, ["user", "item", "time"]]


def read_zvuk(folder: Path, published: str = "") -> pd.DataFrame:
    """Reads ``zvuk-interactions.parquet``: plays of more than 60 seconds.

    Columns ``user_id``, ``track_id``, ``datetime`` and ``play_duration`` in seconds; ``time`` is
    the datetime in its own unit. The file's 245 million rows leave 128 million, about 3 GB.

    Raises:
        DataError: if the file is absent or malformed.
    """
    readers.require(folder, ["zvuk-interactions.parquet"], published)
    path = folder / "zvuk-interactions.parquet"
    table = source_columns.read_parquet(
        path,
        ("user_id", "track_id", "datetime", "play_duration"),
        filters=[("play_duration", ">", float(MIN_PLAY_SECONDS))],
    )
    if table["datetime"].dtype.kind not in "Mi":
        raise DataError(
            f"{path}: datetime holds {table['datetime'].dtype}; write datetimes or integers"
        )
    return pd.DataFrame(
        {
            "user": table["user_id"],
            "item": table["track_id"],
            "time": table["datetime"].astype("int64"),
        }
    )


def read_prepared(
    name: str, folder: Path, with_content: bool = True, published: str = ""
) -> SequenceDataset:
    """Reads the tables that the paper's authors prepared: ``processed/`` and ``item_embeddings/``.

    Four tables, parquet (Beauty, Zvuk) or csv (Amazon-M2), with columns ``user_id``, ``item_id``
    and ``timestamp``; the last one holds one answer per test user, with ``is_cold`` instead of a
    time where it has none. Items are numbered from 1, warm before cold, and so are the rows of
    ``embeddings_warm.npy`` and ``embeddings_cold.npy``. The pickles beside them are not read:
    hence the ids in ``item_ids`` are the published numbers, not those of the raw data.

    Args:
        name: of the data set.
        folder: that holds both folders.
        with_content: whether to read the embeddings.
        published: where the files can be had, for the message.

    Raises:
        DataError: if a file is absent, malformed, or contradicts another.
    """
    tables = folder / "processed"
    kind = "csv" if (tables / _PREPARED["csv"][0]).is_file() else "parquet"
    readers.require(tables, _PREPARED[kind], published)
    paths = [tables / file for file in _PREPARED[kind]]
    train, val, test = (
        _read_prepared_table(path, ("user_id", "item_id", "timestamp")) for path in paths[:3]
    )
    truth = _read_prepared_table(paths[3], ("user_id", "item_id", "is_cold"))
    if not len(val):
        raise DataError(
            f"{paths[1]}: has no rows, a known defect of the published preparation of Amazon-M2; "
            "read the raw sessions with data.layout='amazon_m2'"
        )
    num_warm = _count_ids(paths[0], train["item"], 1)
    _refuse(paths[1], "item_id", val["item"], val["item"] > num_warm, "no training row has it")
    evaluated = pd.concat([test["item"], truth["item"]])
    num_cold = _count_ids(tables, evaluated[evaluated > num_warm], num_warm + 1)
    wrong = truth["is_cold"].astype(bool) != (truth["item"] > num_warm)
    _refuse(paths[3], "item_id", truth["item"], wrong, "is_cold contradicts the training rows")
    twice = truth["user"].duplicated()
    _refuse(paths[3], "user_id", truth["user"], twice, "the user has an answer already")
    unasked = ~test["user"].isin(truth["user"])
    _refuse(paths[2], "user_id", test["user"], unasked, f"{paths[3].name} has no answer for it")
    truth["time"] = np.iinfo(np.int64).max
    everything = pd.concat([test, truth[["user", "item", "time"]]])
    if kind == "csv":
        # Rows of two files of sessions: equal numbers are different users.
        everything["user"] = "test:" + everything["user"].astype(str)
        for rows in (train, val):
            rows["user"] = "train:" + rows["user"].astype(str)
    dataset = sequences.assemble(
        name,
        train,
        val,
        everything,
        warm=np.arange(1, num_warm + 1),
        cold=np.arange(num_warm + 1, num_warm + num_cold + 1),
    )
    statistics = {"interactions": sum(map(len, (train, val, test, truth))), **dataset.statistics}
    content = None
    if with_content:
        content = _read_embeddings(folder / "item_embeddings", num_warm, num_cold, published)
    return replace(dataset, statistics=statistics, content=content)


def read_item_list(folder: Path, rows: int) -> np.ndarray:
    """Reads ``item_ids.txt``: line i is the external id of row i of the feature files.

    Args:
        folder: that holds it, beside the features.
        rows: of the features.

    Returns:
        Text [rows], all different.

    Raises:
        DataError: if it is absent, or not one id per row.
    """
    path = folder / ITEM_LIST
    try:
        ids = path.read_text("utf-8-sig").splitlines()
    except FileNotFoundError:
        raise DataError(
            f"{path}: no such file; write the item id of each row of *_feat.npy, one a line, or "
            "set data.mode='none' to do without content"
        ) from None
    except UnicodeDecodeError:
        raise DataError(f"{path}: is not UTF-8 text; save the ids as plain text") from None
    if len(ids) != rows:
        raise DataError(f"{path}: {len(ids)} ids for {rows} rows of features; write one id per row")
    again = np.flatnonzero(pd.Series(ids).duplicated())
    if len(again):
        raise DataError(
            f"{path}: line {again[0] + 1}: id {ids[again[0]]!r} is there twice; keep one row "
            "of features per item"
        )
    return np.array(ids)


def _read_embeddings(folder: Path, num_warm: int, num_cold: int, published: str) -> np.ndarray:
    """The rows of the warm items, then those of the cold ones."""
    readers.require(folder, ["embeddings_warm.npy", "embeddings_cold.npy"], published)
    parts = [
        readers.read_features({part: folder / f"embeddings_{part}.npy"}, count).tables[part]
        for part, count in (("warm", num_warm), ("cold", num_cold))
    ]
    if parts[0].shape[1] != parts[1].shape[1]:
        raise DataError(
            f"{folder}: embeddings_warm.npy has {parts[0].shape[1]} columns and "
            f"embeddings_cold.npy {parts[1].shape[1]}; take both from the same encoder"
        )
    return np.concatenate(parts)


def _read_prepared_table(path: Path, columns: Sequence[str]) -> pd.DataFrame:
    """Columns user, item and time or is_cold, of integers or flags."""
    if path.suffix == ".parquet":
        table = source_columns.read_parquet(path, columns)
    else:
        table = pd.concat(source_columns.read_csv(path, columns))
        for column in columns:
            if column == "is_cold":
                flags = table[column].str.lower()
                bad = ~flags.isin(["true", "false"])
                _refuse(path, column, table[column], bad, "it is neither True nor False")
                table[column] = flags == "true"
            else:
                table[column] = source_columns.to_integers(path, column, table[column], skip=1)
    for column in ("item_id", columns[2]):
        if table[column].dtype.kind not in ("b" if column == "is_cold" else "iu"):
            raise DataError(
                f"{path}: {column} holds {table[column].dtype}; write "
                + ("true or false" if column == "is_cold" else "integers")
            )
    _refuse(path, "item_id", table["item_id"], table["item_id"] < 1, "items count from 1")
    short = {"user_id": "user", "item_id": "item", "timestamp": "time"}
    return table.rename(columns=short).reset_index(drop=True)


def _refuse(path: Path, field: str, values: pd.Series, bad: pd.Series, reason: str) -> None:
    if bad.any():
        row = int(np.argmax(bad.to_numpy()))
        raise DataError(
            f"{path}: row {row} (counted from 0): {field} {values.iloc[row]}: {reason}; take all "
            "four tables from the same preparation"
        )


def _count_ids(path: Path, items: pd.Series, first: int) -> int:
    """How many ids there are, once they are shown to go on from the first without a gap."""
    used = np.unique(items)
    gaps = np.flatnonzero(used != np.arange(first, first + len(used)))
    if len(gaps):
        raise DataError(
            f"{path}: no row has item_id {first + gaps[0]} though ids go up to {used[-1]}; take "
            "all four tables from the same preparation"
        )
    return len(used)
