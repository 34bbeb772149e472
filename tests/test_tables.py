"""results.json, results.md and the table in the terminal."""

import io
import json
import math
import re

import numpy as np
import pytest
import rich.console
from test_statistics import metrics_of

from jaxcold.eval import statistics
from jaxcold.reporting import tables

SLICES = ("val/cold", "test/cold", "test/cold_own", "test/warm")


@pytest.fixture(scope="module")
def results():
    """Two seeds of a model, two baselines and an oracle, with one undefined value."""

    def summary(*seeds):
        rows = [statistics.flatten(dict.fromkeys(SLICES, metrics_of(seed))) for seed in seeds]
        return statistics.summarise({name: [row[name] for row in rows] for name in rows[0]})

    model, knn = [metrics_of(0), metrics_of(1)], [metrics_of(2)]
    metrics = summary(0, 1) | statistics.summarise({"test/warm/mdg@20": [math.nan, 0.1]})
    oracle = summary(4)
    return {
        "config": {"seeds": (0, 1), "data": {"root": None}, "lr": np.float32(0.5)},
        "metrics": metrics,
        "baselines": {"oracle": oracle, "content_knn": summary(2), "random": summary(3)},
        "comparisons": {
            f"test/cold/{name}": test
            for name, test in statistics.compare(model, knn, ["ndcg@20", "recall@20"]).items()
        },
        "share_of_oracle": statistics.share_of_oracle(metrics, oracle),
        "seconds": 12.5,
        "peak_memory_bytes": 2 * 10**9,
    }


def test_results_json(tmp_path, results):
    tables.write_results(tmp_path, results)
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
    tables.write_results(tmp_path, results, name="SEMCo")
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
    test = results["comparisons"]["test/cold/ndcg@20"]
    assert f"| {test['t']:.2f} | {test['p']:.2g} | {test['p_seeds']:.2g} | 40 " in re.sub(
        " +", " ", text
    )


def test_without_seeds_there_is_no_p_over_seeds(tmp_path, results):
    test = {"difference": 0.1, "t": 2.0, "p": 0.05, "p_seeds": math.nan, "users": 40}
    tables.write_results(tmp_path, results | {"comparisons": {"test/cold/ndcg@20": test}})
    assert "| 0.05 | – |" in re.sub(" +", " ", (tmp_path / "results.md").read_text())
    found = json.loads((tmp_path / "results.json").read_text())["comparisons"]
    assert found["test/cold/ndcg@20"]["p_seeds"] is None


def test_results_without_the_optional_parts(tmp_path, results):
    required = {key: results[key] for key in ("config", "metrics", "seconds", "peak_memory_bytes")}
    tables.write_results(tmp_path, required)
    assert json.loads((tmp_path / "results.json").read_text()).keys() == required.keys()
    with pytest.raises(ValueError, match=r"results lack seconds, peak_memory_bytes"):
        tables.write_results(tmp_path, {"config": {}, "metrics": {}})


def test_failed_write_leaves_the_old_file(tmp_path, results):
    tables.write_results(tmp_path, results)
    before = (tmp_path / "results.json").read_bytes()
    with pytest.raises(TypeError):
        tables.write_results(tmp_path, results | {"config": {"bad": object()}})
    assert (tmp_path / "results.json").read_bytes() == before
    assert len(list(tmp_path.iterdir())) == 2


def printed(terminal, width=80):
    """A console that writes into memory."""
    return rich.console.Console(file=io.StringIO(), force_terminal=terminal, width=width)


def test_table_fits_and_is_complete(results):
    console = printed(terminal=False)
    tables.print_table(results, console=console)
    text = console.file.getvalue()
    assert max(len(line) for line in text.splitlines()) <= 80
    assert "…" not in text
    for where in ("cold", "cold_own", "warm"):
        entry = results["metrics"][f"test/{where}/ndcg@20"]
        assert f"{entry['mean']:.4f} ±{entry['std']:.4f}".replace("0.", ".") in text
        assert f"{where}: {tables.CANDIDATES[where]}" in text
    assert text.count("content-KNN") == text.count("oracle") == 3
