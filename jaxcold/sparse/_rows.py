"""Entmax of rows with its derivatives: what maps and losses share."""

import functools
from typing import Any

import jax
import jax.numpy as jnp
from jax.custom_derivatives import SymbolicZero

from jaxcold.sparse._partition import solve
from jaxcold.sparse._search import SearchConfig, expm1_over, log_probabilities, probabilities


# custom_jvp and not custom_vjp: the rule is linear in the tangent, so JAX transposes it into the
# reverse rule (J is symmetric: the same formula), and forward mode, Hessians and double backward
# follow, since the rule itself is made of differentiable functions. None enters the search.
@functools.partial(jax.custom_jvp, nondiff_argnums=(0,))
def entmax_rows(config: SearchConfig, z: jax.Array, alpha: jax.Array | None) -> jax.Array:
    """Entmax of the last axis of ``z``; ``alpha`` [...] is None where it is static."""
    return probabilities(z, solve(z, alpha, config), alpha, config)


def _entmax_rows_jvp(
    config: SearchConfig, primals: Any, tangents: Any
) -> tuple[jax.Array, jax.Array]:
    z, alpha = primals
    dz, dalpha = tangents
    p = entmax_rows(config, z, alpha)
    a = alpha_of(config, alpha)
    dp = jnp.zeros_like(p)
    if not isinstance(dz, SymbolicZero):
        dp = dp + jacobian_times(p, dz, a)
    if dalpha is not None and not isinstance(dalpha, SymbolicZero):
        dp = dp + alpha_derivative(p, a) * dalpha[..., None]
    return p, dp


entmax_rows.defjvp(_entmax_rows_jvp, symbolic_zeros=True)


@functools.partial(jax.custom_jvp, nondiff_argnums=(0,))
def log_entmax_rows(config: SearchConfig, z: jax.Array, alpha: jax.Array | None) -> jax.Array:
    """The logarithm of `entmax_rows`; -inf outside the support, where its derivatives are 0."""
    return log_probabilities(z, solve(z, alpha, config), alpha, config)


def _log_entmax_rows_jvp(
    config: SearchConfig, primals: Any, tangents: Any
) -> tuple[jax.Array, jax.Array]:
    z, alpha = primals
    dz, dalpha = tangents
    log_p = log_entmax_rows(config, z, alpha)
    a = alpha_of(config, alpha)
    outside = log_p == -jnp.inf
    safe = jnp.where(outside, 0, log_p)
    slope = jnp.zeros_like(log_p)
    if not isinstance(dz, SymbolicZero):
        w = jnp.where(outside, 0, jnp.exp((2 - a) * safe))
        total = w.sum(-1, keepdims=True)
        mean = (w * dz).sum(-1, keepdims=True) / jnp.where(total == 0, 1, total)
        slope = slope + jnp.exp((1 - a) * safe) * (dz - mean)
    if dalpha is not None and not isinstance(dalpha, SymbolicZero):
        p = jnp.where(outside, 0, jnp.exp(safe))
        slope = slope + alpha_derivative(p, a, relative=True) * dalpha[..., None]
    return log_p, jnp.where(outside, 0, slope)


log_entmax_rows.defjvp(_log_entmax_rows_jvp, symbolic_zeros=True)


def alpha_of(config: SearchConfig, alpha: jax.Array | None) -> float | jax.Array:
    """Alpha as a float, or as an array that broadcasts against the logits."""
    return alpha[..., None] if config.alpha is None else config.alpha  # type: ignore[index]


def power_on_support(p: jax.Array, exponent: float | jax.Array) -> jax.Array:
    """``p ** exponent`` on the support, 0 elsewhere, with finite derivatives there; NaN of NaN."""
    outside = p == 0
    if isinstance(exponent, float) and exponent == 0:
        return jnp.where(outside, 0, jnp.where(jnp.isnan(p), p, 1))
    safe = jnp.where(outside, 1, p)
    if isinstance(exponent, float) and exponent == 0.5:
        return jnp.where(outside, 0, jnp.sqrt(safe))
    return jnp.where(outside, 0, safe**exponent)


def jacobian_times(p: jax.Array, v: jax.Array, alpha: float | jax.Array) -> jax.Array:
    """``J v`` with ``J = diag(w) - w w' / sum(w)``, ``w = p ** (2 - alpha)`` on the support."""
    w = power_on_support(p, 2 - alpha)
    total = w.sum(-1, keepdims=True)
    mean = (w * v).sum(-1, keepdims=True) / jnp.where(total == 0, 1, total)
    return w * (v - mean)


def _expm1_over2(x: jax.Array) -> jax.Array:
    """``(exp(x) - 1 - x) / x ** 2``, 1/2 at 0."""
    small = jnp.abs(x) < 0.2
    series = jnp.ones_like(x)
    for divisor in range(11, 2, -1):
        series = 1 + series * jnp.where(small, x, 0) / divisor
    safe = jnp.where(small, 1, x)
    return jnp.where(small, series / 2, (jnp.expm1(safe) - safe) / safe**2)


def alpha_derivative(p: jax.Array, alpha: float | jax.Array, relative: bool = False) -> jax.Array:
    """``dp / dalpha`` at fixed logits; relative to p on request.

    Correia, Niculae, Martins, Adaptively Sparse Transformers (2019), divide a difference by
    ``(alpha - 1) ** 2``. Written with the remainders of exp that difference cancels on paper,
    and the limit ``p (sum p l^2 - l^2) / 2``, ``l = log p``, at alpha = 1 needs no case of its own.
    """
    e = alpha - 1
    l = jnp.log(jnp.where(p == 0, 1, p))
    first = -l * expm1_over(-e * l)
    second = l**2 * _expm1_over2(-e * l)

    def mean(a: jax.Array) -> jax.Array:
        return (p * a).sum(-1, keepdims=True)

    entropy, total = -mean(l), mean(first)
    slope = (mean(second) - second - l * total - first * entropy) / (1 + e * total)
    return slope if relative else p * slope
