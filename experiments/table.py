r"""The papers' Table 2 from one command: tunes, trains and tests every method, then compares.

python -m experiments.table --config=experiments/clothing.py --methods=all --seeds=5 \
    --workdir=runs/table

Runs what is not finished: the same command continues after any end, and several processes with it
share the work, a run each. With --trials=N every method that has ranges is first tuned on
validation in N trials, as `experiments.search` does; with 0 it has the published or tuned values of
its file. FREEDOM, whose vectors several methods need, is trained once per seed.

At the end WORKDIR has table.md, table.csv, table.tex and table.json, and the figures of
`experiments.figures`: item_outcomes.png, accuracy_diversity.png and popularity.png.
"""

import importlib.util
import json
import pathlib
import time
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from absl import app, flags
from ml_collections import config_dict, config_flags
from rich.console import Console

from experiments import config as configs
from experiments import main
from experiments import workdir as workdirs
from experiments.method import ConfigError
from experiments.plan import FOUND_FILE, Job, Plan, chosen_rows, jobs_of, read_found, without_values

METHODS = flags.DEFINE_list("methods", ["all"], "Rows of the table; all: those of the preset.")
SEEDS = flags.DEFINE_integer("seeds", 5, "Runs of each method in which anything is random.", 1)
TRIALS = flags.DEFINE_integer(
    "trials", 0, "Trials of each method's search on validation; 0: its published values.", 0
)
PRESET = flags.DEFINE_enum(
    "preset", None, ["semco", "let_it_go"], "Whose Table 2; unset: as the data set is read."
)
BACKBONE = flags.DEFINE_string(
    "backbone", None, "Vectors for the methods that need some; unset: FREEDOM is trained."
)

POLL = 2.0  # seconds between looks at what other processes do


def work(
    plan: Plan, jobs: Sequence[Job], console: Console, *, overwrite: bool
) -> dict[Job, Exception]:
    """Runs all jobs that no other process runs, and waits for those.

    Returns:
        What went wrong with the jobs that failed, and with those that need them.
    """
    done: set[pathlib.Path] = set()
    failed: dict[Job, Exception] = {}
    clock = Estimate(len(jobs))
    while True:
        for job in jobs:
            if job.folder not in done and job.after_is(done) and plan.is_done(job):
                done.add(job.folder)
                clock.found(job)
            for other, error in [*failed.items()]:
                if other.folder in job.after:
                    failed.setdefault(job, error)
        left = [job for job in jobs if job.folder not in done and job not in failed]
        ready = [job for job in left if job.after_is(done)]
        if not ready:
            return failed
        for job in ready:
            start = time.monotonic()
            try:
                said = run_job(plan, job, overwrite=overwrite)
            except workdirs.BusyError:
                continue
            except (ValueError, FloatingPointError) as error:
                failed[job] = error
                console.print(f"{job}: failed: {error}", highlight=False, soft_wrap=True)
                break
            clock.ran(job, time.monotonic() - start)
            left.remove(job)
            line = f"{job}: {said}; {clock.tell(left, len(done) + 1)}"
            console.print(line, highlight=False, soft_wrap=True)
            break
        else:
            time.sleep(POLL)  # others are at work on all that could be done


class Estimate:
    """How long the rest takes, by what each method has taken."""

    def __init__(self, jobs: int):
        self.jobs = jobs
        self.seconds: dict[str, list[float]] = {}

    def found(self, job: Job) -> None:
        """A job that is done, by this process or another."""
        if job.is_search or job.row.name in self.seconds:
            return
        results = json.loads((job.folder / workdirs.RESULTS_FILE).read_text())
        self.ran(job, float(results["seconds"]))

    def ran(self, job: Job, seconds: float) -> None:
        """A job took so long."""
        self.seconds.setdefault(str(job) if job.is_search else job.row.name, []).append(seconds)

    def tell(self, left: Sequence[Job], done: int) -> str:
        """ "7 of 12 done, about 14 min left"."""
        every = [second for seconds in self.seconds.values() for second in seconds]
        mean = sum(every) / max(len(every), 1)
        own = {name: sum(seconds) / len(seconds) for name, seconds in self.seconds.items()}
        minutes = sum(own.get(job.row.name, mean) for job in left) / 60
        return f"{done} of {self.jobs} done, about {minutes:.0f} min left"


def run_job(plan: Plan, job: Job, *, overwrite: bool) -> str:
    """Runs a job; returns what to say of it.

    Raises:
        BusyError: if another process is at it.
    """
    from experiments import runner
    from experiments.setup import headline
    from jaxcold.reporting import run_log

    job.folder.mkdir(parents=True, exist_ok=True)
    if job.is_search:
        return _search(plan, job, overwrite=overwrite)
    config = plan.resolved(job)
    run_log.reset_peak_memory()
    results = runner.run(config, job.folder, overwrite=overwrite, with_table=False)
    name = headline(config)
    return (
        f"{name} {results['metrics'][name]['mean']:.4f}, {results['seconds']:.0f} s, "
        f"{results['peak_memory_bytes'] / 1e9:.1f} GB"
    )


def _search(plan: Plan, job: Job, *, overwrite: bool) -> str:
    from experiments import search  # needs Optuna
    from jaxcold.files import write_atomic
    from jaxcold.reporting.run_log import to_json

    def keep(best: search.Best) -> None:
        write_atomic(job.folder / FOUND_FILE, (to_json(best._asdict(), indent=2) + "\n").encode())

    with workdirs.Lock(job.folder) as lock:
        lock.take()
        config = plan.unresolved(job.row, job.seed)
        search.search(config, job.folder, trials=plan.trials, overwrite=overwrite, then=keep)
    found = read_found(job.folder)
    assert found is not None
    return f"{found['score']:.4f} on validation, the best of {found['trials']} trials"


def _config_of(flag: Any, overrides: Mapping[str, Any]) -> Callable[[str], config_dict.ConfigDict]:
    """Method -> the config of the flag's file for it, with those values of the flags it has."""
    path = config_flags.get_config_filename(flag)
    spec = importlib.util.spec_from_file_location("table_config", path)
    assert spec is not None  # the flag has loaded it before
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)

    def config_of(method: str) -> config_dict.ConfigDict:
        config = module.get_config(method)
        known = configs.flat(config.to_dict())
        with config.unlocked():
            config.update_from_flattened_dict({k: v for k, v in overrides.items() if k in known})
        return config

    return config_of


def make(config: config_dict.ConfigDict, workdir: pathlib.Path) -> None:
    """Runs what is left and writes the table.

    Args:
        config: of the flags; it decides the kind of data set.
        workdir: of the table.

    Raises:
        ConfigError: naming the flag or the jobs that failed.
    """
    flag = flags.FLAGS["config"]
    preset = PRESET.value or ("semco" if config.data.kind == "pairs" else "let_it_go")
    rows = chosen_rows(METHODS.value, preset)
    config_of = _config_of(flag, config_flags.get_override_values(flag))
    plan = Plan(config_of, workdir, rows, SEEDS.value, TRIALS.value, BACKBONE.value)
    rows, left_out = without_values(plan, by_name="all" not in METHODS.value)
    plan = plan._replace(rows=rows)
    console = Console()
    for line in left_out:
        console.print(line, highlight=False, soft_wrap=True)
    jobs = jobs_of(plan)
    failed = work(plan, jobs, console, overwrite=main.OVERWRITE.value)
    rows = tuple(row for row in plan.rows if row.name not in {job.row.name for job in failed})
    if rows:
        from experiments import table_report

        table_report.write(plan._replace(rows=rows), console)
    if failed:
        job, error = next(iter(failed.items()))
        raise ConfigError(
            f"{len(failed)} of {len(jobs)} jobs failed or need one that did; the first: {job}: "
            f"{error}"
        )


if __name__ == "__main__":
    app.run(lambda argv: main.command(argv, make), flags_parser=main.parse_flags)
