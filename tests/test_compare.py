"""Finished runs side by side."""

import json
import shutil
import subprocess
import sys

import numpy as np
import pytest
import scipy.stats
from test_main import ROOT, small, write_mmrec

from experiments import clothing, compare, runner
from experiments import config as base
from jaxcold.reporting import run_log


@pytest.fixture(scope="module")
def runs(tmp_path_factory):
    root = tmp_path_factory.mktemp("compare")
    write_mmrec(root / "data", "clothing", ("text",))
    for name, change in {
        "sparsemax": {},
        "softmax": {"alpha": 1.0},
        "exact": {"gradient": "fenchel_young", "tau": 3.0, "l2": 1e-4},
    }.items():
        config = small(clothing.get_config(), root / "data")
        with config.unlocked():
            config.seeds = (0, 1)
            config.eval.figure = False
            config.model.update(change)
        runner.run(base.resolve(config), root / name)
    return root


def test_runs_are_told_apart_and_tested_over_users(runs, tmp_path, capsys):
    folders = [runs / name for name in ("sparsemax", "softmax", "exact")]
    compare.run(folders, tmp_path / "table")
    found = json.loads((tmp_path / "table" / "compare.json").read_text())
    first, softmax, exact = found["runs"]
    assert softmax == "SEMCo softmax"
    assert first.startswith("SEMCo sparsemax (")
    for part in ("gradient fenchel_young", "tau 3.0", "l2 0.0001"):
        assert part in exact
    results = json.loads((runs / "softmax" / "results.json").read_text())
    entry = results["metrics"]["test/cold/ndcg@5"]
    assert found["runs"][softmax]["NDCG"] == {"mean": entry["mean"], "std": entry["std"]}
    assert found["runs"][softmax]["seeds"] == 2
    # The test is that of the per-user values, whose means are the reported ones.
    values = [
        run_log.read_slice(runs / n / "per_user.npz", "test/cold") for n in ("softmax", "sparsemax")
    ]
    assert np.mean(values[0]["ndcg@5"]) == pytest.approx(entry["mean"])
    t, p = scipy.stats.ttest_rel(values[0]["ndcg@5"], values[1]["ndcg@5"])
    assert found["tests"][softmax]["t"] == pytest.approx(t)
    assert found["tests"][softmax]["p"] == pytest.approx(p)
    # And a test of the seeds' means.
    both = [json.loads((runs / n / "results.json").read_text()) for n in ("softmax", "sparsemax")]
    means = [run["metrics"]["test/cold/ndcg@5"]["values"] for run in both]
    p = scipy.stats.ttest_ind(*means, equal_var=False).pvalue
    assert found["tests"][softmax]["p_seeds"] == pytest.approx(p)
    assert set(found["tests"]) == {softmax, exact}
    text = (tmp_path / "table" / "compare.md").read_text()
    assert all(name in text for name in found["runs"])
    assert (tmp_path / "table" / "compare.png").read_bytes().startswith(b"\x89PNG")
    assert "SEMCo" in capsys.readouterr().out


def test_the_same_run_twice_has_two_names(runs):
    found = compare.compare([runs / "softmax", runs / "softmax"])
    assert list(found["runs"]) == ["SEMCo softmax #1", "SEMCo softmax #2"]
    (test,) = found["tests"].values()
    assert (test["difference"], test["p"]) == (0.0, 1.0)
    assert test["p_seeds"] == pytest.approx(1.0)


def test_other_splits_and_unfinished_runs_are_refused(runs, tmp_path):
    config = small(clothing.get_config(), runs / "data")
    with config.unlocked():
        config.data.split_seed = 7
        config.eval.figure = False
    runner.run(base.resolve(config), tmp_path / "other")
    with pytest.raises(base.ConfigError, match=r"other: has another split.*split_file="):
        compare.compare([runs / "softmax", tmp_path / "other"])
    with pytest.raises(base.ConfigError, match="not a finished run"):
        compare.compare([runs / "softmax", tmp_path / "nowhere"])
    (tmp_path / "other" / "per_user.npz").write_bytes(b"")
    with pytest.raises(ValueError, match=r"per_user\.npz: cannot be read"):
        compare.compare([tmp_path / "other", tmp_path / "other"])


def test_the_command_line(runs, tmp_path):
    def call(*arguments):
        return subprocess.run(
            [sys.executable, "-m", "experiments.compare", *map(str, arguments)],
            cwd=ROOT,
            capture_output=True,
            text=True,
            check=False,
        )

    done = call(runs / "softmax", runs / "sparsemax", f"--workdir={tmp_path / 't'}")
    assert done.returncode == 0, done.stderr
    assert "SEMCo sparsemax" in done.stdout
    assert (tmp_path / "t" / "compare.md").exists()
    wrong = call(runs / "softmax", f"--workdir={tmp_path / 'u'}")
    assert wrong.returncode == 2
    assert wrong.stderr.startswith("error: two or more finished runs")
    assert len(wrong.stderr.splitlines()) == 1


def test_runs_with_other_orders_of_ties_are_refused(runs, tmp_path):
    other = shutil.copytree(runs / "softmax", tmp_path / "by_id")
    results = json.loads((other / "results.json").read_text())
    assert results["config"]["eval"]["ties"] == "expected"
    results["config"]["eval"]["ties"] = "id"
    (other / "results.json").write_text(json.dumps(results))
    with pytest.raises(base.ConfigError, match=r"run them with one eval\.ties"):
        compare.compare([runs / "softmax", other])
