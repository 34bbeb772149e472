"""The real entry point: every configuration on small data of its layout, and every wrong flag."""

import contextlib
import json
import os
import pathlib
import subprocess
import sys

import numpy as np
import pytest

import jaxcold
from experiments import citeulike, clothing, electronics, microlens, onion, quickstart, runner
from experiments import config as base
from experiments.bench.toy import write_mmrec
from jaxcold.types import MissingDataError

ROOT = pathlib.Path(__file__).parent.parent
CONFIGS = {
    "quickstart": quickstart,
    "citeulike": citeulike,
    "clothing": clothing,
    "electronics": electronics,
    "microlens": microlens,
    "onion": onion,
}


def small(config, root=None):
    """The configuration at a size that takes seconds."""
    with config.unlocked():
        config.seeds = (0,)
        config.data.root = None if root is None else str(root)
        config.model.update(hidden=8, out=4)
        if "teacher_hidden" in config.model:
            config.model.update(teacher_hidden=8, teacher_out=6)
        config.train.update(epochs=2, batch_size=64)
        config.eval.update(cutoffs=(5,))
    return config


@pytest.mark.parametrize("name", CONFIGS)
def test_every_config_trains_and_reports(name, tmp_path):
    config = CONFIGS[name].get_config()
    if name != "quickstart":
        with config.unlocked():
            config.data.content = "files"
        modes = config.data.modes or ("graph", "text")
        write_mmrec(tmp_path / "data", config.data.name, modes)
    config = base.resolve(small(config, tmp_path / "data"))
    workdir = tmp_path / "run"
    returned = runner.run(config, workdir)

    results = json.loads((workdir / "results.json").read_text())
    assert results["config"]["model"]["tau"] > 0
    for where in (
        "val/cold",
        "val/cold_own",
        "val/warm",
        "test/cold",
        "test/cold_own",
        "test/warm",
    ):
        for metric in ("recall", "ndcg", "mdg", "gini", "hr", "mrr", "coverage"):
            entry = results["metrics"][f"{where}/{metric}@5"]
            assert set(entry) == {"mean", "std", "values"}
            assert len(entry["values"]) == 1
            assert 0 <= entry["mean"] <= 1
    assert results["baselines"].keys() >= {"content_knn", "random"}
    assert results["seconds"] > 0
    assert results["peak_memory_bytes"] > 1e6
    assert returned["metrics"] == results["metrics"]
    rows = [json.loads(line) for line in (workdir / "metrics.jsonl").read_text().splitlines()]
    assert [(row["seed"], row["epoch"]) for row in rows] == [(0, 1), (0, 2)]
    # Validation is watched, the test sets are looked at once.
    assert not any(key.startswith("test/") for key in rows[0])
    assert any(key.startswith("test/") for key in rows[1])
    assert "content-KNN" in (workdir / "results.md").read_text()
    assert list((workdir / "tb" / "seed_0").glob("events.out.tfevents*"))
    assert (workdir / "summary.png").read_bytes().startswith(b"\x89PNG")
    served = jaxcold.load(workdir / "models" / "seed_0")
    assert len(served.recommend(k=3)) == 3 * len(served.users)
    with np.load(workdir / "split.npz", allow_pickle=False) as split:
        assert set(split) >= {"warm_train", "cold_test", "warm_items"}


@pytest.mark.parametrize("name", CONFIGS)
def test_every_config_has_values_for_distillation(name):
    for model in ("semco_offline", "semco_online"):
        config = base.resolve(CONFIGS[name].get_config(model))
        assert min(config.model[f] for f in ("tau", "teacher_tau", "omega", "lam", "positives")) > 0
        assert config.model.teacher_epochs <= config.train.epochs
    unset = CONFIGS[name].get_config("semco_online")
    unset.model.alpha = 1.25  # between the mappings that have values
    with pytest.raises(base.ConfigError, match=r"--config\.model\.omega=NUMBER"):
        base.resolve(unset)


def test_distillation_trains_reports_and_takes_a_finished_teacher(tmp_path):
    write_mmrec(tmp_path / "data", "clothing", ("text",))
    results = {}
    for model, teacher in {"semco_offline": None, "semco_online": None, "again": "x"}.items():
        config = small(
            clothing.get_config(model if teacher is None else "semco_offline"), tmp_path / "data"
        )
        config.train.batch_size = 16  # an epoch of more steps than lie between two measurements
        if teacher is not None:
            wide = small(clothing.get_config(), tmp_path / "data")
            wide.model.update(hidden=8, out=6)
            runner.run(base.resolve(wide), tmp_path / "teacher")
            config.model.teacher = str(tmp_path / "teacher")
        results[model] = runner.run(base.resolve(config), tmp_path / model)
        rows = [
            json.loads(r) for r in (tmp_path / model / "metrics.jsonl").read_text().splitlines()
        ]
        assert rows[-1]["epoch"] == (4 if model == "semco_offline" else 2)
        for name in ("support/student", "target_in_support/teacher", "ema_drift"):
            assert 0 <= rows[-1][f"train/{name}"] <= 1, name
        served = jaxcold.load(tmp_path / model / "models" / "seed_0")
        assert served.embed({"text": np.ones((1, 6))}).shape == (1, 4)
        assert (tmp_path / model / "summary.png").exists()
    assert "SEMCo-Online sparsemax" in (tmp_path / "semco_online" / "results.md").read_text()

    other = small(clothing.get_config("semco_offline"), tmp_path / "data")
    other.model.teacher = str(tmp_path / "teacher")
    other.data.split_seed = 7
    with pytest.raises(base.ConfigError, match=r"split_file=.*split\.npz"):
        runner.run(base.resolve(other), tmp_path / "other")
    other.model.teacher = str(tmp_path / "nowhere")
    with pytest.raises(base.ConfigError, match="nowhere"):
        runner.run(base.resolve(other), tmp_path / "other")


def test_two_runs_give_the_same_bits_and_a_written_split_is_read_back(tmp_path):
    write_mmrec(tmp_path / "data", "clothing", ("text",))
    metrics = []
    for run in ("first", "second"):
        config = small(clothing.get_config(), tmp_path / "data")
        if run == "second":
            config.data.split_file = str(tmp_path / "first" / "split.npz")
            config.data.split_seed = 7  # would give another split
        metrics.append(runner.run(base.resolve(config), tmp_path / run)["metrics"])
    assert metrics[0] == metrics[1]


def test_the_authors_layout_is_read(tmp_path):
    write_mmrec(tmp_path / "data", "clothing", ("text",))
    config = base.resolve(small(clothing.get_config(), tmp_path / "data"))
    first = runner.run(config, tmp_path / "first")
    folder = tmp_path / "authors"
    (folder / "cold_item").mkdir(parents=True)
    (folder / "feats").mkdir()
    np.save(folder / "feats" / "text.npy", np.load(tmp_path / "data" / "text_feat.npy"))
    names = dict.fromkeys(("warm_train", "warm_val", "warm_test")) | {
        "cold_val": "cold_item_val",
        "cold_test": "cold_item_test",
    }
    with np.load(tmp_path / "first" / "split.npz", allow_pickle=False) as split:
        for part, file in names.items():
            lines = ["user,item", *(f"{user},{item}" for user, item in split[part])]
            (folder / "cold_item" / f"{file or part}.csv").write_text("\n".join(lines) + "\n")
    again = small(clothing.get_config(), folder)
    second = runner.run(base.resolve(again), tmp_path / "second")
    assert second["metrics"]["test/cold/ndcg@5"] == first["metrics"]["test/cold/ndcg@5"]


def test_semco_learns_the_embedded_data_set(tmp_path):
    """One seed of the quickstart: far above the baselines, and near the best possible ranking."""
    config = quickstart.get_config()
    with config.unlocked():
        config.seeds = (0,)
        config.eval.figure = False
    results = runner.run(base.resolve(config), tmp_path)
    semco = results["metrics"]["test/cold/ndcg@20"]["mean"]
    knn = results["baselines"]["content_knn"]["test/cold/ndcg@20"]["mean"]
    chance = results["baselines"]["random"]["test/cold/ndcg@20"]["mean"]
    assert chance < knn < semco
    assert semco > 1.5 * knn
    assert results["share_of_oracle"]["test/cold/ndcg@20"] > 0.75
    assert results["comparisons"]["test/cold/ndcg@20"]["p"] < 1e-6


@pytest.mark.parametrize("name", [name for name in CONFIGS if name not in ("quickstart",)])
def test_absent_data_are_named_with_their_source(name, tmp_path):
    config = CONFIGS[name].get_config()
    with config.unlocked():
        config.data.content = "files"
        config.data.root = str(tmp_path / "nowhere")
    with pytest.raises(MissingDataError, match="published at https://") as error:
        runner.run(base.resolve(config), tmp_path / "run")
    assert str(tmp_path / "nowhere") in str(error.value)
    assert "\n" not in str(error.value)
    assert not (tmp_path / "run").exists()
    for part in ("Paper", "Data", "Published", "Command", "Expected"):
        assert part in config.about


def entry(*arguments, workdir=None, config="experiments/clothing.py"):
    """Runs the command line; returns (exit code, standard error)."""
    command = [sys.executable, "-m", "experiments.main"]
    command += [f"--config={config}"] if config else []
    command += [f"--workdir={workdir}"] if workdir else []
    environment = {**os.environ, "XLA_FLAGS": ""}
    done = subprocess.run(
        [*command, *arguments], cwd=ROOT, env=environment, capture_output=True, text=True
    )
    return done.returncode, done.stderr


def test_absent_data_end_with_the_header_of_the_config(tmp_path):
    code, error = entry(f"--config.data.root={tmp_path}", workdir=tmp_path / "run")
    first, *header = error.strip().splitlines()
    assert code == 2
    assert first.startswith("error: ")
    assert "clothing.inter" in first
    assert "github.com/enoche/MMRec" in first
    assert "Paper     Meehan and Pauwels" in error
    assert "Traceback" not in error
    assert "Expected" in "\n".join(header)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (
            ["--config.model.alfa=2"],
            "config.model.alfa is unknown; did you mean config.model.alpha?",
        ),
        (["--config.modal.alpha=1"], "did you mean config.model.alpha?"),
        (["--config.data.val_share=.2"], "is now called config.data.val_fraction"),
        (["--config.model.zzz=1"], "config.model.zzz is unknown"),
        (["--config.model.alpha=many"], "config.model.alpha"),
        (["--config.train.epochs=1.5"], "config.train.epochs"),
        (["--confg.seeds=(0,)"], "confg"),
    ],
)
def test_a_mistyped_flag_is_named_with_the_right_one(arguments, message, tmp_path):
    code, error = entry(*arguments, workdir=tmp_path / "run")
    assert code == 2
    assert message in error
    assert len(error.strip().splitlines()) == 1
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--config.model.alpha=1.25"], "config.model.tau, config.model.l2: unset"),
        (["--config.model.gradient=fenchel_young"], "--config.model.tau=NUMBER"),
        (["--config.train.epochs=0"], "config.train.epochs: at least 1, not 0"),
        (["--config.train.batch_size=-1"], "config.train.batch_size: at least 1"),
        (["--config.train.learning_rate=0"], "config.train.learning_rate: a number above 0"),
        (["--config.train.learning_rate=nan"], "config.train.learning_rate: a number, not nan"),
        (["--config.model.alpha=3"], "config.model.alpha: between 1 (softmax) and 2 (sparsemax)"),
        (["--config.model.name=semco_online"], "config.model.name: a method is chosen after"),
        (["--config.seeds=(1,1)"], "config.seeds: each seed once"),
        (["--config.seeds=()"], "config.seeds: one or more"),
        (["--config.seeds=(0,x)"], "config.seeds: one or more whole numbers from 0"),
        (["--config.eval.cutoffs=(0,)"], "config.eval.cutoffs"),
        (["--config.eval.ties=random"], "config.eval.ties: expected or id, not 'random'"),
        (["stray"], "argument 'stray'"),
    ],
)
def test_bad_values_end_in_one_line(arguments, message, tmp_path):
    code, error = entry(*arguments, workdir=tmp_path / "run")
    assert code == 2
    assert message in error
    assert len(error.strip().splitlines()) == 1
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize(
    ("config", "message"),
    [
        ("experiments/clothing.py:nothing", "choose one of: aldi, best, clcrec, "),
        ("experiments/nothing.py", "experiments/nothing.py"),
        (None, "--config is required"),
    ],
)
def test_a_config_that_does_not_exist_ends_in_one_line(config, message, tmp_path):
    code, error = entry(config=config, workdir=tmp_path / "run")
    assert code == 2
    assert message in error
    assert len(error.strip().splitlines()) == 1


def test_a_workdir_is_required_and_keeps_what_another_run_left(tmp_path):
    assert "--workdir is required" in entry()[1]
    (tmp_path / "file").write_text("mine")
    code, error = entry(workdir=tmp_path / "file")
    assert (code, (tmp_path / "file").read_text()) == (2, "mine")
    assert "is a file; name a folder" in error

    write_mmrec(tmp_path / "data", "clothing", ("text",))
    config = small(clothing.get_config(), tmp_path / "data")
    workdir = tmp_path / "run"
    runner.run(base.resolve(config), workdir)
    before = (workdir / "results.json").read_bytes()
    (workdir / "notes.txt").write_text("mine")
    config.model.alpha = 1.0
    with pytest.raises(base.ConfigError, match=r"another config \(.*model\.alpha"):
        runner.run(base.resolve(config), workdir)
    assert (workdir / "results.json").read_bytes() == before
    runner.run(base.resolve(config), workdir, overwrite=True)
    assert (workdir / "results.json").read_bytes() != before
    assert (workdir / "notes.txt").read_text() == "mine"
    assert len((workdir / "metrics.jsonl").read_text().splitlines()) == 2


def test_a_run_that_diverges_names_step_seed_and_config(tmp_path):
    write_mmrec(tmp_path / "data", "clothing", ("text",))
    config = small(clothing.get_config(), tmp_path / "data")
    config.train.learning_rate = 1e38
    with pytest.raises(
        FloatingPointError, match=r"at step \d+ \(epoch \d\), seed 0; config .*json"
    ):
        runner.run(base.resolve(config), tmp_path / "run")
    assert not (tmp_path / "run" / "results.json").exists()


def test_every_field_of_the_config_reaches_the_code_that_uses_it(tmp_path):
    """Values that only their own consumer rejects, so a field that nobody reads would pass."""
    write_mmrec(tmp_path / "data", "clothing", ("text",))
    wrong = {
        "model.gradient": "none",
        "model.encode": "none",
        "model.batch_norm": "none",
        "model.user_vector": "none",
        "model.alpha": 3.0,
        "model.tau": -1.0,
        "model.hidden": 0,
        "model.out": 0,
        "data.content": "none",
        "data.reader": "none",
        "data.duplicates": "none",
        "data.modes": ("none",),
        "data.split_file": "none.npz",
    }
    for name, value in wrong.items():
        config = small(clothing.get_config(), tmp_path / "data")
        config.model.update(tau=1.0, l2=0.0)
        with contextlib.suppress(AttributeError):
            config.update_from_flattened_dict({name: value})
        with pytest.raises(ValueError, match=name.rpartition(".")[2] + "|none"):
            runner.run(base.resolve(config), tmp_path / "run")
        assert not (tmp_path / "run").exists()
