"""The commands from tables to recommendations: fit and recommend, on models of every kind."""

import io
import json
import os
import re
import subprocess
import sys

import numpy as np
import pandas as pd
import pytest
from test_main import ROOT

import jaxcold
from experiments.fit import fit, parse_columns
from experiments.recommend import load, recommend, to_text
from jaxcold.estimators.vectors import Vectors
from jaxcold.types import Csr, DataError

CLICKS = pd.DataFrame(
    [
        (f"u{u}", (u + t) % 8, f"2024-01-{1 + t:02} 10:00", 5 - t % 2)
        for u in range(12)
        for t in range(4)
    ],
    columns=["who", "sku", "when", "stars"],
)
ITEMS = pd.DataFrame(
    {
        "sku": range(10),
        "title": [
            f"{c} {t}" for c in ("red", "blue") for t in ("shoe", "hat", "hose", "bag", "cap")
        ],
        "genre": ["a|b", "a", "b", "b|a", "c", "c", "a|c", "", "b", "a"],
    }
)
NEW = pd.DataFrame({"sku": [77, 78], "title": ["red shoes", "blue"], "genre": ["a", "c"]})
COLUMNS = {"user": "who", "item": "sku"}


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """Tables, and models fitted on them: linear and sasrec; vectors of a run."""
    folder = tmp_path_factory.mktemp("shop")
    CLICKS.drop(columns="stars").to_csv(folder / "clicks.csv", index=False)
    CLICKS.to_csv(folder / "rated.csv", index=False)
    ITEMS.to_csv(folder / "items.tsv", index=False, sep="\t")
    NEW.to_csv(folder / "new.csv", index=False)
    tables = folder / "clicks.csv", folder / "items.tsv"
    fit(*tables, folder / "linear", method="linear", **COLUMNS)
    small = {"epochs": 1, "val_fraction": 0, "blocks": 1, "dim": 4, "progress": False}
    fit(*tables, folder / "sasrec", method="sasrec", time="when", **COLUMNS, **small)
    ids = pd.Index([1, 2, 3])
    seen = Csr(np.array([0, 1, 1, 3]), np.array([2, 0, 1], np.int32))
    run = Vectors(ids, ids, *np.eye(3, dtype=np.float32)[[[0, 1, 2], [2, 1, 0]]], seen, {})
    run.save(folder / "run" / "models" / "seed_0")
    return folder


def run(module, *flags, cwd=ROOT):
    command = [sys.executable, "-m", f"experiments.{module}", *map(str, flags)]
    path = {**os.environ, "PYTHONPATH": str(ROOT)}
    return subprocess.run(command, cwd=cwd, env=path, capture_output=True, text=True, check=False)


@pytest.mark.parametrize("kind", ["linear", "sasrec"])
def test_the_lists_are_those_of_the_model(folder, kind):
    model = jaxcold.load(folder / kind)
    expected = model.recommend(["u3", "u1"], 4)
    pd.testing.assert_frame_equal(recommend(folder / kind, users=["u3", "u1"], k=4), expected)
    lists = recommend(folder / kind, history=["3", "4"], k=3, candidates="cold")
    expected = model.recommend({"history": [3, 4]}, 3, candidates="cold")
    pd.testing.assert_frame_equal(lists, expected)


@pytest.mark.parametrize("kind", ["linear", "sasrec"])
def test_new_items_by_their_raw_columns(folder, kind):
    model = jaxcold.load(folder / kind)
    added = model.add_items([77, 78], NEW)
    new = folder / "new.csv"
    lists = recommend(folder / kind, new_items=new, k=2)
    pd.testing.assert_frame_equal(lists, added.recommend_users([77, 78], 2))
    lists = recommend(folder / kind, new_items=new, users=["u1"], k=20)
    pd.testing.assert_frame_equal(lists, added.recommend(["u1"], 20))
    assert {77, 78} <= {*lists["item"]}
    lists = recommend(folder / kind, new_items=new, history=["1"], k=20)
    assert {77, 78} <= {*lists["item"]}


def test_new_items_of_features_with_and_without_names(tmp_path):
    text = pd.DataFrame(np.random.default_rng(0).normal(size=(12, 3)), columns=["a", "b", "c"])
    clicks = CLICKS.rename(columns={"who": "user", "sku": "item"})[["user", "item"]]
    text[10:].rename_axis("item").reset_index()[["item", "c", "a", "b"]].to_csv(
        tmp_path / "new.csv", index=False
    )
    for name, content in (("frame", text[:10]), ("array", text[:10].to_numpy())):
        model = jaxcold.Linear.fit(clicks, {"text": content}, items=range(10), l2=1.0)
        model.save(tmp_path / name)
    expected = model.add_items([10, 11], {"text": text[10:].to_numpy()}).recommend_users([10, 11])
    got = recommend(tmp_path / "frame", new_items=tmp_path / "new.csv")
    pd.testing.assert_frame_equal(got, expected)
    text[10:].rename_axis("item").to_csv(tmp_path / "new.csv")
    got = recommend(tmp_path / "array", new_items=tmp_path / "new.csv")
    pd.testing.assert_frame_equal(got, expected)
    text[["a", "b"]].rename_axis("item").to_csv(tmp_path / "new.csv")
    with pytest.raises(DataError, match="has no column c, which the model was trained on"):
        recommend(tmp_path / "frame", new_items=tmp_path / "new.csv")
    with pytest.raises(DataError, match=r"has 2 columns of numbers beside the ids; .* takes 3"):
        recommend(tmp_path / "array", new_items=tmp_path / "new.csv")
    two = jaxcold.Linear.fit(clicks, {"a": text[:10], "b": text[:10]}, l2=1.0)
    two.save(tmp_path / "two")
    with pytest.raises(DataError, match="takes the modes a, b, which one table cannot hold"):
        recommend(tmp_path / "two", new_items=tmp_path / "new.csv")


def test_a_workdir_names_its_only_model(folder, tmp_path):
    lists = recommend(folder / "run", users=["3"], k=2)
    pd.testing.assert_frame_equal(lists, load(folder / "run").recommend([3], 2))
    for seed in range(2):
        (tmp_path / "models" / f"seed_{seed}").mkdir(parents=True)
    with pytest.raises(DataError, match=r"holds 2 models; name one, such as .*seed_0"):
        load(tmp_path)


def test_the_output_can_be_read_back(folder):
    lists = recommend(folder / "linear", users=["u1"], k=3)
    pd.testing.assert_frame_equal(
        pd.DataFrame(json.loads(to_text(lists, "json"))), lists, check_dtype=False, atol=1e-6
    )
    read = pd.read_csv(io.StringIO(to_text(lists, "csv")))
    pd.testing.assert_frame_equal(read, lists, check_dtype=False, atol=1e-6)
    assert to_text(lists, "table").split()[:4] == ["user", "item", "rank", "score"]


@pytest.mark.parametrize(
    ("model", "asked", "message"),
    [
        ("linear", {}, "--user, --history or --new_items: give one of them"),
        ("linear", {"users": ["u1"], "history": ["1"]}, "give one of them"),
        ("linear", {"users": ["nobody"]}, "user 'nobody' is not in the training log"),
        ("linear", {"history": ["77"]}, "item 77 is unknown"),
        ("linear", {"history": ["x"]}, "--history: 'x' is no id; those of this model are whole"),
        ("linear", {"new_items": "items.tsv"}, "item 0, 1, 2 and 7 more are known already"),
        ("linear", {"new_items": "clicks.csv"}, "given twice"),
        ("linear", {"new_items": "none.csv"}, "none.csv: no such file"),
        ("linear", {"new_items": "new.csv", "item": "id"}, "new.csv: has no column id; it has sku"),
        ("none", {"users": ["u1"]}, "none/model.json: not found; name a folder with a saved model"),
        ("run", {"history": ["1"]}, "holds vectors of users and items alone"),
        ("run", {"users": ["u1"]}, "--user: 'u1' is no id"),
    ],
)
def test_bad_questions_are_one_line(folder, model, asked, message):
    if "new_items" in asked:
        asked = {**asked, "new_items": folder / asked["new_items"]}
    with pytest.raises(DataError, match=message) as error:
        recommend(folder / model, **asked)
    assert "\n" not in str(error.value)


def test_columns_are_told_by_name_and_kind(folder, tmp_path):
    assert parse_columns(["a:b:text", "c:ignore"]) == {"a:b": "text", "c": "ignore"}
    with pytest.raises(DataError, match="--columns: 'title' has no kind; write it as title:text"):
        parse_columns(["title"])
    tables = folder / "clicks.csv", folder / "items.tsv"
    fit(*tables, tmp_path / "m", method="linear", columns={"genre": "ignore"}, **COLUMNS)
    assert [*jaxcold.load(tmp_path / "m").widths] == ["title"]
    rated = folder / "rated.csv", folder / "items.tsv"
    fit(*rated, tmp_path / "m", method="linear", rating="stars", min_rating=5, **COLUMNS)
    assert len(jaxcold.load(tmp_path / "m").histories.indices) == 24
    with pytest.raises(DataError, match=r"clicks.csv: has no column buyer"):
        fit(*tables, tmp_path / "m", method="linear", user="buyer", item="sku")


def example(language):
    """The example of experiments/README.md, in Python or in a shell."""
    section = (ROOT / "experiments" / "README.md").read_text().split("## From titles to")[1]
    blocks = re.findall(r"^```(\w*)\n(.*?)^```", section, re.DOTALL | re.MULTILINE)
    return next(code for found, code in blocks if found == language)


@pytest.fixture
def films(tmp_path, monkeypatch):
    """Tables as the examples read them; the working folder."""
    log = CLICKS.drop(columns="when").set_axis(["user", "item", "rating"], axis=1)
    log.to_csv(tmp_path / "clicks.csv", index=False)
    titles = ITEMS.rename(columns={"sku": "item"})[["item", "title"]]
    titles = titles.assign(title=titles["title"] + " comedy")
    titles.to_csv(tmp_path / "titles.csv", index=False)
    NEW.rename(columns={"sku": "item"}).to_csv(tmp_path / "new.csv", index=False)
    monkeypatch.chdir(tmp_path)
    return tmp_path


def test_the_example_in_python_has_15_lines_and_runs(films, capsys):
    code = example("python")
    assert len(code.splitlines()) <= 15
    small = "min_rating=4, epochs=1, hidden=4, out=3, val_fraction=0, progress=False)"
    assert "min_rating=4)" in code
    exec(compile(code.replace("min_rating=4)", small), "example", "exec"), {})
    lines = capsys.readouterr().out.splitlines()
    assert lines[0].split() == ["item", "user", "rank", "score"]
    assert lines[1].split()[1] == "9001"
    assert 9001 in jaxcold.load(films / "models" / "films").items


def test_the_example_in_a_shell_runs(films):
    commands = [
        line.removeprefix("python -m experiments.").split() for line in example("").splitlines()
    ]
    assert [command[0] for command in commands] == ["fit", "recommend", "recommend"]
    fitted = run(*commands[0], "--epochs=1", cwd=films)
    assert fitted.returncode == 0, fitted.stderr
    assert fitted.stdout.splitlines()[-1] == "models/films: SEMCo, 12 users, 10 items"
    assert re.search(r"content: title: text, \d+ terms in \d+ numbers", fitted.stderr)
    for command, item in zip(commands[1:], ("77", '"item":8'), strict=True):
        done = run(*command, cwd=films)
        assert done.returncode == 0, done.stderr
        assert item in done.stdout


def test_wrong_commands_end_in_one_line(folder, tmp_path):
    for module, flags in (
        ("recommend", [f"--model={folder}/linear", "--user=nobody"]),
        ("fit", [folder / "clicks.csv", folder / "items.tsv", f"--out={tmp_path}/other"]),
    ):
        wrong = run(module, *flags)
        assert wrong.returncode == 2
        assert wrong.stdout == ""
        assert wrong.stderr.startswith("error: ")
        assert wrong.stderr.count("\n") == 1
    assert not (tmp_path / "other").exists()
