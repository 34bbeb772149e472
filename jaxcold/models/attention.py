"""Attention among the tokens of a batch, with the feed-forward layer that follows it.

Tokens are a list. Attention alone pads them, into buckets of like lengths, see
`jaxcold.data.sequences.batches`.
"""

import functools
import math
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from flax import nnx
from jax import Array

from jaxcold.data.sequences.batches import Tokens
from jaxcold.models.layers import Compute, dropout

INIT = 0.02  # standard deviation of fresh weights


@jax.custom_vjp
def _permute(x: Array, index: Array, inverse: Array) -> Array:
    """Rows of x at an index, zeros beyond its end; `inverse` is the index of the way back.

    The derivative is a gather by the inverse, where autodiff would scatter.
    """
    return x.at[index].get(mode="fill", fill_value=0)


def _permute_forward(x: Array, index: Array, inverse: Array) -> tuple[Array, Any]:
    return _permute(x, index, inverse), (index, inverse)


def _permute_backward(indices: Any, cotangent: Array) -> tuple[Array, None, None]:
    index, inverse = indices
    return _permute(cotangent, inverse, index), None, None


_permute.defvjp(_permute_forward, _permute_backward)


def split_key(key: Array | None, parts: int) -> list[Array | None]:
    """`parts` keys, or None as many times."""
    return [None] * parts if key is None else list(jax.random.split(key, parts))


# One function for all layers: Flax 0.11 keeps it in a layer's structure, and two models of another
# structure are two programs.
_normal = nnx.initializers.normal(INIT)


@functools.cache
def _uniform(bound: float) -> Callable[[Array, Any, Any], Array]:
    return lambda key, shape, dtype: jax.random.uniform(key, shape, dtype, -bound, bound)


class Block(nnx.Module):
    """Attention and a feed-forward layer, each with the residual of its normalised input."""

    def __init__(
        self,
        dim: int,
        heads: int,
        dropout: float,
        *,
        rngs: nnx.Rngs,
        compute: Compute = "float32",
    ):
        # Flax rounds parameters and inputs to a layer's dtype; None leaves them as they are.
        dtype = None if compute == "float32" else jnp.bfloat16
        # Xavier over the three projections as one [d, 3 d] matrix: what the reference keeps.
        uniform = _uniform(math.sqrt(6 / (4 * dim)))

        def linear(init: Any) -> nnx.Linear:
            return nnx.Linear(dim, dim, kernel_init=init, dtype=dtype, rngs=rngs)

        def norm() -> nnx.LayerNorm:
            return nnx.LayerNorm(dim, epsilon=1e-8, use_fast_variance=False, rngs=rngs)

        self.norm1, self.norm2 = norm(), norm()
        self.query, self.key, self.value = linear(uniform), linear(uniform), linear(uniform)
        self.out, self.first, self.second = linear(_normal), linear(_normal), linear(_normal)
        self.heads = heads
        self.dropout = dropout

    def __call__(self, x: Array, tokens: Tokens, key: Array | None, additive: bool) -> Array:
        """[T, d] -> [T, d]; without a key nothing is dropped."""
        keys = split_key(key, 3)
        q = self.norm1(x)
        y = q + self.out(self._attend(q, x, tokens, keys[0], additive)).astype(q.dtype)
        z = self.norm2(y)
        inner = jax.nn.relu(dropout(self.first(z), self.dropout, keys[1]))
        return z + dropout(self.second(inner), self.dropout, keys[2]).astype(z.dtype)

    def _attend(
        self, q: Array, x: Array, tokens: Tokens, key: Array | None, additive: bool
    ) -> Array:
        projected = self.query(q), self.key(x), self.value(x)
        return attend(*projected, tokens, self.heads, self.dropout, key, additive, x.dtype)


class GatedBlock(nnx.Module):
    """Attention and a SwiGLU layer of the normalised input, each behind a gate of the input.

    ``y = x + sigmoid(G1 x) attention(norm x)``, then ``y + sigmoid(G2 y) SwiGLU(norm y)``: the
    layer of LiGR, which eSASRec puts in the place of SASRec's.

    Source: Borisyuk et al., "From Features to Transformers: Redefining Ranking for Scalable
    Impact", 2025 (arXiv 2502.03417), section 3; "eSASRec: Enhancing Transformer-based
    Recommendations in a Modular Fashion", RecSys 2025.
    """

    WIDTH = 4  # hidden units of the SwiGLU layer per number of a token

    def __init__(
        self,
        dim: int,
        heads: int,
        dropout: float,
        *,
        rngs: nnx.Rngs,
        compute: Compute = "float32",
    ):
        dtype = jnp.bfloat16 if compute == "bfloat16" else None
        uniform = _uniform(math.sqrt(6 / (4 * dim)))

        def linear(
            init: Callable[..., Array], inputs: int = dim, outputs: int = dim, bias: bool = True
        ) -> nnx.Linear:
            return nnx.Linear(
                inputs, outputs, use_bias=bias, kernel_init=init, dtype=dtype, rngs=rngs
            )

        def norm() -> nnx.LayerNorm:
            return nnx.LayerNorm(dim, epsilon=1e-8, use_fast_variance=False, rngs=rngs)

        hidden = self.WIDTH * dim
        self.norm1, self.norm2 = norm(), norm()
        self.query, self.key, self.value = linear(uniform), linear(uniform), linear(uniform)
        self.out = linear(_normal)
        self.gate1, self.gate2 = linear(_normal), linear(_normal)
        self.up, self.switch = (linear(_normal, dim, hidden, bias=False) for _ in range(2))
        self.down = linear(_normal, hidden, dim, bias=False)
        self.heads = heads
        self.dropout = dropout

    def __call__(self, x: Array, tokens: Tokens, key: Array | None, additive: bool) -> Array:
        """[T, d] -> [T, d]; without a key nothing is dropped."""
        keys = split_key(key, 4)
        z = self.norm1(x)
        projected = self.query(z), self.key(z), self.value(z)
        mixed = self.out(
            attend(*projected, tokens, self.heads, self.dropout, keys[0], additive, x.dtype)
        ).astype(x.dtype)
        x = x + jax.nn.sigmoid(self.gate1(x).astype(x.dtype)) * dropout(
            mixed, self.dropout, keys[1]
        )
        z = self.norm2(x)
        inner = dropout(jax.nn.silu(self.switch(z)) * self.up(z), self.dropout, keys[2])
        added = dropout(self.down(inner).astype(x.dtype), self.dropout, keys[3])
        return x + jax.nn.sigmoid(self.gate2(x).astype(x.dtype)) * added


def attend(
    query: Array,
    key: Array,
    value: Array,
    tokens: Tokens,
    heads: int,
    rate: float,
    drop: Array | None,
    additive: bool,
    dtype: Any,
) -> Array:
    """What each token takes from itself and those before it in its sequence, [T, d].

    Args:
        query: [T, d] projections.
        key: [T, d].
        value: [T, d].
        tokens: of the batch.
        heads: that divide d.
        rate: of the dropout of attention weights.
        drop: key of the dropout; without one nothing is dropped.
        additive: tokens without an item are seen, with a logit lower by one.
        dtype: of the logits.
    """
    size = query.shape[1] // heads
    projections = jnp.stack([query / math.sqrt(size), key, value], axis=1)
    index = jnp.concatenate([bucket.reshape(-1) for bucket in tokens.buckets])
    slots = _permute(projections, index, tokens.slot)
    real = tokens.item.at[index].get(mode="fill", fill_value=0) > 0
    outputs, start = [], 0
    for bucket, own in zip(tokens.buckets, split_key(drop, len(tokens.buckets)), strict=True):
        n, length = bucket.shape
        stop = start + n * length
        q, k, v = jnp.moveaxis(slots[start:stop].reshape(n, length, 3, heads, size), 2, 0)
        visible = real[start:stop].reshape(n, 1, 1, length)
        at = jnp.arange(length)
        before = (at[None, :] <= at[:, None])[None, None]
        logits = jnp.einsum("nihd,njhd->nhij", q, k).astype(dtype)
        if additive:
            logits = jnp.where(before, logits + visible.astype(logits.dtype), -jnp.inf)
        else:
            # A slot without a token sees itself: a row of -inf would be NaN.
            itself = (at[None, :] == at[:, None])[None, None]
            logits = jnp.where(before & (visible | itself), logits, -jnp.inf)
        weights = dropout(jax.nn.softmax(logits, axis=-1), rate, own)
        mixed = jnp.einsum("nhij,njhd->nihd", weights.astype(v.dtype), v)
        outputs.append(mixed.reshape(n * length, -1))
        start = stop
    return _permute(jnp.concatenate(outputs), tokens.slot, index)
