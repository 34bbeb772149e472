"""What is reported is what is saved: the saved model is loaded, evaluated, and has the numbers."""

import json

import numpy as np
import pytest
from test_main import small
from test_sequential_runs import config_of as sequential_config

import jaxcold
from experiments import clothing, runner
from experiments import config as base
from experiments import task as tasks
from experiments.bench.toy import write_log, write_mmrec
from jaxcold.data.content import history_means
from jaxcold.eval.metrics import evaluate
from jaxcold.eval.ranking import top_k
from jaxcold.types import Representations, TopK


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    root = tmp_path_factory.mktemp("data")
    write_mmrec(root / "pairs", "clothing", ("text",))
    write_log(root / "sequences")
    return root


# A rate at which the best epoch is not the last.
PAIRS = {
    "semco": {},
    "semco_patience": {"train.patience": 1},
    "semco_offline": {},
    "semco_offline_patience": {"train.patience": 1, "model.teacher_epochs": 3},
    "semco_offline_keep_best": {"checkpoint.keep_best": True, "model.teacher_epochs": 3},
    "semco_online": {},
    "semco_online_patience": {"train.patience": 1},
    "content_knn": {},
    "hybrid": {"model.width": 8},
}


def pairs_config(data, name):
    model = name.removesuffix("_patience").removesuffix("_keep_best")
    config = clothing.get_config(model)
    if model != "content_knn":
        config = small(config, data / "pairs")
    with config.unlocked():
        config.seeds = (0,)
        config.data.root = str(data / "pairs")
        config.eval.update(cutoffs=(5,), figure=False)
        if model != "content_knn":
            config.train.update(epochs=4, batch_size=32, learning_rate=0.05)
        config.update_from_flattened_dict(PAIRS[name])
    return base.resolve(config)


def assert_reported(metrics, results, name):
    for metric, value in metrics.mean().items():
        reported = results["metrics"][f"{name}/{metric}"]["values"][0]
        np.testing.assert_allclose(value, reported, atol=1e-6, err_msg=f"{name}/{metric}")


@pytest.mark.parametrize("name", PAIRS)
def test_of_pairs(name, data, tmp_path):
    config = pairs_config(data, name)
    results = runner.run(config, tmp_path)
    served = jaxcold.load(tmp_path / "models" / "seed_0")
    task = tasks.of(config)
    for where, eval_slice in task.slices(config, task.load(config)).items():
        users = (
            served.user
            if name == "content_knn"
            else served.encoder.blend.users(served.item, eval_slice.histories)
            if name == "hybrid"
            else history_means(eval_slice.histories, served.item)
        )
        lists = top_k(Representations(users, served.item), eval_slice, 5, tie_cutoffs=(5,))
        assert_reported(evaluate(lists, eval_slice, (5,)), results, where)
    if "offline" in name:
        rows = [json.loads(line) for line in (tmp_path / "metrics.jsonl").read_text().splitlines()]
        tested = [row["epoch"] for row in rows if "test/cold/ndcg@5" in row]
        (epoch,) = tested
        assert epoch > config.model.teacher_epochs
        if "patience" in name:
            scores = {r["epoch"]: r["val/cold/ndcg@5"] for r in rows if r["epoch"] > 3}
            assert epoch == max(scores, key=scores.get)
            teacher = [r["val/cold/ndcg@5"] for r in rows if r["epoch"] <= 3]
            assert len(teacher) == 3  # shown, but never chosen
        if "keep_best" in name:
            (kept,) = (tmp_path / "best_checkpoints" / "seed_0").iterdir()
            steps = rows[-1]["step"] // rows[-1]["epoch"]
            assert int(kept.name) > 3 * steps


def lists_of(served, eval_slice, dataset):
    """What `recommend` says to the slice's histories, as a ranking of its users."""
    histories = {
        int(user): dataset.item_ids[eval_slice.histories.take([user]).indices].tolist()
        for user in eval_slice.users
    }
    known = set(served.items)
    candidates = [i for i in dataset.item_ids[eval_slice.candidates].tolist() if i in known]
    frame = served.recommend(histories, 5, candidates=candidates, unknown="drop")
    number = {item: row for row, item in enumerate(dataset.item_ids.tolist())}
    items = np.full((len(eval_slice.users), 5), -1, np.int32)
    scores = np.full(items.shape, -np.inf, np.float32)
    row_of_user = {int(user): row for row, user in enumerate(eval_slice.users)}
    for user, item, rank, score in frame[["user", "item", "rank", "score"]].itertuples(index=False):
        items[row_of_user[user], rank - 1] = number[item]
        scores[row_of_user[user], rank - 1] = score
    return TopK(eval_slice.users, items, scores)


@pytest.mark.parametrize("model", ["sasrec", "sasrec_content", "sasrec_frozen", "sasrec_delta"])
def test_of_sequences(model, data, tmp_path):
    config = sequential_config(data / "sequences", model, patience=1)
    with config.unlocked():
        config.eval.update(figure=False, ties="id")  # as `recommend` orders them
    results = runner.run(config, tmp_path)
    served = jaxcold.load(tmp_path / "models" / "seed_0")
    task = tasks.of(config)
    dataset = task.load(config)
    slices = task.slices(config, dataset)
    assert ("test/open/total" in slices) == (model != "sasrec")
    for where, eval_slice in slices.items():
        if not len(eval_slice.users):
            continue
        lists = lists_of(served, eval_slice, dataset)
        assert_reported(evaluate(lists, eval_slice, (5,)), results, where)
