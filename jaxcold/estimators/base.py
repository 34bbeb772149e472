"""What the estimators share: arguments, training with a bar, ranking, saved models."""

import contextlib
import difflib
import inspect
import json
import math
import operator
import os
import re
from collections.abc import Callable, Iterator, Mapping
from typing import Any, NamedTuple

import numpy as np
import pandas as pd
from safetensors import SafetensorError
from safetensors.numpy import load as load_arrays
from safetensors.numpy import save as save_arrays

from jaxcold.estimators import artifact, frames
from jaxcold.eval.ranking import top_k
from jaxcold.reporting.progress import Progress
from jaxcold.train.loop import DivergedError, fit
from jaxcold.train.step import TrainState, init_state, make_step
from jaxcold.types import Csr, DataError, EvalSlice, Model, Representations

_LIST_BLOCK = 2**22  # entries that per-user candidates exclude at once
_ARRAYS, _IDS = "arrays.safetensors", "ids.json"


def check_integer(name: str, value: Any, minimum: int | None = None) -> int:
    """The value as an int.

    Raises:
        TypeError: if it is not a whole number.
        ValueError: if it is below `minimum`.
    """
    try:
        if isinstance(value, bool | np.bool_):
            raise TypeError
        number = operator.index(value)
    except TypeError:
        raise TypeError(f"{name} is a whole number, not {value!r}") from None
    if minimum is not None and number < minimum:
        raise ValueError(f"{name} is at least {minimum}, not {number}")
    return number


def check_number(name: str, value: Any) -> None:
    """Raises a TypeError or a ValueError unless the value is a finite number."""
    is_number = isinstance(value, int | float | np.integer | np.floating)
    if not is_number or isinstance(value, bool):
        raise TypeError(f"{name} is a number, not {value!r}")
    if not math.isfinite(value):
        raise ValueError(f"{name} is a finite number, not {value}")


def check_learning_rate(value: Any) -> None:
    """Raises unless the learning rate is a positive number."""
    check_number("learning_rate", value)
    if value <= 0:
        raise ValueError(f"learning_rate is a positive number, not {value}")


def check_options(
    estimator: str, fit: Callable, build: Callable, options: Mapping[str, Any]
) -> None:
    """Checks the names of options, and their types against the defaults of `build`.

    Raises:
        TypeError: for a name that `build` lacks, with the closest one, or for a value of another
            type.
    """
    known = inspect.signature(build).parameters
    own = [name for name in inspect.signature(fit).parameters if name != "options"]
    names = [name for name in known if name not in ("dataset", "devices", "reference")]
    for name, value in options.items():
        if name not in names and name != "reference":
            close = difflib.get_close_matches(name, [*own, *names], n=1)
            remedy = f"did you mean {close[0]!r}?" if close else f"known: {', '.join(names)}"
            raise TypeError(f"{estimator}.fit has no argument {name!r}; {remedy}")
        default = known[name].default
        if isinstance(default, bool | str):
            if not isinstance(value, type(default)):
                kind = "True or False" if isinstance(default, bool) else "a string"
                raise TypeError(f"{name} is {kind}, not {value!r}")
        elif isinstance(default, int):
            check_integer(name, value)
        elif isinstance(default, float):
            check_number(name, value)


@contextlib.contextmanager
def translate_messages() -> Iterator[None]:
    """Names the arguments of an estimator where a model's message names those of a config."""
    try:
        yield
    except ValueError as error:
        message = str(error).replace("features stay on the host (data.mmap)", "stream=True works")
        translated = re.sub(r"\b(?:model|train)\.([a-z_]\w*)", r"\1", message)
        if translated == str(error):
            raise
        raise type(error)(translated) from None


def to_json_values(options: Mapping[str, Any]) -> dict[str, Any]:
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


def recommend(
    user: np.ndarray,
    item: np.ndarray,
    exclude: Csr,
    candidates: np.ndarray | Csr,
    k: int,
    *,
    users: pd.Index,
    items: pd.Index,
    block_users: int | None = None,
) -> pd.DataFrame:
    """The best k candidates of each user, as a frame.

    Args:
        user: f32[n, D].
        item: f32[I, D].
        exclude: n rows of items that are not recommended.
        candidates: from `frames.to_candidates`.
        k: length of a list, at least 1; memory follows the candidates where they are fewer.
        users: [n] ids.
        items: [I] ids.
        block_users: users that are scored at once. If set, the last block is padded, so that a
            list does not depend on who else is asked: the shape of a product decides how it is
            rounded.
    """
    per_user = isinstance(candidates, Csr)
    # Per-user lists are scored against the whole catalogue, for the same reason.
    pool = np.arange(len(item), dtype=np.int32) if isinstance(candidates, Csr) else candidates
    k = max(min(k, len(pool)), 1)
    block = max(len(users), 1)
    if per_user:
        block = block_users or max(_LIST_BLOCK // max(len(pool), 1), 1)
    parts = []
    for start in range(0, max(len(users), 1), block):
        rows = np.arange(start, min(start + block, len(users)))
        hidden = exclude.take(rows)
        if isinstance(candidates, Csr):
            hidden = _exclude_others(hidden, candidates.take(rows), len(item))
        padding = -len(rows) % block_users if block_users else 0
        count = len(rows) + padding
        vectors = np.concatenate([user[rows], np.zeros((padding, item.shape[1]), user.dtype)])
        indptr = np.concatenate([hidden.indptr, np.full(padding, hidden.indptr[-1])])
        nothing = Csr(np.zeros(count + 1, np.int64), np.zeros(0, np.int32))
        eval_slice = EvalSlice(
            users=np.arange(count, dtype=np.int32),
            histories=nothing,
            positives=nothing,
            exclude=Csr(indptr, hidden.indices),
            candidates=pool,
            items=pool,
        )
        lists = top_k(Representations(vectors, item), eval_slice, k, block_users=block_users)
        parts.append(frames.lists_to_frame(lists, users[rows], items))
    return pd.concat(parts, ignore_index=True) if len(parts) > 1 else parts[0]


def _exclude_others(exclude: Csr, candidates: Csr, count: int) -> Csr:
    """For each user, what is excluded and all items that are no candidates."""
    hidden = np.ones((candidates.rows, count), bool)
    hidden[candidates.row_of_entry, candidates.indices] = False
    hidden[exclude.row_of_entry, exclude.indices] = True
    row, item = np.nonzero(hidden)
    return Csr.from_pairs(row, item, candidates.rows)


class SavedModel(NamedTuple):
    """The contents of a folder."""

    meta: dict[str, Any]
    arrays: dict[str, np.ndarray]
    ids: dict[str, pd.Index]


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
