"""A user's tables become a data set that runs, with the user's own ids in what comes out."""

import json
import subprocess
import sys

import numpy as np
import pandas as pd
import pytest
from test_main import ROOT, small

import jaxcold
from experiments import clothing, movielens, runner
from experiments import config as base
from experiments import seed as seeds
from experiments.import_data import import_data
from jaxcold.data.original_ids import named, read_ids
from jaxcold.data.pairs.load import load
from jaxcold.data.sequences.load import load_sequences
from jaxcold.train.loop import DivergedError
from jaxcold.types import DataError

COLUMNS = {"user": "customer", "item": "sku", "time": "when"}


def tables(users=40, items=30, seed=0):
    """Customers with text ids, items with numbers far apart; item 30 of them has no click."""
    rng = np.random.default_rng(seed)
    clicks = pd.DataFrame(
        [
            (
                f"c{user:03}",
                1000 + 7 * item,
                f"2024-03-{1 + day:02} 10:00:00",
                1 + (user + item) % 5,
            )
            for user in range(users)
            for day, item in enumerate(
                np.append(rng.choice(items - 1, 11, replace=False), user % items)
            )
        ],
        columns=["customer", "sku", "when", "stars"],
    ).drop_duplicates(["customer", "sku"])
    catalogue = pd.DataFrame(rng.normal(size=(items + 1, 5)), columns=list("abcde"))
    catalogue.insert(0, "sku", 1000 + 7 * np.arange(items + 1))
    catalogue["title"] = "a title"
    return clicks, catalogue.sample(frac=1, random_state=0)


@pytest.fixture
def files(tmp_path):
    clicks, items = tables()
    clicks.to_csv(tmp_path / "clicks.csv", index=False)
    items.to_csv(tmp_path / "items.tsv", sep="\t", index=False)
    return tmp_path / "clicks.csv", tmp_path / "items.tsv"


def test_what_is_written_is_what_the_tables_say(files, tmp_path):
    lines = import_data(*files, tmp_path / "shop", **COLUMNS)
    assert f"{files[1]}: title: not numeric, left out" in lines
    assert "1 items without clicks are left out" in lines
    assert sorted(path.name for path in (tmp_path / "shop").iterdir()) == [
        "ids.json",
        "shop.inter",
        "text_feat.npy",
    ]
    assert not list(tmp_path.glob("*.part"))
    clicks, items = tables()
    dataset = load("shop", tmp_path / "shop")
    ids = read_ids(tmp_path / "shop")
    assert ids["item"].tolist() == sorted(set(clicks["sku"].tolist()))
    got = {
        (ids["user"][user], int(ids["item"][item]))
        for user, item in dataset.interactions.pairs().tolist()
    }
    assert got == set(clicks[["customer", "sku"]].itertuples(index=False, name=None))
    content = dataset.content.tables["text"]
    wanted = items.set_index("sku").loc[ids["item"], list("abcde")]
    np.testing.assert_array_equal(content, wanted.to_numpy(np.float32))
    first = clicks.sort_values(["customer", "when"]).groupby("customer")["sku"].agg(list)
    sequences = load_sequences("shop", tmp_path / "shop", protocol="random_cold", cold_fraction=0.1)
    user = sequences.user_ids[0]
    history = ids["item"][sequences.item_ids[sequences.train.take([0]).indices]].tolist()
    kept = set(history)
    assert history == [sku for sku in first[ids["user"][user]] if sku in kept]


def test_times_ratings_and_repeated_rows(tmp_path):
    clicks, items = tables()
    both = pd.concat([clicks, clicks.iloc[:9]])
    both.to_csv(tmp_path / "clicks.csv", index=False)
    items.to_parquet(tmp_path / "items.parquet", index=False)
    paths = tmp_path / "clicks.csv", tmp_path / "items.parquet"
    lines = import_data(*paths, tmp_path / "x", **COLUMNS)
    assert "9 rows repeat another one and are left out" in lines
    times = pd.read_csv(tmp_path / "x" / "x.inter", sep="\t")["timestamp"]
    day = pd.to_datetime(times, unit="us").dt.strftime("%Y-%m-%d %H:%M:%S")
    assert sorted(day) == sorted(clicks["when"])
    import_data(*paths, tmp_path / "y", **COLUMNS, rating="stars", min_rating=4)
    assert len(pd.read_csv(tmp_path / "y" / "y.inter", sep="\t")) == (clicks["stars"] >= 4).sum()


def wrong(files, out, **options):
    with pytest.raises(DataError) as error:
        import_data(*files, out, **{**COLUMNS, **options})
    assert "\n" not in str(error.value)
    assert not list(out.parent.glob("*.part"))
    return str(error.value)


def test_bad_tables_end_in_one_line_and_nothing_is_written(files, tmp_path):
    out = tmp_path / "shop"
    assert f"{files[0]}: has no column buyer; it has customer" in wrong(files, out, user="buyer")
    assert "no row is left" in wrong(files, out, rating="stars", min_rating=6)
    assert "no such file" in wrong((tmp_path / "none.csv", files[1]), out)
    assert "has to end in one of .csv" in wrong((ROOT / "README.md", files[1]), out)
    clicks, items = tables()
    for change, message in {
        ("when", "soon"): "clicks.csv: row 3: when is 'soon'; write whole numbers or dates",
        ("customer", None): "clicks.csv: row 3: customer is empty",
        ("sku", 5): "items.tsv: has no row for sku 5 of ",
    }.items():
        spoilt = clicks.astype(object)
        spoilt.iloc[2, spoilt.columns.get_loc(change[0])] = change[1]
        spoilt.to_csv(files[0], index=False)
        assert message in wrong(files, out)
    clicks.to_csv(files[0], index=False)
    for spoilt, message in (
        (pd.concat([items, items.iloc[[4]]]), "is there already; keep one row per item"),
        (items.assign(a=np.nan), "items.tsv: row 1: a is 'nan'; write finite numbers"),
        (items.assign(a=1e300), "a is beyond float32"),
    ):
        spoilt.to_csv(files[1], sep="\t", index=False)
        assert message in wrong(files, out)
    files[1].write_text("")
    assert "items.tsv: cannot be read" in wrong(files, out)
    assert not out.exists()
    out.mkdir()
    (out / "mine").write_text("")
    assert "is there already; name a new folder" in wrong(files, out)


def test_a_run_on_imported_data_has_the_original_ids(files, tmp_path, monkeypatch):
    import_data(*files, tmp_path / "shop", **COLUMNS)
    clicks, _ = tables()
    config = small(clothing.get_config(), tmp_path / "shop")
    with config.unlocked():
        config.data.name = "shop"
        config.model.update(tau=1.0, l2=0.0)
        config.eval.figure = False
    config = base.resolve(config)
    runner.run(config, tmp_path / "run")
    model = jaxcold.load(tmp_path / "run" / "models" / "seed_0")
    lists = model.recommend(["c007"], k=3)
    assert set(lists["item"]) <= set(clicks["sku"])
    with np.load(tmp_path / "run" / "split.npz", allow_pickle=False) as split:
        trained = split["warm_train"]  # numbers; c007 is number 7
    seen = read_ids(tmp_path / "shop")["item"][trained[trained[:, 0] == 7, 1]]
    assert set(lists["item"]).isdisjoint(seen)
    assert set(seen) <= set(clicks["sku"][clicks["customer"] == "c007"])

    def diverge(*_, **__):
        error = DivergedError("the loss is not finite")
        error.examples = {"user": np.array([7]), "item": np.array([0])}
        raise error

    monkeypatch.setattr(seeds, "fit", diverge)
    with pytest.raises(DivergedError, match=r"users c007, \.\. and items 1000, \.\."):
        runner.run(config, tmp_path / "run", overwrite=True)
    batch = json.loads((tmp_path / "run" / "diverged_seed_0.json").read_text())["batch"]
    assert batch == {"user": ["c007"], "item": [1000]}


def test_a_sequential_run_saves_the_original_ids(files, tmp_path):
    import_data(*files, tmp_path / "shop", **COLUMNS)
    config = movielens.get_config("sasrec_frozen")
    with config.unlocked():
        config.seeds = (0,)
        config.data.update(name="shop", root=str(tmp_path / "shop"), protocol="random_cold")
        config.model.update(max_length=6, dim=4, blocks=1)
        config.train.update(epochs=1, batch_size=16)
        config.eval.update(cutoffs=(5,), figure=False)
    runner.run(base.resolve(config), tmp_path / "run")
    model = jaxcold.load(tmp_path / "run" / "models" / "seed_0")
    items = model.recommend({"guest": [1000, 1007]}, k=3)["item"]
    assert set(items) <= set(tables()[1]["sku"])
    # The split keeps the numbers, with which it is read back.
    again = load_sequences(
        "shop", tmp_path / "shop", protocol="random_cold", split_file=tmp_path / "run" / "split.npz"
    )
    assert again.item_ids.max() < len(tables()[1])


@pytest.mark.parametrize(
    "content", ["{", "[]", '{"user": [1]}', '{"user": [1, "a"], "item": [1]}', "[" * 100_000]
)
def test_a_damaged_file_of_ids_is_named(content, tmp_path):
    (tmp_path / "ids.json").write_text(content)
    with pytest.raises(DataError, match=r"ids\.json: .*import the tables again"):
        read_ids(tmp_path)
    assert read_ids(tmp_path / "none") is None
    with pytest.raises(DataError, match="has 1 ids, and none for number 3"):
        named(np.array([0, 3]), np.array(["a"]))


def test_the_command_line(files, tmp_path):
    def call(*arguments):
        return subprocess.run(
            [sys.executable, "-m", "experiments.import_data", *map(str, arguments)],
            cwd=ROOT,
            capture_output=True,
            text=True,
        )

    columns = [f"--{flag}={column}" for flag, column in COLUMNS.items()]
    done = call(*files, *columns, f"--out={tmp_path / 'shop'}")
    assert done.returncode == 0, done.stderr
    assert "--config.data.name=shop" in done.stdout
    assert (tmp_path / "shop" / "shop.inter").exists()
    wrong = call(*files, f"--out={tmp_path / 'other'}")
    assert wrong.returncode == 2
    assert wrong.stderr.startswith("error: ")
    assert "has no column user; it has customer, sku" in wrong.stderr
    assert len(wrong.stderr.splitlines()) == 1
