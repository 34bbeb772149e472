"""What a saved model must consist of; checked whole before anything is built of it."""

from collections.abc import Mapping
from typing import Any

import jax
import numpy as np
from flax import nnx

from jaxcold.estimators import frames
from jaxcold.models import encoders
from jaxcold.models.sequence_encoder import served_shapes
from jaxcold.types import Csr

# name -> (shape, dtype); None is a length that nothing else decides
Schema = dict[str, tuple[tuple[int | None, ...], str]]


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
    """Widths and column names by mode, from model.json."""
    if not isinstance(modes, list) or not modes:
        raise ValueError("model.json has no list of modes")
    widths: dict[str, int] = {}
    columns: dict[str, list[str | int] | None] = {}
    for mode in modes:
        name, width = mode["name"], mode["width"]
        if not isinstance(name, str) or name in widths or type(width) is not int or width < 1:
            raise ValueError("model.json has a mode without a name or a width of its own")
        widths[name], columns[name] = width, check_columns(mode["columns"], width)
    return widths, columns


def semco_arrays(
    arrays: Mapping[str, np.ndarray], widths: Mapping[str, int], users: int, items: int
) -> Schema:
    """The arrays of a saved model with these modes and counts; the encoder decides the rest."""
    shape = encoders.Shape.of(widths.values(), arrays)
    parameters = nnx.to_flat_state(shape.split()[1])
    schema: Schema = {
        "/".join(map(str, path)): (jax.tree.leaves(leaf)[0].shape, "float32")
        for path, leaf in parameters
    }
    for m, width in enumerate(widths.values()):
        schema[f"first/{m}/kernel"] = (width, shape.hidden), "float32"
        schema[f"first/{m}/bias"] = (shape.hidden,), "float32"
    out = shape.out if shape.student is None else shape.student[1]
    return schema | {
        "items/embedding": ((items, out), "float32"),
        "items/warm": ((items,), "bool"),
        "histories/indptr": ((users + 1,), "int64"),
        "histories/indices": ((None,), "int32"),
    }


def _abstract_state(options: Mapping[str, Any]) -> list[tuple[Any, Any]]:
    """Paths and shapes of the parameters that are served."""
    return list(nnx.to_flat_state(served_shapes(options)[1]))


def sasrec_arrays(
    arrays: Mapping[str, np.ndarray], options: Mapping[str, Any], width: int | None, items: int
) -> Schema:
    """The arrays of a saved model with these options."""
    for name in ("dim", "max_length", "blocks", "heads"):
        if type(options[name]) is not int or options[name] < 1:
            raise ValueError(f"options: {name} is {options[name]!r:.20}")
    dim = options["dim"]
    blocks = {name.split("/")[2] for name in arrays if name.startswith("encoder/blocks/")}
    if len(blocks) != options["blocks"] or dim % options["heads"]:
        raise ValueError("options: blocks or heads do not fit the arrays")
    if arrays["items/embedding"].shape[1:] != (dim,):
        raise ValueError(f"items/embedding does not have dim={dim} columns")
    schema: Schema = {
        f"encoder/{'/'.join(map(str, path))}": (jax.tree.leaves(leaf)[0].shape, "float32")
        for path, leaf in _abstract_state(options)
    }
    schema |= {
        "items/embedding": ((items, dim), "float32"),
        "items/warm": ((items,), "bool"),
    }
    if any(name.startswith("reduction/") for name in arrays):
        schema |= {
            "reduction/mean": ((width,), "float64"),
            "reduction/scale": ((width,), "float64"),
            "reduction/components": ((dim, width), "float64"),
        }
    elif width is not None and width != dim:
        raise ValueError(f"content of width {width} without a reduction to {dim}")
    return schema
