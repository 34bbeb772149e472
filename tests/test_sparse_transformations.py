"""Every public function of `jaxcold.sparse` through every transformation, at small shapes."""

import functools
import inspect
from typing import Any, NamedTuple

import jax
import jax.export
import jax.numpy as jnp
import numpy as np
import pytest

from jaxcold import sparse

Z = np.random.default_rng(0).normal(size=(2, 4)).astype(np.float32)
LABELS = np.array([1, 3])
W = np.random.default_rng(1).normal(size=(5, 4)).astype(np.float32)
TANGENT = np.random.default_rng(3).normal(size=Z.shape).astype(np.float32)
MASK = np.array([True, True, True, False])
KEYS = np.random.default_rng(2).normal(size=(3, 1, 4)).astype(np.float32)


class Case(NamedTuple):
    """A function of one array whose leading axis is the batch."""

    call: Any
    differentiable: bool = True
    forward: bool = True  # forward mode and second derivatives too
    is_sum: bool = False  # over the batch
    parameter: Any = None  # (value, x) -> result: a scalar argument, traced


def linear(f, **options):
    return lambda z, **more: f(z, W, jnp.arange(z.shape[0]) % 2, 1.5, **options, **more)


def attention(z, alpha):
    """Each row of z is the one query of its sequence."""
    keys = jnp.broadcast_to(KEYS.astype(z.dtype)[None], (z.shape[0], *KEYS.shape))
    return sparse.entmax_attention(z[:, None, None], keys, keys, alpha=alpha)[:, 0, 0]


CASES = {
    "entmax": Case(lambda z: sparse.entmax(z, 1.3), parameter=lambda a, z: sparse.entmax(z, a)),
    "sparsemax": Case(
        lambda z: sparse.sparsemax(z, where=MASK),
        parameter=lambda s, z: sparse.sparsemax(z, scale=s),
    ),
    "entmax15": Case(sparse.entmax15),
    "log_entmax": Case(
        lambda z: jnp.maximum(sparse.log_entmax(z, 1.3), -100),
        parameter=lambda a, z: jnp.maximum(sparse.log_entmax(z, a), -9),
    ),
    "threshold": Case(lambda z: sparse.threshold(z, 1.5)),
    "support_size": Case(lambda z: sparse.support_size(z, 1.5), differentiable=False),
    "normmax": Case(lambda z: sparse.normmax(z, 2.0), parameter=lambda a, z: sparse.normmax(z, a)),
    "budget": Case(lambda z: sparse.budget(z, 1.7), parameter=lambda b, z: sparse.budget(z, b)),
    "sparse_simplex": Case(lambda z: sparse.sparse_simplex(z, 2)),
    "entmax_sigmoid": Case(
        lambda z: sparse.entmax_sigmoid(z, 1.5), parameter=lambda a, z: sparse.entmax_sigmoid(z, a)
    ),
    "fenchel_young_loss": Case(
        lambda z: sparse.fenchel_young_loss(z, jnp.arange(z.shape[0]), 1.5, tau=0.8),
        parameter=lambda t, z: sparse.fenchel_young_loss(z, LABELS, 1.5, tau=t),
    ),
    "entmax_loss": Case(
        lambda z: sparse.entmax_loss(z, jnp.full_like(z, 0.25), 1.3),
        parameter=lambda a, z: sparse.entmax_loss(z, LABELS, a),
    ),
    "sparsemax_loss": Case(
        lambda z: sparse.sparsemax_loss(z, jnp.arange(z.shape[0]), where=MASK),
        parameter=lambda w, z: sparse.sparsemax_loss(z, LABELS, weights=w),
    ),
    "entmax15_loss": Case(
        lambda z: sparse.entmax15_loss(z, jnp.arange(z.shape[0]), tau=2.0, gradient="autodiff")
    ),
    "entmax_sigmoid_loss": Case(
        lambda z: sparse.entmax_sigmoid_loss(z, z > 0, 1.5).sum(-1),
    ),
    "normmax_loss": Case(
        lambda z: sparse.normmax_loss(z, jnp.arange(z.shape[0]), 2.0),
        parameter=lambda a, z: sparse.normmax_loss(z, LABELS, a),
    ),
    "linear_entmax_loss": Case(
        linear(sparse.linear_entmax_loss, bias=W[:, 0]),
        forward=False,
        parameter=lambda t, z: sparse.linear_entmax_loss(z, W, LABELS, 1.5, tau=t),
    ),
    "linear_softmax_loss": Case(
        lambda z: sparse.linear_softmax_loss(z, W, jnp.arange(z.shape[0]) % 2), forward=False
    ),
    "linear_entmax_sum": Case(
        linear(sparse.linear_entmax_sum, where=np.arange(5) < 4),
        forward=False,
        is_sum=True,
        parameter=lambda t, z: sparse.linear_entmax_sum(z, W.astype(z.dtype), LABELS, 1.5, tau=t),
    ),
    "entmax_attention": Case(lambda z: attention(z, 1.5), parameter=lambda a, z: attention(z, a)),
}

OPTIONS = {"xla_backend_optimization_level": 0}  # half the time of a compilation
each = pytest.mark.parametrize("name", CASES)
close = functools.partial(jax.tree.map, functools.partial(np.testing.assert_allclose, atol=2e-6))


def slope(case):
    """The gradient of a weighted sum of the results."""

    def total(z):
        out = case.call(z)
        return (out * jnp.cos(out)).sum()

    return jax.grad(total)


@functools.cache
def results(name):
    """All transformations in one program: one compilation, without optimisations, for each case.

    Traced under strict promotion, and with NaN checks when it runs.
    """
    case = CASES[name]
    both = both_of(case)

    def closed_over(x):
        out = case.call(jnp.asarray(Z))
        return out + (0 * x).astype(out.dtype)

    def everything(z, tangent):
        out = {"jit": both(z)}
        out["vmap"] = jax.vmap(both)(jnp.stack([z, z[::-1]]))
        out["scan"] = jax.lax.scan(lambda carry, z: (carry, both(z)), 0, z[None])[1]
        out["closed over"] = closed_over(z[0, 0])
        out["in a loop"] = jax.lax.fori_loop(0, 1, lambda i, c: closed_over(z[0, 0]), out["jit"][0])
        if case.differentiable:
            gradient = slope(case)
            out["remat"] = slope(case._replace(call=jax.checkpoint(case.call)))(z)
            if case.forward:
                out["jvp"] = jax.jvp(case.call, (z,), (tangent,))[1]
                out["forward over reverse"] = jax.jvp(gradient, (z,), (tangent,))[1]
                out["reverse over reverse"] = jax.grad(lambda z: (gradient(z) * tangent).sum())(z)
        return out

    with jax.numpy_dtype_promotion("strict"), jax.debug_nans(True):
        return jax.jit(everything, compiler_options=OPTIONS)(Z, TANGENT)


def both_of(case):
    return lambda z: (case.call(z), slope(case)(z) if case.differentiable else ())


def test_every_function_is_here():
    public = {name for name in sparse.__all__ if inspect.isfunction(getattr(sparse, name))}
    # It runs inside shard_map alone, where test_parallel and test_sparse_inputs have it.
    assert public - {"sharded_entmax_sum"} == set(CASES)


@each
def test_eager_equals_jit(name):
    case, want = CASES[name], results(name)["jit"]
    close(case.call(Z), want[0])
    if case.differentiable:
        close(slope(case)(Z), want[1])


@each
def test_transformations_agree(name):
    out = results(name)
    value, gradient = out["jit"]
    close(jax.tree.map(lambda a: a[0], out["vmap"]), out["jit"])
    close(jax.tree.map(lambda a: a[0], out["scan"]), out["jit"])
    close(out["closed over"], value)
    close(out["in a loop"], value)
    if CASES[name].differentiable:
        close(out["remat"], gradient)


@each
def test_forward_mode_and_second_derivatives(name):
    case, out = CASES[name], results(name)
    if not case.differentiable:
        return
    if not case.forward:
        with pytest.raises(TypeError):
            jax.jvp(case.call, (Z,), (Z,))
        return
    outer = np.cos(out["jit"][0]) - out["jit"][0] * np.sin(out["jit"][0])
    along = (out["jvp"] * outer).sum(), (out["jit"][1] * TANGENT).sum()
    np.testing.assert_allclose(*along, rtol=1e-4, atol=1e-5)
    second = out["forward over reverse"], out["reverse over reverse"]
    np.testing.assert_allclose(*second, rtol=1e-3, atol=1e-4)


@each
def test_nothing_is_read_while_shapes_are_found(name):
    """eval_shape, make_jaxpr and checkpoint of a function that closes over concrete logits."""

    def f(x):
        out = CASES[name].call(jnp.asarray(Z))
        return out + (0 * x).astype(out.dtype)

    shape = jax.eval_shape(f, jnp.float32(1)).shape
    assert jax.make_jaxpr(jax.checkpoint(f))(jnp.float32(1)).out_avals[0].shape == shape


@each
def test_without_jit(name):
    want = results(name)["jit"][0]
    with jax.disable_jit(), jax.debug_nans(True):  # together, as one hunts for a NaN
        got = CASES[name].call(jnp.asarray(Z))
    close(got, want)


@each
def test_export_with_a_symbolic_batch(name):
    (size,) = jax.export.symbolic_shape("b")
    case = CASES[name]
    f = both_of(case) if name.startswith("linear") else lambda z: (case.call(z),)
    exported = jax.export.export(jax.jit(f))(jax.ShapeDtypeStruct((size, 4), jnp.float32))
    for got, want in zip(exported.call(Z), results(name)["jit"], strict=False):
        close(got, want)
    if not case.is_sum:
        close(exported.call(np.concatenate([Z, Z]))[0][:2], results(name)["jit"][0])


@pytest.mark.parametrize("name", [name for name, case in CASES.items() if case.parameter])
def test_one_program_for_every_value_of_a_parameter(name, x64):
    """A traced number compiles once, and its gradient is that of finite differences."""
    traces = []

    def total(x, z):
        traces.append(x)
        out = CASES[name].parameter(x, z)
        return (out * jnp.cos(out)).sum()

    both = jax.jit(
        jax.value_and_grad(total), compiler_options={"xla_backend_optimization_level": 0}
    )
    z, at = Z.astype(np.float64), 1.6
    numeric = (both(at + 1e-6, z)[0] - both(at - 1e-6, z)[0]) / 2e-6
    np.testing.assert_allclose(both(at, z)[1], numeric, atol=1e-6, rtol=1e-6)
    assert len(traces) == 1
