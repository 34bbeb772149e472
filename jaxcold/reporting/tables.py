"""Tables of a finished run: ``results.json`` and ``results.md`` on disk, one in the terminal.

Both files are written once, at the end, and are absent or whole. A value has a name like
``test/cold/ndcg@20``: the name of the slice, then the metric.
"""

import os
import pathlib
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import pandas as pd
import rich.box
import rich.console
import rich.table

from jaxcold.eval.statistics import Summary
from jaxcold.files import write_atomic
from jaxcold.reporting.run_log import to_json

# What competes in the slices of a split, by the last part of the slice's name.
CANDIDATES = {
    "cold": "all cold items compete, validation and test together",
    "cold_own": "only the cold items of the same set compete",
    "warm": "all warm items compete, less the user's training items",
}
# Of the terminal's table: title -> metric.
COLUMNS = {"Recall": "recall", "NDCG": "ndcg", "MDG": "mdg", "Gini div.": "gini"}
TITLES = {
    "random": "random",
    "content_knn": "content-KNN",
    "whitened_knn": "whitened KNN",
    "ridge": "ridge",
    "oracle": "oracle",
}

_REQUIRED = ("config", "metrics", "seconds", "peak_memory_bytes")
# Columns of a test in results.md: its key, the title and how the number is written.
_TEST_COLUMNS = (
    ("difference", "difference", "+.4f"),
    ("t", "t", ".2f"),
    ("p", "p (users)", ".2g"),
    ("p_seeds", "p (seeds)", ".2g"),
    ("users", "users", "d"),
)


def write_results(
    workdir: str | os.PathLike,
    results: Mapping[str, Any],
    *,
    name: str = "SEMCo",
    tables: Mapping[str, str] = CANDIDATES,
) -> None:
    """Writes results.json and, for people, results.md.

    Args:
        workdir: an existing folder.
        results: "config", "metrics" (a summary), "seconds", "peak_memory_bytes"; optionally
            "baselines" (method to summary), "comparisons" (metric to a result of
            `jaxcold.eval.statistics.compare`) and "share_of_oracle" (metric to share).
        name: of the model, for the tables.
        tables: what competes in a test slice, by its name less "test/".

    Raises:
        ValueError: if a part is missing.
    """
    missing = [key for key in _REQUIRED if key not in results]
    if missing:
        raise ValueError(f"results lack {', '.join(missing)}; they need {', '.join(_REQUIRED)}")
    workdir = pathlib.Path(workdir)
    write_atomic(workdir / "results.md", _markdown(results, name, tables).encode())
    # Last: a folder with it is finished.
    write_atomic(workdir / "results.json", (to_json(results, indent=2) + "\n").encode())


def print_table(
    results: Mapping[str, Any],
    *,
    name: str = "SEMCo",
    cutoff: int = 20,
    console: rich.console.Console | None = None,
    tables: Mapping[str, str] = CANDIDATES,
    columns: Mapping[str, str] = COLUMNS,
) -> None:
    """Prints the test metrics of all methods at one cut-off, a block per test slice.

    Args:
        results: as for `write_results`.
        name: of the model, for the table.
        cutoff: of all metrics shown.
        console: where to print; unset, standard output. Four columns fit into 80 characters.
        tables: test slices to show, less "test/", and what competes there.
        columns: title to metric.
    """
    seeds = _seeds(results)
    table = rich.table.Table(
        title=f"Test metrics at {cutoff}" + (f", {seeds} seeds" if seeds > 1 else ""),
        box=rich.box.SIMPLE_HEAD,
        padding=(0, 1, 0, 0),
        title_justify="left",
    )
    table.add_column("", no_wrap=True)
    for metric in columns:
        table.add_column(metric, justify="right", no_wrap=True)
    for slice_name in tables:
        keys = [f"test/{slice_name}/{metric}@{cutoff}" for metric in columns.values()]
        if not any(key in results["metrics"] for key in keys):
            continue
        table.add_section()
        table.add_row(f"[italic]{slice_name}")
        for method, summary in methods(results, name):
            # ".2160 ±.0012": without the zeros four columns fit into 80 characters.
            cells = [_cell(summary.get(key)).replace("0.", ".") for key in keys]
            table.add_row(f" {method}", *cells, style="bold" if method == name else None)
    console = console or rich.console.Console()
    console.print(table)
    for slice_name, candidates in tables.items():
        if any(key.startswith(f"test/{slice_name}/") for key in results["metrics"]):
            console.print(f"  {slice_name}: {candidates}", style="dim", highlight=False)


def methods(results: Mapping[str, Any], name: str) -> list[tuple[str, Summary]]:
    """Title and summary of every method, in the order of tables: floor, model, ceiling."""
    baselines = dict(results.get("baselines") or {})
    ceiling = [("oracle", baselines.pop("oracle"))] if "oracle" in baselines else []
    order = sorted(baselines, key=lambda key: (key != "random", key != "content_knn"))
    rows = [(key, baselines[key]) for key in order]
    rows += [(name, results["metrics"]), *ceiling]
    return [(TITLES.get(key, key), summary) for key, summary in rows]


def _cell(entry: Mapping[str, Any] | None) -> str:
    """Mean and, of several seeds, deviation."""
    if entry is None or entry["mean"] is None or np.isnan(entry["mean"]):
        return "–"
    spread = f" ±{entry['std']:.4f}" if len(entry["values"]) > 1 else ""
    return f"{entry['mean']:.4f}{spread}"


def _seeds(results: Mapping[str, Any]) -> int:
    return max((len(entry["values"]) for entry in results["metrics"].values()), default=0)


def _table(rows: Sequence[Mapping[str, Any]]) -> str:
    return pd.DataFrame(list(rows)).to_markdown(index=False, disable_numparse=True)


def _markdown(results: Mapping[str, Any], name: str, tables: Mapping[str, str]) -> str:
    seeds = _seeds(results)
    spread = ", mean ± standard deviation" if seeds > 1 else ""
    parts = [
        f"# {name}",
        f"{seeds} seed{'s' * (seeds != 1)}{spread}; {results['seconds']:.1f} s; "
        f"peak memory {results['peak_memory_bytes'] / 1e9:.2f} GB.",
    ]
    names = {key.rpartition("/")[0]: None for key in results["metrics"]}
    for slice_name in sorted(names, key=lambda key: (not key.startswith("test/"), key)):
        candidates = tables.get(slice_name.partition("/")[2])
        parts.append(f"## {slice_name}" + (f": {candidates}" if candidates else ""))
        columns = [key for key in results["metrics"] if key.rpartition("/")[0] == slice_name]
        rows = []
        for method, summary in methods(results, name):
            cells = {key.rpartition("/")[2]: _cell(summary.get(key)) for key in columns}
            rows.append({"method": method} | cells)
        parts.append(_table(rows))
    if results.get("share_of_oracle"):
        parts.append("## Share of the best possible ranking")
        shares = results["share_of_oracle"].items()
        parts.append(_table([{"metric": key, "share": f"{share:.3f}"} for key, share in shares]))
    if results.get("comparisons"):
        parts.append(f"## {name} against content-KNN")
        parts.append(
            "p (users): paired t-test over users, given these seeds. p (seeds): t-test over the "
            "means of the seeds, against the one value of content-KNN."
        )
        rows = []
        for key, test in results["comparisons"].items():
            cells = {title: format_number(test.get(k), spec) for k, title, spec in _TEST_COLUMNS}
            rows.append({"metric": key} | cells)
        parts.append(_table(rows))
    return "\n\n".join(parts) + "\n"


def format_number(value: float | None, spec: str) -> str:
    """The number, or a dash where there is none, such as p over seeds with a single seed."""
    return "–" if value is None or np.isnan(value) else f"{value:{spec}}"
