"""Catalogue-sized losses: exact to the dense loss, and never [rows, N] in memory."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from jax.sharding import AxisType
from jax.sharding import PartitionSpec as P

from jaxcold.sparse import fenchel_young_loss
from jaxcold.sparse.linear import linear_entmax_loss, linear_softmax_loss, per_row

ALPHAS = (1.0, 1.25, 1.5, 2.0)
SOME = (1.0, 1.5)  # where another alpha compiles the same structure once more
ROWS, ITEMS, WIDTH = 37, 900, 6  # neither a multiple of the blocks below
BLOCK = (16, 128)


def problem(seed=0, scale=1.0, rows=ROWS, items=ITEMS, width=WIDTH, dtype=np.float64):
    rng = np.random.default_rng(seed)
    h = scale * rng.normal(size=(rows, width))
    W, bias = rng.normal(size=(items, width)), scale * rng.normal(size=items)
    targets = rng.integers(0, items, rows)
    where = rng.random(items) < 0.8
    where[targets] = True
    return (*tuple(a.astype(dtype) for a in (h, W, bias)), targets, where)


def reference(z, targets, alpha, tau=1.0):
    """Losses and probabilities in plain numpy, by bisection: shares nothing with the library."""
    z = np.asarray(z, np.float64)
    top = z.max(1, keepdims=True)
    if alpha == 1:
        p = np.exp((z - top) / tau)
        p /= p.sum(1, keepdims=True)
        entropy = -np.where(p > 0, p * np.log(np.where(p > 0, p, 1)), 0).sum(1)
    else:
        s = (alpha - 1) * (z - top) / tau
        low, high = -np.ones(len(z)), np.zeros(len(z))
        for _ in range(80):
            middle = (low + high) / 2
            p = np.maximum(s - middle[:, None], 0) ** (1 / (alpha - 1))
            low, high = np.where(p.sum(1) >= 1, [middle, high], [low, middle])
        entropy = (1 - (p**alpha).sum(1)) / (alpha * (alpha - 1))
    score = (p * np.where(p > 0, z - top, 0)).sum(1) - (z - top)[np.arange(len(z)), targets]
    return score + tau * entropy, p


@functools.partial(jax.jit, static_argnames=("alpha", "block"))
def value_and_gradients(h, W, bias, tau, targets, where, cotangent, alpha, block=BLOCK):
    def f(h, W, bias, tau):
        loss = linear_entmax_loss(
            h, W, targets, alpha, bias=bias, where=where, tau=tau, block=block
        )
        return (cotangent * loss).sum(), loss

    (_, loss), gradients = jax.value_and_grad(f, (0, 1, 2, 3), has_aux=True)(h, W, bias, tau)
    return loss, gradients


@pytest.mark.parametrize("scale", [1e-4, 0.1, 1.0, 20.0])
@pytest.mark.parametrize("alpha", ALPHAS)
def test_equals_an_independent_reference(x64, alpha, scale):
    h, W, bias, targets, where = problem(scale=scale)
    tau, c = 0.7, np.random.default_rng(9).normal(size=ROWS)
    loss, (dh, dW, dbias, dtau) = value_and_gradients(
        h, W, bias, tau, targets, where, c, alpha=alpha
    )
    z = np.where(where, h @ W.T + bias, -np.inf)
    expected, p = reference(z, targets, alpha, tau)
    g = c[:, None] * (p - np.eye(ITEMS)[targets])
    close = functools.partial(np.testing.assert_allclose, rtol=1e-9, atol=1e-10)
    close(loss, expected)
    close(dh, g @ W)
    close(dW, g.T @ h)
    close(dbias, g.sum(0))
    step = 1e-5
    high, low = (reference(z, targets, alpha, tau + s)[0] for s in (step, -step))
    np.testing.assert_allclose(dtau, c @ (high - low) / (2 * step), rtol=1e-6, atol=1e-6)


@functools.partial(jax.jit, static_argnames="alpha")
def dense(h, W, bias, targets, where, cotangent, alpha):
    def f(h, W, bias):
        loss = fenchel_young_loss(h @ W.T + bias[None, :], targets, alpha, where=where)
        return (cotangent * loss).sum(), loss

    (_, loss), gradients = jax.value_and_grad(f, (0, 1, 2), has_aux=True)(h, W, bias)
    return loss, gradients


@settings(max_examples=20, deadline=None)
@given(
    seed=st.integers(0, 2**31),
    log_scale=st.floats(-6, 3),
    alpha=st.sampled_from(ALPHAS),
    ties=st.booleans(),
)
def test_equals_the_dense_loss(seed, log_scale, alpha, ties):
    h, W, bias, targets, where = problem(seed, 10.0**log_scale, dtype=np.float32)
    if ties:
        W, bias = np.round(W), np.zeros_like(bias)
    c = np.random.default_rng(seed).normal(size=ROWS).astype(np.float32)
    loss, gradients = value_and_gradients(h, W, bias, 1.0, targets, where, c, alpha=alpha)

    expected, dense_gradients = dense(h, W, bias, targets, where, c, alpha=alpha)
    # A logit z carries an error of eps |z| in both, which reaches p through a slope of up to 1.
    slack = 1e-6 * max(1.0, 10.0**log_scale) * 10
    np.testing.assert_allclose(loss, expected, rtol=1e-5, atol=slack)
    for got, want in zip(gradients, dense_gradients, strict=False):
        scale = max(1.0, float(jnp.abs(want).max()))
        np.testing.assert_allclose(got, want, atol=slack * scale)
    assert (loss >= -slack).all()


@pytest.mark.parametrize("alpha", [1.5, 2.0])
def test_support_larger_than_the_pruned_search(x64, alpha):
    """One nearly uniform row among peaked ones: its support fills more groups than are tried."""
    items = per_row._GROUP * (per_row._CANDIDATE_GROUPS + 7) + 5
    h, W, _, targets, _ = problem(3, rows=8, items=items, scale=5.0)
    h[4] *= 1e-6
    zero, one = np.zeros(items), np.ones(8)
    arguments = (h, W, zero, 1.0, targets, zero == 0, one)
    loss, (gradient, *_) = value_and_gradients(*arguments, alpha=alpha, block=(8, 512))
    expected, p = reference(h @ W.T, targets, alpha)
    np.testing.assert_allclose(loss, expected, rtol=1e-9)
    np.testing.assert_allclose(gradient, (p - np.eye(items)[targets]) @ W, atol=1e-9)
    assert (p[4] > 0).sum() > per_row._GROUP * per_row._CANDIDATE_GROUPS


def test_softmax_twin():
    h, W, bias, targets, where = problem(dtype=np.float32)
    got = linear_softmax_loss(h, W, targets, bias=bias, where=where, tau=0.5)
    np.testing.assert_array_equal(
        got, linear_entmax_loss(h, W, targets, 1, bias=bias, where=where, tau=0.5)
    )


@pytest.mark.parametrize("alpha", SOME)
def test_ignored_rows_change_nothing(alpha):
    h, W, bias, targets, where = problem(dtype=np.float32)
    kept = np.arange(ROWS) % 3 > 0
    ignored = np.where(kept, targets, [-1, -100, -(2**31)] * (ROWS // 3) + [-1])
    c = np.ones(ROWS, np.float32)
    loss, got = value_and_gradients(h, W, bias, 1.0, ignored, where, c, alpha=alpha)
    full, _ = value_and_gradients(h, W, bias, 1.0, targets, where, c, alpha=alpha)
    _, want = value_and_gradients(h, W, bias, 1.0, targets, where, c * kept, alpha=alpha)
    np.testing.assert_array_equal(loss, np.where(kept, full, 0))
    assert not got[0][~kept].any()
    for a, b in zip(got, want, strict=True):
        np.testing.assert_allclose(a, b, atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("alpha", SOME)
def test_dropped_targets_and_dropped_catalogues(alpha):
    h, W, bias, targets, where = problem(dtype=np.float32)
    where[targets[0]] = False
    c = np.ones(ROWS, np.float32)
    loss, gradients = value_and_gradients(h, W, bias, 1.0, targets, where, c, alpha=alpha)
    dropped = ~where[targets]
    assert dropped.any()
    assert not np.asarray(loss)[dropped].any()
    ignored = np.where(dropped, -1, targets)
    expected = value_and_gradients(h, W, bias, 1.0, ignored, where, c, alpha=alpha)
    jax.tree.map(np.testing.assert_array_equal, (loss, gradients), expected)
    assert not gradients[1][~where].any()
    loss, gradients = value_and_gradients(h, W, bias, 1.0, targets, where & False, c, alpha=alpha)
    assert not loss.any()
    assert not any(g.any() for g in gradients)


@pytest.mark.parametrize("alpha", [1.5, 2.0])
def test_zero_at_the_target_and_finite_at_large_logits(alpha):
    W = np.eye(ITEMS, WIDTH, dtype=np.float32)
    h = 1e5 * np.eye(WIDTH, dtype=np.float32)
    targets = np.arange(WIDTH)
    f = functools.partial(linear_entmax_loss, W=W, alpha=alpha, block=BLOCK)
    loss, gradient = f(h, targets=targets), jax.grad(lambda h: f(h, targets=targets).sum())(h)
    assert not loss.any()
    assert not gradient.any()
    wrong = f(h, targets=(targets + 1) % WIDTH)
    np.testing.assert_allclose(wrong, 1e5, rtol=1e-6)


@pytest.mark.parametrize("dtype", [jnp.bfloat16, jnp.float16])
@pytest.mark.parametrize("alpha", SOME)
def test_half_precision_accumulates_in_float32(dtype, alpha):
    h, W, bias, targets, where = problem(dtype=np.float32)
    h, W = jnp.asarray(h, dtype), jnp.asarray(W, dtype)
    c = np.ones(ROWS, np.float32)
    loss, gradients = value_and_gradients(h, W, bias, 1.0, targets, where, c, alpha=alpha)
    wide = (a.astype(jnp.float32) for a in (h, W))
    expected, wide_gradients = value_and_gradients(*wide, bias, 1.0, targets, where, c, alpha=alpha)
    assert loss.dtype == jnp.float32
    np.testing.assert_allclose(loss, expected, rtol=1e-5, atol=1e-5)
    for got, want, like in zip(gradients[:3], wide_gradients, (h, W, bias), strict=False):
        assert got.dtype == like.dtype
        # Rounded once, at the end: within half a unit in the last place.
        limit = float(jnp.finfo(like.dtype).eps) * 0.51 + 1e-5
        np.testing.assert_allclose(got.astype(np.float32), want, rtol=limit, atol=1e-5)


@pytest.mark.parametrize("alpha", SOME)
def test_every_block_size_gives_the_same(x64, alpha):
    h, W, bias, targets, where = problem()
    c = np.ones(ROWS)
    arguments = (h, W, bias, 1.0, targets, where, c)
    want = value_and_gradients(*arguments, alpha=alpha, block=(ROWS, ITEMS))
    for block in ((1, 1), (1000, 10_000)):
        got = value_and_gradients(*arguments, alpha=alpha, block=block)
        jax.tree.map(functools.partial(np.testing.assert_allclose, atol=1e-11), got, want)


def test_only_blocks_with_support_are_visited():
    h, W, _, targets, _ = problem(scale=3.0, dtype=np.float32)
    column, one = targets[:, None], np.ones((ROWS, 1), np.float32)
    for alpha in (1.5, 2.0):
        config = per_row.LinearConfig(alpha, 16, 128)
        forward = jax.jit(functools.partial(per_row._forward, config=config))
        results = forward(h, W, None, one[:, 0], column, one, one[:, 0] > 0)
        _, p = reference(h @ W.T, targets, alpha)
        blocks = -(-ITEMS // 128)
        needed = np.pad(p > 0, ((0, 0), (0, blocks * 128 - ITEMS)))
        needed = needed.reshape(ROWS, blocks, 128).any(2)
        np.testing.assert_array_equal(results.is_reached, needed)
        assert needed.mean() < 0.7


def temporary_bytes(f, rows, items, width=32):
    shapes = (
        jax.ShapeDtypeStruct((rows, width), jnp.float32),
        jax.ShapeDtypeStruct((items, width), jnp.float32),
        jax.ShapeDtypeStruct((rows,), jnp.int32),
    )

    def total(h, W, targets):
        return f(h, W, targets).sum()

    program = jax.jit(jax.value_and_grad(total, (0, 1))).lower(*shapes).compile()
    return program.memory_analysis().temp_size_in_bytes


@pytest.mark.parametrize("alpha", SOME)
def test_memory_is_linear_in_rows_and_items_not_in_their_product(alpha):
    def blocked(h, W, targets):
        return linear_entmax_loss(h, W, targets, alpha, block=(16, 512))

    def dense(h, W, targets):
        return fenchel_young_loss(h @ W.T, targets, alpha)

    small = temporary_bytes(blocked, 2048, 16384)
    assert temporary_bytes(blocked, 4096, 16384) < 1.5 * small  # dense doubles
    large = temporary_bytes(blocked, 4096, 32768)
    assert large < 2.5 * small  # dense quadruples
    assert large < 0.1 * temporary_bytes(dense, 4096, 32768)
    assert large < 0.1 * 4096 * 32768 * 4  # one dense array of logits


def test_one_trace_per_shape_under_jit_scan_and_remat():
    traces = []

    def loss(h, W, targets):
        traces.append(None)
        return linear_entmax_loss(h, W, targets, 1.5, block=BLOCK).sum()

    h, W, _, targets, _ = problem(dtype=np.float32)
    jitted = jax.jit(jax.grad(loss))
    want = jitted(h, W, targets)
    jitted(2 * h, W, targets)
    assert len(traces) == 1
    remat = jax.jit(jax.grad(jax.checkpoint(loss)))(h, W, targets)
    np.testing.assert_allclose(remat, want, atol=1e-6)

    def step(W, _):
        value, gradient = jax.value_and_grad(loss, 1)(h, W, targets)
        return W - 0.05 * gradient, value

    _, values = jax.jit(lambda W: jax.lax.scan(step, W, None, length=5))(W)
    assert (np.diff(values) < 0).all()


@pytest.mark.parametrize("alpha", SOME)
def test_rows_sharded_over_devices(alpha):
    mesh = jax.make_mesh((8,), ("rows",), axis_types=(AxisType.Auto,))
    h, W, bias, targets, _ = problem(rows=64, dtype=np.float32)

    def total(h, W, bias, tau, targets):
        return linear_entmax_loss(h, W, targets, alpha, bias=bias, tau=tau, block=(4, 128)).sum()

    def sharded(h, W, bias, tau, targets):
        def f(*arguments):
            return jax.lax.psum(total(*arguments, targets), "rows")

        return jax.value_and_grad(f, (0, 1, 2, 3))(h, W, bias, tau)

    specs = (P("rows"), P(), P(), P(), P("rows"))
    got = jax.jit(jax.shard_map(sharded, mesh=mesh, in_specs=specs, out_specs=(P(), specs[:4])))(
        h, W, bias, 0.7, targets
    )
    want = jax.value_and_grad(total, (0, 1, 2, 3))(h, W, bias, 0.7, targets)
    jax.tree.map(functools.partial(np.testing.assert_allclose, rtol=2e-5, atol=2e-5), got, want)


def test_bad_arguments_are_named():
    h, W, targets = jnp.ones((4, 3)), jnp.ones((9, 3)), jnp.zeros(4, jnp.int32)
    cases = [
        ({"alpha": 0.5}, "alpha"),
        ({"alpha": 2.5}, "alpha"),
        ({"W": jnp.ones((9, 2))}, "expected h"),
        ({"W": jnp.ones((0, 3))}, "not empty"),
        ({"W": jnp.ones((9, 3), jnp.int32)}, "floating"),
        ({"targets": jnp.zeros(4)}, "integer targets"),
        ({"targets": targets[:3]}, "integer targets"),
        ({"bias": jnp.ones(4)}, "bias"),
        ({"where": jnp.ones(4, bool)}, "where"),
        ({"tau": jnp.ones(3)}, "tau of shape"),
        ({"tau": 0.0}, "tau must be above 0"),
        ({"weights": jnp.ones(3)}, "weights of shape"),
        ({"where": jnp.zeros(9)}, "where is boolean"),
        ({"target_probabilities": jnp.ones((3, 1))}, "floating target_probabilities"),
        ({"targets": targets[:, None], "target_probabilities": jnp.full((4, 1), 0.5)}, "sum to 1"),
        ({"block": (0, 5)}, "block"),
        ({"method": "sort"}, "method"),
    ]
    for change, message in cases:
        with pytest.raises(ValueError, match=message):
            linear_entmax_loss(**({"h": h, "W": W, "targets": targets, "alpha": 1.5} | change))
    with pytest.raises(ValueError, match="alpha"):
        jax.jit(lambda a: linear_entmax_loss(h, W, targets, a))(1.5)
