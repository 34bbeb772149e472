"""SEMCo against the papers' code, and the properties that make it servable."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from flax import nnx

from jaxcold.data import content as vectors
from jaxcold.data.pairs.dataset import ColdSplit, ContentFeatures, Dataset, Interactions
from jaxcold.models import encoders, pair_batches, semco
from jaxcold.models.layers import Moments, catalogue_moments, unit_rows
from jaxcold.models.transforms import adam_coupled_l2, cosine
from jaxcold.train.loop import DivergedError, fit
from jaxcold.train.step import init_state, make_step
from jaxcold.types import Csr

# Float64 references: Flax raises widths of its own.
pytestmark = pytest.mark.usefixtures("standard_promotion")

ALPHAS = {"sparsemax": 2.0, "entmax15": 1.5}
# The fixtures' README: float32 and float64 runs of the reference agree this well.
TOLERANCE = {"f64": 1e-10, "f32": 2e-6}


def tiny(golden) -> Dataset:
    """The fixture's 20 users and 40 items (30 of them warm) as a data set."""
    g = golden("semco/encoder")
    users, items = map(int, g["inter_shape"])
    everything = Interactions(
        g["inter_user"].astype(np.int32), g["inter_item"].astype(np.int32), users, items
    )
    cold = np.sort(g["cold_items"]).astype(np.int32)
    none = np.zeros((0, 2), np.int32)
    parts = dict.fromkeys(("warm_val", "warm_test", "cold_val", "cold_test"), none)
    split = ColdSplit(
        everything,
        np.sort(g["warm_items"]).astype(np.int32),
        cold[:5],
        cold[5:],
        {"warm_train": everything.pairs(), **parts},
    )
    tables = {"a": g["feat0"], "b": g["feat1"]}
    there = {name: np.ones(items, bool) for name in tables}
    content = ContentFeatures(tables, there)
    return Dataset("tiny", everything, split, content, np.arange(users), np.arange(items))


def from_torch(weights, dtype) -> dict:
    """The fixture's weights in our layout; the bias before batch norm has no counterpart."""
    get = lambda name: jnp.asarray(weights[name], dtype)  # noqa: E731
    return {
        "modes": {
            m: {
                "kernel": get(f"feats_layers.{m}.0.weight").T,
                "scale": get(f"feats_layers.{m}.1.weight"),
                "bias": get(f"feats_layers.{m}.1.bias"),
            }
            for m in (0, 1)
        },
        "fusion": {
            "first": {
                "kernel": get("fuser.attention.weight").T,
                "bias": get("fuser.attention.bias"),
            },
        },
        "final": {"kernel": get("final_layer.weight").T, "bias": get("final_layer.bias")},
    }


def named(g, prefix):
    return {k[len(prefix) :]: v for k, v in g.items() if k.startswith(prefix)}


@pytest.fixture(params=["f64", "f32"])
def case(request, golden):
    """The fixture's model as (dtype name, golden arrays, module definition, params, constants)."""
    with jax.enable_x64(request.param == "f64"):
        dtype = jnp.float64 if request.param == "f64" else jnp.float32
        g = golden("semco/encoder")
        warm = g["warm_items"]
        raw = [np.asarray(g[f"feat{m}"], np.float64) for m in (0, 1)]
        unit = [x / np.linalg.norm(x, axis=1, keepdims=True) for x in raw]
        moments = lambda rows: tuple(  # noqa: E731
            Moments(
                jnp.asarray(x[rows].mean(0), dtype),
                jnp.asarray(np.cov(x[rows].T, bias=True), dtype),
            )
            for x in unit
        )
        local = np.full(int(g["inter_shape"][1]), -1)
        local[warm] = np.arange(len(warm))
        history = Csr.from_pairs(g["inter_user"], local[g["inter_item"]], int(g["inter_shape"][0]))
        constants = pair_batches.Constants(
            tuple(jnp.asarray(x[warm], dtype) for x in unit),
            None,
            moments(warm),
            jnp.asarray(history.indptr, jnp.int32),
            jnp.asarray(history.indices),
        )
        graphdef, params = nnx.split(encoders.ContentEncoder([12, 7], 8, 6, rngs=nnx.Rngs(0)))
        nnx.replace_by_pure_dict(params, from_torch(named(g, "w__"), dtype))
        everything = moments(np.arange(len(local))), tuple(jnp.asarray(x, dtype) for x in unit)
        yield request.param, g, graphdef, params, constants, everything


def batch_of(g, user, item) -> pair_batches.Batch:
    local = np.full(40, -1)
    local[g["warm_items"]] = np.arange(len(g["warm_items"]))
    one = jnp.asarray(user, jnp.int32)[None], jnp.asarray(local[item], jnp.int32)[None]
    weight = jnp.ones(one[0].shape)
    epoch = pair_batches.Epoch(*one, weight, jnp.arange(128), jnp.arange(30))
    return pair_batches.Batch(epoch, jnp.int32(0))


def loss_of(case_, tau, fn, gradient, encode="all", user_vector="mean"):
    _, _, graphdef, _, constants, _ = case_

    def loss(params, batch):
        total, (weight, _, _) = semco._loss(
            {"main": params},
            (),
            constants,
            batch,
            None,
            graphdef=graphdef,
            num_items=30,
            alpha=ALPHAS[fn],
            tau=tau,
            gradient=gradient,
            encode=encode,
            user_vector=user_vector,
        )
        return total / weight

    return jax.jit(loss)


def test_encoder_of_warm_items_equals_the_reference(case):
    name, g, graphdef, params, constants, _ = case
    encoder = nnx.merge(graphdef, params)
    rows = encoder(constants.features, encoder.fold(constants.moments))
    np.testing.assert_allclose(rows, g[f"train__feats__{name}"], atol=TOLERANCE[name])
    hidden = [
        jax.nn.relu(x @ layer.kernel + layer.bias[None, :])
        for x, layer in zip(constants.features, encoder.fold(constants.moments), strict=True)
    ]
    for m in (0, 1):
        np.testing.assert_allclose(hidden[m], g[f"train__h{m}__{name}"], atol=5 * TOLERANCE[name])
    fused = encoder.fusion(hidden, None)
    np.testing.assert_allclose(fused, g[f"train__fused__{name}"], atol=5 * TOLERANCE[name])


def test_user_vectors_equal_the_reference(case):
    name, g, graphdef, params, constants, _ = case
    encoder = nnx.merge(graphdef, params)
    rows = encoder(constants.features, encoder.fold(constants.moments))
    user = jnp.asarray(g["batch_user"], jnp.int32)
    histories = pair_batches.gather_histories(constants, user, jnp.ones(16), jnp.arange(128))
    got = semco.user_vectors(rows, histories, None)
    np.testing.assert_allclose(got, g[f"train__user_vecs__{name}"], atol=TOLERANCE[name])


def test_evaluation_with_batch_statistics_of_all_items_equals_the_reference(case):
    name, g, graphdef, params, _, (moments, features) = case
    encoder = nnx.merge(graphdef, params)
    rows = encoder(features, encoder.fold(moments))
    np.testing.assert_allclose(rows, g[f"eval__item_emb__{name}"], atol=TOLERANCE[name])
    histories = Csr.from_pairs(g["inter_user"], g["inter_item"], 20)
    users = vectors.history_means(histories, np.asarray(rows))
    np.testing.assert_allclose(users, g[f"eval__user_emb__{name}"], atol=2e-6)
    assert not users[19].any()  # no training rows


@pytest.mark.parametrize("fn", ALPHAS)
@pytest.mark.parametrize("tau", [0.5, 2.5])
@pytest.mark.parametrize("encode", ["all", "active"])
def test_loss_and_both_gradients_equal_the_reference(case, fn, tau, encode):
    name, g, _, params, _, _ = case
    batch = batch_of(g, g["batch_user"], g["batch_item"])
    prefix = f"sem__{fn}__tau{tau}__{name}__"
    for gradient, kind in (("autodiff", "grad"), ("fenchel_young", "fygrad")):
        step = jax.jit(jax.value_and_grad(loss_of(case, tau, fn, gradient, encode)))
        loss, grads = step(params, batch)
        if gradient == "autodiff":  # the exact loss scales its entropy by tau: another value
            np.testing.assert_allclose(loss, g[prefix + "loss"], rtol=TOLERANCE[name])
        want = from_torch(named(g, f"{prefix}{kind}__"), loss.dtype)
        jax.tree.map(
            lambda ours, theirs: np.testing.assert_allclose(
                ours, theirs, atol=max(TOLERANCE[name], 1e-8) * 5
            ),
            nnx.to_pure_dict(grads),
            {**want, "fusion": {"first": want["fusion"]["first"]}},
        )


@pytest.mark.parametrize("fn", ALPHAS)
@pytest.mark.parametrize("gradient", ["autodiff", "fenchel_young"])
def test_twenty_steps_equal_the_reference(case, golden, fn, gradient):
    name, g, _, params, _, _ = case
    t = golden("semco/trajectory")
    kind = {"autodiff": "autograd", "fenchel_young": "fy"}[gradient]
    tau, prefix = float(t["tau"]), f"{fn}__{kind}__{name}__"
    schedule = cosine(float(t["lr0"]), int(t["T_max"]))
    optimizer = adam_coupled_l2(schedule, float(t["weight_decay"]))
    state = optimizer.init(params)
    # The reference logs the authors' value whichever gradient it follows.
    value = jax.jit(loss_of(case, tau, fn, "autodiff"))
    grad = jax.jit(jax.grad(loss_of(case, tau, fn, gradient)))
    losses = []
    for step, (user, item) in enumerate(zip(t["batch_user"], t["batch_item"], strict=True)):
        np.testing.assert_allclose(schedule(step), t["lr_used"][step], rtol=2e-6)
        batch = batch_of(g, user, item)
        losses.append(float(value(params, batch)))
        updates, state = optimizer.update(grad(params, batch), state, params)
        params = optax.apply_updates(params, updates)
    np.testing.assert_allclose(losses, t[prefix + "loss"], rtol=10 * TOLERANCE[name])
    want = from_torch(named(t, prefix + "final__"), losses[0].__class__)
    jax.tree.map(
        lambda ours, theirs: np.testing.assert_allclose(
            ours, theirs, atol={"f64": 1e-8, "f32": 2e-5}[name]
        ),
        nnx.to_pure_dict(params),
        want,
    )


def build(dataset, **kwargs):
    options = {"batch_size": 16, "alpha": 2.0, "tau": 2.5, "hidden": 8, "out": 6}
    options |= {"epochs": 2, "learning_rate": 1e-2, "l2": 1e-4}
    return semco.build(dataset, **options | kwargs)


def train(model, seed=0):
    return fit(model, make_step(model), init_state(model, seed), seed=seed)


def test_moments_are_those_of_the_unit_rows():
    rng = np.random.default_rng(0)
    table = (rng.normal(size=(50, 6)) + 3).astype(np.float16)
    rows = np.arange(0, 50, 2)
    got = catalogue_moments(table, rows, chunk=7)
    unit = table[rows].astype(np.float64)
    unit /= np.linalg.norm(unit, axis=1, keepdims=True)
    np.testing.assert_allclose(got.mean, unit.mean(0), atol=1e-6)
    np.testing.assert_allclose(got.cov, np.cov(unit.T, bias=True), atol=1e-7)


def test_unit_rows_of_zero_stay_zero_with_a_zero_gradient():
    x = jnp.asarray([[3.0, 4.0], [0.0, 0.0]])
    np.testing.assert_allclose(unit_rows(x), [[0.6, 0.8], [0.0, 0.0]], rtol=1e-6)
    grad = jax.grad(lambda x: unit_rows(x).sum())(x)
    np.testing.assert_array_equal(grad[1], 0.0)
    assert np.isfinite(grad).all()


@pytest.mark.parametrize("batch_norm", ["catalogue", "batch"])
def test_only_catalogue_norm_embeds_a_lone_item_as_inside_the_catalogue(golden, batch_norm):
    dataset = tiny(golden)
    model = build(dataset, batch_norm=batch_norm)
    params = train(model).params
    inside = model.encode_items(params, ())
    item = 33  # a cold one
    tables = [table[item : item + 1] for table in dataset.content.tables.values()]
    there = [np.ones(1, bool)] * 2
    if batch_norm == "catalogue":
        alone = encoders.encode(
            encoders.trained(params["main"], model.constants.moments), tables, there
        )
        np.testing.assert_array_equal(alone[0], inside[item])  # to the last bit
    else:  # its own statistics are no statistics: a batch of one collapses
        own = tuple(catalogue_moments(table, np.arange(1)) for table in tables)
        alone = encoders.encode(encoders.trained(params["main"], own), tables, there)
        assert np.abs(alone[0] - inside[item]).max() > 1e-2


def test_cold_items_do_not_depend_on_cold_interactions_or_company(golden):
    dataset = tiny(golden)
    model = build(dataset)
    params = train(model).params
    item = model.encode_items(params, ())
    changed = {name: table.copy() for name, table in dataset.content.tables.items()}
    for table in changed.values():
        table[dataset.split.cold_test_items[0]] += 1
    other = dataclasses.replace(dataset, content=dataset.content._replace(tables=changed))
    moved = build(other).encode_items(params, ())
    same = np.delete(np.arange(40), dataset.split.cold_test_items[0])
    np.testing.assert_array_equal(item[same], moved[same])


@pytest.mark.parametrize("user_vector", ["mean", "leave_one_out"])
def test_active_and_streamed_encoding_equal_encoding_everything(golden, user_vector):
    dataset = tiny(golden)
    states = [
        train(build(dataset, user_vector=user_vector, **kwargs)).params
        for kwargs in ({}, {"encode": "active"}, {"encode": "active", "stream": True})
    ]
    for other in states[1:]:
        jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, atol=2e-5), states[0], other)
    assert build(dataset, encode="active", stream=True).constants.features == ()


def test_one_seed_repeats_to_the_last_bit_and_two_differ(golden):
    model = build(tiny(golden))
    first, again, other = (train(model, seed=seed).params for seed in (3, 3, 4))
    jax.tree.map(np.testing.assert_array_equal, first, again)
    assert any(
        np.any(np.asarray(a) != np.asarray(b))
        for a, b in zip(jax.tree.leaves(first), jax.tree.leaves(other), strict=True)
    )


def test_padding_of_the_last_batch_changes_nothing(golden):
    g = golden("semco/encoder")
    model = build(tiny(golden))
    params, _ = model.init(0)
    full = batch_of(g, g["batch_user"][:10], g["batch_item"][:10])
    pad = lambda x: jnp.pad(x, ((0, 0), (0, 6)), mode="edge")  # noqa: E731
    epoch = full.epoch
    padded = epoch._replace(
        user=pad(epoch.user), item=pad(epoch.item), weight=jnp.pad(epoch.weight, ((0, 0), (0, 6)))
    )

    @jax.jit
    @jax.value_and_grad
    def value(params, epoch):
        batch = pair_batches.Batch(epoch, jnp.int32(0))
        total, (weight, _, _) = model.losses["main"](params, (), model.constants, batch, None)
        return total / weight

    a, grad_a = value(params, epoch)
    b, grad_b = value(params, padded)
    np.testing.assert_allclose(a, b, rtol=1e-6)
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, atol=1e-6), grad_a, grad_b)


def test_every_pair_is_seen_once_an_epoch(golden):
    dataset = tiny(golden)
    model = build(dataset)
    batches = list(model.batches(np.random.default_rng(0)))
    assert len(batches) == model.steps_per_epoch == 5
    seen = [
        (int(u), int(dataset.split.warm_items[i]))
        for batch in batches
        for u, i, w in zip(*(np.asarray(x[batch.at]) for x in batch.epoch[:3]), strict=True)
        if w > 0
    ]
    train_pairs = dataset.split.pairs["warm_train"].tolist()
    assert sorted(seen) == sorted(map(tuple, train_pairs))


def test_one_compiled_program_per_shape(golden):
    model = build(tiny(golden))
    traces = []
    loss = model.losses["main"]
    counted = model._replace(losses={"main": lambda *args: traces.append(1) or loss(*args)})
    step = make_step(counted)
    for seed in (0, 1):
        fit(counted, step, init_state(counted, seed), seed=seed)
    assert len(traces) == 1


def test_leave_one_out_takes_the_positive_out_of_its_own_row(golden):
    g = golden("semco/encoder")
    model = build(tiny(golden))
    rows = jnp.asarray(np.random.default_rng(0).normal(size=(30, 6)), jnp.float32)
    batch = batch_of(g, g["batch_user"], g["batch_item"])
    user, positive = batch.epoch.user[0], batch.epoch.item[0]
    histories = pair_batches.gather_histories(
        model.constants, user, jnp.ones(16), batch.epoch.slots
    )
    got = np.asarray(semco.user_vectors(rows, histories, rows[positive]))
    indptr, indices = np.asarray(model.constants.indptr), np.asarray(model.constants.indices)
    for j, (u, i) in enumerate(zip(user, positive, strict=True)):
        left = [k for k in indices[indptr[u] : indptr[u + 1]] if k != i]
        want = np.asarray(rows)[left].mean(0) if left else np.zeros(6)
        want = want / max(np.linalg.norm(want), 1e-12)
        np.testing.assert_allclose(got[j], want, atol=1e-5)


def test_missing_modes_leave_attention_to_the_others(golden):
    dataset = tiny(golden)
    there = {"a": np.ones(40, bool), "b": np.arange(40) % 3 > 0}
    there["a"][7] = False
    there["b"][7] = False
    tables = {name: table.copy() for name, table in dataset.content.tables.items()}
    tables["b"][~there["b"]] = np.nan
    tables["a"][7] = 0
    content = ContentFeatures(tables, there)
    model = build(dataclasses.replace(dataset, content=content))
    params = train(model).params
    item = model.encode_items(params, ())
    assert np.isfinite(item).all()
    assert not item[7].any()  # no mode at all: no direction
    # An item without mode b is what mode a alone makes of it.
    graphdef = model.losses["main"].keywords["graphdef"]
    encoder = nnx.merge(graphdef, params["main"])
    first = encoder.fold(model.constants.moments)[0]
    unit = vectors.unit_rows(tables["a"][3:4])
    alone = unit_rows(encoder.final(jax.nn.relu(unit @ first.kernel + first.bias[None, :])))
    np.testing.assert_allclose(item[3], alone[0], atol=1e-5)


def test_a_loss_that_is_not_finite_stops_with_the_step(golden):
    model = build(tiny(golden))
    poisoned = model._replace(
        constants=model.constants._replace(
            features=tuple(x * jnp.nan for x in model.constants.features)
        )
    )
    with pytest.raises(DivergedError, match=r"loss is nan at step 0 \(epoch 1\)"):
        train(poisoned)


@pytest.mark.parametrize(
    ("argument", "message"),
    [
        ({"alpha": 2.5}, "alpha is between 1"),
        ({"tau": 0.0}, "tau is positive"),
        ({"gradient": "exact"}, "gradient is one of autodiff, fenchel_young"),
        ({"encode": "some"}, "encode is one of all, active"),
        ({"batch_norm": "running"}, "batch_norm is one of catalogue, batch"),
        ({"user_vector": "sum"}, "user_vector is one of mean, leave_one_out"),
        ({"hidden": 0}, "hidden is at least 1"),
        ({"attention_layers": 3}, "attention_layers is 1"),
        ({"stream": True}, "encode='active'"),
        ({"epochs": 0}, "train.epochs is at least 1, not 0"),
        ({"learning_rate": 0.0}, "train.learning_rate is a positive number, not 0.0"),
        ({"l2": -1.0}, "model.l2 is a number from 0, not -1.0"),
    ],
)
def test_bad_arguments_are_named(golden, argument, message):
    with pytest.raises(ValueError, match=message):
        build(tiny(golden), **argument)
