"""Writing a file so that it is never half there, and reading one that may go while it is read."""

import contextlib
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

    The bytes go to PATH.XXXXXXXX.part beside it first, which only a killed process leaves behind.

    Raises:
        OSError: naming the file, if it cannot be written; an old one stays.
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
    finally:
        partial.unlink(missing_ok=True)


@contextlib.contextmanager
def naming(path: str | os.PathLike) -> Iterator[None]:
    """Gives an OSError the name of the file: that of a write, unlike that of `open`, lacks it."""
    try:
        yield
    except OSError as error:
        raise OSError(error.errno, error.strerror, str(path)) from None


def write_arrays(path: str | os.PathLike, arrays: Mapping[str, np.ndarray]) -> None:
    """`write_atomic` of arrays by name, as one compressed ``.npz`` without pickles."""
    buffer = io.BytesIO()
    np.savez_compressed(buffer, allow_pickle=False, **arrays)
    write_atomic(path, buffer.getbuffer())


def clear_partial(folder: str | os.PathLike) -> None:
    """Deletes what killed processes left of files and saved models in a folder.

    For a folder in which nobody else writes.
    """
    for path in Path(folder).glob("*.part"):
        if _PARTIAL.fullmatch(path.name):
            if path.is_dir():
                shutil.rmtree(path, ignore_errors=True)
            else:
                path.unlink(missing_ok=True)


def check_mapped(table: np.ndarray) -> None:
    """Stops where the file of a memory-mapped table has gone, or has been cut short.

    Reading beyond the end of a mapped file ends the process without a word (SIGBUS).

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
