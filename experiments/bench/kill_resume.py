r"""Kills a small run at random moments, and checks that it ends in the same bits.

python -m experiments.bench.kill_resume --kills=30 --model=semco

The run is done once without a break. Then it is started, cut by kill -9 or SIGTERM at a moment
drawn at random (anywhere between its start and its end, or while a checkpoint is being written),
and started again with the same command, until there were so many kills. Whenever it comes to its
end it has to have left the same as the uninterrupted run, metrics, rows and parameters to the last
bit, and the same files; then it begins anew in another folder.

Each start is a process of its own with the arguments of a command line, forked from one that has
the imports behind it and nothing else: five seconds of imports are not what is tested.
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
# Of the kills, those that wait for a checkpoint that is being written.
SAVING = 0.4


class Kill(NamedTuple):
    """One of them, and what it hit."""

    signal: str
    after: float  # seconds after the start
    code: int  # exit code; below 0 the signal that ended the process
    where: str
    lost: int  # steps that were done and have to be done again
    half: str  # what was half-written then


class Report(NamedTuple):
    """Of `measure`."""

    kills: list[Kill]
    whole_runs: int  # that came to their end in between, or at last
    steps: int  # of a run
    seconds: float  # of the uninterrupted one


def outcome(workdir: pathlib.Path) -> dict[str, Any]:
    """Metrics, rows, arrays and names of files of a finished run, without times and sizes."""
    results = json.loads((workdir / "results.json").read_text())
    rows = [json.loads(line) for line in (workdir / "metrics.jsonl").read_text().splitlines()]
    for row in rows:
        del row["seconds"]
    found = {part: results[part] for part in ("metrics", "baselines", "comparisons")}
    found["rows"] = rows
    for path in (workdir / "per_user.npz", *sorted(workdir.glob("models/seed_*/*.npz"))):
        with np.load(path, allow_pickle=False) as arrays:
            where = path.relative_to(workdir).parent
            found |= {f"{where}/{name}": arrays[name].tobytes() for name in arrays}
    names = (str(path.relative_to(workdir)) for path in workdir.rglob("*"))
    # A process writes its own events: how many there were shows there alone.
    found["files"] = sorted(name for name in names if "/events." not in name)
    return found


def half_written(workdir: pathlib.Path) -> Iterator[str]:
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

    def done(self) -> tuple[int, int] | None:
        """The seed in training and its finished steps; None before the first step."""
        begun, seed, step = struct.unpack("3i", self._shared[:])
        return (seed, step) if begun else None

    def ended(self) -> int | None:
        """The exit code; None while the process runs."""
        pid, status = os.waitpid(self.pid, os.WNOHANG)
        return os.waitstatus_to_exitcode(status) if pid else None

    def join(self) -> int:
        """The exit code, once the process has ended."""
        return os.waitstatus_to_exitcode(os.waitpid(self.pid, 0)[1])


def _need(good: bool, what: str) -> None:
    if not good:
        raise AssertionError(what)


def _kept(workdir: pathlib.Path, seed: int) -> int:
    folder = workdir / "checkpoints" / f"seed_{seed}"
    steps = [int(path.name) for path in folder.glob("*") if path.name.isdigit()]
    return max(steps, default=0)


def _cut(process: _Process, workdir: pathlib.Path, number: int, after: float, saving: bool) -> bool:
    """Waits for the moment and sends the signal; False where the process had ended by then."""
    while time.monotonic() - process.start < after or (
        saving and not any("orbax" in name for name in half_written(workdir))
    ):
        if os.waitid(os.P_PID, process.pid, os.WEXITED | os.WNOHANG | os.WNOWAIT):
            return False
        time.sleep(0.0005)
    os.kill(process.pid, number)
    return True


def measure(model: str, kills: int, seed: int, folder: pathlib.Path) -> Report:
    """Cuts a run that often, and compares whatever comes to its end.

    Args:
        model: of `MODELS`.
        kills: how many.
        seed: of moments and signals.
        folder: an empty one, for data and runs.

    Raises:
        AssertionError: if something differs from the uninterrupted run.
    """
    rng = np.random.default_rng(seed)
    file, options = MODELS[model]
    fields = COMMON | options | {"data.root": folder / "data"}
    if model == "semco":
        write_mmrec(folder / "data", "clothing", ("text",))
    else:
        write_log(folder / "data", users=120)
    flags = [f"--config={ROOT / file}", *(f"--config.{k}={v}" for k, v in fields.items())]
    log = folder / "log.txt"
    # What is tested is the run, not the compiler: its programs are kept.
    jax.config.update("jax_compilation_cache_dir", str(folder / "programs"))
    jax.config.update("jax_persistent_cache_min_compile_time_secs", 0)
    jax.config.update("jax_persistent_cache_min_entry_size_bytes", -1)

    def start(workdir: pathlib.Path) -> _Process:
        return _Process([*flags, f"--workdir={workdir}"], log)

    def check(code: int, workdir: pathlib.Path) -> None:
        _need(code == 0, f"exit code {code}: {log.read_text()[-2000:]}")
        got = outcome(workdir)
        names = sorted(wanted.keys() | got.keys())
        different = [name for name in names if wanted.get(name) != got.get(name)]
        _need(not different, f"{workdir}: {', '.join(different)} differ")
        left = list(half_written(workdir))
        _need(not left, f"{workdir}: {', '.join(left)} left")
        shutil.rmtree(workdir)

    whole = start(folder / "whole")
    _need(whole.join() == 0, log.read_text()[-2000:])
    begun = time.monotonic()
    again = start(folder / "again")  # with every program compiled before, as those to be killed
    code = again.join()
    seconds = time.monotonic() - begun
    wanted = outcome(folder / "whole")
    check(code, folder / "again")
    last = max(row["step"] for row in wanted["rows"])

    found: list[Kill] = []
    ends = 0
    while len(found) < kills:
        workdir = folder / f"cut_{ends}"
        number = signal.SIGKILL if rng.random() < 0.5 else signal.SIGTERM
        after, saving = 0.8 * rng.random() * seconds, rng.random() < SAVING
        # An earlier kill's, until the process comes to clear them away.
        before = set(half_written(workdir))
        process = start(workdir)
        cut = _cut(process, workdir, number, after / 2 if saving else after, saving)
        after = time.monotonic() - process.start
        code = process.join()
        if not cut:
            check(code, workdir)
            ends += 1
            continue
        half = sorted(set(half_written(workdir)) - before)
        done = process.done()
        where, lost = "before its first step", 0
        if done:
            what = "after" if done[1] == last else "at"
            where = f"seed {done[0]}, {what} step {done[1]}"
            if (workdir / "checkpoints").exists():
                lost = max(0, done[1] - _kept(workdir, done[0]))
        if number == signal.SIGTERM:
            # Before the handler is there it ends the process as ever; after the end there is none.
            allowed = {75} if done and done[1] < last else {75, 0, -signal.SIGTERM}
            said = f"exit code {code} after SIGTERM: {log.read_text()[-2000:]}"
            _need(code in allowed, said)
            _need(not lost, f"SIGTERM lost {lost} steps")
            _need(code == -signal.SIGTERM or not half, f"SIGTERM left {', '.join(half)}")
        found.append(Kill(number.name, after, code, where, lost, " ".join(half)))
    check(start(workdir).join(), workdir)
    return Report(found, ends + 1, last * len(fields["seeds"]), seconds)


def lines(report: Report) -> list[str]:
    """The table."""
    header = f"{'':>3} {'signal':8} {'after s':>7} {'exit':>4} {'lost':>4}  where"
    rows = [
        f"{number:3} {kill.signal:8} {kill.after:7.2f} {kill.code:4} {kill.lost:4}  {kill.where}"
        + (f"; half-written: {kill.half}" if kill.half else "")
        for number, kill in enumerate(report.kills, 1)
    ]
    killed = [kill.lost for kill in report.kills if kill.signal == "SIGKILL"]
    saving = sum(bool(kill.half) for kill in report.kills)
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
        found = measure(chosen.model, chosen.kills, chosen.seed, pathlib.Path(folder))
    print("\n".join(lines(found)))


if __name__ == "__main__":
    main()
