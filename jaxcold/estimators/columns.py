"""Raw columns of a catalogue, such as titles, genres and years, as content that a model takes.

A column of text becomes a mode by TF-IDF and an SVD (`jaxcold.data.text`), one of categories a mode
with a feature per value, and all columns of numbers together the mode "numbers", standardised. What
was learnt from the catalogue is saved with the model and encodes new items.
"""

import dataclasses
import difflib
import warnings
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np
import pandas as pd

from jaxcold.data.content import Scaling, unit_rows
from jaxcold.data.text import TextEncoder, fit_text, to_texts
from jaxcold.estimators import schema
from jaxcold.estimators.frames import format_ids
from jaxcold.types import DataError

KINDS = ("text", "category", "number", "ignore")
NUMBERS = "numbers"  # the mode of all columns of numbers

_MOST_VALUES = 500  # categories of a column
_WEB = ("http://", "https://")


class Column(NamedTuple):
    """A raw column, and what was made of it."""

    name: str | int
    kind: str  # of KINDS
    note: str  # for people
    learnt: Any = None  # of "text" a TextEncoder, of "category" the list of its values


@dataclasses.dataclass(frozen=True, eq=False)
class Encoded:
    """A mode that was made of raw columns."""

    index: pd.Index  # [n] item ids
    table: np.ndarray  # f32[n, F]; NaN rows of items that lack the mode


@dataclasses.dataclass(frozen=True, eq=False)
class RawColumns:
    """How the columns of a frame become modes."""

    columns: Sequence[Column]
    scaling: Scaling  # of the columns of numbers, in their order
    joined: bool  # into one mode

    @property
    def names(self) -> list[str | int]:
        """Of the columns that are read."""
        return [column.name for column in self.columns if column.kind != "ignore"]

    def widths(self, place: str) -> dict[str, int]:
        """Mode -> number of its features.

        Args:
            place: name of the mode that the frame was given as; "" if it had none.
        """
        sizes = {}
        for column in self.columns:
            if column.kind == "text":
                sizes[str(column.name)] = column.learnt.components.shape[1]
            elif column.kind == "category":
                sizes[str(column.name)] = len(column.learnt)
        if len(self.scaling.mean):
            sizes[NUMBERS] = len(self.scaling.mean) + 1
        if self.joined:
            return {place: sum(sizes.values())}
        return {f"{place}/{name}" if place else name: size for name, size in sizes.items()}

    def encode(self, place: str, frame: pd.DataFrame, *, fitting: bool = False) -> dict[str, Any]:
        """The modes of a frame, `Encoded`, by the names that `widths` has.

        An item lacks a mode in which nothing of it is known. A new item of which nothing is known
        in any mode has a row of zeros in all of them, and a warning names it.

        Args:
            place: see `widths`.
            frame: indexed by item ids; columns that the model was not fitted on are left out.
            fitting: leave items of which nothing is known to the caller.

        Raises:
            DataError: naming a column that is absent, or the row and column of a value that does
                not fit.
        """
        absent = [name for name in self.names if name not in frame.columns]
        if absent:
            raise DataError(
                f"{describe_place(place)}: {format_ids('column', absent)} absent; the model was "
                f"fitted on the columns {', '.join(map(str, self.names))}"
            )
        tables = []
        for column in self.columns:
            if column.kind == "text":
                tables.append(column.learnt(read_texts(place, frame, column.name)))
            elif column.kind == "category":
                tables.append(_multi_hot(read_texts(place, frame, column.name), column.learnt))
        known = [table.any(axis=1) for table in tables]
        numbers = [column.name for column in self.columns if column.kind == "number"]
        if numbers:
            values = np.stack([_read_numbers(place, frame, name) for name in numbers], axis=1)
            known.append(~np.isnan(values).all(axis=1))
            scaled = np.nan_to_num(self.scaling(values))  # a gap is the mean
            # Models read unit rows: the 1 keeps what the norm would take away.
            tables.append(np.append(scaled, np.ones((len(scaled), 1), np.float32), axis=1))
        nothing = ~np.any(known, axis=0)
        if nothing.any() and not fitting:
            warnings.warn(
                f"{describe_place(place)}: {format_ids('item', frame.index[nothing])} without a "
                "word, category or number that the model knows, and placed without content",
                stacklevel=5,
            )
            known = [there | nothing for there in known]
            tables = [np.where(nothing[:, None], 0, table) for table in tables]
        if self.joined:
            rows = [
                unit_rows(np.where(k[:, None], t, 0)) for t, k in zip(tables, known, strict=True)
            ]
            tables, known = [np.concatenate(rows, axis=1)], [np.any(known, axis=0)]
        for table, there in zip(tables, known, strict=True):
            table[~there] = np.nan
        named = zip(self.widths(place), tables, strict=True)
        return {mode: Encoded(frame.index, table) for mode, table in named}


def is_raw(frame: pd.DataFrame, kinds: Mapping[str | int, str]) -> bool:
    """Whether a frame holds anything but features: text, categories, or a column with a kind."""
    numeric = pd.api.types.is_numeric_dtype
    return not {*kinds}.isdisjoint(frame.columns) or not all(map(numeric, frame.dtypes))


def check_kinds(kinds: Mapping[str | int, str] | None, names: Sequence[str | int]) -> None:
    """Checks the argument `columns` of a fit.

    Args:
        kinds: given.
        names: of the columns of all frames.

    Raises:
        TypeError, ValueError: for a kind that there is not.
        DataError: for a column that no frame has.
    """
    if kinds is None:
        return
    if not isinstance(kinds, Mapping):
        raise TypeError(f'columns is a dictionary such as {{"title": "text"}}, not {kinds!r:.40}')
    for name, kind in kinds.items():
        if kind not in KINDS:
            raise ValueError(f"columns: {name!r} is one of {', '.join(KINDS)}, not {kind!r:.40}")
        if name not in names:
            close = difflib.get_close_matches(str(name), map(str, names), n=1)
            remedy = f"did you mean {close[0]!r}?" if close else f"known: {list(names)!r:.200}"
            raise DataError(f"columns: content has no column {name!r}; {remedy}")


def fit_columns(
    place: str,
    frame: pd.DataFrame,
    kinds: Mapping[str | int, str],
    *,
    joined: bool,
    seed: int = 0,
) -> RawColumns:
    """Decides what each column of a catalogue is, and learns how to encode it.

    Args:
        place: see `RawColumns.widths`.
        frame: of the catalogue.
        kinds: column -> "text", "category", "number" or "ignore", where that is not left to the
            values. Numbers and dates are numbers. Text with few distinct values, parts separated by
            "|" counted apart, is a category; other text is text, unless it is web addresses.
        joined: into one mode.
        seed: of the SVD.

    Raises:
        DataError: naming the column at fault.
    """
    columns, scales = [], []
    for name in frame.columns:
        kind, why = kinds.get(name), "as told"
        if kind is None:
            kind, why = _decide(place, frame, name)
        column = Column(name, kind, why)
        if kind == "text":
            column = _fit_text(place, frame, column, seed)
        elif kind == "category":
            column = _fit_category(place, frame, column)
        elif kind == "number":
            values = _read_numbers(place, frame, name)
            values = values[~np.isnan(values)]
            if not len(values):
                raise DataError(f"{describe_place(place)}: column {name!r} holds no number")
            deviation = float(values.std())
            scales.append((float(values.mean()), 1 / deviation if deviation > 0 else 0.0))
            note = f"standardised; {_count(len(frame) - len(values), 'gap')}"
            column = column._replace(note=note)
        columns.append(column)
    modes = [str(c.name) for c in columns if c.kind in ("text", "category")]
    modes += [NUMBERS] if scales else []
    if not modes:
        raise DataError(
            f"{describe_place(place)}: no column is content; name one, such as "
            'columns={"title": "text"}'
        )
    if len({*modes}) < len(modes):
        raise DataError(
            f"{describe_place(place)}: two modes would be named alike ({', '.join(modes)}); "
            "rename a column"
        )
    mean, factor = np.array(scales, np.float64).reshape(-1, 2).T
    return RawColumns(columns, Scaling(mean.copy(), factor.copy()), joined)


def describe(raw: Mapping[str, RawColumns]) -> list[str]:
    """A line for each column: what was made of it."""
    return [
        f"{describe_place(place)}: {column.name}: {column.kind}, {column.note}"
        for place, columns in raw.items()
        for column in columns.columns
    ]


def describe_place(mode: str) -> str:
    """How a message names a mode of the argument `content`."""
    return f"content[{mode!r}]" if mode else "content"


def read_texts(place: str, frame: pd.DataFrame, name: str | int) -> list[str]:
    """A column as text; whole numbers that gaps made floats are whole again.

    Raises:
        DataError: for lists and other objects.
    """
    column = frame[name]
    if not isinstance(column, pd.Series):
        raise DataError(f"{describe_place(place)}: column {name!r} is there twice; rename one")
    try:
        return to_texts(map(_number_as_text, column.tolist()))
    except DataError as error:
        raise DataError(
            f"{describe_place(place)}: column {name!r}: {str(error).removeprefix('texts: ')}; "
            'lists are written as "a|b"'
        ) from None


def _number_as_text(value: Any) -> Any:
    if isinstance(value, int | np.integer | np.bool_):
        return str(value)
    if isinstance(value, float | np.floating) and np.isfinite(value):
        return str(int(value) if value == int(value) else value)
    return value


def _read_numbers(place: str, frame: pd.DataFrame, name: str | int) -> np.ndarray:
    """f64[n]: a column of numbers, dates (in days) or text that reads as numbers; gaps are NaN."""
    column = frame[name]
    if isinstance(column, pd.Series) and pd.api.types.is_datetime64_any_dtype(column.dtype):
        since = pd.to_datetime(column, utc=True) - pd.Timestamp(0, tz="UTC")
        return since.dt.total_seconds().to_numpy(np.float64) / 86400
    if isinstance(column, pd.Series) and pd.api.types.is_numeric_dtype(column.dtype):
        if pd.api.types.is_complex_dtype(column.dtype):
            raise DataError(f"{describe_place(place)}: column {name!r} holds complex numbers")
        values, texts = column.to_numpy(np.float64, na_value=np.nan), None
    else:
        texts = read_texts(place, frame, name)
        values = pd.to_numeric(pd.Series(texts, dtype=object), errors="coerce").to_numpy(np.float64)
    bad = ~np.isfinite(values)
    bad &= ~np.isnan(values) if texts is None else np.array([bool(t.strip()) for t in texts])
    bad |= np.abs(np.nan_to_num(values)) > np.finfo(np.float32).max
    if bad.any():
        row = int(np.argmax(bad))
        value = float(values[row]) if texts is None else texts[row]
        raise DataError(
            f"{describe_place(place)}: column {name!r}: row {row} (counted from 0) is "
            f"{value!r:.40}, not a finite number; write one, or leave it empty"
        )
    return values


def _decide(place: str, frame: pd.DataFrame, name: str | int) -> tuple[str, str]:
    """The kind of a column, and why."""
    types, column = pd.api.types, frame[name]
    if not isinstance(column, pd.Series):
        raise DataError(f"{describe_place(place)}: column {name!r} is there twice; rename one")
    if not column.notna().any():
        return "ignore", "it is empty"
    if isinstance(column.dtype, pd.CategoricalDtype) or types.is_bool_dtype(column.dtype):
        return "category", ""
    if types.is_numeric_dtype(column.dtype) or types.is_datetime64_any_dtype(column.dtype):
        if column.nunique() == 1 and column.notna().all():
            return "ignore", "it holds one value"
        return "number", ""
    texts = [text for text in read_texts(place, frame, name) if text.strip()]
    if not texts:
        return "ignore", "it is empty"
    if len({*texts}) == 1 and len(texts) == len(frame) > 1:
        return "ignore", "it holds one value"
    if all(text.startswith(_WEB) for text in texts):
        return "ignore", "it holds web addresses"
    parts = [part for text in texts for part in _split(text)]
    distinct = len({*parts})
    return ("category" if 2 * distinct <= len(parts) and distinct <= _MOST_VALUES else "text"), ""


def _fit_text(place: str, frame: pd.DataFrame, column: Column, seed: int) -> Column:
    texts = read_texts(place, frame, column.name)
    try:
        encoder = fit_text(texts, seed=seed)
    except DataError:
        raise DataError(
            f"{describe_place(place)}: column {column.name!r} holds no word; leave it out by "
            f'columns={{{column.name!r}: "ignore"}}'
        ) from None
    terms, size = encoder.components.shape
    unknown = int((~encoder(texts).any(axis=1)).sum())
    note = f"{_count(terms, 'term')} in {size} numbers; {_count(unknown, 'item')} without a word"
    return column._replace(note=note, learnt=encoder)


def _fit_category(place: str, frame: pd.DataFrame, column: Column) -> Column:
    rows = [{*_split(text)} for text in read_texts(place, frame, column.name)]
    counts = pd.Series([part for row in rows for part in row], dtype=object).value_counts()
    ordered = sorted(counts.index, key=lambda part: (-counts[part], part))
    values = sorted(ordered[:_MOST_VALUES])
    if not values:
        raise DataError(f"{describe_place(place)}: column {column.name!r} holds no category")
    note = f"{_count(len(values), 'value')}; {_count(sum(not row for row in rows), 'gap')}"
    if len(ordered) > len(values):
        note += f"; {len(ordered) - len(values):,} rarer values left out"
    return column._replace(note=note, learnt=values)


def _multi_hot(texts: Sequence[str], values: Sequence[str]) -> np.ndarray:
    """f32[n, values]."""
    numbers = {value: number for number, value in enumerate(values)}
    table = np.zeros((len(texts), len(values)), np.float32)
    for row, text in enumerate(texts):
        for part in _split(text):
            if part in numbers:
                table[row, numbers[part]] = 1
    return table


def _split(text: str) -> list[str]:
    """The values of a cell."""
    return [part for part in map(str.strip, text.split("|")) if part]


def _count(number: int, what: str) -> str:
    return f"{number:,} {what}{'s' * (number > 1)}" if number else f"no {what}s"


def to_saved(raw: Mapping[str, RawColumns]) -> tuple[list[dict[str, Any]], dict[str, np.ndarray]]:
    """Raw columns by the mode that they are given as: what JSON holds of them, and their arrays."""
    listed: list[dict[str, Any]] = []
    arrays: dict[str, np.ndarray] = {}
    for place, (mode, given) in enumerate(raw.items()):
        columns = []
        for number, column in enumerate(given.columns):
            entry = {"name": column.name, "kind": column.kind, "note": column.note}
            if column.kind == "category":
                entry["values"] = column.learnt
            elif column.kind == "text":
                terms = np.frombuffer("\n".join(column.learnt.terms).encode(), np.uint8)
                parts = {
                    "terms": terms,
                    "idf": column.learnt.idf,
                    "components": column.learnt.components,
                }
                arrays |= {f"raw/{place}/{number}/{part}": x for part, x in parts.items()}
            columns.append(entry)
        arrays |= {f"raw/{place}/{part}": x for part, x in given.scaling._asdict().items()}
        listed.append({"mode": mode, "columns": columns, "joined": given.joined})
    return listed, arrays


def from_saved(
    listed: Any, arrays: Mapping[str, np.ndarray], widths: Mapping[str, int]
) -> tuple[dict[str, RawColumns], schema.Schema]:
    """What `to_saved` was given, and the arrays that belong to it, which are still to be checked.

    Args:
        listed: from JSON.
        arrays: of the whole model.
        widths: of its modes.

    Raises:
        ValueError: naming what does not fit.
    """
    raw: dict[str, RawColumns] = {}
    expected: schema.Schema = {}
    if not isinstance(listed, list):
        raise ValueError("raw is not a list")
    for place, entry in enumerate(listed):
        mode, joined = entry["mode"], entry["joined"]
        if not isinstance(mode, str) or mode in raw or type(joined) is not bool:
            raise ValueError("raw: has a mode without a name of its own")
        columns: list[Column] = []
        for number, saved in enumerate(entry["columns"]):
            column, shapes = _read_column(saved, arrays, f"raw/{place}/{number}")
            if column.name in [c.name for c in columns]:
                raise ValueError("raw: has two columns of one name")
            expected |= shapes
            columns.append(column)
        count = sum(column.kind == "number" for column in columns)
        parts = {part: f"raw/{place}/{part}" for part in Scaling._fields}
        expected |= dict.fromkeys(parts.values(), ((count,), "float64"))
        scaling = Scaling(**{part: arrays[name] for part, name in parts.items()})
        if scaling.mean.shape != (count,):
            raise ValueError(f"raw: {count} columns of numbers do not fit the arrays")
        raw[mode] = RawColumns(columns, scaling, joined)
        made = raw[mode].widths(mode)
        if not made or any(widths.get(name) != width for name, width in made.items()):
            raise ValueError("raw: its columns do not make the modes")
    return raw, expected


def _read_column(
    saved: Any, arrays: Mapping[str, np.ndarray], prefix: str
) -> tuple[Column, schema.Schema]:
    name, kind, note = saved["name"], saved["kind"], saved["note"]
    if type(name) not in (str, int) or not isinstance(note, str) or kind not in KINDS:
        raise ValueError("raw: has a column without a name, kind and note")
    if kind == "category":
        values = saved["values"]
        is_list = isinstance(values, list) and all(isinstance(value, str) for value in values)
        if not is_list or not 1 <= len({*values}) == len(values):
            raise ValueError("raw: values are not distinct strings")
        return Column(name, kind, note, values), {}
    if kind != "text":
        return Column(name, kind, note), {}
    terms, components = arrays[f"{prefix}/terms"], arrays[f"{prefix}/components"]
    if terms.dtype != np.uint8 or terms.ndim != 1:
        raise ValueError(f"{prefix}/terms is not text")
    words = terms.tobytes().decode().split("\n")
    if len({*words}) < len(words) or not all(words):
        raise ValueError(f"{prefix}/terms are not distinct")
    learnt = TextEncoder(words, arrays[f"{prefix}/idf"], components)
    return Column(name, kind, note, learnt), {
        f"{prefix}/terms": ((None,), "uint8"),
        f"{prefix}/idf": ((len(words),), "float32"),
        f"{prefix}/components": ((len(words), components.shape[1]), "float32"),
    }
