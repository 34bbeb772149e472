"""The search: what it tries, what it may see, and that it survives kills and company."""

import csv
import fcntl
import json
import os
import pathlib
import signal
import subprocess
import sys
import time

import optuna
import pytest
from rich.console import Console
from test_main import small

from experiments import citeulike, clothing, movielens, runner, search, setup
from experiments import config as base
from experiments import method as methods
from experiments import task as tasks
from experiments import workdir as rundir
from experiments.bench.toy import write_log, write_mmrec
from jaxcold.train.loop import DivergedError

ROOT = pathlib.Path(__file__).parent.parent


def config_of(root, model="semco", **fields):
    config = small(clothing.get_config(model), root)
    with config.unlocked():
        config.seeds = (0, 1)
        config.model.update(fields)
    return config


@pytest.fixture
def data(tmp_path):
    write_mmrec(tmp_path / "data", "clothing", ("text",))
    return tmp_path / "data"


def score_of(run) -> float:
    """A stand-in for training: best at tau 14, worse with every step away from it."""
    return 0.5 - abs(run.config.model.tau - 14) / 100 - run.config.model.l2


@pytest.fixture
def stub(monkeypatch):
    """No training: trials score `score_of`, and the final run is only noted."""
    seen = {"trials": [], "runs": []}

    def validate(run, seed, *, label, on_score):
        seen["trials"].append(run)
        on_score(1, score_of(run))
        return score_of(run)

    monkeypatch.setattr(runner, "validate", validate)
    monkeypatch.setattr(runner, "run", lambda c, folder, **_: seen["runs"].append((c, folder)))
    return seen


# What a search of semco_online tries.
SEARCHED = {
    "tau",
    "l2",
    "teacher_tau",
    "lam",
    "omega",
    "positives",
    "ema",
    "warmup_epochs",
    "train.epochs",
}


def configs_value(config, field):
    section, _, key = field.rpartition(".")
    return config[section or "model"][key]


def study_of(workdir):
    return optuna.load_study(study_name="search", storage=f"sqlite:///{workdir}/study.db")


def states(workdir):
    return [trial.state.name for trial in study_of(workdir).trials]


def test_space_is_what_the_config_leaves_unset():
    assert search.space(clothing.get_config()) == {
        "tau": [6, 8, 10, 12, 14, 16, 18, 20],
        "l2": [0, 1e-5, 1e-4, 5e-4, 1e-3],
    }
    offline = search.space(clothing.get_config("semco_offline"))
    assert set(offline) == {"tau", "lam", "omega", "positives"}
    online = clothing.get_config("semco_online")
    assert set(search.space(online)) == SEARCHED
    online.train.epochs = 8
    online.model.tau = 7.0
    assert set(search.space(online)) == SEARCHED - {"tau", "train.epochs"}
    # The tuned value is tried even where it lies outside the published range.
    softmax = clothing.get_config()
    softmax.model.alpha = 1.0
    assert 0.005 in search.space(softmax)["l2"]
    exact = citeulike.get_config()
    exact.model.update(alpha=1.5, gradient="fenchel_young")
    assert 1.25 in search.space(exact)["tau"]


def test_what_cannot_be_searched_is_said():
    config = clothing.get_config()
    config.model.alpha = 1.25
    with pytest.raises(base.ConfigError, match=r"config\.model\.alpha.*ranges"):
        search.space(config)
    config = clothing.get_config()
    config.model.gradient = "none"
    with pytest.raises(base.ConfigError, match=r"config\.model\.gradient: one of autodiff"):
        search.space(config)
    config = clothing.get_config()
    config.model.update(tau=1.0, l2=0.0)
    with pytest.raises(base.ConfigError, match="leave some of them out"):
        search.space(config)


@pytest.mark.parametrize(("model", "trials"), [("semco", 2), ("semco_online", 1)])
def test_a_search_ends_in_the_best_values_on_all_seeds(model, trials, data, tmp_path, monkeypatch):
    seen = []
    validate = runner.validate
    monkeypatch.setattr(
        runner, "validate", lambda run, *a, **k: seen.append(run) or validate(run, *a, **k)
    )
    config = config_of(data, model)
    search.search(config, tmp_path / "s", trials=trials)
    assert len(seen) == trials
    for run in seen:  # no pair of the test sets is anywhere
        assert list(run.slices) == ["val/cold"]
        pairs = run.dataset.split.pairs
        assert len(pairs["warm_test"]) == len(pairs["cold_test"]) == 0
        kept = sum(map(len, pairs.values()))
        assert len(run.dataset.interactions.user) == kept > 0
    study = study_of(tmp_path / "s")
    own = methods.find(model).tuned(config)  # the first trial is what the config would have done
    assert study.trials[0].params == {field: own[field] for field in study.trials[0].params}
    assert list(study.trials[0].intermediate_values) == [1]
    results = json.loads((tmp_path / "s" / "best" / "results.json").read_text())
    assert len(results["metrics"]["test/cold/ndcg@5"]["values"]) == 2
    for field, value in study.best_params.items():
        assert configs_value(results["config"], field) == value
    # A trial is a run: the best run's first seed has the same score on validation.
    score = results["metrics"]["val/cold/ndcg@5"]["values"][0]
    assert score == pytest.approx(study.best_value, abs=1e-12)
    with open(tmp_path / "s" / "trials.csv") as file:
        assert [row["state"] for row in csv.DictReader(file)] == ["COMPLETE"] * trials
    assert (tmp_path / "s" / "study.png").read_bytes().startswith(b"\x89PNG")


def test_the_same_command_continues_and_repeats_nothing(data, tmp_path, stub):
    workdir = tmp_path / "s"
    search.search(config_of(data), workdir, trials=6)
    assert len(study_of(workdir).trials) == 6
    first = len(stub["trials"])
    assert 2 <= first <= 6  # values that came twice were not trained twice
    search.search(config_of(data), workdir, trials=9)
    assert len(study_of(workdir).trials) == 9
    tried = [(run.config.model.tau, run.config.model.l2) for run in stub["trials"]]
    assert len(set(tried)) == len(tried)
    best, folder = stub["runs"][-1]
    assert folder == workdir / "best"
    assert tuple(best.seeds) == (0, 1)
    assert 0.5 - abs(best.model.tau - 14) / 100 - best.model.l2 == study_of(workdir).best_value
    search.search(config_of(data), workdir, trials=9)
    assert len(study_of(workdir).trials) == 9


def test_the_best_run_is_replaced_by_that_of_better_values_only(data, tmp_path, monkeypatch, stub):
    replaced = []
    best = tmp_path / "s" / "best"

    def run(config, folder, *, overwrite):
        replaced.append(overwrite)
        folder.mkdir(exist_ok=True)
        (folder / rundir.CONFIG_FILE).write_text(config.to_json())

    monkeypatch.setattr(runner, "run", run)
    search.search(config_of(data), tmp_path / "s", trials=1)
    search.search(config_of(data), tmp_path / "s", trials=1)
    assert replaced == [False, False]
    before = study_of(tmp_path / "s").best_params
    search.search(config_of(data), tmp_path / "s", trials=40)
    assert study_of(tmp_path / "s").best_params != before
    assert replaced == [False, False, True]
    assert best.exists()


def test_the_grid_is_tried_once_whole(data, tmp_path, stub):
    search.search(config_of(data), tmp_path / "s", trials=1000, sampler="grid")
    tried = [(run.config.model.tau, run.config.model.l2) for run in stub["trials"]]
    assert len(set(tried)) == len(tried) == 8 * 5
    assert study_of(tmp_path / "s").best_params == {"tau": 14, "l2": 0}


def test_tpe_comes_nearer_than_chance(data, tmp_path, stub):
    search.search(config_of(data), tmp_path / "s", trials=40)
    found = study_of(tmp_path / "s")
    assert found.best_params["tau"] == 14
    early = [t.value for t in found.trials[: search.START_TRIALS]]
    late = [t.value for t in found.trials[search.START_TRIALS :]]
    assert sum(late) / len(late) > sum(early) / len(early)


def test_hopeless_and_diverged_trials_end_early(data, tmp_path, monkeypatch, stub, capsys):
    epochs = []

    def validate(run, seed, *, label, on_score):
        if run.config.model.tau == 20:
            raise DivergedError("the loss is nan at step 3")
        for epoch in range(1, 11):
            epochs.append((run.config.model.tau, epoch))
            on_score(epoch, score_of(run))
        return score_of(run)

    monkeypatch.setattr(runner, "validate", validate)
    search.search(config_of(data), tmp_path / "s", trials=1000, sampler="grid")
    study = study_of(tmp_path / "s")
    pruned = [t for t in study.trials if t.state.name == "PRUNED"]
    assert {t.params["tau"] for t in pruned} >= {6.0, 20.0}
    assert study.best_params["tau"] == 14
    assert len(epochs) < 10 * 35 * 0.9
    assert (
        min(len(t.intermediate_values) for t in pruned if t.params["tau"] != 20)
        > search.FREE_EPOCHS
    )
    assert "the loss is nan at step 3" in capsys.readouterr().out


def test_nothing_finished_is_an_error(data, tmp_path, monkeypatch):
    def validate(run, seed, *, label, on_score):
        raise DivergedError("the loss is nan at step 3")

    monkeypatch.setattr(runner, "validate", validate)
    with pytest.raises(base.ConfigError, match="no trial came to its end"):
        search.search(config_of(data), tmp_path / "s", trials=2)
    assert not (tmp_path / "s" / "best").exists()


def test_a_damaged_study_is_named(data, tmp_path, stub):
    (tmp_path / "s").mkdir()
    (tmp_path / "s" / "study.db").write_bytes(b"not a database, but long enough to be one" * 100)
    with pytest.raises(base.ConfigError, match=r"study\.db: cannot be read.*delete it") as error:
        search.search(config_of(data), tmp_path / "s", trials=1)
    assert "\n" not in str(error.value)


def test_another_config_is_refused_or_replaced(data, tmp_path, stub):
    search.search(config_of(data), tmp_path / "s", trials=2)
    other = config_of(data, alpha=1.5)
    with pytest.raises(base.ConfigError, match=r"model\.alpha"):
        search.search(other, tmp_path / "s", trials=2)
    with pytest.raises(base.ConfigError, match="sampler"):
        search.search(config_of(data), tmp_path / "s", trials=2, sampler="random")
    assert states(tmp_path / "s") == ["COMPLETE"] * 2
    search.search(other, tmp_path / "s", trials=3, overwrite=True)
    assert states(tmp_path / "s") == ["COMPLETE"] * 3
    assert stub["runs"][-1][0].model.alpha == 1.5


# A process at the same search, with training replaced: argv is data, workdir, seconds a trial.
PROCESS = """
import pathlib, sys, time
import test_search
from experiments import runner, search
from experiments import workdir as rundir
root, workdir, pause = sys.argv[1:]

def validate(run, seed, *, label, on_score):
    pathlib.Path(workdir, "at_work").touch()
    time.sleep(float(pause))
    return test_search.score_of(run)

def final(config, folder, **_):
    with open(pathlib.Path(workdir, "final"), "a") as file:
        file.write("x")

runner.validate, runner.run = validate, final
search.search(test_search.config_of(root), pathlib.Path(workdir), trials=12, sampler="random")
"""


def process(data, workdir, pause):
    path = os.pathsep.join([str(ROOT), str(ROOT / "tests")])
    return subprocess.Popen(
        [sys.executable, "-c", PROCESS, str(data), str(workdir), str(pause)],
        env=os.environ | {"PYTHONPATH": path},
        stdout=subprocess.PIPE,
        text=True,
    )


def wait_for(path):
    deadline = time.monotonic() + 120
    while not path.exists():
        assert time.monotonic() < deadline
        time.sleep(0.05)


def test_a_killed_search_continues(data, tmp_path):
    workdir = tmp_path / "s"
    killed = process(data, workdir, 1000)
    wait_for(workdir / "at_work")
    assert states(workdir) == ["RUNNING"]
    killed.send_signal(signal.SIGKILL)
    killed.communicate()
    again = process(data, workdir, 0)
    again.communicate()
    assert again.returncode == 0
    assert states(workdir) == ["FAIL"] + ["COMPLETE"] * 12
    assert (workdir / "final").read_text() == "x"


def test_processes_share_a_search_even_if_one_is_killed(data, tmp_path):
    workdir = tmp_path / "s"
    stuck = process(data, workdir, 1000)
    wait_for(workdir / "at_work")
    others = [process(data, workdir, 0.2) for _ in range(2)]
    deadline = time.monotonic() + 120
    while states(workdir).count("COMPLETE") < 11:
        assert time.monotonic() < deadline
        time.sleep(0.1)
    stuck.send_signal(signal.SIGKILL)
    said = [other.communicate()[0] for other in others]
    stuck.communicate()
    assert [other.returncode for other in others] == [0, 0]
    found = states(workdir)
    assert found.count("COMPLETE") >= 11
    assert len(found) <= 14
    assert all("trial" in text for text in said)
    # Whoever was last trained the best values, and nobody else did; at worst both left just before
    # the third was killed, and the same command does it.
    if not (workdir / "final").exists():
        last = process(data, workdir, 0)
        last.communicate()
        assert last.returncode == 0
    assert (workdir / "final").read_text() == "x"
    assert states(workdir).count("COMPLETE") >= 12


def test_nobody_joins_while_the_best_is_trained(data, tmp_path, stub, monkeypatch):
    monkeypatch.setattr(search, "PATIENCE", 0.2)
    search.search(config_of(data), tmp_path / "s", trials=1)
    with open(tmp_path / "s" / search.LOCK_FILE, "a") as other:
        fcntl.flock(other, fcntl.LOCK_EX)
        with pytest.raises(base.ConfigError, match="another process trains the best"):
            search.search(config_of(data), tmp_path / "s", trials=1)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--trials=0"], "trials"),
        (["--config.data.root=nowhere"], "nowhere"),
    ],
)
def test_wrong_flags_are_one_line(arguments, message, tmp_path):
    done = subprocess.run(
        [
            sys.executable,
            "-m",
            "experiments.search",
            "--config=experiments/clothing.py",
            f"--workdir={tmp_path / 's'}",
            *arguments,
        ],
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 2
    first = done.stderr.splitlines()[0]
    assert first.startswith("error: ")
    assert message in first
    assert not (tmp_path / "s").exists()


def test_sequential_models_are_searched_too(tmp_path):
    """Two trials of SASRec on validation alone; the best values are trained on all seeds."""
    write_log(tmp_path / "data")
    config = movielens.get_config("sasrec_delta")
    assert set(search.space(config)) == {"dropout", "train.learning_rate", "max_delta_norm"}
    assert set(search.space(movielens.get_config("sasrec"))) == {"dropout", "train.learning_rate"}
    with config.unlocked():
        config.seeds = (0,)
        config.data.root = str(tmp_path / "data")
        config.model.update(max_length=6, dim=4, blocks=1, dropout=0.1)
        config.train.update(epochs=2, batch_size=16)
        config.eval.update(cutoffs=(5,), figure=False)
    search.search(config, tmp_path / "s", trials=2)
    study = study_of(tmp_path / "s")
    assert [trial.state.name for trial in study.trials] == ["COMPLETE"] * 2
    # The first trial is what the config would have done.
    assert study.trials[0].params == {"train.learning_rate": 1e-3, "max_delta_norm": 0.5}
    results = json.loads((tmp_path / "s" / "best" / "results.json").read_text())
    score = results["metrics"]["val/total/ndcg@5"]["values"][0]
    assert score == pytest.approx(study.best_value, abs=1e-12)


def test_a_trial_with_patience_ends_as_a_run_does(data, tmp_path, monkeypatch):
    config = config_of(data, tau=5.0, l2=0.0)
    with config.unlocked():
        config.train.update(epochs=6, patience=1)
    config = base.resolve(config)
    task = tasks.of(config)
    dataset = task.load(config)
    slices = task.slices(config, dataset)
    run = setup.make_setup(config, dataset, slices, tmp_path, tmp_path, Console(quiet=True))
    scores, seen = iter([0.1, 0.3, 0.2, 0.9]), []
    name = setup.headline(config)
    monkeypatch.setattr(setup.Setup, "evaluate", lambda *_: {})
    monkeypatch.setattr(runner.statistics, "flatten", lambda metrics: {name: next(scores)})
    best = runner.validate(run, 0, label="", on_score=lambda *known: seen.append(known))
    assert seen == [(1, 0.1), (2, 0.3), (3, 0.2)]
    assert best == 0.3
