"""Sparse alternatives to softmax: maps from logits to probabilities with exact zeros."""

import functools
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.custom_derivatives import SymbolicZero
from jax.typing import ArrayLike

from jaxcold.sparse._threshold import METHODS, How, expm1_over, probabilities, solve


# custom_jvp and not custom_vjp: the rule is linear in the tangent, so JAX transposes it into the
# reverse rule (J is symmetric: the same formula), and forward mode, Hessians and double backward
# follow, since the rule itself is made of differentiable functions. None enters the search.
@functools.partial(jax.custom_jvp, nondiff_argnums=(0,))
def entmax_rows(how: How, z: jax.Array, alpha: jax.Array) -> jax.Array:
    """Entmax of the last axis of ``z``; ``alpha`` [...] counts where ``how.alpha`` is None."""
    return probabilities(z, solve(z, alpha, how), alpha, how)


def _entmax_rows_jvp(how: How, primals: Any, tangents: Any) -> tuple[jax.Array, jax.Array]:
    z, alpha = primals
    dz, dalpha = tangents
    p = entmax_rows(how, z, alpha)
    a = alpha_of(how, alpha)
    dp = jnp.zeros_like(p)
    if not isinstance(dz, SymbolicZero):
        dp = dp + jacobian_times(p, dz, a)
    if not isinstance(dalpha, SymbolicZero):
        dp = dp + alpha_derivative(p, a) * dalpha[..., None]
    return p, dp


entmax_rows.defjvp(_entmax_rows_jvp, symbolic_zeros=True)


def alpha_of(how: How, alpha: jax.Array) -> float | jax.Array:
    """Alpha as a float, or as an array that broadcasts against the logits."""
    return alpha[..., None] if how.alpha is None else how.alpha


def power_on_support(p: jax.Array, exponent: float | jax.Array) -> jax.Array:
    """``p ** exponent`` on the support, 0 elsewhere, with finite derivatives there."""
    inside = p > 0
    if isinstance(exponent, float) and exponent == 0:
        return inside.astype(p.dtype)
    safe = jnp.where(inside, p, 1)
    if isinstance(exponent, float) and exponent == 0.5:
        return jnp.where(inside, jnp.sqrt(safe), 0)
    return jnp.where(inside, safe**exponent, 0)


def jacobian_times(p: jax.Array, v: jax.Array, alpha: float | jax.Array) -> jax.Array:
    """``J v`` with ``J = diag(w) - w w' / sum(w)``, ``w = p ** (2 - alpha)`` on the support."""
    w = power_on_support(p, 2 - alpha)
    total = w.sum(-1, keepdims=True)
    mean = (w * v).sum(-1, keepdims=True) / jnp.where(total > 0, total, 1)
    return w * (v - mean)


def _expm1_over2(x: jax.Array) -> jax.Array:
    """``(exp(x) - 1 - x) / x ** 2``, 1/2 at 0."""
    small = jnp.abs(x) < 0.2
    series = jnp.ones_like(x)
    for divisor in range(11, 2, -1):
        series = 1 + series * jnp.where(small, x, 0) / divisor
    safe = jnp.where(small, 1, x)
    return jnp.where(small, series / 2, (jnp.expm1(safe) - safe) / safe**2)


def alpha_derivative(p: jax.Array, alpha: float | jax.Array) -> jax.Array:
    """``dp / dalpha`` at fixed logits.

    Correia, Niculae, Martins, Adaptively Sparse Transformers (2019), divide a difference by
    ``(alpha - 1) ** 2``. Written with the remainders of exp that difference cancels on paper,
    and the limit ``p (sum p l^2 - l^2) / 2``, ``l = log p``, at alpha = 1 needs no case of its own.
    """
    e = alpha - 1
    l = jnp.log(jnp.where(p > 0, p, 1))
    first = -l * expm1_over(-e * l)
    second = l**2 * _expm1_over2(-e * l)

    def mean(a: jax.Array) -> jax.Array:
        return (p * a).sum(-1, keepdims=True)

    entropy, total = -mean(l), mean(first)
    return p * (mean(second) - second - l * total - first * entropy) / (1 + e * total)


def prepare(z: ArrayLike, axis: int, where: ArrayLike | None) -> tuple[jax.Array, Any]:
    """Logits with the rows last, masked entries at -inf, float32 or wider; and their own dtype."""
    z = jnp.asarray(z)
    if z.ndim == 0 or z.shape[axis] == 0:
        raise ValueError(f"z needs at least one entry along axis {axis}; its shape is {z.shape}")
    dtype = z.dtype if jnp.issubdtype(z.dtype, jnp.floating) else jnp.dtype(jnp.float32)
    z = z.astype(jnp.promote_types(dtype, jnp.float32))
    kept = None if where is None else jnp.broadcast_to(jnp.asarray(where, bool), z.shape)
    if not isinstance(z, jax.core.Tracer) and not isinstance(kept, jax.core.Tracer):
        lost = (z == -jnp.inf) if kept is None else (z == -jnp.inf) | ~kept
        some = True if kept is None else kept.any(axis)
        if jnp.any(lost.all(axis) & some):
            raise ValueError("a row of z has no finite entry; drop it, or mask it whole by where=")
    if kept is not None:
        z = jnp.where(kept, z, -jnp.inf)
    return jnp.moveaxis(z, axis, -1), dtype


def _number(value: ArrayLike) -> float | None:
    """A Python or NumPy number as a float; None for an array."""
    return float(value) if isinstance(value, int | float | np.number) else None


def _per_row(z: jax.Array, value: jax.Array, axis: int, name: str) -> jax.Array:
    """``value`` as [...] for rows ``z`` [..., n] whose last axis was ``axis``."""
    if value.ndim == 0:
        return jnp.broadcast_to(value, z.shape[:-1])
    kept = list(jnp.moveaxis(z, -1, axis).shape)
    kept[axis] = 1
    try:
        value = jnp.broadcast_to(value, kept)
    except ValueError:
        raise ValueError(
            f"{name} of shape {value.shape} does not broadcast to {tuple(kept)}, the shape of z"
            f" with 1 at axis {axis}"
        ) from None
    return jnp.moveaxis(value, axis, -1)[..., 0]


def choose(
    z: jax.Array, alpha: ArrayLike, axis: int, method: str = "auto", k: int | None = None
) -> tuple[How, jax.Array]:
    """The static part of a search on rows ``z`` [..., n], and alpha as an array [...] or scalar.

    Raises:
        ValueError: for alpha below 1, an unknown method, or one that alpha does not allow.
    """
    if method not in METHODS:
        raise ValueError(f"method is one of {', '.join(METHODS)}, not {method!r}")
    if k is not None:
        if method not in ("auto", "sort"):
            raise ValueError(f"k belongs to method='sort', not to {method!r}")
        if k < 1:
            raise ValueError(f"k counts sorted entries and is at least 1, not {k}")
        method = "sort"
    if not isinstance(alpha, jax.core.Tracer) and not np.all(np.asarray(alpha) >= 1):
        raise ValueError(f"alpha is at least 1, not {alpha}")
    number = _number(alpha)
    if method in ("sort", "pallas") and number not in (1, 1.5, 2):
        raise ValueError(f"method={method!r} needs alpha 1.5 or 2 as a Python number")
    if number is not None:
        return How(number, method, k), jnp.zeros((), z.dtype)
    return How(None, method, k), _per_row(z, jnp.asarray(alpha, z.dtype), axis, "alpha")


def entmax(
    z: ArrayLike,
    alpha: ArrayLike,
    axis: int = -1,
    where: ArrayLike | None = None,
    method: str = "auto",
    k: int | None = None,
) -> jax.Array:
    """alpha-entmax: the distribution that maximises ``p.z + H_alpha(p)``.

    ``H_alpha(p) = (1 - sum p ** alpha) / (alpha (alpha - 1))`` is Tsallis' entropy. Entries far
    below the largest get exactly 0; the larger alpha, the more of them.

    Args:
        z: [..., n, ...] logits, any float type; computed in float32 or wider.
        alpha: at least 1; 1 is softmax, 2 sparsemax. A Python number is static and takes the fast
            paths for 1, 1.5 and 2. An array (scalar, or with 1 at ``axis`` and broadcasting
            against ``z``, such as one per attention head) can be traced and differentiated.
        axis: the axis that sums to one.
        where: boolean, broadcasts against ``z``; False entries get probability 0.
        method: "newton" (also "auto"), "sort" or "pallas" (alpha 1.5 and 2), or "bisect": equal
            results.
        k: for "sort", how many of the largest entries to sort first. If the support of some row may
            be larger all entries are sorted, so the result does not depend on ``k``.

    Returns:
        Probabilities of the shape and type of ``z`` (float32 for integers). A row that is masked
        whole, and under jit a row of -inf, is all zeros; NaN or +inf makes its row NaN.

    Raises:
        ValueError: if alpha is below 1 or does not fit, if the method is unknown or not meant for
            this alpha, or if outside jit a row has only -inf where it is not masked.

    References:
        Peters, Niculae, Martins, Sparse Sequence-to-Sequence Models (2019); the gradient in alpha
        is from Correia, Niculae, Martins, Adaptively Sparse Transformers (2019).
    """
    rows, dtype = prepare(z, axis, where)
    how, alpha = choose(rows, alpha, axis, method, k)
    return jnp.moveaxis(entmax_rows(how, rows, alpha), -1, axis).astype(dtype)


def sparsemax(
    z: ArrayLike,
    axis: int = -1,
    where: ArrayLike | None = None,
    method: str = "auto",
    k: int | None = None,
) -> jax.Array:
    """Euclidean projection of ``z`` onto the probability simplex: `entmax` with alpha 2.

    Args:
        z: see `entmax`.
        axis: see `entmax`.
        where: see `entmax`.
        method: see `entmax`.
        k: see `entmax`.

    Returns:
        Probabilities of the shape and type of ``z``.

    References:
        Martins, Astudillo, From Softmax to Sparsemax (2016).
    """
    return entmax(z, 2.0, axis, where, method, k)


def entmax15(
    z: ArrayLike,
    axis: int = -1,
    where: ArrayLike | None = None,
    method: str = "auto",
    k: int | None = None,
) -> jax.Array:
    """1.5-entmax, halfway between softmax and sparsemax: `entmax` with alpha 1.5.

    Args:
        z: see `entmax`.
        axis: see `entmax`.
        where: see `entmax`.
        method: see `entmax`.
        k: see `entmax`.

    Returns:
        Probabilities of the shape and type of ``z``.
    """
    return entmax(z, 1.5, axis, where, method, k)


def threshold(
    z: ArrayLike,
    alpha: ArrayLike,
    axis: int = -1,
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
        Thresholds, the shape of ``z`` without ``axis``; +inf for a row without a finite entry.
    """
    rows, dtype = prepare(z, axis, where)
    how, alpha = choose(rows, alpha, axis, method, k)
    p = entmax_rows(how, rows, alpha)
    at = jnp.argmax(rows, -1, keepdims=True)
    top = jnp.take_along_axis(rows, at, -1)[..., 0]
    empty = top == -jnp.inf
    p = jnp.where(empty, 1, jnp.take_along_axis(p, at, -1)[..., 0])
    top = jnp.where(empty, 0, top)
    if how.alpha is None:
        # One formula for both cases: at alpha = 1 the threshold is another quantity.
        e = alpha - 1
        eta = jnp.where(e == 0, top - jnp.log(p), e * top - p**e)
    elif how.alpha == 1:
        eta = top - jnp.log(p)
    else:
        eta = (how.alpha - 1) * top - p ** (how.alpha - 1)
    return jnp.where(empty, jnp.inf, eta).astype(dtype)


def support_size(
    z: ArrayLike,
    alpha: ArrayLike,
    axis: int = -1,
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
        int32 counts, the shape of ``z`` without ``axis``.
    """
    rows, _ = prepare(z, axis, where)
    how, alpha = choose(rows, alpha, axis, method, k)
    return (entmax_rows(how, rows, alpha) > 0).sum(-1, dtype=jnp.int32)


def normmax(
    z: ArrayLike, alpha: ArrayLike, axis: int = -1, where: ArrayLike | None = None
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
        Probabilities of the shape and type of ``z``.

    Raises:
        ValueError: if alpha is not above 1, and as `entmax` does.

    References:
        Blondel, Martins, Niculae, Learning with Fenchel-Young Losses (2020), section 4.
    """
    if not isinstance(alpha, jax.core.Tracer) and not np.all(np.asarray(alpha) > 1):
        raise ValueError(f"the order of the norm is above 1, not {alpha}")
    rows, dtype = prepare(z, axis, where)
    # The optimum is q / sum(q), where q ** alpha has the form of an entmax of another order.
    number = _number(alpha)
    inverse = 1 / jnp.asarray(alpha, rows.dtype) if number is None else 1 / number
    how, twin = choose(rows, 2 - inverse, axis)
    twin_e = (twin - 1)[..., None] if how.alpha is None else how.alpha - 1
    power = entmax_rows(how, rows / twin_e, twin)
    q = power_on_support(power, 1 - twin_e)
    total = q.sum(-1, keepdims=True)
    p = q / jnp.where(total > 0, total, 1)
    return jnp.moveaxis(p, -1, axis).astype(dtype)


@jax.custom_jvp
@jax.jit
def _budget_rows(x: jax.Array, total: jax.Array) -> jax.Array:
    """``clip(x - tau, 0, 1)`` with sum ``total`` [...] over the last axis of ``x`` [..., n]."""
    total = jnp.minimum(total, (x > -jnp.inf).sum(-1, dtype=x.dtype))
    # With m = ceil(total), tau is within one below the m-th largest entry.
    rank = jnp.clip(jnp.ceil(total).astype(jnp.int32), 1, x.shape[-1])
    pivot = jnp.take_along_axis(jnp.sort(x, -1), x.shape[-1] - rank[..., None], -1)
    x = x - jnp.where(pivot == -jnp.inf, 0, pivot)
    low = jnp.where(total > 0, -jnp.ones_like(total), -1)

    def halve(_: int, bounds: tuple[jax.Array, jax.Array]) -> tuple[jax.Array, jax.Array]:
        low, high = bounds
        middle = (low + high) / 2
        enough = jnp.clip(x - middle[..., None], 0, 1).sum(-1) >= total
        return jnp.where(enough, middle, low), jnp.where(enough, high, middle)

    tau, _ = jax.lax.fori_loop(0, jnp.finfo(x.dtype).nmant + 2, halve, (low, low + 1))
    over = x - tau[..., None]
    between = (over > 0) & (over < 1)
    size = between.sum(-1, dtype=x.dtype)
    ones = (over >= 1).sum(-1, dtype=x.dtype)
    # On a fixed set of entries strictly between 0 and 1 tau is a mean: exact.
    exact = (jnp.where(between, x, 0).sum(-1) + ones - total) / jnp.maximum(size, 1)
    return jnp.clip(x - jnp.where(size > 0, exact, tau)[..., None], 0, 1)


@_budget_rows.defjvp
def _budget_rows_jvp(primals: Any, tangents: Any) -> tuple[jax.Array, jax.Array]:
    p = _budget_rows(*primals)
    dx, dtotal = tangents
    between = ((p > 0) & (p < 1)).astype(p.dtype)
    size = jnp.maximum(between.sum(-1, keepdims=True), 1)
    shift = ((between * dx).sum(-1, keepdims=True) - dtotal[..., None]) / size
    return p, between * (dx - shift)


def budget(
    z: ArrayLike, budget: ArrayLike, axis: int = -1, where: ArrayLike | None = None
) -> jax.Array:
    """The point of ``[0, 1] ** n`` with sum ``budget`` that is nearest to ``z``: a soft top-k.

    A budget of 1 gives sparsemax.

    Args:
        z: see `entmax`.
        budget: positive sum of each row, a number or an array with 1 at ``axis`` that broadcasts
            against ``z``, differentiable (with slope 0 where it is met by ones alone). A row with
            fewer entries than that is all ones.
        axis: see `entmax`.
        where: see `entmax`.

    Returns:
        Values in [0, 1] of the shape and type of ``z``.

    Raises:
        ValueError: if the budget is not positive or does not broadcast, and as `entmax` does.
    """
    if not isinstance(budget, jax.core.Tracer) and not np.all(np.asarray(budget) > 0):
        raise ValueError(f"the budget is positive, not {budget}")
    rows, dtype = prepare(z, axis, where)
    total = _per_row(rows, jnp.asarray(budget, rows.dtype), axis, "budget")
    return jnp.moveaxis(_budget_rows(rows, total), -1, axis).astype(dtype)
