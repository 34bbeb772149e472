"""The summed loss of a catalogue whose items are split over devices: one threshold for all.

As `jaxcold.sparse.linear_sum`, with every device holding the logits of its own items only. Softmax
asks the others twice in all, for the largest logits and for the masses, between two passes over
its logits. Entmax searches one threshold across the devices: its iterations each add up two numbers
per row, the only exchange that has to be inside a loop.
"""

import functools
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jax import lax
from jax.typing import ArrayLike

from jaxcold.sparse._linear import places_of, product, sum_operands
from jaxcold.sparse.linear import _MAX_STEPS, _newton_move, _power, _sums
from jaxcold.sparse.linear_sum import tile_rows


class _Static(NamedTuple):
    """What the compiled program depends on besides shapes."""

    alpha: float
    tau: float
    rows: int
    axis: str


def _threshold(u: jax.Array, alpha: float, axis: str) -> tuple[jax.Array, jax.Array]:
    """Threshold and sum of ``p ** alpha`` of rows whose largest entry on any device is 0.

    Newton's iteration of `jaxcold.sparse.linear`, from below: sums over all devices decide, so all
    take the same number of steps.
    """

    def step(
        state: tuple[jax.Array, jax.Array, jax.Array],
    ) -> tuple[jax.Array, jax.Array, jax.Array]:
        eta, _, count = state
        mass, slope, _ = _sums(u, eta[:, None], alpha)
        mass, slope = lax.psum(jnp.stack([mass.sum(1), slope.sum(1)]), axis)
        move = _newton_move(mass, slope, alpha)
        return eta + move, move, count + 1

    def unfinished(state: tuple[jax.Array, jax.Array, jax.Array]) -> jax.Array:
        eta, move, count = state
        return (move > jnp.finfo(u.dtype).eps * jnp.abs(eta)).any() & (count < _MAX_STEPS)

    low = jnp.full(u.shape[0], -1, u.dtype)
    eta = lax.while_loop(unfinished, step, (low, low + jnp.inf, jnp.int32(0)))[0]
    return eta, lax.psum(_sums(u, eta[:, None], alpha)[2].sum(1), axis)


def _pass(
    h: jax.Array, W: jax.Array, targets: jax.Array, where: jax.Array, static: _Static
) -> tuple[jax.Array, jax.Array, jax.Array]:
    """This device's part of the sum, and of its gradients; all in the accumulator's dtype."""
    alpha, tau, size, axis = static
    (rows, d), n = h.shape, W.shape[0]
    dtype = jnp.promote_types(h.dtype, jnp.float32)
    valid = targets >= 0
    local = targets - lax.axis_index(axis) * n
    own = valid & (local >= 0) & (local < n)
    at = jnp.where(own, local, 0)
    # Rows that count come first, so that whole tiles of others are never reached.
    order, count = places_of(valid, -(-rows // size) * size)
    tiles = (count + size - 1) // size

    def logits(i: jax.Array) -> tuple[jax.Array, jax.Array, jax.Array]:
        """Rows of a tile, their vectors, and their logits over this device's items."""
        chosen = lax.dynamic_slice(order, (i * size,), (size,))
        part = h.at[chosen].get(mode="fill", fill_value=0)
        return chosen, part, jnp.where(where[None, :], product(part, W, (1, 1), dtype), -jnp.inf)

    def add(
        state: tuple[jax.Array, jax.Array], chosen: jax.Array, part: jax.Array, p: jax.Array
    ) -> tuple[jax.Array, jax.Array]:
        """The gradients of a tile whose probabilities are known."""
        dh, dW = state
        narrow = jnp.where((chosen < rows)[:, None], p, 0).astype(W.dtype)
        dh = dh.at[chosen].set(product(narrow, W, (1, 0), dtype), mode="drop")
        return dh, dW + product(part, narrow, (0, 0), dtype)

    # dW is transposed: what is turned in its product is the narrow operand.
    zeros = jnp.zeros((rows, d), dtype), jnp.zeros((d, n), dtype)
    if alpha == 1:

        def measure(i: jax.Array, state: tuple[jax.Array, ...]) -> tuple[jax.Array, ...]:
            top, mass = state
            chosen, _, z = logits(i)
            largest = z.max(1)
            finite = jnp.where(largest == -jnp.inf, 0, largest)
            total = jnp.exp((z - finite[:, None]) / tau).sum(1)
            return (
                top.at[chosen].set(largest, mode="drop"),
                mass.at[chosen].set(total, mode="drop"),
            )

        start = jnp.full(rows, -jnp.inf, dtype), jnp.zeros(rows, dtype)
        mine, mass = lax.fori_loop(0, tiles, measure, start)
        top = lax.pmax(mine, axis)
        top = jnp.where(top == -jnp.inf, 0, top)
        mass = lax.psum(mass * jnp.exp((mine - top) / tau), axis)
        mass = jnp.where(valid, mass, 1)

        def tile(i: jax.Array, state: tuple[jax.Array, jax.Array]) -> tuple[jax.Array, jax.Array]:
            chosen, part, z = logits(i)
            peak, share = (a.at[chosen].get(mode="clip") for a in (top, mass))
            return add(state, chosen, part, jnp.exp((z - peak[:, None]) / tau) / share[:, None])

        dh, dW = lax.fori_loop(0, tiles, tile, zeros)
        loss = tau * jnp.log(mass) + top
    else:
        scale = (alpha - 1) / tau

        def search(i: jax.Array, state: tuple[jax.Array, ...]) -> tuple[jax.Array, ...]:
            dh, dW, loss = state
            chosen, part, z = logits(i)
            u = z * scale
            shift = lax.pmax(u.max(1), axis)
            u = u - shift[:, None]
            eta, mass = _threshold(u, alpha, axis)
            p = _power(jnp.maximum(u - eta[:, None], 0), 1 / (alpha - 1))
            # The dual form of `jaxcold.sparse.linear`, less the target's logit.
            value = (mass + eta + shift + (1 - mass) / alpha) / scale
            return *add((dh, dW), chosen, part, p), loss.at[chosen].set(value, mode="drop")

        dh, dW, loss = lax.fori_loop(0, tiles, search, (*zeros, jnp.zeros(rows, dtype)))

    # What all devices know counts on the first; a target counts where its item is.
    hit = jnp.where(own[:, None], W[at], 0).astype(dtype)
    first = lax.axis_index(axis) == 0
    total = jnp.sum(jnp.where(valid & first, loss, 0)) - jnp.sum(h.astype(dtype) * hit)
    dW = dW.T.at[jnp.where(own, at, n)].add(-h.astype(dtype), mode="drop")
    return total, dh - hit, dW


@functools.partial(jax.custom_vjp, nondiff_argnums=(4,))
def _sum(
    h: jax.Array, W: jax.Array, targets: jax.Array, where: jax.Array, static: _Static
) -> jax.Array:
    return _pass(h, W, targets, where, static)[0]


def _forward(h, W, targets, where, static):  # type: ignore[no-untyped-def]
    total, dh, dW = _pass(h, W, targets, where, static)
    return total, (dh.astype(h.dtype), dW.astype(W.dtype))


def _backward(static, kept, cotangent):  # type: ignore[no-untyped-def]
    return (*(cotangent.astype(g.dtype) * g for g in kept), None, None)


_sum.defvjp(_forward, _backward)


def sharded_entmax_sum(
    h: ArrayLike,
    W: ArrayLike,
    targets: ArrayLike,
    alpha: float,
    *,
    axis: str,
    where: ArrayLike | None = None,
    tau: float = 1.0,
    rows: int | None = None,
) -> jax.Array:
    """`jaxcold.sparse.linear_entmax_sum` with the items split over devices.

    For use inside pmap, or shard_map with ``check_vma=False``. Each device returns a part of the
    sum: added up over the devices they are the sum. The derivative is that of the added parts, by
    this device's arguments: its own items' gradient is whole, that of `h` has to be added up (the
    transpose of an ``all_gather`` that made `h` does).

    Args:
        h: [rows, d] one vector per example, the same on all devices.
        W: [n, d] one vector for each item of this device, of the dtype of h. The items of device k
            have the numbers from ``k * n`` on.
        targets: i[rows] number of each row's item, the same on all devices; -1 for none.
        alpha: a Python number in [1, 2]: 1 softmax, 1.5 entmax15, 2 sparsemax.
        axis: name of the devices' axis.
        where: bool[n], False drops an item of this device; some device keeps one.
        tau: temperature, a Python number above 0.
        rows: rows of logits held at once; unset, see `tile_rows`.

    Returns:
        f[] this device's part, float32 or float64.

    Raises:
        ValueError: if alpha is not a number in [1, 2], or shapes or dtypes do not fit.
    """
    h, W, targets = sum_operands(h, W, targets, alpha, tau, rows)
    there = jnp.ones(W.shape[0], bool) if where is None else jnp.asarray(where)
    size = tile_rows(h.shape[0], W.shape[0]) if rows is None else rows
    return _sum(
        h, W, targets, there, _Static(float(alpha), float(tau), min(size, h.shape[0]), axis)
    )
