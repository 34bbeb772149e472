"""Sparse alternatives to softmax: maps from logits to probabilities with exact zeros."""

import functools
from typing import Any

import jax
import jax.numpy as jnp
from jax.typing import ArrayLike

from jaxcold.sparse._threshold import threshold as _threshold


@functools.partial(jax.custom_jvp, nondiff_argnums=(1,))
def _map(z: jax.Array, alpha: float) -> jax.Array:
    """alpha-entmax of the last axis; a row without a finite entry becomes zeros."""
    if alpha == 1:
        top = jnp.max(z, -1, keepdims=True)
        e = jnp.exp(z - jnp.where(top == -jnp.inf, 0.0, top))
        return e / jnp.maximum(e.sum(-1, keepdims=True), jnp.finfo(z.dtype).tiny)
    top = jnp.max(z, -1, keepdims=True)
    s = (alpha - 1) * (z - jnp.where(top == -jnp.inf, 0.0, top))
    x = jnp.maximum(s - _threshold(s, alpha)[..., None], 0.0)
    p = jnp.where(x > 0, x ** (1 / (alpha - 1)), 0.0)
    return p / jnp.maximum(p.sum(-1, keepdims=True), jnp.finfo(z.dtype).tiny)


@_map.defjvp
def _map_jvp(alpha: float, primals: Any, tangents: Any) -> tuple[jax.Array, jax.Array]:
    p = _map(primals[0], alpha)
    return p, _jacobian_times(p, tangents[0], alpha)


def _jacobian_times(p: jax.Array, v: jax.Array, alpha: float) -> jax.Array:
    """``J v`` with ``J = diag(w) - w w' / sum(w)`` and ``w = p ** (2 - alpha)`` on the support."""
    inside = p > 0
    w = jnp.where(inside, jnp.where(inside, p, 1.0) ** (2 - alpha), 0.0)
    total = w.sum(-1, keepdims=True)
    mean = (w * v).sum(-1, keepdims=True) / jnp.where(total > 0, total, 1.0)
    return w * (v - mean)


def _prepare(z: ArrayLike, axis: int, where: ArrayLike | None) -> jax.Array:
    z = jnp.asarray(z)
    z = z.astype(jnp.promote_types(z.dtype, jnp.float32))
    if where is not None:
        z = jnp.where(where, z, -jnp.inf)
    return jnp.moveaxis(z, axis, -1)


def entmax(
    z: ArrayLike,
    alpha: float,
    axis: int = -1,
    where: ArrayLike | None = None,
    method: str = "auto",
    k: int | None = None,
) -> jax.Array:
    """alpha-entmax of ``z`` along ``axis``."""
    dtype = jnp.result_type(z, jnp.bfloat16) if jnp.asarray(z).dtype.kind != "f" else None
    p = _map(_prepare(z, axis, where), alpha)
    return jnp.moveaxis(p, -1, axis).astype(dtype or jnp.asarray(z).dtype)


def sparsemax(z: ArrayLike, axis: int = -1, where: ArrayLike | None = None) -> jax.Array:
    """Euclidean projection of ``z`` onto the simplex."""
    return entmax(z, 2.0, axis, where)


def entmax15(z: ArrayLike, axis: int = -1, where: ArrayLike | None = None) -> jax.Array:
    """1.5-entmax of ``z`` along ``axis``."""
    return entmax(z, 1.5, axis, where)
