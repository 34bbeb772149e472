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

from jaxcold.sparse._linear import alike, places_of, product, sum_operands, zeros
from jaxcold.sparse._threshold import How
from jaxcold.sparse.losses import _Form, _loss_and_p

_FEW, _MANY = 64, 256  # rows of a tile; products like multiples of 64
_CACHED = 1 << 20  # logits that stay near the processor from one product to the next
_HELD = 1 << 26  # logits that memory always has room for


class _Static(NamedTuple):
    """What the compiled program depends on besides shapes."""

    alpha: float
    tau: float
    rows: int  # of a tile


def tile_rows(rows: int, n: int) -> int:
    """Rows of logits that `linear_entmax_sum` holds at once, unless it is told.

    Few while they stay in the cache, so that little is wasted on the last tile. Where they do not,
    many share the way of the gradient in W through memory.

    Args:
        rows: of h.
        n: items.
    """
    size = _FEW if _FEW * n <= _CACHED else min(max(_HELD // n // _FEW * _FEW, _FEW), _MANY)
    return min(size, rows)


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
    order, count = places_of(valid, rows + size)

    def tile(i: jax.Array, state: tuple[jax.Array, ...]) -> tuple[jax.Array, ...]:
        total, dh, dW = state  # dW is transposed: what is turned in a product is the narrow operand
        at = lax.dynamic_slice(order, (i * size,), (size,))
        used = at < rows
        part = h.at[at].get(mode="fill", fill_value=0)
        target = jnp.where(used, targets.at[at].get(mode="clip"), 0)
        losses, p, mass = _probabilities(product(part, W, (1, 1), dtype), target, static)
        total += jnp.sum(jnp.where(used, losses, 0))
        if not gradient:
            return total, dh, dW
        # p - onehot, divided by the mass outside of the [rows, n] array and without the one-hot:
        # its part in dW is one scatter for all tiles, after them.
        share = jnp.where(used, 1 / mass, 0)[:, None]
        narrow = p.astype(W.dtype)
        step = product(narrow, W, (1, 0), dtype) * share - W[target]
        dh = dh.at[at].set(step.astype(dtype), mode="drop")
        return total, dh, dW + product((part * share).astype(W.dtype), narrow, (0, 0), dtype)

    shapes = ((), (rows, d), (d, n)) if gradient else ((), (0, d), (d, 0))
    start = tuple(zeros(shape, dtype, (h, W, targets)) for shape in shapes)
    total, dh, dW = lax.fori_loop(0, (count + size - 1) // size, tile, start)
    dW = dW.T
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
        rows: rows of logits held at once; unset, see `tile_rows`.

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
    h, W, targets = sum_operands(h, W, targets, alpha, tau, rows)
    count, n = h.shape[0], W.shape[0]
    size = tile_rows(count, n) if rows is None else min(rows, count)
    h, W, targets = alike((h, W, targets))
    return _compiled(h, W, targets, _Static(float(alpha), float(tau), size))
