"""The training of one seed of a run: what it logs, remembers, saves and restores."""

import contextlib
import dataclasses
import json
import math
import pathlib
import signal
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from typing import Any, NoReturn

import jax
import numpy as np

from experiments import task as tasks
from experiments import workdir
from experiments.config import StoppedError, plain
from experiments.method import ConfigError
from experiments.setup import BySlice, Setup, headline
from jaxcold import parallel
from jaxcold.data.original_ids import named
from jaxcold.eval import statistics
from jaxcold.files import write_atomic
from jaxcold.reporting import run_log
from jaxcold.train.checkpoint import Checkpoints
from jaxcold.train.early_stopping import EarlyStopping
from jaxcold.train.loop import DivergedError, fit
from jaxcold.train.step import TrainState, init_state, place


@dataclasses.dataclass
class Memory:
    """What a seed remembers besides its training state: the metadata of its checkpoints."""

    identity: str  # of the run
    seconds: float = 0.0  # spent by earlier processes and this one
    losses: list[float] = dataclasses.field(default_factory=list)  # of the last epoch's steps
    # Other metrics of the steps since the last row of metrics.jsonl.
    measured: dict[str, list[float]] = dataclasses.field(default_factory=dict)
    stopping: dict[str, Any] = dataclasses.field(default_factory=dict)  # of `EarlyStopping`
    is_finished: bool = False  # by patience


def train(setup: Setup, seed: int) -> tuple[BySlice, float]:
    """Trains one seed; validation is looked at as it goes, test once at the end.

    With config.train.patience the training ends when so many evaluations have not raised the
    validation score, and the best state is the one that is tested and saved.

    Returns:
        Metrics, and the seconds that earlier processes have spent on this seed.

    Raises:
        StoppedError: after SIGTERM or Ctrl-C, once the state is saved.
    """
    folder = setup.checkpoints / f"seed_{seed}"
    keep = setup.config.checkpoint.keep
    with contextlib.ExitStack() as stack:
        checkpoints = stack.enter_context(contextlib.closing(Checkpoints(folder, keep=keep)))
        training = _Training(setup, seed, checkpoints)
        events = setup.workdir / "tb" / f"seed_{seed}"
        log = run_log.tensorboard(events, first=training.first_step)
        training.log = stack.enter_context(log)
        state = training.run()
        state, epoch = training.chosen(state)
        state = choose(setup, state)
        metrics = setup.evaluate(state, setup.slices)
        setup.say(training.record(epoch, metrics))
        save_model(setup, state, setup.workdir / "models" / f"seed_{seed}")
    return metrics, training.seconds_before


def choose(setup: Setup, state: TrainState) -> TrainState:
    """The state with what the method leaves to validation after training."""
    model = setup.model
    if model.choose is None:
        return state

    def score(params: Any, model_state: Any) -> float:
        return setup.score(state._replace(params=params, model_state=model_state))

    return place(
        model, state._replace(model_state=model.choose(state.params, state.model_state, score))
    )


def save_model(setup: Setup, state: TrainState, folder: pathlib.Path) -> None:
    """Saves what serves recommendations."""
    params, model_state = parallel.fetch((state.params, state.model_state))
    save = setup.method.save or setup.task.save
    dataset = setup.dataset
    if (ids := tasks.original_ids(setup.config)) is not None:
        dataset = dataclasses.replace(
            dataset,
            user_ids=named(dataset.user_ids, ids["user"]),
            item_ids=named(dataset.item_ids, ids["item"]),
        )
    save(setup.config, dataset, setup.model, params, model_state, folder)


class _Training:
    """The callbacks of one seed's training, and what they share."""

    def __init__(self, setup: Setup, seed: int, checkpoints: Checkpoints):
        self.setup, self.seed, self.checkpoints = setup, seed, checkpoints
        config, model = setup.config, setup.model
        self.start = time.monotonic()
        self.steps = model.steps_per_epoch
        self.state = init_state(model, seed)
        self.memory = Memory(workdir.hash_of(config))
        self._restore()
        self.seconds_before = self.memory.seconds
        self.first_step = int(self.state.step)
        self.stopping = EarlyStopping(config.train.patience, model.pretraining_epochs).restored(
            self.memory.stopping
        )
        self.is_watched = config.train.patience is not None or config.checkpoint.keep_best
        self.is_stopped = False  # by a signal
        self.log: Callable[[int, Mapping[str, float]], None] = lambda step, scalars: None
        self.rows = setup.workdir / workdir.ROWS_FILE
        # Rows beyond the checkpoint are written again.
        run_log.keep_rows(
            self.rows, lambda row: row["seed"] != seed or row["step"] <= self.first_step
        )
        if self.first_step:
            setup.say(f"seed {seed}: goes on from step {self.first_step}")

    def _restore(self) -> None:
        restored = self.checkpoints.restore(self.state, say=self.setup.say)
        if restored is None:
            return
        state, metadata = restored
        if metadata["identity"] != self.memory.identity:
            raise ConfigError(
                f"{self.setup.checkpoints / f'seed_{self.seed}'} is of a run with another config; "
                "delete it to start this seed again"
            )
        self.state, self.memory = place(self.setup.model, state), Memory(**metadata)

    def run(self) -> TrainState:
        """Trains to the end, and returns the last state."""
        if not self.steps or self.memory.is_finished:
            return self.state
        with contextlib.ExitStack() as stack:
            self.stop_requested = stack.enter_context(_stop_on_signals())
            self.progress = stack.enter_context(
                self.setup.progress(f"seed {self.seed}", self.first_step)
            )
            try:
                state = fit(
                    self.setup.model,
                    self.setup.step,
                    self.state,
                    seed=self.seed,
                    on_step=self._on_step,
                    on_epoch=self._on_epoch,
                    due=self._is_due,
                    on_due=self._save,
                )
            except DivergedError as error:
                where = _write_divergence(self.setup, self.seed, error)
                raise DivergedError(f"{error}, seed {self.seed}; {where}") from None
            self.checkpoints.wait()
            if self.stop_requested(int(state.step) + 1):  # after the last step
                self._stop("stopped")
        return state

    def _on_step(self, number: int, metrics: Mapping[str, float]) -> None:
        memory = self.memory
        memory.losses.append(metrics["loss"])
        del memory.losses[: -self.steps]
        finite = {name: value for name, value in metrics.items() if math.isfinite(value)}
        for name in finite.keys() - {"loss"}:
            memory.measured.setdefault(name, []).append(finite[name])
        if number % 10 == 0:
            self.log(number, {f"train/{name}": value for name, value in finite.items()})
        self.progress.advance(self.setup.examples_of_step(number), metrics["loss"])

    def _on_epoch(self, epoch: int, state: TrainState) -> bool:
        setup = self.setup
        # Unless it is watched, the last epoch is validated with the test, at the end.
        is_last = epoch == setup.model.epochs
        if epoch % setup.config.train.eval_every == 0 and (self.is_watched or not is_last):
            metrics = setup.validate(state)
            self.progress.say(self.record(epoch, metrics))
            score = statistics.flatten(metrics)[headline(setup.config)]
            if self.is_watched:
                self.stopping = self.stopping.update(epoch, score)
            self.memory.is_finished = self.stopping.should_stop
        return self.memory.is_finished

    def _is_due(self, done: int) -> bool:
        """Whether a checkpoint is due after so many steps."""
        self.is_stopped = self.stop_requested(done)
        every = self.setup.config.checkpoint.every_steps or self.steps
        is_last = done == self.setup.model.epochs * self.steps or self.memory.is_finished
        return self.is_stopped or done % every == 0 or is_last or done == self._best_step()

    def _best_step(self) -> int | None:
        return self.stopping.best_epoch * self.steps or None

    def _save(self, state: TrainState) -> None:
        self.memory.stopping = self.stopping.to_json()
        # A copy, with the time until now: it is written while training goes on.
        metadata = dataclasses.asdict(dataclasses.replace(self.memory, seconds=self._seconds()))
        self.checkpoints.save(state, metadata, best=self._best_step())
        if self.is_stopped:
            self.checkpoints.wait()
            self._stop(f"stopped at step {int(state.step)} of seed {self.seed}")

    def _stop(self, message: str) -> NoReturn:
        number = self.stop_requested.signal_number
        raise StoppedError(f"{message}; the same command goes on", number)

    def _seconds(self) -> float:
        return self.seconds_before + time.monotonic() - self.start

    def record(self, epoch: int, metrics: BySlice) -> str:
        """Writes an evaluation into metrics.jsonl; returns a line for the terminal.

        There is one row per epoch: the test metrics join the row of the epoch that they are of.
        """
        values = statistics.flatten(metrics)
        rows = run_log.read_rows(self.rows) if self.rows.exists() else []
        of_epoch = (r for r in rows if (r["seed"], r["epoch"]) == (self.seed, epoch))
        written = next(of_epoch, None)
        row = {**(written or self._new_row(epoch)), "seconds": self._seconds(), **values}
        if written is None:
            run_log.append_row(self.rows, row)
        else:
            run_log.replace_row(self.rows, rows.index(written), row)
        new = {k: v for k, v in values.items() if math.isfinite(v) and k not in (written or {})}
        self.log(epoch * self.steps, new)
        loss = row["loss"] if row["loss"] is not None else math.nan
        name = headline(self.setup.config)
        return (
            f"seed {self.seed}, epoch {epoch}/{self.setup.model.epochs}: loss {loss:.4f}, "
            f"{name} {values[name]:.4f}"
        )

    def _new_row(self, epoch: int) -> dict[str, Any]:
        memory = self.memory
        means = {f"train/{name}": float(np.mean(v)) for name, v in memory.measured.items()}
        memory.measured.clear()
        loss = float(np.mean(memory.losses)) if memory.losses else math.nan
        return {
            "seed": self.seed,
            "epoch": epoch,
            "step": epoch * self.steps,
            "loss": loss,
            "seconds": 0.0,
            **means,
        }

    def chosen(self, state: TrainState) -> tuple[TrainState, int]:
        """The state that is tested and saved, and its epoch: with patience the best one."""
        last = int(state.step) // max(self.steps, 1)
        best = self._best_step()
        if best is None:
            return state, last
        if self.setup.config.checkpoint.keep_best:
            folder = self.setup.workdir / workdir.BEST / f"seed_{self.seed}"
            workdir.copy_checkpoint(self.checkpoints.path(best), folder)
        if self.stopping.patience is None:
            return state, last
        restored = self.checkpoints.restore(state, step=best)
        assert restored is not None  # a step that is asked for is there, or an error
        self.setup.say(f"seed {self.seed}: best epoch {self.stopping.best_epoch} of {last}")
        return place(self.setup.model, restored[0]), self.stopping.best_epoch


class _StopRequest:
    """Whether to stop after so many steps, and the signal that asked for it."""

    def __init__(self) -> None:
        self.signal_number: int = signal.SIGTERM
        self._event = threading.Event()

    def __call__(self, done: int) -> bool:
        if jax.process_count() > 1:
            return parallel.stop_requested(done)
        return self._event.is_set()

    def receive(self, number: int, frame: object) -> None:
        """Handles the signal; Ctrl-C a second time interrupts at once."""
        self.signal_number = number
        self._event.set()
        if number == signal.SIGINT:
            signal.signal(signal.SIGINT, signal.default_int_handler)


@contextlib.contextmanager
def _stop_on_signals() -> Iterator[_StopRequest]:
    """SIGTERM and Ctrl-C ask a training to stop, instead of ending the process."""
    request = _StopRequest()
    if jax.process_count() > 1 or threading.current_thread() is not threading.main_thread():
        yield request  # only the main thread may handle signals
        return
    numbers = (signal.SIGTERM, signal.SIGINT)
    before = {number: signal.signal(number, request.receive) for number in numbers}
    try:
        yield request
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def _write_divergence(setup: Setup, seed: int, error: DivergedError) -> str:
    """Writes the examples at fault into the workdir; returns what to say of them."""
    path = setup.workdir / workdir.DIVERGED.replace("*", str(seed))
    original = tasks.original_ids(setup.config) or {}

    def ids_of(examples: Mapping[str, np.ndarray]) -> dict[str, Any]:
        return {
            name: (named(values, original[name]) if name in original else values).tolist()
            for name, values in examples.items()
        }

    ids = ids_of(error.examples)
    contents = {
        "error": str(error),
        "seed": seed,
        "step": error.step,
        "batch": ids,
        "batch_before": ids_of(error.before),
        "config": plain(setup.config),
    }
    write_atomic(path, (json.dumps(contents) + "\n").encode())
    first = " and ".join(f"{name}s {', '.join(map(str, ids[name][:3]))}, .." for name in ids)
    return (
        f"config {setup.workdir / workdir.CONFIG_FILE}: try a lower train.learning_rate or another "
        f"model.tau; the last good checkpoint stays; the batch has {first}: all of it in {path}"
    )
