"""Search for the one threshold that makes a thresholded power sum to one.

For ``s = (alpha - 1) z`` the alpha-entmax probabilities are
``max(s - eta, 0) ** (1 / (alpha - 1))``.
"""

import jax
import jax.numpy as jnp


def threshold(s: jax.Array, alpha: float | jax.Array) -> jax.Array:
    """The eta at which ``max(s - eta, 0) ** (1 / (alpha - 1))`` sums to one over the last axis.

    Args:
        s: [..., n] float32 or float64 scaled logits, ``(alpha - 1) * z``; -inf entries are inert.
        alpha: above 1; a float, or an array that broadcasts against ``s`` without its last axis.

    Returns:
        [...] thresholds, in ``[max(s) - 1, max(s))``; +inf for a row without a finite entry.
    """
    n = s.shape[-1]
    power = 1.0 / (jnp.broadcast_to(jnp.asarray(alpha, s.dtype), s.shape[:-1]) - 1.0)
    top = s.max(-1)
    empty = top == -jnp.inf
    x = s - jnp.where(empty, 0.0, top)[..., None]
    low = jnp.zeros_like(top) - 1.0
    high = low + 1.0 - (1.0 / n) ** (1.0 / power)

    def halve(_: int, bounds: tuple[jax.Array, jax.Array]) -> tuple[jax.Array, jax.Array]:
        low, high = bounds
        middle = 0.5 * (low + high)
        above = jnp.maximum(x - middle[..., None], 0.0)
        mass = jnp.where(above > 0, above ** power[..., None], 0.0).sum(-1)
        return jnp.where(mass >= 1, middle, low), jnp.where(mass >= 1, high, middle)

    low, _ = jax.lax.fori_loop(0, 60 if s.dtype == jnp.float64 else 30, halve, (low, high))
    return jnp.where(empty, jnp.inf, low + jnp.where(empty, 0.0, top))
