"""What the losses of a whole catalogue share: their products, row lists and operand checks."""

import functools

import jax
import jax.numpy as jnp
from jax import lax
from jax.typing import ArrayLike


def product(a: jax.Array, b: jax.Array, axes: tuple[int, int], dtype: jnp.dtype) -> jax.Array:
    """Sum over one axis of each, accumulated in ``dtype``; float32 is not truncated.

    The passes over the logits have to agree, and would not if only some of them were truncated.
    """
    precision = lax.Precision.HIGHEST if a.dtype == b.dtype == dtype else None
    dimensions = (((axes[0],), (axes[1],)), ((), ()))
    return lax.dot_general(a, b, dimensions, precision=precision, preferred_element_type=dtype)


def places_of(chosen: jax.Array, room: int) -> tuple[jax.Array, jax.Array]:
    """The rows that ``chosen`` names, in order, so that tiles of others are never reached.

    Args:
        chosen: bool[rows].
        room: length of the list, at least the number of rows that are chosen.

    Returns:
        i32[room] indices of the chosen rows, the rest filled with ``rows``, which is out of range;
        and how many there are.
    """
    rows = len(chosen)
    rank = jnp.cumsum(chosen, dtype=jnp.int32)
    places = jnp.full(room, rows, jnp.int32)
    places = places.at[jnp.where(chosen, rank - 1, room)].set(
        jnp.arange(rows, dtype=jnp.int32), mode="drop"
    )
    return places, rank[-1]


def zeros(shape: tuple[int, ...], dtype: jnp.dtype, like: tuple[jax.Array, ...]) -> jax.Array:
    """Zeros that shard_map takes to differ between devices wherever one of ``like`` does."""
    zero = functools.reduce(jnp.add, (jnp.zeros_like(a, dtype, shape=()) for a in like))
    return jnp.broadcast_to(zero, shape)


def alike(arrays: tuple[jax.Array, ...]) -> list[jax.Array]:
    """The same arrays; under shard_map all vary over the same axes, as loops need their operands.

    The transpose of this addition of zero sums the gradient of a replicated operand over the
    devices.
    """
    return [a + zeros((), a.dtype, arrays) for a in arrays]


def check_alpha(alpha: float) -> float:
    """The number.

    Raises:
        ValueError: if it is none, or outside [1, 2].
    """
    if isinstance(alpha, jax.core.Tracer) or not 1.0 <= float(alpha) <= 2.0:
        raise ValueError(
            f"alpha must be a Python number in [1, 2], got {alpha}; for other or traced alphas "
            "use fenchel_young_loss on the logits"
        )
    return float(alpha)


def sum_operands(
    h: ArrayLike, W: ArrayLike, targets: ArrayLike, alpha: float, tau: float, rows: int | None
) -> tuple[jax.Array, jax.Array, jax.Array]:
    """The operands of a summed loss as arrays.

    Raises:
        ValueError: for one of the arguments, naming it and what it may be.
    """
    check_alpha(alpha)
    h, W, targets = (jnp.asarray(a) for a in (h, W, targets))
    check_operands(h, W, targets)
    if h.dtype != W.dtype:
        raise ValueError(f"expected h and W of one dtype, got {h.dtype} and {W.dtype}")
    if not tau > 0:
        raise ValueError(f"tau must be a number above 0, got {tau}")
    if rows is not None and rows < 1:
        raise ValueError(f"rows must be positive, got {rows}")
    return h, W, targets


def check_operands(h: jax.Array, W: jax.Array, targets: jax.Array) -> None:
    """Checks h f[rows, d], W f[N, d] and targets i[rows].

    Raises:
        ValueError: if they are not of these kinds and shapes, or empty.
    """
    if h.ndim != 2 or W.ndim != 2 or h.shape[1] != W.shape[1] or 0 in h.shape + W.shape:
        raise ValueError(f"expected h [rows, d] and W [N, d], not empty: got {h.shape}, {W.shape}")
    if not all(jnp.issubdtype(a.dtype, jnp.floating) for a in (h, W)):
        raise ValueError(f"expected floating h and W, got {h.dtype} and {W.dtype}")
    if targets.shape != h.shape[:1] or not jnp.issubdtype(targets.dtype, jnp.integer):
        raise ValueError(
            f"expected {h.shape[0]} integer targets, got {targets.dtype}{list(targets.shape)}"
        )
