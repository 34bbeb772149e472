"""The sparse maps: golden parity, mathematical properties, derivatives, corner cases."""

import functools
import subprocess
import sys

import hypothesis
import jax
import jax.numpy as jnp
import numpy as np
import oracles
import pytest
from hypothesis import strategies as st
from jax.sharding import PartitionSpec
from jax.test_util import check_grads

from jaxcold import sparse

MAPS = {
    "sparsemax": 2.0,
    "entmax15": 1.5,
    "bisect1.25": 1.25,
    "bisect1.5": 1.5,
    "bisect1.75": 1.75,
    "bisect2.0": 2.0,
    "bisect3.0": 3.0,
}
ALPHAS = [1.0, 1.25, 1.5, 1.75, 2.0, 3.0]
SHAPE = (5, 7)  # one shape for the property tests: one compilation per map


@functools.cache
def compiled(alpha, method="auto"):
    return jax.jit(functools.partial(sparse.entmax, alpha=alpha, method=method))


@functools.cache
def value_and_vjp(alpha):
    @jax.jit
    def both(x, cot, real):
        p, vjp = jax.vjp(lambda x: sparse.entmax(x, alpha, where=real), x)
        return p, vjp(cot)[0]

    return both


def logits(low=-30.0, high=30.0, shape=SHAPE):
    """Rows with repeated values, several scales and offsets."""
    value = st.floats(low, high, allow_nan=False, width=32)
    entry = st.one_of(value, st.sampled_from([0.0, 1.0, -1.0, 0.5]))
    flat = st.lists(entry, min_size=shape[0] * shape[1], max_size=shape[0] * shape[1])
    return flat.map(lambda values: np.array(values, np.float32).reshape(shape))


def stack(cases, prefix, width):
    """Rows of several cases below each other, padded to one width; and where they are real."""
    rows = [case[prefix] for case in cases]
    total = sum(len(row) for row in rows)
    out, real = np.zeros((total, width)), np.zeros((total, width), bool)
    at = 0
    for row in rows:
        out[at : at + len(row), : row.shape[1]] = row
        real[at : at + len(row), : row.shape[1]] = True
        at += len(row)
    return out, real


@pytest.fixture(scope="module")
def golden_cases(request):
    """Per function and precision: one padded batch of every golden case that has it."""
    import conftest

    def load(name):
        with np.load(conftest.GOLDEN / f"semco/{name}.npz", allow_pickle=False) as file:
            return dict(file)

    small, wide = load("entmax"), load("entmax_2048")

    def cases(fn, precision):
        found = []
        for key, x in small.items():
            case, _, field = key.partition("__")
            if field == "X":
                part = {"X": x, "cot": small[f"{case}__cot"]}
                for name in ("p", "vjp"):
                    part[name] = small[f"{case}__{fn}__{precision}__{name}"]
                part["support"] = small[f"{case}__{fn}__{precision}__support"][:, None]
                found.append(part)
        for scale in wide["scales"]:
            key = f"s{scale:g}__{fn}__{precision}"
            if f"{key}__vjp" in wide:
                part = {name: wide[f"{key}__{name}"] for name in ("p", "vjp")}
                part |= {"X": wide["base"] * scale, "cot": wide["cot"]}
                part["support"] = wide[f"{key}__support"][:, None]
                found.append(part)
        return found

    return cases


@pytest.mark.parametrize("precision", ["f64", "f32"])
@pytest.mark.parametrize("fn", MAPS)
def test_golden(fn, precision, golden_cases, x64):
    alpha, dtype = MAPS[fn], {"f64": np.float64, "f32": np.float32}[precision]
    cases = golden_cases(fn, precision)
    width = max(case["X"].shape[1] for case in cases)
    (x, real), (cot, _) = stack(cases, "X", width), stack(cases, "cot", width)

    x, cot = x.astype(dtype), cot.astype(dtype)
    p, vjp = value_and_vjp(alpha)(x, cot, real)
    assert p.dtype == vjp.dtype == dtype
    expected, slope = stack(cases, "p", width)[0], stack(cases, "vjp", width)[0]
    if precision == "f32":
        # In float32 the reference itself is off by up to 4e-5; there the exact result stands in.
        exact = oracles.entmax(np.where(real, x, -np.inf), alpha)
        far = np.abs(expected - exact).max(-1) > 5e-7
        expected[far] = exact[far]
        for row in np.nonzero(far)[0]:
            slope[row] = oracles.jacobian(exact[row], alpha) @ cot[row]
    atol = {"f64": 1e-10, "f32": 1e-6}[precision]
    np.testing.assert_allclose(p, expected, rtol=0, atol=atol)
    atol, rtol = {"f64": (1e-10, 0), "f32": (1e-5, 1e-5)}[precision]
    if alpha == 3:
        # J holds 1 / p: an error of p, such as the 1e-13 of the reference's own bisection, grows by
        # 1 / p ** 2.
        smallest = np.where(p > 0, p, np.inf).min(-1, keepdims=True)
        atol = atol * np.maximum(1, {"f64": 0.01, "f32": 0.1}[precision] / smallest**2)
    assert np.max(np.abs(np.asarray(vjp) - slope) - atol - rtol * np.abs(slope)) <= 0
    np.testing.assert_array_equal((p > 0).sum(-1), stack(cases, "support", 1)[0][:, 0])


def assert_same(p, q, alpha):
    """Equal but for rounding in float32.

    Above alpha = 2 p is a root of what exceeds the threshold, infinitely steep where an entry
    enters: there rounding of the logits shows in p ** (alpha - 1), not in p. What it changes in the
    smallest entry the others make up for, so that they sum to 1.
    """
    p, q = np.asarray(p, np.float64), np.asarray(q, np.float64)
    power, bound = max(alpha - 1, 1), 5e-6
    if alpha > 2:
        smallest = np.where(p > 0, p, 1).min(-1, keepdims=True)
        moved = np.minimum(2.0**-22 * smallest ** (2 - alpha) / power, 2.0**-11)
        bound = bound + power * moved
    assert (np.abs(p**power - q**power) <= bound).all(), (p, q)


@pytest.mark.parametrize("alpha", ALPHAS)
@hypothesis.given(z=logits())
def test_on_simplex_and_equal_to_oracle(alpha, z):
    p = np.asarray(compiled(alpha)(z))
    assert (p >= 0).all()
    np.testing.assert_allclose(p.sum(-1), 1, rtol=0, atol=5e-7)
    assert_same(p, oracles.entmax(z, alpha), alpha)


@pytest.mark.parametrize("alpha", [1.25, 1.5, 2.0])
@hypothesis.given(z=logits(), data=st.data())
def test_permutation_and_shift(alpha, z, data):
    order = data.draw(st.permutations(range(SHAPE[1])))
    p = compiled(alpha)(z)
    np.testing.assert_allclose(compiled(alpha)(z[:, order]), p[:, np.array(order)], atol=5e-7)
    # A power of two added to multiples of 2 ** -10 is exact, so the shift itself rounds nothing.
    coarse = np.round(z * 1024) / 1024
    np.testing.assert_allclose(compiled(alpha)(coarse + 64), compiled(alpha)(coarse), atol=5e-7)


@pytest.mark.parametrize("alpha", [1.5, 2.0])
@hypothesis.given(z=logits(-3, 3))
def test_support_grows_with_temperature(alpha, z):
    sizes = [(compiled(alpha)(z / tau) > 1e-6).sum(-1) for tau in (0.5, 1.0, 2.0, 4.0)]
    assert (np.diff(np.array(sizes), axis=0) >= 0).all()


@pytest.mark.parametrize("alpha", [1.25, 1.5, 2.0, 3.0])
@hypothesis.given(z=logits())
@hypothesis.example(z=np.array([[0, 0, 0, 0, 0, 0.005, 0.5]], np.float32))
def test_methods_agree(alpha, z):
    methods = ["newton", "bisect"] + ["sort"] * (alpha in (1.5, 2))
    values = [compiled(alpha, method)(z) for method in methods]
    for value in values[1:]:
        assert_same(value, values[0], alpha)


@pytest.mark.parametrize("alpha", [1.5, 2.0])
@pytest.mark.parametrize("k", [1, 3, 40])
def test_partial_sort_is_exact(alpha, k):
    z = np.random.default_rng(0).normal(size=(6, 30)).astype(np.float32) * 0.2
    p = sparse.entmax(z, alpha, k=k)  # supports of 5 to 30: k = 1 and 3 have to grow
    np.testing.assert_allclose(p, oracles.entmax(z, alpha), atol=1e-6)


def test_sparsemax_of_geometric_rows_converges():
    # Michelot's iteration drops one entry a step here; the bracket bounds the steps.
    z = -(1.5 ** np.arange(60, dtype=np.float64))[None] * 1e-9
    p = sparse.sparsemax(z.astype(np.float32))
    np.testing.assert_allclose(p, oracles.entmax(z, 2), atol=1e-6)


@pytest.mark.parametrize(("rows", "n"), [(7, 40_000), (300, 1000)])
def test_blocks_of_rows_change_nothing(rows, n):
    z = np.random.default_rng(1).normal(size=(rows, n)).astype(np.float32)
    p = sparse.sparsemax(z)
    some = [0, rows // 2, rows - 1]
    np.testing.assert_allclose(p[np.array(some)], oracles.entmax(z[some], 2), atol=1e-6)
    np.testing.assert_allclose(p.sum(-1), 1, atol=1e-6)


@pytest.mark.parametrize("alpha", [1.25, 1.5, 2.0])
@pytest.mark.parametrize("n", [512, 700])
def test_long_rows(alpha, n):
    """Long rows start from the maxima of groups: few large entries, many, ties, -inf."""
    rng = np.random.default_rng(0)
    z = rng.normal(size=(10, n)) * np.geomspace(1e-4, 30, 10)[:, None]
    z = np.concatenate([z, np.repeat(z[-1:], 3, 0), np.zeros((1, n))])
    z[-4, : n // 2] = -np.inf
    z[-3, 1:] = -np.inf
    z[-2] = np.sort(z[-2])  # the largest entries together, some behind the last whole group
    z = z.astype(np.float32)
    p = jax.jit(lambda z: sparse.entmax(z, alpha))(z)
    oracle = jax.jit(lambda z: sparse.entmax(z, alpha, method="bisect"))(z)
    np.testing.assert_allclose(p, oracle, atol=1e-6)
    np.testing.assert_allclose(p.sum(-1), 1, atol=1e-6)


# Rows whose sum of p jumps past the tolerance between neighbouring float32 numbers, some of them in
# both directions: a search that waits for its residual alone never ends on these.
@pytest.mark.parametrize(("alpha", "tolerance"), [(2.0, 1e-5), (3.0, 1e-3)])
@pytest.mark.parametrize("support", [276, 1000])
def test_wide_supports_end(alpha, tolerance, support, x64):
    rng = np.random.default_rng(0)
    z = np.full((2048, 2048), -2.0, np.float32)
    spread = 1 + 0.01 * rng.normal(size=(len(z), support))
    z[:, :support] = -rng.uniform(0.01, 0.1, (len(z), 1)) * spread
    z[:, 0] = 0
    exact = compiled(alpha)(z[:64].astype(np.float64))
    p = np.asarray(compiled(alpha)(z))
    assert p.dtype == np.float32
    np.testing.assert_allclose(p.sum(1), 1, atol=1e-5)
    np.testing.assert_allclose(p[:64], exact, atol=tolerance * np.max(exact))


@pytest.mark.parametrize("alpha", ALPHAS)
@pytest.mark.parametrize("scale", [1e-30, 1e-6, 1e5, 1e30])
def test_magnitudes(alpha, scale):
    z = np.zeros(SHAPE, np.float32)
    z[0, :4] = [3.0, 1.0, 1.0, -2.0]
    z[1] = 0.5
    z = z * np.float32(scale)
    p = compiled(alpha)(z)
    np.testing.assert_allclose(p, oracles.entmax(z, alpha), atol=1e-6)
    np.testing.assert_allclose(p.sum(-1), 1, atol=3e-7)


@pytest.mark.parametrize("alpha", ALPHAS)
def test_corners(alpha):
    z = np.full(SHAPE, -np.inf, np.float32)
    z[0, [1, 4]] = [1.0, 0.9]
    z[1, 2] = -5.0  # a single entry
    z[2] = 2.0  # ties
    z[3, 0] = np.nan
    p = np.asarray(compiled(alpha)(z))
    np.testing.assert_allclose(p[0, [1, 4]], oracles.entmax(z[0, [1, 4]], alpha), atol=1e-6)
    assert p[0, [0, 2, 3, 5, 6]].tolist() == [0] * 5
    assert p[1].tolist() == [0, 0, 1, 0, 0, 0, 0]
    np.testing.assert_allclose(p[2], 1 / 7, atol=1e-7)
    assert np.isnan(p[3]).any()  # its own row alone
    assert p[4].tolist() == [0] * 7  # nothing but -inf


def test_one_entry():
    for alpha in (1.0, 1.5, 3.0):
        assert sparse.entmax(np.float32([[7.0], [-3.0]]), alpha).tolist() == [[1.0], [1.0]]


@pytest.mark.parametrize("alpha", [1.0, 1.25, 2.0])
def test_empty_rows_are_zero_with_zero_gradient(alpha):
    z = np.array([[1.0, 2.0], [3.0, 4.0]], np.float32)
    kept = np.array([[True, True], [False, False]])

    def total(z):
        p = sparse.entmax(z, alpha, where=kept)
        return (p * jnp.arange(2.0)[None]).sum(), p

    (_, p), slope = jax.jit(jax.value_and_grad(total, has_aux=True))(z)
    np.testing.assert_array_equal(p[1], [0, 0])
    np.testing.assert_array_equal(slope[1], [0, 0])
    assert np.isfinite(slope).all()


def test_row_of_minus_infinity():
    z = np.array([[-np.inf, -np.inf], [0.0, 1.0]], np.float32)
    with pytest.raises(ValueError, match="no finite entry"):
        sparse.sparsemax(z)
    np.testing.assert_array_equal(jax.jit(sparse.sparsemax)(z)[0], [0, 0])
    assert jax.jit(lambda z: sparse.threshold(z, 2.0))(z)[0] == np.inf


@pytest.mark.parametrize("dtype", [jnp.bfloat16, jnp.float16])
def test_half_precision_computes_in_float32(dtype):
    z = jnp.asarray(np.random.default_rng(2).normal(size=(4, 500)), dtype)
    p = sparse.entmax15(z)
    assert p.dtype == dtype
    exact = sparse.entmax15(z.astype(jnp.float32))
    np.testing.assert_array_equal(p, exact.astype(dtype))


def test_integers_give_float32():
    assert sparse.sparsemax(np.array([1, 2, 3])).dtype == jnp.float32


@pytest.mark.parametrize("axis", [0, 1, 2, -1, -2, -3])
def test_axis(axis):
    z = np.random.default_rng(3).normal(size=(2, 3, 4)).astype(np.float32)
    expected = np.moveaxis(oracles.entmax(np.moveaxis(z, axis, -1), 1.5), -1, axis)
    np.testing.assert_allclose(sparse.entmax15(z, axis=axis), expected, atol=1e-6)


def test_alpha_per_head():
    z = np.random.default_rng(4).normal(size=(2, 3, 4, 6)).astype(np.float32)
    alpha = np.array([1.0, 1.5, 2.2], np.float32)[:, None, None]
    p = sparse.entmax(z, alpha)
    for head in range(3):
        expected = oracles.entmax(z[:, head], float(alpha[head, 0, 0]))
        np.testing.assert_allclose(p[:, head], expected, atol=2e-6)
    turned = sparse.entmax(np.moveaxis(z, -1, 0), alpha.reshape(1, 1, 3, 1), axis=0)
    np.testing.assert_allclose(np.moveaxis(turned, 0, -1), p, atol=1e-6)


def test_limit_at_one_is_softmax():
    z = np.random.default_rng(5).normal(size=(4, 9)).astype(np.float32) * 3
    soft = jax.nn.softmax(z)
    np.testing.assert_allclose(sparse.entmax(z, 1), soft, atol=3e-7)
    traced = jax.jit(sparse.entmax)
    np.testing.assert_allclose(traced(z, np.float32(1)), soft, atol=3e-7)
    np.testing.assert_allclose(traced(z, np.float32(1.00001)), soft, atol=1e-4)


# The rows stay away from the points where an entry enters the support: there the map has a kink.
SMOOTH = np.random.default_rng(6).normal(size=(3, 6))


@pytest.mark.parametrize("alpha", ALPHAS)
def test_derivatives_against_finite_differences(alpha, x64):
    def f(z):
        return sparse.entmax(z, alpha)

    h = 1e-5
    forward, reverse = jax.jit(lambda z: (jax.jacfwd(f)(z), jax.jacrev(f)(z)))(SMOOTH)
    np.testing.assert_allclose(forward, reverse, atol=1e-12)
    value = jax.jit(f)
    for index in np.ndindex(SMOOTH.shape):
        step = np.zeros_like(SMOOTH)
        step[index] = h
        numeric = (value(SMOOTH + step) - value(SMOOTH - step)) / (2 * h)
        np.testing.assert_allclose(forward[(..., *index)], numeric, atol=1e-7)
    for row in range(len(SMOOTH)):
        written = oracles.jacobian(oracles.entmax(SMOOTH, alpha)[row], alpha)
        np.testing.assert_allclose(forward[row, :, row], written, atol=1e-9)


@pytest.mark.parametrize("alpha", [1.0, 1.5, 2.0])
def test_second_derivatives(alpha, x64):
    cot = np.random.default_rng(7).normal(size=SMOOTH.shape)

    def f(z):
        return (cot * sparse.entmax(z, alpha)).sum()

    twice = jax.jit(lambda z: (jax.hessian(f)(z), jax.jacrev(jax.jacrev(f))(z)))
    hessian, double = twice(SMOOTH)
    np.testing.assert_allclose(hessian, double, atol=1e-10)
    h, slope = 1e-5, jax.jit(jax.grad(f))
    for index in np.ndindex(SMOOTH.shape):
        step = np.zeros_like(SMOOTH)
        step[index] = h
        numeric = (slope(SMOOTH + step) - slope(SMOOTH - step)) / (2 * h)
        np.testing.assert_allclose(hessian[(..., *index)], numeric, atol=1e-6)


@functools.cache
def by_alpha():
    """Compiled once for all alpha: the map and its derivative, forward and reverse."""

    def f(alpha):
        return sparse.entmax(SMOOTH, alpha)

    return jax.jit(f), jax.jit(jax.jacfwd(f)), jax.jit(jax.jacrev(f))


@pytest.mark.parametrize("alpha", [1.0, 1.0001, 1.3, 1.5, 1.9, 2.5])
def test_gradient_in_alpha(alpha, x64):
    f, forward, reverse = by_alpha()
    forward, reverse = forward(alpha), reverse(alpha)
    np.testing.assert_allclose(forward, reverse, atol=1e-12)
    if alpha == 1:  # alpha below 1 does not exist: a one-sided difference of second order
        h = 1e-4
        numeric = (4 * f(alpha + h) - f(alpha + 2 * h) - 3 * f(alpha)) / (2 * h)
    else:
        h = 1e-6 if alpha > 1.001 else 1e-5
        numeric = (f(alpha + h) - f(alpha - h)) / (2 * h)
    np.testing.assert_allclose(forward, numeric, atol=1e-6)


def test_transformations_agree():
    z = np.random.default_rng(8).normal(size=(8, 3, 5)).astype(np.float32)

    @jax.jit
    def f(z):
        return sparse.entmax15(z) ** 2

    expected = f(z)
    np.testing.assert_allclose(jax.vmap(f)(z), expected, atol=1e-7)
    np.testing.assert_allclose(jax.vmap(f, in_axes=1, out_axes=1)(z), expected, atol=1e-7)
    scanned = jax.lax.scan(lambda carry, row: (carry, f(row)), 0, z)[1]
    np.testing.assert_allclose(scanned, expected, atol=1e-7)

    def slope(f):
        return jax.jit(jax.grad(lambda z: (f(z) * jnp.cos(z)).sum()))(z)

    np.testing.assert_allclose(slope(jax.checkpoint(f)), slope(f), atol=1e-7)
    mesh = jax.sharding.Mesh(np.array(jax.devices()), ("rows",))
    spec = PartitionSpec("rows")
    for alpha in (1.5, 3.0):
        g = functools.partial(sparse.entmax, alpha=alpha)
        sharded = jax.jit(jax.shard_map(g, mesh=mesh, in_specs=spec, out_specs=spec))
        np.testing.assert_allclose(sharded(z), g(z), atol=1e-6)
        slopes = [jax.jit(jax.grad(lambda z, f=f: (f(z) ** 2).sum()))(z) for f in (g, sharded)]
        np.testing.assert_allclose(*slopes, atol=1e-5)


def test_one_trace_per_shape():
    traces = []

    @jax.jit
    def f(z):
        traces.append(z.shape)
        return sparse.sparsemax(z)

    for seed in range(3):
        f(np.random.default_rng(seed).normal(size=(2, 3)))
    assert len(traces) == 1


@pytest.mark.parametrize("alpha", [1.0, 1.25, 1.5, 3.0])
def test_threshold_and_support_size(alpha, x64):
    z = np.random.default_rng(9).normal(size=(4, 6)) * 2
    p, eta = sparse.entmax(z, alpha), np.asarray(sparse.threshold(z, alpha))[:, None]
    if alpha == 1:
        expected = np.exp(z - eta)
    else:
        expected = np.maximum((alpha - 1) * z - eta, 0) ** (1 / (alpha - 1))
    np.testing.assert_allclose(expected, p, atol=1e-12)
    sizes = sparse.support_size(z, alpha)
    assert sizes.dtype == jnp.int32
    np.testing.assert_array_equal(sizes, (oracles.entmax(z, alpha) > 0).sum(-1))
    # The probabilities keep their sum when the logits move: each row's slope sums to alpha - 1.
    slope = jax.jit(jax.grad(lambda z: sparse.threshold(z, alpha).sum()))(z)
    np.testing.assert_allclose(slope.sum(-1), alpha - 1 if alpha > 1 else 1, atol=1e-10)


def test_normmax(x64):
    z, order = np.random.default_rng(10).normal(size=(3, 6)), np.array([[1.2], [2.0], [5.0]])
    f = jax.jit(sparse.normmax)
    expected = [oracles.normmax(row, a) for row, a in zip(z, order[:, 0], strict=True)]
    np.testing.assert_allclose(f(z, order), expected, atol=1e-12)
    np.testing.assert_allclose(sparse.normmax(z, 2.0)[1], expected[1], atol=1e-12)
    check_grads(f, (z, order), 1, atol=1e-6, rtol=1e-6)


def test_normmax_of_infinite_order_is_uniform_on_its_support():
    p = np.asarray(sparse.normmax(np.array([3.0, 2.9, 2.8, 0.0], np.float32), np.inf))
    np.testing.assert_allclose(p, [1 / 3, 1 / 3, 1 / 3, 0], atol=1e-7)


@pytest.mark.parametrize("total", [1.0, 2.0, 3.7, 6.0])
def test_budget(total, x64):
    z = np.random.default_rng(11).normal(size=(4, 6))
    p = sparse.budget(z, total)
    np.testing.assert_allclose(p, [oracles.budget(row, total) for row in z], atol=1e-12)
    np.testing.assert_allclose(p.sum(-1), total, atol=1e-12)
    # A whole budget can be met by ones alone; more and less of it then have different slopes.
    given = () if total == round(total) else (total,)
    f = jax.jit(lambda z, b=total: sparse.budget(z, b))
    check_grads(f, (z, *given), 1, atol=1e-6, rtol=1e-6)
    if total == 1:
        np.testing.assert_allclose(p, sparse.sparsemax(z), atol=1e-12)


def test_budget_corners():
    z = np.array([[1e30, 0.0, -1e30], [2.0, 2.0, 2.0], [0.0, -np.inf, 1.0]], np.float32)
    p = jax.jit(lambda z: sparse.budget(z, 2.0))(z)
    np.testing.assert_allclose(p[0], [1, 1, 0])
    np.testing.assert_allclose(p[1], 2 / 3, rtol=1e-6)
    np.testing.assert_array_equal(p[2], [1, 0, 1])
    kept = np.zeros((3, 3), bool)
    np.testing.assert_array_equal(sparse.budget(z, 2.0, where=kept), np.zeros((3, 3)))


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda z: sparse.entmax(z, 0.0), "alpha is above 0 and at most 4, not 0.0"),
        (lambda z: sparse.entmax(z, 10), "alpha is above 0 and at most 4, not 10"),
        (lambda z: sparse.entmax(z, jnp.array(np.nan)), "alpha is above 0 and at most 4, not nan"),
        (lambda z: sparse.sparsemax(z, where=np.zeros(4)), "where is boolean"),
        (lambda z: sparse.sparsemax(z, where=np.ones((3, 4), bool)), "where of shape"),
        (lambda z: sparse.sparsemax(z, axis=2), "axis 2 is out of range for z of shape"),
        (lambda z: sparse.sparsemax(z, axis=(0, -2)), "names an axis of z of shape .2, 4. twice"),
        (lambda z: sparse.sparsemax(z, scale=0.0), "scale is above 0, not 0.0"),
        (lambda z: sparse.budget(z, 1.0, upper=-1.0), "upper is positive"),
        (lambda z: sparse.sparse_simplex(z, 0), "at least 1, not 0"),
        (lambda z: sparse.entmax(z, 1.5, method="fast"), "method is one of auto, sort"),
        (lambda z: sparse.entmax(z, 1.3, method="sort"), "needs alpha 1.5 or 2"),
        (lambda z: sparse.entmax(z, 1.5, method="bisect", k=3), "k belongs to method='sort'"),
        (lambda z: sparse.entmax(z, 1.5, k=0), "at least 1, not 0"),
        (lambda z: sparse.entmax(z, np.ones(3)), "does not broadcast to"),
        (lambda z: sparse.entmax(z[:, :0], 1.5), "at least one entry"),
        (lambda z: sparse.normmax(z, 1.0), "above 1 as the order of a norm, not 1.0"),
        (lambda z: sparse.budget(z, 0.0), "positive, not 0.0"),
    ],
)
def test_errors(call, message):
    with pytest.raises(ValueError, match=message):
        call(np.zeros((2, 4), np.float32))


def test_import_pulls_in_jax_alone():
    code = (
        "import sys, jax; before = set(sys.modules); import jaxcold.sparse;"
        "print(*{name.partition('.')[0] for name in set(sys.modules) - before})"
    )
    found = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    heavy = {"flax", "optax", "pandas", "scipy", "sklearn", "orbax", "matplotlib", "absl"}
    assert "jaxcold" in found.stdout.split()
    assert not heavy & set(found.stdout.split())
