"""What the recommenders on data frames share: external ids, tables, training with a bar, folders.

No other package meets external ids.
"""

import contextlib
import io
import json
import os
import zipfile
from collections.abc import Callable, Collection, Hashable, Iterable, Iterator, Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np
import pandas as pd

from jaxcold.estimators import artifact
from jaxcold.reporting.progress import Progress
from jaxcold.train.loop import DivergedError, fit
from jaxcold.train.step import TrainState, init_state, make_step
from jaxcold.types import DataError, Model, TopK


def some(what: str, ids: Collection) -> str:
    """What to call a few of many: "item 3, 5, 7 and 12 more are"."""
    shown = ", ".join(map(repr, list(ids)[:3]))
    more = f" and {len(ids) - 3} more" if len(ids) > 3 else ""
    return f"{what} {shown}{more} {'is' if len(ids) == 1 else 'are'}"


def listed(ids: Iterable[Hashable], where: str) -> pd.Index:
    """The ids as they are; text alone is no list of them."""
    if isinstance(ids, str | bytes) or not isinstance(ids, Iterable):
        raise DataError(f"{where}: is a list of ids, not {ids!r}")
    return pd.Index(list(ids), tupleize_cols=False)


def distinct(values: Iterable[Hashable], what: str) -> pd.Index:
    """Distinct ids, all whole numbers or all strings, of one dtype whatever they came in.

    Other ids, such as the floats that a table with gaps turns whole numbers into, are refused
    before any training and not when the model is saved.
    """
    index = listed(values, f"{what} ids")
    kind = pd.api.types.infer_dtype(index, skipna=False)
    if kind not in ("integer", "string"):
        raise DataError(
            f"{what} ids are {kind}; make all of them whole numbers or all of them strings, "
            "for example by astype(str)"
        )
    if index.has_duplicates:
        raise DataError(f"{some(what, index[index.duplicated()].unique())} given twice; keep one")
    return pd.Index(index.tolist())


def new_items(items: pd.Index, ids: Iterable[Hashable]) -> pd.Index:
    """The ids, once none of them is known."""
    new = distinct(ids, "item")
    known = new[new.isin(items)]
    if len(known):
        raise DataError(f"{some('item', known)} known already; an item's content is fixed")
    return new


def rows_of(known: pd.Index, ids: Iterable[Hashable], place: str, what: str = "item") -> np.ndarray:
    """i32[n]: the rows of ids, all of which are known.

    Args:
        known: ids by row.
        ids: wanted.
        place: where they were given, for the message.
        what: they are ids of.
    """
    wanted = listed(ids, place)
    rows = known.get_indexer(wanted)
    if (rows < 0).any():
        remedy = "add them with add_items, or leave them out" if what == "item" else "leave it out"
        raise DataError(f"{place}: {some(what, wanted[rows < 0])} unknown; {remedy}")
    return rows.astype(np.int32)


def content_rows(content: pd.Index, items: pd.Index) -> np.ndarray:
    """The row of content of each item of a log."""
    rows = content.get_indexer(items)
    if (rows < 0).any():
        shown = ", ".join(map(repr, content[:3].tolist()))
        raise DataError(
            f"interactions: {some('item', items[rows < 0])} without content (content "
            f"holds {shown}, ...); give content for it, or drop its interactions"
        )
    return rows


def check_log(interactions: pd.DataFrame, fields: Sequence[str]) -> None:
    """Stops unless there is a frame with these columns and with rows."""
    if not isinstance(interactions, pd.DataFrame) or not {*fields} <= {*interactions.columns}:
        *most, last = (f'"{field}"' for field in fields)
        raise DataError(f"interactions is a data frame with columns {', '.join(most)} and {last}")
    if not len(interactions):
        raise DataError("interactions has no rows; give one per click")


def coded(interactions: pd.DataFrame, field: str, *, ordered: bool = False) -> tuple:
    """A column as numbers from 0, and what each stands for, in that order if it matters."""
    codes, values = pd.factorize(interactions[field], sort=ordered)
    if (codes < 0).any():
        raise DataError(
            f"interactions: row {int(np.argmax(codes < 0))} (counted from 0) has no {field}; "
            "drop it"
        )
    return codes, values


def numbers(place: str, given: pd.DataFrame | np.ndarray) -> np.ndarray:
    """[n, F] floats, finite or not, from a frame or an array of numbers."""
    if isinstance(given, pd.DataFrame):
        for column, dtype in given.dtypes.items():
            if not pd.api.types.is_numeric_dtype(dtype):
                raise DataError(f"{place}: column {column!r} holds {dtype}; keep numbers alone")
        table = given.to_numpy(np.float32, na_value=np.nan)
    else:
        table = np.asanyarray(given)  # one that is mapped from a file stays there
    if table.dtype.kind in "iub":
        table = table.astype(np.float32)
    if table.dtype.kind != "f" or table.dtype.itemsize > 8 or table.ndim != 2 or not table.size:
        raise DataError(
            f"{place} is {table.dtype}{list(table.shape)}, not numbers [items, features]"
        )
    return table


def plain(options: Mapping[str, Any]) -> dict[str, Any]:
    """Options as JSON can hold them."""
    return {
        name: value.item() if isinstance(value, np.generic) else value
        for name, value in options.items()
    }


def train(
    title: str,
    model: Model,
    *,
    seed: int,
    progress: bool,
    remedy: str,
    on_epoch: Callable[[int, TrainState], bool] = lambda epoch, state: False,
) -> TrainState:
    """Trains a model from scratch, with a progress bar if wanted.

    Raises:
        DivergedError: if the loss is not finite, with what to try.
    """
    total = model.epochs * model.steps_per_epoch
    bar = Progress(title, total=total, unit="steps") if progress else None
    with bar or contextlib.nullcontext():
        try:
            return fit(
                model,
                make_step(model),
                init_state(model, seed),
                seed=seed,
                on_step=lambda _, metrics: bar.advance(1, metrics["loss"]) if bar else None,
                on_epoch=on_epoch,
            )
        except DivergedError as error:
            raise DivergedError(f"{error}; try {remedy}") from None


def as_frame(found: TopK, users: pd.Index, items: pd.Index) -> pd.DataFrame:
    """Lists as rows user, item, rank and score; what stands behind the named users is left out."""
    row, column = np.nonzero(found.items[: len(users)] >= 0)
    return pd.DataFrame(
        {
            "user": users.take(row),
            "item": items.take(found.items[row, column]),
            "rank": column + 1,
            "score": found.scores[row, column],
        }
    )


class Saved(NamedTuple):
    """What a folder holds."""

    meta: dict[str, Any]
    arrays: dict[str, np.ndarray]
    ids: dict[str, list]


def save(
    folder: str | os.PathLike,
    model: str,
    meta: Mapping[str, Any],
    arrays: Mapping[str, Any],
    ids: Mapping[str, pd.Index],
) -> None:
    """Writes a recommender of a kind into a folder, whole or not at all.

    Raises:
        DataError: if the folder holds anything else.
    """
    buffer = io.BytesIO()
    np.savez(buffer, **arrays)
    names = {name: index.tolist() for name, index in ids.items()}
    files = {"arrays.npz": buffer.getvalue(), "ids.json": json.dumps(names).encode()}
    artifact.write(folder, {"model": model, **meta}, files)


@contextlib.contextmanager
def saved(folder: str | os.PathLike, model: str) -> Iterator[Saved]:
    """Reads what `save` wrote; what goes wrong inside the block says that it is not whole.

    Raises:
        DataError: naming the file that is absent or damaged, or the other kind of model.
    """
    meta, files = artifact.read(folder, ("arrays.npz", "ids.json"))
    if kind_of(meta) != model:
        raise DataError(
            f"{folder}: holds a model of kind {kind_of(meta)!r}, not {model!r}; read it with "
            "jaxcold.load"
        )
    try:
        with np.load(io.BytesIO(files["arrays.npz"]), allow_pickle=False) as archive:
            arrays = dict(archive)
        yield Saved(meta, arrays, json.loads(files["ids.json"]))
    except (KeyError, TypeError, ValueError, zipfile.BadZipFile) as error:
        raise DataError(
            f"{folder}: does not hold a whole recommender ({' '.join(str(error).split())}); "
            "save it again"
        ) from None


def kind_of(meta: Mapping[str, Any]) -> str:
    """The kind of model that model.json tells; folders without one hold SEMCo."""
    return meta.get("model", "semco")
