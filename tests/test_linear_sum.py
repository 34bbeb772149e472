"""The summed catalogue loss: the dense loss and its gradients, for the rows that have a target."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import AxisType
from jax.sharding import PartitionSpec as P
from jax.test_util import check_grads

from jaxcold.sparse import fenchel_young_loss, linear_entmax_loss, linear_entmax_sum
from jaxcold.sparse.linear.summed import tile_rows

ROWS, ITEMS, WIDTH = 150, 90, 5
ALPHAS = (1.0, 1.25, 1.5, 2.0)


def problem(dtype=np.float64, seed=0):
    rng = np.random.default_rng(seed)
    h, W = rng.normal(size=(ROWS, WIDTH)), rng.normal(size=(ITEMS, WIDTH))
    targets = rng.integers(0, ITEMS, ROWS)
    targets[::4] = -1
    targets[5] = -100
    return h.astype(dtype), W.astype(dtype), targets.astype(np.int32)


def dense(h, W, targets, alpha, tau=1.0):
    kept = (targets >= 0) & (targets < len(W))
    z = h @ W.T
    if alpha == 1:
        losses = tau * fenchel_young_loss(z / tau, np.where(kept, targets, 0), 1.0)
    else:
        losses = fenchel_young_loss(z, np.where(kept, targets, 0), alpha, tau=tau)
    return jnp.sum(jnp.where(kept, losses, 0))


@pytest.mark.parametrize("alpha", ALPHAS)
@pytest.mark.parametrize(("tau", "rows"), [(1.0, 8), (0.3, 70)])
def test_equals_the_dense_loss(alpha, tau, rows, x64):
    h, W, targets = problem()
    ours = functools.partial(linear_entmax_sum, alpha=alpha, tau=tau, rows=rows)
    value, gradients = jax.value_and_grad(lambda h, W: 3 * ours(h, W, targets), (0, 1))(h, W)
    theirs = functools.partial(dense, targets=targets, alpha=alpha, tau=tau)
    wanted, expected = jax.value_and_grad(lambda h, W: 3 * theirs(h, W), (0, 1))(h, W)
    np.testing.assert_allclose(value, wanted, rtol=1e-12)
    # Without a gradient nothing else is computed.
    np.testing.assert_allclose(3 * ours(h, W, targets), wanted, rtol=1e-12)
    for got, want in zip(gradients, expected, strict=True):
        np.testing.assert_allclose(got, want, atol=1e-11)
    np.testing.assert_array_equal(gradients[0][::4], 0)


@pytest.mark.parametrize("alpha", [1.0, 1.5])
def test_gradients_against_finite_differences(alpha, x64):
    h, W, targets = problem()
    f = functools.partial(linear_entmax_sum, targets=targets, alpha=alpha, tau=0.7, rows=4)
    check_grads(lambda h, W: f(h, W), (h, W), order=1, modes=["rev"], eps=1e-6)


def test_it_is_the_sum_of_the_losses_row_by_row():
    h, W, targets = problem(np.float32)
    rows = linear_entmax_loss(h, W, targets, 1.5)
    np.testing.assert_allclose(linear_entmax_sum(h, W, targets, 1.5), rows.sum(), rtol=1e-5)


@pytest.mark.parametrize("real", [0, 1, 69, 70, 71, 140, 141, 150])
def test_every_row_with_a_target_counts_once(real):
    """Tiles of 70 rows: none, full ones, and one row too many."""
    h, W, targets = problem(np.float32)
    targets = np.where(np.arange(ROWS) % 7 == 0, 3, targets % ITEMS)
    chosen = np.random.default_rng(1).permutation(ROWS) < real
    marked = np.where(chosen, targets, -1)
    value, (dh, dW) = tiled(h, W, marked)
    each, (dh_each, dW_each) = row_by_row(h, W, marked)
    np.testing.assert_allclose(value, each, rtol=1e-5)
    np.testing.assert_allclose(dh, dh_each, atol=1e-5)
    np.testing.assert_allclose(dW, dW_each, atol=1e-4)


@jax.jit
def tiled(h, W, targets):
    total = functools.partial(linear_entmax_sum, targets=targets, alpha=1.0, rows=70)
    return jax.value_and_grad(lambda h, W: total(h, W), (0, 1))(h, W)


@jax.jit
def row_by_row(h, W, targets):
    return jax.value_and_grad(lambda h, W: linear_entmax_loss(h, W, targets, 1.0).sum(), (0, 1))(
        h, W
    )


def test_a_tile_has_few_rows_in_the_cache_and_more_beyond_as_memory_allows():
    assert tile_rows(960, 10_286) == 64
    assert tile_rows(40, 10_286) == 40
    assert tile_rows(16_384, 131_085) == 256
    assert tile_rows(16_384, 500_000) == 128
    assert tile_rows(16_384, 5_000_000) == 64


def test_nobody_has_a_target():
    h, W, _ = problem(np.float32)
    nobody = np.full(ROWS, -1)
    value, gradients = jax.value_and_grad(linear_entmax_sum, (0, 1))(h, W, nobody, 1.0)
    assert value == 0
    for gradient in gradients:
        np.testing.assert_array_equal(gradient, 0)


@pytest.mark.parametrize("dtype", [jnp.bfloat16, jnp.float16])
def test_half_precision_is_summed_in_float32(dtype):
    h, W, targets = problem(np.float32)
    h, W = jnp.asarray(h, dtype), jnp.asarray(W, dtype)
    value, gradients = jax.value_and_grad(linear_entmax_sum, (0, 1))(h, W, targets, 1.0)
    assert value.dtype == jnp.float32
    assert [g.dtype for g in gradients] == [dtype, dtype]
    wide = linear_entmax_sum(h.astype(jnp.float32), W.astype(jnp.float32), targets, 1.0)
    np.testing.assert_allclose(value, wide, rtol=1e-3)


def test_rows_over_devices():
    h, W, targets = problem(np.float32)
    h, targets = h[:20], targets[:20]
    mesh = jax.make_mesh((2,), ("rows",), axis_types=(AxisType.Auto,))

    def total(h, W, targets):
        return jax.lax.psum(linear_entmax_sum(h, W, targets, 1.5), "rows")

    def sharded(h, W, targets):
        return jax.value_and_grad(total, (0, 1))(h, W, targets)

    specs = P("rows"), P(), P("rows")
    split = jax.shard_map(sharded, mesh=mesh, in_specs=specs, out_specs=(P(), specs[:2]))
    got = jax.jit(split)(h, W, targets)
    want = jax.value_and_grad(linear_entmax_sum, (0, 1))(h, W, targets, 1.5)
    jax.tree.map(functools.partial(np.testing.assert_allclose, rtol=2e-5, atol=2e-5), got, want)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"alpha": 0.5}, "alpha"),
        ({"W": jnp.ones((9, 2))}, "expected h"),
        ({"W": jnp.ones((0, 3))}, "not empty"),
        ({"W": jnp.ones((9, 3), jnp.bfloat16)}, "of one dtype"),
        ({"targets": jnp.zeros(4)}, "integer targets"),
        ({"targets": jnp.zeros(3, jnp.int32)}, "integer targets of shape"),
        ({"tau": 0.0}, "tau must be above 0"),
        ({"rows": 0}, "rows must be positive"),
    ],
)
def test_bad_arguments_are_named(change, message):
    good = {"h": jnp.ones((4, 3)), "W": jnp.ones((9, 3)), "targets": jnp.zeros(4, jnp.int32)}
    with pytest.raises(ValueError, match=message):
        linear_entmax_sum(**({"alpha": 1.5} | good | change))
