"""Dot-product attention whose weights are entmax of the scores instead of softmax."""

import functools
import math
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from jax.typing import ArrayLike

from jaxcold.sparse._arguments import as_array, check_alpha, number, valid_alpha, widest
from jaxcold.sparse.activations import entmax


def entmax_attention(
    query: ArrayLike,
    key: ArrayLike,
    value: ArrayLike,
    bias: ArrayLike | None = None,
    mask: ArrayLike | None = None,
    broadcast_dropout: bool = True,
    dropout_rng: jax.Array | None = None,
    dropout_rate: float = 0.0,
    deterministic: bool = False,
    dtype: Any = None,
    precision: Any = None,
    module: Any = None,
    *,
    alpha: ArrayLike = 1.5,
    scale: float | None = None,
    is_causal: bool = False,
    query_seq_lengths: ArrayLike | None = None,
    key_value_seq_lengths: ArrayLike | None = None,
    local_window_size: int | tuple[int, int] | None = None,
    block: int | None = None,
    implementation: str | None = None,
) -> jax.Array:
    r"""Attention with sparse weights, in the place of `jax.nn.dot_product_attention`.

    .. math:: \mathrm{entmax}_\alpha(s\, Q K' + b)\, V

    It takes the arguments of `jax.nn.dot_product_attention`, and those with which Flax calls
    ``nnx.MultiHeadAttention(attention_fn=...)``; `functools.partial` sets alpha there.

    Args:
        query: [B, T, N, H], or [T, N, H]; several batch axes as well.
        key: [B, S, K, H] with K dividing N: each head of the keys serves N / K heads of queries,
            consecutive ones.
        value: [B, S, K, D].
        bias: broadcasts against the scores [B, N, T, S] and is added to them; may hold -inf.
        mask: boolean, broadcasts against the scores; False entries get weight 0.
        broadcast_dropout: one draw for all batch entries and heads, as Flax does.
        dropout_rng: key of the dropout, needed where it is not deterministic.
        dropout_rate: how many weights are dropped; the others are divided by what remains.
        deterministic: True drops none.
        dtype: the operands are cast to it; unset, to what they promote to.
        precision: of the two products.
        module: None; weights are not sown into a Flax module, as ``sow_weights=True`` asks.
        alpha: in (0, 4], as in `entmax`: 1 is softmax. A number, or an array that broadcasts
            against [N], one per head, which can be learned.
        scale: of the products; unset, ``1 / sqrt(H)``.
        is_causal: a query sees keys at most at its own position.
        query_seq_lengths: i[B]; later queries are padding, and their result is 0.
        key_value_seq_lengths: i[B]; later keys are not seen.
        local_window_size: a query sees this many keys before and behind it, or (before, behind).
        block: how many queries have their scores at once, so that [T, S] is never whole, in the
            gradient neither, where the scores of a block are computed again. Unset, all.
        implementation: None or "xla".

    Returns:
        [B, T, N, D] in the dtype of the query. A query that sees no key gives 0.

    Raises:
        ValueError: if shapes do not fit, alpha is out of range, mask is not boolean, there is
            dropout without a key, or for a module or implementation that is not supported.

    Example:
        >>> import jax
        >>> from jaxcold import sparse
        >>> query, key, value = jax.random.normal(jax.random.key(0), (3, 2, 6, 4, 8))
        >>> jax.nn.dot_product_attention(query, key, value).shape
        (2, 6, 4, 8)
        >>> sparse.entmax_attention(query, key, value, alpha=1.5).shape
        (2, 6, 4, 8)

    References:
        Correia, Niculae, Martins, Adaptively Sparse Transformers (2019). Goncalves, Treviso,
        Martins, AdaSplash (2025), have blocks in one kernel on a GPU.
    """
    if module is not None:
        raise ValueError("entmax_attention does not sow its weights: leave sow_weights=False")
    if implementation not in (None, "xla"):
        raise ValueError(f"implementation is None or 'xla', not {implementation!r}")
    arrays = [as_array(a) for a in (query, key, value)]
    if dtype is None:
        dtype = widest(*(a.dtype for a in arrays))
    query, key, value = (jnp.asarray(a).astype(dtype) for a in arrays)
    _check_shapes(query, key, value)
    check_alpha(alpha)
    if mask is not None and as_array(mask).dtype != bool:
        raise ValueError(f"mask is boolean, True for what is seen, not {as_array(mask).dtype}")
    if block is not None and block < 1:
        raise ValueError(f"block counts queries and is at least 1, not {block}")
    keep = 1.0 - dropout_rate
    drops = dropout_rate > 0 and not deterministic
    if drops and dropout_rng is None:
        raise ValueError("dropout needs dropout_rng, or deterministic=True")
    *batch, T, N, H = query.shape
    S, K = key.shape[-3:-1]
    scores_shape = (*batch, N, T, S)
    window = (local_window_size,) * 2 if isinstance(local_window_size, int) else local_window_size
    scale = 1 / math.sqrt(H) if scale is None else scale
    if number(alpha) is None:
        wide = widest(dtype, jnp.float32)
        heads = jnp.broadcast_to(jnp.asarray(alpha).astype(wide), (N,))
        alpha = valid_alpha(heads)[:, None, None]

    def visible(rows: jax.Array) -> jax.Array | None:
        """bool, broadcasts against the scores of the queries at ``rows`` [t]."""
        columns = jnp.arange(S, dtype=jnp.int32)[None, :]
        rules = []
        if is_causal:
            rules.append(rows[:, None] >= columns)
        if window is not None:
            behind = columns - rows[:, None]
            rules.append((behind >= -window[0]) & (behind <= window[1]))
        limits = ((query_seq_lengths, rows[:, None]), (key_value_seq_lengths, columns))
        for lengths, places in limits:
            if lengths is not None:
                lengths = jnp.asarray(lengths).reshape(*batch, 1, 1, 1)
                rules.append(places[(None,) * (len(batch) + 1)] < lengths)
        return functools.reduce(_and, rules) if rules else None

    def attend(start: Any, query: jax.Array, key: jax.Array, value: jax.Array, extra: Any) -> Any:
        """The results [..., t, N, D] of the queries [..., t, N, H] from a position on."""
        t = query.shape[-3]
        bias, mask, dropped = extra
        grouped = query.reshape(*batch, t, K, N // K, H)
        scores = jnp.einsum(
            "...tkgh,...skh->...kgts",
            grouped,
            key,
            precision=precision,
            preferred_element_type=widest(dtype, jnp.float32),
        ).reshape(*batch, N, t, S)
        scores = scores * scale
        if bias is not None:
            scores = scores + bias.astype(scores.dtype)
        where = visible(start + jnp.arange(t, dtype=jnp.int32))
        if mask is not None:
            where = mask if where is None else _and(where, mask)
        if bias is not None:
            # A bias of -inf for a whole row is a row that sees no key.
            where = _and(scores > -jnp.inf, jnp.ones((), bool) if where is None else where)
        if where is not None:
            where = jnp.broadcast_to(where, scores.shape)
        weights = entmax(scores, alpha, where=where).astype(dtype)
        if dropped is not None:
            weights = jnp.where(dropped, 0, weights / jnp.asarray(keep, dtype))
        out = jnp.einsum(
            "...kgts,...skd->...tkgd",
            weights.reshape(*batch, K, N // K, t, S),
            value,
            precision=precision,
        )
        return out.reshape(*batch, t, N, value.shape[-1])

    extra: list[Any] = [
        None if a is None else _to_rank(name, as_array(a), scores_shape)
        for name, a in (("bias", bias), ("mask", mask))
    ]
    dropped = None
    if drops and dropout_rng is not None:
        shape = (1,) * (len(batch) + 1) + (T, S) if broadcast_dropout else scores_shape
        dropped = ~jax.random.bernoulli(dropout_rng, keep, shape)
    extra.append(dropped)
    if block is None or block >= T:
        return attend(0, query, key, value, extra)
    return _in_blocks(attend, block, query, key, value, extra)


def _in_blocks(
    attend: Callable, block: int, query: jax.Array, key: jax.Array, value: jax.Array, extra: list
) -> jax.Array:
    """``attend`` of a block of queries after the other; the last one is padded."""
    T = query.shape[-3]
    count = -(-T // block)

    def split(a: jax.Array | None, axis: int) -> Any:
        """[count, ..., block, ...], or the array itself where it is the same for all queries."""
        if a is None or a.shape[axis] == 1:
            return None
        pad = [(0, 0)] * a.ndim
        pad[axis % a.ndim] = (0, count * block - T)
        a = jnp.moveaxis(jnp.pad(a, pad), axis, 0)
        a = a.reshape(count, block, *a.shape[1:])
        return jnp.moveaxis(a, 1, axis % (a.ndim - 1) + 1)

    parts = [split(a, -2) for a in extra]

    # The gradient needs no more than the operands of a block.
    @jax.checkpoint
    def one(start: Any, query: Any, parts: list, key: jax.Array, value: jax.Array) -> Any:
        given = [whole if part is None else part for whole, part in zip(extra, parts, strict=True)]
        return attend(start, query, key, value, given)

    def step(_: None, xs: tuple) -> tuple[None, jax.Array]:
        start, query, parts = xs
        return None, one(start, query, parts, key, value)

    starts = jnp.arange(count, dtype=jnp.int32) * block
    _, out = jax.lax.scan(step, None, (starts, split(query, -3), parts))
    out = jnp.moveaxis(out, 0, -4)
    out = out.reshape(*out.shape[:-4], count * block, *out.shape[-2:])
    return jax.lax.slice_in_dim(out, 0, T, axis=-3)


def _and(a: jax.Array, b: jax.Array) -> jax.Array:
    """``a & b`` of masks that broadcast, whatever JAX's rule on ranks."""
    rank = max(a.ndim, b.ndim)
    a, b = (x.reshape((1,) * (rank - x.ndim) + x.shape) for x in (a, b))
    shape = jax.lax.broadcast_shapes(a.shape, b.shape)
    return jnp.broadcast_to(a, shape) & jnp.broadcast_to(b, shape)


def _to_rank(name: str, a: Any, shape: tuple[int, ...]) -> jax.Array:
    """An array that broadcasts against the scores, with all their axes."""
    padded = (1,) * (len(shape) - a.ndim) + a.shape
    if len(padded) != len(shape) or any(
        size != 1 and size != whole for size, whole in zip(padded, shape, strict=True)
    ):
        raise ValueError(f"{name} of shape {a.shape} does not broadcast to the scores {shape}")
    return jnp.asarray(a).reshape(padded)


def _check_shapes(query: jax.Array, key: jax.Array, value: jax.Array) -> None:
    shapes = f"query {query.shape}, key {key.shape}, value {value.shape}"
    if query.ndim < 3 or query.ndim != key.ndim or key.ndim != value.ndim:
        raise ValueError(f"expected [..., T, N, H], [..., S, K, H] and [..., S, K, D]: {shapes}")
    same_batch = query.shape[:-3] == key.shape[:-3] == value.shape[:-3]
    if not same_batch or query.shape[-1] != key.shape[-1] or key.shape[-3:-1] != value.shape[-3:-1]:
        raise ValueError(f"shapes do not fit: {shapes}")
    if query.shape[-2] % key.shape[-2]:
        raise ValueError(f"the heads of the keys divide those of the queries: {shapes}")
