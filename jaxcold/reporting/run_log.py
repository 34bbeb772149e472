"""The files that a run writes while it goes on, and their readers.

``metrics.jsonl`` has a row per seed and evaluation, appended as they come; event files show the
same numbers in TensorBoard; ``per_user.npz`` and ``per_item.npz`` have the values per user and
item, averaged over seeds, for paired tests and figures with other runs. A value has a name like
``test/cold/ndcg@20``: the name of the slice, then the metric. In JSON, numbers that are not finite
are null.
"""

import contextlib
import json
import os
import pathlib
import resource
import socket
import sys
import time
import zipfile
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

import numpy as np

from jaxcold.files import naming, write_arrays, write_atomic

_FLUSH_SECONDS = 30.0  # events may stay in memory that long


def append_row(path: str | os.PathLike, row: Mapping[str, Any]) -> None:
    """Appends one line of JSON, in place of half a line that a killed run left at the end.

    Raises:
        OSError: naming the file, if it cannot be written; then it is as long as before.
    """
    line = to_json(row).encode() + b"\n"
    with open(path, "ab+", buffering=0) as file:
        end = _whole_lines(file)
        if end < file.tell():
            file.truncate(end)
        try:
            with naming(path):
                while line:  # a nearly full disk may write less than it was given
                    line = line[file.write(line) :]
                os.fsync(file.fileno())  # before the checkpoint that relies on this row
        except OSError:
            file.truncate(end)
            raise


def read_rows(path: str | os.PathLike) -> list[dict[str, Any]]:
    """The rows of a metrics.jsonl, without half a line at the end.

    Raises:
        ValueError: naming the first line that is not JSON.
    """
    rows = []
    with open(path, "rb") as file:
        for number, line in enumerate(file, 1):
            if not line.endswith(b"\n"):
                break
            try:
                rows.append(json.loads(line))
            except ValueError as error:
                raise ValueError(f"{path}, line {number}: not JSON ({error}); delete it") from None
    return rows


def keep_rows(path: str | os.PathLike, wanted: Callable[[Mapping[str, Any]], bool]) -> None:
    """Rewrites a metrics.jsonl, if there is one, with the wanted rows alone."""
    if os.path.exists(path):
        _write_rows(path, [row for row in read_rows(path) if wanted(row)])


def replace_row(path: str | os.PathLike, number: int, row: Mapping[str, Any]) -> None:
    """Replaces one row of a metrics.jsonl; the file is replaced whole."""
    rows = read_rows(path)
    rows[number] = dict(row)
    _write_rows(path, rows)


def write_slices(path: str | os.PathLike, slices: Mapping[str, Mapping[str, np.ndarray]]) -> None:
    """Writes means of several slices as one ``.npz``: "test/cold/ndcg@20", ...

    Args:
        path: of the file.
        slices: name to a result of `jaxcold.eval.statistics.seed_means` or `item_means`.
    """
    flat = {
        f"{slice_name}/{name}": v
        for slice_name, means in slices.items()
        for name, v in means.items()
    }
    write_arrays(path, flat)


def read_slice(path: str | os.PathLike, slice_name: str) -> dict[str, np.ndarray]:
    """One slice of `write_slices`.

    Raises:
        ValueError: if the file is not one of `write_slices`, or lacks the slice.
    """
    try:
        with np.load(path, allow_pickle=False) as file:
            names = [name for name in file if name.rpartition("/")[0] == slice_name]
            means = {name.rpartition("/")[2]: file[name] for name in names}
    except (OSError, ValueError, EOFError, zipfile.BadZipFile) as error:
        raise ValueError(f"{path}: cannot be read ({error}); run the experiment again") from None
    if not means:
        raise ValueError(f"{path}: has no {slice_name}; run the experiment again")
    return means


@contextlib.contextmanager
def tensorboard(
    workdir: str | os.PathLike, *, first: int = 0
) -> Iterator[Callable[[int, Mapping[str, float]], None]]:
    """Event files for TensorBoard, written through the yielded function of step and scalars.

    ``with tensorboard(workdir) as log: log(step, {"loss": 1.0})``

    Args:
        workdir: folder of the event files.
        first: step from which this process continues; TensorBoard drops older events from there on.
    """
    # Imported here because protobuf takes a while to load.
    from tensorboardX.proto.event_pb2 import Event, SessionLog
    from tensorboardX.record_writer import RecordWriter
    from tensorboardX.summary import scalar

    # Not its SummaryWriter: its thread dies on a full disk, and the run would wait for it for ever.
    pathlib.Path(workdir).mkdir(parents=True, exist_ok=True)
    name = f"events.out.tfevents.{time.time():.0f}.{socket.gethostname()}.{os.getpid()}"
    writer = RecordWriter(os.path.join(workdir, name))
    flushed = time.monotonic()

    def write(**event: Any) -> None:
        with naming(workdir):
            writer.write(Event(wall_time=time.time(), **event).SerializeToString())

    def log(step: int, scalars: Mapping[str, float]) -> None:
        nonlocal flushed
        for name, value in scalars.items():
            # TensorBoard allows no "@" in a tag; it would replace it with a warning every time.
            write(step=step, summary=scalar(name.replace("@", "_"), value))
        if time.monotonic() - flushed > _FLUSH_SECONDS:
            with naming(workdir):
                writer.flush()
            flushed = time.monotonic()

    try:
        write(file_version="brain.Event:2")
        if first:
            write(step=first, session_log=SessionLog(status=SessionLog.START))
        yield log
    finally:
        with naming(workdir):
            writer.close()


def peak_memory() -> int:
    """Largest memory of this process so far, in bytes."""
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak if sys.platform == "darwin" else peak * 1024  # Linux counts in KiB


def reset_peak_memory() -> None:
    """Lets `peak_memory` begin anew, on Linux; elsewhere it stays that of the whole process."""
    with contextlib.suppress(OSError):
        pathlib.Path("/proc/self/clear_refs").write_text("5")


def to_json(value: Any, indent: int | None = None) -> str:
    """JSON of mappings, sequences, paths and NumPy values; numbers that are not finite are null."""
    return json.dumps(_to_plain(value), allow_nan=False, ensure_ascii=False, indent=indent)


def _to_plain(value: Any) -> Any:
    """The value in the types that JSON has."""
    if isinstance(value, Mapping):
        return {str(key): _to_plain(entry) for key, entry in value.items()}
    if isinstance(value, np.ndarray | np.generic):
        return _to_plain(value.tolist())
    if isinstance(value, list | tuple):
        return [_to_plain(entry) for entry in value]
    if isinstance(value, float) and not np.isfinite(value):
        return None
    if isinstance(value, os.PathLike):
        return os.fspath(value)
    return value


def _write_rows(path: str | os.PathLike, rows: Sequence[Mapping[str, Any]]) -> None:
    write_atomic(path, b"".join(to_json(row).encode() + b"\n" for row in rows))


def _whole_lines(file: Any) -> int:
    """Offset of the end of the last complete line; the file position is at the end afterwards."""
    end = file.seek(0, os.SEEK_END)
    while end:
        start = max(0, end - 4096)
        file.seek(start)
        newline = file.read(end - start).rfind(b"\n")
        if newline >= 0:
            end = start + newline + 1
            break
        end = start
    file.seek(0, os.SEEK_END)
    return end
