"""Files that are never half written, and memory-mapped files that vanish while in use."""

import contextlib
import errno
import io
import os
import re
import secrets
import shutil
from collections.abc import Iterator, Mapping
from pathlib import Path

import numpy as np

from jaxcold.types import DataError

_PARTIAL = re.compile(r".*\.[0-9a-f]{8}\.part")


def write_atomic(path: str | os.PathLike, data: bytes | memoryview) -> None:
    """Replaces a file as a whole: readers see the old one or the new one, whatever interrupts.

    The bytes are first written to PATH.XXXXXXXX.part beside it, which only a killed process leaves
    behind. Once this returns, the new file outlasts a loss of power.

    Raises:
        OSError: naming the file, if it cannot be written; then the old one stays.
    """
    path = Path(path)
    partial = path.with_name(f"{path.name}.{secrets.token_hex(4)}.part")
    try:
        with naming(path):
            with open(partial, "xb") as file:
                file.write(data)
                file.flush()
                os.fsync(file.fileno())
            os.replace(partial, path)
            sync_folder(path.parent)
    finally:
        partial.unlink(missing_ok=True)


def sync_folder(folder: str | os.PathLike) -> None:
    """Writes a folder's entries to disk, so that new and renamed files outlast a loss of power."""
    handle = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(handle)
    except OSError as error:
        if error.errno != errno.EINVAL:  # some network file systems cannot sync a folder
            raise
    finally:
        os.close(handle)


@contextlib.contextmanager
def naming(path: str | os.PathLike) -> Iterator[None]:
    """Adds the name of the file to an OSError; `open` does that itself, a write does not."""
    try:
        yield
    except OSError as error:
        raise OSError(error.errno, error.strerror, str(path)) from None


def write_arrays(path: str | os.PathLike, arrays: Mapping[str, np.ndarray]) -> None:
    """Writes arrays by name as one compressed ``.npz`` without pickles; see `write_atomic`."""
    buffer = io.BytesIO()
    np.savez_compressed(buffer, allow_pickle=False, **arrays)
    write_atomic(path, buffer.getbuffer())


def clear_partial(folder: str | os.PathLike) -> None:
    """Deletes half-written files and saved models that killed processes left in a folder.

    For a folder in which no other process writes.
    """
    for path in Path(folder).glob("*.part"):
        if _PARTIAL.fullmatch(path.name):
            if path.is_dir():
                shutil.rmtree(path, ignore_errors=True)
            else:
                path.unlink(missing_ok=True)


def check_mapped(table: np.ndarray) -> None:
    """Checks that the file of a memory-mapped table is still there and as long as before.

    Reading beyond the end of a mapped file kills the process without a message (SIGBUS).

    Args:
        table: memory-mapped or not; a slice of one counts as the whole.

    Raises:
        DataError: naming the file.
    """
    if not isinstance(table, np.memmap) or table.filename is None:
        return
    try:
        size = os.stat(table.filename).st_size
    except OSError as error:
        raise DataError(
            f"{table.filename}: cannot be read any more ({error.strerror}); put it back, and the "
            "same command goes on"
        ) from None
    if size < table.offset + table.nbytes:
        raise DataError(
            f"{table.filename}: has become shorter while it was in use; put the whole file back, "
            "and the same command goes on"
        )
