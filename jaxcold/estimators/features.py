"""Content of items, in frames and arrays, as tables with a row per item."""

import sys
import warnings
from collections.abc import Hashable, Iterable, Mapping, Sequence
from types import MappingProxyType
from typing import Any, NamedTuple

import numpy as np
import pandas as pd

from jaxcold.data.content import Scaling, describe_degenerate, distinct_rows, fit_scaling
from jaxcold.data.pairs.dataset import ContentFeatures
from jaxcold.estimators import columns as raw_columns
from jaxcold.estimators import frames
from jaxcold.estimators.columns import Encoded, RawColumns, describe_place
from jaxcold.estimators.frames import format_ids, to_distinct_index
from jaxcold.types import DataError

Content = Mapping[str, Any] | Any  # mode -> frame or array of numbers; or one of them alone

_LARGEST_DENSE = 8  # GiB of a sparse matrix that is made dense
_FLOAT32_MAX = float(np.finfo(np.float32).max)

TABLE = ""  # the mode of content that is one table


class Modes(NamedTuple):
    """The content that a trained model takes, by mode, in the model's order."""

    widths: Mapping[str, int]  # number of features
    # names of the columns; None of a mode that was an array
    columns: Mapping[str, list[str | int] | None]
    scalings: Mapping[str, Scaling]  # of the modes that are standardised
    # Mode that is given as raw columns -> how they become modes; "" of a frame without a name.
    raw: Mapping[str, RawColumns] = MappingProxyType({})

    @property
    def encoded(self) -> set[str]:
        """The modes that are made of raw columns."""
        return {mode for place, raw in self.raw.items() for mode in raw.widths(place)}


def to_features(
    content: Content,
    items: Iterable[Hashable] | None,
    modes: Modes | None = None,
    id_column: str = "item",
    *,
    kinds: Mapping[str | int, str] | None = None,
    joined: bool = False,
) -> tuple[pd.Index, ContentFeatures, Modes]:
    """Frames and arrays to tables with a row per item.

    Args:
        content: as for `SEMCo.fit`.
        items: ids of the rows of arrays; unset, where the model is known, they are numbered.
        modes: that a trained model takes: its columns in its order, standardised if its are.
        id_column: of frames that have such a column, that of item ids; others have an index.
        kinds: of raw columns, the argument `columns` of `SEMCo.fit`.
        joined: a frame of raw columns becomes one mode.

    Returns:
        The ids, in the order of `items`, then as they first appear; their features; the modes.

    Raises:
        DataError: naming the mode, column or id at fault.
    """
    named = None if items is None else to_distinct_index(items, "item")
    parts: dict[str, tuple[pd.Index, np.ndarray]] = {}
    columns: dict[str, list[str | int] | None] = {}
    if not isinstance(content, Mapping):
        content = {TABLE: content}
    pandas = {
        mode: frames.to_pandas(given, describe_place(mode), index=id_column)
        for mode, given in content.items()
    }
    fitted = modes.raw if modes is not None else _fit_raw(pandas, kinds, joined)
    given_modes = _by_mode(_encode_raw(pandas, fitted, fitting=modes is None), modes)
    for mode, given in given_modes.items():
        place = describe_place(mode)
        index = named
        if isinstance(given, Encoded):
            given_modes[mode] = given.table
            index, table = to_distinct_index(given.index, f"{place} item"), given.table
            columns[mode] = None
        else:
            if isinstance(given, pd.DataFrame):
                index = to_distinct_index(given.index, f"{place} item")
            if modes is not None:
                given = order_columns(place, given, modes.columns[mode])
            columns[mode] = to_column_names(place, given)
            table = to_table(place, given)
        if index is None:
            if modes is None:
                raise DataError(f"{place} is an array; say whose rows it holds by items=")
            index = named = pd.RangeIndex(len(table))
        if len(index) != len(table):
            raise DataError(
                f"{place} has {len(table)} rows for {len(index)} items; give one per item"
            )
        if modes is not None and table.shape[1] != modes.widths[mode]:
            raise DataError(
                f"{place} has {table.shape[1]} columns; the model was trained on "
                f"{modes.widths[mode]}"
            )
        parts[mode] = index, table
    ids = pd.Index([]) if named is None else named
    for index, _ in parts.values():
        ids = index if not len(ids) else ids.append(index[~index.isin(ids)])
    ids = to_distinct_index(ids, "item")
    tables, present = {}, {}
    for mode, (index, table) in parts.items():
        there = _check_finite(mode, given_modes[mode], index, table)
        if not index.equals(ids):
            rows = index.get_indexer(ids)
            table, there = table[rows], there[rows] & (rows >= 0)
        if modes is not None and mode in modes.scalings:
            table = modes.scalings[mode](table)
        tables[mode], present[mode] = table, there
    nothing = ~np.any(list(present.values()), axis=0)
    if nothing.any():
        raise DataError(
            f"{format_ids('item', ids[nothing])} without content in any mode; give content "
            "or remove"
        )
    if modes is None:
        widths = {mode: table.shape[1] for mode, table in tables.items()}
        modes = Modes(widths, columns, {}, fitted)
    return ids, ContentFeatures(tables, present), modes


def fit(
    content: Content,
    items: Iterable[Hashable] | None,
    id_column: str,
    kinds: Mapping[str | int, str] | None,
    progress: bool,
    *,
    joined: bool = False,
) -> tuple[pd.Index, ContentFeatures, Modes]:
    """`to_features` for a fit; says on standard error, if wanted, what each raw column became."""
    result = to_features(content, items, id_column=id_column, kinds=kinds, joined=joined)
    for line in raw_columns.describe(result[2].raw) if progress else ():
        print(line, file=sys.stderr)
    return result


def standardize(
    title: str, features: ContentFeatures, modes: Modes, warm: np.ndarray, option: str | bool
) -> tuple[ContentFeatures, Modes]:
    """The features as a model takes them, and what new items need to be made the same.

    Modes whose columns differ in scale by orders of magnitude, or all of them, are standardised.
    One warning names what was standardised and what is degenerate.

    Args:
        title: of the estimator, to begin the warning with.
        features: raw.
        modes: of them.
        warm: bool[I]: the items with clicks, which decide.
        option: True, False, or "auto" to decide by the columns.
    """
    scalings = {}
    if option:
        for mode, table in features.tables.items():
            if option == "auto" and mode in modes.encoded:
                continue
            rows = np.flatnonzero(warm & features.present[mode])
            scaling = fit_scaling(table, rows, always=option is True)
            if scaling is not None:
                scalings[mode] = scaling
    lines = []
    if option == "auto" and scalings:
        names = ", ".join(map(describe_place, scalings))
        lines.append(
            f"columns of {names} differ in scale by orders of magnitude and are standardised; "
            "standardize=False takes them as they are"
        )
    findings = {}
    for mode, table in features.tables.items():
        there = features.present[mode]
        if not isinstance(table, np.memmap) and mode not in modes.encoded:
            findings[describe_place(mode)] = table if there.all() else table[there]
    lines += describe_degenerate(findings)
    if len(findings) == len(features.tables) and (count := len(warm)) > 1:
        distinct = distinct_rows(features.tables)
        if 1 < distinct <= count // 2:
            lines.append(
                f"{count} items have {distinct} distinct contents: equal items have equal scores"
            )
    if lines:
        warnings.warn(f"{title}: {'; '.join(lines)}", stacklevel=4)
    tables = {
        mode: scalings[mode](table) if mode in scalings else table
        for mode, table in features.tables.items()
    }
    return features._replace(tables=tables), modes._replace(scalings=scalings)


def _fit_raw(
    content: Mapping[str, Any], kinds: Mapping[str | int, str] | None, joined: bool
) -> dict[str, RawColumns]:
    """Mode -> its raw columns, of the frames that hold any."""
    tables = {mode: given for mode, given in content.items() if isinstance(given, pd.DataFrame)}
    names = [name for frame in tables.values() for name in to_column_names("content", frame) or ()]
    raw_columns.check_kinds(kinds, names)
    kinds = kinds or {}
    return {
        mode: raw_columns.fit_columns(mode, frame, kinds, joined=joined)
        for mode, frame in tables.items()
        if raw_columns.is_raw(frame, kinds)
    }


def _encode_raw(
    content: Mapping[str, Any], fitted: Mapping[str, RawColumns], *, fitting: bool
) -> dict[str, Any]:
    """The content, with the modes of raw columns in place of their frames."""
    encoded: dict[str, Any] = {}
    for mode, given in content.items():
        raw = fitted.get(mode)
        if raw is None:
            encoded[mode] = given
            continue
        if not isinstance(given, pd.DataFrame):
            raise DataError(
                f"{describe_place(mode)} is a frame with the columns "
                f"{', '.join(map(str, raw.names))}, not {type(given).__name__}"
            )
        encoded |= raw.encode(mode, given, fitting=fitting)
    absent = [mode for mode in fitted if mode not in content]
    if absent:
        names = ", ".join(map(str, fitted[absent[0]].names))
        raise DataError(f"{describe_place(absent[0])} is absent; give a frame with {names}")
    return encoded


def _by_mode(content: Mapping[str, Any], modes: Modes | None) -> dict[str, Any]:
    """The content by mode, in the model's order."""
    if not content:
        raise DataError('content is a dictionary of modes, such as {"text": frame}, or one frame')
    if modes is None:
        return dict(content)
    known = ", ".join(modes.widths) or "one table, without a name"
    for mode in content:
        if mode not in modes.widths:
            name = f"content mode {mode!r}" if mode != TABLE else "content without a mode"
            raise DataError(f"{name} is unknown; known: {known}")
    for mode in modes.widths:
        if mode not in content:
            raise DataError(
                f"content mode {mode!r} is absent; give it rows of NaN for items without it"
            )
    return {mode: content[mode] for mode in modes.widths}


def _check_finite(mode: str, given: Any, index: pd.Index, table: np.ndarray) -> np.ndarray:
    """bool[n]: the rows that are there, all of whose values must be finite."""
    finite = is_finite(table)
    there = ~np.isnan(table).all(axis=1)
    broken = there & ~finite.all(axis=1)
    if broken.any():
        row = int(np.argmax(broken))
        value = describe_value(given, row, int(np.argmin(finite[row])))
        remedy = "NaN in the whole row of an item that lacks the mode"
        if mode == TABLE:
            remedy = "leave the item out"
        raise DataError(
            f"{describe_place(mode)}: {format_ids('item', index[broken])} not finite ({value}); "
            f"write numbers, or {remedy}"
        )
    return there


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


def to_table(place: str, content: Any) -> np.ndarray:
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
            size = 4 * np.prod(content.shape, dtype=float) / 2**30
            if size > _LARGEST_DENSE:
                raise DataError(
                    f"{place} is a sparse matrix of {size:.0f} GiB when dense; reduce its columns, "
                    "for example by sklearn.decomposition.TruncatedSVD"
                )
            content = content.astype(np.float32).toarray()
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


def describe_value(content: Any, row: int, column: int) -> str:
    """A value of content and its column, for a message: "1e+300 in column 3"."""
    table: Any = content.iloc if isinstance(content, pd.DataFrame) else content
    table = table.tocsr() if hasattr(table, "tocsr") else table
    value = float(table[row, column])
    size = ", too large for float32" if np.isfinite(value) else ""
    return f"{value} in column {column}{size}"
