r"""Searches the values of a config by cold validation, then trains the best on all seeds.

python -m experiments.search --config=experiments/citeulike.py:semco_online --trials=80 \
    --workdir=runs/search

What is searched: every field with a range (experiments/models/NAME.py) that the config leaves
unset; a field that a flag sets stays where it is. A trial is one run of the first seed, scored by
NDCG on validation; the test sets are dropped before the first one. The same command continues a
search that was cut off, and several processes with that command share one. The last of them to
finish trains the best values on all seeds in WORKDIR/best, where test is looked at once.

Reference: Meehan and Pauwels, Sparse Contrastive Learning for Content-Based Cold Item
Recommendation, SIGIR 2026, section 4.1.4.
"""

import fcntl
import io
import math
import pathlib
import time
import warnings
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple, TextIO

import matplotlib.pyplot as plt
import numpy as np
from absl import app, flags
from ml_collections import config_dict
from rich.console import Console

from experiments import config as configs
from experiments import main, runner
from experiments import method as methods
from experiments import task as tasks
from experiments import workdir as workdirs
from experiments.method import ConfigError
from experiments.setup import headline, make_setup, validation_slice
from jaxcold.files import write_atomic
from jaxcold.train.loop import DivergedError
from jaxcold.types import EvalSlice

try:
    import optuna
except ImportError:
    raise SystemExit("error: the search needs Optuna: pip install 'jaxcold[search]'") from None
from optuna.trial import FrozenTrial, TrialState

STUDY_FILE, TABLE_FILE, FIGURE_FILE, LOCK_FILE = "study.db", "trials.csv", "study.png", "study.lock"
BEST = "best"
PATIENCE = 20.0  # seconds for another process to open the study
COUNTED = (TrialState.COMPLETE, TrialState.PRUNED)

# Random trials before TPE learns from them, as the authors had it.
START_TRIALS = 20
# A trial is pruned below the median of the earlier ones at its epoch; not before that many trials,
# nor in its first epochs.
FREE_TRIALS, FREE_EPOCHS = 5, 3

Values = Mapping[str, Any]


class Best(NamedTuple):
    """What a search found."""

    values: Values  # field -> value
    score: float  # on validation
    trials: int


def space(config: config_dict.ConfigDict) -> dict[str, list[Any]]:
    """What to try: field to its values, ascending; the config's own tuned value is among them.

    Fields are named as in `experiments.method`: "tau", "train.epochs".

    Raises:
        ConfigError: for a method without ranges, or when nothing is left to search.
    """
    method = methods.find(config.model.name)
    ranges = method.search_space(config)
    if not ranges:
        raise ConfigError(f"model {config.model.name!r} has no ranges to search")
    unset = [field for field in ranges if methods.get(config, field) is None]
    if not unset:
        raise ConfigError("flags set every field that could be searched; leave some of them out")
    own = method.tuned(config)
    return {field: sorted({*ranges[field], own.get(field, ranges[field][0])}) for field in unset}


def with_values(config: config_dict.ConfigDict, values: Values) -> config_dict.ConfigDict:
    """A resolved copy of the config with those values."""
    c = config.copy_and_resolve_references()
    for field, value in values.items():
        methods.assign(c, field, value)
    return configs.resolve(c)


def search(
    config: config_dict.ConfigDict,
    workdir: pathlib.Path,
    *,
    trials: int,
    sampler: str = "tpe",
    overwrite: bool = False,
    then: Callable[[Best], None] | None = None,
) -> None:
    """Runs or continues a search, alone or beside other processes.

    Args:
        config: not resolved; what it leaves unset is searched.
        workdir: receives study.db (Optuna's SQLite), trials.csv, study.png and, in ``best``, the
            run of the best values on all seeds.
        trials: of all processes together, those before a cut included; pruned ones count.
        sampler: "tpe" (multivariate, after `START_TRIALS` random trials), "random" or "grid".
        overwrite: replace a search of another config.
        then: called by the last process with the best values, while no other can join; None: trains
            them on all seeds.

    Raises:
        ConfigError: naming the field or flag, and what it may be.
    """
    ranges = space(config)
    if sampler == "grid":
        trials = min(trials, math.prod(map(len, ranges.values())))
    with_values(config, {field: values[0] for field, values in ranges.items()})  # or say why not
    optuna.logging.set_verbosity(optuna.logging.WARNING)
    objective = _objective(config, workdir, ranges)
    workdir.mkdir(parents=True, exist_ok=True)
    with open(workdir / LOCK_FILE, "a") as lock:
        alone = _alone(lock)
        if not alone:
            _join(lock, workdir)
        study = _begin(config, workdir, ranges, sampler, alone=alone, overwrite=overwrite)
        while True:
            _join(lock, workdir)
            if _wanted(study, trials):
                counter = optuna.study.MaxTrialsCallback(trials, (*COUNTED, TrialState.RUNNING))
                reporter = _Reporter(objective.console, trials)
                study.optimize(objective.score, callbacks=[counter, reporter])
            if not _alone(lock):
                objective.console.print(
                    "other processes are at work; the last one trains the best values"
                )
                return
            # Nobody else is alive: a trial that still runs is a dead process's, and run again.
            if not (_fail_running(study) and _wanted(study, trials)):
                break
        best = _finish(config, workdir, study, objective.console)
        if then is not None:
            then(best)
        else:
            _train(config, workdir / BEST, best)


class _Objective(NamedTuple):
    """What Optuna maximizes: trains the first seed with the values of a trial."""

    config: config_dict.ConfigDict
    workdir: pathlib.Path
    ranges: Mapping[str, Sequence[Any]]
    dataset: Any  # without its tests
    slices: Mapping[str, EvalSlice]  # that of validation alone
    console: Console

    def score(self, trial: optuna.Trial) -> float:
        """The score on validation of the values that the trial suggests."""
        values = {
            field: trial.suggest_categorical(field, choices)
            for field, choices in self.ranges.items()
        }
        shown = ", ".join(f"{field} {value:g}" for field, value in values.items())
        self.console.print(f"trial {trial.number}: {shown}", highlight=False)
        # The same values give the same score: a sampler that comes back to them need not wait.
        for known in trial.study.get_trials(states=COUNTED):
            if known.params == trial.params:
                if known.state == TrialState.PRUNED:
                    raise optuna.TrialPruned
                assert known.value is not None
                return known.value
        return self._train(trial, with_values(self.config, values))

    def _train(self, trial: optuna.Trial, config: config_dict.ConfigDict) -> float:
        def on_score(epoch: int, score: float) -> None:
            trial.report(score, epoch)
            if trial.should_prune():
                raise optuna.TrialPruned

        setup = make_setup(
            config, self.dataset, self.slices, self.workdir, self.workdir, self.console
        )
        label = f"trial {trial.number}"
        try:
            return runner.validate(setup, config.seeds[0], label=label, on_score=on_score)
        except DivergedError as error:
            self.console.print(f"{label}: {error}", highlight=False)
            raise optuna.TrialPruned from None


def _objective(
    config: config_dict.ConfigDict, workdir: pathlib.Path, ranges: Mapping[str, Sequence[Any]]
) -> _Objective:
    """Loads the data, and drops the test sets so that no trial can look at them."""
    task = tasks.of(config)
    dataset = task.without_tests(task.load(config))
    name = validation_slice(config)
    slices = {name: task.slices(config, dataset)[name]}
    return _Objective(config, workdir, ranges, dataset, slices, Console())


def _begin(
    config: config_dict.ConfigDict,
    workdir: pathlib.Path,
    ranges: Mapping[str, Sequence[Any]],
    sampler: str,
    *,
    alone: bool,
    overwrite: bool,
) -> optuna.Study:
    """The study with its sampler; the tuned values are the first trial of a new one."""
    identity = configs.identity(configs.plain(config)) | {"sampler": sampler, "ranges": ranges}
    study = _open(workdir, identity, alone=alone, overwrite=overwrite)
    fresh = alone and not study.trials
    study.sampler = _sampler(sampler, ranges, seed=0 if fresh else None)
    own = methods.find(config.model.name).tuned(config)
    if fresh and sampler != "grid" and ranges.keys() <= own.keys():
        study.enqueue_trial({field: own[field] for field in ranges})  # the values to beat
    return study


def _alone(lock: TextIO) -> bool:
    """Whether no other process is at this search; then none can join until `_join`.

    The kernel gives up the lock of a process that dies, however it dies.
    """
    fcntl.flock(lock, fcntl.LOCK_UN)
    try:
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    return True


def _join(lock: TextIO, workdir: pathlib.Path) -> None:
    """Counts this process among those at the search, once nobody is `_alone` at it."""
    deadline = time.monotonic() + PATIENCE
    while True:
        try:
            fcntl.flock(lock, fcntl.LOCK_SH | fcntl.LOCK_NB)
            return
        except BlockingIOError:
            if time.monotonic() > deadline:
                raise ConfigError(
                    f"--workdir={workdir}: another process trains the best values of this search; "
                    "wait for its results"
                ) from None
            time.sleep(0.1)


def _open(
    workdir: pathlib.Path, identity: Mapping[str, Any], *, alone: bool, overwrite: bool
) -> optuna.Study:
    """The study of the folder, which has to be one of the same config; a new one if there is none.

    `alone` lets it fail the trials of dead processes, and replace a study of another config.
    """

    def opened() -> optuna.Study:
        return optuna.create_study(
            storage=f"sqlite:///{workdir / STUDY_FILE}",
            study_name="search",
            direction="maximize",
            pruner=optuna.pruners.MedianPruner(FREE_TRIALS, FREE_EPOCHS + 1),
            load_if_exists=True,
        )

    try:
        study = opened()
    except Exception as error:  # of any type: Optuna's, its database's
        reason = str(error).splitlines()[0]
        raise ConfigError(
            f"{workdir / STUDY_FILE}: cannot be read ({reason}); delete it or name another folder"
        ) from None
    changed = configs.differences(identity, study.user_attrs.get("config", identity))
    if changed and not (overwrite and alone):
        raise ConfigError(
            f"--workdir={workdir} holds a search with another config ({', '.join(changed[:3])} "
            "differ); name another folder, or pass --overwrite to replace it"
        )
    if changed:
        optuna.delete_study(study_name="search", storage=f"sqlite:///{workdir / STUDY_FILE}")
        study = opened()
    if alone:
        study.set_user_attr("config", identity)
        _fail_running(study)
    return study


def _sampler(
    name: str, ranges: Mapping[str, Sequence[float]], seed: int | None
) -> optuna.samplers.BaseSampler:
    """With a seed for the first process alone: others with the same would draw the same values."""
    if name == "grid":
        return optuna.samplers.GridSampler(ranges, seed=seed)
    if name == "random":
        return optuna.samplers.RandomSampler(seed=seed)
    return optuna.samplers.TPESampler(
        n_startup_trials=START_TRIALS, multivariate=True, constant_liar=True, seed=seed
    )


def _wanted(study: optuna.Study, trials: int) -> bool:
    """Whether trials are left to start."""
    return len(study.get_trials(states=(*COUNTED, TrialState.RUNNING))) < trials


def _fail_running(study: optuna.Study) -> bool:
    """Ends the trials that nobody runs any more; whether there were any."""
    dead = study.get_trials(states=(TrialState.RUNNING,))
    for trial in dead:
        study.tell(trial.number, state=TrialState.FAIL)
    return bool(dead)


def _best(study: optuna.Study) -> FrozenTrial | None:
    complete = study.get_trials(states=(TrialState.COMPLETE,))
    return max(complete, key=lambda trial: (trial.value, -trial.number), default=None)


class _Reporter:
    """Prints a line after each trial, with the time that is left at the pace so far."""

    def __init__(self, console: Console, trials: int):
        self.console, self.trials = console, trials
        self.start = time.monotonic()
        self.done_before: int | None = None  # by earlier processes

    def __call__(self, study: optuna.Study, trial: FrozenTrial) -> None:
        done = len(study.get_trials(states=COUNTED))
        if self.done_before is None:
            self.done_before = done - 1
        state = "pruned" if trial.state == TrialState.PRUNED else f"{trial.value:.4f}"
        best = _best(study)
        shown = f", best {best.value:.4f} (trial {best.number})" if best else ""
        pace = (time.monotonic() - self.start) / (done - self.done_before)
        minutes = pace * max(self.trials - done, 0) / 60
        self.console.print(
            f"trial {trial.number}: {state}{shown}; {done} of {self.trials} trials, "
            f"{minutes:.0f} min left",
            highlight=False,
        )


def _finish(
    config: config_dict.ConfigDict, workdir: pathlib.Path, study: optuna.Study, console: Console
) -> Best:
    """Writes table and figure, and prints and returns the best values."""
    columns = ("number", "value", "params", "state", "duration")
    table = study.trials_dataframe(attrs=columns).to_csv(index=False)
    write_atomic(workdir / TABLE_FILE, table.encode())
    best = _best(study)
    if best is None:
        raise ConfigError(
            f"no trial came to its end (see {workdir / TABLE_FILE}): lower train.learning_rate"
        )
    _figure(workdir, study, headline(config))
    console.print(
        f"best of {len(study.get_trials(states=COUNTED))} trials: trial {best.number} with "
        f"{headline(config)} {best.value:.4f}",
        highlight=False,
    )
    flags = (f"--{methods.flag(field)}={value:g}" for field, value in best.params.items())
    console.print(" ".join(flags))
    assert best.value is not None
    return Best(best.params, best.value, len(study.get_trials(states=COUNTED)))


def _train(config: config_dict.ConfigDict, folder: pathlib.Path, best: Best) -> None:
    """Trains the best values on all seeds."""
    chosen = with_values(config, best.values)
    # A cut run of these values goes on; one of other values gives way.
    older = workdirs.config_of(folder)
    wanted = configs.identity(configs.plain(chosen))
    other = older is not None and configs.identity(older) != wanted
    runner.run(chosen, folder, overwrite=other)


def _figure(workdir: pathlib.Path, study: optuna.Study, name: str) -> None:
    """Draws study.png: the score of every finished trial against each value."""
    plt.switch_backend("Agg")  # Optuna draws with pyplot, which would look for a display
    with warnings.catch_warnings():
        # That its drawing is experimental, and that a field with one value has a narrow axis.
        for noise in (optuna.exceptions.ExperimentalWarning, UserWarning):
            warnings.simplefilter("ignore", noise)
        axes: Any = optuna.visualization.matplotlib.plot_slice(study, target_name=name)
    panels = np.ravel(axes)
    for panel in panels:
        panel.tick_params(axis="x", labelrotation=45)  # more values than fit side by side
    figure = panels[0].figure
    data = io.BytesIO()
    figure.savefig(data, format="png", dpi=110, bbox_inches="tight")
    plt.close(figure)
    write_atomic(workdir / FIGURE_FILE, data.getvalue())


def _job(config: config_dict.ConfigDict, workdir: pathlib.Path) -> None:
    search(
        config,
        workdir,
        trials=flags.FLAGS.trials,
        sampler=flags.FLAGS.sampler,
        overwrite=main.OVERWRITE.value,
    )


if __name__ == "__main__":  # `experiments.table` imports this file, and has flags of its own
    flags.DEFINE_integer("trials", 80, "Trials of the whole search.", lower_bound=1)
    flags.DEFINE_enum("sampler", "tpe", ["tpe", "random", "grid"], "Who picks the values.")
    app.run(lambda argv: main.command(argv, _job), flags_parser=main.parse_flags)
