"""Downloads one file of a known hash."""

import hashlib
import importlib
import os
from pathlib import Path
from typing import Any

from jaxcold.types import DataError

_RETRIES = 2
_TIMEOUT = 30.0  # seconds without a byte


def fetch(url: str, path: str | os.PathLike, sha256: str) -> Path:
    """Returns ``path`` once it is the published file, which is downloaded if it is absent.

    The bytes go to a temporary file in the same folder, renamed to ``path`` when their hash is
    right and deleted otherwise.

    Args:
        url: http or https address.
        path: where the file belongs; its folder is made.
        sha256: of the whole file, in hexadecimal.

    Raises:
        DataError: if the file cannot be had; one line with the address and the path where it can
            be put by hand.
    """
    # Imported here: only a missing file needs them.
    pooch: Any = importlib.import_module("pooch")
    requests: Any = importlib.import_module("requests")

    path = Path(path)
    if path.exists():
        return _check_digest(path, url, sha256)
    by_hand = f"try again, or download it in another way and put it at {path}"
    pooch.get_logger().setLevel("WARNING")
    receive = pooch.HTTPDownloader(timeout=_TIMEOUT)

    def download(url: str, output: Any, store: Any) -> None:
        try:
            receive(url, output, store)
        except requests.HTTPError as error:
            error.response.close()  # pooch leaves the connection of an error page open
            raise

    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        store = pooch.create(
            path=path.parent,
            base_url="",
            registry={path.name: f"sha256:{sha256}"},
            urls={path.name: url},
            retry_if_failed=_RETRIES,
        )
        store.fetch(path.name, downloader=download)
    except requests.HTTPError as error:
        status = error.response.status_code
        raise DataError(f"{url}: HTTP {status} {error.response.reason}; {by_hand}") from None
    except requests.RequestException as error:
        raise DataError(f"{url}: no connection ({type(error).__name__}); {by_hand}") from None
    except ValueError:  # pooch: another hash
        raise DataError(
            f"{url}: the file received has not the SHA-256 {sha256[:12]}...; it was changed or "
            f"damaged on the way: {by_hand}"
        ) from None
    except OSError as error:
        raise DataError(
            f"{path}: cannot be written ({error.strerror}); name a writable folder by data.root, "
            f"or download {url} in another way and put it there"
        ) from None
    return path


def _check_digest(path: Path, url: str, sha256: str) -> Path:
    with open(path, "rb") as file:
        digest = hashlib.file_digest(file, "sha256").hexdigest()
    if digest != sha256:
        raise DataError(
            f"{path}: its SHA-256 is not {sha256[:12]}..., that of {url}; "
            "delete the file to download it again"
        )
    return path
