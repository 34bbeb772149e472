"""Figures from finished runs of one split.

python -m experiments.figures KIND RUN RUN ... --workdir=DIR

Each writes DIR/KIND.png and the numbers behind it, DIR/KIND.csv. Of any runs:

- item_outcomes: gain and exposure of every item, Figure 1 of Meehan and Pauwels (SIGIR 2026);
- accuracy_diversity: NDCG against the Gini diversity, and the front that the methods span;
- popularity: recall by how popular the item is.

Of sequential ones the sweeps of "Let It Go? Not Quite", sections 4.2.2 to 4.2.4, what the delta's
bound does and for whom it pays: delta_norm, warm_fraction, target_frequency.
"""

import pathlib
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np
import pandas as pd
from absl import app
from rich.console import Console

from experiments import compare, finished, main
from experiments.finished import Finished
from experiments.method import ConfigError
from experiments.setup import cutoff_of, title
from jaxcold.data.sequences import batches as packing
from jaxcold.files import write_atomic
from jaxcold.reporting import figures as drawings
from jaxcold.types import Csr

# Name -> the largest fraction of it.
WARM_FRACTIONS = {"none": 0.0, "to 1/3": 1 / 3, "to 2/3": 2 / 3, "below all": 1.0, "all": np.inf}
FREQUENCIES = (0, 1, 2, 4, 8, 16, 32)


class Run(NamedTuple):
    """A finished run, n test sequences."""

    name: str
    model: Mapping[str, Any]  # config.model
    metrics: Mapping[str, Any]
    cutoff: int
    ndcg: np.ndarray  # f64[n], of each sequence, averaged over seeds
    target: np.ndarray  # i32[n]
    history: Csr  # n rows
    train: np.ndarray  # i32: every item of every training row
    num_warm: int


def read(folders: Sequence[pathlib.Path]) -> list[Run]:
    """Reads finished sequential runs on one split by their --workdir.

    Raises:
        ConfigError: naming the one that is something else.
    """
    return [_read_run(run) for run in finished.read(folders)]


def _read_run(run: finished.Finished) -> Run:
    split = run.split
    if "test_history_indptr" not in split:
        raise ConfigError(
            f"{run.folder}: not a finished run of a sequential model; name the --workdir of one"
        )
    cutoff = cutoff_of(run.config["eval"]["cutoffs"])
    per_user = run.per_user()
    ndcg = np.zeros(len(split["test_target"]))
    ndcg[per_user["users"]] = per_user[f"ndcg@{cutoff}"]
    return Run(
        title(run.config),
        run.config["model"],
        run.results["metrics"],
        cutoff,
        ndcg,
        split["test_target"],
        Csr(split["test_history_indptr"], split["test_history_indices"]),
        split["train_indices"],
        int(split["num_warm"]),
    )


def delta_norm(runs: Sequence[Run]) -> pd.DataFrame:
    """NDCG against the bound of the delta; content alone, frozen or free, for comparison.

    Returns:
        A row per run and group of targets: method, bound (empty for free content), who, mean, std.
    """
    rows = []
    for run in runs:
        kind = run.model.get("item_table")
        if kind not in ("delta", "frozen", "content"):
            raise ConfigError(f"{run.name}: has no content; name runs of delta, frozen or content")
        bound = {"delta": run.model["max_delta_norm"], "frozen": 0.0}.get(kind, np.nan)
        for name in ("total", "cold"):
            entry = run.metrics.get(f"test/open/{name}/ndcg@{run.cutoff}")
            if entry is not None:
                rows.append(
                    {
                        "method": "content, free" if kind == "content" else "content + delta",
                        "bound": bound,
                        "targets": name,
                        "mean": entry["mean"],
                        "std": entry["std"],
                    }
                )
    return pd.DataFrame(rows).sort_values(["targets", "method", "bound"], ignore_index=True)


def warm_fraction(runs: Sequence[Run]) -> pd.DataFrame:
    """NDCG against the fraction of warm items among those that the model reads of a history.

    Returns:
        See `_binned`.
    """

    def label(run: Run) -> np.ndarray:
        read = packing.truncate(run.history, run.model["max_length"])
        row = read.row_of_entry
        warm = np.bincount(row, read.indices < run.num_warm, minlength=read.rows)
        fraction = np.where(read.counts > 0, warm / np.maximum(read.counts, 1), np.nan)
        number = np.searchsorted([*WARM_FRACTIONS.values()], fraction, side="left") + (
            fraction == 1
        )
        return np.array([*WARM_FRACTIONS, ""])[number]  # NaN comes last

    return _binned(runs, label, [*WARM_FRACTIONS])


def target_frequency(runs: Sequence[Run]) -> pd.DataFrame:
    """NDCG against how often training has the target; 0 are the cold ones.

    Returns:
        See `_binned`.
    """
    names = _frequency_names()

    def label(run: Run) -> np.ndarray:
        size = max(int(run.target.max(initial=0)), int(run.train.max(initial=0))) + 1
        count = np.bincount(run.train, minlength=size)[run.target]
        return np.array(names)[np.searchsorted(FREQUENCIES, count, side="right") - 1]

    return _binned(runs, label, names)


def _frequency_names() -> list[str]:
    """Of the bins that begin at `FREQUENCIES`."""
    ends = [*(f - 1 for f in FREQUENCIES[1:]), None]
    return [
        str(low) if low == high else f"{low} to {high}" if high else f"{low} or more"
        for low, high in zip(FREQUENCIES, ends, strict=True)
    ]


def _binned(
    runs: Sequence[Run], label: Callable[[Run], np.ndarray], order: Sequence[str]
) -> pd.DataFrame:
    """A row per run and bin: method, bin, sequences, ndcg, and error, its standard error."""
    rows = []
    for run in runs:
        labels = label(run)
        for name in order:
            values = run.ndcg[labels == name]
            if len(values):
                spread = values.std(ddof=1) if len(values) > 1 else np.nan
                rows.append(
                    {
                        "method": run.name,
                        "bin": name,
                        "sequences": len(values),
                        "ndcg": values.mean(),
                        "error": spread / np.sqrt(len(values)),
                    }
                )
    return pd.DataFrame(rows)


def item_outcomes(runs: Mapping[str, Finished], cutoff: int) -> tuple[pd.DataFrame, Any]:
    """Gain and exposure of the items of the slice of tests, and the picture."""
    items = {name: run.per_item(_drawn(run)) for name, run in runs.items()}
    frames = [
        pd.DataFrame({"method": name, "metric": metric, "item": values[of], "value": column})
        for name, values in items.items()
        for metric, of in (("mdg", "items"), ("exposure", "pool"))
        for column in [values[f"{metric}@{cutoff}"]]
    ]
    return pd.concat(frames, ignore_index=True), drawings.item_outcomes(items, cutoff)


def accuracy_diversity(runs: Mapping[str, Finished], cutoff: int) -> tuple[pd.DataFrame, Any]:
    """NDCG and Gini diversity of each method, and the picture."""
    points = {}
    for name, run in runs.items():
        gini, ndcg = (
            run.results["metrics"][f"{_drawn(run)}/{m}@{cutoff}"] for m in ("gini", "ndcg")
        )
        points[name] = (gini["mean"], ndcg["mean"], ndcg["std"])
    table = pd.DataFrame.from_dict(points, orient="index", columns=["gini", "ndcg", "ndcg_std"])
    table = table.rename_axis("method").reset_index()
    picture = drawings.accuracy_diversity(
        points, f"NDCG@{cutoff}", f"Gini diversity of the lists of {cutoff}"
    )
    return table, picture


def popularity(runs: Mapping[str, Finished], cutoff: int) -> tuple[pd.DataFrame, Any]:
    """Recall by popularity: of cold items among those who hold them out, of warm ones in training.

    Of sequences, of all items in training.
    """
    kinds = {
        "cold items, by the test users who hold them out": "test/cold",
        "warm items, by their training users": "test/warm",
    }
    first = next(iter(runs.values()))
    if "warm_train" in first.split:
        train = np.bincount(first.split["warm_train"][:, 1])
    else:
        kinds = {"items, by their occurrences in training": _drawn(first)}
        train = np.bincount(first.split["train_indices"])
    panels = {}
    for label, slice_name in kinds.items():
        frames = []
        for name, run in runs.items():
            values = run.per_item(slice_name)
            items, holders = values["items"], values["holders"]
            count = holders
            if slice_name != "test/cold":
                count = np.pad(train, (0, max(int(items.max(initial=0)) + 1 - len(train), 0)))[
                    items
                ]
            of = np.searchsorted(FREQUENCIES, count, side="right") - 1
            for number, bucket in enumerate(_frequency_names()):
                pairs = int(holders[of == number].sum())
                if pairs:
                    recall = values[f"found@{cutoff}"][of == number].sum() / pairs
                    frames.append((name, bucket, pairs, recall))
        panels[label] = pd.DataFrame(frames, columns=["method", "bucket", "pairs", "recall"])
    table = pd.concat(panels, names=["popularity"]).reset_index("popularity")
    return table, drawings.recall_by_bucket(panels, cutoff)


def _drawn(run: Finished) -> str:
    return f"test/{run.mode}{run.task.drawn}"


SHARED = {
    "item_outcomes": item_outcomes,
    "accuracy_diversity": accuracy_diversity,
    "popularity": popularity,
}


def draw(kind: str, runs: Mapping[str, Finished], workdir: pathlib.Path) -> pd.DataFrame:
    """Writes a figure of any runs, and the numbers behind it, which it returns.

    Args:
        kind: a key of `SHARED`.
        runs: of one split, by their names in the figure.
        workdir: receives KIND.png and KIND.csv.

    Raises:
        DataError: if a run has no values per item.
    """
    cutoff = cutoff_of(set.intersection(*({*r.config["eval"]["cutoffs"]} for r in runs.values())))
    table, canvas = SHARED[kind](runs, cutoff)
    workdir.mkdir(parents=True, exist_ok=True)
    write_atomic(workdir / f"{kind}.csv", table.to_csv(index=False).encode())
    write_atomic(workdir / f"{kind}.png", drawings.to_png(canvas))
    return table


KINDS = {
    "delta_norm": delta_norm,
    "warm_fraction": warm_fraction,
    "target_frequency": target_frequency,
}
AXES = {
    "delta_norm": "bound of the delta's norm",
    "warm_fraction": "fraction of warm items in the history",
    "target_frequency": "how often training has the target",
}


def _picture(kind: str, table: pd.DataFrame, cutoff: int) -> bytes:
    from matplotlib.figure import Figure

    canvas = Figure(figsize=(10, 4), dpi=110, layout="constrained")
    if kind == "delta_norm":
        groups = list(table["targets"].unique())[::-1]
        axes = canvas.subplots(1, len(groups), squeeze=False)[0]
        for axis, name in zip(axes, groups, strict=True):
            rows = table[table["targets"] == name]
            swept = rows[rows["bound"].notna()]
            axis.errorbar(swept["bound"], swept["mean"], yerr=swept["std"], fmt="o-", capsize=3)
            for free in rows[rows["bound"].isna()].itertuples():
                axis.axhline(free.mean, color="#E69F00", linestyle="--", label="content, free")
                axis.legend(frameon=False, fontsize=8)
            axis.set(title=f"{name} targets", xlabel=AXES[kind], ylabel=f"NDCG@{cutoff}")
    else:
        axis = canvas.subplots()
        bins = list(dict.fromkeys(table["bin"]))
        counts = table.groupby("bin")["sequences"].max()
        for method, rows in table.groupby("method", sort=False):
            at = [bins.index(name) for name in rows["bin"]]
            axis.errorbar(at, rows["ndcg"], yerr=rows["error"], fmt="o-", capsize=3, label=method)
        axis.set_xticks(range(len(bins)), [f"{name}\nn={counts[name]}" for name in bins])
        axis.set(xlabel=AXES[kind], ylabel=f"NDCG@{cutoff}")
        axis.legend(frameon=False, fontsize=8)
    for axis in canvas.axes:
        drawings.plain_axis(axis)
    return drawings.to_png(canvas)


def run(kind: str, folders: Sequence[str], workdir: pathlib.Path) -> None:
    """Draws one kind of figure.

    Raises:
        ConfigError: for an unknown kind, a folder that is no finished run, or another split.
    """
    paths, console = [pathlib.Path(folder) for folder in folders], Console()
    if kind in SHARED:
        every = finished.read(paths)
        names = compare.names_of([one.config for one in every])
        table = draw(kind, dict(zip(names, every, strict=True)), workdir)
    elif kind in KINDS:
        runs = read(paths)
        table = KINDS[kind](runs)
        workdir.mkdir(parents=True, exist_ok=True)
        write_atomic(workdir / f"{kind}.csv", table.to_csv(index=False).encode())
        write_atomic(workdir / f"{kind}.png", _picture(kind, table, runs[0].cutoff))
    else:
        every_kind = ", ".join([*KINDS, *SHARED])
        raise ConfigError(f"{kind!r} is no figure; choose one of: {every_kind}")
    if kind != "item_outcomes":  # a line per item
        console.print(table.round(4).to_string(index=False), highlight=False, soft_wrap=True)
    console.print(f"  {workdir / kind}.png and .csv", highlight=False, soft_wrap=True)


def _command(argv: Sequence[str]) -> int:
    arguments, workdir = argv[1:], main.WORKDIR.value
    if len(arguments) < 2 or not workdir:
        return main.stop(
            f"a figure ({', '.join([*KINDS, *SHARED])}), finished runs and --workdir are required: "
            "python -m experiments.figures delta_norm RUN RUN --workdir=DIR"
        )
    try:
        run(arguments[0], arguments[1:], pathlib.Path(workdir))
    except (ValueError, OSError) as error:
        return main.stop(error)
    return 0


if __name__ == "__main__":
    app.run(_command, flags_parser=main.parse_flags)
