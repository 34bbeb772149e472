"""Content to the size of an item embedding: standardise, PCA, unit rows, all fitted on warm items.

Source: "Let It Go? Not Quite", section 3 (content preparation), and the code published with it.
"""

from typing import Any, NamedTuple

import numpy as np
from sklearn.decomposition import PCA
from sklearn.preprocessing import StandardScaler

from jaxcold.data import content as vectors
from jaxcold.types import DataError


class Reduction(NamedTuple):
    """``unit_rows((x - mean) / scale @ components.T)``; F features in, d numbers out."""

    mean: np.ndarray  # f64[F]
    scale: np.ndarray  # f64[F]
    components: np.ndarray  # f64[d, F]

    def __call__(self, rows: np.ndarray) -> np.ndarray:
        """f32[n, d] rows of norm one from raw features [n, F]."""
        rows = (np.asarray(rows, np.float64) - self.mean) / self.scale
        return vectors.unit_rows(rows @ self.components.T)


def fit(rows: np.ndarray, size: int, *, seed: int = 0) -> Reduction:
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
