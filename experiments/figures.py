"""Figures from finished sequential runs: what the delta's bound does, and for whom it pays.

python -m experiments.figures delta_norm RUN RUN ... --workdir=DIR
python -m experiments.figures warm_share RUN RUN ... --workdir=DIR
python -m experiments.figures target_frequency RUN RUN ... --workdir=DIR

Each writes DIR/KIND.png and the numbers behind it, DIR/KIND.csv. All runs are of one split. They
are the sweeps of "Let It Go? Not Quite", sections 4.2.2 to 4.2.4.
"""

import io
import json
import pathlib
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import numpy as np
import pandas as pd
from absl import app
from rich.console import Console

from experiments import main, runner
from experiments import task as tasks
from experiments.base import ConfigError
from jaxcold.data import packing
from jaxcold.eval import report
from jaxcold.files import write_atomic
from jaxcold.types import Csr

WARM_SHARES = (0.0, 1 / 3, 2 / 3, 1.0)
FREQUENCIES = (0, 1, 2, 4, 8, 16, 32)


class Finished(NamedTuple):
    """A finished run, n test questions."""

    name: str
    model: dict[str, Any]  # config.model
    metrics: dict[str, Any]
    cutoff: int
    ndcg: np.ndarray  # f64[n], of each question, averaged over seeds
    target: np.ndarray  # i32[n]
    history: Csr  # n rows
    train: np.ndarray  # i32: every item of every training row
    num_warm: int


def read(folder: pathlib.Path) -> Finished:
    """Reads the --workdir of a finished sequential run.

    Raises:
        ConfigError: if it is something else, naming it.
    """
    try:
        results = json.loads((folder / runner.RESULTS_FILE).read_text())
        with np.load(folder / runner.SPLIT_FILE, allow_pickle=False) as split:
            target, train = split["test_target"], split["train_indices"]
            history = Csr(split["test_history_indptr"], split["test_history_indices"])
            num_warm = int(split["num_warm"])
    except (OSError, KeyError, ValueError) as error:
        raise ConfigError(
            f"{folder}: not a finished run of a sequential model ({error}); name its --workdir"
        ) from None
    cutoff = runner.cutoff_of(results["config"]["eval"]["cutoffs"])
    model = results["config"]["model"]
    task = tasks.of(results["config"])
    mode = tasks.mode_of(task, results["metrics"])
    users = report.read_users(folder / runner.USERS_FILE, f"test/{mode}{task.drawn}")
    ndcg = np.zeros(len(target))
    ndcg[task.person(users["users"], {"test_target": target})] = users[f"ndcg@{cutoff}"]
    return Finished(
        tasks.title(model).strip(),
        model,
        results["metrics"],
        cutoff,
        ndcg,
        target,
        history,
        train,
        num_warm,
    )


def delta_norm(runs: Sequence[Finished]) -> pd.DataFrame:
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
        for who in ("total", "cold"):
            entry = run.metrics.get(f"test/open/{who}/ndcg@{run.cutoff}")
            if entry is not None:
                rows.append(
                    {
                        "method": "content, free" if kind == "content" else "content + delta",
                        "bound": bound,
                        "who": who,
                        "mean": entry["mean"],
                        "std": entry["std"],
                    }
                )
    return pd.DataFrame(rows).sort_values(["who", "method", "bound"], ignore_index=True)


def warm_share(runs: Sequence[Finished]) -> pd.DataFrame:
    """NDCG against the share of warm items among what the model reads of a history.

    Returns:
        See `_binned`.
    """

    def label(run: Finished) -> np.ndarray:
        read = packing.cut(run.history, run.model["max_length"])
        row = read.row_of_entry
        warm = np.bincount(row, read.indices < run.num_warm, minlength=read.rows)
        share = np.where(read.counts > 0, warm / np.maximum(read.counts, 1), np.nan)
        names = ["none", "to 1/3", "to 2/3", "below all", "all"]
        number = np.searchsorted(WARM_SHARES, share, side="left") + (share == 1)
        return np.where(np.isnan(share), "", np.array([*names, ""])[np.minimum(number, 5)])

    return _binned(runs, label, ["none", "to 1/3", "to 2/3", "below all", "all"])


def target_frequency(runs: Sequence[Finished]) -> pd.DataFrame:
    """NDCG against how often training has the target; 0 are the cold ones.

    Returns:
        See `_binned`.
    """
    ends = [*(f - 1 for f in FREQUENCIES[1:]), None]
    names = [
        str(low) if low == high else f"{low} to {high}" if high else f"{low} or more"
        for low, high in zip(FREQUENCIES, ends, strict=True)
    ]

    def label(run: Finished) -> np.ndarray:
        size = max(int(run.target.max(initial=0)), int(run.train.max(initial=0))) + 1
        count = np.bincount(run.train, minlength=size)[run.target]
        return np.array(names)[np.searchsorted(FREQUENCIES, count, side="right") - 1]

    return _binned(runs, label, names)


def _binned(
    runs: Sequence[Finished], label: Callable[[Finished], np.ndarray], order: Sequence[str]
) -> pd.DataFrame:
    """A row per run and bin: method, bin, questions, ndcg, and error, its standard error."""
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
                        "questions": len(values),
                        "ndcg": values.mean(),
                        "error": spread / np.sqrt(len(values)),
                    }
                )
    return pd.DataFrame(rows)


KINDS = {"delta_norm": delta_norm, "warm_share": warm_share, "target_frequency": target_frequency}
AXES = {
    "delta_norm": "bound of the delta's norm",
    "warm_share": "share of warm items in the history",
    "target_frequency": "how often training has the target",
}


def _picture(kind: str, found: pd.DataFrame, cutoff: int) -> bytes:
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    canvas = Figure(figsize=(10, 4), dpi=110, layout="constrained")
    if kind == "delta_norm":
        groups = list(found["who"].unique())[::-1]
        axes = canvas.subplots(1, len(groups), squeeze=False)[0]
        for axis, who in zip(axes, groups, strict=True):
            part = found[found["who"] == who]
            swept = part[part["bound"].notna()]
            axis.errorbar(swept["bound"], swept["mean"], yerr=swept["std"], fmt="o-", capsize=3)
            for free in part[part["bound"].isna()].itertuples():
                axis.axhline(free.mean, color="#E69F00", linestyle="--", label="content, free")
                axis.legend(frameon=False, fontsize=8)
            axis.set(title=f"{who} targets", xlabel=AXES[kind], ylabel=f"NDCG@{cutoff}")
    else:
        axis = canvas.subplots()
        bins = list(dict.fromkeys(found["bin"]))
        counts = found.groupby("bin")["questions"].max()
        for method, part in found.groupby("method", sort=False):
            at = [bins.index(name) for name in part["bin"]]
            axis.errorbar(at, part["ndcg"], yerr=part["error"], fmt="o-", capsize=3, label=method)
        axis.set_xticks(range(len(bins)), [f"{name}\nn={counts[name]}" for name in bins])
        axis.set(xlabel=AXES[kind], ylabel=f"NDCG@{cutoff}")
        axis.legend(frameon=False, fontsize=8)
    for axis in canvas.axes:
        axis.grid(axis="y", color="#dddddd", linewidth=0.7)
        axis.spines[["top", "right"]].set_visible(False)
    data = io.BytesIO()
    FigureCanvasAgg(canvas).print_png(data)
    return data.getvalue()


def run(kind: str, folders: Sequence[str], workdir: pathlib.Path) -> None:
    """Draws one kind of figure.

    Raises:
        ConfigError: for an unknown kind, a folder that is no finished run, or another split.
    """
    if kind not in KINDS:
        raise ConfigError(f"{kind!r} is no figure; choose one of: {', '.join(KINDS)}")
    runs = [read(pathlib.Path(folder)) for folder in folders]
    for folder, other in zip(folders, runs, strict=True):
        same = np.array_equal(other.target, runs[0].target)
        if not same or not np.array_equal(other.train, runs[0].train):
            raise ConfigError(
                f"{folder}: has another split than {folders[0]}; run it with "
                f"--config.data.split_file={pathlib.Path(folders[0]) / runner.SPLIT_FILE}"
            )
    found = KINDS[kind](runs)
    workdir.mkdir(parents=True, exist_ok=True)
    write_atomic(workdir / f"{kind}.csv", found.to_csv(index=False).encode())
    write_atomic(workdir / f"{kind}.png", _picture(kind, found, runs[0].cutoff))
    console = Console()
    console.print(found.round(4).to_string(index=False), highlight=False, soft_wrap=True)
    console.print(f"  {workdir / kind}.png and .csv", highlight=False, soft_wrap=True)


def _command(argv: Sequence[str]) -> int:
    arguments, workdir = argv[1:], main.WORKDIR.value
    if len(arguments) < 2 or not workdir:
        return main.stop(
            f"a figure ({', '.join(KINDS)}), finished runs and --workdir are required: "
            "python -m experiments.figures delta_norm RUN RUN --workdir=DIR"
        )
    try:
        run(arguments[0], arguments[1:], pathlib.Path(workdir))
    except (ValueError, OSError) as error:
        return main.stop(error)
    return 0


if __name__ == "__main__":
    app.run(_command, flags_parser=main.parse_flags)
