"""One table of finished runs: means, spread, and t-tests of the others against the first.

python -m experiments.compare runs/sparsemax runs/offline runs/online --workdir=runs/table
"""

import math
import pathlib
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import pandas as pd
from absl import app
from rich.box import SIMPLE_HEAD
from rich.console import Console
from rich.table import Table

from experiments import finished, main
from experiments.config import differences, flat
from experiments.finished import Finished
from experiments.method import ConfigError
from experiments.setup import cutoff_of, title
from jaxcold.eval import statistics
from jaxcold.files import write_atomic
from jaxcold.reporting.figures import plain_axis, to_png
from jaxcold.reporting.run_log import to_json
from jaxcold.reporting.tables import format_number

# What tells runs apart; where they lie and for how long they took does not.
DISTINGUISHING = ("model.", "train.", "data.content", "data.modes")
IGNORED = ("model.name", "model.alpha", "model.teacher")


def compare(folders: Sequence[pathlib.Path]) -> dict[str, Any]:
    """Reads finished runs on one split.

    Args:
        folders: their --workdir; the first is what the others are tested against.

    Returns:
        "runs": name to "workdir", "seeds" and, for each title of `Task.compared`, mean and std;
        "tests": name to the result of `jaxcold.eval.statistics.paired` on NDCG against the first,
        and "p_seeds" of `compare_seeds`; "where": the slice of these tests; "cutoff".

    Raises:
        ConfigError: naming the folder that is no finished run, of another kind, split or cut-off,
            or that the runs differ in config.eval.ties.
    """
    runs = finished.read(folders)
    return compare_runs(runs, names_of([run.config for run in runs]))


def compare_runs(runs: Sequence[Finished], names: Sequence[str]) -> dict[str, Any]:
    """`compare` of runs that are read, by these names.

    Raises:
        ConfigError: if they differ in cut-off or config.eval.ties.
    """
    task = runs[0].task
    per_user = [run.per_user() for run in runs]
    cutoffs = set.intersection(*({*run.config["eval"]["cutoffs"]} for run in runs))
    if not cutoffs:
        raise ConfigError("the runs have no cut-off in common; run them with one eval.cutoffs")
    if len({run.config["eval"].get("ties", "id") for run in runs}) > 1:  # "id" before there was it
        raise ConfigError("the runs order equal scores differently; run them with one eval.ties")
    cutoff = cutoff_of(cutoffs)
    metric = f"ndcg@{cutoff}"
    return {
        "cutoff": cutoff,
        "where": f"test, {task.drawn}",
        "runs": {
            name: {
                "workdir": str(run.folder),
                "seeds": len(run.config["seeds"]),
                **{
                    title: _entry(
                        run.results["metrics"], f"{key.replace('MODE', run.mode)}@{cutoff}"
                    )
                    for title, key in task.compared.items()
                },
            }
            for name, run in zip(names, runs, strict=True)
        },
        "tests": {
            name: statistics.paired(users, per_user[0], [metric])[metric]
            | {"p_seeds": _compare_seeds(run, runs[0], metric)}
            for name, users, run in zip(names[1:], per_user[1:], runs[1:], strict=True)
        },
    }


def _compare_seeds(run: Finished, other: Finished, metric: str) -> float:
    """`statistics.compare_seeds`, where either side may be a method without randomness."""
    left, right = run.values(metric), other.values(metric)
    if run.is_deterministic:
        return statistics.compare_seeds(right, left, deterministic=True)
    return statistics.compare_seeds(left, right, deterministic=other.is_deterministic)


def _entry(metrics: Mapping[str, Any], name: str) -> dict[str, float]:
    """Mean and deviation; NaN where the slice has no users."""
    entry = metrics.get(name, {"mean": math.nan, "std": math.nan})
    return {part: entry[part] for part in ("mean", "std")}


def names_of(configs: Sequence[Mapping[str, Any]]) -> list[str]:
    """Model and map of each run, and the fields by which runs of the same differ."""
    titles = [title(c) for c in configs]
    names = []
    for name, config in zip(titles, configs, strict=True):
        alike = [c for t, c in zip(titles, configs, strict=True) if t == name]
        fields = sorted(
            {field for other in alike for field in differences(flat(config), flat(other))}
        )
        values = flat(config)
        shown = [
            f"{field.rpartition('.')[2]} {values[field]}"
            for field in fields
            if field.startswith(DISTINGUISHING)
            and not field.startswith(IGNORED)
            and field in values
        ]
        names.append(name + (f" ({', '.join(shown)})" if shown else ""))
    return [name if names.count(name) == 1 else f"{name} #{i}" for i, name in enumerate(names, 1)]


def table(comparison: Mapping[str, Any]) -> pd.DataFrame:
    """The runs as text, a row each, with difference and p of both tests."""
    rows = []
    for name, run in comparison["runs"].items():
        cells = {
            title: f"{run[title]['mean']:.4f} ±{run[title]['std']:.4f}".replace("0.", ".")
            for title in run
            if title not in ("workdir", "seeds")
        }
        test = comparison["tests"].get(name)
        against = {
            "difference": f"{test['difference']:+.4f}" if test else "",
            "p (users)": format_number(test["p"], ".2g") if test else "",
            "p (seeds)": format_number(test["p_seeds"], ".2g") if test else "",
        }
        rows.append({"method": name, "seeds": str(run["seeds"]), **cells, **against})
    return pd.DataFrame(rows)


def write(comparison: Mapping[str, Any], workdir: pathlib.Path) -> None:
    """Writes compare.json, compare.md and compare.png."""
    workdir.mkdir(parents=True, exist_ok=True)
    cutoff = comparison["cutoff"]
    lines = table(comparison).to_markdown(index=False, disable_numparse=True)
    text = f"""# Runs at cut-off {cutoff}

Mean ± standard deviation over seeds; {comparison["where"]} unless said otherwise. Difference: of
that NDCG from the first row's. Both p are two-sided and not corrected for the number of tests.

- p (users): paired t-test over users, values averaged over seeds. It holds given these seeds: would
  these trained models differ for other users?
- p (seeds): Welch's t-test over the means of the seeds. It holds given these users: would the
  methods differ for other seeds? It needs two seeds of both, or of one where nothing in the other
  is random.

{lines}
"""
    write_atomic(workdir / "compare.json", (to_json(comparison, indent=2) + "\n").encode())
    write_atomic(workdir / "compare.md", text.encode())
    write_atomic(workdir / "compare.png", _picture(comparison))


def _picture(comparison: Mapping[str, Any]) -> bytes:
    from matplotlib.figure import Figure

    names = list(comparison["runs"])
    canvas = Figure(figsize=(11, 1.2 + 0.45 * len(names)), dpi=110, layout="constrained")
    for axis, heading in zip(
        canvas.subplots(1, 2, sharey=True), ("NDCG", "warm NDCG"), strict=True
    ):
        entries = [comparison["runs"][name][heading] for name in names]
        means, spread = ([entry[k] for entry in entries] for k in ("mean", "std"))
        axis.errorbar(means, np.arange(len(names)), xerr=spread, fmt="o", capsize=3)
        slice_name = comparison["where"] if heading == "NDCG" else "test"
        axis.set_title(f"{heading}@{comparison['cutoff']}, {slice_name}")
        axis.set_yticks(range(len(names)), names)
        plain_axis(axis, "x")
    canvas.axes[0].invert_yaxis()
    return to_png(canvas)


def run(folders: Sequence[str], workdir: pathlib.Path) -> None:
    """Shows the table and writes it."""
    comparison = compare([pathlib.Path(folder) for folder in folders])
    write(comparison, workdir)
    rows = table(comparison)
    # The columns that fit into 80 characters; compare.md has them all.
    columns = ["method", "NDCG", "warm NDCG", *rows.columns[-3:]]
    shown = Table(
        title=f"Test at {comparison['cutoff']}",
        title_justify="left",
        box=SIMPLE_HEAD,
        padding=(0, 1, 0, 0),
    )
    for column in columns:
        side: Any = "left" if column == "method" else "right"
        shown.add_column(column, justify=side, overflow="fold")
    for row in rows[columns].itertuples(index=False):
        shown.add_row(*row)
    Console().print(shown)
    Console().print(f"  all columns: {workdir / 'compare.md'}", highlight=False)


def _command(argv: Sequence[str]) -> int:
    folders, workdir = argv[1:], main.WORKDIR.value
    example = "python -m experiments.compare RUN RUN --workdir=DIR"
    if len(folders) < 2 or not workdir:
        return main.stop(f"two or more finished runs and --workdir are required: {example}")
    try:
        run(folders, pathlib.Path(workdir))
    except (ValueError, OSError) as error:
        return main.stop(error)
    return 0


if __name__ == "__main__":
    app.run(_command, flags_parser=main.parse_flags)
