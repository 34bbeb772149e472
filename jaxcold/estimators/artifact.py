"""Folders that hold a trained model: whole or absent, checked by size and hash, without pickle.

``model.json`` names the other files, their sizes and their SHA-256; their names hold the
hash too, so an older artifact in the same folder keeps its files until the new model.json has
taken the old one's place.
"""

import hashlib
import json
import os
import re
import secrets
import shutil
import stat
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import jaxcold
from jaxcold.files import sync_folder, write_atomic
from jaxcold.types import DataError

FORMAT = 3
META = "model.json"

_META_BYTES = 2**26  # more than any model.json that `write` writes
_FILE_NAME = re.compile(r"[a-z]+-[0-9a-f]{16}\.[a-z]+")


def write(folder: str | os.PathLike, meta: Mapping[str, Any], files: Mapping[str, bytes]) -> None:
    """Writes an artifact; an older one is replaced.

    At any moment the folder is absent or empty, or holds the older artifact or the new one whole,
    whatever interrupts the writing.

    Args:
        folder: absent, empty, or an artifact.
        meta: anything that JSON can hold.
        files: name such as "ids.json" to its bytes.

    Raises:
        DataError: if the folder holds anything else.
    """
    folder = Path(os.path.realpath(folder))
    older = _holds_artifact(folder)
    target = folder if older else folder.with_name(f".{folder.name}.{secrets.token_hex(4)}.part")
    target.mkdir(parents=True, exist_ok=True)
    try:
        entries: dict[str, dict[str, Any]] = {}
        for name, data in files.items():
            digest = hashlib.sha256(data).hexdigest()
            stem, suffix = name.split(".")
            file = f"{stem}-{digest[:16]}.{suffix}"
            entries[name] = {"file": file, "size": len(data), "sha256": digest}
            write_atomic(target / file, data)
        contents = {"format": FORMAT, "jaxcold": jaxcold.__version__, **meta, "files": entries}
        text = (json.dumps(contents, indent=2) + "\n").encode()
        if len(text) > _META_BYTES:
            raise DataError(f"{META} would have {len(text)} bytes; shorten the column names")
        # Last: the files that it names are on disk.
        write_atomic(target / META, text)
        if not older:
            os.rename(target, folder)
            sync_folder(folder.parent)
    except BaseException:
        if not older:
            shutil.rmtree(target, ignore_errors=True)
        raise
    kept = {entry["file"] for entry in entries.values()}
    for pattern in [*(f"{name.split('.')[0]}-*" for name in files), "*.part"]:
        for path in folder.glob(pattern):
            if path.name not in kept:
                path.unlink(missing_ok=True)


def read(
    folder: str | os.PathLike, names: Iterable[str]
) -> tuple[dict[str, Any], dict[str, bytes]]:
    """Reads an artifact.

    Args:
        folder: that `write` wrote.
        names: of its files.

    Returns:
        What model.json holds, and the bytes of the files by name.

    Raises:
        DataError: naming the file that is absent, damaged or of another version, and the remedy.
    """
    folder = Path(folder)
    path = folder / META
    not_ours = DataError(f"{path}: is damaged or not of jaxcold; name a folder with a saved model")
    try:
        meta = json.loads(_read_file(path))
        version = meta["format"]
        entries = {name: meta["files"][name] for name in names} if version == FORMAT else {}
    except FileNotFoundError:
        raise DataError(f"{path}: not found; name a folder with a saved model") from None
    except OSError as error:
        raise DataError(f"{path}: cannot be read ({error.strerror}); check the folder") from None
    except DataError:
        raise
    except (ValueError, KeyError, TypeError, RecursionError):
        raise not_ours from None
    if version != FORMAT:
        raise DataError(
            f"{path}: has format {version!r:.20}, this version of jaxcold reads {FORMAT}; load it "
            f"with jaxcold {meta.get('jaxcold')!s:.20}, or fit again"
        )
    files = {}
    for name, entry in entries.items():
        is_entry = isinstance(entry, dict) and type(entry.get("size")) is int
        if not is_entry or not isinstance(entry.get("sha256"), str):
            raise not_ours
        file = entry.get("file")
        if not isinstance(file, str) or not _FILE_NAME.fullmatch(file):
            raise DataError(
                f"{path}: names {file!r:.80}, which is not a file of this folder; name a folder "
                "that jaxcold saved"
            )
        files[name] = _read_checked(folder / file, entry["size"], entry["sha256"])
    return meta, files


def _read_checked(path: Path, size: int, digest: str) -> bytes:
    """The bytes of a file that has this size and this hash."""
    try:
        data = _read_file(path, size)
    except OSError as error:
        raise DataError(
            f"{path}: cannot be read ({error.strerror}); copy the whole folder, or save the "
            "model again"
        ) from None
    if hashlib.sha256(data).hexdigest() != digest:
        raise DataError(
            f"{path}: is damaged (its hash is not the one in {META}); copy the whole folder, "
            "or save the model again"
        )
    return data


def _read_file(path: Path, size: int | None = None) -> bytes:
    """The bytes of a regular file of that size, neither a link nor a device.

    Raises:
        DataError: for anything else, before it is read.
        OSError: if it cannot be opened.
    """
    if path.is_symlink():
        raise DataError(f"{path}: is a link; copy the file itself into the folder")
    handle = os.open(
        path, os.O_RDONLY | getattr(os, "O_NOFOLLOW", 0) | getattr(os, "O_NONBLOCK", 0)
    )
    with open(handle, "rb") as file:
        status = os.fstat(handle)
        if not stat.S_ISREG(status.st_mode):
            raise DataError(f"{path}: is not a regular file; copy the whole folder again")
        if size is None and status.st_size > _META_BYTES:
            raise DataError(f"{path}: has {status.st_size} bytes, more than a model.json has")
        if size is not None and status.st_size != size:
            raise DataError(
                f"{path}: is damaged (it has {status.st_size} bytes, {META} says {size}); copy "
                "the whole folder, or save the model again"
            )
        return file.read(status.st_size)


def _holds_artifact(folder: Path) -> bool:
    """Whether there is an artifact to replace; stops if there is anything else."""
    if not folder.exists():
        return False
    if not folder.is_dir():
        raise DataError(f"{folder}: is a file; name a folder")
    if not any(folder.iterdir()):
        return False
    try:
        meta = json.loads(_read_file(folder / META))
        if {"format", "jaxcold", "files"} <= meta.keys():
            return True
    except (OSError, ValueError, AttributeError, RecursionError):
        pass
    raise DataError(f"{folder}: holds other files than a saved model; name a new or empty folder")
