"""What `experiments.table` writes once all runs are finished: the table in four forms, figures."""

import math
import pathlib
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import pandas as pd
from rich.console import Console

from experiments import compare, figures, finished
from experiments import method as methods
from experiments.finished import Finished
from experiments.plan import BASELINE, CLOSED_FORM, PROPOSED, Plan, Row
from experiments.published import published
from experiments.setup import title
from jaxcold.eval import statistics
from jaxcold.files import write_atomic
from jaxcold.reporting import tables
from jaxcold.reporting.run_log import to_json

VALIDATION = "val. NDCG"
TESTS = ("p", "p_seeds")


def write(plan: Plan, console: Console) -> None:
    """Writes table.md, table.csv, table.tex, table.json and the figures into the plan's folder."""
    runs = read(plan)
    report = summarise(plan, runs)
    text = to_markdown(report)
    for name, content in (
        ("table.md", text),
        ("table.csv", to_frame(report).to_csv(index=False)),
        ("table.tex", to_latex(report)),
        ("table.json", to_json(report, indent=2) + "\n"),
    ):
        write_atomic(plan.workdir / name, content.encode())
    named = {title_of(row, run): run for row, run in runs.items()}
    figures.draw("accuracy_diversity", named, plan.workdir)
    for kind in ("item_outcomes", "popularity"):
        figures.draw(
            kind,
            {title_of(row, runs[row]): runs[row] for row in _told_apart(report, runs)},
            plan.workdir,
        )
    console.print(text, highlight=False, markup=False, soft_wrap=True)
    console.print(f"  {plan.workdir}: table.md, .csv, .tex, .json and figures", highlight=False)


def read(plan: Plan) -> dict[Row, Finished]:
    """The seeds of every row as one run.

    Raises:
        ConfigError: if they are of several splits.
    """
    folders = {row: [plan.run_folder(row.name, s) for s in plan.seeds_of(row)] for row in plan.rows}
    every: list[pathlib.Path] = [folder for own in folders.values() for folder in own]
    runs = iter(finished.read(every))
    return {row: finished.merge([next(runs) for _ in own]) for row, own in folders.items()}


def _told_apart(report: Mapping[str, Any], runs: Mapping[Row, Finished]) -> list[Row]:
    """The best row of each group on validation, and the scaled vectors of the best baseline.

    As many as a figure with a dot per item can show.
    """

    def score(row: Row) -> float:
        return report["rows"][row.name]["metrics"][VALIDATION]["mean"]

    shown = []
    for group in (BASELINE, CLOSED_FORM, PROPOSED):
        own = [row for row in runs if row.group == group and row.of is None]
        if own:
            shown.append(max(own, key=score))
            shown += [row for row in runs if row.of == shown[-1].name]
    return shown


def title_of(row: Row, run: Finished) -> str:
    """The name of a row in tables and figures."""
    if row.of is None:
        return tables.TITLES.get(row.name) or title(run.config)
    base = methods.find(row.of)
    return f"{base.title(base.fields().to_dict())} + scaling"


def summarise(plan: Plan, runs: Mapping[Row, Finished]) -> dict[str, Any]:
    """The table as data.

    Returns:
        "dataset", "cutoff", "where" (the slice of the tests), "columns" (titles of the metrics),
        "reference" (the row that others are tested against: of those that are not proposed, the
        best on validation), "rows": name to "title", "group", "seeds", "tuned", "seconds",
        "peak_memory_bytes", "metrics" (title to "mean", "std" and, of the paper, "published"),
        "improvement" (title to a fraction of the reference's mean) and, but for the reference,
        "test", a result of `compare.compare_runs` with "p_holm" and "p_seeds_holm".
    """
    names = [row.name for row in runs]
    first = compare.compare_runs([*runs.values()], names)
    columns = [key for key in first["runs"][names[0]] if key not in ("workdir", "seeds")]
    reference = _reference(runs, first["runs"])
    ordered = [reference, *(row for row in runs if row is not reference)]
    compared = compare.compare_runs([runs[row] for row in ordered], [r.name for r in ordered])
    tests = compared["tests"]
    for name in TESTS:
        corrected = statistics.holm([test[name] for test in tests.values()])
        for test, p in zip(tests.values(), corrected, strict=True):
            test[f"{name}_holm"] = p
    config = next(iter(runs.values())).config
    printed = published(config["data"]["kind"], config["data"]["name"], compared["cutoff"])
    rows = {}
    for row, run in runs.items():
        own = compared["runs"][row.name]
        base = compared["runs"][reference.name]
        rows[row.name] = {
            "title": title_of(row, run),
            "group": row.group,
            "seeds": own["seeds"],
            "tuned": _tuned(plan, row),
            "seconds": run.results["seconds"],
            "peak_memory_bytes": run.results["peak_memory_bytes"],
            "metrics": {
                column: {**own[column], "published": printed.get(row.name, {}).get(column)}
                for column in columns
            },
            "improvement": {
                column: own[column]["mean"] / base[column]["mean"] - 1
                if base[column]["mean"]
                else math.nan
                for column in columns
            },
            "test": tests.get(row.name),
        }
    return {
        "dataset": config["data"]["name"],
        "cutoff": compared["cutoff"],
        "where": compared["where"],
        "columns": columns,
        "reference": reference.name,
        "rows": rows,
    }


def _reference(runs: Mapping[Row, Finished], summaries: Mapping[str, Any]) -> Row:
    """The best on validation of the rows that are not proposed, or of all if all are."""
    rows = [row for row in runs if row.group != PROPOSED] or [*runs]
    scores = [summaries[row.name][VALIDATION]["mean"] for row in rows]
    scores = [-math.inf if score is None or math.isnan(score) else score for score in scores]
    return rows[int(np.argmax(scores))]


def _tuned(plan: Plan, row: Row) -> str:
    if plan.is_searched(row):
        return f"{plan.trials} trials"
    if row.method in ("content_knn", "whitened_knn"):
        return "nothing to tune"
    return "by validation" if row.group == CLOSED_FORM or row.of else "values of its file"


def headline(report: Mapping[str, Any]) -> str:
    """The first line: which methods without training beat which trained ones, on the test."""
    rows = [*report["rows"].values()]

    def score(row: Mapping[str, Any]) -> float:
        return row["metrics"]["NDCG"]["mean"]

    simple = [row for row in rows if row["group"] == CLOSED_FORM]
    trained = [row for row in rows if row["group"] != CLOSED_FORM]
    if not simple or not trained:
        best = max(rows, key=score)
        return f"{best['title']} has the best NDCG, {score(best):.4f}."
    best, rival = max(simple, key=score), max(trained, key=score)
    beaten = [row["title"] for row in trained if score(row) < score(best)]
    if len(beaten) == len(trained):
        return (
            f"{best['title']}, without any training, beats all {len(trained)} trained methods: "
            f"NDCG {score(best):.4f}; the best of them, {rival['title']}, has {score(rival):.4f}."
        )
    if beaten:
        return (
            f"{best['title']}, without any training, beats {len(beaten)} of {len(trained)} trained "
            f"methods ({', '.join(beaten)}): NDCG {score(best):.4f}; the best of all, "
            f"{rival['title']}, has {score(rival):.4f}."
        )
    return (
        f"{rival['title']} has the best NDCG, {score(rival):.4f}; every trained method beats "
        f"{best['title']}, the best without training, {score(best):.4f}."
    )


def to_frame(report: Mapping[str, Any]) -> pd.DataFrame:
    """The table as numbers, a row per method."""
    lines = []
    for name, row in report["rows"].items():
        line: dict[str, Any] = {"method": name, "title": row["title"], "group": row["group"]}
        line |= {"seeds": row["seeds"], "tuned": row["tuned"]}
        for column, entry in row["metrics"].items():
            line |= {column: entry["mean"], f"{column} std": entry["std"]}
            line[f"{column} published"] = entry["published"]
            line[f"{column} improvement"] = row["improvement"][column]
        test = row["test"] or {}
        line |= {key: test.get(key) for p in TESTS for key in (p, f"{p}_holm")}
        line |= {"seconds": row["seconds"], "peak_memory_bytes": row["peak_memory_bytes"]}
        lines.append(line)
    return pd.DataFrame(lines)


def _cell(entry: Mapping[str, Any], seeds: int) -> str:
    if entry["mean"] is None or math.isnan(entry["mean"]):
        return "–"
    spread = f" ±{entry['std']:.4f}" if seeds > 1 else ""
    paper = "" if entry["published"] is None else f" (paper {entry['published']:g})"
    return f"{entry['mean']:.4f}{spread}{paper}".replace("0.", ".")


def to_markdown(report: Mapping[str, Any]) -> str:
    """The table for people."""
    reference = report["rows"][report["reference"]]["title"]
    lines = []
    for row in report["rows"].values():
        test = row["test"]
        cells = {column: _cell(entry, row["seeds"]) for column, entry in row["metrics"].items()}
        lines.append(
            {
                "method": row["title"],
                "seeds": str(row["seeds"]),
                **cells,
                "improvement": f"{row['improvement']['NDCG']:+.1%}" if test else "",
                "p (users)": tables.format_number(test["p_holm"], ".2g") if test else "",
                "p (seeds)": tables.format_number(test["p_seeds_holm"], ".2g") if test else "",
                "s": f"{row['seconds']:.0f}",
                "GB": f"{row['peak_memory_bytes'] / 1e9:.1f}",
                "tuned": row["tuned"],
            }
        )
    table = pd.DataFrame(lines).to_markdown(index=False, disable_numparse=True)
    return f"""{headline(report)}

# {report["dataset"]}, cut-off {report["cutoff"]}

{table}

Mean ± standard deviation over seeds, of the test set unless said otherwise; in brackets what the
paper has. Improvement: of NDCG over {reference}, of the methods that are not proposed here the best
on validation. Both p are two-sided, of NDCG ({report["where"]}) against the same, and
Holm-corrected for the number of rows: over users (paired t-test, values averaged over seeds) and
over seeds (Welch's t-test; it needs two seeds). s and GB: time and peak memory of a seed's run,
without its search.
{_best_proposed(report)}"""


def _best_proposed(report: Mapping[str, Any]) -> str:
    """The paper's last column: by how much the best proposed method improves on each metric."""
    rows = [row for row in report["rows"].values() if row["group"] == PROPOSED and row["test"]]
    if not rows:
        return ""
    best = max(rows, key=lambda row: row["metrics"][VALIDATION]["mean"])
    gains = ", ".join(f"{k} {v:+.1%}" for k, v in best["improvement"].items() if not math.isnan(v))
    reference = report["rows"][report["reference"]]["title"]
    return (
        f"\n{best['title']}, the best proposed method on validation, over {reference}: {gains}.\n"
    )


def to_latex(report: Mapping[str, Any]) -> str:
    """The table for a paper, with booktabs: of each column the best bold, the second underlined."""
    columns = [column for column in report["columns"] if column != VALIDATION]
    rows = [*report["rows"].values()]
    marks = {column: _marks(rows, column) for column in columns}
    lines, group = [], None
    for number, row in enumerate(rows):
        if group not in (None, row["group"]):
            lines.append(r"\midrule")
        group = row["group"]
        cells = [_escape(row["title"])]
        for column in columns:
            cell = _cell({**row["metrics"][column], "published": None}, row["seeds"])
            cell = cell.replace("±", r"{\scriptsize$\pm$") + "}" * ("±" in cell)
            mark = marks[column].get(number)
            cells.append(f"\\{mark}{{{cell}}}" if mark else cell)
        test = row["test"]
        if test and test["p_holm"] < 0.05:
            cells[0] += "$^*$"
        cells.append(f"{100 * row['improvement']['NDCG']:+.1f}\\%" if test else "--")
        lines.append(" & ".join(cells) + r" \\")
    head = " & ".join(["Method", *(f"{_escape(c)}@{report['cutoff']}" for c in columns), "Improv."])
    return "\n".join(
        [
            r"% needs \usepackage{booktabs}; * p < 0.05 over users against the best baseline, Holm",
            rf"\begin{{tabular}}{{l{'r' * (len(columns) + 1)}}}",
            r"\toprule",
            head + r" \\",
            r"\midrule",
            *lines,
            r"\bottomrule",
            r"\end{tabular}",
            "",
        ]
    )


def _marks(rows: Sequence[Mapping[str, Any]], column: str) -> dict[int, str]:
    """Number of the row -> command, for the two best of a column."""
    values = [row["metrics"][column]["mean"] for row in rows]
    order = sorted(
        (i for i, v in enumerate(values) if v is not None and not math.isnan(v)),
        key=lambda i: -values[i],
    )
    return dict(zip(order, ("textbf", "underline"), strict=False))


def _escape(text: str) -> str:
    return "".join(f"\\{c}" if c in "&%$#_{}" else c for c in text)
