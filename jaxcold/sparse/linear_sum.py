"""The sum of a catalogue's losses, with its gradient made in the same pass over the logits.

`jaxcold.sparse.linear` gives one loss per row; the weight of a row in the gradient is known only
when the gradient is asked for, so its logits are computed twice. A training loss is a sum, in which
every row weighs the same: the logits of a few rows become probabilities, these their share of the
gradient, and are gone before the next rows come. Rows without a target take no part.
"""

import functools
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jax import lax
from jax.typing import ArrayLike

from jaxcold.sparse._threshold import How
from jaxcold.sparse.linear import _checked_alpha, _zeros
from jaxcold.sparse.losses import _Form, _loss_and_p

_TILE = 1 << 20  # logits held at once: 4 MB of float32
_MIN_ROWS = 32  # fewer rows than this multiply slowly


class _Static(NamedTuple):
    """What the compiled program depends on besides shapes."""

    alpha: float
    tau: float
    rows: int


def _product(a: jax.Array, b: jax.Array, axes: tuple[int, int], dtype: jnp.dtype) -> jax.Array:
    """Sum over one axis of each, accumulated in ``dtype``; float32 is not truncated."""
    precision = lax.Precision.HIGHEST if a.dtype == b.dtype == dtype else None
    dimensions = (((axes[0],), (axes[1],)), ((), ()))
    return lax.dot_general(a, b, dimensions, precision=precision, preferred_element_type=dtype)


def _probabilities(
    z: jax.Array, target: jax.Array, static: _Static
) -> tuple[jax.Array, jax.Array, jax.Array]:
    """Losses [r], and [r, n] numbers that are probabilities once divided by the third, [r]."""
    alpha, tau = static.alpha, jnp.asarray(static.tau, z.dtype)
    if alpha > 1:
        form = _Form(How(alpha), autodiff=False)
        value, p, _ = _loss_and_p(form, z, target, tau, jnp.asarray(alpha, z.dtype))
        return value, p, jnp.ones_like(value)
    top = z.max(1)
    e = jnp.exp((z - top[:, None]) / tau)
    mass = e.sum(1)
    at = jnp.take_along_axis(z, target[:, None], 1)[:, 0]
    return tau * jnp.log(mass) + (top - at), e, mass


def _pass(
    h: jax.Array, W: jax.Array, targets: jax.Array, static: _Static, gradient: bool
) -> tuple[jax.Array, jax.Array, jax.Array]:
    """The sum and, if asked for, its gradient in h and in W; all in the accumulator's dtype."""
    rows, d = h.shape
    n, size = W.shape[0], static.rows
    dtype = jnp.promote_types(h.dtype, jnp.float32)
    valid = (targets >= 0) & (targets < n)
    # Rows that count come first, so that whole tiles of others are never reached.
    rank = jnp.cumsum(valid, dtype=jnp.int32)
    count = rank[-1]
    places = -(-rows // size) * size
    order = jnp.full(places, rows, jnp.int32)
    order = order.at[jnp.where(valid, rank - 1, places)].set(
        jnp.arange(rows, dtype=jnp.int32), mode="drop"
    )

    def tile(i: jax.Array, state: tuple[jax.Array, ...]) -> tuple[jax.Array, ...]:
        total, dh, dW = state
        at = lax.dynamic_slice(order, (i * size,), (size,))
        used = at < rows
        part = h.at[at].get(mode="fill", fill_value=0)
        target = jnp.where(used, targets.at[at].get(mode="clip"), 0)
        losses, p, mass = _probabilities(_product(part, W, (1, 1), dtype), target, static)
        total += jnp.sum(jnp.where(used, losses, 0))
        if not gradient:
            return total, dh, dW
        # p - onehot, divided by the mass outside of the [rows, n] array and without the one-hot:
        # its part in dW is one scatter for all tiles, after them.
        share = jnp.where(used, 1 / mass, 0)[:, None]
        narrow = p.astype(W.dtype)
        step = _product(narrow, W, (1, 0), dtype) * share - W[target]
        dh = dh.at[at].set(step.astype(dtype), mode="drop")
        return total, dh, dW + _product(narrow, (part * share).astype(W.dtype), (0, 0), dtype)

    empty = (rows, d), (n, d)
    like = (h, W, targets)
    start = [_zeros(shape if gradient else (0, d), dtype, like) for shape in empty]
    total, dh, dW = lax.fori_loop(
        0, (count + size - 1) // size, tile, (_zeros((), dtype, like), *start)
    )
    if gradient:
        dW = dW.at[jnp.where(valid, targets, n)].add(-h.astype(dtype), mode="drop")
    return total, dh, dW


@functools.partial(jax.custom_vjp, nondiff_argnums=(3,))
def _sum(h: jax.Array, W: jax.Array, targets: jax.Array, static: _Static) -> jax.Array:
    return _pass(h, W, targets, static, gradient=False)[0]


def _forward(h, W, targets, static):  # type: ignore[no-untyped-def]
    total, dh, dW = _pass(h, W, targets, static, gradient=True)
    return total, (dh.astype(h.dtype), dW.astype(W.dtype))


def _backward(static, kept, cotangent):  # type: ignore[no-untyped-def]
    return (*(cotangent.astype(g.dtype) * g for g in kept), None)


_sum.defvjp(_forward, _backward)
_compiled = jax.jit(_sum, static_argnums=3)


def linear_entmax_sum(
    h: ArrayLike,
    W: ArrayLike,
    targets: ArrayLike,
    alpha: float,
    *,
    tau: float = 1.0,
    rows: int | None = None,
) -> jax.Array:
    r"""Sum over rows of `jaxcold.sparse.linear_entmax_loss`, cheaper to differentiate.

    .. math:: \sum_i \langle p_i - e_{y_i}, z_i \rangle + \tau H_\alpha(p_i),
        \quad z = h W', \quad p_i = \mathrm{entmax}_\alpha(z_i / \tau)

    Three products of [rows, d] and [N, d] with their gradient, where the losses row by row take
    four; work and memory for the rows that have a target, and for no others. Reverse mode only;
    no second derivatives.

    Args:
        h: [rows, d] one vector per example.
        W: [N, d] one vector per item, of the dtype of h. Half precision is multiplied as it is
            and accumulated in float32.
        targets: i[rows] index of each row's item; a row whose target lies outside ``[0, N)``, such
            as -1 in padding, is ignored.
        alpha: a Python number in [1, 2]: 1 softmax, 1.5 entmax15, 2 sparsemax.
        tau: temperature, a Python number above 0.
        rows: rows of logits held at once; unset, about a million logits and at least 32 rows.

    Returns:
        f[] the sum, float32 or float64. Divide by the number of targets for a mean.

    Raises:
        ValueError: if alpha is not a number in [1, 2], or shapes or dtypes do not fit.

    Example:
        >>> import jax.numpy as jnp
        >>> h, W = jnp.array([[1.0, 0.0]] * 2), jnp.array([[4.0, 0.0], [0.0, 1.0], [1.0, 0.0]])
        >>> print(linear_entmax_sum(h, W, jnp.array([2, -1]), alpha=2.0))
        3.0
    """
    alpha = _checked_alpha(alpha)
    h, W, targets = (jnp.asarray(a) for a in (h, W, targets))
    if h.ndim != 2 or W.ndim != 2 or h.shape[1] != W.shape[1] or 0 in h.shape + W.shape:
        raise ValueError(f"expected h [rows, d] and W [N, d], not empty: got {h.shape}, {W.shape}")
    if h.dtype != W.dtype or not jnp.issubdtype(h.dtype, jnp.floating):
        raise ValueError(f"expected h and W of one floating dtype, got {h.dtype} and {W.dtype}")
    if targets.shape != h.shape[:1] or not jnp.issubdtype(targets.dtype, jnp.integer):
        raise ValueError(
            f"expected {h.shape[0]} integer targets, got {targets.dtype}{list(targets.shape)}"
        )
    if not tau > 0:
        raise ValueError(f"tau must be a number above 0, got {tau}")
    if rows is not None and rows < 1:
        raise ValueError(f"rows must be positive, got {rows}")
    size = max(_TILE // W.shape[0], _MIN_ROWS) if rows is None else rows
    # Under shard_map all operands must vary over the same axes inside the loop; the transpose of
    # this addition of zero sums the gradient of a replicated operand over the devices.
    arrays = (h, W, targets)
    h, W, targets = (a + _zeros((), a.dtype, arrays) for a in arrays)
    return _compiled(h, W, targets, _Static(alpha, float(tau), min(size, h.shape[0])))
