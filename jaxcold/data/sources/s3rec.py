"""Amazon 5-core sequences as published with S3-Rec (Zhou et al., CIKM 2020).

One text file per category, in repository aHuiWang/CIKM2020-S3Rec (commit 49a890dc). A line is a
user: an id, then the ids of the items in the order of time, all from 1. There are no times and no
ratings, and every user and every item has five rows or more.
"""

from pathlib import Path

import numpy as np
import pandas as pd

from jaxcold.data.sources.download import fetch
from jaxcold.types import DataError

URL = "https://raw.githubusercontent.com/aHuiWang/CIKM2020-S3Rec/49a890dcb516c9ed3126564495234ea74d5cd566/data"
# Data set -> its file, and the SHA-256 of that.
FILES = {
    "amazon-beauty": (
        "Beauty.txt",
        "226cce9c3105299ca0db9615d7d3fb32b3175e90da43100ae352599f0f0107b8",
    ),
    "amazon-sports": (
        "Sports_and_Outdoors.txt",
        "2a095e0648872beb9982408958290f5d655db5be2911c3756b5446de9f0b8de2",
    ),
    "amazon-toys": (
        "Toys_and_Games.txt",
        "176c680c688d497598c4a89a03b402c0fe78d795e5db335c2e78dd5f2d778a3f",
    ),
}
# Of these nothing else is published in a layout that is read, so an absent file is downloaded.
DOWNLOADED = ("amazon-sports", "amazon-toys")


def find_file(name: str, folder: Path) -> Path | None:
    """Where the file of a data set is, or is downloaded to; None: the data set has no such file."""
    if name not in FILES:
        return None
    path = folder / FILES[name][0]
    return path if name in DOWNLOADED or path.is_file() else None


def read(name: str, folder: Path, url: str = URL) -> pd.DataFrame:
    """Rows with columns user, item and time: ids from 0, and the place in the user's sequence.

    Args:
        name: of the data set, in `FILES`.
        folder: that holds the file; it is downloaded if it is absent.
        url: where the files are published.

    Raises:
        DataError: if the file cannot be had, is another one, or has a line that is no such row.
    """
    if name not in FILES:
        raise DataError(f"data.layout='s3rec': {name} is none of {', '.join(FILES)}")
    file, sha256 = FILES[name]
    return parse(fetch(f"{url}/{file}", folder / file, sha256))


def parse(path: Path) -> pd.DataFrame:
    """The rows of a file in this format; see `read`.

    Raises:
        DataError: naming the first line that is not ids from 1, a user and an item at least.
    """
    again = "delete the file to download it again"
    rows: list[np.ndarray] = []
    try:
        with open(path, encoding="ascii") as lines:
            for number, line in enumerate(lines, start=1):
                ids = np.array(line.split(), dtype=np.int64)
                if len(ids) < 2 or ids.min() < 1 or ids.max() >= 2**31:
                    raise DataError(
                        f"{path}: line {number}: is not a user and items, ids from 1; {again}"
                    )
                rows.append(ids - 1)
    except (ValueError, OverflowError) as error:
        if isinstance(error, DataError):
            raise
        raise DataError(f"{path}: line {len(rows) + 1}: is not whole numbers; {again}") from None
    if not rows:
        raise DataError(f"{path}: is empty; {again}")
    counts = np.array([len(ids) - 1 for ids in rows])
    return pd.DataFrame(
        {
            "user": np.repeat([ids[0] for ids in rows], counts),
            "item": np.concatenate([ids[1:] for ids in rows]),
            "time": np.concatenate([np.arange(count) for count in counts]),
        }
    )
