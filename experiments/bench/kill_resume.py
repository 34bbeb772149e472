r"""Kills a small run at random moments, and checks that it ends in the same bits.

python -m experiments.bench.kill_resume --kills=30 --model=semco

The run is done once without a break. Then it is started, interrupted by kill -9 or SIGTERM at a
moment drawn at random (anywhere between its start and its end, or while a checkpoint is being
written), and started again with the same command, until there were so many kills. A run that
reaches its end has to have the metrics, rows and parameters of the uninterrupted run, to the last
bit, and the same files; the next one starts in another folder.

Each start is a process of its own with the arguments of a command line, forked from one that has
done the imports and nothing else: five seconds of imports are not what is tested.
"""

import argparse
import json
import mmap
import os
import pathlib
import shutil
import signal
import struct
import sys
import tempfile
import time
import traceback
from collections.abc import Iterator, Sequence
from typing import Any, NamedTuple

import jax
import numpy as np
from absl import app
from safetensors.numpy import load_file

import experiments.main
import experiments.pairs
import experiments.sequences  # what every process needs is imported once, before the fork
from experiments import seed as seeds
from experiments.bench.toy import write_log, write_mmrec

ROOT = pathlib.Path(__file__).parents[1]
COMMON: dict[str, Any] = {
    "seeds": (0, 1),
    "train.epochs": 3,
    "eval.cutoffs": (5,),
    "eval.figure": False,
    "checkpoint.every_steps": 7,
}
MODELS: dict[str, tuple[str, dict[str, Any]]] = {
    "semco": ("clothing.py", {"model.hidden": 8, "model.out": 4, "train.batch_size": 16}),
    "sasrec_delta": (
        "movielens.py:sasrec_delta",
        {"model.max_length": 6, "model.dim": 4, "model.blocks": 1, "train.batch_size": 4},
    ),
}
PARTIAL = (".part", ".orbax-checkpoint-tmp")
# Fraction of the kills that wait for a checkpoint that is being written.
SAVING = 0.4


class Kill(NamedTuple):
    """An interruption of a run."""

    signal: str
    after: float  # seconds after the start
    code: int  # exit code; below 0 the signal that ended the process
    position: str  # seed and step in training
    lost: int  # steps that were done and have to be done again
    partial_files: str  # names of files that were half-written then


class Report(NamedTuple):
    """The result of `measure`."""

    kills: list[Kill]
    whole_runs: int  # interrupted ones that reached their end
    steps: int  # of a run
    seconds: float  # of the uninterrupted one


def outcome(workdir: pathlib.Path) -> dict[str, Any]:
    """Metrics, rows, arrays and names of files of a finished run, without times and sizes."""
    results = json.loads((workdir / "results.json").read_text())
    rows = [json.loads(line) for line in (workdir / "metrics.jsonl").read_text().splitlines()]
    for row in rows:
        del row["seconds"]
    result = {key: results[key] for key in ("metrics", "baselines", "comparisons")}
    result["rows"] = rows
    with np.load(workdir / "per_user.npz", allow_pickle=False) as arrays:
        result |= {name: arrays[name].tobytes() for name in arrays}
    models = sorted(workdir.glob("models/seed_*/*.safetensors"))
    if len(models) != len(results["config"]["seeds"]):
        raise AssertionError(f"{workdir / 'models'}: not one model per seed")
    for path in models:
        folder = path.relative_to(workdir).parent
        result |= {f"{folder}/{k}": v.tobytes() for k, v in load_file(path).items()}
    names = (str(path.relative_to(workdir)) for path in workdir.rglob("*"))
    # Every process writes events of its own: only their number depends on the interruptions.
    result["files"] = sorted(name for name in names if "/events." not in name)
    return result


def list_partial_files(workdir: pathlib.Path) -> Iterator[str]:
    """Names of files that are being written, or were when the process was killed."""
    for folder in (workdir, *workdir.glob("checkpoints/*"), workdir / "models"):
        try:
            names = os.listdir(folder)
        except OSError:
            continue
        yield from (f"{folder.name}/{name}" for name in names if name.endswith(PARTIAL))


class _Process:
    """A process that runs the command, and reports its progress in shared memory."""

    def __init__(self, arguments: Sequence[str], log: pathlib.Path):
        self._shared = mmap.mmap(-1, struct.calcsize("3i"))
        self.start = time.monotonic()
        self.pid = os.fork()
        if not self.pid:
            try:
                self._child(arguments, log)
            except BaseException:
                traceback.print_exc()
            finally:
                os._exit(70)

    def _child(self, arguments: Sequence[str], log: pathlib.Path) -> None:
        target = os.open(log, os.O_WRONLY | os.O_CREAT | os.O_APPEND)
        os.dup2(target, 1)
        os.dup2(target, 2)
        fit = seeds.fit

        def counted(*inputs: Any, seed: int, on_step: Any, **options: Any) -> Any:
            def count(number: int, metrics: Any) -> None:
                self._shared[:] = struct.pack("3i", 1, seed, number + 1)
                on_step(number, metrics)

            return fit(*inputs, seed=seed, on_step=count, **options)

        seeds.fit = counted  # type: ignore[assignment]
        sys.argv = ["experiments.main", *arguments]
        code: Any = 0
        try:
            app.run(experiments.main.main, flags_parser=experiments.main.parse_flags)
        except SystemExit as end:
            code = end.code
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(code if isinstance(code, int) else 1)

    def progress(self) -> tuple[int, int] | None:
        """The seed in training and its finished steps; None before the first step."""
        begun, seed, step = struct.unpack("3i", self._shared[:])
        return (seed, step) if begun else None

    def join(self) -> int:
        """The exit code, once the process has ended."""
        return os.waitstatus_to_exitcode(os.waitpid(self.pid, 0)[1])


def _require(condition: bool, message: str) -> None:
    if not condition:
        raise AssertionError(message)


def _last_checkpoint(workdir: pathlib.Path, seed: int) -> int:
    """Number of steps in the newest checkpoint of a seed; 0 without any."""
    folder = workdir / "checkpoints" / f"seed_{seed}"
    steps = [int(path.name) for path in folder.glob("*") if path.name.isdigit()]
    return max(steps, default=0)


class _Command:
    """The command that is interrupted, and the outcome that it has to have.

    Args:
        model: of `MODELS`.
        folder: an empty one, for data and runs.
    """

    def __init__(self, model: str, folder: pathlib.Path):
        file, options = MODELS[model]
        fields = COMMON | options | {"data.root": folder / "data"}
        if model == "semco":
            write_mmrec(folder / "data", "clothing", ("text",))
        else:
            write_log(folder / "data", users=120)
        self._flags = [f"--config={ROOT / file}", *(f"--config.{k}={v}" for k, v in fields.items())]
        self._log = folder / "log.txt"
        # What is tested is the run, not the compiler: its programs are kept.
        jax.config.update("jax_compilation_cache_dir", str(folder / "programs"))
        jax.config.update("jax_persistent_cache_min_compile_time_secs", 0)
        jax.config.update("jax_persistent_cache_min_entry_size_bytes", -1)
        _require(self.start(folder / "whole").join() == 0, self.log_tail())
        begun = time.monotonic()
        # With every program compiled before, as in the runs that are interrupted.
        code = self.start(folder / "again").join()
        self.seconds = time.monotonic() - begun
        self._wanted = outcome(folder / "whole")
        self.check(code, folder / "again")
        self.last_step = max(row["step"] for row in self._wanted["rows"])  # of a seed

    def start(self, workdir: pathlib.Path) -> _Process:
        """A process that begins the run of that folder, or resumes it."""
        return _Process([*self._flags, f"--workdir={workdir}"], self._log)

    def check(self, code: int, workdir: pathlib.Path) -> None:
        """Compares a finished run with the uninterrupted one, and removes it."""
        _require(code == 0, f"exit code {code}: {self.log_tail()}")
        result, wanted = outcome(workdir), self._wanted
        names = sorted(wanted.keys() | result.keys())
        different = [name for name in names if wanted.get(name) != result.get(name)]
        _require(not different, f"{workdir}: {', '.join(different)} differ")
        left = list(list_partial_files(workdir))
        _require(not left, f"{workdir}: {', '.join(left)} left")
        shutil.rmtree(workdir)

    def log_tail(self) -> str:
        """The end of what the processes printed."""
        return self._log.read_text()[-2000:]


def _send(
    process: _Process, workdir: pathlib.Path, number: int, after: float, saving: bool
) -> bool:
    """Waits for the moment and sends the signal; False where the process had ended by then."""
    while time.monotonic() - process.start < after or (
        saving and not any("orbax" in name for name in list_partial_files(workdir))
    ):
        if os.waitid(os.P_PID, process.pid, os.WEXITED | os.WNOHANG | os.WNOWAIT):
            return False
        time.sleep(0.0005)
    os.kill(process.pid, number)
    return True


def _interrupt(command: _Command, workdir: pathlib.Path, rng: np.random.Generator) -> Kill | None:
    """Starts the run and kills it at a random moment; None if it ended before, and was checked."""
    number = signal.SIGKILL if rng.random() < 0.5 else signal.SIGTERM
    after, saving = 0.8 * rng.random() * command.seconds, rng.random() < SAVING
    # Those of an earlier kill, which the process has yet to remove.
    before = set(list_partial_files(workdir))
    process = command.start(workdir)
    sent = _send(process, workdir, number, after / 2 if saving else after, saving)
    after = time.monotonic() - process.start
    code = process.join()
    if not sent:
        command.check(code, workdir)
        return None
    partial_files = " ".join(sorted(set(list_partial_files(workdir)) - before))
    progress = process.progress()
    position, lost = "before its first step", 0
    if progress:
        seed, step = progress
        position = f"seed {seed}, {'after' if step == command.last_step else 'at'} step {step}"
        if (workdir / "checkpoints").exists():
            lost = max(0, step - _last_checkpoint(workdir, seed))
    kill = Kill(number.name, after, code, position, lost, partial_files)
    if number == signal.SIGTERM:
        in_training = progress is not None and progress[1] < command.last_step
        _check_sigterm(kill, in_training, command.log_tail())
    return kill


def _check_sigterm(kill: Kill, in_training: bool, log: str) -> None:
    """Requires that a run that got SIGTERM saved its last step and left nothing half-written."""
    # Before the handler is installed SIGTERM ends the process; after the end there is none.
    allowed = {75} if in_training else {75, 0, -signal.SIGTERM}
    _require(kill.code in allowed, f"exit code {kill.code} after SIGTERM: {log}")
    _require(not kill.lost, f"SIGTERM lost {kill.lost} steps")
    clean = kill.code == -signal.SIGTERM or not kill.partial_files
    _require(clean, f"SIGTERM left {kill.partial_files}")


def measure(model: str, kills: int, seed: int, folder: pathlib.Path) -> Report:
    """Interrupts runs that often, and compares those that reach their end.

    Args:
        model: of `MODELS`.
        kills: how many.
        seed: of moments and signals.
        folder: an empty one, for data and runs.

    Raises:
        AssertionError: if something differs from the uninterrupted run.
    """
    rng = np.random.default_rng(seed)
    command = _Command(model, folder)
    records: list[Kill] = []
    whole_runs = 0
    while len(records) < kills:
        if kill := _interrupt(command, folder / f"run_{whole_runs}", rng):
            records.append(kill)
        else:
            whole_runs += 1
    workdir = folder / f"run_{whole_runs}"
    command.check(command.start(workdir).join(), workdir)
    steps = command.last_step * len(COMMON["seeds"])
    return Report(records, whole_runs + 1, steps, command.seconds)


def format_report(report: Report) -> list[str]:
    """The lines of the table."""
    header = f"{'':>3} {'signal':8} {'after s':>7} {'exit':>4} {'lost':>4}  position"
    rows = [
        f"{number:3} {kill.signal:8} {kill.after:7.2f} {kill.code:4} {kill.lost:4}  {kill.position}"
        + (f"; half-written: {kill.partial_files}" if kill.partial_files else "")
        for number, kill in enumerate(report.kills, 1)
    ]
    killed = [kill.lost for kill in report.kills if kill.signal == "SIGKILL"]
    saving = sum(bool(kill.partial_files) for kill in report.kills)
    return [
        header,
        *rows,
        f"{len(report.kills)} kills, {saving} of them with something half-written, in "
        f"{report.whole_runs} runs of {report.steps} steps ({report.seconds:.1f} s without a "
        f"break): all ended in the same bits; steps lost to a kill -9: {max(killed, default=0)} "
        f"at most, {np.mean(killed or [0]):.1f} on average; to SIGTERM: 0",
    ]


def main() -> None:
    """The command."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--kills", type=int, default=30)
    parser.add_argument("--seed", type=int, default=0, help="of moments and signals")
    parser.add_argument("--model", choices=list(MODELS), default="semco")
    chosen = parser.parse_args()
    if chosen.kills < 1:
        parser.error("--kills is at least 1")
    with tempfile.TemporaryDirectory() as folder:
        report = measure(chosen.model, chosen.kills, chosen.seed, pathlib.Path(folder))
    print("\n".join(format_report(report)))


if __name__ == "__main__":
    main()
