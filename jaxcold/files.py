"""Writing a file so that it is never half there."""

import os
import secrets
from pathlib import Path


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
