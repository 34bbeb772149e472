"""Losses of a whole catalogue: logits ``h @ W.T`` that are never held at once.

A dense loss over N items holds ``[rows, N]`` logits, their probabilities and their gradient. Here
the forward pass takes a few rows at a time, finds their thresholds while the logits of those rows
are near the processor, and keeps two numbers per row. The backward pass takes the catalogue in
column blocks, recomputes a block's logits only for the rows whose support reaches into it, and
skips the other rows: with sparse entmax most of the backward work disappears.
"""

import functools
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jax import lax
from jax.typing import ArrayLike

from jaxcold.sparse._linear import alike, check_alpha, check_operands, places_of, product, zeros

_ROWS = 64  # rows of logits held at once by the forward pass
_COLUMNS = 512  # smallest default column block of the backward pass
_MAX_COLUMN_BLOCKS = 256  # bounds the per-row block flags, so memory stays O(rows + N)
_GATHERED_ROWS = 128  # rows of one backward tile: what a block's last tile may waste
_MANY_ROWS = 2048  # rows of one where a block is reached by at least half as many
_GROUP = 128  # columns whose maximum is kept: what the threshold search prunes by
_CANDIDATE_GROUPS = 64  # groups searched first
_CACHED = 1 << 17  # logits that stay in the cache of one core
_MAX_STEPS = 128  # Newton halves residual times slope each step: far above float64's need


class _Static(NamedTuple):
    """What the compiled program depends on besides shapes."""

    alpha: float
    rows: int
    columns: int
    method: str = "xla"


class _Solution(NamedTuple):
    """Per-row results of the forward pass, each [rows] but the last."""

    loss: jax.Array
    shift: jax.Array  # largest scaled logit
    eta: jax.Array  # threshold of the shifted scaled logits; for alpha = 1 their log-sum-exp
    entropy: jax.Array
    reached: jax.Array  # bool[rows, column blocks]: has support, or the target, in the block


def _logits(h: jax.Array, W: jax.Array, offset: jax.Array | None, dtype: jnp.dtype) -> jax.Array:
    z = product(h, W, (1, 1), dtype)
    return z if offset is None else z + offset[None, :]


def _scale(alpha: float, tau: jax.Array) -> jax.Array:
    return (1.0 if alpha == 1 else alpha - 1.0) / tau


def _probabilities(u: jax.Array, eta: jax.Array, alpha: float) -> jax.Array:
    """Entmax of shifted scaled logits ``u`` [rows, n] whose threshold ``eta`` [rows] is known."""
    if alpha == 1:
        return jnp.exp(u - eta[:, None])
    return _power(jnp.maximum(u - eta[:, None], 0.0), 1.0 / (alpha - 1.0))


def _power(t: jax.Array, exponent: float) -> jax.Array:
    """``t ** exponent`` for t >= 0, with 0 ** 0 = 0: what a count of the support needs."""
    if exponent == 0:
        # A clip, because XLA:CPU compares slowly: no t > 0 is below a rounding unit of eta.
        return jnp.minimum(t * 2.0**100, 1.0)
    if exponent == int(exponent):
        return lax.integer_pow(t, int(exponent))
    return jnp.where(t > 0, t**exponent, 0.0)


def _sums(u: jax.Array, eta: jax.Array, alpha: float) -> tuple[jax.Array, jax.Array, jax.Array]:
    """What is summed at a threshold: t^q, t^(q-1) and t^(q+1), t = max(u - eta, 0)."""
    q = 1.0 / (alpha - 1.0)
    t = jnp.maximum(u - eta, 0.0)
    return _power(t, q), _power(t, q - 1.0), _power(t, q + 1.0)


def _newton_move(mass: jax.Array, slope: jax.Array, alpha: float) -> jax.Array:
    """Newton's step on the q-norm from the sums of t^q and t^(q-1); 0 where nothing is above."""
    excess = mass - mass ** (2.0 - alpha)
    return jnp.where(slope > 0, excess / jnp.where(slope > 0, slope, 1.0), 0.0)


def _entmax_loss(
    mass: jax.Array, eta: jax.Array, target: jax.Array, tau: jax.Array, alpha: float
) -> tuple[jax.Array, jax.Array]:
    """Loss and entropy from the sum of ``p ** alpha``, the threshold and the target's logit.

    The dual form: stationary in eta, so the threshold's rounding enters only squared.
    """
    loss = tau / (alpha - 1.0) * ((mass - target + eta) + (1.0 - mass) / alpha)
    return loss, (1.0 - mass) / (alpha * (alpha - 1.0))


def _newton(u: jax.Array, low: jax.Array, alpha: float) -> jax.Array:
    """Threshold of each row of ``u`` [rows, n] from a lower bound ``low`` [rows] of it.

    Newton's iteration on the q-norm of ``max(u - eta, 0)``, q = 1 / (alpha - 1) >= 1. The norm is
    convex and falling in eta, so from the left of the root the iterates never overshoot, and
    norm-minus-one times slope shrinks fourfold each step (at q = 1 this is Michelot's algorithm).
    A step to the left can only repair rounding: it is taken, and it is the last.
    """

    def step(
        state: tuple[jax.Array, jax.Array, jax.Array],
    ) -> tuple[jax.Array, jax.Array, jax.Array]:
        eta, _, count = state
        mass, slope, _ = _sums(u, eta[:, None], alpha)
        move = _newton_move(mass.sum(1), slope.sum(1), alpha)
        return eta + move, move, count + 1

    def unfinished(state: tuple[jax.Array, jax.Array, jax.Array]) -> jax.Array:
        eta, move, count = state
        return (move > jnp.finfo(u.dtype).eps * jnp.abs(eta)).any() & (count < _MAX_STEPS)

    return lax.while_loop(unfinished, step, (low, low + jnp.inf, jnp.int32(0)))[0]


def _group_maxima(x: jax.Array) -> jax.Array:
    """Largest entry of each run of ``_GROUP`` columns: [rows, n] -> [rows, ceil(n / _GROUP)]."""
    rows, n = x.shape
    whole = n // _GROUP * _GROUP
    top = x[:, :whole].reshape(rows, -1, _GROUP).max(2)
    return top if whole == n else jnp.concatenate([top, x[:, whole:].max(1, keepdims=True)], 1)


def _entmax_rows(
    z: jax.Array, top: jax.Array, scale: jax.Array, shift: jax.Array, alpha: float
) -> tuple[jax.Array, jax.Array]:
    """Threshold and sum of ``p ** alpha`` of each row of ``z * scale - shift``.

    ``top`` [rows, groups] holds the group maxima of the same scaled and shifted logits.

    The threshold of a subset of the entries is a lower bound of the threshold of all, and exact
    when nothing outside the subset exceeds it. So it is sought among the groups with the largest
    maxima, and among all columns, from there, only where a group left out turns out to matter.
    """
    rows, n = z.shape
    q = 1.0 / (alpha - 1.0)

    def solve(u: jax.Array, low: jax.Array) -> tuple[jax.Array, jax.Array]:
        eta = _newton(u, low, alpha)
        return eta, _sums(u, eta[:, None], alpha)[2].sum(1)

    def everywhere(low: jax.Array) -> tuple[jax.Array, jax.Array]:
        def row(arrays: tuple[jax.Array, ...]) -> tuple[jax.Array, jax.Array]:
            z, shift, low = (a[None] for a in arrays)
            u = z * scale - shift[:, None]
            # n entries at the mean would have mass 1 at this bound; convexity does the rest.
            eta, mass = solve(u, jnp.maximum(low, u.mean(1) - (1.0 / n) ** (1.0 / q)))
            return eta[0], mass[0]

        # On a CPU as many rows at once as stay in a core's cache through all iterations.
        cached = max(1, _CACHED // n) if jax.default_backend() == "cpu" else rows
        return lax.map(row, (z, shift, low), batch_size=min(cached, rows))

    low = jnp.zeros_like(shift) - 1.0
    if top.shape[1] <= _CANDIDATE_GROUPS:
        return everywhere(low)
    maxima, groups = lax.top_k(top, _CANDIDATE_GROUPS + 1)
    columns = groups[:, :-1, None] * _GROUP + jnp.arange(_GROUP)[None, None, :]
    columns = columns.reshape(rows, -1)
    u = jnp.take_along_axis(z, jnp.minimum(columns, n - 1), 1) * scale - shift[:, None]
    u = jnp.where(columns < n, u, -jnp.inf)
    eta, mass = solve(u, _newton(maxima[:, :-1], low, alpha))
    missed = (maxima[:, -1] > eta).any()
    return lax.cond(missed, everywhere, lambda low: (low, mass), eta)


def _solve_rows(z: jax.Array, targets: jax.Array, tau: jax.Array, static: _Static) -> _Solution:
    """The forward pass of rows whose logits ``z`` [rows, N] are all present."""
    alpha, (rows, n) = static.alpha, z.shape
    scale = _scale(alpha, tau)
    top = _group_maxima(z) * scale
    shift = top.max(1)
    empty = shift == -jnp.inf
    shift = jnp.where(empty, 0.0, shift)
    top = top - shift[:, None]
    valid = (targets >= 0) & (targets < n) & ~empty
    at = jnp.where(valid, targets, 0)
    target = jnp.take_along_axis(z, at[:, None], 1)[:, 0] * scale - shift
    if alpha == 1:
        u = z * scale - shift[:, None]
        e = jnp.exp(u)
        mass = jnp.where(empty, 1.0, e.sum(1))
        eta = jnp.log(mass)
        entropy = eta - jnp.where(e > 0, e * u, 0.0).sum(1) / mass
        loss = tau * (eta - target)
    else:
        eta, mass = _entmax_rows(z, top, scale, shift, alpha)
        loss, entropy = _entmax_loss(mass, eta, target, tau, alpha)
    blocks = -(-n // static.columns)
    support = _probabilities(top, eta, alpha) > 0
    per_block = static.columns // _GROUP
    support = jnp.pad(support, ((0, 0), (0, blocks * per_block - top.shape[1])))
    reached = support.reshape(rows, blocks, per_block).any(2)
    reached |= (at // static.columns)[:, None] == jnp.arange(blocks)[None, :]
    return _Solution(
        jnp.where(valid, loss, 0.0),
        shift,
        eta,
        jnp.where(valid, entropy, 0.0),
        reached & valid[:, None],
    )


def _solve(
    h: jax.Array,
    W: jax.Array,
    offset: jax.Array | None,
    tau: jax.Array,
    targets: jax.Array,
    static: _Static,
) -> _Solution:
    count = h.shape[0]
    pad = -count % static.rows
    tiles = (
        jnp.pad(h, ((0, pad), (0, 0))).reshape(-1, static.rows, h.shape[1]),
        jnp.pad(targets, (0, pad), constant_values=-1).reshape(-1, static.rows),
    )

    def tile(arrays: tuple[jax.Array, jax.Array]) -> _Solution:
        return _solve_rows(_logits(arrays[0], W, offset, tau.dtype), arrays[1], tau, static)

    out = lax.map(tile, tiles)
    return jax.tree.map(lambda a: a.reshape(-1, *a.shape[2:])[:count], out)


def _forward(h, W, offset, tau, targets, static):  # type: ignore[no-untyped-def]
    if static.method == "pallas":
        from jaxcold.sparse import _pallas  # slow to import, and few need it

        return _pallas.solve(h, W, offset, tau, targets, static)
    return _solve(h, W, offset, tau, targets, static)


@functools.partial(jax.custom_vjp, nondiff_argnums=(5,))
def _linear_loss(
    h: jax.Array,
    W: jax.Array,
    offset: jax.Array | None,
    tau: jax.Array,
    targets: jax.Array,
    static: _Static,
) -> jax.Array:
    return _forward(h, W, offset, tau, targets, static).loss


def _linear_loss_forward(h, W, offset, tau, targets, static):  # type: ignore[no-untyped-def]
    solution = _forward(h, W, offset, tau, targets, static)
    return solution.loss, (h, W, offset, tau, targets, solution)


def _linear_loss_backward(static, saved, cotangent):  # type: ignore[no-untyped-def]
    h, W, offset, tau, targets, solution = saved
    (rows, d), n = h.shape, W.shape[0]
    size = min(static.columns, n)
    few, many = min(_GATHERED_ROWS, rows), min(_MANY_ROWS, rows)
    dtype = tau.dtype
    like = (h, W, tau, targets, cotangent) + (() if offset is None else (offset,))

    def rows_of(a: jax.Array, at: jax.Array, fill: float = 0) -> jax.Array:
        return a.at[at].get(mode="fill", fill_value=fill)

    def tile(index, state, chunk, W_block, offset_block, columns, fresh, order):  # type: ignore[no-untyped-def]
        """Adds the gradient of one chunk of the rows that reach into one column block."""
        dh, dW_block, doffset_block = state  # dW_block is transposed: [d, columns]
        at = lax.dynamic_slice(order, (index * chunk,), (chunk,))
        h_rows = rows_of(h, at)
        u = _logits(h_rows, W_block, offset_block, dtype) * _scale(static.alpha, tau)
        # The tile's spare rows get probability 0 whatever the bias.
        u = u - rows_of(solution.shift, at, jnp.inf)[:, None]
        p = _probabilities(u, rows_of(solution.eta, at), static.alpha)
        hit = (columns[None, :] == rows_of(targets, at)[:, None]) & (u > -jnp.inf)
        g = jnp.where(fresh[None, :], p - hit, 0.0) * rows_of(cotangent, at)[:, None]
        dh = dh.at[at].add(g @ W_block.astype(dtype), mode="drop")
        # Behind the barrier the transpose stays on the narrow operand; XLA would move it to g.
        narrow = lax.optimization_barrier(h_rows.astype(dtype).T)
        if offset is not None:
            doffset_block = doffset_block + g.sum(0)
        return dh, dW_block + narrow @ g, doffset_block

    def block(b, state):  # type: ignore[no-untyped-def]
        dh, dW, doffset = state
        reached = lax.dynamic_index_in_dim(solution.reached, b, 1, keepdims=False)
        order, count = places_of(reached, rows + many)
        # The last block may be ragged: it is moved back, and its repeated columns are stale.
        start = jnp.minimum(b * static.columns, n - size)
        columns = start + jnp.arange(size)
        W_block = lax.dynamic_slice(W, (start, 0), (size, d))
        offset_block = None if offset is None else lax.dynamic_slice(offset, (start,), (size,))
        dW_block = lax.dynamic_slice(dW, (start, 0), (size, d)).T
        doffset_block = lax.dynamic_slice(doffset, (start,), (size,))

        def in_chunks(chunk, state):  # type: ignore[no-untyped-def]
            add = functools.partial(
                tile,
                chunk=chunk,
                W_block=W_block,
                offset_block=offset_block,
                columns=columns,
                fresh=columns >= b * static.columns,
                order=order,
            )
            return lax.fori_loop(0, (count + chunk - 1) // chunk, add, state)

        # Small chunks waste little where few rows reach; large ones multiply faster.
        dh, dW_block, doffset_block = lax.cond(
            count > many // 2,
            functools.partial(in_chunks, many),
            functools.partial(in_chunks, few),
            (dh, dW_block, doffset_block),
        )
        return (
            dh,
            lax.dynamic_update_slice(dW, dW_block.T, (start, 0)),
            lax.dynamic_update_slice(doffset, doffset_block, (start,)),
        )

    start = tuple(zeros(s, dtype, like) for s in ((rows, d), (n, d), (n,)))
    dh, dW, doffset = lax.fori_loop(0, solution.reached.shape[1], block, start)
    dtau = (cotangent * solution.entropy).sum()
    return (
        dh.astype(h.dtype),
        dW.astype(W.dtype),
        None if offset is None else doffset,
        dtau,
        None,
    )


_linear_loss.defvjp(_linear_loss_forward, _linear_loss_backward)
_compiled_loss = jax.jit(_linear_loss, static_argnums=5)


def linear_entmax_loss(
    h: ArrayLike,
    W: ArrayLike,
    targets: ArrayLike,
    alpha: float,
    *,
    bias: ArrayLike | None = None,
    where: ArrayLike | None = None,
    tau: ArrayLike = 1.0,
    block: tuple[int, int] | None = None,
    method: str = "auto",
) -> jax.Array:
    r"""Entmax Fenchel-Young loss of the logits ``z = h @ W.T + bias``, which are never held.

    .. math:: L(z, y) = \langle p - e_y, z \rangle + \tau H_\alpha(p),
        \quad p = \mathrm{entmax}_\alpha(z / \tau)

    with gradient ``p - e_y`` in z: the values and derivatives of the dense
    ``fenchel_young_loss(h @ W.T + bias, targets, alpha, tau=tau, where=where)``. Reverse mode
    only; there are no second derivatives. Safe under jit, scan, remat and shard_map.

    Memory beyond the arguments and their gradients: about ``2 * block[0] * N`` numbers in the
    forward pass (4 on an accelerator); a few tiles of 2048 x ``block[1]`` and a map of
    rows x N / ``block[1]`` booleans (by default at most 256 per row) in the backward pass.

    Args:
        h: [rows, d] one vector per example.
        W: [N, d] one vector per item. float16 and bfloat16 are multiplied as they are and
            accumulated in float32; everything after the product is float32 (or float64).
        targets: i[rows] index of each row's item. A row whose target is outside ``[0, N)``, such
            as -1 in padding, is ignored: loss 0, gradient 0.
        alpha: a Python number in [1, 2]: 1 softmax, 1.5 entmax15, 2 sparsemax. Near 1 the float32
            threshold costs a relative error of about ``1e-7 / (alpha - 1)`` in p.
        bias: [N] added to the logits; -inf drops an item.
        where: bool[N], False drops an item. A target that is dropped has loss +inf, as in the
            dense loss; a catalogue dropped whole has loss 0.
        tau: scalar temperature above 0; differentiable.
        block: (rows of logits held at once by the forward pass, columns of one block of the
            backward pass, rounded up to a multiple of 128). Default (64, max(512, N / 256)).
        method: "xla"; "pallas", kernels for GPU and TPU that a CPU runs in a slow interpreter; or
            "auto", which is "xla" everywhere: no timing of the kernels on a GPU or a TPU has been
            measured, so nothing shows where they win. They are tested in the interpreter and
            lowered for both; under shard_map they need ``check_vma=False``, untested.

    Returns:
        f[rows] losses, float32 or float64.

    Raises:
        ValueError: if alpha is not a number in [1, 2], or shapes or dtypes do not fit.

    Example:
        >>> import jax.numpy as jnp
        >>> h, W = jnp.array([[1.0, 0.0]]), jnp.array([[4.0, 0.0], [0.0, 1.0], [1.0, 0.0]])
        >>> print(linear_entmax_loss(h, W, jnp.array([2]), alpha=2.0))
        [3.]

    Reference: Blondel et al., Learning with Fenchel-Young Losses, JMLR 2020.
    """
    alpha = check_alpha(alpha)
    h, W, targets, tau = (jnp.asarray(a) for a in (h, W, targets, tau))
    _check(h, W, targets, tau, bias, where, block, method)
    rows, n = h.shape[0], W.shape[0]
    dtype = jnp.promote_types(jnp.result_type(h, W), jnp.float32)
    h, W = (a.astype(jnp.result_type(h, W)) for a in (h, W))
    tau = tau.astype(dtype)
    offset = None if bias is None else jnp.asarray(bias, dtype)
    if where is not None:
        offset = jnp.where(where, jnp.zeros(n, dtype) if offset is None else offset, -jnp.inf)
    arrays = (h, W, targets, tau) if offset is None else (h, W, targets, tau, offset)
    h, W, targets, tau, *rest = alike(arrays)
    row_block, columns = block or (_ROWS, max(_COLUMNS, -(-n // _MAX_COLUMN_BLOCKS)))
    static = _Static(alpha, min(row_block, rows), -(-columns // _GROUP) * _GROUP, method)
    return _compiled_loss(h, W, rest[0] if rest else None, tau, targets, static)


def linear_softmax_loss(
    h: ArrayLike,
    W: ArrayLike,
    targets: ArrayLike,
    *,
    bias: ArrayLike | None = None,
    where: ArrayLike | None = None,
    tau: ArrayLike = 1.0,
    block: tuple[int, int] | None = None,
    method: str = "auto",
) -> jax.Array:
    """Softmax cross-entropy of ``(h @ W.T + bias) / tau``, times tau, without its logits.

    ``linear_entmax_loss`` at alpha = 1: same arguments, results and guarantees. Every item has
    support, so no block is skipped.
    """
    return linear_entmax_loss(
        h, W, targets, 1.0, bias=bias, where=where, tau=tau, block=block, method=method
    )


def _check(h, W, targets, tau, bias, where, block, method) -> None:  # type: ignore[no-untyped-def]
    check_operands(h, W, targets)
    for name, array in (("bias", bias), ("where", where)):
        if array is not None and jnp.shape(array) != W.shape[:1]:
            raise ValueError(f"{name} must be [{W.shape[0]}], got {list(jnp.shape(array))}")
    if tau.shape != ():
        raise ValueError(f"tau must be a scalar, got {list(tau.shape)}")
    if block is not None and (len(block) != 2 or min(block) < 1):
        raise ValueError(f"block must be (rows, columns), both positive: got {block}")
    if method not in ("auto", "xla", "pallas"):
        raise ValueError(f"method must be 'auto', 'xla' or 'pallas', got {method!r}")
