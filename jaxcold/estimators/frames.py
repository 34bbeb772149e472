"""Data frames and external ids, checked and turned into arrays that count from 0.

No other package handles external ids.
"""

import warnings
from collections.abc import Collection, Hashable, Iterable, Mapping, Sequence
from typing import Any

import numpy as np
import pandas as pd

from jaxcold.types import Csr, DataError, TopK

# Columns that public logs use for how much a user liked an item.
_FEEDBACK = {
    *("rating", "ratings", "score", "stars", "label", "weight", "weights", "count"),
    *("plays", "play_count", "playcount", "confidence"),
}

Histories = Mapping[Any, Iterable[Hashable]] | Sequence[Iterable[Hashable]] | pd.Series
Candidates = str | Iterable[Hashable] | Mapping[Any, Iterable[Hashable]] | None


def format_ids(what: str, ids: Collection) -> str:
    """The first ids of many as the start of a sentence: "item 3, 5, 7 and 12 more are"."""
    first = ", ".join(map(repr, list(ids)[:3]))
    more = f" and {len(ids) - 3} more" if len(ids) > 3 else ""
    return f"{what} {first}{more} {'is' if len(ids) == 1 else 'are'}"


def to_index(ids: Iterable[Hashable], place: str) -> pd.Index:
    """A flat list of ids as an index; refuses text, tables and nested lists."""
    is_flat = isinstance(ids, Iterable) and not isinstance(
        ids, str | bytes | Mapping | pd.DataFrame
    )
    if not is_flat or hasattr(ids, "tocsr") or getattr(ids, "ndim", 1) != 1:
        given = repr(ids) if isinstance(ids, str | bytes | int | float) else type(ids).__name__
        raise DataError(f"{place}: is a list of ids, not {given}")
    values = list(ids)
    for value in values:
        if isinstance(value, list | set | dict | np.ndarray | pd.Series):
            raise DataError(
                f"{place}: holds a {type(value).__name__} where an id is expected; give a flat "
                "list of ids"
            )
    return pd.Index(values, tupleize_cols=False)


def to_distinct_index(values: Iterable[Hashable], what: str) -> pd.Index:
    """Distinct ids, all whole numbers or all strings, in one dtype whatever they came in.

    Other ids, such as the floats that pandas makes of whole numbers in a column with gaps, are
    refused before training, not when the model is saved.
    """
    index = to_index(values, f"{what} ids")
    kind = pd.api.types.infer_dtype(index, skipna=False)
    if kind not in ("integer", "string"):
        raise DataError(
            f"{what} ids are {kind}; make all of them whole numbers or all of them strings, "
            "for example by astype(str)"
        )
    if index.has_duplicates:
        repeated = index[index.duplicated()].unique()
        raise DataError(f"{format_ids(what, repeated)} given twice; keep one")
    return pd.Index(index.tolist())


def check_new_items(items: pd.Index, ids: Iterable[Hashable]) -> pd.Index:
    """The ids, none of which is among `items`."""
    new = to_distinct_index(ids, "item")
    known = new[new.isin(items)]
    if len(known):
        raise DataError(f"{format_ids('item', known)} known already; an item's content is fixed")
    return new


def lookup_rows(
    known: pd.Index, ids: Iterable[Hashable], place: str, what: str = "item"
) -> np.ndarray:
    """i32[n]: the row of each id.

    Args:
        known: ids by row.
        ids: to look up.
        place: the argument that holds them, for the message.
        what: they identify.

    Raises:
        DataError: naming the ids that are not known.
    """
    index = to_index(ids, place)
    rows = known.get_indexer(index)
    if (rows < 0).any():
        remedy = "add them with add_items, or leave them out" if what == "item" else "leave it out"
        absent = format_ids(what, index[rows < 0].unique())
        raise DataError(f"{place}: {absent} unknown; {remedy}")
    return rows.astype(np.int32)


def match_content(content: pd.Index, items: pd.Index) -> np.ndarray:
    """The row of content of each item of a log."""
    rows = content.get_indexer(items)
    if (rows < 0).any():
        known = ", ".join(map(repr, content[:3].tolist()))
        raise DataError(
            f"interactions: {format_ids('item', items[rows < 0])} without content (content "
            f"holds {known}, ...); give content for it, or drop its interactions"
        )
    return rows


def to_pandas(frame: Any, place: str, index: str | None = None) -> Any:
    """A polars frame or an Arrow table as a pandas frame; all else as it is.

    Args:
        frame: anything.
        place: the argument that holds it, for the message.
        index: column that becomes the index; a pandas frame without it has an index already.

    Raises:
        DataError: for a frame that is not computed yet, or has no such column.
    """
    if hasattr(frame, "collect") and hasattr(frame, "collect_schema"):
        raise DataError(f"{place} is a lazy frame; compute it first, by collect()")
    if isinstance(frame, pd.DataFrame):
        return frame.set_index(index) if index in frame.columns else frame
    if hasattr(frame, "tocsr"):
        return frame
    # Arrow's `columns` are data; polars has names there.
    names = getattr(frame, "column_names", None) or getattr(frame, "columns", None)
    if names is None or not hasattr(frame, "to_pandas"):
        return frame
    # Column by column: polars' own conversion needs pyarrow.
    columns = {name: np.asarray(frame[name].to_numpy()) for name in names}
    if index is None:
        return pd.DataFrame(columns)
    if index not in columns:
        raise DataError(
            f'{place} has no column "{index}" with the item ids; add it, or name the ids by a '
            "pandas index"
        )
    return pd.DataFrame(columns).set_index(index)


def log_names(*, min_rating: float | None, **columns: Any) -> dict[str, str]:
    """Our names of the columns of a log that are read -> the frame's.

    Args:
        min_rating: without one the ratings are not read.
        columns: name of each column; None of one that is not read.

    Raises:
        TypeError: for a name that is not a string.
    """
    names = {}
    for field, name in columns.items():
        if name is not None and not isinstance(name, str):
            raise TypeError(f"{field} is the name of a column, not {name!r:.40}")
        if name is not None and (field != "rating" or min_rating is not None):
            names[field] = name
    return names


def read_log(
    interactions: Any, names: Mapping[str, str], min_rating: float | None = None
) -> pd.DataFrame:
    """The rows of a log that count, with the columns that are needed.

    Args:
        interactions: given, a frame of pandas, polars or Arrow.
        names: our names of the columns that are needed -> the frame's. Of "user", "item", "time",
            "rating" and "weight".
        min_rating: keeps the rows whose "rating" is at least this; unset, all.

    Returns:
        A frame with our names. Rows of weight 0 are left out: they are no clicks.

    Raises:
        DataError: naming a column that is absent or given twice, a rating that is no number, or a
            row with a weight that is negative or not finite.
    """
    interactions = to_pandas(interactions, "interactions")
    wanted = [name for field, name in names.items() if field not in ("rating", "weight")]
    *first, last = (f'"{name}"' for name in wanted)
    if not isinstance(interactions, pd.DataFrame):
        raise DataError(f"interactions is a data frame with columns {', '.join(first)} and {last}")
    for field, name in names.items():
        count = int((interactions.columns == name).sum())
        if not count and name in wanted:
            raise DataError(
                f"interactions is a data frame with columns {', '.join(first)} and {last}; it has "
                f'no "{name}": rename one, or name the column, such as {field}="{name}_id"'
            )
        if count != 1:
            argument = {"rating": "min_rating", "weight": "weight"}.get(field, "")
            remedy = "rename or drop all but one" if count else f"leave {argument} out, or add it"
            raise DataError(f'interactions has {count} columns "{name}"; {remedy}')
    if not len(interactions):
        raise DataError("interactions has no rows; give one per click")
    used = {*names.values()}
    unused = [
        column
        for column in interactions.columns
        if isinstance(column, str) and column.lower() in _FEEDBACK and column not in used
    ]
    if unused:
        quoted = ", ".join(f'"{column}"' for column in unused)
        warnings.warn(
            f"interactions: {quoted} not used: every row counts as one click; filter with "
            "min_rating=, weigh with weight=, or drop the column",
            stacklevel=4,
        )
    log = interactions[[*names.values()]].set_axis([*names], axis=1)
    kept = np.ones(len(log), bool)
    if "weight" in names:
        weight = _to_numbers(log["weight"], names["weight"])
        bad = ~np.isfinite(weight) | (weight < 0)
        if bad.any():
            row = int(np.argmax(bad))
            raise DataError(
                f'interactions: row {row} (counted from 0) has "{names["weight"]}" '
                f"{weight[row]}; a weight is a finite number from 0"
            )
        log["weight"] = weight
        kept &= weight > 0
        if not kept.any():
            raise DataError(
                f'interactions: no "{names["weight"]}" is above 0, so no click counts; give '
                "weights above 0"
            )
    if min_rating is not None:
        rating = _to_numbers(log["rating"], names["rating"])
        if np.isnan(rating).any():
            raise DataError(
                f'interactions: column "{names["rating"]}" holds gaps or text; give a number per '
                "row"
            )
        kept &= rating >= min_rating
        if not kept.any():
            raise DataError(
                f"interactions: no rating reaches min_rating={min_rating:g} (the highest is "
                f"{rating.max():g}); lower it"
            )
    return log if kept.all() else log[kept]


def _to_numbers(column: pd.Series, name: str) -> np.ndarray:
    """f64[n]: a column of real numbers; gaps are NaN."""
    types, dtype = pd.api.types, column.dtype
    if not types.is_numeric_dtype(dtype) or types.is_complex_dtype(dtype):
        raise DataError(
            f'interactions: column "{name}" holds gaps or text ({dtype}); give a number per row'
        )
    return column.to_numpy(np.float64, na_value=np.nan)


def encode_column(
    column: pd.Series, name: str, *, ordered: bool = False
) -> tuple[np.ndarray, pd.Index]:
    """A column as codes from 0, and the value of each code; in ascending order if `ordered`."""
    try:
        codes, values = pd.factorize(column, sort=ordered)
    except TypeError:
        raise DataError(
            f'interactions: column "{name}" holds lists or other objects; give one value per '
            "row, for example by explode"
        ) from None
    if (codes < 0).any():
        raise DataError(
            f"interactions: row {int(np.argmax(codes < 0))} (counted from 0) has no {name}; drop it"
        )
    return codes, pd.Index(values)


def check_times(time: pd.Series, name: str) -> None:
    """Refuses times that give no order: text, boolean, complex, infinite, all equal."""
    types, dtype = pd.api.types, time.dtype
    is_number = types.is_numeric_dtype(dtype) and not (
        types.is_bool_dtype(dtype) or types.is_complex_dtype(dtype)
    )
    if not (is_number or types.is_datetime64_any_dtype(dtype)):
        raise DataError(
            f'interactions: column "{name}" holds {dtype}, not numbers or dates; convert it, for '
            "example by pandas.to_datetime"
        )
    if types.is_float_dtype(dtype):
        infinite = np.isinf(time.to_numpy(np.float64, na_value=np.nan))
        if infinite.any():
            raise DataError(
                f"interactions: row {int(np.argmax(infinite))} (counted from 0) has an infinite "
                "time; drop it"
            )
    if len(time) > 1 and not time.isna().any() and time.nunique() == 1:
        raise DataError(
            f'interactions: column "{name}" holds one value in all rows, which gives no order; '
            "name the column of the real times"
        )


def to_histories(
    histories: Histories, items: pd.Index, unknown: str
) -> tuple[pd.Index, np.ndarray, np.ndarray]:
    """Who the histories belong to, and their entries.

    Args:
        histories: item ids by user, or a list of lists whose users are 0, 1, ...
        items: known ids.
        unknown: "error" or "drop", for items that are not known.

    Returns:
        The users; for each entry in the order given, the row of its user and of its item.

    Raises:
        DataError: naming the user or the items at fault.
    """
    if unknown not in ("error", "drop"):
        raise ValueError(f'unknown is "error" or "drop", not {unknown!r}')
    if isinstance(histories, pd.Series):
        names = pd.Index(histories.index.tolist(), tupleize_cols=False)
        values = histories.tolist()
    elif isinstance(histories, Mapping):
        names = pd.Index(list(histories), tupleize_cols=False)
        values = list(histories.values())
    elif (
        isinstance(histories, str | bytes | pd.DataFrame)
        or not isinstance(histories, Iterable)
        or hasattr(histories, "tocsr")
    ):
        raise DataError(
            "histories is a mapping of users to lists of item ids, or a list of such lists, not "
            f"{type(histories).__name__}; make a dictionary, for example by "
            'log.groupby("user")["item"].agg(list).to_dict()'
        )
    else:
        values = list(histories)
        names = pd.RangeIndex(len(values))
    if names.has_duplicates:
        repeated = names[names.duplicated()].unique()
        raise DataError(f"histories: {format_ids('user', repeated)} given twice; keep one")
    lists = [
        to_index(ids, f"histories[{name!r}]")
        for name, ids in zip(names.tolist(), values, strict=True)
    ]
    ids = to_index([item for entries in lists for item in entries], "histories")
    item = items.get_indexer(ids)
    user = np.repeat(np.arange(len(lists)), [len(entries) for entries in lists])
    known = item >= 0
    if unknown == "error" and not known.all():
        raise DataError(
            f"histories: {format_ids('item', ids[~known].unique())} unknown; add them with "
            'add_items, or leave them out by unknown="drop"'
        )
    return names, user[known], item[known].astype(np.int32)


def to_candidates(
    candidates: Candidates, users: pd.Index, items: pd.Index, warm: np.ndarray
) -> np.ndarray | Csr:
    """The rows of the items that may be recommended, ascending: one list for all, or one per user.

    Args:
        candidates: None or "all", "warm", "cold"; item ids; or a dictionary of item ids by user.
        users: that ask.
        items: known ids.
        warm: bool[I].

    Raises:
        DataError: naming the user or the items at fault.
        ValueError: for another string.
    """
    if candidates is None or isinstance(candidates, str):
        masks = {"all": np.ones(len(items), bool), "warm": warm, "cold": ~warm}
        name = "all" if candidates is None else candidates
        if name not in masks:
            raise ValueError(
                'candidates is "all", "warm", "cold", a list of item ids, or a dictionary of such '
                f"lists by user, not {candidates!r}"
            )
        return np.flatnonzero(masks[name]).astype(np.int32)
    if not isinstance(candidates, Mapping):
        return np.unique(lookup_rows(items, candidates, "candidates"))
    absent = users[[user not in candidates for user in users.tolist()]]
    if len(absent):
        raise DataError(
            f"candidates: {format_ids('user', absent)} without a list; the dictionary needs one "
            "for each user that is asked for"
        )
    rows = [
        np.unique(lookup_rows(items, candidates[user], f"candidates[{user!r}]"))
        for user in users.tolist()
    ]
    indptr = np.cumsum([0, *map(len, rows)], dtype=np.int64)
    return Csr(indptr, np.concatenate([np.zeros(0, np.int32), *rows]).astype(np.int32))


def lists_to_frame(lists: TopK, users: pd.Index, items: pd.Index) -> pd.DataFrame:
    """Lists as rows user, item, rank and score; those of padding users are left out."""
    row, column = np.nonzero(lists.items[: len(users)] >= 0)
    return pd.DataFrame(
        {
            "user": users.take(row),
            "item": items.take(lists.items[row, column]),
            "rank": column + 1,
            "score": lists.scores[row, column],
        }
    )
