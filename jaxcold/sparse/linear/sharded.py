"""The summed linear loss with its items sharded over devices: one threshold for all.

As `jaxcold.sparse.linear.summed`, with every device holding the logits of its own items only.
Softmax asks the others twice in all, for the largest logits and for the masses, between two passes
over its logits. Entmax searches one threshold across the devices: each step adds up two numbers
per row, the only exchange that has to be inside a loop.
"""

import functools
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jax import lax
from jax.typing import ArrayLike

from jaxcold.sparse._arguments import canonical_labels, poison, widest
from jaxcold.sparse._search import Reduction, SearchConfig, find_threshold, probabilities
from jaxcold.sparse.linear._shared import (
    Arguments,
    check_alpha,
    check_arguments,
    indices_of,
    product,
    take_rows,
)
from jaxcold.sparse.linear.summed import tile_rows


class ShardConfig(NamedTuple):
    """What the compiled program depends on besides shapes."""

    alpha: float
    rows: int
    axis: str


def _pass(
    h: jax.Array,
    W: jax.Array,
    bias: jax.Array | None,
    tau: jax.Array,
    targets: jax.Array,
    is_counted: jax.Array,
    config: ShardConfig,
) -> tuple[jax.Array, jax.Array, jax.Array, jax.Array]:
    """This device's part of the sum, and of its gradients in h, W and tau.

    All in the accumulator's dtype.
    """
    alpha, size, axis = config
    (rows, d), n, dtype = h.shape, W.shape[0], tau.dtype
    local = targets - lax.axis_index(axis) * n
    own = is_counted & (local >= 0) & (local < n)
    at_target = jnp.where(own, local, 0)
    # Rows that count come first, so that whole tiles of others are never reached.
    order, count = indices_of(is_counted, -(-rows // size) * size)
    tiles = (count + size - 1) // size
    scale = 1 / tau

    def logits(i: jax.Array) -> tuple[jax.Array, jax.Array, jax.Array]:
        """Rows of a tile, their vectors, and their logits over this device's items."""
        at = lax.dynamic_slice(order, (i * size,), (size,))
        tile_h = take_rows(h, at)
        z = product(tile_h, W, (1, 1), dtype)
        return at, tile_h, z if bias is None else z + bias[None, :]

    def add(
        state: tuple[jax.Array, jax.Array], at: jax.Array, tile_h: jax.Array, p: jax.Array
    ) -> tuple[jax.Array, jax.Array]:
        """The gradients of a tile whose probabilities are known."""
        dh, dW = state
        narrow = jnp.where((at < rows)[:, None], p, 0).astype(W.dtype)
        dh = dh.at[at].set(product(narrow, W, (1, 0), dtype), mode="drop")
        return dh, dW + product(tile_h, narrow, (0, 0), dtype)

    # dW is transposed: what is turned in its product is the narrow operand.
    gradients = jnp.zeros((rows, d), dtype), jnp.zeros((d, n), dtype)
    per_row = jnp.zeros(rows, dtype)
    if alpha == 1:

        def measure(i: jax.Array, state: tuple[jax.Array, ...]) -> tuple[jax.Array, ...]:
            top, mass = state
            at, _, z = logits(i)
            largest = z.max(1)
            finite = jnp.where(largest == -jnp.inf, 0, largest)
            total = jnp.exp((z - finite[:, None]) * scale).sum(1)
            return top.at[at].set(largest, mode="drop"), mass.at[at].set(total, mode="drop")

        start = jnp.full(rows, -jnp.inf, dtype), per_row
        own_top, mass = lax.fori_loop(0, tiles, measure, start)
        top = lax.pmax(own_top, axis)
        top = jnp.where(top == -jnp.inf, 0, top)
        mass = lax.psum(mass * jnp.exp((own_top - top) * scale), axis)
        mass = jnp.where(is_counted, mass, 1)

        def tile(i: jax.Array, state: tuple[jax.Array, ...]) -> tuple[jax.Array, ...]:
            dh, dW, expected = state
            at, tile_h, z = logits(i)
            tile_top, tile_mass = (take_rows(a, at, 1) for a in (top, mass))
            u = (z - tile_top[:, None]) * scale
            p = jnp.exp(u) / tile_mass[:, None]
            mean = jnp.where(p == 0, 0, p * u).sum(1)
            return *add((dh, dW), at, tile_h, p), expected.at[at].set(mean, mode="drop")

        dh, dW, expected = lax.fori_loop(0, tiles, tile, (*gradients, per_row))
        losses = tau * jnp.log(mass) + top
        # Each device adds its own part of the sum of p u.
        own_entropy, entropy = -expected, jnp.log(mass)
    else:
        search = SearchConfig(alpha)
        # Evaluated while tracing: the number of devices is static.
        reduction = Reduction(
            functools.partial(lax.psum, axis_name=axis),
            functools.partial(lax.pmax, axis_name=axis),
            lax.psum(1, axis),
        )

        def tile(i: jax.Array, state: tuple[jax.Array, ...]) -> tuple[jax.Array, ...]:
            dh, dW, losses, entropies = state
            at, tile_h, z = logits(i)
            scales = jnp.broadcast_to(scale, (size,))
            result = find_threshold(z, scales, None, search, power_sum=True, reduction=reduction)
            p = probabilities(z, result, None, search, scales)
            level = result.cut if alpha < 1.5 else (1 + result.cut) / (alpha - 1)
            rest = 1 - result.sum_p_alpha
            # The dual form of `loss_and_entropy`, less the target's logit.
            value = tau * (level - rest / alpha) + result.top
            return (
                *add((dh, dW), at, tile_h, p),
                losses.at[at].set(value, mode="drop"),
                entropies.at[at].set(rest / (alpha * (alpha - 1)), mode="drop"),
            )

        dh, dW, losses, entropy = lax.fori_loop(0, tiles, tile, (*gradients, per_row, per_row))
        own_entropy = jnp.zeros_like(entropy)

    # What all devices know counts on the first; a target counts where its item is.
    is_first = is_counted & (lax.axis_index(axis) == 0)
    hit = jnp.where(own[:, None], W[at_target], 0).astype(dtype)
    score = jnp.where(own, (h.astype(dtype) * hit).sum(1), 0)
    total = jnp.sum(jnp.where(is_first, losses, 0)) - jnp.sum(score)
    dtau = jnp.sum(jnp.where(is_first, entropy, 0) + jnp.where(is_counted, own_entropy, 0))
    dW = dW.T.at[jnp.where(own, at_target, n)].add(-h.astype(dtype), mode="drop")
    return total, dh - hit, dW, dtau


@functools.partial(jax.custom_vjp, nondiff_argnums=(6,))
def _sum(
    h: jax.Array,
    W: jax.Array,
    bias: jax.Array | None,
    tau: jax.Array,
    targets: jax.Array,
    is_counted: jax.Array,
    config: ShardConfig,
) -> jax.Array:
    return _pass(h, W, bias, tau, targets, is_counted, config)[0]


def _forward(h, W, bias, tau, targets, is_counted, config):  # type: ignore[no-untyped-def]
    total, dh, dW, dtau = _pass(h, W, bias, tau, targets, is_counted, config)
    return total, (dh.astype(h.dtype), dW.astype(W.dtype), None, dtau)


def _backward(config, gradients, cotangent):  # type: ignore[no-untyped-def]
    del config
    return (*jax.tree.map(lambda g: cotangent.astype(g.dtype) * g, gradients), None, None)


_sum.defvjp(_forward, _backward)


def _compute(arguments: Arguments, config: ShardConfig) -> jax.Array:
    h, W, targets, _, where, tau, *_ = jax.tree.map(jnp.asarray, arguments)
    axis, n = config.axis, W.shape[0]
    dtype = widest(h.dtype, jnp.float32)
    total = n * lax.psum(1, axis)
    targets = canonical_labels(targets, total)
    is_counted = targets >= 0
    bias = None
    if where is not None:
        bias = jnp.where(where, jnp.zeros(n, dtype), -jnp.inf)
        local = targets - lax.axis_index(axis) * n
        own = is_counted & (local >= 0) & (local < n)
        is_dropped = own & ~where[jnp.where(own, local, 0)]
        is_counted &= lax.psum(is_dropped.astype(dtype), axis) == 0
    tau = poison(tau.astype(dtype), ~(tau > 0) | (targets >= total).any())
    return _sum(h, W, bias, tau, targets, is_counted, config)


def sharded_entmax_sum(
    h: ArrayLike,
    W: ArrayLike,
    targets: ArrayLike,
    alpha: float,
    *,
    axis: str,
    where: ArrayLike | None = None,
    tau: ArrayLike = 1.0,
    rows: int | None = None,
) -> jax.Array:
    """`jaxcold.sparse.linear_entmax_sum` with the items sharded over devices.

    For use inside pmap, or shard_map with ``check_vma=False``. Each device returns a part of the
    sum: added up over the devices they are the sum. The derivative is that of the added parts, by
    this device's arguments: its own items' gradient is whole, those of `h` and `tau` have to be
    added up (the transpose of an ``all_gather`` that made `h` does).

    Args:
        h: [rows, d] one vector per example, the same on all devices.
        W: [n, d] one vector for each item of this device, of the dtype of h. The items of device k
            have the numbers from ``k * n`` on.
        targets: i[rows] number of each row's item, the same on all devices. As in the other linear
            losses a row is ignored whose target is negative or dropped by ``where``; a target
            beyond all items makes the sum NaN.
        alpha: a Python number in [1, 2]: 1 softmax, 1.5 entmax15, 2 sparsemax.
        axis: name of the devices' axis.
        where: bool[n], False drops an item of this device.
        tau: temperature above 0, one number, may be traced.
        rows: rows of logits held at once; unset, see `tile_rows`.

    Returns:
        f[] this device's part, float32 or float64.

    Raises:
        ValueError: if alpha is not a number in [1, 2], a concrete tau is not above 0, or shapes or
            dtypes do not fit.
    """
    alpha = check_alpha(alpha)
    arguments = check_arguments(h, W, targets, where=where, tau=tau, one_dtype=True)
    if arguments.h.ndim != 2:
        raise ValueError(f"expected h [rows, d], got {list(arguments.h.shape)}")
    if arguments.tau.ndim:
        raise ValueError(f"tau must be one number, got {list(arguments.tau.shape)}")
    if rows is not None and rows < 1:
        raise ValueError(f"rows must be positive, got {rows}")
    count, n = arguments.h.shape[0], arguments.W.shape[0]
    if count == 0:
        return jnp.zeros((), widest(arguments.h.dtype, jnp.float32))
    size = tile_rows(count, n) if rows is None else min(rows, count)
    return _compute(arguments, ShardConfig(alpha, size, axis))
