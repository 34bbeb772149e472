"""The papers' Table 2 from one command: what is run, by how many processes, and what is written."""

import json
import signal
import subprocess
import sys
import time

import pandas as pd
import pytest
from rich.console import Console
from test_main import ROOT

from experiments import clothing, plan, table, table_report
from experiments import workdir as workdirs
from experiments.bench.toy import write_log, write_mmrec
from experiments.method import ConfigError
from experiments.published import published

METHODS = ("content_knn", "ridge", "semco_sparsemax")


def start(*arguments, workdir, config="experiments/clothing.py"):
    command = [sys.executable, "-m", "experiments.table", f"--config={config}"]
    return subprocess.Popen(
        [*command, f"--workdir={workdir}", *arguments],
        cwd=ROOT,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


def finish(process):
    """Exit code, standard output and error."""
    out, error = process.communicate(timeout=300)
    return process.returncode, out, error


def wait_for(path):
    deadline = time.monotonic() + 200
    while not path.exists():
        assert time.monotonic() < deadline, path
        time.sleep(0.02)


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    root = tmp_path_factory.mktemp("table")
    write_mmrec(root / "data", "clothing", ("text",))
    return root / "data"


def plan_of(data, workdir, *names, seeds=1, trials=0, backbone=None):
    def config_of(method):
        config = clothing.get_config(method)
        with config.unlocked():
            config.data.root = str(data)
            config.train.update(epochs=2, batch_size=64)
            config.eval.cutoffs = (5,)
        return config

    rows = plan.chosen_rows(names, "semco")
    return plan.Plan(config_of, workdir, rows, seeds, trials, backbone)


@pytest.fixture(scope="module")
def made(data, tmp_path_factory):
    """A table whose first process was killed, and which two then finished together."""
    folder = tmp_path_factory.mktemp("made") / "table"
    flags = [
        f"--config.data.root={data}",
        "--config.train.epochs=2",
        "--config.train.batch_size=64",
        "--config.eval.cutoffs=5,",
        f"--methods={','.join(METHODS)}",
        "--seeds=2",
    ]
    first = folder / "runs" / "content_knn" / "seed_0" / workdirs.RESULTS_FILE
    process = start(*flags, workdir=folder)
    wait_for(first)
    process.send_signal(signal.SIGKILL)
    process.communicate()
    before = first.stat().st_mtime_ns
    both = [finish(p) for p in [start(*flags, workdir=folder) for _ in range(2)]]
    assert first.stat().st_mtime_ns == before
    return folder, both


def test_a_killed_table_goes_on_and_two_processes_share_it(made):
    folder, both = made
    assert [code for code, _, _ in both] == [0, 0], both
    ran = [line for _, out, _ in both for line in out.splitlines() if " min left" in line]
    names = sorted(line.partition(":")[0] for line in ran)
    assert names in (
        ["ridge, seed 0", "semco_sparsemax, seed 0", "semco_sparsemax, seed 1"],
        ["semco_sparsemax, seed 0", "semco_sparsemax, seed 1"],  # ridge was before the kill
    )
    assert {path.name for path in folder.iterdir()} >= {
        *(f"table.{end}" for end in ("md", "csv", "tex", "json")),
        *(f"{kind}.png" for kind in ("item_outcomes", "accuracy_diversity", "popularity")),
    }


def test_the_table_in_its_four_forms(made):
    folder, _ = made
    report = json.loads((folder / "table.json").read_text())
    frame = pd.read_csv(folder / "table.csv").set_index("method")
    assert list(frame.index) == list(METHODS)
    for name in METHODS:
        paths = sorted((folder / "runs" / name).glob("seed_*/results.json"))
        values = [
            json.loads(path.read_text())["metrics"]["test/cold/ndcg@5"]["mean"] for path in paths
        ]
        assert frame["NDCG"][name] == pytest.approx(sum(values) / len(values))
        assert len(values) == frame["seeds"][name] == (2 if name == "semco_sparsemax" else 1)
    validation = frame["val. NDCG"][["content_knn", "ridge"]]
    reference = validation.idxmax()
    assert report["reference"] == reference
    assert report["rows"][reference]["test"] is None
    gain = frame["NDCG"]["semco_sparsemax"] / frame["NDCG"][reference] - 1
    assert frame["NDCG improvement"]["semco_sparsemax"] == pytest.approx(gain)
    tested = frame.drop(reference)
    raised = tested["p"] * (1 + (tested["p"] == tested["p"].min()))
    assert (tested["p_holm"] >= tested["p"]).all()
    assert tested["p_holm"].max() >= min(raised.max(), 1) - 1e-12
    assert tested["p_seeds"].notna()["semco_sparsemax"]  # two seeds against none that is random

    text = (folder / "table.md").read_text()
    best = frame["NDCG"].idxmax()
    assert text.splitlines()[0].startswith(report["rows"][best]["title"])
    assert f"{frame['NDCG']['ridge']:.4f}".replace("0.", ".") in text
    assert "Holm" in text
    assert "paper ." not in text  # at another cut-off
    latex = (folder / "table.tex").read_text()
    assert latex.count(r"\\") == 1 + len(METHODS)
    assert latex.count(r"\textbf{") == latex.count(r"\underline{") == 5
    assert r"\begin{tabular}" in latex


def test_the_first_line_names_what_simple_methods_beat():
    def row(title, group, ndcg):
        return {"title": title, "group": group, "metrics": {"NDCG": {"mean": ndcg}}}

    rows = {
        "ridge": row("ridge", plan.CLOSED_FORM, 0.24),
        "gar": row("GAR", plan.BASELINE, 0.14),
        "semco": row("SEMCo", plan.PROPOSED, 0.22),
    }
    line = table_report.headline({"rows": rows})
    assert line.startswith("ridge, without any training, beats all 2 trained methods: NDCG 0.2400")
    rows["semco"] = row("SEMCo", plan.PROPOSED, 0.25)
    line = table_report.headline({"rows": rows})
    assert line.startswith("ridge, without any training, beats 1 of 2 trained methods (GAR)")
    rows["gar"] = row("GAR", plan.BASELINE, 0.245)
    assert table_report.headline({"rows": rows}).startswith("SEMCo has the best NDCG, 0.2500")


def test_a_backbone_is_trained_once_per_seed_for_all_that_need_it(data, tmp_path):
    made = plan_of(data, tmp_path, "gar", "heater", "heater_scaled", "ridge", seeds=2)
    jobs = plan.jobs_of(made)
    names = [str(job) for job in jobs]
    assert names.count("freedom, seed 0") == names.count("freedom, seed 1") == 1
    assert len(names) == 2 + 3 * 2 + 1
    place = {job.folder: number for number, job in enumerate(jobs)}
    assert all(place[folder] < place[job.folder] for job in jobs for folder in job.after)
    scaled = next(job for job in jobs if str(job) == "heater_scaled, seed 1")
    assert scaled.after == (tmp_path / "runs" / "heater" / "seed_1",)
    given = plan_of(data, tmp_path, "gar", "heater_scaled", backbone="vectors.npz")
    assert [str(job) for job in plan.jobs_of(given)] == [
        "gar, seed 0",
        "heater, seed 0",
        "heater_scaled, seed 0",
    ]


def test_a_tuned_method_on_a_backbone_and_its_scaled_vectors(data, tmp_path):
    pytest.importorskip("optuna", reason="the search needs the extra search")
    made = plan_of(data, tmp_path, "heater", "heater_scaled", trials=2)
    console = Console(quiet=True)
    assert table.work(made, plan.jobs_of(made), console, overwrite=False) == {}
    for name in ("freedom", "heater"):
        found = plan.read_found(tmp_path / "search" / name)
        assert found["trials"] == 2
        config = workdirs.config_of(tmp_path / "runs" / name / "seed_0")
        for field, value in found["values"].items():
            section, _, key = field.rpartition(".")
            assert config[section or "model"][key] == value
    table_report.write(made, console)
    report = json.loads((tmp_path / "table.json").read_text())
    assert report["rows"]["heater"]["tuned"] == "2 trials"
    assert report["rows"]["heater_scaled"]["title"] == "Heater + scaling"
    # One of the alphas is 0, and validation chooses.
    scores = {name: row["metrics"]["val. NDCG"]["mean"] for name, row in report["rows"].items()}
    assert scores["heater_scaled"] >= scores["heater"] - 1e-9


def test_a_failed_method_leaves_the_others(data, tmp_path):
    made = plan_of(data, tmp_path, "clcrec", "content_knn")  # 128 negatives of 48 items
    failed = table.work(made, plan.jobs_of(made), Console(quiet=True), overwrite=False)
    assert [str(job) for job in failed] == ["clcrec, seed 0"]
    assert (tmp_path / "runs" / "content_knn" / "seed_0" / "results.json").exists()


def test_sequences_have_the_other_papers_table(tmp_path):
    write_log(tmp_path / "data")
    code, out, error = finish(
        start(
            f"--config.data.root={tmp_path / 'data'}",
            "--config.train.epochs=1",
            "--config.train.batch_size=16",
            "--config.model.dim=4",
            "--config.model.blocks=1",
            "--config.model.max_length=6",
            "--methods=content_knn,sasrec_delta",
            "--seeds=1",
            workdir=tmp_path / "table",
            config="experiments/movielens.py",
        )
    )
    assert code == 0, error
    report = json.loads((tmp_path / "table" / "table.json").read_text())
    assert {"cold HR", "warm HR", "HR", "cold NDCG", "warm NDCG", "NDCG"} <= {*report["columns"]}
    assert report["rows"]["sasrec_delta"]["group"] == plan.PROPOSED
    assert report["rows"]["content_knn"]["title"] == "content-KNN"
    assert "SASRec + delta" in out


@pytest.mark.parametrize(
    ("names", "message"),
    [
        (("nothing",), "model 'nothing' is unknown; choose one of: aldi"),
        (("ridge", "ridge"), "--methods: ridge is named twice"),
        ((), "--methods: is empty"),
    ],
)
def test_wrong_methods_end_in_one_line(names, message):
    with pytest.raises(ConfigError) as error:
        plan.chosen_rows(names, "semco")
    assert message in str(error.value)
    assert "\n" not in str(error.value)


def test_a_method_without_tuned_values_is_left_out_of_all(data, tmp_path):
    made = plan_of(data, tmp_path, "ridge", "semco_offline_softmax")
    config_of = made.config_of
    made = made._replace(config_of=lambda method: other_name(config_of(method)))
    rows, lines = plan.without_values(made, by_name=False)
    assert [row.name for row in rows] == ["ridge"]
    assert len(lines) == 1
    assert "semco_offline_softmax is left out: " in lines[0]
    with pytest.raises(ConfigError, match=r"semco_offline_softmax: config\.model"):
        plan.without_values(made, by_name=True)
    rows, lines = plan.without_values(made._replace(trials=3), by_name=True)
    assert len(rows) == 2  # a search finds them


def other_name(config):
    with config.unlocked():
        config.data.name = "elsewhere"
    return config


def test_published_values_are_those_of_the_papers():
    clothing_table = published("pairs", "clothing", 20)
    assert clothing_table["gorec"] == {
        "Recall": 0.1389,
        "NDCG": 0.0638,
        "MDG": 0.0495,
        "Gini div.": 0.4840,
    }
    assert clothing_table["semco_online_sparsemax"]["NDCG"] == 0.0717
    assert published("pairs", "microlens", 20)["aldi"]["Gini div."] == 0.3882
    assert published("sequences", "zvuk", 10)["sasrec_delta"]["cold HR"] == 0.034
    assert published("sequences", "amazon-beauty", 10)["sasrec"]["NDCG"] == 0.033
    assert published("pairs", "clothing", 10) == published("pairs", "citeulike-a", 20) == {}
    assert published("pairs", "zvuk", 20) == published("sequences", "clothing", 10) == {}
