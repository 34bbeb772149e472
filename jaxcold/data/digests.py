"""SHA-256 of the files that a data set is read from: what identifies a run's input."""

import hashlib
import os
from collections.abc import Iterable
from pathlib import Path


def digest_files(
    folder: Path, files: Iterable[Path], split_file: str | os.PathLike | None = None
) -> dict[str, str]:
    """Name of each file, relative to the folder -> SHA-256 of its bytes, in hexadecimal.

    Args:
        folder: of the data set.
        files: read from it; their bytes are streamed, so a mapped table stays on disk.
        split_file: listed as "split_file" wherever it is, since moving it changes nothing.
    """
    digests = {path.relative_to(folder).as_posix(): _digest(path) for path in files}
    if split_file is not None:
        digests["split_file"] = _digest(Path(split_file))
    return digests


def _digest(path: Path) -> str:
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
