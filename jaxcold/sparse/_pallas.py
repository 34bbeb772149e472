"""Accelerator kernels: the threshold of rows, and the linear loss without its logits.

Both run on GPU (Triton) and TPU, and on CPU in Pallas's interpreter for tests. No timing on
a GPU or a TPU has been measured, so nothing here is selected unless it is asked for.

Layout of the linear kernels: a tile of logits is ``[columns, rows]``, so that what is known per
row lies along lanes as ``[1, rows]``. Each program owns one tile of rows and one block of columns
and writes its own partial result; XLA adds the partial results and decides on the next pass.
"""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from jax import lax
from jax.experimental import pallas as pl

from jaxcold.sparse import linear
from jaxcold.sparse._linear import product

_LANES = 128  # rows of one program: the width of a TPU register
_STRIP = 64  # columns multiplied at once inside a program; with _LANES it fits GPU registers
_THRESHOLD_ROWS = 8  # rows of one program of the threshold kernel: a TPU sublane tile


def _power_of_two(n: int, least: int) -> int:
    return max(least, 1 << (n - 1).bit_length())


def _call(kernel: Callable[..., None], platform: str, **options: Any) -> Callable[..., Any]:
    """``pallas_call`` with what each platform needs; on "cpu" the interpreter."""
    if platform == "gpu":
        from jax.experimental.pallas import triton

        options["compiler_params"] = triton.CompilerParams(num_warps=4, num_stages=2)
    return pl.pallas_call(kernel, interpret=platform == "cpu", **options)


def threshold(s: jax.Array, alpha: float, platform: str | None = None) -> jax.Array:
    """Threshold of each row of scaled logits, the row held on chip through all iterations.

    Args:
        s: f[rows, n] ``(alpha - 1) * z``; -inf entries are inert.
        alpha: in (1, 2].
        platform: "gpu", "tpu" or "cpu" (interpreted); by default the backend's.

    Returns:
        f32[rows], the eta at which ``max(s - eta, 0) ** (1 / (alpha - 1))`` sums to one;
        +inf for a row without a finite entry.
    """
    rows, n = s.shape
    pad = ((0, -rows % _THRESHOLD_ROWS), (0, _power_of_two(n, _LANES) - n))
    padded = jnp.pad(s.astype(jnp.float32), pad, constant_values=-jnp.inf)

    def kernel(s_ref: Any, eta_ref: Any) -> None:
        x = s_ref[...]
        top = x.max(1, keepdims=True)
        empty = top == -jnp.inf
        u = x - jnp.where(empty, 0.0, top)
        low = jnp.full_like(top, -1.0)
        eta_ref[...] = jnp.where(empty, jnp.inf, _newton(u, low, alpha) + top)

    eta = _call(
        kernel,
        platform or jax.default_backend(),
        grid=(padded.shape[0] // _THRESHOLD_ROWS,),
        in_specs=[pl.BlockSpec((_THRESHOLD_ROWS, padded.shape[1]), lambda i: (i, 0))],
        out_specs=pl.BlockSpec((_THRESHOLD_ROWS, 1), lambda i: (i, 0)),
        out_shape=jax.ShapeDtypeStruct((padded.shape[0], 1), jnp.float32),
    )(padded)
    return eta[:rows, 0]


def _newton(u: jax.Array, low: jax.Array, alpha: float) -> jax.Array:
    """``linear._newton`` with two-dimensional per-row arrays, which kernels need: [rows, 1]."""

    def step(state: tuple[jax.Array, jax.Array]) -> tuple[jax.Array, jax.Array]:
        eta, count = state
        mass, slope, _ = linear._sums(u, eta, alpha)
        sums = mass.sum(1, keepdims=True), slope.sum(1, keepdims=True)
        move = linear._newton_move(*sums, alpha)
        far = (move > jnp.finfo(u.dtype).eps * jnp.abs(eta)).astype(jnp.int32).max()
        return eta + move, jnp.where(far > 0, count + 1, linear._MAX_STEPS)

    start = (low, jnp.int32(0))
    return lax.while_loop(lambda state: state[1] < linear._MAX_STEPS, step, start)[0]


def solve(
    h: jax.Array,
    W: jax.Array,
    offset: jax.Array | None,
    tau: jax.Array,
    targets: jax.Array,
    static: "linear._Static",
    platform: str | None = None,
) -> "linear._Solution":
    """The forward pass of the linear loss; arguments and results are those of ``linear._solve``.

    One pass over the columns finds the maximum of every block, and for alpha = 1 all else. For
    alpha > 1 the threshold of the block maxima, a lower bound, starts Newton's iteration on all
    columns: one pass each, until the row that needs most is done. W is copied when N is not
    a multiple of the column block, or d not a power of two of at least 16.
    """
    (rows, d), n, alpha = h.shape, W.shape[0], static.alpha
    columns, dtype = static.columns, tau.dtype
    pad = (-rows % _LANES, -n % columns, _power_of_two(d, 16) - d)
    h = jnp.pad(h, ((0, pad[0]), (0, pad[2])))
    W = jnp.pad(W, ((0, pad[1]), (0, pad[2])))
    offset = jnp.zeros(n, dtype) if offset is None else offset
    offset = jnp.pad(offset, (0, pad[1]), constant_values=-jnp.inf)[:, None]
    scale = linear._scale(alpha, tau)
    valid = (targets >= 0) & (targets < n)
    at = jnp.where(valid, targets, -1).astype(jnp.int32)
    blocks = W.shape[0] // columns

    def over_columns(kernel: Callable[..., None], outputs: int, *per_row: jax.Array) -> Any:
        lanes = [jnp.pad(a, (0, pad[0]))[None, :] for a in per_row]
        row = pl.BlockSpec((1, _LANES), lambda i, j: (0, i))
        partial = pl.BlockSpec((1, 1, _LANES), lambda i, j: (j, 0, i))
        shape = jax.ShapeDtypeStruct((blocks, 1, h.shape[0]), dtype)
        out = _call(
            kernel,
            platform or jax.default_backend(),
            grid=(h.shape[0] // _LANES, blocks),
            in_specs=[
                pl.BlockSpec((_LANES, h.shape[1]), lambda i, j: (i, 0)),
                pl.BlockSpec((columns, h.shape[1]), lambda i, j: (j, 0)),
                pl.BlockSpec((columns, 1), lambda i, j: (j, 0)),
                *[row] * len(lanes),
            ],
            out_specs=[partial] * outputs,
            out_shape=[shape] * outputs,
        )(h, W, offset, *lanes)
        return [a[:, 0, :rows] for a in out]

    strips = columns // _STRIP

    def logits(h_ref: Any, W_ref: Any, offset_ref: Any, strip: jax.Array) -> jax.Array:
        at = pl.ds(strip * _STRIP, _STRIP)
        z = product(W_ref[at, :], h_ref[...], (1, 1), dtype)
        return z + offset_ref[at, :]

    def first(h_ref, W_ref, offset_ref, scale_ref, target_ref, *out):  # type: ignore[no-untyped-def]
        """Block maximum and target logit; at alpha = 1 the sums of e and e u below the maximum."""
        base = pl.program_id(1) * columns
        row = lax.broadcasted_iota(jnp.int32, (_STRIP, _LANES), 0)

        def strip(k, state):  # type: ignore[no-untyped-def]
            top, target, *sums = state
            x = logits(h_ref, W_ref, offset_ref, k) * scale_ref[...]
            higher = jnp.maximum(top, x.max(0, keepdims=True))
            hit = base + k * _STRIP + row == target_ref[...]
            target += jnp.where(hit, x, 0.0).sum(0, keepdims=True)
            if not sums:
                return higher, target
            mass, moment = sums
            finite = jnp.where(higher == -jnp.inf, 0.0, higher)
            rise = jnp.where(top == -jnp.inf, 0.0, finite - top)
            u = x - finite
            e = jnp.exp(u)
            moment = (moment - rise * mass) * jnp.exp(-rise)
            moment += jnp.where(e > 0, e * u, 0.0).sum(0, keepdims=True)
            return higher, target, mass * jnp.exp(-rise) + e.sum(0, keepdims=True), moment

        zero = jnp.zeros((1, _LANES), dtype)
        start = (zero - jnp.inf, *[zero] * (len(out) - 1))
        for ref, value in zip(out, lax.fori_loop(0, strips, strip, start), strict=True):
            ref[0] = value

    def sums(h_ref, W_ref, offset_ref, scale_ref, shift_ref, eta_ref, *out):  # type: ignore[no-untyped-def]
        """Sums over one block of t^q, t^(q-1) and t^(q+1), with t above the threshold."""

        def strip(k, state):  # type: ignore[no-untyped-def]
            u = logits(h_ref, W_ref, offset_ref, k) * scale_ref[...] - shift_ref[...]
            terms = linear._sums(u, eta_ref[...], alpha)
            return tuple(a + b.sum(0, keepdims=True) for a, b in zip(state, terms, strict=True))

        zero = jnp.zeros((1, _LANES), dtype)
        for ref, value in zip(out, lax.fori_loop(0, strips, strip, (zero,) * 3), strict=True):
            ref[0] = value

    scales = jnp.broadcast_to(scale, (rows,))
    tops, hits, *moments = over_columns(first, 4 if alpha == 1 else 2, scales, at)
    shift, target = tops.max(0), hits.sum(0)
    empty = shift == -jnp.inf
    shift = jnp.where(empty, 0.0, shift)
    target = target - shift
    if alpha == 1:
        u = tops - shift[None, :]
        weight = jnp.exp(u)
        mass = (moments[0] * weight).sum(0)
        moment = (weight * (moments[1] + moments[0] * jnp.where(weight > 0, u, 0.0))).sum(0)
        mass = jnp.where(empty, 1.0, mass)
        eta = jnp.log(mass)
        entropy, loss = eta - moment / mass, tau * (eta - target)
        support = weight * moments[0] > 0
    else:
        low = linear._newton((tops - shift[None, :]).T, jnp.full_like(shift, -1.0), alpha)

        def unfinished(state):  # type: ignore[no-untyped-def]
            eta, move, count, _ = state
            return (move > jnp.finfo(eta.dtype).eps * jnp.abs(eta)).any() & (
                count < linear._MAX_STEPS
            )

        def step(state):  # type: ignore[no-untyped-def]
            eta, move, count, _ = state
            eta = eta + jnp.where(count > 0, move, 0.0)
            partial = over_columns(sums, 3, scales, shift, eta)
            move = linear._newton_move(partial[0].sum(0), partial[1].sum(0), alpha)
            return eta, move, count + 1, tuple(partial)

        nothing = (jnp.zeros_like(tops),) * 3
        start = (low, jnp.full_like(low, jnp.inf), jnp.int32(0), nothing)
        eta, move, _, partial = lax.while_loop(unfinished, step, start)
        support = partial[0] > 0
        loss, entropy = linear._entmax_loss(partial[2].sum(0), eta, target, tau, alpha)
        eta = eta + move
    valid &= ~empty
    reached = support.T | ((at // columns)[:, None] == jnp.arange(blocks)[None, :])
    return linear._Solution(
        jnp.where(valid, loss, 0.0),
        shift,
        eta,
        jnp.where(valid, entropy, 0.0),
        reached & valid[:, None],
    )
