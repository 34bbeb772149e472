"""Losses of ``h @ W.T``, one per row: the logits are never held at once.

A dense loss over N items holds ``[rows, N]`` logits, their probabilities and their gradient. Here
the forward pass takes a few rows at a time, finds their thresholds while the logits of those rows
are near the processor, and keeps a few numbers per row. The backward pass takes the catalogue in
column blocks, recomputes a block's logits only for the rows whose support reaches into it, and
skips the other rows: with sparse entmax most of the backward work disappears.
"""

import functools
import math
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax import lax
from jax.typing import ArrayLike

from jaxcold.sparse._search import (
    SearchConfig,
    ThresholdResult,
    find_thresholds,
    probabilities,
    shifted_logits,
)
from jaxcold.sparse.linear._shared import (
    Arguments,
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

_ROWS = 64  # rows of logits held at once by the forward pass
_COLUMNS = 512  # smallest default column block of the backward pass
_MAX_COLUMN_BLOCKS = 256  # bounds the per-row block flags, so memory stays O(rows + N)
_GATHERED_ROWS = 128  # rows of one backward tile: what a block's last tile may waste
_MANY_ROWS = 2048  # rows of one where a block is reached by at least half as many
_GROUP = 128  # columns whose maximum is kept: what the threshold search prunes by
_CANDIDATE_GROUPS = 64  # groups searched first


class LinearConfig(NamedTuple):
    """What the compiled program depends on besides shapes."""

    alpha: float
    rows: int
    columns: int


class RowResults(NamedTuple):
    """Per-row results of the forward pass, each [rows] but the last."""

    loss: jax.Array
    threshold: ThresholdResult
    entropy: jax.Array
    is_reached: jax.Array  # bool[rows, column blocks]: has support in the block


def _logits(h: jax.Array, W: jax.Array, bias: jax.Array | None, dtype: Any) -> jax.Array:
    z = product(h, W, (1, 1), dtype)
    return z if bias is None else z + bias[None, :]


def _group_maxima(x: jax.Array) -> jax.Array:
    """Largest entry of each run of ``_GROUP`` columns: [rows, n] -> [rows, ceil(n / _GROUP)]."""
    rows, n = x.shape
    grouped = n // _GROUP * _GROUP
    top = x[:, :grouped].reshape(rows, n // _GROUP, _GROUP).max(2)
    return top if grouped == n else jnp.concatenate([top, x[:, grouped:].max(1, keepdims=True)], 1)


def _pruned_thresholds(
    z: jax.Array, maxima: jax.Array, scale: jax.Array, config: SearchConfig
) -> ThresholdResult:
    """The thresholds of rows of ``z`` [rows, n] whose groups have the ``maxima`` [rows, groups].

    The threshold of a subset of the entries is a lower bound of the threshold of all, and exact
    when nothing outside the subset exceeds it. So it is sought among the groups with the largest
    maxima, and among all columns, from there, only where a group left out turns out to matter.
    """
    rows, n = z.shape
    find = functools.partial(find_thresholds, alpha=None, config=config, power_sum=True)
    if config.alpha == 1 or maxima.shape[1] <= _CANDIDATE_GROUPS:
        return find(z, scale)
    largest, groups = lax.top_k(maxima, _CANDIDATE_GROUPS + 1)
    columns = groups[:, :-1, None] * _GROUP + jnp.arange(_GROUP, dtype=groups.dtype)[None, None, :]
    columns = columns.reshape(rows, _CANDIDATE_GROUPS * _GROUP)
    candidates = jnp.take_along_axis(z, jnp.minimum(columns, n - 1), 1)
    result = find(jnp.where(columns < n, candidates, -jnp.inf), scale)
    left_out = scale * (largest[:, -1] - result.top)
    e = jnp.asarray(config.alpha - 1, z.dtype)  # type: ignore[operator]
    is_missed = (shifted_logits(left_out, e, config) > result.cut).any()
    return lax.cond(
        is_missed, lambda low: find(z, scale, at_least=low), lambda _: result, result.cut
    )


def _solve_tile(
    z: jax.Array,
    tau: jax.Array,
    targets: jax.Array,
    shares: jax.Array,
    is_counted: jax.Array,
    config: LinearConfig,
) -> RowResults:
    """The forward pass of rows whose logits ``z`` [rows, N] are all present."""
    alpha, (rows, n) = config.alpha, z.shape
    search = SearchConfig(alpha)
    maxima = _group_maxima(z)
    scale = 1 / tau
    result = _pruned_thresholds(z, maxima, scale, search)
    loss, entropy = loss_and_entropy(z, result, targets, shares, tau, alpha)
    if alpha == 1:
        u = scale[:, None] * (z - result.top[:, None])
        p = jnp.exp(u - result.cut[:, None])
        entropy = result.cut - jnp.where(p == 0, 0, p * u).sum(1)
    blocks = -(-n // config.columns)
    # NaN reaches everywhere.
    support = ~(probabilities(maxima, result, None, search, scale) <= 0)
    per_block = config.columns // _GROUP
    support = jnp.pad(support, ((0, 0), (0, blocks * per_block - maxima.shape[1])))
    is_reached = support.reshape(rows, blocks, per_block).any(2)
    return RowResults(
        jnp.where(is_counted, loss, 0),
        result,
        jnp.where(is_counted, entropy, 0),
        is_reached & is_counted[:, None],
    )


def _forward(
    h: jax.Array,
    W: jax.Array,
    bias: jax.Array | None,
    tau: jax.Array,
    targets: jax.Array,
    shares: jax.Array,
    is_counted: jax.Array,
    config: LinearConfig,
) -> RowResults:
    rows, size = h.shape[0], config.rows

    def pad(a: jax.Array) -> jax.Array:
        return jnp.concatenate([a, jnp.zeros_like(a, shape=(size, *a.shape[1:]))])

    operands = jax.tree.map(pad, (h, tau, targets, shares, is_counted))

    def tile(i: jax.Array, results: RowResults) -> RowResults:
        first = i * size
        parts = [lax.dynamic_slice_in_dim(a, first, size) for a in operands]
        tile_h, tile_tau, tile_targets, tile_shares, tile_live = parts
        tile_tau = jnp.where(tile_tau == 0, 1, tile_tau)  # of the padding
        z = _logits(tile_h, W, bias, tau.dtype)
        solved = _solve_tile(z, tile_tau, tile_targets, tile_shares, tile_live, config)
        return jax.tree.map(
            lambda a, b: lax.dynamic_update_slice_in_dim(a, b, first, 0), results, solved
        )

    like = tuple(jax.tree.leaves((h, W, bias, tau, targets, shares, is_counted)))
    number = functools.partial(zeros, (rows + size,), tau.dtype, like)
    flags = zeros((rows + size, -(-W.shape[0] // config.columns)), jnp.int32, like) != 0
    threshold = ThresholdResult(*(number() for _ in ThresholdResult._fields))
    start = RowResults(number(), threshold, number(), flags)
    results = lax.fori_loop(0, -(-rows // size), tile, start)
    return jax.tree.map(lambda a: a[:rows], results)


@functools.partial(jax.custom_vjp, nondiff_argnums=(7,))
def _linear_loss(
    h: jax.Array,
    W: jax.Array,
    bias: jax.Array | None,
    tau: jax.Array,
    targets: jax.Array,
    shares: jax.Array,
    is_counted: jax.Array,
    config: LinearConfig,
) -> jax.Array:
    return _forward(h, W, bias, tau, targets, shares, is_counted, config).loss


def _linear_loss_forward(h, W, bias, tau, targets, shares, is_counted, config):  # type: ignore[no-untyped-def]
    results = _forward(h, W, bias, tau, targets, shares, is_counted, config)
    return results.loss, (h, W, bias, tau, targets, shares, is_counted, results)


def _linear_loss_backward(config, saved, cotangent):  # type: ignore[no-untyped-def]
    h, W, bias, tau, targets, shares, is_counted, results = saved
    (rows, d), n = h.shape, W.shape[0]
    size = min(config.columns, n)
    small_tile, large_tile = at_most(_GATHERED_ROWS, rows), at_most(_MANY_ROWS, rows)
    dtype, search = tau.dtype, SearchConfig(config.alpha)
    cotangent = jnp.where(is_counted, cotangent, 0)
    like = tuple(jax.tree.leaves((h, W, bias, tau, targets, cotangent)))

    def tile(index, state, chunk, W_block, bias_block, is_fresh, order):  # type: ignore[no-untyped-def]
        """Adds the gradient of one chunk of the rows that reach into one column block."""
        dh, dW_block, dbias_block = state  # dW_block is transposed: [d, columns]
        at = lax.dynamic_slice(order, (index * chunk,), (chunk,))
        h_rows = take_rows(h, at)
        z = _logits(h_rows, W_block, bias_block, dtype)
        threshold = jax.tree.map(lambda a: take_rows(a, at, 1), results.threshold)
        # The tile's padding gets probability 0 whatever the bias.
        threshold = threshold._replace(top=take_rows(results.threshold.top, at, jnp.inf))
        p = probabilities(z, threshold, None, search, 1 / take_rows(tau, at, 1))
        g = jnp.where(is_fresh[None, :], p, 0) * take_rows(cotangent, at)[:, None]
        dh = dh.at[at].add(g @ W_block.astype(dtype), mode="drop")
        # Behind the barrier the transpose stays on the narrow operand; XLA would move it to g.
        narrow = lax.optimization_barrier(h_rows.astype(dtype).T)
        if bias is not None:
            dbias_block = dbias_block + g.sum(0)
        return dh, dW_block + narrow @ g, dbias_block

    def block(b, state):  # type: ignore[no-untyped-def]
        dh, dW, dbias = state
        is_reached = lax.dynamic_index_in_dim(results.is_reached, b, 1, keepdims=False)
        order, count = indices_of(is_reached & (cotangent != 0), rows + large_tile)
        # The last block may be ragged: it is moved back, and its repeated columns are not fresh.
        start = jnp.minimum(b * config.columns, n - size)
        columns = start + jnp.arange(size, dtype=jnp.int32)
        W_block = lax.dynamic_slice(W, (start, 0), (size, d))
        bias_block = None if bias is None else lax.dynamic_slice(bias, (start,), (size,))
        dW_block = lax.dynamic_slice(dW, (start, 0), (size, d)).T
        dbias_block = lax.dynamic_slice(dbias, (start,), (size,))

        def in_chunks(chunk, state):  # type: ignore[no-untyped-def]
            add = functools.partial(
                tile,
                chunk=chunk,
                W_block=W_block,
                bias_block=bias_block,
                is_fresh=columns >= b * config.columns,
                order=order,
            )
            return lax.fori_loop(0, (count + chunk - 1) // chunk, add, state)

        state = dh, dW_block, dbias_block
        if small_tile == large_tile:
            dh, dW_block, dbias_block = in_chunks(small_tile, state)
        else:
            # Small chunks waste little where few rows reach; large ones multiply faster.
            dh, dW_block, dbias_block = lax.cond(
                count > large_tile // 2,
                functools.partial(in_chunks, large_tile),
                functools.partial(in_chunks, small_tile),
                state,
            )
        return (
            dh,
            lax.dynamic_update_slice(dW, dW_block.T, (start, 0)),
            lax.dynamic_update_slice(dbias, dbias_block, (start,)),
        )

    start = tuple(zeros(s, dtype, like) for s in ((rows, d), (n, d), (n,)))
    blocks = -(-n // config.columns)
    dh, dW, dbias = lax.fori_loop(0, blocks, block, start)
    part = jnp.where(cotangent[:, None] == 0, 0, shares * cotangent[:, None])
    dh = dh - target_rows(W, targets, part, dtype)
    dW = subtract_targets(dW, h, targets, part)
    if bias is not None:
        dbias = dbias.at[targets].add(-part)
    dtau = jnp.where(cotangent == 0, 0, cotangent * results.entropy)
    return (
        dh.astype(h.dtype),
        dW.astype(W.dtype),
        None if bias is None else dbias,
        dtau,
        None,
        None,
        None,
    )


_linear_loss.defvjp(_linear_loss_forward, _linear_loss_backward)


@functools.partial(jax.jit, static_argnames="config")
def _compiled(arguments: Arguments, config: LinearConfig) -> jax.Array:
    given = make_operands(arguments)
    batch, rows = arguments.h.shape[:-1], given.h.shape[0]
    if isinstance(rows, int) and rows == 0:
        return jnp.zeros(batch, given.tau.dtype)
    operands = (
        given.h,
        given.W,
        given.bias,
        given.tau,
        given.targets,
        given.shares,
        given.is_counted,
    )
    loss = _linear_loss(*alike(operands), config)
    if arguments.probabilities is not None:
        entropy = entropy_of_targets(given.shares, config.alpha)
        loss = loss - jnp.where(given.is_counted, given.tau * entropy, 0)
    if given.weights is not None:
        loss = weighted(loss, given.weights)
    return loss.reshape(batch)


def linear_entmax_loss(
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
    block: tuple[int, int] | None = None,
    method: str = "auto",
) -> jax.Array:
    r"""Entmax Fenchel-Young loss of the logits ``z = h @ W.T + bias``, which are never held.

    .. math:: L(z, t) = \langle p - t, z \rangle + \tau (H_\alpha(p) - H_\alpha(t)),
        \quad p = \mathrm{entmax}_\alpha(z / \tau)

    with gradient ``p - t`` in z: the values and derivatives of the dense
    ``fenchel_young_loss(h @ W.T + bias, targets, alpha, tau=tau, where=where, weights=weights)``,
    whose rule for targets holds here too. Reverse mode only; there are no second derivatives. Safe
    under jit, vmap, scan, remat and shard_map.

    Memory beyond the arguments and their gradients: about ``2 * block[0] * N`` numbers in the
    forward pass (4 on an accelerator); a few tiles of 2048 x ``block[1]`` and a map of
    rows x N / ``block[1]`` booleans (by default at most 256 per row) in the backward pass.

    Args:
        h: [..., d] one vector per example.
        W: [N, d] one vector per item. float16 and bfloat16 are multiplied as they are and
            accumulated in float32; everything after the product is float32 (or float64).
        targets: i[...] index of each row's item; or i[..., k], the distinct items of a soft target.
        alpha: a Python number in [1, 2]: 1 softmax, 1.5 entmax15, 2 sparsemax.
        bias: [N] added to the logits; -inf drops an item, and as a target costs +inf.
        where: bool[N], False drops an item. A row whose target is dropped is ignored, as in the
            dense loss.
        tau: temperature above 0, a number or one per row: it broadcasts against the losses. May be
            traced, where a value of 0 or less gives NaN, and differentiated.
        weights: multiplies the losses, broadcasts against them, differentiable; see
            `fenchel_young_loss`.
        target_probabilities: [..., k] of a soft target's items; a place in a row that has fewer
            holds 0. Constant: it gets no gradient.
        block: (rows of logits held at once by the forward pass, columns of one block of the
            backward pass, rounded up to a multiple of 128). Default (64, max(512, N / 256)).
        method: "xla", or "auto", which is the same.

    Returns:
        f[...] losses, float32 or float64.

    Raises:
        ValueError: if alpha is not a number in [1, 2], a concrete tau is not above 0, concrete
            target probabilities do not sum to 1, or shapes or dtypes do not fit.

    Example:
        >>> import jax.numpy as jnp
        >>> h, W = jnp.array([[1.0, 0.0]]), jnp.array([[4.0, 0.0], [0.0, 1.0], [1.0, 0.0]])
        >>> print(linear_entmax_loss(h, W, jnp.array([2]), alpha=2.0))
        [3.]

    Reference: Blondel et al., Learning with Fenchel-Young Losses, JMLR 2020.
    """
    alpha = check_alpha(alpha)
    if method not in ("auto", "xla"):
        raise ValueError(f"method must be 'auto' or 'xla', got {method!r}")
    if block is not None and (len(block) != 2 or min(block) < 1):
        raise ValueError(f"block must be (rows, columns), both positive: got {block}")
    arguments = check_arguments(
        h,
        W,
        targets,
        bias=bias,
        where=where,
        tau=tau,
        weights=weights,
        probabilities=target_probabilities,
    )
    rows, n = math.prod(arguments.h.shape[:-1]), arguments.W.shape[0]
    row_block, columns = block or (_ROWS, max(_COLUMNS, -(-n // _MAX_COLUMN_BLOCKS)))
    config = LinearConfig(alpha, at_most(row_block, rows), -(-columns // _GROUP) * _GROUP)
    return _compiled(arguments, config)


def linear_softmax_loss(
    h: ArrayLike,
    W: ArrayLike,
    targets: ArrayLike,
    *,
    bias: ArrayLike | None = None,
    where: ArrayLike | None = None,
    tau: ArrayLike = 1.0,
    weights: ArrayLike | None = None,
    target_probabilities: ArrayLike | None = None,
    block: tuple[int, int] | None = None,
    method: str = "auto",
) -> jax.Array:
    """Softmax cross-entropy of ``(h @ W.T + bias) / tau``, times tau, without its logits.

    ``linear_entmax_loss`` at alpha = 1: same arguments, results and guarantees. Every item has
    support, so no block is skipped.
    """
    return linear_entmax_loss(
        h,
        W,
        targets,
        1.0,
        bias=bias,
        where=where,
        tau=tau,
        weights=weights,
        target_probabilities=target_probabilities,
        block=block,
        method=method,
    )
