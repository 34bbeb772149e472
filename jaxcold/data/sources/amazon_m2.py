"""Amazon-M2: shopping sessions of one locale, with published test sessions.

File names and columns were taken from the pages of the raw data.
"""

import re
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pandas as pd

from jaxcold.data import readers
from jaxcold.data.sources import columns as source_columns
from jaxcold.types import DataError

TRAIN = "sessions_train.csv"
TEST = "sessions_test_task2_phase1.csv"
TRUTH = "ground_truth/phase1/gt_task2.csv"
_SESSION = re.compile(r"\[\s*'[^']+'(?:[\s,]+'[^']+')*\s*\]")
_SESSION_ITEM = re.compile(r"'([^']+)'")


def read_amazon_m2(
    folder: Path, locale: str = "FR", published: str = ""
) -> tuple[pd.DataFrame, pd.DataFrame]:
    """Reads the sessions of one locale of Amazon-M2 (KDD Cup 2023, task 2, phase 1).

    ``sessions_train.csv`` (``prev_items``, ``next_item``, ``locale``),
    ``sessions_test_task2_phase1.csv`` and ``ground_truth/phase1/gt_task2.csv``, whose rows belong
    together. A session is a user of its own; ``time`` is the position in it.

    Returns:
        Rows of the training sessions, and of the test sessions with the answer as last row. Users
        are called "train:ROW" and "test:ROW" by the row of the file, counted from 0.

    Raises:
        DataError: if a file is absent or malformed, or the locale has no session.
    """
    readers.require(folder, [TRAIN, TEST, TRUTH], published)
    train = _read_sessions(folder / TRAIN, ("prev_items", "next_item", "locale"), locale)
    test = _read_sessions(folder / TEST, ("prev_items", "locale"), locale)
    truth = _read_sessions(folder / TRUTH, ("next_item", "locale"), locale)
    if not test.index.equals(truth.index):
        raise DataError(
            f"{folder / TRUTH}: its {len(truth)} rows of locale {locale} are not those of "
            f"{TEST} ({len(test)}); take both files from the same phase"
        )
    test = test.assign(next_item=truth["next_item"])
    return (
        _session_rows(folder / TRAIN, train, "train"),
        _session_rows(folder / TEST, test, "test"),
    )


def _read_sessions(path: Path, columns: Sequence[str], locale: str) -> pd.DataFrame:
    """Rows of one locale, indexed by the row of the file; read in blocks, the file is large."""
    blocks, locales = [], set()
    for block in source_columns.read_csv(path, columns):
        blocks.append(block[block["locale"] == locale])
        locales |= set(block["locale"].unique())
    table = pd.concat(blocks)
    if not len(table):
        raise DataError(
            f"{path}: no session of locale {locale}, only {', '.join(sorted(locales)) or 'none'}; "
            "put the file with all locales there"
        )
    return table


def _session_rows(path: Path, sessions: pd.DataFrame, split: str) -> pd.DataFrame:
    items = []
    for row, text in sessions["prev_items"].items():
        if not _SESSION.fullmatch(text):
            raise DataError(
                f"{path}: session {row} (counted from 0): prev_items {text[:40]!r} is no list "
                "like ['A' 'B']; write every id, quoted"
            )
        items.append(_SESSION_ITEM.findall(text))
    blank = sessions.index[sessions["next_item"] == ""]
    if len(blank):
        raise DataError(f"{path}: session {blank[0]} (counted from 0): has no next_item; add it")
    whole = [[*before, last] for before, last in zip(items, sessions["next_item"], strict=True)]
    lengths = np.array([len(session) for session in whole])
    starts = np.cumsum(lengths) - lengths
    names = np.array([f"{split}:{row}" for row in sessions.index])
    return pd.DataFrame(
        {
            "user": np.repeat(names, lengths),
            "item": np.array([item for session in whole for item in session]),
            "time": np.arange(lengths.sum()) - np.repeat(starts, lengths),
        }
    )
