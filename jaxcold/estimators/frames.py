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
_FLOAT32_MAX = float(np.finfo(np.float32).max)

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
        raise DataError(f"{place}: {format_ids(what, index[rows < 0])} unknown; {remedy}")
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


def check_log(
    interactions: pd.DataFrame, fields: Sequence[str], min_rating: float | None = None
) -> pd.DataFrame:
    """The rows of a log that count.

    Args:
        interactions: given.
        fields: columns that are needed.
        min_rating: keeps the rows whose ``rating`` is at least this; unset, all.

    Raises:
        DataError: naming a column that is absent or given twice, or a rating that is no number.
    """
    if not isinstance(interactions, pd.DataFrame) or not {*fields} <= {*interactions.columns}:
        *first, last = (f'"{field}"' for field in fields)
        raise DataError(f"interactions is a data frame with columns {', '.join(first)} and {last}")
    used = [*fields, *([] if min_rating is None else ["rating"])]
    for field in used:
        count = int((interactions.columns == field).sum())
        if count != 1:
            remedy = "rename or drop all but one" if count else "leave min_rating out, or add it"
            raise DataError(f'interactions has {count} columns "{field}"; {remedy}')
    if not len(interactions):
        raise DataError("interactions has no rows; give one per click")
    unused = [
        column
        for column in interactions.columns
        if isinstance(column, str) and column.lower() in _FEEDBACK and column not in used
    ]
    if unused:
        names = ", ".join(f'"{column}"' for column in unused)
        warnings.warn(
            f"interactions: {names} not used: every row counts as one click; filter with "
            "min_rating=, or drop the column",
            stacklevel=4,
        )
    if min_rating is None:
        return interactions
    rating = interactions["rating"]
    if not pd.api.types.is_numeric_dtype(rating.dtype) or rating.isna().any():
        raise DataError('interactions: column "rating" holds gaps or text; give a number per row')
    kept = interactions[rating >= min_rating]
    if not len(kept):
        raise DataError(
            f"interactions: no rating reaches min_rating={min_rating:g} (the highest is "
            f"{rating.max():g}); lower it"
        )
    return kept


def encode_column(
    interactions: pd.DataFrame, field: str, *, ordered: bool = False
) -> tuple[np.ndarray, pd.Index]:
    """A column as codes from 0, and the value of each code; in ascending order if `ordered`."""
    try:
        codes, values = pd.factorize(interactions[field], sort=ordered)
    except TypeError:
        raise DataError(
            f'interactions: column "{field}" holds lists or other objects; give one value per '
            "row, for example by explode"
        ) from None
    if (codes < 0).any():
        raise DataError(
            f"interactions: row {int(np.argmax(codes < 0))} (counted from 0) has no {field}; "
            "drop it"
        )
    return codes, pd.Index(values)


def check_times(time: pd.Series) -> None:
    """Refuses times that give no order: text, boolean, complex, infinite, all equal."""
    types, dtype = pd.api.types, time.dtype
    is_number = types.is_numeric_dtype(dtype) and not (
        types.is_bool_dtype(dtype) or types.is_complex_dtype(dtype)
    )
    if not (is_number or types.is_datetime64_any_dtype(dtype)):
        raise DataError(
            f'interactions: column "time" holds {dtype}, not numbers or dates; convert it, for '
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
            'interactions: column "time" holds one value in all rows, which gives no order; name '
            "the column of the real times"
        )


def to_column_names(place: str, content: object) -> list[str | int] | None:
    """The column names of a frame, as JSON can hold them; None for an array.

    Raises:
        DataError: for names that repeat, or that are neither strings nor whole numbers.
    """
    if not isinstance(content, pd.DataFrame):
        return None
    names: list[Any] = content.columns.tolist()
    for name in names:
        if not isinstance(name, str | int) or isinstance(name, bool):
            raise DataError(
                f"{place}: column {name!r} is named by neither a string nor a whole number; "
                "rename it"
            )
    if content.columns.has_duplicates:
        repeated = content.columns[content.columns.duplicated()].unique()
        raise DataError(f"{place}: {format_ids('column', repeated)} given twice; rename one")
    return names


def order_columns(place: str, content: Any, names: Sequence[str | int] | None) -> Any:
    """A frame with its columns in the order that the model was trained on; arrays as they are.

    Raises:
        DataError: naming columns that are absent or that training did not have.
    """
    given = to_column_names(place, content)
    if names is None or given is None or given == [*names]:
        return content
    absent = [name for name in names if name not in {*given}]
    unknown = [name for name in given if name not in {*names}]
    if absent or unknown:
        parts = [f"{format_ids('column', absent)} absent"] if absent else []
        parts += [f"{format_ids('column', unknown)} unknown"] if unknown else []
        raise DataError(
            f"{place}: {', '.join(parts)}; the model was trained on {len(names)} columns and "
            "takes the same names"
        )
    return content[[*names]]


def to_table(place: str, content: pd.DataFrame | np.ndarray) -> np.ndarray:
    """[n, F] floats, finite or not, from a frame or an array of numbers."""
    if isinstance(content, pd.DataFrame):
        to_column_names(place, content)
        for column, dtype in content.dtypes.items():
            if not pd.api.types.is_numeric_dtype(dtype):
                raise DataError(f"{place}: column {column!r} holds {dtype}; keep numbers alone")
        if any(pd.api.types.is_complex_dtype(dtype) for dtype in content.dtypes):
            raise DataError(f"{place}: holds complex numbers; keep real numbers alone")
        with np.errstate(over="ignore"):  # `is_finite` refuses what float32 cannot hold
            table = content.to_numpy(np.float32, na_value=np.nan)
    else:
        if hasattr(content, "tocsr"):
            raise DataError(f"{place} is a sparse matrix; give a dense one, by toarray()")
        table = np.asanyarray(content)  # a table that is mapped from a file stays there
    if table.dtype.kind in "iub":
        table = table.astype(np.float32)
    if table.dtype.kind != "f" or table.dtype.itemsize > 8 or table.ndim != 2 or not table.size:
        raise DataError(
            f"{place} is {table.dtype}{list(table.shape)}, not numbers [items, features]"
        )
    return table


def is_finite(table: np.ndarray) -> np.ndarray:
    """bool[n, F]: the value is finite, as float32 too."""
    finite = np.isfinite(table)
    if table.dtype.itemsize > 4:
        finite &= np.abs(table) <= _FLOAT32_MAX
    return finite


def describe_value(content: pd.DataFrame | np.ndarray, row: int, column: int) -> str:
    """A value of content and its column, for a message: "1e+300 in column 3"."""
    table: Any = content.iloc if isinstance(content, pd.DataFrame) else content
    value = float(table[row, column])
    size = ", too large for float32" if np.isfinite(value) else ""
    return f"{value} in column {column}{size}"


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


def to_finite_table(content: pd.DataFrame | np.ndarray) -> np.ndarray:
    """f[n, F]: content as numbers, all of them finite."""
    table = to_table("content", content)
    finite = is_finite(table)
    if not finite.all():
        row, column = (int(at) for at in np.argwhere(~finite)[0])
        place = (
            f"item {content.index[row]!r}" if isinstance(content, pd.DataFrame) else f"row {row}"
        )
        value = describe_value(content, row, column)
        raise DataError(
            f"content: {place} is not finite ({value}, counted from 0); write numbers, or leave "
            "the item out"
        )
    return table
