"""Unit rows and means over histories on the host: the arithmetic of content vectors."""

import mmap

import numpy as np
import scipy.sparse

from jaxcold.files import check_mapped
from jaxcold.types import Csr

# Numbers read at once: few enough for the processor's cache while they become unit rows.
_CHUNK = 1 << 20


def unit_rows(rows: np.ndarray) -> np.ndarray:
    """f32[n, D] rows of norm one from rows of any float type; zero rows stay zero."""
    rows = np.asarray(rows, np.float32)
    # Squares of float32 overflow at 1e19 and vanish at 1e-23; float64 holds them all.
    norm = np.sqrt(np.einsum("nd,nd->n", rows, rows, dtype=np.float64))[:, None]
    known = norm > 0
    unit = np.divide(rows, np.where(known, norm, 1), out=np.empty_like(rows))
    unit[~known[:, 0]] = 0
    return unit


def take(table: np.ndarray, ids: np.ndarray) -> np.ndarray:
    """``table[ids]``, after which no row of a table mapped from a file is in this process's memory.

    Otherwise a table that is read here and there ends up there as a whole. The pages stay in the
    system's cache while it has room for them, and come back from there at little cost.

    Raises:
        DataError: if the file of a mapped table has gone, see `jaxcold.files.check_mapped`.
    """
    check_mapped(table)
    rows = np.asarray(table[ids])
    # What others may have written to a mapping must not be lost: only those for reading.
    if getattr(table, "mode", None) == "r" and hasattr(mmap, "MADV_DONTNEED"):
        owner: object = table
        while isinstance(owner, np.ndarray):
            owner = owner.base
        if isinstance(owner, mmap.mmap):
            owner.madvise(mmap.MADV_DONTNEED)
    return rows


def take_unit_rows(table: np.ndarray, present: np.ndarray, ids: np.ndarray) -> np.ndarray:
    """f32[n, D]: unit rows of a table, read a chunk at a time; see `take` and `unit_rows`.

    Args:
        table: [I, D] features of any float type, possibly memory-mapped.
        present: bool[I]; where False the row is zero, and not read.
        ids: int[n]; -1 for a row of zeros.

    Raises:
        DataError: see `take`.
    """
    rows = np.zeros((len(ids), table.shape[1]), np.float32)
    known = np.flatnonzero((ids >= 0) & present[ids])
    step = max(1, _CHUNK // table.shape[1])
    for start in range(0, len(known), step):
        at = known[start : start + step]
        rows[at] = unit_rows(take(table, ids[at]))
    return rows


def history_means(histories: Csr, item: np.ndarray) -> np.ndarray:
    """f32[U, D]: unit mean of the item vectors f32[I, D] of each user; zero without a history."""
    ones = np.ones(len(histories.indices), np.float32)
    matrix = scipy.sparse.csr_array(
        (ones, histories.indices, histories.indptr), (histories.rows, len(item))
    )
    return unit_rows(matrix @ item)  # the sum has the mean's direction
