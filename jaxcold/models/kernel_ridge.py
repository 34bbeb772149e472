"""Kernel ridge regression from content onto clicks: exact, or in the features of some landmarks.

With z the unit rows of centred and whitened content, the kernel is linear plus the arc-cosine
kernel of order 1, ``k(i, j) = c + (sin t + (pi - t) c) / pi`` with ``c = cos t = z_i . z_j``. The
scores of a user whose history is r, a count for each of the n warm items, are
``r (K + l2 I)^(-1) k(warm, i)``.

Exact: an item's vector is its n kernel values to the warm items, a user's ``(K + l2 I)^(-1) r``.
The Cholesky factor is held in square tiles of its lower half: ``2 n^2`` bytes (0.37 GB for 13,584
warm items, 1.8 GB for `EXACT_ITEMS`) beside ``4 n I`` bytes for the vectors of I items. It takes
``n^3 / 3`` multiplications, and a user ``2 n^2``.

Landmarks: with L the Cholesky factor of the kernel among m warm items, the rows
``z = L^(-1) k(landmarks, i)`` have ``z_i . z_j`` close to k(i, j), and ridge regression on them
takes m numbers per item. What they lack of k(i, i), the same for all items on average, is added to
l2. One decomposition serves all l2.

Source: Cho and Saul, Kernel Methods for Deep Learning, NIPS 2009, equation 6; Williams and Seeger,
Using the Nystroem Method to Speed Up Kernel Machines, NIPS 2000.
"""

import functools
from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import scipy.sparse
from jax import Array

from jaxcold.data.pairs.dataset import Dataset
from jaxcold.data.sequences.dataset import SequenceDataset
from jaxcold.models.closed_form import (
    Catalogue,
    Projection,
    RowMap,
    check_l2,
    encode,
    model_of_rows,
    ridge_projections,
    warm_rows,
    whitening,
)
from jaxcold.types import Csr, Model, untrained

EXACT_ITEMS = 30_000  # warm items up to which the kernel matrix is factorised
LANDMARKS = 4096  # beyond
_TILE = 1024  # rows of a tile, at most
_USERS = 1024  # users that are solved for at once, at most
_JITTER = 1e-4  # on the diagonal of the landmarks' kernel, whose entries are 2

_product = functools.partial(jnp.matmul, precision="highest")


@jax.jit
def kernel(x: Array, y: Array) -> Array:
    """[n, m]: linear plus arc-cosine kernel of unit rows [n, D] and [m, D].

    A row of zeros, an item without content, has the kernel value 0 with all.
    """
    cosine = jnp.clip(_product(x, y.T), -1, 1)
    arc = jnp.sqrt(1 - cosine * cosine) + (jnp.pi - jnp.arccos(cosine)) * cosine
    known = jnp.any(x != 0, axis=1)[:, None] & jnp.any(y != 0, axis=1)[None, :]
    return jnp.where(known, cosine + arc / jnp.pi, 0)


@jax.jit
def _add_diagonal(tile: Array, value: Array) -> Array:
    return tile + value * jnp.eye(len(tile), dtype=tile.dtype)


@functools.partial(jax.jit, donate_argnums=0, static_argnames=("left_t", "right_t"))
def _subtract(
    tile: Array, left: Array, right: Array, *, left_t: bool = False, right_t: bool = False
) -> Array:
    return tile - _product(left.T if left_t else left, right.T if right_t else right)


@functools.partial(jax.jit, static_argnames=("left_t", "right_t"))
def _multiply(left: Array, right: Array, *, left_t: bool = False, right_t: bool = False) -> Array:
    return _product(left.T if left_t else left, right.T if right_t else right)


@jax.jit
def _inverse_factor(tile: Array) -> Array:
    lower = jnp.linalg.cholesky(tile)
    return jax.scipy.linalg.solve_triangular(lower, jnp.eye(len(tile)), lower=True)


# Row i has the tiles [b, b] of columns 0 .. i; the last one holds the inverse of its triangle.
Factor = list[list[Array]]


def tiles_of(rows: np.ndarray) -> list[Array]:
    """f32[n, D] in blocks of one size, at most `_TILE` rows; the last one is padded with zeros."""
    count = -(-len(rows) // _TILE)
    padded = np.pad(rows, ((0, -len(rows) % count), (0, 0)))
    return [jnp.asarray(block) for block in np.split(padded, count)]


def factorise(tiles: Sequence[Array], l2: float) -> Factor:
    """The Cholesky factor of ``K + l2 I``.

    Args:
        tiles: unit rows of the n warm items in blocks [b, D], the last one padded with zeros.
        l2: positive.
    """
    lower: Factor = []
    for i, rows in enumerate(tiles):
        lower.append([])
        for j in range(i + 1):
            tile = kernel(rows, tiles[j])
            if i == j:
                tile = _add_diagonal(tile, l2)
            for k in range(j):
                tile = _subtract(tile, lower[i][k], lower[j][k], right_t=True)
            is_diagonal = i == j
            lower[i].append(
                _inverse_factor(tile) if is_diagonal else _multiply(tile, lower[j][j], right_t=True)
            )
    return lower


def solve(lower: Factor, right: Array) -> np.ndarray:
    """``(K + l2 I)^(-1) right``: [n + padding, m] -> f32[n + padding, m]."""
    blocks: list[Any] = jnp.split(right, len(lower))
    for i, row in enumerate(lower):
        for k in range(i):
            blocks[i] = _subtract(blocks[i], row[k], blocks[k])
        blocks[i] = _multiply(row[i], blocks[i])
    for i in reversed(range(len(lower))):
        for k in range(i + 1, len(lower)):
            blocks[i] = _subtract(blocks[i], lower[k][i], blocks[k], left_t=True)
        blocks[i] = _multiply(lower[i][i], blocks[i], left_t=True)
    return np.concatenate([np.asarray(block) for block in blocks])


def kernel_ridge(
    dataset: Dataset | SequenceDataset,
    *,
    l2: float,
    max_length: int | None = None,
    padding_item: bool = False,
) -> Model:
    """Exact kernel ridge regression; cold items of a history do not count.

    Args:
        dataset: of pairs or of sequences, with content.
        l2: what is added to the diagonal of the kernel matrix; positive.
        max_length: items of a history that count, the last ones; None: all.
        padding_item: one more item, a row of zeros, see `content_knn.build`.

    Raises:
        DataError: if there is no content.
        ValueError: for an l2 that is not positive.
    """
    check_l2((l2,))
    catalogue = Catalogue.of(dataset, max_length, padding_item)
    white = whitening(catalogue)
    warm = encode(catalogue.content, white, catalogue.warm)  # f32[n, D]
    tiles = tiles_of(warm)
    padding = len(tiles) * len(tiles[0]) - len(warm)
    lower = factorise(tiles, l2)
    landmarks = jnp.asarray(warm)

    def encode_items(params: Any, model_state: Any, content: Any = None) -> np.ndarray:
        del params, model_state
        return catalogue.encode(lambda rows: kernel(white(rows), landmarks), content)

    def encode_users(
        params: Any, model_state: Any, item_vectors: np.ndarray, histories: Csr
    ) -> np.ndarray:
        del params, model_state
        counts = _warm_counts(catalogue.read(histories), catalogue.warm, len(item_vectors))
        result = np.zeros((histories.rows, len(warm)), np.float32)
        width = min(_USERS, histories.rows)
        for start in range(0, histories.rows, max(width, 1)):
            block = counts[start : start + width].toarray()
            right = np.pad(block, ((0, width - len(block)), (0, padding))).T
            columns = solve(lower, jnp.asarray(right))
            result[start : start + len(block)] = columns[: len(warm), : len(block)].T
        return result

    return untrained(encode_items, encode_users)


def _warm_counts(histories: Csr, warm: np.ndarray, items: int) -> Any:
    """Sparse f32[m, n]: how often each warm item occurs in each history."""
    place = np.full(items, -1)
    place[warm] = np.arange(len(warm))
    column = place[histories.indices]
    known = column >= 0
    ones = np.ones(np.count_nonzero(known), np.float32)
    at = histories.row_of_entry[known], column[known]
    return scipy.sparse.csr_array((ones, at), (histories.rows, len(warm)))


def landmark_map(rows: Array) -> Array:
    """f32[m, m]: ``L^(-1)``, from kernel values to features, of landmarks f32[m, F]."""
    return _inverse_factor(_add_diagonal(kernel(rows, rows), _JITTER))


def landmark_ridge(
    dataset: Dataset | SequenceDataset,
    *,
    l2: Sequence[float],
    landmarks: int = LANDMARKS,
    max_length: int | None = None,
    padding_item: bool = False,
) -> dict[float, Model]:
    """Kernel ridge regression in the features of landmarks, a model for each l2.

    Args:
        dataset: of pairs or of sequences, with content.
        l2: as for `kernel_ridge`, which this approximates for the same value.
        landmarks: m warm items, drawn at random; at most all of them, and then the result is
            that of `kernel_ridge` up to rounding.
        max_length: items of a history that count, the last ones; None: all.
        padding_item: one more item, a row of zeros, see `content_knn.build`.

    Raises:
        DataError: if there is no content.
        ValueError: for an l2 that is not positive.
    """
    catalogue = Catalogue.of(dataset, max_length, padding_item)
    white = whitening(catalogue)
    order = np.random.default_rng(0).permutation(len(catalogue.warm))[:landmarks]
    rows = jnp.asarray(encode(catalogue.content, white, catalogue.warm[np.sort(order)]))
    inverse = landmark_map(rows)

    def features(block: Any) -> Array:
        return _multiply(kernel(white(block), rows), inverse, right_t=True)

    projections = ridge_projections(catalogue, features, l2, _residual(catalogue, features))

    def of_features(projection: Projection) -> RowMap:
        return lambda block: projection(features(block))

    return {value: model_of_rows(catalogue, of_features(p)) for value, p in projections.items()}


def _residual(catalogue: Catalogue, features: RowMap) -> float:
    """Mean over the warm items with content of what the features lack of k(i, i), which is 2."""
    lacking, items = 0.0, 0
    for rows, count in warm_rows(catalogue, features):
        square = np.square(np.asarray(rows)[:count]).sum(1, dtype=np.float64)
        lacking += float((2 - square[square > 0]).sum())
        items += int(np.count_nonzero(square))
    return max(lacking / max(items, 1), 0.0)
