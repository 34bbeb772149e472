"""Euclidean projections beside sparsemax: with upper bounds, and with at most k entries."""

import functools
from typing import Any

import jax
import jax.numpy as jnp
from jax.typing import ArrayLike

from jaxcold.sparse._arguments import (
    Axis,
    as_array,
    canonical_axes,
    check_broadcast,
    check_per_row,
    check_values,
    check_where,
    float_dtype,
    from_rows,
    nan_where,
    per_row,
    poison,
    prepare,
    refuse_empty_rows,
    to_rows,
)
from jaxcold.sparse.activations import sparsemax


@jax.custom_jvp
def _capped_rows(x: jax.Array, total: jax.Array, upper: jax.Array) -> jax.Array:
    """``clip(x - tau, 0, upper)`` with sum ``total`` [...]; x and upper are [..., n]."""
    top = x.max(-1)
    is_nan = jnp.isnan(top) | (top == jnp.inf) | jnp.isnan(total) | jnp.isnan(upper).any(-1)
    real = x > -jnp.inf
    upper = jnp.where(real, upper, 0)
    total = jnp.minimum(total, upper.sum(-1))
    # Where the bounds of the largest entries first add up to the total, tau is at most that entry
    # and at least a bound below it.
    ordered, bounds = jax.lax.sort((-x, upper), num_keys=1)
    at = (jnp.cumsum(bounds, -1) < total[..., None]).sum(-1, keepdims=True)
    at = jnp.minimum(at, x.shape[-1] - 1)
    pivot = -jnp.take_along_axis(ordered, at, -1)
    x = x - jnp.where(jnp.isfinite(pivot), pivot, 0)
    low = -upper.max(-1)

    def halve(_: int, bracket: tuple[jax.Array, jax.Array]) -> tuple[jax.Array, jax.Array]:
        low, high = bracket
        middle = (low + high) / 2
        enough = jnp.clip(x - middle[..., None], 0, upper).sum(-1) >= total
        return jnp.where(enough, middle, low), jnp.where(enough, high, middle)

    steps = jnp.finfo(x.dtype).nmant + 2
    tau, _ = jax.lax.fori_loop(0, steps, halve, (low, jnp.zeros_like(low)))
    over = x - tau[..., None]
    between = (over > 0) & (over < upper)
    size = between.sum(-1, dtype=x.dtype)
    # On a fixed set of entries strictly between the bounds tau is a mean: exact.
    capped = jnp.where(over >= upper, upper, 0).sum(-1)
    exact = (jnp.where(between, x, 0).sum(-1) + capped - total) / jnp.maximum(size, 1)
    p = jnp.clip(x - jnp.where(size > 0, exact, tau)[..., None], 0, upper)
    return nan_where(is_nan[..., None], p)


@_capped_rows.defjvp
def _capped_rows_jvp(primals: Any, tangents: Any) -> tuple[jax.Array, jax.Array]:
    p = _capped_rows(*primals)
    x, _, upper = primals
    dx, dtotal, dupper = tangents
    # 0 * p is NaN for a row of NaN, which must not look like a row without a gradient.
    between = ((p > 0) & (p < upper)).astype(p.dtype) + 0 * p
    at_bound = ((p >= upper) & (x > -jnp.inf)).astype(p.dtype) + 0 * p
    size = jnp.maximum(between.sum(-1, keepdims=True), 1)
    moved = (between * dx + at_bound * dupper).sum(-1, keepdims=True)
    shift = (moved - dtotal[..., None]) / size
    return p, between * (dx - shift) + at_bound * dupper


@functools.partial(jax.jit, static_argnames="axes", inline=True)
def _budget(
    z: jax.Array, total: Any, upper: Any, where: Any, *, axes: tuple[int, ...]
) -> tuple[jax.Array, jax.Array]:
    rows, is_lost = prepare(z, axes, where)
    total = per_row(total, z.shape, axes, rows.dtype)
    total = poison(total, ~(total > 0))
    upper = jnp.broadcast_to(jnp.asarray(upper).astype(rows.dtype), z.shape)
    upper = to_rows(poison(upper, ~(upper > 0)), axes)
    p = _capped_rows(rows, total, upper)
    return from_rows(p, axes, z.shape).astype(float_dtype(z)), is_lost


def budget(
    z: ArrayLike,
    budget: ArrayLike,
    axis: Axis = -1,
    where: ArrayLike | None = None,
    upper: ArrayLike = 1.0,
) -> jax.Array:
    """The point with entries in ``[0, upper]`` and sum ``budget`` nearest to ``z``: a soft top-k.

    With upper bounds of at least the budget it is sparsemax scaled to it; with a budget of 1 and
    lower bounds it is constrained sparsemax.

    Args:
        z: see `entmax`.
        budget: positive sum of each row, a number or an array with 1 at ``axis`` that broadcasts
            against ``z``, differentiable (with slope 0 where only bounds meet it). A row whose
            bounds add up to less gets its bounds.
        axis: see `entmax`.
        where: see `entmax`.
        upper: positive bound of each entry, broadcasts against ``z``; differentiable.

    Returns:
        Values of the shape and type of ``z``; NaN where a row has NaN or +inf, or a traced budget
        or bound is not positive.

    Raises:
        ValueError: if a budget or a bound is not positive or does not broadcast, and as `entmax`
            does.

    References:
        Malaviya, Ferreira, Martins, Sparse and Constrained Attention for Neural Machine
        Translation (2018).
    """
    logits = as_array(z)
    axes = canonical_axes(axis, logits.shape)
    check_values("budget", budget, lambda b: b > 0, "is positive")
    check_values("upper", upper, lambda b: b > 0, "is positive")
    total = check_per_row("budget", budget, logits.shape, axes)
    bounds = as_array(upper)
    check_broadcast("upper", bounds.shape, logits.shape, "the shape of z")
    kept = check_where(where, logits.shape)
    p, is_lost = _budget(logits, total, bounds, kept, axes=axes)
    refuse_empty_rows(is_lost)
    return p


@functools.partial(jax.jit, static_argnames=("axes", "k"), inline=True)
def _largest(z: jax.Array, where: Any, *, axes: tuple[int, ...], k: int) -> jax.Array:
    """bool, the shape of z: which k entries of each row are the largest, the first ones of ties."""
    rows, _ = prepare(z, axes, where)
    smallest = jax.lax.top_k(rows, min(k, rows.shape[-1]))[0][..., -1:]
    above, ties = rows > smallest, rows == smallest
    places = k - above.sum(-1, keepdims=True)
    # A row with NaN keeps it.
    chosen = above | (ties & (jnp.cumsum(ties, -1) <= places)) | jnp.isnan(rows)
    chosen = from_rows(chosen, axes, z.shape)
    return chosen if where is None else chosen & where


def sparse_simplex(
    z: ArrayLike,
    k: int,
    axis: Axis = -1,
    where: ArrayLike | None = None,
    scale: ArrayLike | None = None,
) -> jax.Array:
    """The point of the simplex with at most ``k`` entries above 0 that is nearest to ``z``.

    It is `sparsemax` of the k largest entries.

    Args:
        z: see `entmax`.
        k: how many entries may be above 0, at least 1; static.
        axis: see `entmax`.
        where: see `entmax`.
        scale: see `entmax`; the radius of the simplex.

    Returns:
        Values of the shape and type of ``z``. Among ties the first entries are taken.

    Raises:
        ValueError: if k is below 1, and as `entmax` does.

    References:
        Kyrillidis, Becker, Cevher, Koch, Sparse projections onto the simplex (2013).
    """
    if k < 1:
        raise ValueError(f"k counts entries and is at least 1, not {k}")
    logits = as_array(z)
    axes = canonical_axes(axis, logits.shape)
    chosen = _largest(logits, check_where(where, logits.shape), axes=axes, k=k)
    return sparsemax(logits, axis, chosen, scale=scale)
