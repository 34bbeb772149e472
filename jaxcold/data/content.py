"""Content features on the host: unit rows, history means, checks, and their reduction by PCA."""

import hashlib
import mmap
from collections.abc import Iterator, Mapping
from typing import Any, NamedTuple

import numpy as np
import scipy.sparse

from jaxcold.files import check_mapped
from jaxcold.types import Csr, DataError

# Numbers read at once: few enough for the processor's cache while they become unit rows.
_CHUNK = 1 << 20
# Ratio of the sizes of columns from which the estimators standardise a table.
SCALES = 30.0
_FLOAT32_MAX = float(np.finfo(np.float32).max)


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
    """``table[ids]``; the pages of a mapped table are released afterwards.

    Otherwise random reads would leave the whole table in this process's memory. The system's
    cache may keep the pages, from which reading them again costs little.

    Raises:
        DataError: if the file of a mapped table has gone, see `jaxcold.files.check_mapped`.
    """
    check_mapped(table)
    rows = np.asarray(table[ids])
    # Only read-only mappings: releasing a writable one would lose what was written to it.
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


def stacked_unit_rows(
    tables: Mapping[str, np.ndarray], present: Mapping[str, np.ndarray], ids: np.ndarray
) -> np.ndarray:
    """f32[n, F]: the unit rows of all modes side by side, of norm sqrt(modes) where all are there.

    Args:
        tables: mode -> [I, D_m] features of any float type, possibly memory-mapped; F is the sum
            of their widths.
        present: mode -> bool[I]; where False the mode's numbers are zero.
        ids: int[n]; -1 for a row of zeros.

    Raises:
        DataError: see `take`.
    """
    return np.concatenate(
        [take_unit_rows(table, present[mode], ids) for mode, table in tables.items()], axis=1
    )


def history_means(
    histories: Csr, item: np.ndarray, weights: np.ndarray | None = None
) -> np.ndarray:
    """f32[U, D]: unit mean of the item vectors f32[I, D] of each user; zero without a history.

    With weights f32[n], one per entry of the histories, it is the weighted mean.
    """
    # The sum has the mean's direction.
    return unit_rows(history_sums(histories, item, weights))


def history_sums(histories: Csr, item: np.ndarray, weights: np.ndarray | None = None) -> np.ndarray:
    """f32[U, D]: sum of the item vectors f32[I, D] of each user, by weights f32[n] if given."""
    values = np.ones(len(histories.indices), np.float32) if weights is None else weights
    matrix = scipy.sparse.csr_array(
        (values, histories.indices, histories.indptr), (histories.rows, len(item))
    )
    return matrix @ item


def distinct_rows(tables: Mapping[str, np.ndarray]) -> int:
    """How many items differ in content: distinct rows over all modes, by a hash of their bytes.

    Args:
        tables: mode -> [I, D], possibly memory-mapped; read a chunk at a time.
    """
    hashes = [hashlib.blake2b(digest_size=16) for _ in range(len(next(iter(tables.values()))))]
    for table in tables.values():
        for start, chunk in _chunks(table):
            # Adding 0 makes -0 and 0 the same bytes.
            for row, values in enumerate(np.ascontiguousarray(chunk + chunk.dtype.type(0))):
                hashes[start + row].update(values)
    return len({hashed.digest() for hashed in hashes})


def describe_degenerate(tables: Mapping[str, np.ndarray]) -> list[str]:
    """One line for each mode whose features say little: all zero, all equal, constant columns.

    Args:
        tables: mode -> [I, D], possibly memory-mapped; read a chunk at a time.
    """
    lines = []
    for mode, table in tables.items():
        if not len(table):
            continue
        first = np.asarray(table[0])
        constant = np.ones(table.shape[1], bool)
        for _, chunk in _chunks(table):
            constant &= (chunk == first).all(axis=0)
        columns = np.flatnonzero(constant)
        if constant.all() and not first.any():
            lines.append(f"content mode {mode}: every feature is zero; it tells no items apart")
        elif constant.all():
            lines.append(f"content mode {mode}: all rows are equal; it tells no items apart")
        elif len(columns):
            names = ", ".join(map(str, columns[:5])) + (", ..." if len(columns) > 5 else "")
            lines.append(
                f"content mode {mode}: {len(columns)} of {table.shape[1]} columns are constant "
                f"({names}, counted from 0); remove them"
            )
    return lines


class Scaling(NamedTuple):
    """Standardisation of columns: ``(x - mean) * factor``."""

    mean: np.ndarray  # f64[F]
    factor: np.ndarray  # f64[F]: 1 / standard deviation; 0 of a constant column

    def __call__(self, rows: np.ndarray) -> np.ndarray:
        """f32[n, F] from raw features [n, F]; NaN stays NaN."""
        scaled = (np.asarray(rows, np.float64) - self.mean) * self.factor
        return np.clip(scaled, -_FLOAT32_MAX, _FLOAT32_MAX).astype(np.float32)


def fit_scaling(table: np.ndarray, rows: np.ndarray, *, always: bool) -> Scaling | None:
    """The standardisation of a table by some of its rows, if its columns need one.

    They need one where the largest column is more than `SCALES` times as large as a quarter of
    the columns; the size of a column is the root mean square of its values other than 0. So
    neither rare genres nor a few columns of rounding noise count as a difference of scale.

    Args:
        table: [I, F] features of any float type, possibly memory-mapped.
        rows: int[n] that decide, all finite.
        always: standardise whatever the sizes.
    """
    width = table.shape[1]
    count, total, square, centred = np.zeros((4, width))
    if not len(rows):
        return None
    origin = np.asarray(table[rows[0]], np.float64)  # against cancellation in the variance
    step = max(1, _CHUNK // width)
    for start in range(0, len(rows), step):
        chunk = np.asarray(take(table, rows[start : start + step]), np.float64)
        count += np.count_nonzero(chunk, axis=0)
        square += np.einsum("nd,nd->d", chunk, chunk)
        chunk -= origin
        total += chunk.sum(axis=0)
        centred += np.einsum("nd,nd->d", chunk, chunk)
    size = np.sqrt(square[count > 0] / count[count > 0])
    if not always and not (len(size) and size.max() > SCALES * _lower_quartile(size)):
        return None
    shift = total / len(rows)
    deviation = np.sqrt(np.maximum(centred / len(rows) - shift**2, 0))
    varies = deviation > 1e-7 * np.maximum(np.abs(origin), np.abs(origin + shift))
    factor = np.divide(1, deviation, out=np.zeros(width), where=varies)
    return Scaling(origin + shift, factor)


def _lower_quartile(values: np.ndarray) -> float:
    return float(np.quantile(values, 0.25, method="lower"))


def _chunks(table: np.ndarray) -> Iterator[tuple[int, np.ndarray]]:
    """(first row, rows) of a table, few enough rows to stay in the processor's cache."""
    step = max(1, _CHUNK // table.shape[1])
    for start in range(0, len(table), step):
        yield start, take(table, np.arange(start, min(start + step, len(table))))


class Reduction(NamedTuple):
    """Standardisation, PCA and unit rows, fitted on warm items.

    ``unit_rows((x - mean) / scale @ components.T)``; F features in, d numbers
    out. Source: "Let It Go? Not Quite", section 3, and the code published with it.
    """

    mean: np.ndarray  # f64[F]
    scale: np.ndarray  # f64[F]
    components: np.ndarray  # f64[d, F]

    def __call__(self, rows: np.ndarray) -> np.ndarray:
        """f32[n, d] rows of norm one from raw features [n, F]."""
        rows = (np.asarray(rows, np.float64) - self.mean) / self.scale
        return unit_rows(rows @ self.components.T)


def fit_reduction(rows: np.ndarray, size: int, *, seed: int = 0) -> Reduction:
    """Fits a reduction on the rows of warm items.

    A feature that is constant there is centred and not scaled. Where scikit-learn takes its
    randomised solver, `seed` makes it repeatable.

    Args:
        rows: f[n, F] raw features, of any float type.
        size: d, the numbers that an item keeps.
        seed: of the solver.

    Raises:
        DataError: if d is more than n or F, which leave no d components.
    """
    # Imported here: reading data needs no scikit-learn.
    from sklearn.decomposition import PCA
    from sklearn.preprocessing import StandardScaler

    rows = np.asarray(rows, np.float64)
    if not 1 <= size <= min(rows.shape):
        raise DataError(
            f"content: {rows.shape[0]} warm items with {rows.shape[1]} features cannot be reduced "
            f"to {size} numbers; set model.dim to at most {min(rows.shape)}"
        )
    scaler = StandardScaler().fit(rows)
    pca: Any = PCA(size, random_state=seed).fit(scaler.transform(rows))
    # PCA's own centre is the mean of standardised rows: zero up to rounding.
    return Reduction(scaler.mean_ + pca.mean_ * scaler.scale_, scaler.scale_, pca.components_)
