"""Figures: the summary of a run, and what becomes of items in several.

The summary has training curves, test metrics, gain and exposure per item.
"""

import io
import itertools
import os
import pathlib
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import numpy as np

from jaxcold.eval.metrics import Metrics
from jaxcold.files import write_atomic
from jaxcold.reporting.tables import TITLES, methods

# Colours that stay apart for colour-blind readers (Okabe and Ito).
_COLOURS = {"random": "#999999", "content-KNN": "#E69F00", "oracle": "#009E73"}
_MODEL = "#0072B2"
_APART = (_MODEL, "#D55E00", "#E69F00", "#009E73", "#CC79A7", "#000000", "#56B4E9", "#999999")
# Values in the rows of a distillation run: title and label of the axis.
_DISTILLATION = {
    "train/support/student": ("student", "fraction of similarities kept"),
    "train/support/teacher": ("teacher", "fraction of similarities kept"),
    "train/target_in_support/student": ("student", "fraction of targets above zero"),
    "train/ema_drift": ("moving average", "1 - cosine to the teacher"),
}
# Groups of bars: test slice, less "test/", and metric.
BARS = (
    ("cold", "recall"),
    ("cold", "ndcg"),
    ("cold", "mdg"),
    ("warm", "recall"),
    ("warm", "ndcg"),
)
_METRICS = {"hr": "HR", "recall": "Recall", "ndcg": "NDCG", "mdg": "MDG", "gini": "Gini div."}


def figure(
    workdir: str | os.PathLike,
    rows: Sequence[Mapping[str, Any]],
    results: Mapping[str, Any],
    items: Mapping[str, Metrics],
    *,
    name: str = "SEMCo",
    cutoff: int = 20,
    headline: str = "val/cold",
    bars: Sequence[tuple[str, str]] = BARS,
    drawn: str = "cold",
) -> pathlib.Path:
    """Path of WORKDIR/summary.png, which it draws.

    Args:
        workdir: an existing folder.
        rows: of metrics.jsonl: "seed", "epoch", "loss", "val/cold/ndcg@20" and what distillation
            measures, each optional.
        results: as for `jaxcold.reporting.tables.write_results`.
        items: method (the model's name, or a key of results["baselines"]) to its metrics of one
            seed on the slice `drawn`, for the spread of gains and exposure over items.
        name: of the model.
        cutoff: of all metrics shown.
        headline: the slice of validation.
        bars: test slice, less "test/", and metric of each group of bars.
        drawn: the test slice, less "test/", whose items are shown.
    """
    # Not pyplot: it holds global state, and would look for a display.
    from matplotlib.figure import Figure

    mosaic: list[Any] = [["loss", "ndcg", "accuracy", "gini"], ["mdg", "mdg", "shown", "shown"]]
    distilled = any(key in row for row in rows for key in _DISTILLATION)
    if distilled:
        mosaic.append(list(_DISTILLATION))
    canvas = Figure(figsize=(13, 3.8 * len(mosaic)), dpi=110, layout="constrained")
    axes = canvas.subplot_mosaic(mosaic, width_ratios=[1, 1, 1.6, 0.5])
    for axis in axes.values():
        plain_axis(axis)
    _curves(axes["loss"], rows, "loss", "training loss", "loss")
    key = f"{headline}/ndcg@{cutoff}"
    title = f"validation, {headline.partition('/')[2]}"
    _curves(axes["ndcg"], rows, key, title, f"NDCG@{cutoff}")
    baseline = (results.get("baselines") or {}).get("content_knn", {}).get(key)
    if baseline:
        line = axes["ndcg"].axhline(
            baseline["mean"], color=_COLOURS["content-KNN"], linestyle="--", label="content-KNN"
        )
        axes["ndcg"].legend(handles=[line], frameon=False, fontsize=8)
    if len(axes["loss"].lines):
        axes["loss"].legend(frameon=False, fontsize=8)
    _bars(axes["accuracy"], results, name, cutoff, bars)
    axes["accuracy"].set(title=f"test accuracy, cut-off {cutoff}", ylabel="metric value")
    axes["accuracy"].legend(frameon=False, fontsize=8)
    _bars(axes["gini"], results, name, cutoff, [(drawn, "gini")])
    axes["gini"].set(title="test diversity", ylabel="1 - Gini of exposure", ylim=(0, 1))
    _distribution(axes["mdg"], items, name, f"mdg@{cutoff}")
    _distribution(axes["shown"], items, name, f"exposure@{cutoff}")
    for key in _DISTILLATION if distilled else ():
        _curves(axes[key], rows, key, *_DISTILLATION[key])
    canvas.suptitle(f"{name}: summary of the run", fontsize=13, fontweight="bold")
    path = pathlib.Path(workdir) / "summary.png"
    write_atomic(path, to_png(canvas))
    return path


def to_png(canvas: Any) -> bytes:
    """A Matplotlib figure as a PNG file."""
    data = io.BytesIO()
    canvas.savefig(data, format="png")
    return data.getvalue()


def plain_axis(axis: Any, grid: str = "y") -> None:
    """Leaves two spines and pale lines of a grid."""
    axis.spines[["top", "right"]].set_visible(False)
    axis.grid(axis=grid, color="#dddddd", linewidth=0.7)
    axis.set_axisbelow(True)


def item_outcomes(items: Mapping[str, Mapping[str, np.ndarray]], cutoff: int) -> Any:
    """Gain and exposure of every item, a dot each, in descending order; zeros are left out.

    Args:
        items: method to a result of `jaxcold.eval.statistics.item_means`.
        cutoff: of both.
    """
    from matplotlib.figure import Figure

    canvas = Figure(figsize=(11, 4.2), dpi=110, layout="constrained")
    panels = (("mdg", "items", f"MDG@{cutoff}"), ("exposure", "pool", "lists that show the item"))
    for axis, (metric, of, label) in zip(canvas.subplots(1, 2), panels, strict=True):
        plain_axis(axis)
        for (name, values), colour in zip(items.items(), _cycle(), strict=False):
            column = np.sort(values[f"{metric}@{cutoff}"])[::-1]
            above = column[column > 0]
            percent = 100 * np.arange(1, len(above) + 1) / max(len(values[of]), 1)
            share = 100 * len(above) / max(len(values[of]), 1)
            axis.plot(
                percent, above, ".", markersize=3, color=colour, label=f"{name} ({share:.0f} %)"
            )
        axis.set(xlabel="items, highest first (%)", ylabel=label, xlim=(0, 100))
        axis.set_yscale("log")
        axis.legend(frameon=False, fontsize=8, markerscale=4, title="items above zero")
    canvas.axes[0].set_title(f"gain per item, cut-off {cutoff}")
    canvas.axes[1].set_title(f"exposure per item, lists of {cutoff}")
    return canvas


def accuracy_diversity(
    points: Mapping[str, tuple[float, float, float]], accuracy: str, diversity: str
) -> Any:
    """Accuracy against diversity: a numbered dot per method, and the front of those not dominated.

    Args:
        points: method to diversity, accuracy and the accuracy's deviation over seeds.
        accuracy: label of the axis.
        diversity: label of the axis.
    """
    from matplotlib.figure import Figure

    canvas = Figure(figsize=(9.5, 5), dpi=110, layout="constrained")
    axis = canvas.subplots()
    plain_axis(axis, "both")
    front = sorted(
        (x, y)
        for x, y, _ in points.values()
        if not any((u >= x and v > y) or (u > x and v >= y) for u, v, _ in points.values())
    )
    axis.plot(*zip(*front, strict=True), color="#999999", linestyle="--", label="front", zorder=1)
    for number, ((name, (x, y, std)), colour) in enumerate(
        zip(points.items(), _cycle(), strict=False), 1
    ):
        axis.errorbar(x, y, yerr=std or None, color=colour, capsize=2, zorder=2)
        label = f"{number}  {name}"
        axis.plot(x, y, "o", markersize=13, color=colour, label=label, zorder=3)
        axis.annotate(
            str(number), (x, y), color="white", fontsize=8, ha="center", va="center", zorder=4
        )
    axis.set(xlabel=diversity, ylabel=accuracy)
    canvas.legend(loc="outside right center", frameon=False, fontsize=8, markerscale=0.6)
    return canvas


def recall_by_bucket(panels: Mapping[str, Any], cutoff: int) -> Any:
    """Recall of the held-out pairs, by buckets of items; a panel for each kind of bucket.

    Args:
        panels: label of the buckets to a table with the columns method, bucket, pairs (held out)
            and recall; buckets are in order.
        cutoff: of the lists.
    """
    from matplotlib.figure import Figure

    canvas = Figure(figsize=(6 * len(panels), 4.2), dpi=110, layout="constrained")
    axes = canvas.subplots(1, len(panels), squeeze=False)[0]
    for axis, (label, table) in zip(axes, panels.items(), strict=True):
        plain_axis(axis)
        buckets = list(dict.fromkeys(table["bucket"]))
        pairs = dict(zip(table["bucket"], table["pairs"], strict=True))
        groups = table.groupby("method", sort=False)
        for (name, rows), colour in zip(groups, _cycle(), strict=False):
            at = [buckets.index(bucket) for bucket in rows["bucket"]]
            axis.plot(at, rows["recall"], "o-", color=colour, label=name)
        axis.set_xticks(range(len(buckets)), [f"{b}\n{pairs[b]:,} pairs" for b in buckets])
        axis.tick_params(axis="x", labelsize=8)
        axis.set(xlabel=label, ylabel=f"recall@{cutoff}", ylim=(0, None))
        axis.legend(frameon=False, fontsize=8)
    return canvas


def _cycle() -> Iterator[Any]:
    """Colours without end, the first eight of them apart for colour-blind readers."""
    import matplotlib

    return itertools.chain(_APART, itertools.cycle(matplotlib.color_sequences["tab20b"]))


def _curves(axis: Any, rows: Sequence[Mapping[str, Any]], key: str, title: str, y: str) -> None:
    """Draws one line per seed over the epochs."""
    from matplotlib.ticker import MaxNLocator

    seeds = sorted({row["seed"] for row in rows if "seed" in row})
    for index, seed in enumerate(seeds):
        points = [
            (row["epoch"], row[key])
            for row in rows
            if row.get("seed") == seed and "epoch" in row and row.get(key) is not None
        ]
        if points:
            shade = 0.45 + 0.55 * (index + 1) / len(seeds)
            x, values = zip(*sorted(points), strict=True)
            axis.plot(x, values, ".-", color=_MODEL, alpha=shade, label=f"seed {seed}")
    axis.set(title=title, xlabel="epoch", ylabel=y)
    axis.xaxis.set_major_locator(MaxNLocator(integer=True))


def _bars(
    axis: Any,
    results: Mapping[str, Any],
    name: str,
    cutoff: int,
    metrics: Sequence[tuple[str, str]],
) -> None:
    """Draws the test metrics of all methods side by side, with deviations over seeds."""
    groups = [
        (
            f"test/{slice_name}/{metric}@{cutoff}",
            f"{slice_name.rpartition('/')[2]}\n{_METRICS[metric]}",
        )
        for slice_name, metric in metrics
        if f"test/{slice_name}/{metric}@{cutoff}" in results["metrics"]
    ]
    shown = methods(results, name)
    width = 0.8 / len(shown)
    for index, (method, summary) in enumerate(shown):
        x = np.arange(len(groups)) + (index - (len(shown) - 1) / 2) * width
        entries = [summary.get(key) or {} for key, _ in groups]
        means = [entry.get("mean", np.nan) for entry in entries]
        spread = [entry.get("std", 0.0) for entry in entries]
        axis.bar(
            x,
            means,
            width * 0.92,
            yerr=spread if any(spread) else None,
            error_kw={"elinewidth": 1, "capsize": 2},
            color=_COLOURS.get(method, _MODEL),
            label=method,
        )
    axis.set_xticks(range(len(groups)), [title for _, title in groups])


def _distribution(axis: Any, items: Mapping[str, Metrics], name: str, key: str) -> None:
    """Draws the items' values in descending order; a line ends where the values are zero."""
    metric, _, cutoff = key.partition("@")
    for method, metrics in items.items():
        values = (metrics.per_item | metrics.exposure)[key]
        values = np.sort(values[values > 0])[::-1]
        title = TITLES.get(method, method)
        total = len(metrics.items if metric == "mdg" else metrics.pool)
        percent = 100 * np.arange(1, len(values) + 1) / max(total, 1)
        label = f"{title} ({100 * len(values) / max(total, 1):.0f} % of items above zero)"
        axis.plot(percent, values, color=_COLOURS.get(title, _MODEL), label=label)
    labels = {
        "mdg": (f"gain per item: MDG@{cutoff}, sorted", f"MDG@{cutoff}"),
        "exposure": (f"exposure per item: top-{cutoff} lists, sorted", "lists that show the item"),
    }
    title, y = labels[metric]
    axis.set(title=title, xlabel="items, best first (%)", ylabel=y, xlim=(0, 100))
    if metric == "exposure":
        axis.set_yscale("log")
    if items:
        axis.legend(frameon=False, fontsize=8)
