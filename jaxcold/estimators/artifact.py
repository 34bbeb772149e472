"""Folders that hold a trained model: whole or absent, checked by hash, without pickle.

``model.json`` names the other files and their SHA-256; their names hold the hash too, so an older
artifact in the same folder keeps its files until the new model.json has taken the old one's place.
"""

import hashlib
import json
import os
import secrets
import shutil
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import jaxcold
from jaxcold.files import sync_folder, write_atomic
from jaxcold.types import DataError

FORMAT = 1
META = "model.json"


def write(folder: str | os.PathLike, meta: Mapping[str, Any], files: Mapping[str, bytes]) -> None:
    """Writes an artifact; an older one is replaced.

    At any moment the folder is absent or empty, or holds the older artifact or the new one whole,
    whatever interrupts the writing.

    Args:
        folder: absent, empty, or an artifact.
        meta: anything that JSON can hold.
        files: name such as "arrays.npz" to its bytes.

    Raises:
        DataError: if the folder holds anything else.
    """
    folder = Path(os.path.realpath(folder))
    older = _holds_artifact(folder)
    target = folder if older else folder.with_name(f".{folder.name}.{secrets.token_hex(4)}.part")
    target.mkdir(parents=True, exist_ok=True)
    try:
        named = {}
        for name, data in files.items():
            digest = hashlib.sha256(data).hexdigest()
            stem, suffix = name.split(".")
            named[name] = {"file": f"{stem}-{digest[:16]}.{suffix}", "sha256": digest}
            write_atomic(target / named[name]["file"], data)
        whole = {"format": FORMAT, "jaxcold": jaxcold.__version__, **meta, "files": named}
        # Last: the files that it names are on disk.
        write_atomic(target / META, (json.dumps(whole, indent=2) + "\n").encode())
        if not older:
            os.rename(target, folder)
            sync_folder(folder.parent)
    except BaseException:
        if not older:
            shutil.rmtree(target, ignore_errors=True)
        raise
    kept = {entry["file"] for entry in named.values()}
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
    try:
        meta = json.loads(path.read_bytes())
        version = meta["format"]
        named = {
            name: (folder / meta["files"][name]["file"], meta["files"][name]["sha256"])
            for name in names
        }
    except FileNotFoundError:
        raise DataError(f"{path}: not found; name a folder with a saved model") from None
    except OSError as error:
        raise DataError(f"{path}: cannot be read ({error.strerror}); check the folder") from None
    except (ValueError, KeyError, TypeError):
        raise DataError(
            f"{path}: is damaged or not of jaxcold; name a folder with a saved model"
        ) from None
    if version != FORMAT:
        raise DataError(
            f"{path}: has format {version}, this version of jaxcold reads {FORMAT}; load it with "
            f"jaxcold {meta.get('jaxcold')}, or fit again"
        )
    files = {}
    for name, (file, digest) in named.items():
        try:
            files[name] = file.read_bytes()
        except OSError as error:
            raise DataError(
                f"{file}: cannot be read ({error.strerror}); copy the whole folder, or save the "
                "model again"
            ) from None
        if hashlib.sha256(files[name]).hexdigest() != digest:
            raise DataError(
                f"{file}: is damaged (its hash is not the one in {META}); copy the whole folder, "
                "or save the model again"
            )
    return meta, files


def _holds_artifact(folder: Path) -> bool:
    """Whether there is an artifact to replace; stops if there is anything else."""
    if not folder.exists():
        return False
    if not folder.is_dir():
        raise DataError(f"{folder}: is a file; name a folder")
    if not any(folder.iterdir()):
        return False
    try:
        meta = json.loads((folder / META).read_bytes())
        if {"format", "jaxcold", "files"} <= meta.keys():
            return True
    except (OSError, ValueError, AttributeError):
        pass
    raise DataError(f"{folder}: holds other files than a saved model; name a new or empty folder")
