"""Unit rows and means over histories on the host: the arithmetic of content vectors."""

import numpy as np
import scipy.sparse

from jaxcold.types import Csr


def unit_rows(rows: np.ndarray) -> np.ndarray:
    """f32[n, D] rows of norm one from rows of any float type; zero rows stay zero."""
    rows = np.asarray(rows, np.float32)
    # Squares of float32 overflow at 1e19 and vanish at 1e-23; float64 holds them all.
    norm = np.sqrt(np.einsum("nd,nd->n", rows, rows, dtype=np.float64))[:, None]
    return np.divide(rows, norm, out=np.zeros_like(rows), where=norm > 0)


def history_means(histories: Csr, item: np.ndarray) -> np.ndarray:
    """f32[U, D]: unit mean of the item vectors f32[I, D] of each user; zero without a history."""
    ones = np.ones(len(histories.indices), np.float32)
    matrix = scipy.sparse.csr_array(
        (ones, histories.indices, histories.indptr), (histories.rows, len(item))
    )
    return unit_rows(matrix @ item)  # the sum has the mean's direction
