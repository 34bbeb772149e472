"""Training on several simulated devices gives the results of one device."""

import functools
import os
import pathlib

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from test_resume import cut_run
from test_sasrec import circle
from test_semco import tiny
from test_sequential_runs import config_of as sequences_config

from experiments import runner
from experiments.bench import scaling
from experiments.bench.toy import write_log
from jaxcold import parallel
from jaxcold.eval.ranking import top_k
from jaxcold.models import distillation as distillation_model
from jaxcold.models import sasrec as sasrec_model
from jaxcold.models import semco as semco_model
from jaxcold.models.transforms import clip_row_norm
from jaxcold.reporting import run_log
from jaxcold.sparse import linear_entmax_sum, sharded_entmax_sum
from jaxcold.train.step import init_state, make_step
from jaxcold.types import Csr, EvalSlice, Representations

# To compile every pair of a parallelism and a model takes many minutes; a few run every time, the
# others when asked for.
THOROUGH = pytest.mark.skipif(
    not os.environ.get("JAXCOLD_THOROUGH"), reason="set JAXCOLD_THOROUGH=1 for all combinations"
)
SEMCO = {"batch_size": 19, "alpha": 2.0, "tau": 2.5, "hidden": 6, "out": 4}


@pytest.fixture
def quick():
    """Programs that run a few steps need not be fast."""
    jax.config.update("jax_disable_most_optimizations", True)
    yield
    jax.config.update("jax_disable_most_optimizations", False)


def steps(model, optimizers, number=5):
    """The state after some steps, whatever the length of an epoch, and what they logged."""
    model = model._replace(optimizers=optimizers)
    step, state = make_step(model), init_state(model, 0)
    metrics, epoch = [], 0
    while len(metrics) < number:
        for batch in model.batches(np.random.default_rng(epoch)):
            if len(metrics) < number:
                state, measured = step(state, model.constants, batch, jax.random.key(1))
                metrics.append(jax.device_get(measured))
        epoch += 1
    return state, metrics


def equal(got, want, tolerance=2e-5):
    """Two states agree; rows that only make a table divisible do not count."""

    def leaf(got, want):
        got, want = np.asarray(got), np.asarray(want)
        if got.shape != want.shape:
            assert not got[len(want) :].any()
            got = got[: len(want)]
        np.testing.assert_allclose(got, want, atol=tolerance, rtol=tolerance)

    jax.tree.map(leaf, got, want)


@functools.cache
def alone(kind, **changes):
    """Five steps of plain gradient descent on one device."""
    return kind(parallel.ONE, **changes)


def compare(kind, devices, same=(), **changes):
    """The results on several devices are those on one.

    Args:
        kind: semco, distillation or sasrec.
        devices: the devices.
        same: options that make no difference to the results.
        changes: options.
    """
    state, metrics = kind(devices, **changes, **dict(same))
    wanted, expected = alone(kind, **changes)
    equal(state.params, wanted.params)
    equal(state.model_state, wanted.model_state)
    equal(metrics, expected)
    assert int(state.step) == 5
    return state


def golden(name):
    path = pathlib.Path(__file__).parent / "golden" / f"{name}.npz"
    with np.load(path, allow_pickle=False) as file:
        return dict(file)


def semco(devices, **changes):
    # 1 of the last batch's 19 rows is there, and 30 items are not divisible by 4 or 8 either.
    model = semco_model.build(tiny(golden), epochs=1, devices=devices, **SEMCO | changes)
    assert model.examples_per_epoch % 19
    return steps(model, {"main": optax.sgd(0.1)})


@pytest.mark.parametrize(
    ("parallelism", "count", "same", "changes"),
    [
        ("pmap", 8, {}, {"user_vector": "leave_one_out"}),
        ("shard_map", 3, {"encode": "active", "stream": True}, {"user_vector": "leave_one_out"}),
        pytest.param("shard_map", 1, {}, {}, marks=THOROUGH),
        pytest.param("pmap", 2, {"encode": "active"}, {}, marks=THOROUGH),
        pytest.param("shard_map", 4, {"encode": "active"}, {}, marks=THOROUGH),
        pytest.param("shard_map", 8, {}, {"alpha": 1.5, "gradient": "autodiff"}, marks=THOROUGH),
    ],
)
def test_semco(parallelism, count, same, changes, quick):
    compare(semco, parallel.choose(parallelism, count=count), same, **changes)


DISTILLATION = {
    "alpha": 1.5,
    "tau": 2.0,
    "teacher_tau": 2.5,
    "lam": 1.0,
    "omega": 2.0,
    "positives": 3,
    "teacher_epochs": 1,
    "hidden": 5,
    "out": 3,
    "teacher_hidden": 8,
    "teacher_out": 6,
    "batch_size": 70,
}


def distillation(devices, *, online, **changes):
    options = {"online": online, "epochs": 5, "devices": devices, **DISTILLATION}
    model = distillation_model.build(tiny(golden), **options | changes)
    stops = model.steps_per_epoch
    assert stops < 4  # a student learns, and looks at a teacher that has stopped
    starts = 0 if online else stops
    optimizers = {
        "teacher": optax.conditionally_mask(optax.sgd(0.1), lambda step: step < stops),
        "student": optax.conditionally_mask(optax.sgd(0.1), lambda step: step >= starts),
    }
    return steps(model, optimizers)


@pytest.mark.parametrize(
    ("parallelism", "count", "shard_items", "changes"),
    [
        ("pmap", 8, True, {"online": True, "ema": 0.5}),
        pytest.param("shard_map", 4, False, {"online": True, "ema": 0.5}, marks=THOROUGH),
        pytest.param("shard_map", 2, True, {"online": False}, marks=THOROUGH),
        pytest.param("jit", None, True, {"online": False}, marks=THOROUGH),
    ],
)
def test_distillation(parallelism, count, shard_items, changes, quick):
    devices = parallel.choose(parallelism, count=count, shard_items=shard_items)
    compare(distillation, devices, **changes)


SASREC = {"epochs": 1, "batch_size": 29, "dim": 8, "max_length": 6, "blocks": 1, "dropout": 0.0}


def sasrec(devices, *, adam=False, **changes):
    # Of the last batch there are 2 sequences: fewer than devices.
    model = sasrec_model.build(circle(), devices=devices, **SASREC | changes)
    assert circle().train.rows % SASREC["batch_size"] == 2
    if not adam:
        return steps(model, {"main": optax.sgd(0.1)})
    # Some gradients are zero but for rounding; Adam would make steps of them.
    bounded = optax.masked(
        clip_row_norm(0.05), lambda params: parallel.sharding_tree(params, ("delta",))
    )
    return steps(model, {"main": optax.chain(optax.adam(1e-2, eps=1e-2), bounded)})


@pytest.mark.parametrize(
    ("parallelism", "count", "shard_items", "changes"),
    [
        ("pmap", 4, False, {"item_table": "random", "alpha": 2.0}),
        pytest.param("pmap", 4, True, {"item_table": "random", "alpha": 2.0}, marks=THOROUGH),
        pytest.param("shard_map", 8, False, {"item_table": "frozen"}, marks=THOROUGH),
        pytest.param("shard_map", 2, True, {"item_table": "frozen"}, marks=THOROUGH),
        pytest.param("shard_map", 2, True, {"item_table": "content", "alpha": 1.5}, marks=THOROUGH),
        pytest.param("shard_map", 4, True, {"loss": "sampled", "negatives": 9}, marks=THOROUGH),
        pytest.param("pmap", 2, False, {"loss": "gbce", "negatives": 9}, marks=THOROUGH),
        pytest.param("pmap", 2, False, {"reference": True}, marks=THOROUGH),
        pytest.param("jit", None, True, {"item_table": "delta", "adam": True}, marks=THOROUGH),
    ],
)
def test_sasrec(parallelism, count, shard_items, changes, quick):
    compare(sasrec, parallel.choose(parallelism, count=count, shard_items=shard_items), **changes)


@pytest.mark.parametrize("parallelism", ["pmap", "shard_map"])
def test_best_lists_are_those_of_one_device(parallelism):
    rng = np.random.default_rng(0)
    # Small whole numbers: equal scores, and no rounding.
    user, item = (rng.integers(-2, 3, (n, 3)).astype(np.float32) for n in (7, 30))
    candidates = np.sort(rng.choice(30, 21, replace=False)).astype(np.int32)
    hidden = Csr.from_pairs(rng.integers(0, 7, 40), rng.integers(0, 30, 40), 7)
    nobody = Csr.from_pairs(np.zeros(0, int), np.zeros(0, int), 7)
    question = EvalSlice(np.arange(7), nobody, nobody, hidden, candidates, candidates)
    vectors = Representations(user, item)
    for k in (4, 25):
        want = top_k(vectors, question, k, method="host")
        got = top_k(vectors, question, k, block_users=3, devices=parallel.choose(parallelism))
        jax.tree.map(np.testing.assert_array_equal, got, want)


def test_no_device_holds_a_whole_table(quick):
    devices = parallel.choose("shard_map", count=8, shard_items=True)
    state = compare(sasrec, devices, item_table="delta", adam=True)
    split = jax.tree.leaves(parallel.sharding_tree(state, ("delta",)))
    leaves = list(zip(jax.tree.leaves(state), split, strict=True))
    tables = [leaf for leaf, divided in leaves if divided]
    assert len(tables) == 3  # and both of Adam's moments
    assert all(leaf.sharding.is_fully_replicated for leaf, divided in leaves if not divided)
    model = sasrec_model.build(circle(), devices=devices, **SASREC)
    for table in (*tables, model.constants.content):
        assert {piece.data.shape for piece in table.addressable_shards} == {(4, 8)}
    # One shape for any number of devices: so are checkpoints.
    one = sasrec_model.build(circle(), devices=parallel.choose(shard_items=True), **SASREC)
    shapes = [list(map(jnp.shape, jax.tree.leaves(p))) for p in (one.init(0)[0], state.params)]
    assert shapes[0] == shapes[1]
    # What is trained is served.
    histories = circle().train
    params = jax.device_get(state.params)
    items, wanted = model.encode_items(state.params, ()), one.encode_items(params, ())
    np.testing.assert_allclose(items, wanted, atol=1e-6)
    users = model.encode_users(state.params, (), items, histories)
    np.testing.assert_allclose(users, one.encode_users(params, (), wanted, histories), atol=1e-6)


@pytest.mark.parametrize(
    ("kind", "alpha", "shard_items"), [("semco", 2.0, False), ("sasrec", 1.0, True)]
)
def test_bytes_held_and_moved_are_those_of_the_formulas(kind, alpha, shard_items):
    devices = parallel.choose("shard_map", count=8, shard_items=shard_items)
    found = getattr(scaling, kind)(devices)
    assert found.gap < scaling.GOAL
    assert not found.looped


def test_only_the_threshold_search_communicates_inside_a_loop():
    devices = parallel.choose("shard_map", count=4, shard_items=True)
    found = scaling.sasrec(devices, alpha=1.5)
    assert {move.kind for move in found.looped} == {"all-reduce"}
    tokens = 4 * scaling.SASREC.batch * scaling.SASREC.max_length  # at most
    assert max(move.size for move in found.looped) <= 2 * 4 * tokens  # two numbers of each


@pytest.mark.parametrize("alpha", [1.0, 1.25, 2.0])
def test_the_split_loss_is_the_loss(alpha, x64):
    rng = np.random.default_rng(0)
    h, W = jnp.asarray(rng.normal(size=(21, 5))), jnp.asarray(rng.normal(size=(32, 5)))
    targets = jnp.asarray(np.where(np.arange(21) % 4, rng.integers(1, 27, 21), -1))
    devices = parallel.choose("shard_map", count=4)

    def whole(h, W):
        return linear_entmax_sum(h, W[1:27], jnp.maximum(targets - 1, -1), alpha, tau=0.7)

    def body(h, W):
        row = parallel.index("devices") * len(W) + jnp.arange(len(W), dtype=jnp.int32)
        there = (row > 0) & (row < 27)  # the last device has no item at all

        def part(h, W):
            return sharded_entmax_sum(
                h, W, targets, alpha, axis="devices", where=there, tau=0.7, rows=8
            )

        value, (dh, dW) = jax.value_and_grad(part, (0, 1))(h, W)
        return parallel.sum_over_devices((value, dh), "devices"), dW

    specs = (False, True), ((False,) * 2, True)
    split = jax.jit(lambda *a: parallel.run_on_devices(devices, body, a, *specs))
    (value, dh), dW = split(h, W)
    wanted, gradients = jax.value_and_grad(whole, (0, 1))(h, W)
    np.testing.assert_allclose(value, wanted, rtol=1e-12)
    for got, want in zip((dh, dW), gradients, strict=True):
        np.testing.assert_allclose(got, want, atol=1e-10)


def test_a_run_goes_on_with_other_devices(tmp_path, monkeypatch, quick):
    write_log(tmp_path / "data")
    config = sequences_config(tmp_path / "data", "sasrec_delta")
    with config.unlocked():
        config.model.dropout = 0.0
        config.checkpoint.every_steps = 2
    alone = runner.run(config, tmp_path / "alone")
    config = config.copy_and_resolve_references()
    with config.unlocked():
        config.parallel, config.shard_items = "shard_map", True
    every = parallel.choose
    cut_run(monkeypatch, 5, config, tmp_path / "run")
    monkeypatch.setattr(parallel, "choose", functools.partial(every, count=2))
    results = runner.run(config, tmp_path / "run")
    for name, wanted in alone["metrics"].items():
        mean = pytest.approx(wanted["mean"], abs=1e-4, nan_ok=True)
        assert results["metrics"][name]["mean"] == mean, name
    losses = [
        [row["loss"] for row in run_log.read_rows(tmp_path / run / "metrics.jsonl")]
        for run in ("alone", "run")
    ]
    np.testing.assert_allclose(*losses, rtol=1e-5)
