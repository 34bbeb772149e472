"""Downloads one file: whole, of a known hash, or not at all."""

import fcntl
import hashlib
import http.client
import os
import re
import urllib.error
import urllib.request
from pathlib import Path
from typing import IO

from jaxcold.types import DataError

_CHUNK = 1 << 16
_TRIES = 4  # in a row without a new byte
_TIMEOUT = 30.0  # seconds of silence


def fetch(url: str, path: str | os.PathLike, sha256: str) -> Path:
    """Makes ``path`` the published file, downloading it unless it is there already.

    Bytes arrive in ``path`` + ".part". A cut connection, in this run or an earlier one, is resumed
    where the server allows it and restarted where it does not; only a file of the right hash is
    renamed to ``path``. Two processes that fetch the same file take turns.

    Args:
        url: http or https address.
        path: where the file belongs; its folder is made.
        sha256: of the whole file, in hexadecimal.

    Returns:
        The path.

    Raises:
        DataError: if the file cannot be had; one line with the address and where to put the file
            by hand. A part already received stays for the next try.
    """
    path = Path(path)
    if path.exists():
        return _verified(path, url, sha256)
    by_hand = f"download it in another way and put it at {path}"
    partial = path.with_name(path.name + ".part")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with open(partial, "a+b") as file:
            fcntl.flock(file, fcntl.LOCK_EX)
            if path.exists():  # another process was faster
                partial.unlink(missing_ok=True)
                return _verified(path, url, sha256)
            file.seek(0, os.SEEK_END)
            resumed = file.tell() > 0
            _receive(url, file, by_hand)
            if _sha256(partial) != sha256 and resumed:
                # What an earlier run left may be to blame.
                file.truncate(0)
                _receive(url, file, by_hand)
            if _sha256(partial) != sha256:
                partial.unlink()
                raise DataError(
                    f"{url}: the file received has not the SHA-256 {sha256[:12]}...; it was "
                    f"changed or spoilt on the way: try again, or {by_hand}"
                )
            os.replace(partial, path)
    except OSError as error:
        raise DataError(
            f"{path}: cannot be written ({error.strerror}); name a writable folder by data.root, "
            f"or download {url} in another way and put it there"
        ) from None
    return path


def _receive(url: str, file: IO[bytes], by_hand: str) -> None:
    """Appends what is missing, trying again as long as something arrives."""
    failures = 0
    while True:
        file.seek(0, os.SEEK_END)
        before = file.tell()
        try:
            if _receive_once(url, file, before):
                return
            reason = "the connection was cut"
        except urllib.error.HTTPError as error:
            with error:
                if error.code == 416 and before:  # nothing lies beyond what we have
                    if error.headers.get("Content-Range") == f"bytes */{before}":
                        return
                    file.truncate(0)
                    reason = "the server has fewer bytes than were received before"
                elif error.code < 500:
                    raise DataError(f"{url}: HTTP {error.code} {error.reason}; {by_hand}") from None
                else:
                    reason = f"HTTP {error.code} {error.reason}"
        except urllib.error.URLError as error:
            reason = f"no connection: {error.reason}"
        except (http.client.HTTPException, ConnectionError, TimeoutError) as error:
            reason = f"the connection was cut: {type(error).__name__}"
        file.flush()
        failures = 0 if file.seek(0, os.SEEK_END) > before else failures + 1
        if failures == _TRIES:
            raise DataError(f"{url}: {reason}; try again when there is a network, or {by_hand}")


def _receive_once(url: str, file: IO[bytes], have: int) -> bool:
    """One request; True when the server sent all that it promised."""
    headers = {"User-Agent": "jaxcold", "Accept-Encoding": "identity"}
    if have:
        headers["Range"] = f"bytes={have}-"
    request = urllib.request.Request(url, headers=headers)
    with urllib.request.urlopen(request, timeout=_TIMEOUT) as response:
        start = re.match(r"bytes (\d+)-", response.headers.get("Content-Range") or "")
        if response.status != 206 or not start or int(start[1]) != have:
            # The server sends the whole file, whatever was asked for.
            file.truncate(0)
        length = response.headers.get("Content-Length")
        received = 0
        while chunk := response.read(_CHUNK):
            file.write(chunk)
            received += len(chunk)
        file.flush()
    return length is None or received == int(length)


def _verified(path: Path, url: str, sha256: str) -> Path:
    if _sha256(path) != sha256:
        raise DataError(
            f"{path}: its SHA-256 is not {sha256[:12]}..., that of {url}; "
            "delete the file to download it again"
        )
    return path


def _sha256(path: Path) -> str:
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
