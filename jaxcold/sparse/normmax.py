"""Normmax, the relative of entmax with a norm for its entropy, and its Fenchel-Young loss."""

import functools
from typing import Any

import jax
import jax.numpy as jnp
from jax.typing import ArrayLike

from jaxcold.sparse._arguments import (
    Axis,
    as_array,
    batch_shape,
    canonical_axes,
    canonical_labels,
    check_broadcast,
    check_per_row,
    check_values,
    check_where,
    float_dtype,
    from_rows,
    number,
    per_row,
    poison,
    prepare,
    refuse_empty_rows,
    to_rows,
)
from jaxcold.sparse._rows import entmax_rows, power_on_support
from jaxcold.sparse._search import SearchConfig
from jaxcold.sparse.losses import (
    as_distribution,
    distribution_error,
    is_label,
    refuse_wrong_targets,
    weighted,
)


@functools.partial(jax.jit, static_argnames=("axes", "order"), inline=True)
def _normmax(
    z: jax.Array, alpha: Any, where: Any, *, axes: tuple[int, ...], order: float | None
) -> tuple[jax.Array, jax.Array]:
    rows, is_lost = prepare(z, axes, where)
    # The optimum is q / sum(q), where q ** alpha has the form of an entmax of another order.
    twin: Any
    if order is not None:
        config, twin, e = SearchConfig(2 - 1 / order), None, 1 - 1 / order
    else:
        alpha = per_row(alpha, z.shape, axes, rows.dtype)
        twin = poison(2 - 1 / alpha, ~(alpha > 1))
        config, e = SearchConfig(None), twin[..., None] - 1
    q = power_on_support(entmax_rows(config, rows / e, twin), 1 - e)
    total = q.sum(-1, keepdims=True)
    p = q / jnp.where(total == 0, 1, total)
    return from_rows(p, axes, z.shape).astype(float_dtype(z)), is_lost


def normmax(
    z: ArrayLike, alpha: ArrayLike, axis: Axis = -1, where: ArrayLike | None = None
) -> jax.Array:
    """Normmax: the distribution that maximises ``p.z - norm(p)`` with the norm of order alpha.

    Unlike entmax it is flat on a support of nearly equal logits: as alpha grows, p becomes uniform
    over the entries that it keeps.

    Args:
        z: see `entmax`.
        alpha: order of the norm, above 1 (infinity included); a number or an array as in `entmax`.
        axis: see `entmax`.
        where: see `entmax`.

    Returns:
        Probabilities of the shape and type of ``z``; NaN where a row has NaN or +inf, or where a
        traced alpha is not above 1.

    Raises:
        ValueError: if alpha is not above 1, and as `entmax` does.

    References:
        Blondel, Martins, Niculae, Learning with Fenchel-Young Losses (2020), section 4.
    """
    logits = as_array(z)
    axes = canonical_axes(axis, logits.shape)
    check_values("alpha", alpha, lambda a: a > 1, "is above 1 as the order of a norm")
    order = number(alpha)
    orders = check_per_row("alpha", alpha, logits.shape, axes) if order is None else None
    kept = check_where(where, logits.shape)
    p, is_lost = _normmax(logits, orders, kept, axes=axes, order=order)
    refuse_empty_rows(is_lost)
    return p


@jax.custom_jvp
def _normmax_value(z: jax.Array, t: jax.Array, order: jax.Array, where: jax.Array) -> jax.Array:
    p = normmax(z, order, where=where)
    centred = z - jax.lax.stop_gradient(jnp.where(where, z, -jnp.inf).max(-1, keepdims=True))
    score = jnp.where(p == t, 0, (p - t) * centred).sum(-1)
    return score + _norm(t, order) - _norm(p, order)


def _norm(p: jax.Array, order: jax.Array) -> jax.Array:
    """The norm of each row of a non-negative p, relative to its largest entry."""
    top = p.max(-1, keepdims=True)
    share = p / jnp.where(top == 0, 1, top)
    return top[..., 0] * (power_on_support(share, order).sum(-1)) ** (1 / order[..., 0])


@_normmax_value.defjvp
def _normmax_value_jvp(primals: Any, tangents: Any) -> tuple[jax.Array, jax.Array]:
    z, t, order, where = primals
    dz, _, dorder, _ = tangents
    p = normmax(z, order, where=where)
    # p maximises the score: the value moves with z and the order alone, as if p stayed.
    by_order = [jax.jvp(lambda a, q=q: _norm(q, a), (order,), (dorder,))[1] for q in (t, p)]
    return _normmax_value(*primals), ((p - t) * dz).sum(-1) + by_order[0] - by_order[1]


def normmax_loss(
    z: ArrayLike,
    target: ArrayLike,
    alpha: ArrayLike,
    *,
    where: ArrayLike | None = None,
    weights: ArrayLike | None = None,
    axis: Axis = -1,
) -> jax.Array:
    """Fenchel-Young loss of `normmax`: ``(p - t).z + norm(t) - norm(p)``, gradient p - t.

    Args:
        z: see `fenchel_young_loss`.
        target: see `fenchel_young_loss`, with the same rules.
        alpha: finite order of the norm, above 1, a number or an array as in `normmax`.
        where: see `fenchel_young_loss`.
        weights: see `fenchel_young_loss`.
        axis: see `fenchel_young_loss`.

    Returns:
        float32 or wider losses, the shape of ``z`` without ``axis``: never negative, 0 at p = t.

    Raises:
        ValueError: as `fenchel_young_loss` and `normmax` do.

    References:
        Blondel, Martins, Niculae, Learning with Fenchel-Young Losses (2020), section 4.
    """
    return _checked_normmax(z, target, alpha, where, weights, axis)


def _checked_normmax(
    z: Any, target: Any, alpha: Any, where: Any, weights: Any, axis: Axis
) -> jax.Array:
    z, target = as_array(z), as_array(target)
    axes = canonical_axes(axis, z.shape)
    batch = batch_shape(z.shape, axes)
    rule = "is finite and above 1 as the order of a norm"
    check_values("alpha", alpha, lambda a: (a > 1) & (a < float("inf")), rule)
    where = check_where(where, z.shape)
    if target.shape != (batch if is_label(target) else z.shape):
        raise ValueError(f"target of shape {target.shape} does not fit z of shape {z.shape}")
    if weights is not None:
        check_broadcast("weights", jnp.shape(weights), batch, "the shape of the losses")
    alpha = check_per_row("alpha", alpha, z.shape, axes)
    value, is_wrong = _normmax_losses(z, target, alpha, where, weights, axes=axes)
    refuse_wrong_targets(is_wrong)
    return value


@functools.partial(jax.jit, static_argnames="axes", inline=True)
def _normmax_losses(
    z: Any, target: Any, alpha: Any, where: Any, weights: Any, *, axes: tuple[int, ...]
) -> tuple[jax.Array, jax.Array]:
    rows, _ = prepare(z, axes, None)
    n = rows.shape[-1]
    kept = jnp.ones(rows.shape, bool)
    if where is not None:
        kept = to_rows(jnp.broadcast_to(where, z.shape), axes)
    target = jax.lax.stop_gradient(target)
    wrong = jnp.zeros(rows.shape[:-1], bool)
    if is_label(target):
        target = canonical_labels(target, n)
        t, invalid = as_distribution(target, rows), target >= n
        is_counted = target >= 0
    else:
        t = to_rows(target, axes).astype(rows.dtype)
        is_counted = (t != 0).any(-1)
        invalid = wrong = is_counted & distribution_error(target, t)
    is_counted &= ~((t != 0) & ~kept).any(-1)
    if weights is not None:
        weights = jnp.broadcast_to(jnp.asarray(weights).astype(rows.dtype), rows.shape[:-1])
        is_counted &= (weights != 0) | jnp.isfinite(jnp.where(kept, rows, -jnp.inf).max(-1))
        wrong &= weights != 0
    order = per_row(alpha, z.shape, axes, rows.dtype)[..., None]
    order = poison(order, ~((order > 1) & (order < jnp.inf)) | (invalid & is_counted)[..., None])
    rows = jnp.where(is_counted[..., None], rows, 0)
    value = _normmax_value(rows, jnp.where(is_counted[..., None], t, 0), order, kept)
    value = jnp.where(is_counted, value, 0)
    return (value if weights is None else weighted(value, weights)), wrong
