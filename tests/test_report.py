"""Files, tables, progress and the figure of a run."""

import io
import json
import math
import re
import statistics

import numpy as np
import pytest
import rich.console
import scipy.stats

from jaxcold.eval.metrics import evaluate
from jaxcold.reporting import tables as report
from jaxcold.reporting.figures import figure
from jaxcold.types import Csr, EvalSlice, TopK


def metrics_of(seed, users=40, items=30):
    """Metrics of random lists; the held-out items do not depend on the seed."""
    rng, fixed = np.random.default_rng(seed), np.random.default_rng(99)
    lists = np.stack([rng.permutation(items)[:20] for _ in range(users)]).astype(np.int32)
    ids = np.arange(users, dtype=np.int32)
    held = np.stack([fixed.permutation(items)[:3] for _ in range(users)]).ravel()
    positives = Csr(np.arange(users + 1) * 3, held.astype(np.int32))
    nothing = Csr(np.zeros(users + 1, np.int64), np.zeros(0, np.int32))
    pool = np.arange(items, dtype=np.int32)
    topk = TopK(ids, lists, np.zeros(lists.shape, np.float32))
    return evaluate(topk, EvalSlice(ids, positives, nothing, pool, pool), [5, 20])


SLICES = ("val/cold", "test/cold", "test/cold_own", "test/warm")


@pytest.fixture(scope="module")
def results():
    """Two seeds of a model, two baselines and an oracle, with one undefined value."""

    def summary(*seeds):
        rows = [report.flatten(dict.fromkeys(SLICES, metrics_of(seed))) for seed in seeds]
        return report.summarise({name: [row[name] for row in rows] for name in rows[0]})

    model, knn = [metrics_of(0), metrics_of(1)], [metrics_of(2)]
    metrics = summary(0, 1) | report.summarise({"test/warm/mdg@20": [math.nan, 0.1]})
    oracle = summary(4)
    return {
        "config": {"seeds": (0, 1), "data": {"root": None}, "lr": np.float32(0.5)},
        "metrics": metrics,
        "baselines": {"oracle": oracle, "content_knn": summary(2), "random": summary(3)},
        "comparisons": {
            f"test/cold/{name}": test
            for name, test in report.compare(model, knn, ["ndcg@20", "recall@20"]).items()
        },
        "share_of_oracle": report.share_of_oracle(metrics, oracle),
        "seconds": 12.5,
        "peak_memory_bytes": 2 * 10**9,
    }


def test_summarise_by_hand():
    summary = report.summarise({"a": [1.0, 2.0, 6.0], "b": [0.25]})
    deviation = math.sqrt(((1 - 3) ** 2 + (2 - 3) ** 2 + (6 - 3) ** 2) / (3 - 1))
    assert summary["a"] == {"mean": 3.0, "std": pytest.approx(deviation), "values": [1, 2, 6]}
    assert summary["b"] == {"mean": 0.25, "std": 0.0, "values": [0.25]}


def test_compare_is_a_paired_test_of_seed_means():
    model, baseline = [metrics_of(0), metrics_of(1)], [metrics_of(2)]
    test = report.compare(model, baseline, ["ndcg@20"])["ndcg@20"]
    gain = (model[0].per_user["ndcg@20"] + model[1].per_user["ndcg@20"]) / 2
    gain = (gain - baseline[0].per_user["ndcg@20"]).tolist()
    t = statistics.mean(gain) / (statistics.stdev(gain) / math.sqrt(len(gain)))
    assert test["t"] == pytest.approx(t)
    assert test["p"] == pytest.approx(2 * scipy.stats.t.sf(abs(t), len(gain) - 1))
    assert test["difference"] == pytest.approx(statistics.mean(gain))
    assert test["users"] == 40


def test_compare_with_itself_and_with_others():
    one, fewer = metrics_of(0), metrics_of(0, users=39)
    same = report.compare([one], [one], ["ndcg@20"])["ndcg@20"]
    assert same == {"difference": 0.0, "t": 0.0, "p": 1.0, "users": 40}
    with pytest.raises(ValueError, match="same users"):
        report.compare([one], [fewer], ["ndcg@20"])
    alone = report.compare([metrics_of(0, users=1)], [metrics_of(3, users=1)], ["ndcg@20"])
    assert math.isnan(alone["ndcg@20"]["p"])


def test_share_of_oracle_is_of_accuracy_alone():
    summary = report.summarise({"test/cold/ndcg@20": [0.3], "test/cold/gini@20": [0.3]})
    best = report.summarise({"test/cold/ndcg@20": [0.4], "test/cold/gini@20": [0.5]})
    assert report.share_of_oracle(summary, best) == {"test/cold/ndcg@20": pytest.approx(0.75)}


def test_rows_survive_a_kill(tmp_path):
    """Half a line, left by a killed run, costs that line and no other."""
    path = tmp_path / "metrics.jsonl"
    report.append_row(path, {"seed": 0, "loss": math.nan, "ndcg": np.float64(0.5)})
    long = {"seed": 1, "note": "x" * 10_000}
    report.append_row(path, long)
    with open(path, "a") as file:
        file.write('{"seed": 2, "lo' + "s" * 9_000)
    assert report.read_rows(path) == [{"seed": 0, "loss": None, "ndcg": 0.5}, long]
    report.append_row(path, {"seed": 3})
    assert [row["seed"] for row in report.read_rows(path)] == [0, 1, 3]
    path.write_text('{"seed": 0')  # nothing but half a line
    report.append_row(path, {"seed": 4})
    assert report.read_rows(path) == [{"seed": 4}]


def test_broken_row_is_named(tmp_path):
    path = tmp_path / "metrics.jsonl"
    path.write_text('{"seed": 0}\n{"seed"\n{}\n')
    with pytest.raises(ValueError, match=r"metrics\.jsonl, line 2: not JSON"):
        report.read_rows(path)


def test_results_json(tmp_path, results):
    report.write_results(tmp_path, results)
    text = (tmp_path / "results.json").read_text()
    assert "NaN" not in text
    read = json.loads(text)
    assert read["config"] == {"seeds": [0, 1], "data": {"root": None}, "lr": 0.5}
    entry = read["metrics"]["test/cold/ndcg@20"]
    assert entry == results["metrics"]["test/cold/ndcg@20"]  # unrounded
    assert read["metrics"]["test/warm/mdg@20"] == {
        "mean": None,
        "std": None,
        "values": [None, 0.1],
    }
    assert read["baselines"]["random"].keys() == read["metrics"].keys()
    assert read["seconds"] == 12.5
    assert read["peak_memory_bytes"] == 2 * 10**9
    assert sorted(path.name for path in tmp_path.iterdir()) == ["results.json", "results.md"]


def test_results_md(tmp_path, results):
    """Each slice has its candidates in the heading and one row per method, best known last."""
    report.write_results(tmp_path, results, name="SEMCo")
    text = (tmp_path / "results.md").read_text()
    assert "2 seeds, mean ± standard deviation; 12.5 s; peak memory 2.00 GB." in text
    section = text.split("## test/cold: all cold items compete")[1].split("##")[0]
    lines = [line for line in section.splitlines() if line.startswith("|")]
    names = [line.split("|")[1].strip() for line in lines]
    assert names[2:] == ["random", "content-KNN", "SEMCo", "oracle"]
    column = [cell.strip() for cell in lines[0].split("|")].index("ndcg@20")
    entry = results["metrics"]["test/cold/ndcg@20"]
    cell = lines[4].split("|")[column].strip()
    assert cell == f"{entry['mean']:.4f} ±{entry['std']:.4f}"
    oracle = results["baselines"]["oracle"]["test/cold/ndcg@20"]["mean"]
    assert lines[5].split("|")[column].strip() == f"{oracle:.4f}"
    assert re.search(r"\| SEMCo .*\| –", text.split("## test/warm")[1])
    assert f"{results['share_of_oracle']['test/cold/ndcg@20']:.3f}" in text
    assert f"{results['comparisons']['test/cold/ndcg@20']['t']:.2f}" in text


def test_results_without_the_optional_parts(tmp_path, results):
    required = {key: results[key] for key in ("config", "metrics", "seconds", "peak_memory_bytes")}
    report.write_results(tmp_path, required)
    assert json.loads((tmp_path / "results.json").read_text()).keys() == required.keys()
    with pytest.raises(ValueError, match=r"results lack seconds, peak_memory_bytes"):
        report.write_results(tmp_path, {"config": {}, "metrics": {}})


def test_failed_write_leaves_the_old_file(tmp_path, results):
    report.write_results(tmp_path, results)
    before = (tmp_path / "results.json").read_bytes()
    with pytest.raises(TypeError):
        report.write_results(tmp_path, results | {"config": {"bad": object()}})
    assert (tmp_path / "results.json").read_bytes() == before
    assert len(list(tmp_path.iterdir())) == 2


def printed(terminal, width=80):
    """A console that writes into memory."""
    return rich.console.Console(file=io.StringIO(), force_terminal=terminal, width=width)


def test_table_fits_and_is_complete(results):
    console = printed(terminal=False)
    report.print_table(results, console=console)
    text = console.file.getvalue()
    assert max(len(line) for line in text.splitlines()) <= 80
    assert "…" not in text
    for where in ("cold", "cold_own", "warm"):
        entry = results["metrics"][f"test/{where}/ndcg@20"]
        assert f"{entry['mean']:.4f} ±{entry['std']:.4f}".replace("0.", ".") in text
        assert f"{where}: {report.CANDIDATES[where]}" in text
    assert text.count("content-KNN") == text.count("oracle") == 3


def test_progress_in_a_log_prints_a_line_every_ten_seconds():
    now = 0.0
    console = printed(terminal=False)
    with report.Progress(
        "seed 3", total=1000, unit="pairs", console=console, clock=lambda: now
    ) as progress:
        for step in range(1, 11):
            now = 4.0 * step
            progress.advance(100, loss=1 / step)
    assert console.file.getvalue().splitlines() == [
        "seed 3: 30 %, loss 0.3333  25 pairs/s, 12 s, 28 s left",
        "seed 3: 60 %, loss 0.1667  25 pairs/s, 24 s, 16 s left",
        "seed 3: 90 %, loss 0.1111  25 pairs/s, 36 s, 4 s left",
        "seed 3: 100 %, loss 0.1000  25 pairs/s, 40 s",
    ]


def test_progress_in_a_terminal_draws_a_bar():
    console = printed(terminal=True, width=100)
    with report.Progress("seed 3", total=200, unit="pairs", console=console) as progress:
        progress.advance(100, loss=0.25)
        progress.say("epoch 1: cold NDCG@20 0.1 [not markup]")
    text = console.file.getvalue()
    assert "━" in text
    assert "50%" in text
    assert "epoch 1: cold NDCG@20 0.1 [not markup]" in text
    assert "loss 0.2500" in text


def test_progress_says_how_far_a_failed_run_came():
    console = printed(terminal=False)

    def fail():
        with report.Progress("seed 0", total=10, console=console) as progress:
            progress.advance(5, loss=1.0)
            raise RuntimeError

    with pytest.raises(RuntimeError):
        fail()
    assert console.file.getvalue().startswith("seed 0: 50 %")


def test_tensorboard_writes_scalars(tmp_path):
    with report.tensorboard(tmp_path) as log:
        log(1, {"loss": 2.0, "val/cold/ndcg@20": 0.5})
        log(2, {"loss": 1.0})
    (events,) = tmp_path.glob("events.out.tfevents.*")
    data = events.read_bytes()
    assert data.count(b"loss") == 2
    assert b"val/cold/ndcg" in data


def test_peak_memory_is_in_bytes():
    block = np.ones(2**23)
    assert block.nbytes < report.peak_memory() < 1e12


@pytest.mark.parametrize("part", ["all", "bare"])
def test_figure(tmp_path, results, part):
    """A picture of useful size, alone in its folder; also with nothing but metrics."""
    rows = [
        {"seed": seed, "epoch": epoch, "loss": 1 / epoch, "val/cold/ndcg@20": None}
        for seed in (0, 1)
        for epoch in (1, 2)
    ]
    items = {"SEMCo": metrics_of(0), "content_knn": metrics_of(2)}
    if part == "bare":
        rows, items = [], {}
        results = {key: value for key, value in results.items() if key != "baselines"}
    path = figure(tmp_path, rows, results, items)
    assert [entry.name for entry in tmp_path.iterdir()] == ["summary.png"]
    header = path.read_bytes()[:24]
    assert header.startswith(b"\x89PNG")
    width, height = (int.from_bytes(header[at : at + 4]) for at in (16, 20))
    assert (width, height) == (1430, 836)
