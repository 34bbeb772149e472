"""Sparse alternatives to softmax: from logits to probabilities with exact zeros."""

import functools
from typing import Any

import jax
import jax.numpy as jnp
from jax.typing import ArrayLike

from jaxcold.sparse._arguments import (
    Axis,
    as_array,
    canonical_axes,
    check_alpha,
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
    search_config,
    valid_alpha,
)
from jaxcold.sparse._rows import entmax_rows, log_entmax_rows
from jaxcold.sparse._search import SearchConfig

_STATIC = ("axes", "config", "form")


@functools.partial(jax.jit, static_argnames=_STATIC, inline=True)
def _compute(
    z: jax.Array,
    alpha: Any,
    where: Any,
    scale: Any,
    *,
    axes: tuple[int, ...],
    config: SearchConfig,
    form: str,
) -> tuple[jax.Array, jax.Array]:
    """One of the functions below, and whether a row has only -inf where it is not masked."""
    rows, is_lost = prepare(z, axes, where)
    array = config.alpha is None
    alpha = valid_alpha(per_row(alpha, z.shape, axes, rows.dtype)) if array else None
    dtype = float_dtype(z)
    if form == "log":
        return from_rows(log_entmax_rows(config, rows, alpha), axes, z.shape).astype(dtype), is_lost
    if scale is not None:
        scale = per_row(scale, z.shape, axes, rows.dtype)[..., None]
        scale = poison(scale, ~(scale > 0))
        e: Any = alpha[..., None] - 1 if alpha is not None else config.alpha - 1  # type: ignore[operator]
        p = scale * entmax_rows(config, rows / scale**e, alpha)
    else:
        p = entmax_rows(config, rows, alpha)
    if form == "p":
        return from_rows(p, axes, z.shape).astype(dtype), is_lost
    if form == "size":
        size = (p > 0).sum(-1, dtype=jnp.int32)
        return jnp.where(jnp.isnan(p).any(-1), -1, size), is_lost
    return _threshold(rows, p, alpha, config).astype(dtype), is_lost


def _threshold(
    rows: jax.Array, p: jax.Array, alpha: jax.Array | None, config: SearchConfig
) -> jax.Array:
    at = jnp.argmax(rows, -1, keepdims=True)
    top = jnp.take_along_axis(rows, at, -1)[..., 0]
    empty = top == -jnp.inf
    p = jnp.where(empty, 1, jnp.take_along_axis(p, at, -1)[..., 0])
    top = jnp.where(empty, 0, top)
    if alpha is not None:
        # One formula for both cases: at alpha = 1 the threshold is another quantity.
        e = alpha - 1
        eta = jnp.where(e == 0, top - jnp.log(p), e * top - p**e)
    elif config.alpha == 1:
        eta = top - jnp.log(p)
    else:
        static = config.alpha - 1  # type: ignore[operator]
        eta = static * top - p**static
    return jnp.where(empty, jnp.inf, eta)


def _call(
    form: str,
    z: Any,
    alpha: Any,
    axis: Axis,
    where: Any,
    method: str,
    k: int | None,
    scale: Any = None,
) -> jax.Array:
    """Checks the arguments and calls what is compiled."""
    z = as_array(z)
    axes = canonical_axes(axis, z.shape)
    config = search_config(alpha, method, k)
    alpha = check_per_row("alpha", alpha, z.shape, axes) if config.alpha is None else None
    if where is not None:
        where = check_where(where, z.shape)
    if scale is not None:
        check_values("scale", scale, lambda s: s > 0, "is above 0")
        scale = check_per_row("scale", scale, z.shape, axes)
    result, is_lost = _compute(z, alpha, where, scale, axes=axes, config=config, form=form)
    refuse_empty_rows(is_lost)
    return result


def entmax(
    z: ArrayLike,
    alpha: ArrayLike,
    axis: Axis = -1,
    where: ArrayLike | None = None,
    method: str = "auto",
    k: int | None = None,
    scale: ArrayLike | None = None,
) -> jax.Array:
    """alpha-entmax: the distribution that maximises ``p.z + H_alpha(p)``.

    ``H_alpha(p) = (1 - sum p ** alpha) / (alpha (alpha - 1))`` is Tsallis' entropy. For alpha above
    1 entries far below the largest get exactly 0; the larger alpha, the more of them. Up to 1 every
    finite entry has a probability, below 1 with heavier tails than softmax.

    Args:
        z: [..., n, ...] logits, any float type; computed in float32 or wider.
        alpha: in (0, 4]; 1 is softmax, 2 sparsemax. Above 2 rounding of the logits moves p by up to
            ``eps ** (1 / (alpha - 1))``, hence the limit. A Python number is static and takes the
            fast paths for 1, 1.5 and 2. An array (scalar, or with 1 at ``axis`` and broadcasting
            against ``z``, such as one per attention head) can be traced and differentiated.
        axis: what sums to one: an axis, several, or None for all of them.
        where: boolean, broadcasts against ``z``; False entries get probability 0. An additive mask
            of 0 and -inf is added to ``z`` instead.
        method: "newton" (also "auto"), "sort" (alpha 1.5 and 2) or "bisect": equal results.
        k: for "sort", how many of the largest entries to sort first. If the support of some row may
            be larger all entries are sorted, so the result does not depend on ``k``.
        scale: positive sum of each row instead of 1, shaped as an array ``alpha`` is; the maximum
            over the simplex of that size, ``scale * entmax(z / scale ** (alpha - 1), alpha)``.

    Returns:
        Probabilities of the shape and type of ``z`` (float32 for integers). A row that is masked
        whole, and under jit a row of -inf, is all zeros; NaN or +inf makes its row and the gradient
        there NaN, as does a traced alpha or scale that is out of range.

    Raises:
        ValueError: if alpha or scale is out of range, if an argument does not fit the shape of z,
            if the method is unknown or not meant for this alpha, if ``where`` is not boolean, or if
            outside jit a row has only -inf where it is not masked.

    References:
        Peters, Niculae, Martins, Sparse Sequence-to-Sequence Models (2019); the gradient in alpha
        is from Correia, Niculae, Martins, Adaptively Sparse Transformers (2019).
    """
    return _call("p", z, alpha, axis, where, method, k, scale)


def sparsemax(
    z: ArrayLike,
    axis: Axis = -1,
    where: ArrayLike | None = None,
    method: str = "auto",
    k: int | None = None,
    scale: ArrayLike | None = None,
) -> jax.Array:
    """Euclidean projection of ``z`` onto the probability simplex: `entmax` with alpha 2.

    Args:
        z: see `entmax`.
        axis: see `entmax`.
        where: see `entmax`.
        method: see `entmax`.
        k: see `entmax`.
        scale: see `entmax`; the radius of the simplex.

    Returns:
        Probabilities of the shape and type of ``z``.

    References:
        Martins, Astudillo, From Softmax to Sparsemax (2016).
    """
    return _call("p", z, 2.0, axis, where, method, k, scale)


def entmax15(
    z: ArrayLike,
    axis: Axis = -1,
    where: ArrayLike | None = None,
    method: str = "auto",
    k: int | None = None,
    scale: ArrayLike | None = None,
) -> jax.Array:
    """1.5-entmax, halfway between softmax and sparsemax: `entmax` with alpha 1.5.

    Args:
        z: see `entmax`.
        axis: see `entmax`.
        where: see `entmax`.
        method: see `entmax`.
        k: see `entmax`.
        scale: see `entmax`.

    Returns:
        Probabilities of the shape and type of ``z``.
    """
    return _call("p", z, 1.5, axis, where, method, k, scale)


def log_entmax(
    z: ArrayLike,
    alpha: ArrayLike,
    axis: Axis = -1,
    where: ArrayLike | None = None,
    method: str = "auto",
    k: int | None = None,
) -> jax.Array:
    """The logarithm of `entmax`, without rounding p first; at alpha = 1 it is log-softmax.

    Args:
        z: see `entmax`.
        alpha: see `entmax`.
        axis: see `entmax`.
        where: see `entmax`.
        method: see `entmax`.
        k: see `entmax`.

    Returns:
        Logarithms of the shape and type of ``z``; -inf outside the support, where every derivative
        is 0.
    """
    return _call("log", z, alpha, axis, where, method, k)


def threshold(
    z: ArrayLike,
    alpha: ArrayLike,
    axis: Axis = -1,
    where: ArrayLike | None = None,
    method: str = "auto",
    k: int | None = None,
) -> jax.Array:
    """The eta with ``entmax(z, alpha) = max((alpha - 1) z - eta, 0) ** (1 / (alpha - 1))``.

    At alpha = 1 it is the log-sum-exp, with which softmax is ``exp(z - eta)``.

    Args:
        z: see `entmax`.
        alpha: see `entmax`.
        axis: see `entmax`.
        where: see `entmax`.
        method: see `entmax`.
        k: see `entmax`.

    Returns:
        Thresholds, the shape of ``z`` without ``axis``; +inf for a row without a finite entry, NaN
        for a row with NaN or +inf.
    """
    return _call("threshold", z, alpha, axis, where, method, k)


def support_size(
    z: ArrayLike,
    alpha: ArrayLike,
    axis: Axis = -1,
    where: ArrayLike | None = None,
    method: str = "auto",
    k: int | None = None,
) -> jax.Array:
    """How many entries of each row `entmax` leaves above zero.

    Args:
        z: see `entmax`.
        alpha: see `entmax`.
        axis: see `entmax`.
        where: see `entmax`.
        method: see `entmax`.
        k: see `entmax`.

    Returns:
        int32 counts, the shape of ``z`` without ``axis``; -1 where the probabilities are NaN.
    """
    return _call("size", z, alpha, axis, where, method, k)


def entmax_sigmoid(z: ArrayLike, alpha: ArrayLike) -> jax.Array:
    """The probability of one of two classes whose logits are ``z`` and 0: a sparse sigmoid.

    At alpha = 1 it is the sigmoid, at 2 ``clip((z + 1) / 2, 0, 1)``: 0 and 1 are reached.

    Args:
        z: [...] logits, any float type.
        alpha: see `entmax`; an array broadcasts against ``z``.

    Returns:
        Probabilities of the shape and type of ``z``.
    """
    return entmax(*pair_with_zero(z, alpha))[..., 0]


def pair_with_zero(z: Any, alpha: Any) -> tuple[jax.Array, Any]:
    """Logits [..., 2] of two classes, the second 0; and alpha as `entmax` takes it for them."""
    z = as_array(z)
    if number(alpha) is None:
        check_alpha(alpha)
        alpha = jnp.broadcast_to(as_array(alpha), z.shape)[..., None]
    return jnp.stack([z, jnp.zeros_like(z)], -1), alpha
