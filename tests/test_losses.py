"""The Fenchel-Young losses: golden parity, properties, derivatives, ignored rows."""

import functools

import hypothesis
import jax
import jax.numpy as jnp
import numpy as np
import oracles
import pytest
from hypothesis import strategies as st

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
PRECISION = {"f64": np.float64, "f32": np.float32}
ROWS, CLASSES = 4, 6


@functools.cache
def value_and_slope(alpha, gradient="fenchel_young"):
    """Compiled: losses and their gradient in the logits; keywords are arrays."""

    @jax.jit
    def both(z, target, tau=1.0, **options):
        def total(z):
            loss = sparse.fenchel_young_loss(
                z, target, alpha, tau=tau, gradient=gradient, **options
            )
            return loss.sum(), loss

        slope, loss = jax.grad(total, has_aux=True)(z)
        return loss, slope

    return both


def distribution(seed, shape=(ROWS, CLASSES)):
    return oracles.entmax(np.random.default_rng(seed).normal(size=shape), 1.5)


@pytest.mark.parametrize("precision", PRECISION)
@pytest.mark.parametrize("fn", MAPS)
def test_golden(fn, precision, golden, x64):
    fixture, alpha, dtype = golden("semco/entmax"), MAPS[fn], PRECISION[precision]
    # Every case in one batch of 64 columns: one compilation.
    cases = [key[: -len("__X")] for key in fixture if key.endswith("__X")]
    x = [fixture[f"{case}__X"] for case in cases]
    logits = np.zeros((sum(map(len, x)), 64), dtype)
    kept, slopes = np.zeros(logits.shape, bool), np.zeros(logits.shape)
    at = 0
    for case, rows in zip(cases, x, strict=True):
        part = np.s_[at : at + len(rows), : rows.shape[1]]
        logits[part], kept[part] = rows, True
        slopes[part] = fixture[f"{case}__{fn}__{precision}__lossgrad"]
        at += len(rows)
    labels = np.concatenate([fixture[f"{case}__target"] for case in cases])
    expected = np.concatenate([fixture[f"{case}__{fn}__{precision}__loss"] for case in cases])
    loss, slope = value_and_slope(alpha)(logits, labels, where=kept)
    assert loss.dtype == slope.dtype == dtype
    assert np.isfinite(loss).all()
    finite = np.isfinite(expected)  # the reference gives NaN wherever a logit is -inf
    if precision == "f32":
        # It also cancels digits in float32; where that shows, the exact value stands in.
        onehot = np.eye(64)[labels]
        low = np.where(kept & np.isfinite(logits), logits, -1e6).astype(np.float64)
        exact = oracles.fenchel_young(low, onehot, alpha)
        off = np.abs(expected - exact) > 5e-7 * (1 + np.abs(exact))
        expected = np.where(off, exact, expected)
        exact = oracles.entmax(low, alpha) - onehot
        slopes = np.where(np.abs(slopes - exact) > 5e-6, exact, slopes)
    atol, rtol = {"f64": (1e-10, 1e-12), "f32": (1e-6, 2e-6)}[precision]
    np.testing.assert_allclose(loss[finite], expected[finite], atol=atol, rtol=rtol)
    np.testing.assert_allclose(slope, slopes, rtol=0, atol={"f64": 1e-10, "f32": 1e-5}[precision])


@pytest.mark.parametrize("scale", ["0.01", "1", "10", "100"])
def test_golden_wide(scale, golden, x64):
    fixture = golden("semco/entmax_2048")
    z = fixture["base"] * float(scale)
    for fn in ("sparsemax", "entmax15"):
        loss, _ = value_and_slope(MAPS[fn])(z, fixture["target"])
        np.testing.assert_allclose(loss, fixture[f"s{scale}__{fn}__f64__loss"], atol=1e-10)
        loss, _ = value_and_slope(MAPS[fn])(z.astype(np.float32), fixture["target"])
        expected = fixture[f"s{scale}__{fn}__f32__loss"]
        np.testing.assert_allclose(loss, expected, atol=1e-6, rtol=2e-6)


@pytest.mark.parametrize("precision", PRECISION)
@pytest.mark.parametrize("tau", ["0.5", "2.5", "12"])
@pytest.mark.parametrize("fn", ["sparsemax", "entmax15"])
def test_golden_temperature(fn, tau, precision, golden, x64):
    fixture, key = golden("semco/semco_loss"), f"sem__{fn}__tau{tau}__{precision}"
    dtype = PRECISION[precision]
    z = fixture[f"{key}__z"].astype(dtype)
    labels, tau = np.arange(len(z)), np.asarray(float(tau), dtype)
    atol = {"f64": 1e-12, "f32": 1e-6}[precision]
    loss, slope = value_and_slope(MAPS[fn], "autodiff")(z, labels, tau)
    np.testing.assert_allclose(loss.mean(), fixture[f"{key}__loss"], atol=atol, rtol=2e-6)
    np.testing.assert_allclose(slope / len(z), fixture[f"{key}__grad_z_autograd"], atol=atol)
    _, slope = value_and_slope(MAPS[fn])(z, labels, tau)
    np.testing.assert_allclose(slope / len(z), fixture[f"{key}__grad_z_fy"], atol=atol)


@pytest.mark.parametrize("fn", ["sparsemax", "entmax15"])
@pytest.mark.parametrize("omega", ["0.5", "2", "12"])
def test_golden_distribution_targets(fn, omega, golden, x64):
    fixture, key = golden("semco/semco_loss"), f"distil__{fn}__omega{omega}__f64"
    target = fixture[f"{key}__e_y"]
    features = fixture["student_feats"]

    def total(features):
        z = (features @ features.T) * (1 - np.eye(len(features))) - np.eye(len(features))
        z = z / float(omega)
        return sparse.fenchel_young_loss(z, target, MAPS[fn], gradient="autodiff").mean()

    loss, slope = jax.jit(jax.value_and_grad(total))(features)
    np.testing.assert_allclose(loss, fixture[f"{key}__loss"], atol=1e-12)
    np.testing.assert_allclose(slope, fixture[f"{key}__grad_student"], atol=1e-12)


@pytest.mark.parametrize("autodiff", [False, True])
@pytest.mark.parametrize("alpha", [1.0, 1.25, 1.5, 2.0, 3.0])
def test_values_by_definition(alpha, autodiff, x64):
    z, t, tau = np.random.default_rng(0).normal(size=(ROWS, CLASSES)), distribution(1), 1.7
    both = value_and_slope(alpha, "autodiff" if autodiff else "fenchel_young")
    labels = np.arange(ROWS)
    expected = oracles.fenchel_young(z, np.eye(CLASSES)[labels], alpha, tau, autodiff)
    np.testing.assert_allclose(both(z, labels, tau)[0], expected, atol=1e-12)
    expected = oracles.fenchel_young(z, t, alpha, tau, autodiff)
    loss, slope = both(z, t, tau)
    np.testing.assert_allclose(loss, expected, atol=1e-12)
    if not autodiff:
        np.testing.assert_allclose(slope, oracles.entmax(z / tau, alpha) - t, atol=1e-12)


def test_alpha_one_is_cross_entropy():
    z = np.random.default_rng(2).normal(size=(ROWS, CLASSES)).astype(np.float32) * 4
    labels = np.arange(ROWS)
    loss, slope = value_and_slope(1.0)(z, labels)
    log_p = jax.nn.log_softmax(z)
    np.testing.assert_allclose(loss, -log_p[labels, labels], atol=1e-6)
    np.testing.assert_allclose(slope, np.exp(log_p) - np.eye(CLASSES)[labels], atol=1e-6)


@pytest.mark.parametrize("alpha", [1.0, 1.5, 2.0])
@hypothesis.settings(max_examples=20, deadline=None)
@hypothesis.given(data=st.data())
def test_never_negative(alpha, data):
    size = ROWS * CLASSES
    values = data.draw(st.lists(st.floats(-20, 20, width=32), min_size=size, max_size=size))
    z = np.array(values, np.float32).reshape(ROWS, CLASSES)
    labels = np.array(data.draw(st.lists(st.integers(0, 5), min_size=ROWS, max_size=ROWS)))
    loss, slope = value_and_slope(alpha)(z, labels)
    assert (loss >= -2e-6).all()
    onehot = np.eye(CLASSES)[labels]
    np.testing.assert_allclose(slope, oracles.entmax(z, alpha) - onehot, atol=3e-6)


@pytest.mark.parametrize("alpha", [1.0, 1.25, 1.5, 2.0, 3.0])
def test_zero_at_the_target(alpha):
    z = np.random.default_rng(3).normal(size=(ROWS, CLASSES)).astype(np.float32)
    target = jax.jit(sparse.entmax, static_argnums=1)(z, alpha)
    loss, slope = value_and_slope(alpha)(z, target)
    # Two compiled programs may round p differently in its last bit.
    np.testing.assert_allclose(loss, 0, atol=2e-7)
    np.testing.assert_allclose(slope, 0, atol=2e-7)
    far = np.where(np.eye(ROWS, CLASSES) == 1, 2e5, -1e5).astype(np.float32)
    loss, slope = value_and_slope(alpha)(far, np.arange(ROWS))
    np.testing.assert_array_equal(loss, 0)
    np.testing.assert_array_equal(slope, 0)


@pytest.mark.parametrize("alpha", [1.0, 1.5, 2.0])
def test_large_logits_are_finite(alpha):
    z = np.array([[1e5, -1e5, 0.0], [1e30, 0.0, -1e30]], np.float32)
    loss, slope = value_and_slope(alpha)(z, np.array([1, 2]))
    np.testing.assert_allclose(loss, [2e5, 2e30], rtol=1e-5)
    np.testing.assert_array_equal(slope, [[1, -1, 0], [1, 0, -1]])


def test_ignored_rows():
    z = np.random.default_rng(4).normal(size=(5, CLASSES)).astype(np.float32)
    kept = np.ones((5, CLASSES), bool)
    kept[2, 2] = kept[3] = False
    labels = np.array([0, -100, 2, 3, 4])
    weights = np.array([2.0, 1.0, 1.0, 1.0, 0.0], np.float32)
    loss, slope = value_and_slope(1.5)(z, labels, where=kept, weights=weights)
    alone, alone_slope = value_and_slope(1.5)(z, labels)
    np.testing.assert_allclose(loss, [2 * alone[0], 0, 0, 0, 0], rtol=1e-6)
    np.testing.assert_allclose(slope[0], 2 * alone_slope[0], rtol=1e-5, atol=1e-7)
    np.testing.assert_array_equal(slope[1:], 0)


def test_weight_zero_hides_anything():
    z = np.array([[np.nan, 1.0], [-np.inf, -np.inf], [0.0, 1.0]], np.float32)
    weights = np.array([0, 0, 1], np.float32)
    loss, _ = value_and_slope(2.0)(z, np.array([0, 0, 1]), weights=weights)
    np.testing.assert_array_equal(loss, [0, 0, 0])


def test_impossible_and_unknown_labels():
    z = np.array([[-np.inf, 1.0], [0.0, 1.0]], np.float32)
    loss, slope = value_and_slope(2.0)(z, np.array([0, 2]))
    assert loss[0] == np.inf
    assert np.isnan(loss[1])
    np.testing.assert_array_equal(slope, [[-1, 1], [np.nan, np.nan]])


def test_masked_classes_do_not_count():
    z = np.random.default_rng(5).normal(size=(ROWS, CLASSES)).astype(np.float32)
    kept = np.arange(CLASSES) < 4
    loss, slope = value_and_slope(2.0)(z, np.arange(ROWS), where=kept[None])
    narrow, narrow_slope = value_and_slope(2.0)(z[:, :4], np.arange(ROWS))
    np.testing.assert_allclose(loss, narrow, atol=1e-6)
    np.testing.assert_allclose(slope[:, :4], narrow_slope, atol=1e-6)
    np.testing.assert_array_equal(slope[:, 4:], 0)


@pytest.mark.parametrize("axis", [0, 1, -2])
def test_axis(axis):
    z = np.random.default_rng(6).normal(size=(3, CLASSES, 2)).astype(np.float32)
    last = np.moveaxis(z, axis, -1)
    labels = np.random.default_rng(7).integers(0, last.shape[-1], last.shape[:-1])
    target = oracles.entmax(last, 1.5).astype(np.float32) * 0 + 1 / last.shape[-1]
    loss = sparse.entmax15_loss(z, labels, axis=axis)
    np.testing.assert_allclose(loss, sparse.entmax15_loss(last, labels), atol=1e-6)
    loss = sparse.sparsemax_loss(z, np.moveaxis(target, -1, axis), axis=axis)
    np.testing.assert_allclose(loss, sparse.sparsemax_loss(last, target), atol=1e-6)


@pytest.mark.parametrize("gradient", ["fenchel_young", "autodiff"])
@pytest.mark.parametrize(
    ("alpha", "labels"),
    [(1.0, True), (1.5, True), (2.0, True), (1.5, False), ("array", False)],
)
def test_derivatives_against_finite_differences(alpha, labels, gradient, x64):
    z = np.random.default_rng(8).normal(size=(2, 5))
    target = np.array([0, 3]) if labels else distribution(9, (2, 5))

    def loss(z, tau, a):
        used = a if alpha == "array" else alpha
        return sparse.fenchel_young_loss(z, target, used, tau=tau, gradient=gradient).sum()

    at = (z, np.float64(1.8), np.float64(1.6))
    value, slopes = jax.jit(loss), jax.jit(jax.grad(loss, (0, 1, 2)))
    tangent = (np.random.default_rng(10).normal(size=z.shape), 0.7, -0.4)
    forward = jax.jit(lambda *x: jax.jvp(loss, x, tangent)[1])(*at)
    h = 1e-5

    def along(sign):
        return [x + sign * h * step for x, step in zip(at, tangent, strict=True)]

    numeric = (value(*along(1)) - value(*along(-1))) / (2 * h)
    np.testing.assert_allclose(forward, numeric, atol=1e-8)
    reverse = sum((g * step).sum() for g, step in zip(slopes(*at), tangent, strict=True))
    np.testing.assert_allclose(reverse, forward, atol=1e-11)
    # Second order, in one direction: the change of the gradient.
    second = jax.jit(lambda *x: jax.jvp(jax.grad(loss, (0, 1, 2)), x, tangent)[1])(*at)
    plus, minus = slopes(*along(1)), slopes(*along(-1))
    for exact, up, down in zip(second, plus, minus, strict=True):
        np.testing.assert_allclose(exact, (up - down) / (2 * h), atol=1e-6)


def test_hessian_is_the_jacobian_of_the_map(x64):
    z = np.random.default_rng(11).normal(size=5)
    for alpha in (1.5, 2.0):
        hessian = jax.jit(jax.hessian(lambda z, a=alpha: sparse.entmax_loss(z, 1, a)))(z)
        expected = oracles.jacobian(oracles.entmax(z, alpha), alpha)
        np.testing.assert_allclose(hessian, expected, atol=1e-12)


def test_transformations_agree():
    z = np.random.default_rng(12).normal(size=(8, 3, CLASSES)).astype(np.float32)
    labels = np.random.default_rng(13).integers(0, CLASSES, (8, 3))

    def loss(z, labels):
        return sparse.fenchel_young_loss(z, labels, 1.5, tau=2.0, gradient="autodiff")

    loss = jax.jit(loss)
    expected = loss(z, labels)
    np.testing.assert_allclose(jax.vmap(loss)(z, labels), expected, atol=1e-6)
    scanned = jax.lax.scan(lambda c, x: (c, loss(*x)), 0, (z, labels))[1]
    np.testing.assert_allclose(scanned, expected, atol=1e-6)
    slope = jax.jit(jax.grad(lambda z: loss(z, labels).sum()))(z)
    again = jax.jit(jax.grad(lambda z: jax.checkpoint(loss)(z, labels).sum()))(z)
    np.testing.assert_allclose(again, slope, atol=1e-6)
    mesh = jax.sharding.Mesh(np.array(jax.devices()), ("rows",))
    spec = jax.sharding.PartitionSpec("rows")
    sharded = jax.shard_map(loss, mesh=mesh, in_specs=spec, out_specs=spec)
    np.testing.assert_allclose(jax.jit(sharded)(z, labels), expected, atol=1e-6)
    again = jax.jit(jax.grad(lambda z: sharded(z, labels).sum()))(z)
    np.testing.assert_allclose(again, slope, atol=1e-6)


def test_half_precision_gives_float32():
    z = jnp.asarray(np.random.default_rng(14).normal(size=(ROWS, CLASSES)), jnp.bfloat16)
    loss = sparse.sparsemax_loss(z, np.arange(ROWS))
    assert loss.dtype == jnp.float32
    exact = sparse.sparsemax_loss(z.astype(jnp.float32), np.arange(ROWS))
    np.testing.assert_array_equal(loss, exact)


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda z: sparse.fenchel_young_loss(z, np.zeros(3, int), 2.0), "labels have the shape"),
        (lambda z: sparse.fenchel_young_loss(z, np.ones(4), 2.0), "have the shape"),
        (lambda z: sparse.entmax_loss(z, np.zeros(4, int), -1), "alpha is above 0"),
        (lambda z: sparse.sparsemax_loss(z, np.zeros(4, int), tau=0.0), "tau is above 0, not 0.0"),
        (lambda z: sparse.sparsemax_loss(z, np.zeros(4, int), tau=np.ones(6)), "tau of shape"),
        (lambda z: sparse.sparsemax_loss(z, z + 0.1), "does not sum to 1"),
        (lambda z: sparse.sparsemax_loss(z, z > 0), "integer or floating, not bool"),
        (lambda z: sparse.normmax_loss(z, z + 0.1, 2.0), "does not sum to 1"),
        (lambda z: sparse.normmax_loss(z, np.zeros(4, int), 1.0), "finite and above 1"),
        (lambda z: sparse.sparsemax_loss(z, np.zeros(4, int), gradient="exact"), "'exact'"),
    ],
)
def test_errors(call, message):
    with pytest.raises(ValueError, match=message):
        call(np.zeros((4, CLASSES), np.float32))
