"""Attention with entmax: against JAX's own at alpha = 1, plain formulas, inside Flax NNX."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import oracles
import pytest
from flax import nnx

from jaxcold import sparse

B, T, S, N, K, H = 2, 5, 7, 4, 2, 3


def operands(dtype=np.float32):
    rng = np.random.default_rng(0)
    shapes = (B, T, N, H), (B, S, K, H), (B, S, K, H)
    return tuple(rng.normal(size=shape).astype(dtype) for shape in shapes)


RNG = np.random.default_rng(1)
OPTIONS = {
    "plain": {},
    "scale": {"scale": 0.3},
    "bias": {"bias": RNG.normal(size=(1, N, T, S)).astype(np.float32)},
    "mask": {"mask": RNG.random((B, 1, T, S)) < 0.7},
    "causal": {"is_causal": True},
    "lengths": {
        "query_seq_lengths": np.array([3, 5]),
        "key_value_seq_lengths": np.array([7, 4]),
    },
    "window": {"local_window_size": (2, 1)},
    "all": {
        "bias": RNG.normal(size=(B, N, 1, S)).astype(np.float32),
        # Key 0 is seen by all: JAX gives a query that sees no key their mean, here it gets 0.
        "mask": (RNG.random((B, N, T, S)) < 0.8) | (np.arange(S) == 0),
        "is_causal": True,
        "key_value_seq_lengths": np.array([6, 4]),
    },
}


def reference(query, key, value, alpha, bias=0.0, where=True):
    """Head by head in NumPy."""
    scores = np.einsum("btnh,bsnh->bnts", query, np.repeat(key, N // K, 2)) / np.sqrt(H) + bias
    scores = np.where(where, scores, -np.inf)
    p = np.stack([oracles.entmax(scores[:, n], alpha[n]) for n in range(N)], 1)
    return np.einsum("bnts,bsnd->btnd", p, np.repeat(value, N // K, 2))


@pytest.mark.parametrize("name", OPTIONS)
def test_softmax_attention_is_that_of_jax(name):
    """At alpha = 1, whole and in blocks of queries that do not divide them."""
    options = OPTIONS[name]
    seen = np.ones((B, T, 1, 1), bool)
    if name == "lengths":  # what a padded query gets is not told there; here it is 0
        seen = (np.arange(T)[None] < options["query_seq_lengths"][:, None])[..., None, None]

    def both(f, **more):
        def total(*arrays):
            out = jnp.where(seen, f(*arrays, **options, **more), 0)
            return (out**2).sum(), out

        return jax.value_and_grad(total, (0, 1, 2), has_aux=True)

    def everything(*arrays):
        return (
            both(jax.nn.dot_product_attention)(*arrays),
            both(sparse.entmax_attention, alpha=1.0)(*arrays),
            both(sparse.entmax_attention, alpha=1.0, block=2)(*arrays),
        )

    want, whole, blocks = jax.jit(everything)(*operands())
    for got in (whole, blocks):
        jax.tree.map(functools.partial(np.testing.assert_allclose, atol=1e-5), got, want)


def test_alpha_per_head_against_plain_formulas():
    arrays = operands()
    alpha = np.array([0.5, 1.25, 1.5, 2.0], np.float32)
    slow = [1.0, *alpha[1:]]
    got = sparse.entmax_attention(*arrays, alpha=alpha)
    np.testing.assert_allclose(got[:, :, 1:], reference(*arrays, slow)[:, :, 1:], atol=1e-5)
    for n in (0, 3):
        alone = sparse.entmax_attention(*arrays, alpha=float(alpha[n]))
        np.testing.assert_allclose(got[:, :, n], alone[:, :, n], atol=1e-5)


def test_alpha_is_learned_per_head(x64):
    arrays = operands(np.float64)

    def loss(alpha, **options):
        out = sparse.entmax_attention(*arrays, alpha=alpha, is_causal=True, **options)
        return (out**2).sum((0, 1, 3))

    alpha = np.array([0.8, 1.3, 1.5, 1.9])
    slope = jax.jit(jax.grad(lambda a: loss(a).sum()))(alpha)
    value = jax.jit(loss)
    np.testing.assert_allclose(slope, (value(alpha + 1e-6) - value(alpha - 1e-6)) / 2e-6, atol=1e-7)
    in_blocks = jax.jit(jax.grad(lambda a: loss(a, block=2).sum()))(alpha)
    np.testing.assert_allclose(in_blocks, slope, atol=1e-12)
    assert np.isnan(value(np.array([1.0, -1.0, 1.5, 2.0]))).tolist() == [False, True, False, False]


def test_a_query_that_sees_nothing_gives_zero():
    mask = np.ones((B, 1, T, S), bool)
    mask[0, 0, 1] = False
    bias = np.where(mask, 0, -np.inf).astype(np.float32)
    for options in ({"mask": mask}, {"bias": bias}):

        def total(*arrays, options=options):
            out = sparse.entmax_attention(*arrays, alpha=1.5, **options)
            return (out**2).sum(), out

        (_, out), slopes = jax.jit(jax.value_and_grad(total, (0, 1, 2), has_aux=True))(*operands())
        np.testing.assert_array_equal(out[0, 1], 0)
        assert all(np.isfinite(slope).all() for slope in slopes)
        np.testing.assert_array_equal(slopes[0][0, 1], 0)


@pytest.mark.parametrize("block", [None, 2])
@pytest.mark.parametrize("broadcast", [True, False])
def test_dropout_drops_weights_and_keeps_their_mean(block, broadcast):
    query, key, _ = operands()
    one = np.ones((B, S, K, S), np.float32) * np.eye(S, dtype=np.float32)[None, :, None]
    f = functools.partial(
        sparse.entmax_attention, query, key, one, alpha=1.5, dropout_rate=0.4, block=block
    )
    weights = f(deterministic=True)  # the value's identity shows the weights
    dropped = f(dropout_rng=jax.random.key(0), broadcast_dropout=broadcast)
    kept = np.asarray(dropped) != 0
    np.testing.assert_allclose(dropped, np.where(kept, weights / 0.6, 0), rtol=1e-5)
    lost = (~kept & (np.asarray(weights) > 0)).sum() / (np.asarray(weights) > 0).sum()
    assert 0.1 < lost < 0.7
    again = f(dropout_rng=jax.random.key(0), broadcast_dropout=broadcast)
    np.testing.assert_array_equal(again, dropped)
    with pytest.raises(ValueError, match="dropout_rng"):
        f()


def test_blocks_of_queries_never_hold_all_scores():
    def bytes_of(block, length):
        array = jax.ShapeDtypeStruct((1, length, 1, 8), jnp.float32)

        def total(query, key, value):
            out = sparse.entmax_attention(query, key, value, alpha=1.5, block=block)
            return (out**2).sum()

        program = jax.jit(jax.grad(total, (0, 1, 2))).lower(array, array, array).compile()
        return program.memory_analysis().temp_size_in_bytes

    assert bytes_of(64, 2048) < 0.2 * bytes_of(None, 2048)
    assert bytes_of(64, 2048) < 0.5 * 4 * 2048**2


def test_inside_flax():
    """The attention function of `nnx.MultiHeadAttention`, with a mask, and trained one step."""
    attention_fn = functools.partial(sparse.entmax_attention, alpha=1.5)
    x = np.random.default_rng(2).normal(size=(B, T, 8)).astype(np.float32)
    mask = nnx.make_causal_mask(jnp.ones((B, T))) > 0

    def build(f, rate=0.0):
        return nnx.MultiHeadAttention(
            num_heads=2, in_features=8, decode=False, dropout_rate=rate, attention_fn=f,
            rngs=nnx.Rngs(0),
        )  # fmt: skip

    ours = build(functools.partial(sparse.entmax_attention, alpha=1.0))
    theirs = build(nnx.dot_product_attention)
    np.testing.assert_allclose(ours(x, mask=mask), theirs(x, mask=mask), atol=1e-5)

    module = build(attention_fn, 0.3)

    @nnx.jit
    def step(module, x, mask):
        def loss(module):
            return (module(x, mask=mask, deterministic=False, rngs=nnx.Rngs(1)) ** 2).mean()

        return nnx.value_and_grad(loss)(module)

    value, gradients = step(module, x, mask)
    assert np.isfinite(value)
    assert all(np.isfinite(g).all() for g in jax.tree.leaves(gradients))
    weights = module.query.kernel[...]
    assert jax.tree.leaves(nnx.state(gradients, nnx.Param))[0].dtype == weights.dtype


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"key": np.ones((B, S, 3, H), np.float32)}, "shapes do not fit"),
        ({"query": np.ones((B, T, 3, H), np.float32)}, "heads of the keys divide"),
        ({"query": np.ones((T, H), np.float32)}, "expected"),
        ({"mask": np.ones((B, 1, T, S), np.float32)}, "mask is boolean"),
        ({"mask": np.ones((3, 1, T, S), bool)}, "mask of shape"),
        ({"bias": np.ones((T, 3), np.float32)}, "bias of shape"),
        ({"alpha": 0.0}, "alpha is above 0"),
        ({"block": 0}, "at least 1"),
        ({"module": object()}, "sow"),
        ({"implementation": "cudnn"}, "implementation"),
    ],
)
def test_errors(change, message):
    names = dict(zip(("query", "key", "value"), operands(), strict=True))
    with pytest.raises(ValueError, match=message):
        sparse.entmax_attention(**(names | change))
