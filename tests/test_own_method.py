"""A method that lives in somebody's own package: two files, and every command knows it."""

import json
import os
import signal
import subprocess
import sys

import pytest
from test_entry_point import in_process, send_after
from test_main import ROOT, entry
from test_resume import assert_same, cut_run

import jaxcold
from experiments import clothing, compare, movielens, runner
from experiments import config as base
from experiments import method as methods
from experiments.bench.toy import write_log, write_mmrec
from experiments.workdir import CHECKPOINTS
from jaxcold.estimators.vectors import Vectors

MODEL = '''
"""Content factorisation: one linear layer of content, trained by a pairwise loss.

A user is the mean of the content in the history; both sides go through the same layer.
"""

import jax
import jax.numpy as jnp
import numpy as np
import optax

from jaxcold.data.content import history_means
from jaxcold.models.content_knn import concatenated_unit_rows
from jaxcold.types import Model


def build(content, histories, *, width, batch_size, epochs, learning_rate):
    user, item = histories.row_of_entry.astype(np.int32), histories.indices
    constants = {"item": jnp.array(content), "user": jnp.array(history_means(histories, content))}
    steps = -(-len(user) // batch_size)

    def init(seed):
        weight = jax.random.normal(jax.random.key(seed), (content.shape[1], width))
        return {"main": {"layer": weight / np.sqrt(content.shape[1])}}, ()

    def batches(rng):
        order = rng.permutation(len(user))
        negative = rng.choice(np.unique(item), len(user))
        for start in range(0, len(user), batch_size):
            rows = order[start : start + batch_size]
            padded = np.resize(rows, batch_size)
            weight = (np.arange(batch_size) < len(rows)).astype(np.float32)
            yield user[padded], item[padded], negative[padded], weight

    def loss(params, model_state, constants, batch, key):
        user, item, negative, weight = batch
        layer = params["main"]["layer"]
        better, worse = constants["item"][item], constants["item"][negative]
        difference = ((constants["user"][user] @ layer) * ((better - worse) @ layer)).sum(-1)
        losses = jax.nn.softplus(-difference)
        metrics = {"size": jnp.abs(layer).mean()}
        return jnp.sum(weight * losses), (jnp.sum(weight), model_state, metrics)

    def encode_items(params, model_state, new=None):
        rows = content if new is None else concatenated_unit_rows(new)
        return np.asarray(rows @ params["main"]["layer"])

    def encode_users(params, model_state, items, histories):
        return history_means(histories, items)

    return Model(
        constants=constants,
        init=init,
        losses={"main": loss},
        optimizers={"main": optax.adam(learning_rate)},
        batches=batches,
        encode_items=encode_items,
        encode_users=encode_users,
        steps_per_epoch=steps,
        examples_per_epoch=len(user),
        epochs=epochs,
    )
'''

METHOD = '''
"""The method for the experiments."""

import numpy as np
from ml_collections import config_dict

from experiments.method import Method
from own_package import factorisation
from jaxcold.models.content_knn import concatenated_unit_rows


def fields():
    c = config_dict.ConfigDict()
    c.width = config_dict.placeholder(int)  # of the vectors; unset: tuned
    c.note = "mine"
    return c


def build(config, dataset, devices):
    if config.data.kind == "pairs":
        content, histories = concatenated_unit_rows(dataset.content), dataset.split.train.by_user()
    else:
        content, histories = np.asarray(dataset.content, np.float32), dataset.train
    train = {name: config.train[name] for name in ("epochs", "batch_size", "learning_rate")}
    return factorisation.build(content, histories, width=config.model.width, **train)


METHOD = Method(
    tasks=("pairs", "sequences"),
    title=lambda model: f"factorisation of {model['width']}",
    fields=fields,
    build=build,
    defaults=lambda dataset: {
        "train.epochs": 2,
        "train.batch_size": 64,
        "train.learning_rate": config_dict.placeholder(float),
    },
    tuned=lambda config: {"width": 3, "train.learning_rate": 0.01},
    required=("width",),
    search_space=lambda config: {"width": (2, 3), "train.learning_rate": (0.01, 0.1)},
)
'''
NAME = "own_package.own_method"
TRAINED = "val/cold/ndcg@20"


@pytest.fixture(scope="module")
def patches():
    """Patches for the whole module: the folder is importable here and in other processes."""
    with pytest.MonkeyPatch.context() as patch:
        yield patch
    for name in [name for name in sys.modules if name.partition(".")[0] == "own_package"]:
        del sys.modules[name]


@pytest.fixture(scope="module")
def root(tmp_path_factory, patches):
    root = tmp_path_factory.mktemp("own")
    folder = root / "elsewhere" / "own_package"
    folder.mkdir(parents=True)
    (folder / "factorisation.py").write_text(MODEL)
    (folder / "own_method.py").write_text(METHOD)
    (folder / "empty.py").write_text('"""Nothing."""\n')
    (folder / "needy.py").write_text("import a_module_that_is_absent\n")
    patches.syspath_prepend(folder.parent)
    patches.setenv("PYTHONPATH", str(folder.parent))
    write_mmrec(root / "data", "clothing", ("text",))
    write_log(root / "log")
    return root


def flags_of(root):
    return [f"--config.data.root={root / 'data'}", "--config.seeds=(0,1)"]


@pytest.fixture(scope="module")
def trained(root):
    """The run of the command line."""
    flags = [*flags_of(root), "--config.model.note=by a flag"]
    code, error = entry(*flags, workdir=root / "trained", config=f"experiments/clothing.py:{NAME}")
    assert code == 0, error
    return root / "trained"


def config_of(root, **model):
    config = clothing.get_config(NAME)
    with config.unlocked():
        config.data.root = str(root / "data")
        config.seeds = (0, 1)
        config.model.update(note="by a flag", **model)
    return base.resolve(config)


def test_it_trains_reports_and_saves(root, trained):
    results = json.loads((trained / "results.json").read_text())
    assert results["config"]["model"] == {"name": NAME, "width": 3, "note": "by a flag"}
    assert results["config"]["train"]["learning_rate"] == 0.01
    rows = [json.loads(line) for line in (trained / "metrics.jsonl").read_text().splitlines()]
    assert [(row["seed"], row["epoch"]) for row in rows] == [(0, 1), (0, 2), (1, 1), (1, 2)]
    assert rows[1]["loss"] < rows[0]["loss"]
    assert rows[1]["train/size"] > 0
    assert "factorisation of 3" in (trained / "results.md").read_text()
    served = jaxcold.load(trained / "models" / "seed_1")
    assert isinstance(served, Vectors)
    assert served.item.shape == (60, 3)
    assert served.options["width"] == 3
    lists = served.recommend(served.users, k=5)
    assert len(lists) == 5 * len(served.users)


def test_it_is_compared_with_another_run(root, trained):
    config = config_of(root, width=2)
    with config.unlocked():
        config.eval.figure = False
    runner.run(config, root / "narrow")
    compare.run([trained, root / "narrow"], root / "table")
    compared = json.loads((root / "table" / "compare.json").read_text())
    assert list(compared["runs"]) == [
        "factorisation of 3",
        "factorisation of 2",
    ]


def test_it_goes_on_after_a_power_cut_and_after_sigterm(root, trained, monkeypatch, capsys):
    config = config_of(root)
    with config.unlocked():
        config.checkpoint.every_steps = 3
    steps = methods.find(NAME).build(config, runner.tasks.of(config).load(config), None)
    cut = root / "cut"
    cut_run(monkeypatch, steps.steps_per_epoch + 2, config, cut)
    with monkeypatch.context() as patch:
        send_after(patch, 1, signal.SIGTERM)
        assert in_process(patch, config, cut) == 75
    assert list((cut / CHECKPOINTS).iterdir())
    assert in_process(monkeypatch, config, cut) == 0
    assert "goes on from step" in capsys.readouterr().out
    assert_same(cut, trained)


def test_it_is_tuned(root):
    command = [sys.executable, "-m", "experiments.search", "--trials=2", "--sampler=random"]
    command += [f"--config=experiments/clothing.py:{NAME}", f"--workdir={root / 'search'}"]
    command += [f"--config.data.root={root / 'data'}", "--config.seeds=(0,)"]
    environment = {**os.environ, "XLA_FLAGS": ""}
    done = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    table = (root / "search" / "trials.csv").read_text()
    assert "params_width" in table
    assert "params_train.learning_rate" in table
    best = json.loads((root / "search" / "best" / "results.json").read_text())
    scores = [float(line.split(",")[1]) for line in table.splitlines()[1:]]
    assert best["metrics"][TRAINED]["mean"] == pytest.approx(max(scores))


def test_the_same_method_on_sequences(root):
    config = movielens.get_config(NAME)
    with config.unlocked():
        config.data.root = str(root / "log")
        config.seeds = (0,)
        config.eval.update(cutoffs=(5,), figure=False)
    results = runner.run(base.resolve(config), root / "sequences")
    assert results["metrics"]["test/open/total/ndcg@5"]["mean"] >= 0
    served = jaxcold.load(root / "sequences" / "models" / "seed_0")
    assert isinstance(served, Vectors)
    assert served.item.shape == (33, 3)
    assert len(served.users) == 0  # a history is no vector until the method reads it


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("own_package.empty", "own_package.empty has no METHOD; see experiments/method.py"),
        (
            "own_package.absent",
            "model 'own_package.absent' is unknown; choose one of: aldi, best, clcrec, content_knn",
        ),
        ("no_package.absent", "name a module of your own by its dotted path"),
        ("own_package.needy", "No module named 'a_module_that_is_absent'"),
    ],
)
def test_what_is_no_method_ends_in_one_line(name, message, root, tmp_path):
    config = f"experiments/clothing.py:{name}"
    code, error = entry(config=config, workdir=tmp_path / "run")
    assert code == 2
    assert message in error
    assert len(error.strip().splitlines()) == 1
    assert not (tmp_path / "run").exists()
