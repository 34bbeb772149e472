"""Logarithms, radii, bounds, two classes, k-sparse rows, normmax; options of linear losses."""

import functools

import hypothesis
import jax
import jax.numpy as jnp
import numpy as np
import optax
import oracles
import pytest
from hypothesis import strategies as st
from jax.test_util import check_grads

from jaxcold import sparse

Z = np.random.default_rng(0).normal(size=(3, 6))
close = functools.partial(np.testing.assert_allclose, atol=1e-10)


@pytest.mark.parametrize("alpha", [0.5, 1.0, 1.25, 1.5, 2.0, 3.0])
def test_log_entmax(alpha, x64):
    p = oracles.entmax(Z, alpha) if alpha >= 1 else oracles.entmax_by_level(Z, alpha)
    with np.errstate(divide="ignore"):
        close(sparse.log_entmax(Z, alpha), np.log(p))

    def on_support(z):
        return jnp.where(p > 0, sparse.log_entmax(z, alpha), 0).sum()

    # Small probabilities curve the logarithm; near them a difference has few digits.
    check_grads(jax.jit(on_support), (Z,), 1, atol=1e-4, rtol=1e-4, eps=1e-6)
    if alpha == 1:
        tiny = np.array([0.0, -200.0], np.float32)  # whose probability float32 does not have
        np.testing.assert_allclose(sparse.log_entmax(tiny, 1.0), [0, -200])


@pytest.mark.usefixtures("standard_promotion")  # of Optax, and of its results with ours
def test_scale_is_the_size_of_the_simplex(x64):
    s = np.array([[0.5], [2.0], [3.0]])
    p = sparse.sparsemax(Z, scale=s)
    want = [
        optax.projections.projection_simplex(z, float(v)) for z, v in zip(Z, s[:, 0], strict=True)
    ]
    close(p, want)
    for alpha in (0.7, 1.0, 1.5):
        p = np.asarray(sparse.entmax(Z, alpha, scale=s))
        close(p.sum(-1), s[:, 0])
        # p maximises p.z + H(p) over that simplex: p ** (alpha - 1) / (alpha - 1) - z is constant.
        if alpha != 1:
            inside = p > 0
            gap = np.where(inside, np.where(inside, p, 1) ** (alpha - 1) / (alpha - 1) - Z, np.nan)
            close(np.nanmax(gap, -1), np.nanmin(gap, -1))
    f = jax.jit(lambda z, s: sparse.entmax15(z, scale=s))
    check_grads(f, (Z, s), 1, atol=1e-6, rtol=1e-6)


rows = st.lists(st.floats(-5, 5, width=32), min_size=6, max_size=6)
bounds = st.lists(st.floats(0.125, 2, width=32), min_size=6, max_size=6)
capped = jax.jit(lambda z, total, upper: sparse.budget(z, total, upper=upper))


@hypothesis.given(z=rows, upper=bounds, total=st.floats(0.25, 6, width=32))
def test_budget_with_bounds_is_the_nearest_point(z, upper, total):
    """The conditions of Karush, Kuhn and Tucker: one tau, and entries at a bound beyond it."""
    z, upper = np.array(z, np.float32), np.array(upper, np.float32)
    p = np.asarray(capped(z, np.float32(total), upper), np.float64)
    assert (p >= 0).all()
    assert (p <= upper).all()
    np.testing.assert_allclose(p.sum(), min(total, upper.sum()), atol=1e-5)
    if total < upper.sum() - 1e-3:
        inside = (p > 1e-5) & (p < upper - 1e-5)
        above = np.where(p < upper - 1e-5, z - p, -np.inf).max()  # at most tau
        below = np.where(p > 1e-5, z - p, np.inf).min()  # at least tau
        assert above <= below + 1e-4
        if inside.any():
            np.testing.assert_allclose((z - p)[inside], below, atol=1e-4)


def test_budget_with_bounds_has_derivatives(x64):
    upper = np.array([0.3, 0.2, 0.6, 1.0, 0.4, 0.5])
    check_grads(jax.jit(capped), (Z, 1.1, upper), 1, atol=1e-6, rtol=1e-6)
    wide = sparse.budget(Z, 2.0, upper=5.0)
    close(wide, sparse.sparsemax(Z, scale=2.0))


def test_sparse_simplex(x64):
    for k in (2, 9):
        p = np.asarray(sparse.sparse_simplex(Z, k, scale=1.5))
        order = np.argsort(-Z, -1)[:, :k]
        top = np.take_along_axis(Z, order, -1)
        want = np.zeros_like(Z)
        np.put_along_axis(want, order, np.asarray(sparse.sparsemax(top, scale=1.5)), -1)
        close(p, want)
    ties = sparse.sparse_simplex(np.zeros((1, 4), np.float32), 2)
    assert ties.tolist() == [[0.5, 0.5, 0, 0]]
    p = sparse.sparse_simplex(np.array([3.0, 2.0, 1.9], np.float32), 2, where=np.arange(3) != 0)
    np.testing.assert_allclose(p, [0, 0.55, 0.45], rtol=1e-6)
    f = jax.jit(lambda z: sparse.sparse_simplex(z, 2))
    check_grads(f, (Z,), 1, atol=1e-6, rtol=1e-6)


@pytest.mark.usefixtures("standard_promotion")  # of Optax, and of its results with ours
def test_two_classes(x64):
    z, label = Z[0], np.array([0, 1, 1, 0, 1, 0])
    close(sparse.entmax_sigmoid(z, 1.0), jax.nn.sigmoid(z))
    close(sparse.entmax_sigmoid(z, 2.0), jax.nn.sparse_sigmoid(z))
    loss = optax.losses.sigmoid_binary_cross_entropy(z, label)
    close(sparse.entmax_sigmoid_loss(z, label, 1.0), loss)
    close(sparse.entmax_sigmoid_loss(z, label, 2.0), optax.losses.sparsemax_loss(z, label))
    close(sparse.entmax_sigmoid_loss(z, label == 1, 2.0), optax.losses.sparsemax_loss(z, label))
    for alpha in (0.5, 2.0):

        def total(z, alpha=alpha):
            return sparse.entmax_sigmoid_loss(z, label, alpha).sum()

        close(jax.grad(total)(z), sparse.entmax_sigmoid(z, alpha) - label)
    soft = np.full(6, 0.5)
    np.testing.assert_allclose(sparse.entmax_sigmoid_loss(0 * z, soft, 1.5), 0, atol=1e-12)
    ignored = sparse.entmax_sigmoid_loss(z, np.array([-1, 2, 0, 0, 0, 0]), 1.5)
    assert ignored[0] == 0
    assert np.isnan(ignored[1])


@functools.cache
def compiled_normmax_loss():
    """Value, gradient, and Hessian times a vector, compiled once for all orders."""

    def f(z, a):
        return sparse.normmax_loss(z, np.array([0, 5, 2]), a).sum()

    def product(z, a, v):
        return jax.jvp(lambda z: jax.grad(f)(z, a), (z,), (v,))[1]

    return jax.jit(f), jax.jit(jax.grad(f, (0, 1))), jax.jit(product)


@pytest.mark.parametrize("order", [1.3, 2.0, 6.0])
def test_normmax_loss(order, x64):
    t = oracles.entmax(Z[::-1], 1.5)
    p = np.array([oracles.normmax(row, order) for row in Z])

    def norm(q):
        return (q**order).sum(-1) ** (1 / order)

    close(sparse.normmax_loss(Z, t, order), ((p - t) * Z).sum(-1) + norm(t) - norm(p))
    labels = np.array([0, 5, 2])
    want = ((p - np.eye(6)[labels]) * Z).sum(-1) + 1 - norm(p)
    f, slope, hessian = compiled_normmax_loss()
    close(f(Z, order), want.sum())
    in_z, in_order = slope(Z, order)
    close(in_z, p - np.eye(6)[labels])
    numeric = (f(Z, order + 1e-6) - f(Z, order - 1e-6)) / 2e-6
    np.testing.assert_allclose(in_order, numeric, atol=1e-8)
    step = np.random.default_rng(2).normal(size=Z.shape)
    numeric = (slope(Z + 1e-6 * step, order)[0] - slope(Z - 1e-6 * step, order)[0]) / 2e-6
    np.testing.assert_allclose(hessian(Z, order, step), numeric, atol=1e-6)
    np.testing.assert_allclose(sparse.normmax_loss(Z, p, order), 0, atol=1e-12)


@pytest.mark.usefixtures("standard_promotion")  # of Optax
def test_sparsemax_loss_is_that_of_optax(x64):
    labels = np.array([0, 5, 2])
    close(sparse.sparsemax_loss(Z, labels), optax.losses.multiclass_sparsemax_loss(Z, labels))


# A batch of [2, 3] rows; soft targets of two items, one of them alone in its row.
RNG = np.random.default_rng(1)
H, W = RNG.normal(size=(2, 3, 4)), RNG.normal(size=(9, 4))
ITEMS = np.array([[[0, 1], [2, 8], [7, -1]], [[3, 4], [5, 6], [-1, -1]]])
SHARES = np.array([[[0.5, 0.5], [0.9, 0.1], [1, 0]], [[0.3, 0.7], [1, 0], [0, 0]]])
SOFT = np.zeros((2, 3, 9))
for place in np.ndindex(2, 3, 2):
    SOFT[(*place[:2], ITEMS[place])] += SHARES[place]


@pytest.mark.parametrize("alpha", [1.0, 1.25, 2.0])
def test_options_of_the_linear_losses(alpha, x64):
    """Batch axes, soft targets, weights, temperature per row, bias, mask: as the dense loss."""
    where = np.arange(9) != 1  # which the first row wants, so that it is ignored
    arguments = (
        H,
        W,
        RNG.normal(size=9),
        RNG.uniform(0.5, 2, (2, 3)),
        np.array([[1.0, 0.0, 2.0], [-0.5, 1.0, 1.0]]),
    )

    def options(bias, tau, weights):
        return {"bias": bias, "where": where, "tau": tau, "weights": weights}

    def dense(h, w, bias, tau, weights):
        z = jnp.einsum("abd,nd->abn", h, w) + bias[None, None]
        loss = sparse.fenchel_young_loss(
            z, SOFT, alpha, tau=tau, weights=weights, where=where[None, None]
        )
        return loss.sum(), loss

    def per_row(h, w, *rest):
        loss = sparse.linear_entmax_loss(
            h, w, ITEMS, alpha, target_probabilities=SHARES, **options(*rest)
        )
        return loss.sum(), loss

    def summed(h, w, *rest):
        total = sparse.linear_entmax_sum(
            h, w, ITEMS, alpha, target_probabilities=SHARES, rows=4, **options(*rest)
        )
        return total, total

    @jax.jit
    def everything(*arguments):
        return [
            jax.value_and_grad(f, tuple(range(5)), has_aux=True)(*arguments)
            for f in (dense, per_row, summed)
        ]

    want, rows, total = everything(*arguments)
    assert want[0][1][0, 0] == 0
    assert want[0][1][1, 2] == 0
    jax.tree.map(functools.partial(close, rtol=1e-9), rows, want)
    close(total[0][0], want[0][0])
    jax.tree.map(functools.partial(close, rtol=1e-9), total[1], want[1])


def test_a_new_temperature_compiles_nothing_anew():
    h, w = H[0].astype(np.float32), W.astype(np.float32)
    labels = np.arange(3)
    from jaxcold.sparse.linear import per_row, summed

    for module, f in ((summed, sparse.linear_entmax_sum), (per_row, sparse.linear_entmax_loss)):
        f(h, w, labels, 1.5, tau=0.5)
        before = module._compiled._cache_size()
        f(h, w, labels, 1.5, tau=0.7)
        assert module._compiled._cache_size() == before
