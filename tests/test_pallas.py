"""Accelerator kernels, interpreted on the CPU, and their lowering for GPU and TPU."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxcold.sparse import _pallas, entmax, linear
from jaxcold.sparse.linear import linear_entmax_loss

ROWS, ITEMS, WIDTH = 37, 700, 24  # no multiple of any tile, no power of two


def problem(seed=0, scale=1.0):
    rng = np.random.default_rng(seed)
    h = (scale * rng.normal(size=(ROWS, WIDTH))).astype(np.float32)
    W, bias = rng.normal(size=(ITEMS, WIDTH)).astype(np.float32), rng.normal(size=ITEMS)
    targets = rng.integers(-1, ITEMS, ROWS)
    return h, W, bias.astype(np.float32), targets, rng.random(ITEMS) < 0.9


@pytest.mark.parametrize("alpha", [1.25, 1.5, 2.0])
@pytest.mark.parametrize("scale", [1e-3, 1.0, 30.0])
def test_threshold_makes_rows_sum_to_one(alpha, scale):
    s = (scale * np.random.default_rng(1).normal(size=(13, 300))).astype(np.float32)
    s[3, :] = 0.25  # a constant row
    s[5, 10:] = -np.inf
    s[7, 1:] = -np.inf
    s[9, :] = -np.inf
    eta = np.asarray(_pallas.threshold(jnp.asarray(s), alpha, platform="cpu"))
    assert np.isposinf(eta[9])
    p = np.maximum(s.astype(np.float64) - eta[:, None], 0) ** (1 / (alpha - 1))
    # eta is rounded relative to the row's magnitude, and p's sum moves by the slope times that.
    slope = np.where(p > 0, p ** (2 - alpha), 0).sum(1) / (alpha - 1)
    slack = slope * np.spacing(np.abs(np.where(np.isfinite(s), s, 0)).max(1)) + 1e-5
    others = np.arange(13) != 9
    assert (np.abs(p.sum(1) - 1) <= slack)[others].all()
    assert eta[7] == s[7, 0] - 1


@pytest.mark.parametrize("alpha", [1.5, 2.0])
def test_maps_and_losses_take_the_kernel_as_a_method(alpha):
    z = np.random.default_rng(2).normal(size=(5, 3, 40)).astype(np.float32)
    z[1, 1, 7:] = -np.inf
    cot = np.random.default_rng(3).normal(size=z.shape).astype(np.float32)

    def run(method):
        out, back = jax.vjp(lambda z: entmax(z, alpha, axis=1, method=method), z)
        return out, back(cot)[0]

    for ours, theirs in zip(run("pallas"), run("newton"), strict=True):
        np.testing.assert_allclose(ours, theirs, atol=1e-6)
    batched = jax.vmap(lambda z: entmax(z, alpha, axis=0, method="pallas"))(z)
    np.testing.assert_allclose(batched, run("newton")[0], atol=1e-6)
    with pytest.raises(ValueError, match=r"method='pallas' needs alpha 1\.5 or 2"):
        entmax(z, 1.25, method="pallas")


@functools.partial(jax.jit, static_argnames=("alpha", "method"))
def value_and_gradients(h, W, bias, tau, targets, where, alpha, method):
    def f(h, W, bias, tau):
        loss = linear_entmax_loss(
            *(h, W, targets, alpha),
            bias=bias,
            where=where,
            tau=tau,
            block=(16, 256),
            method=method,
        )
        return jnp.where(jnp.isfinite(loss), loss, 0).sum(), loss

    return jax.value_and_grad(f, (0, 1, 2, 3), has_aux=True)(h, W, bias, tau)


@pytest.mark.parametrize("alpha", [1.0, 1.5])
def test_linear_loss_equals_the_xla_path(alpha):
    for scale in (1e-3, 1.0, 10.0):
        h, W, bias, targets, where = problem(scale=scale)
        arguments = (h, W, bias, 0.7, targets, where)
        got, want = (
            value_and_gradients(*arguments, alpha=alpha, method=m) for m in ("pallas", "xla")
        )
        close = functools.partial(
            np.testing.assert_allclose, rtol=1e-5, atol=2e-5 * max(1.0, scale)
        )
        jax.tree.map(close, got, want)


def test_same_blocks_are_skipped():
    alpha = 1.5
    h, W, _, targets, _ = problem(scale=3.0)
    arguments = (h, W, None, jnp.float32(1), jnp.asarray(targets), linear._Static(alpha, 8, 128))
    got, want = _pallas.solve(*arguments, platform="cpu"), linear._solve(*arguments)
    np.testing.assert_array_equal(got.reached, want.reached)


@pytest.mark.parametrize("platform", ["cuda", "tpu"])
@pytest.mark.parametrize("dtype", [jnp.float32, jnp.bfloat16])
@pytest.mark.parametrize("alpha", [1.0, 1.5, 1.7])
def test_kernels_lower_for_accelerators(platform, dtype, alpha):
    kernel_platform = "gpu" if platform == "cuda" else platform
    call = {"cuda": "__gpu$xla.gpu.triton", "tpu": "tpu_custom_call"}[platform]

    def loss(h, W, targets):
        static = linear._Static(alpha, 64, 512)
        solution = _pallas.solve(
            h, W, None, jnp.float32(0.7), targets, static, platform=kernel_platform
        )
        return solution.loss

    shapes = (
        jax.ShapeDtypeStruct((300, 64), dtype),
        jax.ShapeDtypeStruct((2100, 64), dtype),
        jax.ShapeDtypeStruct((300,), jnp.int32),
    )
    text = jax.jit(loss).trace(*shapes).lower(lowering_platforms=(platform,)).as_text()
    assert text.count(call) == (1 if alpha == 1 else 2)
    if alpha > 1:
        rows = jax.ShapeDtypeStruct((64, 1000), dtype)
        threshold = functools.partial(_pallas.threshold, alpha=alpha, platform=kernel_platform)
        text = jax.jit(threshold).trace(rows).lower(lowering_platforms=(platform,)).as_text()
        assert call in text
