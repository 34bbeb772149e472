"""Writing a file so that it is never half there."""

import io
import os
import secrets
from collections.abc import Mapping
from pathlib import Path

import numpy as np


def write_atomic(path: str | os.PathLike, data: bytes | memoryview) -> None:
    """Replaces a file as a whole: readers see the old one or the new one, whatever interrupts.

    The bytes go to PATH.XXXXXXXX.part beside it first, which only a killed process leaves behind.
    """
    path = Path(path)
    partial = path.with_name(f"{path.name}.{secrets.token_hex(4)}.part")
    try:
        with open(partial, "xb") as file:
            file.write(data)
            file.flush()
            os.fsync(file.fileno())
        os.replace(partial, path)
    finally:
        partial.unlink(missing_ok=True)


def write_arrays(path: str | os.PathLike, arrays: Mapping[str, np.ndarray]) -> None:
    """`write_atomic` of arrays by name, as one compressed ``.npz`` without pickles."""
    buffer = io.BytesIO()
    np.savez_compressed(buffer, allow_pickle=False, **arrays)
    write_atomic(path, buffer.getbuffer())
