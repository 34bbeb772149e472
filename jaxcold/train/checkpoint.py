"""Checkpoints of a training run: each whole or absent, written while training goes on."""

import contextlib
import hashlib
import json
import os
import re
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

# The names of a checkpoint's two folders.
_STATE, _METADATA = "state", "metadata"
# How the storage library starts its messages: the name of a status, whatever Python type it has.
_STATUS = re.compile(
    r"(CANCELLED|UNKNOWN|INVALID_ARGUMENT|DEADLINE_EXCEEDED|NOT_FOUND|ALREADY_EXISTS|ABORTED"
    r"|PERMISSION_DENIED|RESOURCE_EXHAUSTED|FAILED_PRECONDITION|OUT_OF_RANGE|UNIMPLEMENTED"
    r"|INTERNAL|UNAVAILABLE|DATA_LOSS|UNAUTHENTICATED): "
)
# Statuses that blame the content of a file. Others, and errors of the operating system such as too
# many open files, may pass.
_DAMAGE = {"INVALID_ARGUMENT", "NOT_FOUND", "FAILED_PRECONDITION", "OUT_OF_RANGE", "DATA_LOSS"}


class _DamagedError(Exception):
    """A checkpoint whose files are missing, cut short or changed."""


class Checkpoints:
    """The checkpoints of one training run in one folder.

    A checkpoint is a `TrainState` (parameters, optimizer state, state without gradients such as
    moving averages, number of steps) and metadata that JSON can hold. The order of the batches and
    the keys of a run follow from (seed, epoch) and from the step's number, so nothing else is
    needed to continue to the same bits. Arrays are written whole, on however many devices they are,
    and can be read on any other number.
    """

    def __init__(self, folder: str | os.PathLike, *, keep: int = 1):
        """Opens the folder and deletes what a killed process was writing there.

        Args:
            folder: made if absent.
            keep: how many of the newest checkpoints to keep. The one before the newest is used
                where the newest is damaged.
        """
        self._folder = Path(folder).absolute()
        self._clear()
        self._preservation = _Preservation(keep)
        with self._storage_errors("be opened"):
            self._manager = ocp.CheckpointManager(
                self._folder,
                options=ocp.CheckpointManagerOptions(preservation_policy=self._preservation),
            )
        for step in self._manager.all_steps():
            # Of a damaged checkpoint `restore` says more.
            with contextlib.suppress(_DamagedError):
                best = self._read(step, _METADATA, ocp.args.JsonRestore()).get("best")
                if best is not None:
                    self._preservation.best[step] = best

    def save(self, state: TrainState, metadata: dict[str, Any], *, best: int | None = None) -> None:
        """Copies the state and writes it in the background, under a temporary name first.

        Args:
            state: of a step that has no checkpoint yet, or the same bits as that.
            metadata: what else the run has to remember.
            best: the step of a checkpoint, this one perhaps, that is kept as long as this one; also
                after the folder has been opened again.

        Raises:
            OSError: if this one, or the one before, cannot be written. Those on disk stay.
        """
        # A copy, because the next step donates the state's buffers.
        host = jax.tree.map(np.array, parallel.fetch(state))
        step = int(host.step)
        if best is not None:
            self._preservation.best[step] = best
        about = {"sha256": _digest(host), "best": best, "metadata": metadata}
        items: Any = {
            _STATE: ocp.args.StandardSave(host),
            _METADATA: ocp.args.JsonSave(about),
        }
        with self._storage_errors("be written"):
            self._manager.save(step, args=ocp.args.Composite(**items))

    def restore(
        self,
        like: TrainState,
        *,
        step: int | None = None,
        say: Callable[[str], None] = lambda line: None,
    ) -> tuple[TrainState, dict[str, Any]] | None:
        """The newest state that can be read, and its metadata; None where there is none.

        Its arrays are NumPy's; `jaxcold.train.step.place` puts them on the devices. Checkpoints
        that are newer and damaged are deleted, because the run will come to their steps again. An
        error that does not prove damage, such as a lack of memory, deletes nothing.

        Args:
            like: a state of the same shapes.
            step: of the one checkpoint to read; None for the newest.
            say: called with a line about every damaged checkpoint that an older one replaces.

        Raises:
            DataError: if all are damaged, or one is not a state of this model.
            OSError: if the operating system cannot read one; it stays.
        """
        target = jax.tree.map(lambda x: np.empty(x.shape, x.dtype), like)
        damaged: dict[int, str] = {}
        for number in sorted(self._manager.all_steps(), reverse=True) if step is None else [step]:
            try:
                about = self._read(number, _METADATA, ocp.args.JsonRestore())
                state = self._read(number, _STATE, ocp.args.StandardRestore(target))
                if _digest(state) != about["sha256"]:
                    raise _DamagedError("its hash is another than when it was written")
            except _DamagedError as error:
                damaged[number] = str(error)
                continue
            for newer, reason in damaged.items():
                say(
                    f"{self.path(newer)}: the checkpoint cannot be read ({reason}); "
                    f"that of step {number} takes its place"
                )
                self._manager.delete(newer)
                self._preservation.best.pop(newer, None)
            return state, about["metadata"]
        if not damaged:
            return None
        raise self._unreadable(*next(iter(damaged.items())))

    def wait(self) -> None:
        """Returns when everything saved is on disk.

        Raises:
            OSError: if it cannot be written.
        """
        with self._storage_errors("be written"):
            self._manager.wait_until_finished()

    def close(self) -> None:
        """Waits, and ends the background work.

        Raises:
            OSError: if what was saved last cannot be written.
        """
        with self._storage_errors("be written"):
            self._manager.close()

    def path(self, step: int) -> Path:
        """Folder of a step's checkpoint."""
        return self._folder / str(step)

    def _read(self, step: int, name: str, how: Any) -> Any:
        """One of a checkpoint's two items.

        Raises:
            _DamagedError: if its files are damaged.
            DataError: if the storage refuses it for another reason, such as other names of arrays.
            OSError: if the operating system cannot read it.
        """
        if not (self.path(step) / name).is_dir():
            raise _DamagedError(f"it has no {name}")
        try:
            return self._manager.restore(step, args=ocp.args.Composite(**{name: how}))[name]
        except (FileNotFoundError, EOFError, json.JSONDecodeError, UnicodeDecodeError) as error:
            raise _DamagedError(_reason(error)) from None
        except ValueError as error:
            if not (status := _STATUS.match(str(error))):
                older = f"{self.path(step)} to go on from an older one, or "
                remedy = older if min(self._manager.all_steps()) < step else ""
                raise self._unreadable(step, _reason(error), remedy) from None
            if status[1] in _DAMAGE and _system_error(error) in (None, "ENOENT"):
                raise _DamagedError(_reason(error)) from None
            raise OSError(
                f"{self.path(step)}: the checkpoint cannot be read ({_reason(error)}); it stays, "
                "and the same command tries again"
            ) from None

    def _unreadable(self, step: int, reason: str, remedy: str = "") -> DataError:
        return DataError(
            f"{self.path(step)}: the checkpoint cannot be read ({reason}); "
            f"delete {remedy}{self._folder} to start this seed again"
        )

    @contextlib.contextmanager
    def _storage_errors(self, what: str) -> Iterator[None]:
        """Makes an error of the storage an OSError of one line, and deletes what is half written.

        Other errors, a TypeError after a change of a library for one, pass unchanged.
        """
        try:
            yield
        except Exception as error:
            self._clear()
            if not isinstance(error, OSError) and not _STATUS.match(str(error)):
                raise
            raise OSError(
                f"{self._folder}: the checkpoint cannot {what} ({_reason(error)}); make room or "
                "mend the folder, and the same command goes on from the last whole one"
            ) from None

    def _clear(self) -> None:
        if parallel.is_primary():
            for path in self._folder.glob("*.orbax-checkpoint-tmp*"):
                shutil.rmtree(path, ignore_errors=True)


class _Preservation:
    """Orbax's policy of which checkpoints to keep: the newest, and the best one of each of them."""

    def __init__(self, keep: int):
        self._keep = keep
        self.best: dict[int, int] = {}  # step of a checkpoint -> of the best one until then

    def should_preserve(self, checkpoints: Sequence[Any], *, context: Any) -> list[bool]:
        del context
        steps = [checkpoint.step for checkpoint in checkpoints]
        newest = sorted(steps)[-self._keep :]
        kept_steps = {*newest, *(self.best.get(step) for step in newest)}
        return [step in kept_steps for step in steps]


def _digest(state: TrainState) -> str:
    """SHA-256 of all arrays of a state: the storage does not notice every damaged block."""
    digest = hashlib.sha256()
    for leaf in jax.tree.leaves(state):
        digest.update(np.ascontiguousarray(leaf).reshape(-1).view(np.uint8).data)
    return digest.hexdigest()


def _system_error(error: Exception) -> str | None:
    """Name of the operating system's error in a message of the storage, such as "EMFILE"."""
    match = re.search(r"os_error_code='?(\w+)", str(error))
    return match[1] if match else None


def _reason(error: Exception) -> str:
    """The first line of the storage's message; of an error of the system only its description."""
    line = (str(error).splitlines() or [type(error).__name__])[0]
    message, system, _ = line.partition(" [os_error_code")
    return (message.rpartition(": ")[2] if system else line)[:200]
