"""What a run leaves behind and what it shows while it runs.

A work directory holds ``metrics.jsonl`` (a row per seed and evaluation, appended as they come),
``results.json`` and ``results.md`` (written once, at the end, under a temporary name first).
A value has a name like ``test/cold/ndcg@20``: the name of the slice, then the metric. Numbers that
are not finite are written as null.
"""

import contextlib
import json
import os
import pathlib
import resource
import socket
import sys
import time
import warnings
import zipfile
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

import numpy as np
import pandas as pd
import rich.box
import rich.console
import rich.progress
import rich.table
import rich.text
import scipy.stats

from jaxcold.eval.metrics import Metrics
from jaxcold.files import naming, write_arrays, write_atomic

# What competes in the slices of a split, by the last part of the slice's name.
CANDIDATES = {
    "cold": "all cold items compete, validation and test together",
    "cold_own": "only the cold items of the same set compete",
    "warm": "all warm items compete, less the user's training items",
}
# Of the terminal's table: title -> metric.
COLUMNS = {"Recall": "recall", "NDCG": "ndcg", "MDG": "mdg", "Gini div.": "gini"}
TITLES = {"random": "random", "content_knn": "content-KNN", "oracle": "oracle"}
_OTHER_USERS = "a paired test needs the same users on both sides; compare one slice of one split"
_FLUSH = 30.0  # seconds for which events may wait in memory
_REQUIRED = ("config", "metrics", "seconds", "peak_memory_bytes")

Summary = Mapping[str, Mapping[str, Any]]


def flatten(by_slice: Mapping[str, Metrics]) -> dict[str, float]:
    """Means of several slices: {"test/cold": ...} -> {"test/cold/ndcg@20": 0.21, ...}."""
    return {
        f"{where}/{name}": value
        for where, metrics in by_slice.items()
        for name, value in metrics.mean().items()
    }


def summarise(values: Mapping[str, Sequence[float]]) -> dict[str, dict[str, Any]]:
    """Mean and spread over seeds.

    Args:
        values: name to one value per seed.

    Returns:
        Name to "mean", "std" and "values". The deviation is the sample's (n - 1 in the
        denominator), and 0.0 for a single seed, which tells nothing about the spread.
    """
    return {
        name: {
            "mean": float(np.mean(column)),
            "std": float(np.std(column, ddof=1)) if len(column) > 1 else 0.0,
            "values": [float(value) for value in column],
        }
        for name, column in values.items()
    }


def compare(
    model: Sequence[Metrics], baseline: Sequence[Metrics], names: Sequence[str]
) -> dict[str, dict[str, float]]:
    """Paired t-tests over users, of per-user values averaged over seeds.

    Args:
        model: metrics of the same slice, one per seed.
        baseline: likewise; a method without chance has one.
        names: per-user metrics such as "ndcg@20".

    Returns:
        Name to "difference" (mean of model less baseline), "t", "p" (two-sided; 1 where no user
        differs) and "users".

    Raises:
        ValueError: if the users differ.
    """
    return paired(seed_means(model), seed_means(baseline), names)


def seed_means(by_seed: Sequence[Metrics]) -> dict[str, np.ndarray]:
    """Per-user values of a slice, averaged over seeds: "users" i32[n] and "ndcg@20", .. f64[n].

    Raises:
        ValueError: if the users differ.
    """
    users = by_seed[0].users
    if any(not np.array_equal(users, metrics.users) for metrics in by_seed):
        raise ValueError(_OTHER_USERS)
    names = by_seed[0].per_user
    means = {name: np.mean([m.per_user[name] for m in by_seed], axis=0) for name in names}
    return {"users": users, **means}


def paired(
    left: Mapping[str, np.ndarray], right: Mapping[str, np.ndarray], names: Sequence[str]
) -> dict[str, dict[str, float]]:
    """`compare` on what `seed_means` gives."""
    if not np.array_equal(left["users"], right["users"]):
        raise ValueError(_OTHER_USERS)
    tests = {}
    for name in names:
        x, y = left[name], right[name]
        t, p = 0.0, 1.0
        if not np.array_equal(x, y):
            with warnings.catch_warnings():  # one user, or one difference for all: t is not finite
                warnings.simplefilter("ignore", RuntimeWarning)
                t, p = scipy.stats.ttest_rel(x, y)
        tests[name] = {
            "difference": float(np.mean(x - y)) if len(x) else float("nan"),
            "t": float(t),
            "p": float(p),
            "users": len(x),
        }
    return tests


def write_users(path: str | os.PathLike, slices: Mapping[str, Mapping[str, np.ndarray]]) -> None:
    """Writes the `seed_means` of several slices as one ``.npz``: "test/cold/ndcg@20", ..."""
    flat = {f"{where}/{name}": v for where, means in slices.items() for name, v in means.items()}
    write_arrays(path, flat)


def read_users(path: str | os.PathLike, where: str) -> dict[str, np.ndarray]:
    """One slice of `write_users`.

    Raises:
        ValueError: if the file is not one of `write_users`, or lacks the slice.
    """
    try:
        with np.load(path, allow_pickle=False) as file:
            names = [name for name in file if name.rpartition("/")[0] == where]
            means = {name.rpartition("/")[2]: file[name] for name in names}
    except (OSError, ValueError, EOFError, zipfile.BadZipFile) as error:
        raise ValueError(f"{path}: cannot be read ({error}); run the experiment again") from None
    if "users" not in means:
        raise ValueError(f"{path}: has no {where}; run the experiment again")
    return means


def share_of_oracle(metrics: Summary, oracle: Summary) -> dict[str, float]:
    """Mean over the best possible ranking's mean, for the metrics of accuracy both sides have."""
    accuracy = ("recall@", "ndcg@", "hr@", "mrr@", "mdg@")
    return {
        name: metrics[name]["mean"] / oracle[name]["mean"]
        for name in metrics
        if name in oracle
        and name.rpartition("/")[2].startswith(accuracy)
        and oracle[name]["mean"] > 0
    }


def peak_memory() -> int:
    """Bytes of memory that this process has held at most."""
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak if sys.platform == "darwin" else peak * 1024  # Linux counts in KiB


def append_row(path: str | os.PathLike, row: Mapping[str, Any]) -> None:
    """Appends one line of JSON; half a line that a killed run left at the end goes first.

    Raises:
        OSError: naming the file, if it cannot be written; then it is as long as before.
    """
    line = _json(row).encode() + b"\n"
    with open(path, "ab+", buffering=0) as file:
        end = _whole_lines(file)
        if end < file.tell():
            file.truncate(end)
        try:
            with naming(path):
                while line:  # a disk that is nearly full takes a part
                    line = line[file.write(line) :]
                os.fsync(file.fileno())  # a checkpoint written after it takes the row for granted
        except OSError:
            file.truncate(end)
            raise


def read_rows(path: str | os.PathLike) -> list[dict[str, Any]]:
    """The rows of a metrics.jsonl; half a line at the end is left out.

    Raises:
        ValueError: naming the first line that is not JSON.
    """
    rows = []
    with open(path, "rb") as file:
        for number, line in enumerate(file, 1):
            if not line.endswith(b"\n"):
                break
            try:
                rows.append(json.loads(line))
            except ValueError as error:
                raise ValueError(f"{path}, line {number}: not JSON ({error}); delete it") from None
    return rows


def keep_rows(path: str | os.PathLike, wanted: Callable[[Mapping[str, Any]], bool]) -> None:
    """Drops the other rows of a metrics.jsonl, if there is one; the file is replaced whole."""
    if os.path.exists(path):
        kept = [row for row in read_rows(path) if wanted(row)]
        write_atomic(path, b"".join(_json(row).encode() + b"\n" for row in kept))


def replace_row(path: str | os.PathLike, number: int, row: Mapping[str, Any]) -> None:
    """Replaces one row of a metrics.jsonl; the file is replaced whole."""
    rows = read_rows(path)
    rows[number] = dict(row)
    write_atomic(path, b"".join(_json(r).encode() + b"\n" for r in rows))


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
            "baselines" (method to summary), "comparisons" (metric to a result of `compare`) and
            "share_of_oracle" (metric to share).
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
    write_atomic(workdir / "results.json", (_json(results, indent=2) + "\n").encode())


def print_table(
    results: Mapping[str, Any],
    *,
    name: str = "SEMCo",
    cutoff: int = 20,
    console: rich.console.Console | None = None,
    tables: Mapping[str, str] = CANDIDATES,
    columns: Mapping[str, str] = COLUMNS,
) -> None:
    """Shows the test metrics of all methods at one cut-off, a block per test slice.

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
    for where in tables:
        keys = [f"test/{where}/{metric}@{cutoff}" for metric in columns.values()]
        if not any(key in results["metrics"] for key in keys):
            continue
        table.add_section()
        table.add_row(f"[italic]{where}")
        for method, summary in methods(results, name):
            # ".2160 ±.0012": without the zeros four columns fit into 80 characters.
            cells = [_cell(summary.get(key)).replace("0.", ".") for key in keys]
            table.add_row(f" {method}", *cells, style="bold" if method == name else None)
    console = console or rich.console.Console()
    console.print(table)
    for where, candidates in tables.items():
        if any(key.startswith(f"test/{where}/") for key in results["metrics"]):
            console.print(f"  {where}: {candidates}", style="dim", highlight=False)


def methods(results: Mapping[str, Any], name: str) -> list[tuple[str, Summary]]:
    """Title and summary of every method, in the order of tables: floor, model, ceiling."""
    baselines = dict(results.get("baselines") or {})
    ceiling = [("oracle", baselines.pop("oracle"))] if "oracle" in baselines else []
    order = sorted(baselines, key=lambda key: (key != "random", key != "content_knn"))
    rows = [(key, baselines[key]) for key in order]
    rows += [(name, results["metrics"]), *ceiling]
    return [(TITLES.get(key, key), summary) for key, summary in rows]


@contextlib.contextmanager
def tensorboard(
    workdir: str | os.PathLike, *, first: int = 0
) -> Iterator[Callable[[int, Mapping[str, float]], None]]:
    """Event files for TensorBoard, written through the yielded function of step and scalars.

    ``with tensorboard(workdir) as log: log(step, {"loss": 1.0})``

    Args:
        workdir: folder of the event files.
        first: step at which this process goes on; events of an earlier one from there on are void.
    """
    # Protobuf takes a while to load: only for those who write events.
    from tensorboardX.proto.event_pb2 import Event, SessionLog
    from tensorboardX.record_writer import RecordWriter
    from tensorboardX.summary import scalar

    # Not its SummaryWriter, whose thread dies on a full disk, and the run waits for it for ever.
    pathlib.Path(workdir).mkdir(parents=True, exist_ok=True)
    name = f"events.out.tfevents.{time.time():.0f}.{socket.gethostname()}.{os.getpid()}"
    writer = RecordWriter(os.path.join(workdir, name))
    flushed = time.monotonic()

    def write(**what: Any) -> None:
        with naming(workdir):
            writer.write(Event(wall_time=time.time(), **what).SerializeToString())

    def log(step: int, scalars: Mapping[str, float]) -> None:
        nonlocal flushed
        for name, value in scalars.items():
            # "@" is no character of a tag: TensorBoard would rename it, and say so every time.
            write(step=step, summary=scalar(name.replace("@", "_"), value))
        if time.monotonic() - flushed > _FLUSH:
            with naming(workdir):
                writer.flush()
            flushed = time.monotonic()

    try:
        write(file_version="brain.Event:2")
        if first:
            write(step=first, session_log=SessionLog(status=SessionLog.START))
        yield log
    finally:
        with naming(workdir):
            writer.close()


class Progress:
    """A bar with loss, rate and time left; in a log, a plain line every ten seconds.

    ``with Progress("seed 0", total=pairs, unit="pairs") as progress: progress.advance(2048, loss)``
    """

    def __init__(
        self,
        title: str,
        *,
        total: int,
        unit: str = "items",
        console: rich.console.Console | None = None,
        clock: Callable[[], float] = time.monotonic,
        every: float = 10.0,
        done: int = 0,
    ) -> None:
        self._title, self._total, self._unit = title, total, unit
        self._console = console or rich.console.Console()
        self._clock, self._every = clock, every
        self._done, self._before = done, done  # of the total, by an earlier process
        self._loss = float("nan")
        self._start = self._last = clock()
        self._bar: rich.progress.Progress | None = None
        if self._console.is_terminal:
            self._bar = rich.progress.Progress(
                rich.progress.TextColumn("{task.description}"),
                rich.progress.BarColumn(bar_width=None),
                rich.progress.TaskProgressColumn(),
                rich.progress.TextColumn("{task.fields[note]}"),
                rich.progress.TimeRemainingColumn(),
                console=self._console,
                transient=True,
            )

    def __enter__(self) -> "Progress":
        if self._bar:
            self._bar.start()
            self._task = self._bar.add_task(
                self._title, total=self._total, completed=self._done, note=""
            )
        return self

    def __exit__(self, *error: object) -> None:
        if self._bar:
            self._bar.stop()
        self.say(self._line())

    def advance(self, items: int, loss: float) -> None:
        """Counts finished items; the loss is the latest step's."""
        self._done += items
        self._loss = loss
        if self._bar:
            self._bar.update(self._task, advance=items, note=self._note())
        elif self._clock() - self._last >= self._every:
            self.say(self._line())
            self._last = self._clock()

    def say(self, line: str) -> None:
        """Prints a line, above the bar where there is one."""
        self._console.print(rich.text.Text(line), soft_wrap=True)

    def _elapsed(self) -> float:
        return max(self._clock() - self._start, 1e-9)

    def _note(self) -> str:
        return f"loss {self._loss:.4f}  {self._rate():,.0f} {self._unit}/s"

    def _rate(self) -> float:
        return (self._done - self._before) / self._elapsed()

    def _line(self) -> str:
        percent = 100 * self._done / max(self._total, 1)
        line = f"{self._title}: {percent:.0f} %, {self._note()}, {self._elapsed():.0f} s"
        if self._before < self._done < self._total:
            line += f", {(self._total - self._done) / self._rate():.0f} s left"
        return line


def _whole_lines(file: Any) -> int:
    """Where the last complete line ends; leaves the file at its end."""
    end = file.seek(0, os.SEEK_END)
    while end:
        start = max(0, end - 4096)
        file.seek(start)
        newline = file.read(end - start).rfind(b"\n")
        if newline >= 0:
            end = start + newline + 1
            break
        end = start
    file.seek(0, os.SEEK_END)
    return end


def _json(value: Any, indent: int | None = None) -> str:
    return json.dumps(_plain(value), allow_nan=False, ensure_ascii=False, indent=indent)


def _plain(value: Any) -> Any:
    """Mappings, sequences and NumPy values as JSON knows them; what is not finite as null."""
    if isinstance(value, Mapping):
        return {str(key): _plain(entry) for key, entry in value.items()}
    if isinstance(value, np.ndarray | np.generic):
        return _plain(value.tolist())
    if isinstance(value, list | tuple):
        return [_plain(entry) for entry in value]
    if isinstance(value, float) and not np.isfinite(value):
        return None
    if isinstance(value, os.PathLike):
        return os.fspath(value)
    return value


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
    for where in sorted(names, key=lambda key: (not key.startswith("test/"), key)):
        candidates = tables.get(where.partition("/")[2])
        parts.append(f"## {where}" + (f": {candidates}" if candidates else ""))
        columns = [key for key in results["metrics"] if key.rpartition("/")[0] == where]
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
        parts.append(f"## {name} against content-KNN: paired t-test over users")
        rows = []
        for key, test in results["comparisons"].items():
            numbers = {part: f"{test[part]:{form}}" for part, form in _TEST_FORMATS.items()}
            rows.append({"metric": key} | numbers)
        parts.append(_table(rows))
    return "\n\n".join(parts) + "\n"


_TEST_FORMATS = {"difference": "+.4f", "t": ".2f", "p": ".2g", "users": "d"}
