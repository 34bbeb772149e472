"""Slow, obvious NumPy versions of the sparse maps, in float64; nothing shared with the library."""

import numpy as np


def entmax(z: np.ndarray, alpha: float) -> np.ndarray:
    """Rows of alpha-entmax by bisection on the threshold, down to neighbouring floats."""
    z = np.asarray(z, np.float64)
    if alpha == 1:
        e = np.exp(z - z.max(-1, keepdims=True))
        return e / e.sum(-1, keepdims=True)
    out = np.zeros_like(z)
    for index in np.ndindex(z.shape[:-1]):
        s = (alpha - 1) * (z[index] - z[index].max())
        low, high = -1.0, 0.0
        for _ in range(200):
            middle = (low + high) / 2
            mass = np.sum(np.maximum(s - middle, 0) ** (1 / (alpha - 1)))
            low, high = (middle, high) if mass >= 1 else (low, middle)
        p = np.maximum(s - low, 0) ** (1 / (alpha - 1))
        out[index] = p / p.sum()
    return out


def entropy(p: np.ndarray, alpha: float) -> np.ndarray:
    """Tsallis' entropy of each row."""
    if alpha == 1:
        return -np.sum(np.where(p > 0, p * np.log(np.where(p > 0, p, 1)), 0), -1)
    return (1 - np.sum(p**alpha, -1)) / (alpha * (alpha - 1))


def fenchel_young(
    z: np.ndarray, t: np.ndarray, alpha: float, tau: float = 1.0, autodiff: bool = False
) -> np.ndarray:
    """The loss of each row for a target distribution, as the definition says."""
    p = entmax(z / tau, alpha)
    gap = p - t
    if autodiff:
        return (gap * z).sum(-1) + entropy(p, alpha)
    return (gap * z).sum(-1) + tau * (entropy(p, alpha) - entropy(t, alpha))


def jacobian(p: np.ndarray, alpha: float) -> np.ndarray:
    """[n, n] Jacobian of entmax at one row p."""
    w = np.where(p > 0, np.where(p > 0, p, 1) ** (2 - alpha), 0)
    return np.diag(w) - np.outer(w, w) / w.sum()


def normmax(z: np.ndarray, alpha: float) -> np.ndarray:
    """One row of normmax by bisection: p ~ max(z - tau, 0) ** (1 / (alpha - 1))."""
    low, high = z.max() - 1, z.max()
    for _ in range(200):
        middle = (low + high) / 2
        mass = np.sum(np.maximum(z - middle, 0) ** (alpha / (alpha - 1)))
        low, high = (middle, high) if mass >= 1 else (low, middle)
    q = np.maximum(z - low, 0) ** (1 / (alpha - 1))
    return q / q.sum()


def budget(z: np.ndarray, total: float) -> np.ndarray:
    """One row of clip(z - tau, 0, 1) with the given sum, by bisection."""
    low, high = z.min() - 1, z.max()
    for _ in range(200):
        middle = (low + high) / 2
        low, high = (middle, high) if np.clip(z - middle, 0, 1).sum() >= total else (low, middle)
    return np.clip(z - low, 0, 1)


def entmax_by_level(z: np.ndarray, alpha: float) -> np.ndarray:
    """Rows of entmax for alpha below 1 by bisection: p = (1 + (alpha - 1)(u - level)) ^ (1 / e)."""
    u, e = z - z.max(-1, keepdims=True), alpha - 1

    def power(level: np.ndarray) -> np.ndarray:
        return (1 + e * (u - level)) ** (1 / e)

    low = np.zeros((*z.shape[:-1], 1))
    high = low + (1 - z.shape[-1] ** -e) / e
    for _ in range(200):
        middle = (low + high) / 2
        enough = power(middle).sum(-1, keepdims=True) >= 1
        low, high = np.where(enough, middle, low), np.where(enough, high, middle)
    return power(low)
