"""Matrix products in bfloat16: near float32, with parameters and what is served in float32."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from test_parallel import DISTILLATION, SASREC, SEMCO, golden
from test_sasrec import circle
from test_semco import tiny

from jaxcold import parallel
from jaxcold.models import distillation, layers, sasrec, semco


def test_products_round_their_operands_and_sum_in_float32():
    x, y, g = (
        jax.random.normal(jax.random.key(n), shape)
        for n, shape in enumerate([(5, 700), (700, 3), (5, 3)])
    )
    halves = [np.asarray(a.astype(jnp.bfloat16), np.float64) for a in (x, y, g)]
    got, pull = jax.vjp(lambda x, y: layers.product(x, y, "bfloat16"), x, y)
    assert got.dtype == jnp.float32
    wanted = [halves[0] @ halves[1], halves[2] @ halves[1].T, halves[0].T @ halves[2]]
    for found, exact in zip([got, *pull(g)], wanted, strict=True):
        assert found.dtype == jnp.float32
        # Far less than rounding the sum to 8 bits would cost, 4e-3.
        np.testing.assert_allclose(found, exact, rtol=1e-4, atol=1e-4)
    np.testing.assert_array_equal(layers.product(x, y, "float32"), x @ y)


def build(name, compute, devices=parallel.ONE, **changes):
    if name == "sasrec":
        return sasrec.build(circle(), devices=devices, **SASREC | {"compute": compute} | changes)
    kind, options = semco, SEMCO
    if name == "semco_online":
        kind, options = distillation, DISTILLATION | {"online": True}
    options = {"epochs": 1, **options, "compute": compute, **changes}
    return kind.build(tiny(golden), devices=devices, **options)


def histories_of(name):
    return circle().test.history if name == "sasrec" else tiny(golden).split.train.by_user()


def first(model):
    """Mean losses of an epoch's first batch and their gradients, and fresh parameters for it."""
    batch = jax.tree.map(jnp.asarray, next(iter(model.batches(np.random.default_rng(0)))))
    params, model_state = model.init(0)

    @jax.jit
    def losses_and_gradients(params):
        value, gradients, state = jnp.zeros(()), {}, model_state
        for group, loss in model.losses.items():

            def mean(own, group=group, loss=loss, state=state):
                every = {**params, group: own}
                total, (weight, state, _) = loss(
                    every, state, model.constants, batch, jax.random.key(0)
                )
                return total / weight, state

            (of_group, state), gradients[group] = jax.value_and_grad(mean, has_aux=True)(
                params[group]
            )
            value += of_group
        return value, gradients

    return losses_and_gradients, params


@pytest.mark.parametrize(
    ("name", "changes"),
    [
        ("semco", {}),
        ("semco", {"encode": "active", "stream": True}),
        ("semco_online", {"ema": 0.5}),
        ("sasrec", {"alpha": 1.5}),
        ("sasrec", {"item_table": "random", "loss": "sampled", "negatives": 9}),
    ],
)
def test_the_gradient_is_near_that_of_float32(name, changes):
    (loss, rough), (exact_loss, exact) = (
        step(params)
        for step, params in (
            first(build(name, compute, **changes)) for compute in ("bfloat16", "float32")
        )
    )
    assert loss != exact_loss
    assert float(loss) == pytest.approx(float(exact_loss), rel=0.02)
    rough, exact = (
        np.concatenate([np.asarray(g, np.float64).ravel() for g in jax.tree.leaves(tree)])
        for tree in (rough, exact)
    )
    cosine = rough @ exact / np.sqrt((rough @ rough) * (exact @ exact))
    assert cosine > 0.995
    assert np.sqrt(rough @ rough) == pytest.approx(np.sqrt(exact @ exact), rel=0.05)


@pytest.mark.parametrize("name", ["semco", "semco_online", "sasrec"])
def test_only_products_in_training_are_rounded(name):
    model = build(name, "bfloat16")
    params, model_state = model.init(0)
    assert {leaf.dtype for leaf in jax.tree.leaves(params)} == {jnp.dtype("float32")}
    # What is served is computed in float32, from the same parameters the same.
    served, exact = (
        (items, of.encode_users(params, model_state, items, histories_of(name)))
        for of in (model, build(name, "float32"))
        for items in [of.encode_items(params, model_state)]
    )
    jax.tree.map(np.testing.assert_array_equal, served, exact)


def test_features_take_half_the_memory():
    held = [build("semco", compute).constants.features for compute in ("bfloat16", "float32")]
    for half, whole in zip(*held, strict=True):
        assert 2 * half.nbytes == whole.nbytes


@pytest.mark.parametrize("name", ["semco", "semco_online", "sasrec"])
def test_the_program_multiplies_in_half(name):
    step, params = first(build(name, "bfloat16"))
    lines = step.lower(params).as_text().splitlines()
    products = [line for line in lines if "dot_general" in line]
    exact = [line for line in products if "HIGHEST" in line]  # batch norm's statistics
    halves = [line for line in products if line.split("->")[0].count("bf16>") == 2]
    assert halves
    assert sorted([*exact, *halves]) == sorted(products)
