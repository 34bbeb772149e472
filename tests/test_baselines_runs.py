"""Cold-start baselines from end to end on small data: a backbone, every method on it, bad input."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from test_main import entry

import jaxcold
from experiments import clothing, runner
from experiments import config as base
from experiments import method as methods
from experiments import task as tasks
from experiments.bench.toy import write_mmrec
from experiments.config import ConfigError
from jaxcold.data.pairs.dataset import ContentFeatures
from jaxcold.models import clcrec
from jaxcold.models.backbone import Sampler
from jaxcold.reporting import run_log
from jaxcold.types import Csr

METHODS = {
    "heater": {"experts": 2},
    "gar": {"alpha": 0.5, "beta": 0.5},
    "gorec": {"clusters": 8, "magnitude_scaling": 2.5},
    "aldi": {"weighted": True},
    "clcrec": {"negatives": 4},
    "freedom": {"k": 3},
}
NDCG = "test/cold/ndcg@5"


def config_of(root, method, *, epochs=2, **model):
    config = clothing.get_config(method)
    with config.unlocked():
        config.data.root = str(root / "data")
        config.seeds = (0,)
        if method not in ("freedom", "clcrec"):
            config.model.backbone = str(root / "freedom")
        config.model.update(**{**METHODS[method], **model})
        config.train.update(epochs=epochs, batch_size=64, learning_rate=0.01)
        config.eval.update(cutoffs=(5,), figure=False)
    return config


@pytest.fixture(scope="module")
def root(tmp_path_factory):
    """Data, and the run of FREEDOM that is the backbone."""
    root = tmp_path_factory.mktemp("baselines")
    write_mmrec(root / "data", "clothing", ("image", "text"))
    runner.run(base.resolve(config_of(root, "freedom", epochs=30)), root / "freedom")
    return root


def test_freedom_learns_and_writes_a_backbone(root):
    served = jaxcold.load(root / "freedom" / "models" / "seed_0")
    assert served.user.shape == (40, 64)
    assert served.item.shape == (60, 64)


@pytest.mark.parametrize("method", [m for m in METHODS if m != "freedom"])
def test_every_method_trains_and_is_better_than_chance(method, root, tmp_path):
    config = base.resolve(config_of(root, method, epochs=15))
    results = runner.run(config, tmp_path)
    chance = results["baselines"]["random"][NDCG]["mean"]
    assert results["metrics"][NDCG]["mean"] > 1.2 * chance
    task = tasks.of(config)
    served = jaxcold.load(tmp_path / "models" / "seed_0")
    assert np.isfinite(served.item).all()
    assert len(served.item) == len(task.load(config).item_ids)


@pytest.mark.parametrize("method", METHODS)
def test_new_items_from_their_content_alone(method, root):
    """A cold item of the data set, embedded as a new one."""
    config = base.resolve(config_of(root, method))
    data = tasks.of(config).load(config)
    model = methods.find(method).build(config, data, None)
    params, state = model.init(0)
    known = model.encode_items(params, state)
    item = data.split.cold_items[:1]
    tables = {mode: np.asarray(table)[item] for mode, table in data.content.tables.items()}
    new = ContentFeatures(tables, {mode: np.ones(1, bool) for mode in tables})
    rows = model.encode_items(params, state, new)
    np.testing.assert_allclose(rows, known[item], rtol=1e-5, atol=1e-6)
    users = model.encode_users(params, state, known, data.split.train.by_user())
    assert users.shape == (40, known.shape[1])
    with pytest.raises(ValueError, match="there are 40 users, known by number; got 1 histories"):
        model.encode_users(params, state, known, data.split.train.by_user().take(np.array([0])))


def test_negatives_are_warm_and_not_taken(root):
    config = base.resolve(config_of(root, "clcrec"))
    data = tasks.of(config).load(config)
    sampler = Sampler.of(data, 16)
    rng = np.random.default_rng(0)
    batches = list(sampler.epoch(rng))
    assert len(batches) == sampler.steps
    assert sum(batch.weight.sum() for batch in batches) == len(data.split.train.user)
    for batch in batches:
        assert np.isin(batch.negative, data.split.warm_items).all()
        assert not sampler.is_taken(batch.user, batch.negative).any()
        assert sampler.is_taken(batch.user, batch.positive).all()


def test_distinct_negatives_are_uniform_over_what_is_not_taken():
    rng = np.random.default_rng(0)
    taken = Csr.from_pairs(np.array([0, 0, 2]), np.array([3, 9, 0]), 3)
    counts = np.zeros((3, 10), int)
    for _ in range(400):
        rows = clcrec.distinct_negatives(rng, taken, 10, 8)
        assert (np.diff(rows, axis=1) > 0).all()
        np.add.at(counts, (np.arange(3)[:, None], rows), 1)
    np.testing.assert_array_equal(counts[0, [3, 9]], 0)
    np.testing.assert_array_equal(np.delete(counts[0], [3, 9]), 400)  # 8 are left, 8 are drawn
    assert counts[2, 0] == 0
    assert abs(counts[1] - 320).max() < 40  # five standard deviations


@pytest.mark.parametrize("reference", [False, True])
def test_the_gradient_block_by_block_is_that_of_the_whole_batch(reference):
    """Also where the last block is padded."""
    rng = np.random.default_rng(0)
    features, ids, user = (
        jnp.asarray(rng.normal(size=(rows, 3)), jnp.float32) for rows in (8, 8, 7)
    )
    inverse = 1 / jnp.linalg.norm(features, axis=1)
    slots = jnp.asarray(rng.integers(0, 8, (7, 4)), jnp.int32)
    draws = jnp.asarray(rng.integers(0, 3, (7, 4)), jnp.int32)
    weight = jnp.asarray([1, 1, 1, 1, 1, 0, 0], jnp.float32)
    batch = clcrec.Batch(None, slots, draws, weight)
    function = functools.partial(clcrec._slot_losses, tau=0.5, lam=0.3, reference=reference)

    def whole(tables, user):
        rows = jax.tree.map(lambda table: table[slots.reshape(-1)], tables)
        return function(rows, user, draws, weight)[0]

    def blocks(tables, user):
        return 2 * clcrec._sum_over_blocks(function, 4, tables, user, batch)[0]

    tables = clcrec.Rows(features, inverse, ids)
    value, gradient = jax.value_and_grad(whole, argnums=(0, 1))(tables, user)
    doubled, of_blocks = jax.value_and_grad(blocks, argnums=(0, 1))(tables, user)
    np.testing.assert_allclose(doubled, 2 * value, rtol=1e-5)
    close = functools.partial(np.testing.assert_allclose, rtol=1e-4, atol=1e-5)
    jax.tree.map(lambda x, y: close(x, 2 * y), of_blocks, gradient)


def test_freedom_is_chosen_on_warm_validation(root):
    """Its cold vectors are best before those that other methods read have learned anything."""
    rows = run_log.read_rows(root / "freedom" / "metrics.jsonl")
    assert all("val/warm/ndcg@5" in row for row in rows)
    assert "val/cold/ndcg@5" not in rows[0]
    scores = [row["val/warm/ndcg@5"] for row in rows]
    tested = next(row for row in rows if "test/warm/ndcg@5" in row)
    assert tested["val/warm/ndcg@5"] == max(scores)


def test_a_backbone_in_a_file(root, tmp_path):
    served = jaxcold.load(root / "freedom" / "models" / "seed_0")
    np.savez(tmp_path / "backbone.npz", user=served.user, item=served.item)
    first = runner.run(base.resolve(config_of(root, "heater")), tmp_path / "run")
    path = str(tmp_path / "backbone.npz")
    second = runner.run(base.resolve(config_of(root, "heater", backbone=path)), tmp_path / "file")
    assert first["metrics"] == second["metrics"]


@pytest.mark.parametrize(
    ("backbone", "message"),
    [
        (None, "config.model.backbone: unset; name the --workdir of a finished run"),
        ("absent", "absent holds no vectors of a run; name the --workdir"),
        ("absent.npz", "absent.npz cannot be read; name the --workdir"),
        ("small.npz", "backbone: user vectors have shape [3, 2]; clothing has 40 users"),
        ("nan.npz", "backbone: holds a number that is not finite"),
    ],
)
def test_a_backbone_that_cannot_serve_ends_in_one_line(backbone, message, root, tmp_path):
    np.savez(tmp_path / "small.npz", user=np.zeros((3, 2)), item=np.zeros((60, 2)))
    np.savez(tmp_path / "nan.npz", user=np.full((40, 2), np.nan), item=np.zeros((60, 2)))
    flags = [f"--config.data.root={root / 'data'}"]
    if backbone:
        flags.append(f"--config.model.backbone={tmp_path / backbone}")
    config = "experiments/clothing.py:heater"
    code, error = entry(*flags, workdir=tmp_path / "run", config=config)
    assert code == 2
    assert message in error
    assert len(error.strip().splitlines()) == 1


def test_a_backbone_of_another_split(root):
    config = config_of(root, "heater")
    with config.unlocked():
        config.data.split_seed = 7
    config = base.resolve(config)
    data = tasks.of(config).load(config)
    with pytest.raises(ConfigError, match=r"trained on another split; pass --config\.data\.split"):
        methods.find("heater").build(config, data, None)
