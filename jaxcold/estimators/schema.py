"""Saved models: written whole, and checked whole before anything is built of them."""

import contextlib
import json
import os
from collections.abc import Iterator, Mapping
from typing import Any, NamedTuple

import numpy as np
import pandas as pd
from safetensors import SafetensorError
from safetensors.numpy import load as load_arrays
from safetensors.numpy import save as save_arrays

from jaxcold.estimators import artifact, frames
from jaxcold.types import Csr, DataError

_ARRAYS, _IDS = "arrays.safetensors", "ids.json"

# name -> (shape, dtype); None is a length that nothing else decides
Schema = dict[str, tuple[tuple[int | None, ...], str]]


class SavedModel(NamedTuple):
    """The contents of a folder."""

    meta: dict[str, Any]
    arrays: dict[str, np.ndarray]
    ids: dict[str, pd.Index]


def check_arrays(arrays: Mapping[str, np.ndarray], schema: Schema) -> None:
    """Compares arrays with a schema, before anything is built of them.

    Args:
        arrays: by name.
        schema: name -> (shape, dtype); None is a length that nothing else decides.

    Raises:
        ValueError: naming the array that is absent, unknown, of another shape or dtype, or not
            finite.
    """
    if arrays.keys() != schema.keys():
        absent = sorted(schema.keys() - arrays.keys())
        unknown = sorted(arrays.keys() - schema.keys())
        names = frames.format_ids("array", absent or unknown)
        raise ValueError(f"{names} {'absent' if absent else 'unknown'}")
    for name, (shape, dtype) in schema.items():
        array = arrays[name]
        wanted = [size if size is not None else "any" for size in shape]
        if array.dtype.name != dtype or len(array.shape) != len(shape):
            raise ValueError(f"{name} is {array.dtype}{list(array.shape)}, not {dtype}{wanted}")
        if any(w is not None and w != size for w, size in zip(shape, array.shape, strict=True)):
            raise ValueError(f"{name} has shape {list(array.shape)}, not {wanted}")
        if dtype.startswith("float") and not np.isfinite(array).all():
            raise ValueError(f"{name} is not finite")
        if dtype == "bool" and (array.view(np.uint8) > 1).any():
            raise ValueError(f"{name} holds values other than 0 and 1")


def check_rows(name: str, rows: Csr, columns: int, *, ascending: bool = True) -> None:
    """Raises a ValueError unless the rows are whole and their indices are in 0..columns-1."""
    indptr, indices = rows
    if indptr[0] != 0 or indptr[-1] != len(indices) or (np.diff(indptr) < 0).any():
        raise ValueError(f"{name}/indptr does not rise from 0 to {len(indices)}")
    if len(indices) and (indices.min() < 0 or indices.max() >= columns):
        raise ValueError(
            f"{name}/indices run from {indices.min()} to {indices.max()}; there are {columns} items"
        )
    same_row = np.diff(rows.row_of_entry) == 0
    if ascending and (np.diff(indices)[same_row] <= 0).any():
        raise ValueError(f"{name}/indices are not ascending in each row")


def check_columns(names: Any, width: int) -> list[str | int] | None:
    """Column names as model.json holds them: a list of `width` distinct names, or None.

    Raises:
        ValueError: for anything else.
    """
    if names is None:
        return None
    is_list = isinstance(names, list) and all(type(name) in (str, int) for name in names)
    if not is_list or len(names) != width or len({*names}) != width:
        raise ValueError(f"columns is not a list of {width} distinct names")
    return names


def check_modes(modes: Any) -> tuple[dict[str, int], dict[str, list[str | int] | None]]:
    """Widths and column names by mode, from model.json; none of a model of ids alone."""
    if not isinstance(modes, list):
        raise ValueError("model.json has no list of modes")
    widths: dict[str, int] = {}
    columns: dict[str, list[str | int] | None] = {}
    for mode in modes:
        name, width = mode["name"], mode["width"]
        if not isinstance(name, str) or name in widths or type(width) is not int or width < 1:
            raise ValueError("model.json has a mode without a name or a width of its own")
        widths[name], columns[name] = width, check_columns(mode["columns"], width)
    return widths, columns


def check_history(rows: Any) -> list[dict[str, float]]:
    """The curve of a training, from model.json: rows of numbers by name.

    Raises:
        ValueError: for anything else.
    """
    is_list = isinstance(rows, list) and all(isinstance(row, dict) for row in rows)
    if not is_list or not all(type(x) in (int, float) for row in rows for x in row.values()):
        raise ValueError("history is not a list of numbers by name")
    return rows


def write_model(
    folder: str | os.PathLike,
    kind: str,
    meta: Mapping[str, Any],
    arrays: Mapping[str, Any],
    ids: Mapping[str, pd.Index],
) -> None:
    """Writes a recommender of a kind into a folder, whole or not at all.

    Raises:
        DataError: if the folder holds anything else.
    """
    data = save_arrays({name: np.ascontiguousarray(array) for name, array in arrays.items()})
    lists = {name: index.tolist() for name, index in ids.items()}
    files = {_ARRAYS: data, _IDS: json.dumps(lists).encode()}
    artifact.write(folder, {"model": kind, **meta}, files)


@contextlib.contextmanager
def read_model(folder: str | os.PathLike, kind: str, ids: tuple[str, ...]) -> Iterator[SavedModel]:
    """Reads what `write_model` wrote; an error inside the block says that the model is not whole.

    Args:
        folder: to read.
        kind: of model that it must hold.
        ids: names of the lists of ids.

    Raises:
        DataError: naming the file that is absent or damaged, or the other kind of model.
    """
    meta, files = artifact.read(folder, (_ARRAYS, _IDS))
    if model_kind(meta) != kind:
        raise DataError(
            f"{folder}: holds a model of kind {model_kind(meta)!r}, not {kind!r}; read it with "
            "jaxcold.load"
        )
    try:
        if not isinstance(meta.get("options"), dict):
            raise ValueError("model.json has no options")
        arrays = load_arrays(files[_ARRAYS])
        lists = json.loads(files[_IDS])
        if not isinstance(lists, dict) or {*lists} != {*ids}:
            raise ValueError(f"ids.json does not hold the lists {', '.join(ids)}")
        for name, values in lists.items():
            if not isinstance(values, list):
                raise ValueError(f"ids.json: {name} is not a list")
        index = {
            name: frames.to_distinct_index(values, name.removesuffix("s"))
            if values
            else pd.Index([])
            for name, values in lists.items()
        }
        yield SavedModel(meta, arrays, index)
    except (
        KeyError,
        TypeError,
        ValueError,
        IndexError,
        AttributeError,
        OverflowError,
        RecursionError,
        SafetensorError,
    ) as error:
        raise DataError(
            f"{folder}: does not hold a whole recommender ({' '.join(str(error).split())}); "
            "save it again"
        ) from None


def model_kind(meta: Mapping[str, Any]) -> str:
    """The kind of model that model.json states; a folder without one holds SEMCo."""
    return meta.get("model", "semco")
