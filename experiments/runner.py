"""A run, stage by stage: load, train a model per seed, evaluate, report."""

import contextlib
import json
import math
import pathlib
import shutil
import signal
import threading
import time
from collections.abc import Callable, Collection, Iterator, Mapping
from typing import Any, NamedTuple

import numpy as np
from ml_collections import config_dict
from rich.console import Console

from experiments.base import ConfigError, StoppedError
from jaxcold import models
from jaxcold.data.dataset import Dataset
from jaxcold.data.loading import load
from jaxcold.data.splits import write_split
from jaxcold.eval import report
from jaxcold.eval.figure import figure
from jaxcold.eval.metrics import Metrics, evaluate
from jaxcold.eval.rank import random_top_k, top_k
from jaxcold.files import write_atomic
from jaxcold.models import content_knn
from jaxcold.models.distillation import clock_of
from jaxcold.recommender import SEMCo
from jaxcold.train.checkpoint import Checkpoints
from jaxcold.train.loop import DivergedError, fit
from jaxcold.train.optim import adam_coupled_l2, cosine, distillation
from jaxcold.train.step import Step, TrainState, init_state, make_step
from jaxcold.types import EvalSlice, Model, Representations

CONFIG_FILE, ROWS_FILE, SPLIT_FILE = "config.json", "metrics.jsonl", "split.npz"
RESULTS_FILE, USERS_FILE, CHECKPOINTS = "results.json", "per_user.npz", "checkpoints"
FAMILY = {"semco": "SEMCo", "semco_offline": "SEMCo-Offline", "semco_online": "SEMCo-Online"}
TITLE = {1.0: "softmax", 1.5: "entmax15", 2.0: "sparsemax"}

BySlice = Mapping[str, Metrics]


class Run(NamedTuple):
    """Everything that the seeds of a run share."""

    config: config_dict.ConfigDict  # resolved
    workdir: pathlib.Path
    dataset: Dataset
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
        config: from `experiments.base.resolve`.
        workdir: receives config.json, split.npz, metrics.jsonl, TensorBoard events in ``tb``,
            a trained recommender per seed in ``models``, and at the end a figure, results.md,
            results.json and, for paired tests with other runs, per_user.npz.
        overwrite: replace what an earlier run with another config left there.

    Returns:
        What results.json holds.
    """
    start = time.monotonic()
    console, name = Console(), title(config)
    same = held(workdir) == json.loads(config.to_json())
    if same and (workdir / RESULTS_FILE).exists() and not overwrite:
        results = json.loads((workdir / RESULTS_FILE).read_text())
        _show(config, workdir, results, console)
        console.print("  finished before; --overwrite runs it again")
        return results
    prepared = _prepare(config, workdir, overwrite, console)
    with _asked_to_stop() as stop:
        trained = [_train(prepared, seed, stop) for seed in config.seeds]
    by_seed = [metrics for metrics, _ in trained]
    console.print("evaluating the yardsticks ...")
    baselines = _yardsticks(prepared)
    seconds = time.monotonic() - start + sum(before for _, before in trained)
    results = _results(prepared, by_seed, baselines, seconds)
    if config.eval.figure:
        shown = {name: by_seed[0]["test/cold"]}
        shown |= {key: metrics[0]["test/cold"] for key, metrics in baselines.items()}
        rows = report.read_rows(workdir / ROWS_FILE)
        cutoff = _cutoff(config)
        figure(workdir, rows, results, shown, name=name, cutoff=cutoff)
    tests = [where for where in prepared.slices if where.startswith("test/")]
    means = {where: report.seed_means([metrics[where] for metrics in by_seed]) for where in tests}
    report.write_users(workdir / USERS_FILE, means)
    report.write_results(workdir, results, name=name)
    shutil.rmtree(workdir / CHECKPOINTS, ignore_errors=True)  # the trained models are in models/
    _show(config, workdir, results, console)
    return results


def _show(
    config: config_dict.ConfigDict,
    workdir: pathlib.Path,
    results: Mapping[str, Any],
    console: Console,
) -> None:
    name = title(config)
    report.print_table(results, name=name, cutoff=_cutoff(config), console=console)
    shares = results.get("share_of_oracle", {})
    share = shares.get(f"test/cold/ndcg@{_cutoff(config)}")
    if share is not None:
        console.print(f"  share of the achievable NDCG on cold test items: {share:.1%}")
    console.print(f"  {results['seconds']:.0f} s; results in {workdir}", highlight=False)


def title(config: config_dict.ConfigDict) -> str:
    """The model's name in tables: "SEMCo sparsemax"."""
    return title_of(config.model.name, config.model.alpha)


def title_of(model: str, alpha: float) -> str:
    """`title` of a model's name and its alpha."""
    return f"{FAMILY[model]} {TITLE.get(alpha, f'alpha={alpha:g}')}"


def _cutoff(config: config_dict.ConfigDict) -> int:
    return cutoff_of(config.eval.cutoffs)


def cutoff_of(cutoffs: Collection[int]) -> int:
    """The cut-off that tables show: the papers' 20 where it is there, else the largest."""
    return 20 if 20 in cutoffs else max(cutoffs)


def _prepare(
    config: config_dict.ConfigDict, workdir: pathlib.Path, overwrite: bool, console: Console
) -> Run:
    plain = json.loads(config.to_json())
    _check_workdir(workdir, plain, overwrite)
    dataset = load(**config.data.to_dict())
    split = dataset.split
    console.print(
        f"{dataset.name}: {dataset.interactions.num_users:,} users, "
        f"{len(split.warm_items):,} warm and {len(split.cold_items):,} cold items, "
        f"{len(split.train.user):,} training pairs, modes "
        + ", ".join(f"{name} ({t.shape[1]})" for name, t in dataset.content.tables.items()),
        highlight=False,
    )
    prepared = setup(config, dataset, split.slices(), workdir, console)
    # Only now: bad input leaves the folder as it was.
    if (workdir / CHECKPOINTS).exists() and held(workdir) and not overwrite:
        if not _same_split(workdir / SPLIT_FILE, dataset):
            raise ConfigError(
                f"--workdir={workdir}: the data are not those that this run was begun with; name "
                "another folder, or pass --overwrite to begin again"
            )
        return prepared
    _open_workdir(workdir, plain)
    write_split(workdir / SPLIT_FILE, split)
    return prepared


def setup(
    config: config_dict.ConfigDict,
    dataset: Dataset,
    slices: Mapping[str, EvalSlice],
    workdir: pathlib.Path,
    console: Console,
) -> Run:
    """Builds the model of a resolved config and its step; nothing is written yet."""
    model = _model(config, dataset)
    optimizer = _optimizer(config, model)
    return Run(
        config, workdir, dataset, slices, model, optimizer, make_step(model, optimizer), console
    )


def _model(config: config_dict.ConfigDict, dataset: Dataset) -> Model:
    options = config.model.to_dict()
    for other in ("l2", "tuned", "warmup_epochs"):
        options.pop(other, None)
    if "encode" in options:
        options["stream"] = config.data.mmap and options["encode"] == "active"
    if folder := options.pop("teacher", None):
        options["teachers"] = _teachers(folder, config, dataset)
    return models.build(options.pop("name"), dataset, batch_size=config.train.batch_size, **options)


def _teachers(folder: str, config: config_dict.ConfigDict, dataset: Dataset) -> dict[int, Any]:
    """The teacher of each seed, from a finished run on the same split."""
    where = pathlib.Path(folder)
    try:
        same = _same_split(where / SPLIT_FILE, dataset)
    except (OSError, KeyError, ValueError):
        raise ConfigError(
            f"config.model.teacher: {where / SPLIT_FILE} cannot be read; name the --workdir of a "
            "finished run"
        ) from None
    if not same:
        raise ConfigError(
            f"config.model.teacher: {where} was trained on another split; pass "
            f"--config.data.split_file={where / SPLIT_FILE}"
        )
    return {s: SEMCo.load(where / "models" / f"seed_{s}").encoder.params for s in config.seeds}


def _same_split(path: pathlib.Path, dataset: Dataset) -> bool:
    with np.load(path, allow_pickle=False) as theirs:
        return np.array_equal(theirs["warm_train"], dataset.split.pairs["warm_train"])


def _epochs(config: config_dict.ConfigDict) -> int:
    """Of the whole run: a teacher that is trained first has its own."""
    first = config.model.name == "semco_offline" and not config.model.teacher
    return config.train.epochs + (config.model.teacher_epochs if first else 0)


def _optimizer(config: config_dict.ConfigDict, model: Model) -> Any:
    rate, steps = config.train.learning_rate, model.steps_per_epoch
    if config.model.name == "semco":
        return adam_coupled_l2(cosine(rate, config.train.epochs * steps), config.model.l2)
    trained = 0 if config.model.get("teacher") else config.model.teacher_epochs * steps
    clock = clock_of(config.model.name == "semco_online", trained)
    return distillation(
        rate,
        config.model.l2,
        teacher_stops=clock.teacher,
        student_starts=clock.student,
        warm_up_steps=config.model.get("warmup_epochs", 0) * steps,
    )


def _check_workdir(workdir: pathlib.Path, config: Mapping[str, Any], overwrite: bool) -> None:
    if workdir.exists() and not workdir.is_dir():
        raise ConfigError(f"--workdir={workdir} is a file; name a folder")
    changed = differences(config, held(workdir) or config)
    if changed and not overwrite:
        raise ConfigError(
            f"--workdir={workdir} holds a run with another config ({', '.join(changed[:3])} "
            "differ); name another folder, or pass --overwrite to replace it"
        )


def _open_workdir(workdir: pathlib.Path, config: Mapping[str, Any]) -> None:
    """Empties the folder of an earlier run's files, never of others, and claims it."""
    workdir.mkdir(parents=True, exist_ok=True)
    for name in (ROWS_FILE, RESULTS_FILE, USERS_FILE, "results.md", "summary.png"):
        (workdir / name).unlink(missing_ok=True)
    for folder in ("tb", "models", CHECKPOINTS):
        shutil.rmtree(workdir / folder, ignore_errors=True)
    write_atomic(workdir / CONFIG_FILE, (json.dumps(config, indent=2) + "\n").encode())


def held(workdir: pathlib.Path) -> dict[str, Any] | None:
    """The config of the run that the folder holds, finished or not."""
    try:
        return json.loads((workdir / CONFIG_FILE).read_text())
    except (FileNotFoundError, NotADirectoryError, json.JSONDecodeError):
        return None


def differences(ours: Mapping[str, Any], theirs: Mapping[str, Any]) -> list[str]:
    """The fields in which two configs differ: ["model.alpha", ...]."""
    a, b = flat(ours), flat(theirs)
    return sorted(field for field in a.keys() | b.keys() if a.get(field) != b.get(field))


def flat(tree: Any, prefix: str = "") -> dict[str, Any]:
    """A nested config as one level: {"model.alpha": 2.0, ...}."""
    if not isinstance(tree, Mapping):
        return {prefix: tree}
    return {
        name: value
        for key, branch in tree.items()
        for name, value in flat(branch, f"{prefix}.{key}" if prefix else key).items()
    }


def headline(config: config_dict.ConfigDict) -> str:
    """The metric that chooses: on cold validation."""
    return f"val/cold/ndcg@{_cutoff(config)}"


def evaluate_on(run: Run, vectors: Representations, where: str) -> Metrics:
    """Metrics of one slice at the config's cut-offs."""
    piece, cutoffs = run.slices[where], run.config.eval.cutoffs
    return evaluate(top_k(vectors, piece, max(cutoffs)), piece, cutoffs)


def train(
    run: Run,
    seed: int,
    *,
    label: str,
    on_step: Callable[[int, Mapping[str, float]], None] = lambda number, logs: None,
    on_epoch: Callable[[int, TrainState, report.Progress], None] = lambda epoch, state, bar: None,
    state: TrainState | None = None,
    **saving: Any,
) -> TrainState:
    """Trains one seed with a progress bar.

    Args:
        run: from `setup`.
        seed: of the parameters and of the order of batches.
        label: of the bar.
        on_step: called with the number of a finished step and what it logged.
        on_epoch: called after every epoch but the last, counted from 1.
        state: to go on from; unset, a fresh one.
        **saving: `due` and `on_due` of `jaxcold.train.loop.fit`.
    """
    config, model = run.config, run.model
    pairs = len(run.dataset.split.train.user)
    batch, steps, epochs = config.train.batch_size, model.steps_per_epoch, _epochs(config)
    state = init_state(model, run.optimizer, seed) if state is None else state
    epoch, step = divmod(int(state.step), steps)
    done = epoch * pairs + step * batch
    with report.Progress(
        label, total=pairs * epochs, unit="items", console=run.console, done=done
    ) as progress:

        def stepped(number: int, logs: Mapping[str, float]) -> None:
            last = (number + 1) % steps == 0
            progress.advance(pairs - (steps - 1) * batch if last else batch, logs["loss"])
            on_step(number, logs)

        def passed(epoch: int, state: TrainState) -> None:
            if epoch < epochs:
                on_epoch(epoch, state, progress)

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
    teacher = _epochs(run.config) - run.config.train.epochs

    def score(state: TrainState) -> float:
        vectors = run.model.represent(state.params, state.extra)
        return report.flatten({"val/cold": evaluate_on(run, vectors, "val/cold")})[
            headline(run.config)
        ]

    def on_epoch(epoch: int, state: TrainState, progress: report.Progress) -> None:
        if epoch > teacher:
            on_score(epoch - teacher, score(state))

    return score(train(run, seed, label=label, on_epoch=on_epoch))


@contextlib.contextmanager
def _asked_to_stop() -> Iterator[threading.Event]:
    """An event that SIGTERM sets, instead of ending the process."""
    event = threading.Event()
    if threading.current_thread() is not threading.main_thread():
        yield event  # only the main thread may handle signals
        return
    before = signal.signal(signal.SIGTERM, lambda *_: event.set())
    try:
        yield event
    finally:
        signal.signal(signal.SIGTERM, before)


def _train(run: Run, seed: int, stop: threading.Event) -> tuple[BySlice, float]:
    """Trains one seed; validation is looked at as it goes, test once at the end.

    Returns:
        Metrics, and the seconds that earlier processes have spent on this seed.

    Raises:
        StoppedError: once `stop` is set and the state is saved.
    """
    config, model, workdir = run.config, run.model, run.workdir
    steps, epochs = model.steps_per_epoch, _epochs(config)
    every = config.checkpoint.every_steps or steps
    start = time.monotonic()
    state = init_state(model, run.optimizer, seed)
    with contextlib.closing(Checkpoints(workdir / CHECKPOINTS / f"seed_{seed}")) as checkpoints:
        state, note = checkpoints.restore(state) or (state, {})
        first = int(state.step)
        before = note.get("seconds", 0.0)
        losses: list[float] = note.get("losses", [])
        measured: dict[str, list[float]] = note.get("measured", {})  # since the last row
        if first:
            run.console.print(f"seed {seed}: goes on from step {first}", highlight=False)
        # Rows beyond the checkpoint come again.
        report.keep_rows(
            workdir / ROWS_FILE, lambda row: row["seed"] != seed or row["step"] <= first
        )
        rows = report.read_rows(workdir / ROWS_FILE) if (workdir / ROWS_FILE).exists() else []
        known = {row["step"] for row in rows if row["seed"] == seed}

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

        def on_epoch(epoch: int, state: TrainState, progress: report.Progress) -> None:
            if epoch % config.train.eval_every == 0:
                vectors = model.represent(state.params, state.extra)
                progress.say(record(epoch, {"val/cold": evaluate_on(run, vectors, "val/cold")}))

        def record(epoch: int, metrics: BySlice) -> str:
            values = report.flatten(metrics)
            row = {
                "seed": seed,
                "epoch": epoch,
                "step": epoch * steps,
                "loss": float(np.mean(losses)),
                "seconds": seconds(),
                **{f"train/{name}": float(np.mean(found)) for name, found in measured.items()},
                **values,
            }
            if row["step"] not in known:
                report.append_row(workdir / ROWS_FILE, row)
                log(epoch * steps, values)
            measured.clear()
            name = headline(config)
            return (
                f"seed {seed}, epoch {epoch}/{epochs}: loss {row['loss']:.4f}, "
                f"{name} {values[name]:.4f}"
            )

        def due(done: int) -> bool:
            return stop.is_set() or done % every == 0 or done == epochs * steps

        def save(state: TrainState) -> None:
            # Copies: the note is written while training goes on.
            since = {name: list(values) for name, values in measured.items()}
            note = {"seconds": seconds(), "losses": list(losses), "measured": since}
            checkpoints.save(state, note)
            if stop.is_set():
                checkpoints.wait()
                raise StoppedError(
                    f"stopped at step {int(state.step)} of seed {seed}; the same command goes on"
                )

        with report.tensorboard(workdir / "tb" / f"seed_{seed}", first=first) as log:
            try:
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
            except DivergedError as error:
                raise DivergedError(
                    f"{error}, seed {seed}; config {workdir / CONFIG_FILE}: try a lower "
                    "train.learning_rate or another model.tau"
                ) from None
            vectors = model.represent(state.params, state.extra)
            metrics = {where: evaluate_on(run, vectors, where) for where in run.slices}
            run.console.print(record(epochs, metrics), highlight=False)
        served = SEMCo.from_training(run.dataset, model, state.params, config.model.to_dict())
        served.save(workdir / "models" / f"seed_{seed}")
    return metrics, before


def _yardsticks(run: Run) -> dict[str, list[BySlice]]:
    """Metrics of chance (one ranking a seed), of content-KNN, and of the oracle if there is one."""
    dataset, cutoffs = run.dataset, run.config.eval.cutoffs
    found: dict[str, list[BySlice]] = {
        "random": [
            {
                where: evaluate(random_top_k(piece, max(cutoffs), seed), piece, cutoffs)
                for where, piece in run.slices.items()
            }
            for seed in run.config.seeds
        ]
    }
    content = dataset.content
    knn = content_knn.represent(content.tables, dataset.split.train.by_user(), content.present)
    fixed = {"content_knn": knn}
    if dataset.oracle is not None:
        fixed["oracle"] = dataset.oracle
    for name, vectors in fixed.items():
        found[name] = [{where: evaluate_on(run, vectors, where) for where in run.slices}]
    return found


def _summary(by_seed: list[BySlice]) -> dict[str, Any]:
    flat = [report.flatten(metrics) for metrics in by_seed]
    return report.summarise({name: [values[name] for values in flat] for name in flat[0]})


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
            for where in ("test/cold", "test/cold_own", "test/warm")
            for name, test in report.compare(
                [m[where] for m in by_seed],
                [m[where] for m in baselines["content_knn"]],
                [f"ndcg@{cutoff}", f"recall@{cutoff}"],
            ).items()
        },
        "seconds": seconds,
        "peak_memory_bytes": report.peak_memory(),
    }
    if "oracle" in summaries:
        # The oracle ranks items that nobody has taken yet; it knows nothing of popularity.
        shares = report.share_of_oracle(metrics, summaries["oracle"])
        results["share_of_oracle"] = {k: v for k, v in shares.items() if "/cold" in k}
    return results
