"""A run, stage by stage: load, split, build, train every seed, evaluate, report."""

import contextlib
import math
import pathlib
import tempfile
import time
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from ml_collections import config_dict
from rich.console import Console

from experiments import config as configs
from experiments import seed as seeds
from experiments import task as tasks
from experiments import workdir as workdirs
from experiments.setup import (
    BySlice,
    Setup,
    cutoff_of,
    make_setup,
    title,
    validation_slice,
)
from jaxcold import parallel
from jaxcold.eval import statistics
from jaxcold.eval.evaluation import evaluate_model
from jaxcold.eval.metrics import evaluate
from jaxcold.eval.ranking import random_top_k
from jaxcold.reporting import run_log, tables
from jaxcold.reporting.figures import figure
from jaxcold.train.early_stopping import EarlyStopping
from jaxcold.train.loop import fit
from jaxcold.train.step import TrainState, init_state


def run(
    config: config_dict.ConfigDict,
    workdir: pathlib.Path,
    *,
    overwrite: bool = False,
    with_table: bool = True,
) -> dict[str, Any]:
    """Runs an experiment.

    Args:
        config: from `experiments.config.resolve`.
        workdir: receives config.json, split.npz, metrics.jsonl, TensorBoard events in ``tb``,
            a trained model per seed in ``models``, and at the end a figure, results.md,
            results.json and, for paired tests and figures with other runs, per_user.npz and
            per_item.npz. With config.checkpoint.keep_best also a checkpoint per seed in
            ``best_checkpoints``.
        overwrite: replace what an earlier run with another config left there.
        with_table: print the table of the results at the end.

    Returns:
        What results.json holds.
    """
    with contextlib.ExitStack() as stack:
        own = workdir
        if not parallel.is_primary():  # this host computes the same and writes for nobody
            own = pathlib.Path(stack.enter_context(tempfile.TemporaryDirectory()))
        lock = stack.enter_context(workdirs.Lock(own))
        console = Console(quiet=own != workdir)
        results, is_new = _run(config, workdir, lock, overwrite, console)
    if with_table:
        show(config, workdir, results, console)
        if not is_new:
            console.print("  finished before; --overwrite runs it again")
    return results


def _run(
    config: config_dict.ConfigDict,
    workdir: pathlib.Path,
    lock: workdirs.Lock,
    overwrite: bool,
    console: Console,
) -> tuple[dict[str, Any], bool]:
    """The results, and whether they are new.

    All hosts share the checkpoints, and each has a folder of its own for the rest.
    """
    own = lock.workdir
    start = time.monotonic()
    if not overwrite and (results := workdirs.finished_results(workdir, config)) is not None:
        workdirs.remove_temporary(own)
        return results, False
    setup = prepare(config, workdir, lock, overwrite, console)
    trained = [seeds.train(setup, seed) for seed in config.seeds]
    by_seed = [metrics for metrics, _ in trained]
    baselines = evaluate_baselines(setup)
    seconds = time.monotonic() - start + sum(before for _, before in trained)
    results = summarise(setup, by_seed, baselines, seconds)
    write_reports(setup, by_seed, baselines, results)
    parallel.barrier("done")  # nobody needs the checkpoints any more
    workdirs.remove_temporary(own)
    return results, True


def prepare(
    config: config_dict.ConfigDict,
    workdir: pathlib.Path,
    lock: workdirs.Lock,
    overwrite: bool,
    console: Console,
) -> Setup:
    """Loads the data, builds the model, and claims the folder.

    In that order: bad input leaves the folder as it was.
    """
    own = lock.workdir
    workdirs.check(workdir, configs.plain(config), overwrite)
    if own.exists():
        lock.take()
    task = tasks.of(config)
    dataset = task.load(config)
    console.print(task.describe(dataset), highlight=False)
    slices = task.slices(config, dataset)
    checkpoints = workdir / workdirs.CHECKPOINTS
    setup = make_setup(config, dataset, slices, own, checkpoints, console)
    lock.take()  # makes the folder, now that the input is known to be good
    is_begun = checkpoints.exists() and workdirs.config_of(workdir) and not overwrite
    if is_begun:
        workdirs.check_inputs(workdir, dataset.sources)
    parallel.barrier("read")  # before the first host changes what the others look at
    if is_begun:
        workdirs.remove_partial(own)
    else:
        workdirs.begin(own, configs.plain(config), dataset.sources)
        task.write_split(own / workdirs.SPLIT_FILE, dataset)
    parallel.barrier("begun")
    return setup


def evaluate_baselines(setup: Setup) -> dict[str, list[BySlice]]:
    """Metrics of a random ranking per seed, and of the task's baselines."""
    cutoffs, ties = setup.config.eval.cutoffs, setup.config.eval.ties
    result: dict[str, list[BySlice]] = {
        "random": [
            {
                name: evaluate(random_top_k(task, max(cutoffs), seed), task, cutoffs)
                for name, task in setup.slices.items()
            }
            for seed in setup.config.seeds
        ]
    }
    if not setup.config.eval.baselines:
        return result
    setup.console.print("evaluating the baselines ...")
    for name, model in setup.task.baselines(setup.config, setup.dataset).items():
        params, model_state = model.init(0)
        result[name] = [evaluate_model(model, params, model_state, setup.slices, cutoffs, ties)]
    return result


def summarise(
    setup: Setup,
    by_seed: Sequence[BySlice],
    baselines: Mapping[str, Sequence[BySlice]],
    seconds: float,
) -> dict[str, Any]:
    """What results.json holds: means and spread over seeds, of the model and the baselines."""
    metrics = _over_seeds(by_seed)
    summaries = {name: _over_seeds(values) for name, values in baselines.items()}
    results = {
        "config": configs.plain(setup.config),
        "metrics": metrics,
        "baselines": summaries,
        "comparisons": _compare_with_content_knn(setup, by_seed, baselines),
        "seconds": seconds,
        "peak_memory_bytes": run_log.peak_memory(),
    }
    if "oracle" in summaries:
        # The oracle ranks items that nobody has taken yet; it knows nothing of popularity.
        ratios = statistics.share_of_oracle(metrics, summaries["oracle"])
        results["share_of_oracle"] = {k: v for k, v in ratios.items() if "/cold" in k}
    return results


def _over_seeds(by_seed: Sequence[BySlice]) -> dict[str, Any]:
    flat = [statistics.flatten(metrics) for metrics in by_seed]
    return statistics.summarise({name: [values[name] for values in flat] for name in flat[0]})


def _compare_with_content_knn(
    setup: Setup, by_seed: Sequence[BySlice], baselines: Mapping[str, Sequence[BySlice]]
) -> dict[str, Any]:
    """Paired tests in every test slice: {"test/cold/ndcg@20": ...}."""
    if "content_knn" not in baselines:
        return {}
    cutoff = cutoff_of(setup.config.eval.cutoffs)
    result: dict[str, Any] = {}
    for name in map("test/{}".format, setup.task.tables):
        if name in setup.slices:
            tests = statistics.compare(
                [metrics[name] for metrics in by_seed],
                [metrics[name] for metrics in baselines["content_knn"]],
                [f"ndcg@{cutoff}", f"recall@{cutoff}"],
            )
            result |= {f"{name}/{metric}": test for metric, test in tests.items()}
    return result


def write_reports(
    setup: Setup,
    by_seed: Sequence[BySlice],
    baselines: Mapping[str, Sequence[BySlice]],
    results: Mapping[str, Any],
) -> None:
    """Writes the figure, per_user.npz, per_item.npz, results.md and, last, results.json."""
    config, task, folder = setup.config, setup.task, setup.workdir
    name = title(config)
    if config.eval.figure:
        mode = tasks.mode_of(task, results["metrics"])
        drawn = f"{mode}{task.drawn}"
        shown = {name: by_seed[0], **{key: metrics[0] for key, metrics in baselines.items()}}
        figure(
            folder,
            run_log.read_rows(folder / workdirs.ROWS_FILE),
            results,
            {key: metrics[f"test/{drawn}"] for key, metrics in shown.items()},
            name=name,
            cutoff=cutoff_of(config.eval.cutoffs),
            headline=validation_slice(config),
            bars=[(mode + slice_name, metric) for slice_name, metric in task.bars],
            drawn=drawn,
        )
    tests = [name for name in setup.slices if name.startswith("test/")]
    for file, mean in (
        (workdirs.USERS_FILE, statistics.seed_means),
        (workdirs.ITEMS_FILE, statistics.item_means),
    ):
        means = {test: mean([metrics[test] for metrics in by_seed]) for test in tests}
        run_log.write_slices(folder / file, means)
    tables.write_results(folder, results, name=name, tables=task.tables)


def show(
    config: config_dict.ConfigDict,
    workdir: pathlib.Path,
    results: Mapping[str, Any],
    console: Console,
) -> None:
    """Prints the table of a finished run."""
    task, cutoff = tasks.of(config), cutoff_of(config.eval.cutoffs)
    mode = tasks.mode_of(task, results["metrics"])
    tables.print_table(
        results,
        name=title(config),
        cutoff=cutoff,
        console=console,
        tables={name: what for name, what in task.tables.items() if name.startswith(mode)},
        columns=task.columns,
    )
    ratio = results.get("share_of_oracle", {}).get(f"test/cold/ndcg@{cutoff}")
    if ratio is not None:
        console.print(f"  share of the achievable NDCG on cold test items: {ratio:.1%}")
    console.print(f"  {results['seconds']:.0f} s; results in {workdir}", highlight=False)


def validate(
    setup: Setup, seed: int, *, label: str, on_score: Callable[[int, float], None]
) -> float:
    """Trains one seed for a search: nothing but validation is looked at.

    Args:
        setup: of a trial.
        seed: of the parameters and of the order of batches.
        label: of the progress bar.
        on_score: called with epoch and score after every epoch but the last; epochs of
            pretraining do not count.

    Returns:
        The score after the last epoch; with patience, which ends the training as in a run, the
        best one.
    """
    model = setup.model
    pretraining = model.pretraining_epochs
    stopping = [EarlyStopping(setup.config.train.patience, pretraining)]  # after every epoch

    def on_epoch(epoch: int, state: TrainState) -> bool:
        if pretraining < epoch < model.epochs:
            value = setup.score(state)
            on_score(epoch - pretraining, value)
            stopping.append(stopping[-1].update(epoch, value))
        return stopping[-1].should_stop

    with setup.progress(label) as progress:
        state = fit(
            model,
            setup.step,
            init_state(model, seed),
            seed=seed,
            on_step=lambda number, metrics: progress.advance(
                setup.examples_of_step(number), metrics["loss"]
            ),
            on_epoch=on_epoch,
        )
    last = stopping[-1]
    if last.patience is None:
        return setup.score(state)
    if not last.should_stop:
        last = last.update(model.epochs, setup.score(state))
    return math.nan if last.best_score is None else last.best_score
