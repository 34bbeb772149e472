"""A run, stage by stage: load, train a model per seed, evaluate, report."""

import contextlib
import functools
import json
import math
import pathlib
import signal
import tempfile
import threading
import time
from collections.abc import Callable, Collection, Iterator, Mapping
from typing import Any, NamedTuple

import jax
import numpy as np
from ml_collections import config_dict
from rich.console import Console

from experiments import task as tasks
from experiments import workdir as rundir
from experiments.config import ConfigError, StoppedError
from experiments.task import Task
from jaxcold import parallel
from jaxcold.eval import statistics
from jaxcold.eval.metrics import Metrics, evaluate
from jaxcold.eval.ranking import random_top_k, top_k
from jaxcold.files import write_atomic
from jaxcold.reporting import run_log, tables
from jaxcold.reporting.figures import figure
from jaxcold.reporting.progress import Progress
from jaxcold.train.checkpoint import Checkpoints
from jaxcold.train.loop import DivergedError, fit
from jaxcold.train.step import Step, TrainState, init_state, make_step, place
from jaxcold.types import EvalSlice, Model, Representations

BySlice = Mapping[str, Metrics]


class Run(NamedTuple):
    """Everything that the seeds of a run share."""

    config: config_dict.ConfigDict  # resolved
    task: Task
    workdir: pathlib.Path
    checkpoints: pathlib.Path  # a folder that all hosts see
    dataset: Any
    slices: Mapping[str, EvalSlice]
    model: Model
    optimizer: Any
    step: Step
    console: Console


def run(
    config: config_dict.ConfigDict, workdir: pathlib.Path, *, overwrite: bool = False
) -> dict[str, Any]:
    """Runs an experiment.

    Args:
        config: from `experiments.config.resolve`.
        workdir: receives config.json, split.npz, metrics.jsonl, TensorBoard events in ``tb``,
            a trained recommender per seed in ``models``, and at the end a figure, results.md,
            results.json and, for paired tests with other runs, per_user.npz. With
            config.checkpoint.keep_best also a checkpoint per seed in ``best_checkpoints``.
        overwrite: replace what an earlier run with another config left there.

    Returns:
        What results.json holds.
    """
    with contextlib.ExitStack() as stack:
        own = workdir
        if not parallel.is_primary():  # this host does what all do, and tells nobody
            own = pathlib.Path(stack.enter_context(tempfile.TemporaryDirectory()))
        return _run(config, workdir, own, overwrite)


def _run(
    config: config_dict.ConfigDict, workdir: pathlib.Path, own: pathlib.Path, overwrite: bool
) -> dict[str, Any]:
    """`run`, whose checkpoints all hosts share; each has a folder of its own for the rest."""
    start = time.monotonic()
    console, name = Console(quiet=own != workdir), title(config)
    same = rundir.held(workdir) == json.loads(config.to_json())
    if same and (workdir / rundir.RESULTS_FILE).exists() and not overwrite:
        results = json.loads((workdir / rundir.RESULTS_FILE).read_text())
        rundir.tidy(own)
        _show(config, workdir, results, console)
        console.print("  finished before; --overwrite runs it again")
        return results
    prepared = _prepare(config, workdir, own, overwrite, console)
    trained = [_train(prepared, seed) for seed in config.seeds]
    by_seed = [metrics for metrics, _ in trained]
    console.print("evaluating the baselines ...")
    baselines = _baselines(prepared)
    seconds = time.monotonic() - start + sum(before for _, before in trained)
    results = _results(prepared, by_seed, baselines, seconds)
    task = prepared.task
    if config.eval.figure:
        mode = tasks.mode_of(task, results["metrics"])
        drawn = f"{mode}{task.drawn}"
        shown = {name: by_seed[0], **{key: metrics[0] for key, metrics in baselines.items()}}
        figure(
            own,
            run_log.read_rows(own / rundir.ROWS_FILE),
            results,
            {key: metrics[f"test/{drawn}"] for key, metrics in shown.items()},
            name=name,
            cutoff=_cutoff(config),
            headline=task.headline,
            bars=[(mode + where, metric) for where, metric in task.bars],
            drawn=drawn,
        )
    tests = [where for where in prepared.slices if where.startswith("test/")]
    means = {
        where: statistics.seed_means([metrics[where] for metrics in by_seed]) for where in tests
    }
    run_log.write_users(own / rundir.USERS_FILE, means)
    tables.write_results(own, results, name=name, tables=task.tables)
    parallel.barrier("done")  # nobody needs the checkpoints any more
    rundir.tidy(own)
    _show(config, workdir, results, console)
    return results


def _show(
    config: config_dict.ConfigDict,
    workdir: pathlib.Path,
    results: Mapping[str, Any],
    console: Console,
) -> None:
    task = tasks.of(config)
    mode = tasks.mode_of(task, results["metrics"])
    tables.print_table(
        results,
        name=title(config),
        cutoff=_cutoff(config),
        console=console,
        tables={where: what for where, what in task.tables.items() if where.startswith(mode)},
        columns=task.columns,
    )
    shares = results.get("share_of_oracle", {})
    share = shares.get(f"test/cold/ndcg@{_cutoff(config)}")
    if share is not None:
        console.print(f"  share of the achievable NDCG on cold test items: {share:.1%}")
    console.print(f"  {results['seconds']:.0f} s; results in {workdir}", highlight=False)


def title(config: config_dict.ConfigDict) -> str:
    """The model's name in tables: "SEMCo sparsemax"."""
    return tasks.title(config.model)


def _cutoff(config: config_dict.ConfigDict) -> int:
    return cutoff_of(config.eval.cutoffs)


def cutoff_of(cutoffs: Collection[int]) -> int:
    """The cut-off that tables show: the papers' 20 where it is there, else the largest."""
    return 20 if 20 in cutoffs else max(cutoffs)


def _prepare(
    config: config_dict.ConfigDict,
    workdir: pathlib.Path,
    own: pathlib.Path,
    overwrite: bool,
    console: Console,
) -> Run:
    plain = json.loads(config.to_json())
    rundir.check(workdir, plain, overwrite)
    task = tasks.of(config)
    dataset = task.load(config)
    console.print(task.describe(dataset), highlight=False)
    prepared = setup(config, dataset, task.slices(config, dataset), own, console)
    prepared = prepared._replace(checkpoints=workdir / rundir.CHECKPOINTS)
    # Only now: bad input leaves the folder as it was.
    begun = (workdir / rundir.CHECKPOINTS).exists() and rundir.held(workdir) and not overwrite
    if begun and not task.same_split(workdir / rundir.SPLIT_FILE, dataset):
        raise ConfigError(
            f"--workdir={workdir}: the data are not those that this run was begun with; name "
            "another folder, or pass --overwrite to begin again"
        )
    parallel.barrier("read")  # before the first changes what the others look at
    if begun:
        rundir.clear_killed(own)
    else:
        rundir.begin(own, plain)
        task.write_split(own / rundir.SPLIT_FILE, dataset)
    parallel.barrier("begun")
    return prepared


def setup(
    config: config_dict.ConfigDict,
    dataset: Any,
    slices: Mapping[str, EvalSlice],
    workdir: pathlib.Path,
    console: Console,
) -> Run:
    """Builds the model of a resolved config and its step; nothing is written yet."""
    task = tasks.of(config)
    model, optimizer = task.build(config, dataset)
    step = make_step(model, optimizer)
    checkpoints = workdir / rundir.CHECKPOINTS
    return Run(config, task, workdir, checkpoints, dataset, slices, model, optimizer, step, console)


def headline(config: config_dict.ConfigDict) -> str:
    """The metric that chooses, on validation."""
    return f"{tasks.of(config).headline}/ndcg@{_cutoff(config)}"


def evaluate_on(run: Run, vectors: Representations, where: str) -> Metrics:
    """Metrics of one slice at the config's cut-offs."""
    piece, cutoffs = run.slices[where], run.config.eval.cutoffs
    devices = run.model.devices or parallel.ONE
    return evaluate(top_k(vectors, piece, max(cutoffs), devices=devices), piece, cutoffs)


def train(
    run: Run,
    seed: int,
    *,
    label: str,
    on_step: Callable[[int, Mapping[str, float]], None] = lambda number, logs: None,
    on_epoch: Callable[[int, TrainState, Progress], bool] = lambda epoch, state, bar: False,
    state: TrainState | None = None,
    **saving: Any,
) -> TrainState:
    """Trains one seed with a progress bar.

    Args:
        run: from `setup`.
        seed: of the parameters and of the order of batches.
        label: of the bar.
        on_step: called with the number of a finished step and what it logged.
        on_epoch: called after every epoch, counted from 1; what is true ends the training.
        state: to go on from; unset, a fresh one.
        **saving: `due` and `on_due` of `jaxcold.train.loop.fit`.
    """
    model, epochs = run.model, run.task.epochs(run.config)
    steps, examples = model.steps_per_epoch, model.examples_per_epoch
    state = init_state(model, run.optimizer, seed) if state is None else state

    def behind(step: int) -> int:
        """Examples behind the first steps."""
        return step * examples // max(steps, 1)

    with Progress(
        label,
        total=examples * epochs,
        unit="items",
        console=run.console,
        done=behind(int(state.step)),
    ) as progress:

        def stepped(number: int, logs: Mapping[str, float]) -> None:
            progress.advance(behind(number + 1) - behind(number), logs["loss"])
            on_step(number, logs)

        def passed(epoch: int, state: TrainState) -> bool:
            return on_epoch(epoch, state, progress)

        return fit(
            model,
            run.step,
            state,
            epochs=epochs,
            seed=seed,
            on_step=stepped,
            on_epoch=passed,
            **saving,
        )


def validate(run: Run, seed: int, *, label: str, on_score: Callable[[int, float], None]) -> float:
    """Trains one seed for a search: nothing but cold validation is looked at.

    Args:
        run: from `setup`.
        seed: see `train`.
        label: see `train`.
        on_score: called with epoch and score after every epoch but the last; the epochs of a
            teacher that is trained first do not count.

    Returns:
        The score after the last epoch.
    """
    epochs, where = run.task.epochs(run.config), run.task.headline
    teacher = epochs - run.config.train.epochs

    def score(state: TrainState) -> float:
        vectors = run.model.represent(state.params, state.extra, "val")
        metrics = {where: evaluate_on(run, vectors, where)}
        return statistics.flatten(metrics)[headline(run.config)]

    def on_epoch(epoch: int, state: TrainState, progress: Progress) -> bool:
        if teacher < epoch < epochs:
            on_score(epoch - teacher, score(state))
        return False

    return score(train(run, seed, label=label, on_epoch=on_epoch))


@contextlib.contextmanager
def _asked_to_stop() -> Iterator[Callable[[int], bool]]:
    """Whether to stop after so many steps: SIGTERM asks for it, instead of ending the process."""
    if jax.process_count() > 1:
        yield parallel.stop_requested
        return
    event = threading.Event()
    if threading.current_thread() is not threading.main_thread():
        yield lambda done: event.is_set()  # only the main thread may handle signals
        return
    before = signal.signal(signal.SIGTERM, lambda *_: event.set())
    try:
        yield lambda done: event.is_set()
    finally:
        signal.signal(signal.SIGTERM, before)


def _evaluate_all(run: Run, represent: Callable[[str], Representations]) -> dict[str, Metrics]:
    """Metrics of every slice; the vectors of a part are made once."""
    vectors = functools.cache(represent)
    return {where: evaluate_on(run, vectors(run.task.part(where)), where) for where in run.slices}


def _train(run: Run, seed: int) -> tuple[BySlice, float]:
    """Trains one seed; validation is looked at as it goes, test once at the end.

    With config.train.patience the training ends when so many epochs have not raised the validation
    score, and the best state is the one that is tested and saved.

    Returns:
        Metrics, and the seconds that earlier processes have spent on this seed.

    Raises:
        StoppedError: after SIGTERM, once the state is saved.
    """
    config, model, workdir = run.config, run.model, run.workdir
    steps, epochs, patience = model.steps_per_epoch, run.task.epochs(config), config.train.patience
    every, keep_best = config.checkpoint.every_steps or steps, config.checkpoint.keep_best
    watched = patience is not None or keep_best
    headline_name, where = headline(config), run.task.headline
    start = time.monotonic()
    state = init_state(model, run.optimizer, seed)

    def say(line: str) -> None:
        run.console.print(line, highlight=False, soft_wrap=True)

    with contextlib.ExitStack() as stack:
        folder = run.checkpoints / f"seed_{seed}"
        checkpoints = stack.enter_context(
            contextlib.closing(Checkpoints(folder, keep=config.checkpoint.keep))
        )
        note: dict[str, Any] = {}
        if (found := checkpoints.restore(state, say=say)) is not None:
            state, note = place(model, found[0]), found[1]
        if note.get("config", rundir.hash_of(config)) != rundir.hash_of(config):
            raise ConfigError(
                f"{folder} is of a run with another config; delete it to start this seed again"
            )
        first = int(state.step)
        before = note.get("seconds", 0.0)
        ended: bool = note.get("ended", False)  # by patience
        stopped = False  # by SIGTERM
        losses: list[float] = note.get("losses", [])
        measured: dict[str, list[float]] = note.get("measured", {})  # since the last row
        best: dict[str, Any] = note.get("best", {})  # score and epoch, once there is one
        if first:
            say(f"seed {seed}: goes on from step {first}")
        # Rows beyond the checkpoint come again.
        path = workdir / rundir.ROWS_FILE
        run_log.keep_rows(path, lambda row: row["seed"] != seed or row["step"] <= first)
        rows = run_log.read_rows(path) if path.exists() else []
        known = {(row["step"], _final(row)) for row in rows if row["seed"] == seed}

        def seconds() -> float:
            return before + time.monotonic() - start

        def on_step(number: int, logs: Mapping[str, float]) -> None:
            losses.append(logs["loss"])
            del losses[:-steps]
            finite = {name: value for name, value in logs.items() if math.isfinite(value)}
            for name in finite.keys() - {"loss"}:
                measured.setdefault(name, []).append(finite[name])
            if number % 10 == 0:
                log(number, {f"train/{name}": value for name, value in finite.items()})

        def on_epoch(epoch: int, state: TrainState, progress: Progress) -> bool:
            nonlocal ended
            # Without patience the last epoch is validated with the test, at the end.
            if epoch % config.train.eval_every == 0 and (watched or epoch < epochs):
                vectors = model.represent(state.params, state.extra, "val")
                metrics = {where: evaluate_on(run, vectors, where)}
                progress.say(record(epoch, metrics))
                score = statistics.flatten(metrics)[headline_name]
                if watched and score > best.get("score", -math.inf):
                    best.update(score=score, epoch=epoch)
                if patience is not None:
                    ended = epoch - best.get("epoch", 0) >= patience * config.train.eval_every
            return ended

        def best_step() -> int | None:
            return best["epoch"] * steps if best else None

        def record(epoch: int, metrics: BySlice) -> str:
            values = statistics.flatten(metrics)
            row = {
                "seed": seed,
                "epoch": epoch,
                "step": epoch * steps,
                "loss": float(np.mean(losses)) if losses else math.nan,
                "seconds": seconds(),
                **{f"train/{name}": float(np.mean(found)) for name, found in measured.items()},
                **values,
            }
            if (row["step"], _final(row)) not in known:
                run_log.append_row(path, row)
                log(epoch * steps, {k: v for k, v in values.items() if math.isfinite(v)})
            measured.clear()
            return (
                f"seed {seed}, epoch {epoch}/{epochs}: loss {row['loss']:.4f}, "
                f"{headline_name} {values[headline_name]:.4f}"
            )

        def due(done: int) -> bool:
            nonlocal stopped
            stopped = asked(done)
            last = done == epochs * steps or ended
            return stopped or done % every == 0 or last or done == best_step()

        def save(state: TrainState) -> None:
            # Copies: the note is written while training goes on.
            since = {name: list(values) for name, values in measured.items()}
            note = {
                "config": rundir.hash_of(config),
                "seconds": seconds(),
                "losses": list(losses),
                "measured": since,
                "ended": ended,
                "best": dict(best),
            }
            checkpoints.save(state, note, best=best_step())
            if stopped:
                checkpoints.wait()
                raise StoppedError(
                    f"stopped at step {int(state.step)} of seed {seed}; the same command goes on"
                )

        log = stack.enter_context(run_log.tensorboard(workdir / "tb" / f"seed_{seed}", first=first))
        try:
            if steps and not ended:
                with _asked_to_stop() as asked:
                    state = train(
                        run,
                        seed,
                        label=f"seed {seed}",
                        on_step=on_step,
                        on_epoch=on_epoch,
                        state=state,
                        due=due,
                        on_due=save,
                    )
                    checkpoints.wait()
                    stopped = asked(int(state.step) + 1)  # after the last step
                if stopped:
                    raise StoppedError("stopped; the same command goes on")
        except DivergedError as error:
            raise DivergedError(f"{error}, seed {seed}; {_diverged(run, seed, error)}") from None
        last = int(state.step) // max(steps, 1)
        if (at := best_step()) is not None:
            if keep_best:
                rundir.leave(checkpoints.path(at), workdir / rundir.BEST / f"seed_{seed}")
            if patience is not None:
                found = checkpoints.restore(state, step=at)
                assert found is not None  # a step that is asked for is found, or an error
                state = place(model, found[0])
                say(f"seed {seed}: best epoch {best['epoch']} of {last}")
        metrics = _evaluate_all(run, lambda part: model.represent(state.params, state.extra, part))
        say(record(last, metrics))
        params = parallel.fetch(state.params)
        run.task.serve(config, run.dataset, model, params, workdir / "models" / f"seed_{seed}")
    return metrics, before


def _diverged(run: Run, seed: int, error: DivergedError) -> str:
    """Leaves the examples at fault in the workdir; returns what to say of them."""
    path = run.workdir / rundir.DIVERGED.replace("*", str(seed))
    ids = {name: values.tolist() for name, values in error.examples.items()}
    found = {
        "error": str(error),
        "seed": seed,
        "step": error.step,
        "batch": ids,
        "batch_before": {name: values.tolist() for name, values in error.before.items()},
        "config": json.loads(run.config.to_json()),
    }
    write_atomic(path, (json.dumps(found) + "\n").encode())
    few = " and ".join(f"{name}s {', '.join(map(str, ids[name][:3]))}, .." for name in ids)
    return (
        f"config {run.workdir / rundir.CONFIG_FILE}: try a lower train.learning_rate or another "
        f"model.tau; the last good checkpoint stays; the batch has {few}: all of it in {path}"
    )


def _final(row: Mapping[str, Any]) -> bool:
    """Whether the row is the last of its seed: the one with test metrics."""
    return any(name.startswith("test/") for name in row)


def _baselines(run: Run) -> dict[str, list[BySlice]]:
    """Metrics of chance, one ranking a seed, and of what the task compares with."""
    cutoffs = run.config.eval.cutoffs
    found: dict[str, list[BySlice]] = {
        "random": [
            {
                where: evaluate(random_top_k(piece, max(cutoffs), seed), piece, cutoffs)
                for where, piece in run.slices.items()
            }
            for seed in run.config.seeds
        ]
    }
    for name, represent in run.task.baselines(run.config, run.dataset).items():
        found[name] = [_evaluate_all(run, represent)]
    return found


def _summary(by_seed: list[BySlice]) -> dict[str, Any]:
    flat = [statistics.flatten(metrics) for metrics in by_seed]
    return statistics.summarise({name: [values[name] for values in flat] for name in flat[0]})


def _results(
    run: Run, by_seed: list[BySlice], baselines: dict[str, list[BySlice]], seconds: float
) -> dict[str, Any]:
    cutoff = _cutoff(run.config)
    summaries = {name: _summary(metrics) for name, metrics in baselines.items()}
    metrics = _summary(by_seed)
    results = {
        "config": json.loads(run.config.to_json()),
        "metrics": metrics,
        "baselines": summaries,
        "comparisons": {
            f"{where}/{name}": test
            for where in map("test/{}".format, run.task.tables)
            if where in run.slices and "content_knn" in baselines
            for name, test in statistics.compare(
                [m[where] for m in by_seed],
                [m[where] for m in baselines["content_knn"]],
                [f"ndcg@{cutoff}", f"recall@{cutoff}"],
            ).items()
        },
        "seconds": seconds,
        "peak_memory_bytes": run_log.peak_memory(),
    }
    if "oracle" in summaries:
        # The oracle ranks items that nobody has taken yet; it knows nothing of popularity.
        shares = statistics.share_of_oracle(metrics, summaries["oracle"])
        results["share_of_oracle"] = {k: v for k, v in shares.items() if "/cold" in k}
    return results
