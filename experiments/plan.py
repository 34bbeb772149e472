"""The rows of the papers' Table 2, and the runs and searches that `experiments.table` needs."""

import json
import pathlib
from collections.abc import Callable, Collection, Mapping, Sequence
from typing import Any, NamedTuple

from ml_collections import config_dict

from experiments import config as configs
from experiments import method as methods
from experiments import workdir as workdirs
from experiments.method import ConfigError

FOUND_FILE = "best.json"  # of a search

CLOSED_FORM, BASELINE, PROPOSED = "closed form", "baseline", "proposed"


class Row(NamedTuple):
    """A method of the table."""

    name: str
    method: str
    group: str = BASELINE
    fields: tuple[tuple[str, Any], ...] = ()  # names of `experiments.method`, and values
    of: str | None = None  # the row whose vectors it reads


def _semco(kind: str, *mappings: str) -> tuple[Row, ...]:
    alphas = {"softmax": 1.0, "entmax15": 1.5, "sparsemax": 2.0}
    return tuple(Row(f"{kind}_{m}", kind, PROPOSED, (("alpha", alphas[m]),)) for m in mappings)


_CLOSED_FORMS = (
    *(Row(name, name, CLOSED_FORM) for name in ("content_knn", "whitened_knn", "ridge")),
    Row("kernel_ridge", "kernel_ridge", CLOSED_FORM),
)
_SCALED = tuple(
    Row(f"{name}_scaled", "magnitude_scaling", BASELINE, of=name)
    for name in ("gar", "gorec", "heater")
)
PRESETS: Mapping[str, tuple[Row, ...]] = {
    "semco": (
        *_CLOSED_FORMS[:3],
        Row("ridge_unit_rows", "ridge", CLOSED_FORM, (("unit_rows", True),)),
        _CLOSED_FORMS[3],
        *(Row(name, name) for name in ("aldi", "clcrec", "gar", "gorec", "heater")),
        *_SCALED,
        *_semco("semco", "softmax", "entmax15", "sparsemax"),
        *_semco("semco_offline", "softmax", "entmax15", "sparsemax"),
        *_semco("semco_online", "entmax15", "sparsemax"),
    ),
    "let_it_go": (
        *_CLOSED_FORMS,
        *(Row(name, name) for name in ("sasrec", "sasrec_content", "sasrec_frozen")),
        Row("sasrec_delta", "sasrec_delta", PROPOSED),
    ),
}


class Job(NamedTuple):
    """A search, or the run of one seed."""

    row: Row
    seed: int
    folder: pathlib.Path
    is_search: bool
    after: tuple[pathlib.Path, ...]  # folders of the jobs that it needs

    def after_is(self, done: Collection[pathlib.Path]) -> bool:
        """Whether all that it needs is done."""
        return all(folder in done for folder in self.after)

    def __str__(self) -> str:
        return f"{self.row.name}, {'search' if self.is_search else f'seed {self.seed}'}"


class Plan(NamedTuple):
    """What there is to do."""

    # method -> the config of the data set with the user's flags
    config_of: Callable[[str], config_dict.ConfigDict]
    workdir: pathlib.Path
    rows: tuple[Row, ...]
    seeds: int
    trials: int
    backbone: str | None

    def run_folder(self, name: str, seed: int) -> pathlib.Path:
        """WORKDIR of a run."""
        return self.workdir / "runs" / name / f"seed_{seed}"

    def seeds_of(self, row: Row) -> range:
        """One where nothing is random."""
        is_deterministic = len(methods.find(row.method).seeds) == 1
        return range(1 if is_deterministic else self.seeds)

    def is_searched(self, row: Row) -> bool:
        """Whether the method has ranges, and trials to spend on them."""
        method = methods.find(row.method)
        return self.trials > 0 and bool(method.search_space(self.unresolved(row, 0)))

    def unresolved(self, row: Row, seed: int) -> config_dict.ConfigDict:
        """The config of a row before its tuned values."""
        c = self.config_of(row.method)
        with c.unlocked():
            c.seeds = (seed,)
            c.eval.update(baselines=False, figure=False)
            for field, value in row.fields:
                methods.assign(c, field, value)
            if "backbone" in c.model and c.model.backbone is None:
                c.model.backbone = self._vectors(row, seed)
        return c

    def _vectors(self, row: Row, seed: int) -> str:
        if row.of is None and self.backbone is not None:
            return self.backbone
        return str(self.run_folder(row.of or "freedom", seed))

    def resolved(self, job: Job) -> config_dict.ConfigDict:
        """The config of a run, with what its search has found."""
        config = self.unresolved(job.row, job.seed)
        if not self.is_searched(job.row):
            return configs.resolve(config)
        found = read_found(self.search_folder(job.row))
        assert found is not None, job  # the job comes after its search
        for field, value in found["values"].items():
            methods.assign(config, field, value)
        return configs.resolve(config)

    def search_folder(self, row: Row) -> pathlib.Path:
        """WORKDIR of a search."""
        return self.workdir / "search" / row.name

    def is_done(self, job: Job) -> bool:
        """Whether the job's results are there.

        Raises:
            ConfigError: if they are damaged.
        """
        if job.is_search:
            found = read_found(job.folder)
            return found is not None and found["trials"] >= self.trials
        return (job.folder / workdirs.RESULTS_FILE).exists() and (
            workdirs.finished_results(job.folder, self.resolved(job)) is not None
        )


def read_found(folder: pathlib.Path) -> dict[str, Any] | None:
    """The best values of a finished search: "values", "score" and "trials"; None: there are none.

    Raises:
        ConfigError: if the file is damaged.
    """
    path = folder / FOUND_FILE
    if not path.exists():
        return None
    try:
        found = json.loads(path.read_text())
        return {key: found[key] for key in ("values", "score", "trials")}
    except (ValueError, KeyError, TypeError) as error:
        raise ConfigError(
            f"{path}: is damaged ({error}); delete it, and the search reports again"
        ) from None


def chosen_rows(names: Sequence[str], preset: str) -> tuple[Row, ...]:
    """The rows of the flag --methods; another method than the preset's is a baseline.

    Raises:
        ConfigError: for a method that there is not, or one named twice.
    """
    known = {row.name: row for row in (*PRESETS[preset], *PRESETS["semco"])}
    rows: list[Row] = []
    for name in names:
        if name == "all":
            rows += PRESETS[preset]
        elif name in known:
            rows.append(known[name])
        else:
            methods.find(name)
            rows.append(Row(name, name))
    twice = next((row.name for row in rows if rows.count(row) > 1), None)
    if twice or not rows:
        raise ConfigError(f"--methods: {twice} is named twice" if twice else "--methods: is empty")
    return tuple(rows)


def without_values(plan: Plan, by_name: bool) -> tuple[tuple[Row, ...], list[str]]:
    """The rows that can run, and a line about each that lacks tuned values.

    Args:
        plan: with all rows.
        by_name: the user named the rows: one that cannot run is an error.

    Raises:
        ConfigError: naming the first field that is wrong.
    """
    rows, left_out = [], []
    for row in plan.rows:
        try:
            if not plan.is_searched(row):
                configs.resolve(plan.unresolved(row, 0))
        except ConfigError as error:
            if by_name or "has no tuned value" not in str(error):
                raise ConfigError(f"{row.name}: {error}") from None
            left_out.append(f"{row.name} is left out: {error}; or give --trials")
            continue
        rows.append(row)
    return tuple(rows), left_out


def jobs_of(plan: Plan) -> list[Job]:
    """All jobs, each behind those that it needs."""
    jobs: dict[pathlib.Path, Job] = {}

    def add(row: Row, seed: int, *, is_search: bool = False) -> pathlib.Path:
        folder = plan.search_folder(row) if is_search else plan.run_folder(row.name, seed)
        if folder in jobs:
            return folder
        needed = []
        if "backbone" in plan.config_of(row.method).model and (row.of or plan.backbone is None):
            needed.append(add(_row_named(row.of or "freedom"), seed))
        if not is_search and plan.is_searched(row):
            needed.append(add(row, 0, is_search=True))
        jobs[folder] = Job(row, seed, folder, is_search, tuple(needed))
        return folder

    for row in plan.rows:
        for seed in plan.seeds_of(row):
            add(row, seed)
    return list(jobs.values())


def _row_named(name: str) -> Row:
    return next((row for row in PRESETS["semco"] if row.name == name), Row(name, name))
