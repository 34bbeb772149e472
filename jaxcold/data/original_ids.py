"""The ids that users and items of a data set had before they were numbered: its file ids.json."""

import json
from collections.abc import Mapping
from pathlib import Path

import numpy as np

from jaxcold.files import write_atomic
from jaxcold.types import DataError

FILE = "ids.json"
KINDS = ("user", "item")


def write_ids(folder: Path, ids: Mapping[str, np.ndarray]) -> None:
    """Writes the ids of users and items; number i is the i-th of the list.

    Args:
        folder: of the data set.
        ids: "user" and "item" -> whole numbers or strings.
    """
    lists = {kind: np.asarray(ids[kind]).tolist() for kind in KINDS}
    write_atomic(folder / FILE, (json.dumps(lists, ensure_ascii=False) + "\n").encode())


def read_ids(folder: Path) -> dict[str, np.ndarray] | None:
    """ "user" and "item" -> ids by number; None where the folder has no such file.

    Raises:
        DataError: if it is damaged.
    """
    path = folder / FILE
    try:
        lists = json.loads(path.read_text(encoding="utf-8"))
    except (FileNotFoundError, NotADirectoryError):
        return None
    except (OSError, ValueError, RecursionError) as error:
        raise DataError(f"{path}: is damaged ({error}); import the tables again") from None
    for kind in KINDS:
        values = lists.get(kind) if isinstance(lists, dict) else None
        kinds = {type(value) for value in values} if isinstance(values, list) else set()
        if not isinstance(values, list) or not (kinds <= {int} or kinds <= {str}):
            raise DataError(
                f"{path}: {kind} is no list of whole numbers or of strings; import the tables again"
            )
        if len(set(values)) < len(values):
            raise DataError(f"{path}: a {kind} is there twice; import the tables again")
    return {kind: np.array(lists[kind]) for kind in KINDS}


def named(values: np.ndarray, ids: np.ndarray) -> np.ndarray:
    """The ids of numbers.

    Raises:
        DataError: if a number has none.
    """
    if len(values) and values.max() >= len(ids):
        raise DataError(
            f"{FILE}: has {len(ids)} ids, and none for number {values.max()}; import the tables "
            "again"
        )
    return ids[values]
