"""Checkpoints of a training run: each whole or absent, written while training goes on."""

import contextlib
import hashlib
import os
import shutil
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import jax
import numpy as np
import orbax.checkpoint as ocp

from jaxcold import parallel
from jaxcold.train.step import TrainState
from jaxcold.types import DataError


class Checkpoints:
    """The checkpoints of one training run in one folder.

    A checkpoint is a `TrainState` (parameters, optimizer, what has no gradient such as moving
    averages, number of steps) and a note that JSON can hold. Order and keys of a run follow from
    (seed, epoch) and from the step's number, so nothing else is needed to go on to the same bits.
    Arrays are written whole, whatever devices they lay on, and can be read on any other number.
    """

    def __init__(self, folder: str | os.PathLike, *, keep: int = 1):
        """Opens the folder, and clears away what a killed process was writing there.

        Args:
            folder: made if absent.
            keep: how many of the newest stay. The one before serves where the newest is damaged.
        """
        self._folder = Path(folder).absolute()
        self._clear()
        self._stays = _Stays(keep)
        with self._named("be opened"):
            self._manager = ocp.CheckpointManager(
                self._folder, options=ocp.CheckpointManagerOptions(preservation_policy=self._stays)
            )

    def save(self, state: TrainState, note: dict[str, Any], *, best: int | None = None) -> None:
        """Copies the state and writes it in the background, under a temporary name first.

        Args:
            state: of a step that has no checkpoint yet, or the same bits as that.
            note: what else the run has to remember.
            best: the step of a checkpoint, this one perhaps, that stays as long as this one.

        Raises:
            OSError: if this one, or the one before, cannot be written. Those on disk stay.
        """
        # A copy: the next step gives the state's buffers away.
        host = jax.tree.map(np.array, parallel.fetch(state))
        step = int(host.step)
        if best is not None:
            self._stays.best[step] = best
        with self._named("be written"):
            self._manager.save(
                step,
                args=ocp.args.Composite(
                    state=ocp.args.StandardSave(host),
                    note=ocp.args.JsonSave({"sha256": _digest(host), "note": note}),
                ),
            )

    def restore(
        self,
        like: TrainState,
        *,
        step: int | None = None,
        say: Callable[[str], None] = lambda line: None,
    ) -> tuple[TrainState, dict[str, Any]] | None:
        """The newest state that can be read, and its note; None where there is none.

        Its arrays are NumPy's: `jaxcold.train.step.place` puts them where they belong, in their
        parts where no device is to have all of them. Newer checkpoints that cannot be read are
        deleted: the run comes by their steps again.

        Args:
            like: a state of the same shapes.
            step: of the one checkpoint that is asked for, instead of the newest.
            say: is told of every checkpoint that cannot be read while an older one can.

        Raises:
            DataError: if none can be read, or they are states of another model.
        """
        wanted = jax.tree.map(lambda x: np.empty(x.shape, x.dtype), like)
        damaged: dict[int, str] = {}
        for number in sorted(self._manager.all_steps(), reverse=True) if step is None else [step]:
            try:
                found, note = self._read(number, wanted)
            except Exception as error:  # Orbax raises what its storage raises: of any type
                damaged[number] = _reason(error)
                continue
            for newer, reason in damaged.items():
                say(
                    f"{self._folder / str(newer)}: the checkpoint cannot be read ({reason}); "
                    f"that of step {number} takes its place"
                )
                self._manager.delete(newer)
            return found, note
        if not damaged:
            return None
        number, reason = next(iter(damaged.items()))
        raise DataError(
            f"{self._folder / str(number)}: the checkpoint cannot be read ({reason}); "
            f"delete {self._folder} to start this seed again"
        )

    def wait(self) -> None:
        """Returns when everything saved is on disk.

        Raises:
            OSError: if it cannot be written.
        """
        with self._named("be written"):
            self._manager.wait_until_finished()

    def close(self) -> None:
        """Waits, and ends the background work.

        Raises:
            OSError: if what was saved last cannot be written.
        """
        with self._named("be written"):
            self._manager.close()

    def path(self, step: int) -> Path:
        """Where the checkpoint of a step is."""
        return self._folder / str(step)

    def _read(self, step: int, wanted: TrainState) -> tuple[TrainState, dict[str, Any]]:
        found = self._manager.restore(
            step,
            args=ocp.args.Composite(
                state=ocp.args.StandardRestore(wanted), note=ocp.args.JsonRestore()
            ),
        )
        state, about = found["state"], found["note"]
        if _digest(state) != about["sha256"]:
            raise ValueError("its hash is another than when it was written")
        return state, about["note"]

    @contextlib.contextmanager
    def _named(self, what: str) -> Iterator[None]:
        """Turns whatever the storage raises into one line, and leaves nothing half-written."""
        try:
            yield
        except Exception as error:
            self._clear()
            raise OSError(
                f"{self._folder}: the checkpoint cannot {what} ({_reason(error)}); make room or "
                "mend the folder, and the same command goes on from the last whole one"
            ) from None

    def _clear(self) -> None:
        if parallel.is_primary():
            for path in self._folder.glob("*.orbax-checkpoint-tmp*"):
                shutil.rmtree(path, ignore_errors=True)


class _Stays:
    """Orbax's question which checkpoints stay: the newest, and the best that each refers to."""

    def __init__(self, keep: int):
        self._keep = keep
        self.best: dict[int, int] = {}  # step of a checkpoint -> of the best one until then

    def should_preserve(self, checkpoints: Sequence[Any], *, context: Any) -> list[bool]:
        del context
        steps = [checkpoint.step for checkpoint in checkpoints]
        newest = sorted(steps)[-self._keep :]
        stay = {*newest, *(self.best.get(step) for step in newest)}
        return [step in stay for step in steps]


def _digest(state: TrainState) -> str:
    """Of all that a state holds: a damaged block need not be one that storage finds out."""
    digest = hashlib.sha256()
    for leaf in jax.tree.leaves(state):
        digest.update(np.ascontiguousarray(leaf).reshape(-1).view(np.uint8).data)
    return digest.hexdigest()


def _reason(error: Exception) -> str:
    """The first line of what the storage says; of the system's errors only their name."""
    line = (str(error).splitlines() or [type(error).__name__])[0]
    said, system, _ = line.partition(" [os_error_code")
    return (said.rpartition(": ")[2] if system else line)[:200]
