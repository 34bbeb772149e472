"""SASRec through the entry point: runs, tables, patience, going on after a cut, bad configs."""

import json
import pathlib
import subprocess
import sys

import numpy as np
import pandas as pd
import pytest
from test_resume import assert_same, cut_run, setup_of

from experiments import amazon_m2, beauty, compare, figures, movielens, runner, zvuk
from experiments import config as base
from experiments import workdir as rundir
from experiments.bench.toy import write_log
from experiments.config import ConfigError
from jaxcold.estimators.semco import SEMCo
from jaxcold.types import MissingDataError

CONFIGS = {"beauty": beauty, "amazon_m2": amazon_m2, "zvuk": zvuk, "movielens": movielens}


@pytest.fixture
def data(tmp_path):
    write_log(tmp_path / "data")
    return tmp_path / "data"


def config_of(data, model="sasrec_delta", **train):
    config = movielens.get_config(model)
    with config.unlocked():
        config.seeds = (0,)
        config.data.root = str(data)
        config.model.max_length = 6
        if model != "content_knn":
            config.model.update(dim=4, blocks=1)
        config.train.update(**{"epochs": 2, "batch_size": 16, "learning_rate": 1e-2, **train})
        config.eval.cutoffs = (5,)
    return base.resolve(config)


MODELS = ("sasrec", "sasrec_content", "sasrec_frozen", "sasrec_delta", "content_knn")


@pytest.mark.parametrize("model", MODELS)
def test_every_model_runs_and_reports(model, data, tmp_path):
    results = runner.run(config_of(data, model), tmp_path / "run")
    metrics = results["metrics"]
    modes = {name.split("/")[1] for name in metrics if name.startswith("test/")}
    whole = {"open", "open_warm_input", "closed", "closed_warm_input"}
    # Ids alone say nothing about cold items.
    assert modes == ({"closed_warm_input"} if model == "sasrec" else whole)
    for mode in modes:
        parts = [metrics[f"test/{mode}/{who}/hr@5"]["mean"] for who in ("cold", "warm", "total")]
        assert min(parts[:2]) <= parts[2] <= max(parts[:2])
        if mode.startswith("closed"):
            assert parts[0] == 0
    assert {"random", "content_knn"} <= results["baselines"].keys()
    written = json.loads((tmp_path / "run" / "results.json").read_text())
    assert written["metrics"].keys() == metrics.keys()
    assert (tmp_path / "run" / "summary.png").stat().st_size > 10_000
    assert (tmp_path / "run" / "models" / "seed_0" / "model.json").exists()
    assert not (tmp_path / "run" / rundir.CHECKPOINTS).exists()


def test_the_terminal_shows_one_mode(data, tmp_path, capsys):
    runner.run(config_of(data, "content_knn"), tmp_path / "run")
    text = capsys.readouterr().out
    assert "open/total: all targets, all items compete" in text
    assert "closed" not in text
    assert "warm and 3 cold items" in text
    markdown = (tmp_path / "run" / "results.md").read_text()
    assert "test/closed_warm_input/warm: warm targets, warm items compete" in markdown


def test_content_knn_as_a_model_is_the_baseline(data, tmp_path):
    results = runner.run(config_of(data, "content_knn"), tmp_path / "run")
    for name, entry in results["metrics"].items():
        np.testing.assert_equal(entry["mean"], results["baselines"]["content_knn"][name]["mean"])


def test_a_log_without_content_needs_no_baseline(data, tmp_path):
    config = config_of(data, "sasrec", epochs=1)
    with config.unlocked():
        config.data.mode = "none"
    results = runner.run(config, tmp_path / "run")
    assert results["baselines"].keys() == {"random"}
    assert not results["comparisons"]
    assert np.isfinite(results["metrics"]["test/closed_warm_input/total/ndcg@5"]["mean"])


def test_patience_ends_training_and_the_best_epoch_is_tested(data, tmp_path):
    # The second epoch's rate is far too high to gain anything.
    config = config_of(data, epochs=30, learning_rate=0.5, patience=2)
    results = runner.run(config, tmp_path / "run")
    rows = [json.loads(x) for x in (tmp_path / "run" / "metrics.jsonl").read_text().splitlines()]
    scores = [row["val/total/ndcg@5"] for row in rows]
    best = int(np.argmax(scores))
    # One row per epoch: the test metrics are in that of the best one, beside its own loss.
    assert [row["epoch"] for row in rows] == list(range(1, best + 1 + 2 + 1))
    assert len(rows) < 30
    assert len({row["loss"] for row in rows}) == len(rows)
    tested = [any(name.startswith("test/") for name in row) for row in rows]
    assert tested == [number == best for number in range(len(rows))]
    assert results["metrics"]["val/total/ndcg@5"]["values"] == [scores[best]]


def test_cut_runs_with_patience_end_in_the_same_bits(data, tmp_path, monkeypatch):
    config = config_of(data, epochs=8, patience=2, learning_rate=0.05)
    runner.run(config, tmp_path / "whole")
    steps = setup_of(config, tmp_path).model.steps_per_epoch
    for cut in (1, steps, steps + 1):
        cut_run(monkeypatch, cut, config, tmp_path / "cut")
    runner.run(config, tmp_path / "cut")
    assert_same(tmp_path / "cut", tmp_path / "whole")


def test_the_reference_switch_reaches_model_and_candidates(data, tmp_path):
    config = config_of(data)
    with config.unlocked():
        config.model.reference = True
    results = runner.run(config, tmp_path / "run")
    assert np.isfinite(results["metrics"]["test/open/total/ndcg@5"]["mean"])


@pytest.mark.parametrize("name", CONFIGS)
@pytest.mark.parametrize("model", MODELS)
def test_absent_data_are_named_with_their_source(name, model, tmp_path):
    config = CONFIGS[name].get_config(model)
    with config.unlocked():
        config.data.root = str(tmp_path)
    with pytest.raises(MissingDataError, match=r"not found; published at https://"):
        runner.run(base.resolve(config), tmp_path / "run")
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize("name", CONFIGS)
def test_unknown_models_are_refused(name):
    with pytest.raises(ConfigError, match=r"model 'bert' is unknown; choose one of: .*sasrec, "):
        CONFIGS[name].get_config("bert")


@pytest.mark.parametrize(
    ("flag", "said"),
    [
        ("--config.train.patience=0", "config.train.patience: at least 1, not 0"),
        ("--config.model.max_delta_norm=1.5", "model.max_delta_norm is at least 0 and below 1"),
        ("--config.model.item_table=free", "model.item_table is 'random' or 'content'"),
        ("--config.model.dim=10", "set model.dim to at most 6"),
        ("--config.data.protocol=chronological", "data.protocol='chronological': must be one of"),
        ("--config.model.delta=0.5", "config.model.delta is unknown"),
    ],
)
def test_bad_flags_end_in_one_line(flag, said, data, tmp_path):
    command = [sys.executable, "-m", "experiments.main"]
    command += ["--config=experiments/movielens.py", f"--workdir={tmp_path / 'run'}"]
    command += [f"--config.data.root={data}", flag]
    root = pathlib.Path(__file__).parent.parent
    done = subprocess.run(command, cwd=root, capture_output=True, text=True, timeout=300)
    assert done.returncode == 2
    assert said in done.stderr
    assert "Traceback" not in done.stderr
    assert not (tmp_path / "run").exists()


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
    """Runs on one split: two bounds of the delta, free content, ids alone."""
    root = tmp_path_factory.mktemp("finished")
    write_log(root / "data")
    folders = []
    for model, bound in (
        ("sasrec_delta", 0.2),
        ("sasrec_delta", 0.6),
        ("sasrec_content", 0.5),
        ("sasrec", 0.5),
    ):
        config = config_of(root / "data", model, epochs=1)
        with config.unlocked():
            config.model.max_delta_norm = bound
            config.eval.figure = False
        folders.append(root / f"{model}_{bound}")
        runner.run(config, folders[-1])
    return root, folders


def test_figure_of_the_delta_norm(finished, tmp_path, capsys):
    _, folders = finished
    figures.run("delta_norm", folders[:3], tmp_path)
    found = pd.read_csv(tmp_path / "delta_norm.csv")
    total = found[found["targets"] == "total"]
    assert total["bound"].dropna().tolist() == [0.2, 0.6]
    results = json.loads((folders[1] / "results.json").read_text())
    wanted = results["metrics"]["test/open/total/ndcg@5"]["mean"]
    assert total[total["bound"] == 0.6]["mean"].tolist() == pytest.approx([wanted])
    assert (tmp_path / "delta_norm.png").stat().st_size > 5000
    assert "delta_norm.png" in capsys.readouterr().out


@pytest.mark.parametrize("kind", ["warm_fraction", "target_frequency"])
def test_figures_by_question(kind, finished, tmp_path):
    _, folders = finished
    figures.run(kind, folders, tmp_path)
    found = pd.read_csv(tmp_path / f"{kind}.csv", dtype={"bin": str})
    assert found["method"].nunique() == 4
    for folder, (_, part) in zip(folders, found.groupby("method", sort=False), strict=True):
        (run,) = figures.read([folder])
        asked = run.history.counts > 0 if kind == "warm_fraction" else slice(None)
        assert part["sequences"].sum() == len(run.target[asked])
        mean = np.average(part["ndcg"], weights=part["sequences"])
        assert mean == pytest.approx(run.ndcg[asked].mean())
    if kind == "target_frequency":
        (run,) = figures.read(folders[:1])
        cold = found[(found["bin"] == "0") & (found["method"] == run.name)]
        assert cold["sequences"].tolist() == [np.count_nonzero(run.target >= run.num_warm)]


def test_runs_are_compared_question_by_question(finished, tmp_path):
    _, folders = finished
    found = compare.compare(folders)
    assert found["where"] == "test, total"
    assert len(found["runs"]) == 4
    ours, ids = (run.ndcg for run in figures.read([folders[0], folders[3]]))
    test = found["tests"]["SASRec"]
    assert test["users"] == len(ours)
    assert test["difference"] == pytest.approx(np.mean(ids - ours))
    compare.write(found, tmp_path)
    assert "test, total unless said otherwise" in (tmp_path / "compare.md").read_text()
    # The users of another mode are still the same.
    assert found["runs"]["SASRec"]["NDCG"]["mean"] == pytest.approx(ids.mean())


def test_figures_refuse_what_they_cannot_draw(finished, tmp_path):
    root, folders = finished
    with pytest.raises(ConfigError, match="'norm' is no figure; choose one of: delta_norm, warm"):
        figures.run("norm", folders, tmp_path)
    with pytest.raises(ConfigError, match="has no content; name runs of delta"):
        figures.run("delta_norm", folders, tmp_path)
    with pytest.raises(ConfigError, match="not a finished run"):
        figures.run("warm_fraction", [root], tmp_path)
    write_log(tmp_path / "data", seed=1)
    runner.run(config_of(tmp_path / "data", epochs=1), tmp_path / "other")
    with pytest.raises(ConfigError, match="has another split than"):
        figures.run("warm_fraction", [folders[0], tmp_path / "other"], tmp_path)


def test_semco_embeddings_as_content(finished, tmp_path):
    root, folders = finished
    config = base.get_config("semco", dataset="ml-100k", about="")
    with config.unlocked():
        config.seeds = (0,)
        config.data.root = str(root / "data")
        config.data.update(duplicates="drop", allow_unused=True)
        config.data.split_file = str(folders[0] / "split.npz")
        config.model.update(gradient="fenchel_young", tau=5.0, l2=1e-4, hidden=8, out=3)
        config.train.update(epochs=1, batch_size=32)
    runner.run(base.resolve(config), tmp_path / "semco")
    with pytest.raises(ConfigError, match="semco: not a finished run of a sequential model"):
        figures.run("warm_fraction", [tmp_path / "semco"], tmp_path)
    # It has seen what the sequential run trains on, and nothing else.
    served = SEMCo.load(tmp_path / "semco" / "models" / "seed_0")
    with np.load(folders[0] / "split.npz") as split:
        trained = set(split["user_ids"][: len(split["train_indptr"]) - 1].tolist())
    assert set(served.users[served.histories.counts > 0]) <= trained

    joined = config_of(root / "data", "sasrec_frozen", epochs=1)
    with joined.unlocked():
        joined.data.item_content = str(tmp_path / "semco")
        joined.model.update(dim=3, reduce="never")
    dataset = runner.tasks.of(joined).load(joined)
    plain = np.load(root / "data" / "text_feat.npy")[dataset.item_ids]
    np.testing.assert_array_equal(dataset.content, served.embed({"text": plain}))
    results = runner.run(joined, tmp_path / "joined")
    assert np.isfinite(results["metrics"]["test/open/cold/ndcg@5"]["mean"])

    # An embedding that has read the test users is refused.
    with config.unlocked():
        config.data.split_file = None
    runner.run(base.resolve(config), tmp_path / "other")
    with joined.unlocked():
        joined.data.item_content = str(tmp_path / "other")
    with pytest.raises(ConfigError, match="other was trained on users that this data set"):
        runner.run(joined, tmp_path / "bad")
    with joined.unlocked():
        joined.data.item_content = str(root)
    with pytest.raises(ConfigError, match="holds no model; name the --workdir of a finished SEMCo"):
        runner.run(joined, tmp_path / "bad")
