"""Fenchel-Young losses of the entmax family."""

import functools
from typing import Any

import jax
import jax.numpy as jnp
from jax.typing import ArrayLike

from jaxcold.sparse.activations import _jacobian_times, _map, _prepare


def _entropy_terms(p: jax.Array, alpha: float) -> jax.Array:
    """Elementwise Tsallis entropy without its constant: sums to H for a distribution."""
    if alpha == 1:
        return -p * jnp.log(jnp.where(p > 0, p, 1.0))
    return (p - p**alpha) / (alpha * (alpha - 1))


@functools.partial(jax.custom_jvp, nondiff_argnums=(3, 4))
def _loss(z: jax.Array, t: jax.Array, tau: jax.Array, alpha: float, gradient: str) -> jax.Array:
    p = _map(z / tau, alpha)
    top = jnp.max(z, -1, keepdims=True)
    scores = jnp.where(p - t == 0, 0.0, z - top)
    value = ((p - t) * scores).sum(-1)
    if gradient == "fenchel_young":
        return value + tau * (_entropy_terms(p, alpha) - _entropy_terms(t, alpha)).sum(-1)
    return value + _entropy_terms(p, alpha).sum(-1)


@_loss.defjvp
def _loss_jvp(alpha: float, gradient: str, primals: Any, tangents: Any) -> Any:
    z, t, tau = primals
    p = _map(z / tau, alpha)
    slope = p - t
    if gradient == "autodiff":
        finite = jnp.where(p > 0, z, 0.0)
        slope = slope + (1 / tau) * (1 - 1 / tau) * _jacobian_times(p, finite, alpha)
    return _loss(z, t, tau, alpha, gradient), (slope * tangents[0]).sum(-1)


def fenchel_young_loss(
    z: ArrayLike,
    target: ArrayLike,
    alpha: float,
    *,
    tau: ArrayLike = 1.0,
    gradient: str = "fenchel_young",
    where: ArrayLike | None = None,
    weights: ArrayLike | None = None,
    axis: int = -1,
) -> jax.Array:
    """Fenchel-Young loss of alpha-entmax, one value per row."""
    scores = _prepare(z, axis, where)
    target = jnp.asarray(target)
    if jnp.issubdtype(target.dtype, jnp.integer):
        target = jax.nn.one_hot(target, scores.shape[-1], dtype=scores.dtype)
    else:
        target = jnp.moveaxis(target.astype(scores.dtype), axis, -1)
    value = _loss(scores, target, jnp.asarray(tau, scores.dtype), alpha, gradient)
    return value if weights is None else jnp.where(jnp.asarray(weights) == 0, 0.0, value * weights)


def sparsemax_loss(z: ArrayLike, target: ArrayLike, **options: Any) -> jax.Array:
    """``fenchel_young_loss`` of sparsemax."""
    return fenchel_young_loss(z, target, 2.0, **options)


def entmax15_loss(z: ArrayLike, target: ArrayLike, **options: Any) -> jax.Array:
    """``fenchel_young_loss`` of 1.5-entmax."""
    return fenchel_young_loss(z, target, 1.5, **options)


def entmax_loss(z: ArrayLike, target: ArrayLike, alpha: float, **options: Any) -> jax.Array:
    """``fenchel_young_loss`` of alpha-entmax."""
    return fenchel_young_loss(z, target, alpha, **options)
