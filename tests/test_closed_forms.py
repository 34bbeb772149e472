"""Closed forms against their formulas in float64, new items alone, and runs of them."""

import json
from dataclasses import replace

import numpy as np
import pytest
from test_content_knn import csr
from test_main import entry

import jaxcold
from experiments import beauty_pairs, clothing, runner
from experiments import config as base
from experiments.bench.toy import write_mmrec
from jaxcold.data import synthetic
from jaxcold.data.content import unit_rows
from jaxcold.data.pairs.dataset import ContentFeatures
from jaxcold.data.sequences.dataset import EvalSequences, SequenceDataset
from jaxcold.models import closed_form, kernel_ridge


def narrow(width=6):
    """More warm items than features."""
    data = synthetic.make(seed=1, users=50, items=90, per_user=8)
    tables = {mode: table[:, :width].copy() for mode, table in data.content.tables.items()}
    return replace(data, content=data.content._replace(tables=tables))


@pytest.fixture(scope="module")
def data():
    return narrow()


def scores_of(model, histories):
    params, state = model.init(0)
    items = model.encode_items(params, state)
    return model.encode_users(params, state, items, histories) @ items.T


def stacked(data):
    modes = [np.asarray(table, np.float64) for table in data.content.tables.values()]
    return np.concatenate([m / np.linalg.norm(m, axis=1, keepdims=True) for m in modes], axis=1)


def whitened(data):
    x, warm = stacked(data), data.split.warm_items
    x = x - x[warm].mean(0)
    value, vector = np.linalg.eigh(x[warm].T @ x[warm] / len(warm))
    z = x @ vector / np.sqrt(value)
    return z / np.linalg.norm(z, axis=1, keepdims=True)


def counts(data):
    histories = data.split.train.by_user()
    result = np.zeros((histories.rows, len(data.item_ids)))
    np.add.at(result, (histories.row_of_entry, histories.indices), 1)
    return result


def kernel(z):
    cosine = np.clip(z @ z.T, -1, 1)
    angle = np.arccos(cosine)
    return cosine + (np.sin(angle) + (np.pi - angle) * cosine) / np.pi


def assert_same_lists(actual, expected):
    """Scores are equal up to a positive factor for each user."""
    actual, expected = (unit_rows(scores) for scores in (actual, expected))
    np.testing.assert_allclose(actual, expected, atol=2e-4)


def test_whitened_knn_by_its_formula(data):
    z = whitened(data)
    model = closed_form.whitened_knn(data)
    assert_same_lists(scores_of(model, data.split.train.by_user()), counts(data) @ z @ z.T)


@pytest.mark.parametrize("unit", [False, True])
def test_ridge_is_the_regression_of_clicks_on_content(data, unit):
    x, warm = stacked(data), data.split.warm_items
    r = counts(data)[:, warm]
    models = closed_form.ridge(data, l2=(0.5, 5.0), unit_rows=unit)
    for l2, model in models.items():
        inverse = np.linalg.inv(x[warm].T @ x[warm] + l2 * np.eye(x.shape[1]))
        expected = r @ x[warm] @ inverse @ x.T
        if unit:  # the norm of y_i = (Xw'Xw + l2 I)^(-1/2) x_i
            expected = expected / np.sqrt(np.einsum("if,fg,ig->i", x, inverse, x))
        assert_same_lists(scores_of(model, data.split.train.by_user()), expected)


def test_kernel_ridge_in_tiles_and_in_landmarks(data, monkeypatch):
    """The exact one in padded tiles and with users in chunks; all items as landmarks are exact."""
    monkeypatch.setattr(kernel_ridge, "_TILE", 16)
    monkeypatch.setattr(kernel_ridge, "_USERS", 16)
    warm, histories = data.split.warm_items, data.split.train.by_user()
    assert len(warm) % 16
    k = kernel(whitened(data))
    inverse = np.linalg.inv(k[np.ix_(warm, warm)] + 3 * np.eye(len(warm)))
    expected = counts(data)[:, warm] @ inverse @ k[warm]
    exact = scores_of(kernel_ridge.kernel_ridge(data, l2=3.0), histories)
    assert_same_lists(exact, expected)
    np.testing.assert_allclose(exact, expected, atol=1e-4)
    models = kernel_ridge.landmark_ridge(data, l2=(3.0,), landmarks=len(warm))
    assert_same_lists(scores_of(models[3.0], histories), expected)


def test_fewer_landmarks_keep_the_diagonal(data):
    """What they lack is added to l2: the scores stay close to the exact ones."""
    histories = data.split.train.by_user()
    exact = unit_rows(scores_of(kernel_ridge.kernel_ridge(data, l2=3.0), histories))
    models = kernel_ridge.landmark_ridge(data, l2=(3.0,), landmarks=40)
    assert np.abs(unit_rows(scores_of(models[3.0], histories)) - exact).mean() < 0.05


MODELS = {
    "whitened_knn": closed_form.whitened_knn,
    "ridge": lambda data: closed_form.ridge(data, l2=(1.0,))[1.0],
    "ridge_unit_rows": lambda data: closed_form.ridge(data, l2=(1.0,), unit_rows=True)[1.0],
    "kernel_ridge": lambda data: kernel_ridge.kernel_ridge(data, l2=1.0),
    "landmarks": lambda data: kernel_ridge.landmark_ridge(data, l2=(1.0,), landmarks=9)[1.0],
}


@pytest.mark.parametrize("name", MODELS)
def test_new_items_alone_have_the_same_bits(name, data):
    model = MODELS[name](data)
    known = model.encode_items({}, ())
    one = {mode: table[7:8] for mode, table in data.content.tables.items()}
    present = {mode: np.array([True]) for mode in one}
    alone = model.encode_items({}, (), ContentFeatures(one, present))
    np.testing.assert_array_equal(alone, known[7:8])
    nothing = ContentFeatures(one, {mode: np.array([False]) for mode in one})
    np.testing.assert_array_equal(model.encode_items({}, (), nothing), 0)


@pytest.mark.parametrize("name", MODELS)
def test_sequences_and_the_last_items_of_a_history(name):
    rng = np.random.default_rng(0)
    train = csr([rng.permutation(20)[:6] for _ in range(12)])
    none = EvalSequences(np.zeros(0, np.int32), csr([]), np.zeros(0, np.int32))
    content = rng.normal(size=(24, 5))
    data = SequenceDataset(
        "toy", 20, 24, train, none, none, content, np.arange(12), np.arange(24), {}
    )
    model = MODELS[name](data)
    items = model.encode_items({}, ())
    assert len(items) == 24
    users = model.encode_users({}, (), items, csr([[1, 2, 3], [3], []]))
    assert np.isfinite(users).all()
    np.testing.assert_array_equal(users[2], 0)
    np.testing.assert_array_equal(model.encode_items({}, (), content[20:]), items[20:])


@pytest.mark.parametrize("l2", [(), (0.0,), (1.0, -1.0), (float("nan"),)])
def test_l2_is_positive(l2, data):
    with pytest.raises(ValueError, match=r"model\.l2 is one or more positive numbers"):
        closed_form.ridge(data, l2=l2)


def test_equal_content_of_all_items_gives_no_vectors():
    data = narrow()
    for table in data.content.tables.values():
        table[:] = 1
    assert not scores_of(closed_form.whitened_knn(data), data.split.train.by_user()).any()


@pytest.fixture(scope="module")
def root(tmp_path_factory):
    root = tmp_path_factory.mktemp("closed")
    write_mmrec(root / "data", "clothing", ("text",))
    return root


def config_of(root, method, **model):
    config = clothing.get_config(method)
    with config.unlocked():
        config.data.root = str(root / "data")
        config.model.update(**model)
        config.eval.update(cutoffs=(5,), figure=False)
    return base.resolve(config)


def test_a_run_chooses_l2_on_validation(root, tmp_path, capsys):
    results = runner.run(config_of(root, "ridge", l2=(1e-3, 1.0, 1e3)), tmp_path / "all")
    by_value = {
        l2: runner.run(config_of(root, "ridge", l2=(l2,)), tmp_path / f"{l2:g}")
        for l2 in (1e-3, 1.0, 1e3)
    }
    validation = {l2: r["metrics"]["val/cold/ndcg@5"]["mean"] for l2, r in by_value.items()}
    best = max(validation, key=validation.get)
    assert results["metrics"] == by_value[best]["metrics"]
    assert f"ridge: l2 {best:g} by val/cold/ndcg@5 (0.001 " in capsys.readouterr().out
    saved = jaxcold.load(tmp_path / "all" / "models" / "seed_0")
    assert saved.options["l2"] == pytest.approx(best)
    # The table has the other closed form, and not the model twice.
    assert {"content_knn", "whitened_knn"} < results["baselines"].keys()
    assert "ridge" not in results["baselines"]
    assert len(results["config"]["seeds"]) == 1


def test_a_baseline_is_the_model_of_that_name(root, tmp_path):
    knn = runner.run(config_of(root, "whitened_knn"), tmp_path / "knn")
    ridge = runner.run(config_of(root, "ridge"), tmp_path / "ridge")
    for results, other in ((knn, ridge), (ridge, knn)):
        name = results["config"]["model"]["name"]
        reported = other["baselines"][name]["test/cold/ndcg@5"]["mean"]
        assert results["metrics"]["test/cold/ndcg@5"]["mean"] == reported
    assert "| whitened KNN " in (tmp_path / "ridge" / "results.md").read_text()


def test_kernel_ridge_from_the_command_line(root, tmp_path):
    flags = [f"--config.data.root={root / 'data'}", "--config.eval.cutoffs=(5,)"]
    code, error = entry(
        *flags,
        "--config.model.l2=(1.0,10.0)",
        workdir=tmp_path / "run",
        config="experiments/clothing.py:kernel_ridge",
    )
    assert code == 0, error
    results = json.loads((tmp_path / "run" / "results.json").read_text())
    assert results["config"]["model"]["l2"] == [1.0, 10.0]
    metrics = results["metrics"]["test/cold/ndcg@5"]["mean"]
    assert metrics > results["baselines"]["random"]["test/cold/ndcg@5"]["mean"]
    assert not (tmp_path / "run" / "models").exists()


def test_beauty_can_be_read_as_pairs_by_what_takes_both():
    assert beauty_pairs.get_config("ridge").data.kind == "pairs"
