"""The sum of the linear losses, with its gradient made in the same pass over the logits.

`jaxcold.sparse.linear.per_row` gives one loss per row; what a row weighs in the gradient is known
only when the gradient is asked for, so its logits are computed twice. A training loss is a sum, in
which the weights are known before: the logits of a few rows become probabilities, these their
share of the gradient, and are gone before the next rows come. Rows without a target take no part.
"""

import functools
import math
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax import lax
from jax.typing import ArrayLike

from jaxcold.sparse._search import SearchConfig, ThresholdResult, find_thresholds, probabilities
from jaxcold.sparse.linear._shared import (
    Arguments,
    Operands,
    alike,
    at_most,
    check_alpha,
    check_arguments,
    entropy_of_targets,
    indices_of,
    loss_and_entropy,
    make_operands,
    product,
    subtract_targets,
    take_rows,
    target_rows,
    zeros,
)
from jaxcold.sparse.losses import weighted

_SMALL_TILE, _LARGE_TILE = 64, 256  # rows of a tile; products like multiples of 64
_CACHE_LOGITS = 1 << 20  # logits that stay near the processor from one product to the next
_MEMORY_LOGITS = 1 << 26  # logits that memory always has room for


class SumConfig(NamedTuple):
    """What the compiled program depends on besides shapes."""

    alpha: float
    rows: int  # of a tile


def tile_rows(rows: int, n: int) -> int:
    """Rows of logits that `linear_entmax_sum` holds at once by default.

    Few while they stay in the cache, so that little is wasted on the last tile. Where they do not,
    many share the way of the gradient in W through memory.

    Args:
        rows: of h.
        n: items.
    """
    if _SMALL_TILE * n <= _CACHE_LOGITS:
        return at_most(_SMALL_TILE, rows)
    multiples = max(_MEMORY_LOGITS // n // _SMALL_TILE, 1)
    size = min(multiples * _SMALL_TILE, _LARGE_TILE)
    return at_most(size, rows)


def _losses_and_probabilities(
    z: jax.Array, tau: jax.Array, targets: jax.Array, shares: jax.Array, alpha: float
) -> tuple[jax.Array, jax.Array, jax.Array, jax.Array]:
    """Losses and entropies [r], and [r, n] probabilities once divided by the last, [r]."""
    search, scale = SearchConfig(alpha), 1 / tau
    if alpha > 1:
        result = find_thresholds(z, scale, None, search, power_sum=True)
        loss, entropy = loss_and_entropy(z, result, targets, shares, tau, alpha)
        p = probabilities(z, result, None, search, scale)
        return loss, entropy, p, jnp.ones_like(loss)
    top = z.max(1)
    top = jnp.where(top == -jnp.inf, 0, top)
    u = scale[:, None] * (z - top[:, None])
    e = jnp.exp(u)
    mass = e.sum(1)
    one = jnp.ones_like(mass)
    result = ThresholdResult(top, jnp.log(mass), one, one, one)
    loss, _ = loss_and_entropy(z, result, targets, shares, tau, alpha)
    entropy = result.cut - jnp.where(e == 0, 0, e * u).sum(1) / mass
    return loss, entropy, e, mass


def _pass(
    operands: Operands, config: SumConfig, gradient: bool
) -> tuple[jax.Array, jax.Array, jax.Array, jax.Array, jax.Array | None]:
    """Losses and entropies per row and, if asked for, the gradient of their sum in h, W and bias.

    All in the accumulator's dtype.
    """
    h, W, bias, tau, weights, targets, shares, is_counted = operands
    rows, d = h.shape
    n, size, dtype = W.shape[0], config.rows, tau.dtype
    order, count = indices_of(is_counted, rows + size)

    def tile(i: jax.Array, state: tuple) -> tuple:
        losses, entropies, dh, dW, dbias = state  # dW is transposed: what is turned is narrow
        at = lax.dynamic_slice(order, (i * size,), (size,))
        used = at < rows
        tile_h = take_rows(h, at)
        z = product(tile_h, W, (1, 1), dtype)
        z = z if bias is None else z + bias[None, :]
        tile_targets, tile_shares = take_rows(targets, at), take_rows(shares, at)
        loss, entropy, p, mass = _losses_and_probabilities(
            z, take_rows(tau, at, 1), tile_targets, tile_shares, config.alpha
        )
        losses = losses.at[at].set(loss, mode="drop")
        if not gradient:
            return losses, entropies, dh, dW, dbias
        entropies = entropies.at[at].set(entropy, mode="drop")
        # p - t, divided by the mass outside of the [rows, n] array and without the targets: their
        # part in dW is one scatter for all tiles, after them.
        factor = jnp.where(used, 1 / mass, 0)
        if weights is not None:
            weight = take_rows(weights, at)
            factor = jnp.where(weight == 0, 0, weight * factor)
            p = jnp.where(weight[:, None] == 0, 0, p)
            tile_h = jnp.where(weight[:, None] == 0, 0, tile_h)
            tile_shares = tile_shares * weight[:, None]
        narrow = p.astype(W.dtype)
        step = product(narrow, W, (1, 0), dtype) * factor[:, None]
        step = step - target_rows(W, tile_targets, tile_shares, dtype)
        dh = dh.at[at].set(step, mode="drop")
        scaled = (tile_h.astype(dtype) * factor[:, None]).astype(W.dtype)
        dW = dW + product(scaled, narrow, (0, 0), dtype)
        if bias is not None:
            dbias = dbias + product(factor[:, None], p, (0, 0), dtype)[0]
        return losses, entropies, dh, dW, dbias

    like = tuple(jax.tree.leaves(operands))
    shapes = ((rows,), (rows,), (rows, d), (d, n), (n,))
    if not gradient:
        shapes = ((rows,), (0,), (0, d), (d, 0), (0,))
    start = tuple(zeros(shape, dtype, like) for shape in shapes)
    losses, entropies, dh, dW, dbias = lax.fori_loop(0, (count + size - 1) // size, tile, start)
    dW = dW.T
    if gradient:
        part = jnp.where(is_counted[:, None], shares, 0)
        if weights is not None:
            part = part * weights[:, None]
        dW = subtract_targets(dW, h, targets, part)
        dbias = dbias.at[targets].add(-part)
    return losses, entropies, dh, dW, None if bias is None else dbias


def _total(losses: jax.Array, weights: jax.Array | None) -> jax.Array:
    return jnp.sum(losses if weights is None else weighted(losses, weights))


@functools.partial(jax.custom_vjp, nondiff_argnums=(1,))
def _sum(operands: Operands, config: SumConfig) -> jax.Array:
    return _total(_pass(operands, config, gradient=False)[0], operands.weights)


def _forward(operands, config):  # type: ignore[no-untyped-def]
    losses, entropies, dh, dW, dbias = _pass(operands, config, gradient=True)
    weights, dtau, dweights = operands.weights, entropies, None
    if weights is not None:
        dtau = jnp.where(weights == 0, 0, weights * entropies)
        dweights = jnp.where((weights == 0) & ~jnp.isfinite(losses), 0, losses)
    gradients = (dh.astype(operands.h.dtype), dW.astype(operands.W.dtype), dbias, dtau, dweights)
    return _total(losses, weights), gradients


def _backward(config, gradients, cotangent):  # type: ignore[no-untyped-def]
    del config
    scaled = jax.tree.map(lambda g: cotangent.astype(g.dtype) * g, gradients)
    h, W, bias, tau, weights = scaled
    return (Operands(h, W, bias, tau, weights, None, None, None),)


_sum.defvjp(_forward, _backward)


@functools.partial(jax.jit, static_argnames="config")
def _compiled(arguments: Arguments, config: SumConfig) -> jax.Array:
    operands = make_operands(arguments)
    rows = operands.h.shape[0]
    if isinstance(rows, int) and rows == 0:
        return jnp.zeros((), operands.tau.dtype)
    total = _sum(alike(operands), config)
    if arguments.probabilities is not None:
        entropy = operands.tau * entropy_of_targets(operands.shares, config.alpha)
        total = total - _total(jnp.where(operands.is_counted, entropy, 0), operands.weights)
    return total


def linear_entmax_sum(
    h: ArrayLike,
    W: ArrayLike,
    targets: ArrayLike,
    alpha: float,
    *,
    bias: ArrayLike | None = None,
    where: ArrayLike | None = None,
    tau: ArrayLike = 1.0,
    weights: ArrayLike | None = None,
    target_probabilities: ArrayLike | None = None,
    rows: int | None = None,
) -> jax.Array:
    r"""Sum over rows of `jaxcold.sparse.linear_entmax_loss`, cheaper to differentiate.

    .. math:: \sum_i w_i (\langle p_i - t_i, z_i \rangle + \tau_i (H_\alpha(p_i) - H_\alpha(t_i))),
        \quad z = h W', \quad p_i = \mathrm{entmax}_\alpha(z_i / \tau_i)

    Three products of [rows, d] and [N, d] with their gradient, where the losses row by row take
    four; work and memory for the rows that have a target, and for no others. Reverse mode only;
    no second derivatives.

    Args:
        h: [..., d] one vector per example.
        W: [N, d] one vector per item, of the dtype of h. Half precision is multiplied as it is
            and accumulated in float32.
        targets: see `linear_entmax_loss`.
        alpha: a Python number in [1, 2]: 1 softmax, 1.5 entmax15, 2 sparsemax.
        bias: see `linear_entmax_loss`.
        where: see `linear_entmax_loss`.
        tau: see `linear_entmax_loss`; a new value compiles nothing anew.
        weights: see `linear_entmax_loss`.
        target_probabilities: see `linear_entmax_loss`.
        rows: rows of logits held at once; unset, see `tile_rows`.

    Returns:
        f[] the sum, float32 or float64. Divide by the number of targets for a mean.

    Raises:
        ValueError: as `linear_entmax_loss` does, and if h and W differ in dtype.

    Example:
        >>> import jax.numpy as jnp
        >>> h, W = jnp.array([[1.0, 0.0]] * 2), jnp.array([[4.0, 0.0], [0.0, 1.0], [1.0, 0.0]])
        >>> print(linear_entmax_sum(h, W, jnp.array([2, -1]), alpha=2.0))
        3.0
    """
    alpha = check_alpha(alpha)
    arguments = check_arguments(
        h,
        W,
        targets,
        bias=bias,
        where=where,
        tau=tau,
        weights=weights,
        probabilities=target_probabilities,
        one_dtype=True,
    )
    if rows is not None and rows < 1:
        raise ValueError(f"rows must be positive, got {rows}")
    count, n = math.prod(arguments.h.shape[:-1]), arguments.W.shape[0]
    size: Any = tile_rows(count, n) if rows is None else at_most(rows, count)
    return _compiled(arguments, SumConfig(alpha, size))
