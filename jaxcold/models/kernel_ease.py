"""Kernel ridge regression from content onto clicks that EASE completes, reduced to a few numbers.

With R the clicks of m users on n warm items, K the kernel of their content and A its regularised
inverse,

    B = I - P / diag(P),  P = (R' R + ease_l2 I)^(-1)         EASE: items that are clicked together
    Q = R + completion R B                                    the clicks, completed
    A = (K + l2 I)^(-1)
    scores of the warm items  M = Q A K,  of any content c  Q A k(warm, c)

What a user might have clicked teaches the regression as well. M is reduced to its `width` largest
singular directions, ``M V = U S``: an item has the vector ``S^(-1) U' Q A k(warm, c)``, a click on
warm item i adds row i of ``(I + completion B) A K V`` to the user. A click on an item that was not
warm adds what kernel ridge regression, with the same A, predicts of such a row from content.

The exact kernel takes ``n^3 / 3`` multiplications and ``2 n^2`` bytes, EASE ``m^3`` and ``4 m^2``
(of at most `EASE_USERS` users, those with the most clicks); the other products are thin. A new
item costs n (F + 2 width) multiplications, with F the number of whitened features.

Source: the kernel as of `jaxcold.models.kernel_ridge`; EASE: Steck, Embarrassingly Shallow
Autoencoders for Sparse Data, WWW 2019, equation 8.
"""

import dataclasses
from collections.abc import Callable
from typing import NamedTuple

import jax.numpy as jnp
import numpy as np
import scipy.linalg
import scipy.sparse
from jax import Array

from jaxcold.models import closed_form, kernel_ridge
from jaxcold.models.closed_form import BLOCK, Catalogue, Projection

EASE_USERS = 8_192  # whose clicks EASE learns from, at most
_OVERSAMPLING = 32  # directions beyond those that are kept
_ITERATIONS = 2  # of the subspace iteration

Thin = Callable[[np.ndarray], np.ndarray]  # a product with f32[n, r], of the same shape


@dataclasses.dataclass(frozen=True, eq=False)
class Encoder:
    """What embeds content: ``kernel(white(content), rows) @ weights``."""

    white: Projection
    rows: Array  # f32[k, F] whitened content of the items that it is compared with
    weights: Array  # f32[k, 2 width]: for the vector of an item, and of a click on it

    def __call__(self, block: np.ndarray | Array) -> Array:
        """f32[BLOCK, F] -> f32[BLOCK, 2 width]."""
        compared = kernel_ridge.kernel(self.white(block), self.rows)
        return jnp.matmul(compared, self.weights, precision="highest")


class Solution(NamedTuple):
    """A fitted model."""

    encoder: Encoder
    clicks: np.ndarray  # f32[n, width]: what a click on each warm item adds to a user


def solve(
    catalogue: Catalogue,
    clicks: scipy.sparse.csr_array,
    *,
    width: int,
    l2: float,
    ease_l2: float,
    completion: float,
    landmarks: int | None = None,
    seed: int = 0,
) -> Solution:
    """Solves for the encoder and the vectors of clicks.

    Args:
        catalogue: content and the n warm items.
        clicks: f32[m, n], the clicks of users on warm items.
        width: numbers of an item; at most as many as there are users or warm items are used.
        l2: of kernel ridge regression; positive.
        ease_l2: of EASE; positive.
        completion: weight of what EASE completes; 0: the clicks alone.
        landmarks: see `jaxcold.models.kernel_ridge.landmark_ridge`; None: the kernel is exact.
        seed: of the subspace that the iteration starts from.

    Raises:
        ValueError: for an argument out of range.
    """
    closed_form.check_l2((l2,))
    if not 0 < ease_l2 < np.inf:
        raise ValueError(f"model.ease_l2 is a positive number, not {ease_l2}")
    if not 0 <= completion < np.inf:
        raise ValueError(f"model.completion is a number from 0, not {completion}")
    if width < 1:
        raise ValueError(f"model.width is at least 1, not {width}")
    white = closed_form.whitening(catalogue)
    warm = closed_form.encode(catalogue.content, white, catalogue.warm)
    inverse, rows, to_weights = (
        _exact(warm, l2) if landmarks is None else _approximate(warm, l2, landmarks)
    )
    ease, ease_t = _ease(clicks, ease_l2) if completion else (np.zeros_like, np.zeros_like)

    def completed(x: np.ndarray) -> np.ndarray:  # Q x
        return clicks @ (x + completion * ease(x))

    def completed_t(y: np.ndarray) -> np.ndarray:  # Q' y
        x = clicks.T @ y
        return x + completion * ease_t(x)

    def smooth(x: np.ndarray) -> np.ndarray:  # A K x = K A x
        return x - l2 * inverse(x)

    def scores(x: np.ndarray) -> np.ndarray:  # M x
        return completed(smooth(x))

    def scores_t(y: np.ndarray) -> np.ndarray:  # M' y
        return smooth(completed_t(y))

    size = min(width + _OVERSAMPLING, *clicks.shape)
    start = np.random.default_rng(seed).normal(size=(clicks.shape[1], size))
    left, values, right = _truncated_svd(scores, scores_t, start.astype(np.float32))
    kept = np.flatnonzero(values[:width] > 1e-6 * values[:1])
    left, values, right = left[:, kept], values[kept], right[:, kept]
    click = smooth(right)
    click = click + completion * ease(click)
    weights = inverse(np.concatenate([completed_t(left / values), click], axis=1))
    return Solution(Encoder(white, jnp.asarray(rows), jnp.asarray(to_weights(weights))), click)


def _truncated_svd(
    product: Thin, transposed: Thin, start: np.ndarray
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """U f32[m, r], S f32[r] and V f32[n, r] of the largest singular directions of a matrix.

    Args:
        product: f32[n, r] -> f32[m, r], with the matrix.
        transposed: f32[m, r] -> f32[n, r], with its transpose.
        start: f32[n, r] random.

    Source: Halko, Martinsson and Tropp, Finding Structure with Randomness, SIAM Review 2011,
    algorithms 4.4 and 5.1.
    """
    left = np.linalg.qr(product(start))[0]
    for _ in range(_ITERATIONS):
        left = np.linalg.qr(product(np.linalg.qr(transposed(left))[0]))[0]
    v, s, u = np.linalg.svd(transposed(left), full_matrices=False)
    return left @ u.T, s, v


def _exact(warm: np.ndarray, l2: float) -> tuple[Thin, np.ndarray, Thin]:
    """What the kernel matrix gives: see Returns.

    Args:
        warm: f32[n, F] whitened content of the warm items.
        l2: positive.

    Returns:
        The product with ``(K + l2 I)^(-1)``, the items that new ones are compared with, and the
        map from weights of the warm items to weights of these.
    """
    tiles = kernel_ridge.tiles_of(warm)
    lower = kernel_ridge.factorise(tiles, l2)
    padding = len(tiles) * len(tiles[0]) - len(warm)

    def inverse(x: np.ndarray) -> np.ndarray:
        padded = jnp.asarray(np.pad(x, ((0, padding), (0, 0))))
        return kernel_ridge.solve(lower, padded)[: len(warm)]

    return inverse, warm, lambda weights: weights


def _approximate(warm: np.ndarray, l2: float, count: int) -> tuple[Thin, np.ndarray, Thin]:
    """As `_exact`, in the features Z of random landmarks: K is close to ``Z Z'``."""
    order = np.sort(np.random.default_rng(0).permutation(len(warm))[:count])
    rows = jnp.asarray(warm[order])
    to_features = np.asarray(kernel_ridge.landmark_map(rows)).T
    blocks = [warm[start : start + BLOCK] for start in range(0, len(warm), BLOCK)]
    features = np.concatenate([np.asarray(kernel_ridge.kernel(b, rows)) for b in blocks])
    features = features @ to_features
    gram = (features.T @ features).astype(np.float64)
    gram[np.diag_indices_from(gram)] += l2
    factor = scipy.linalg.cho_factor(gram, overwrite_a=True)

    def inverse(x: np.ndarray) -> np.ndarray:
        inner = scipy.linalg.cho_solve(factor, features.T @ x)
        return (x - features @ inner.astype(np.float32)) / l2

    return inverse, warm[order], lambda weights: to_features @ (features.T @ weights)


def _ease(clicks: scipy.sparse.csr_array, l2: float) -> tuple[Thin, Thin]:
    """Products with EASE's item weights B and with their transpose.

    By the identity ``(R' R + l2 I)^(-1) = (I - R' H R) / l2`` with ``H = (R R' + l2 I)^(-1)``, of
    users rather than items.
    """
    counts = np.diff(clicks.indptr)
    chosen = np.sort(np.argsort(-counts, kind="stable")[:EASE_USERS])
    rows = clicks[chosen]
    gram = (rows @ rows.T).toarray().astype(np.float64)
    gram[np.diag_indices_from(gram)] += l2
    inverse = _inverse(gram).astype(np.float32)
    columns = rows.T.tocsr()
    quadratic = np.zeros(columns.shape[0], np.float32)  # r' H r of every item's users
    for start in range(0, len(quadratic), BLOCK):
        block = columns[start : start + BLOCK]
        quadratic[start : start + BLOCK] = block.multiply(block @ inverse).sum(axis=1)
    diagonal = ((1 - quadratic) / l2)[:, None]

    def precision(x: np.ndarray) -> np.ndarray:
        return (x - columns @ (inverse @ (rows @ x))) / l2

    return (
        lambda x: x - precision(x / diagonal),
        lambda x: x - precision(x) / diagonal,
    )


def _inverse(matrix: np.ndarray) -> np.ndarray:
    """f64[m, m]: the inverse of a symmetric positive definite matrix, which is overwritten.

    By LAPACK's potrf and potri: half the work of `scipy.linalg.inv`, which also crashed the
    process for m = 16,384 (SciPy 1.17).
    """
    lower, _ = scipy.linalg.cho_factor(matrix, lower=True, overwrite_a=True, check_finite=False)
    triangle, _ = scipy.linalg.lapack.dpotri(lower, lower=True, overwrite_c=True)
    triangle = np.tril(triangle)
    return triangle + np.tril(triangle, -1).T
