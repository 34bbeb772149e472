"""From a name and a folder to a :class:`~jaxcold.data.sequences.split.SequenceDataset`."""

import os
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from jaxcold.data import readers
from jaxcold.data.digests import digest_files
from jaxcold.data.pairs.load import default_root
from jaxcold.data.sequences import split as sequences
from jaxcold.data.sequences import split_file as sequence_splits
from jaxcold.data.sequences.dataset import SequenceDataset
from jaxcold.data.sequences.leave_one_out import leave_one_out_split
from jaxcold.data.sources import amazon_m2, letitgo, s3rec
from jaxcold.data.text_tables import ONE_HOST, Hosts
from jaxcold.types import DataError

LAYOUTS = ("inter", "letitgo", "beauty", "zvuk", "amazon_m2", "s3rec")
PROTOCOLS = ("temporal", "random_cold", "leave_one_out")
# Values of the fields that a run leaves unset. A benchmark's leave-one-out filters nothing.
_DEFAULTS = {"n_core": 3, "cold_fraction": 0.15, "consecutive_duplicates": "drop"}
_LEAVE_ONE_OUT = {"n_core": 1, "cold_fraction": 0.0, "consecutive_duplicates": "keep"}
ZVUK_USERS = 10_000  # that the paper samples


def protocol_defaults(protocol: str) -> dict[str, Any]:
    """The arguments of `load_sequences` that a protocol gives a value where they are None.

    Raises:
        DataError: for an unknown protocol.
    """
    if protocol not in PROTOCOLS:
        raise DataError(f"data.protocol={protocol!r}: must be one of {', '.join(PROTOCOLS)}")
    return dict(_LEAVE_ONE_OUT if protocol == "leave_one_out" else _DEFAULTS)


def load_sequences(
    name: str,
    root: str | os.PathLike | None = None,
    *,
    layout: str | None = None,
    protocol: str = "temporal",
    split_file: str | os.PathLike | None = None,
    split_seed: int = 42,
    quantile: float = 0.9,
    n_core: int | None = None,
    val_fraction: float = 0.1,
    cold_fraction: float | None = None,
    mode: str | None = None,
    min_rating: float | None = None,
    consecutive_duplicates: str | None = None,
    max_users: int | None = None,
    published: str = "",
    hosts: Hosts = ONE_HOST,
) -> SequenceDataset:
    """Loads, checks and splits a sequential data set.

    Args:
        name: of the data set.
        root: its folder; None means :func:`~jaxcold.data.pairs.load.default_root`.
        layout: "inter" (``NAME.inter`` and ``*_feat.npy``), "letitgo" (the tables that the
            paper's authors prepared, their split included), "s3rec" (the text files of
            :mod:`~jaxcold.data.sources.s3rec`; of Sports and Toys they are downloaded), or the raw
            files of "beauty", "zvuk" or "amazon_m2"; None looks which of them is there.
        protocol: "temporal" (:func:`~jaxcold.data.sequences.split.temporal_split`), "random_cold"
            (:func:`~jaxcold.data.sequences.split.random_cold_split`) or "leave_one_out"
            (:func:`~jaxcold.data.sequences.leave_one_out.leave_one_out_split`). Amazon-M2 brings
            its own test sessions, and the prepared tables a whole split.
        split_file: an ``.npz``, written by
            :func:`~.split_file.write_sequence_split`, then all of the split comes
            from there; or with ``cold_items``, ``train_users``, ``val_users`` and ``test_users``,
            for the protocol "random_cold".
        split_seed: of all draws.
        quantile: fraction of the rows up to the boundary of the temporal protocol.
        n_core: of those rows, or of all rows under "leave_one_out"; None means 3 of the one and 1,
            which keeps all, of the other.
        val_fraction: of the users validate, and as many are for test under "random_cold"; under
            "leave_one_out" all users do both.
        cold_fraction: of the items that "random_cold" or "leave_one_out" draws; None means 0.15 of
            the one and 0 of the other.
        mode: which of the files ``MODE_feat.npy`` is the content; None takes the only one,
            "none" does without. Beside raw files, ``item_ids.txt`` names the item of each row.
        min_rating: keep the rows rated above it; None means 3 for "beauty", all elsewhere.
        consecutive_duplicates: "drop" or "keep" an item that follows itself; "drop_in_train" is
            for Amazon-M2 alone. None keeps it under "leave_one_out" and drops it elsewhere.
        max_users: so many users are drawn and the others left out; None means 10,000 for "zvuk",
            all elsewhere.
        published: where the files can be had, for the message when they are missing.
        hosts: that read a ``.inter`` file together; each must call this function.

    Raises:
        DataError: one line: the place, what is wrong, and the remedy.
    """
    if layout not in (None, *LAYOUTS):
        raise DataError(f"data.layout={layout!r}: must be one of {', '.join(LAYOUTS)}")
    default = protocol_defaults(protocol)
    n_core = default["n_core"] if n_core is None else n_core
    cold_fraction = default["cold_fraction"] if cold_fraction is None else cold_fraction
    if consecutive_duplicates is None:
        consecutive_duplicates = default["consecutive_duplicates"]
    if max_users is not None and max_users < 1:
        raise DataError(f"data.max_users={max_users}: must be at least 1, or None for all")
    if min_rating is not None and not np.isfinite(min_rating):
        raise DataError(f"data.min_rating={min_rating}: must be a finite number, or None")
    if split_seed < 0:
        raise DataError(f"data.split_seed={split_seed}: must be at least 0")
    folder = default_root(name) if root is None else Path(root).expanduser()
    layout = layout or _find_layout(name, folder)
    if layout in ("letitgo", "amazon_m2") and protocol != "temporal":
        raise DataError(
            f"data.protocol={protocol!r}: {folder} brings its own test users; unset data.protocol"
        )
    if min_rating is not None and layout not in ("inter", "beauty"):
        raise DataError(
            f"data.min_rating={min_rating}: {folder} has no ratings; unset data.min_rating"
        )
    if layout == "letitgo":
        if split_file is not None:
            raise DataError(
                f"{split_file}: the prepared tables of {folder} bring their own split; unset "
                "data.split_file"
            )
        if mode not in (None, "none"):
            raise DataError(
                f"data.mode={mode!r}: the prepared tables have one content; use None or 'none'"
            )
        dataset = letitgo.read_prepared(name, folder, mode is None, published)
        tables = letitgo.find_files(layout, name, folder, mode is None)
        return replace(dataset, sources=digest_files(folder, tables))

    test: pd.DataFrame | None = None
    if layout == "inter":
        readers.require(folder, [f"{name}.inter"], published)
        path = folder / f"{name}.inter"
        feature_rows = None
        if mode != "none":
            features = _find_features(folder, layout, mode, published)
            feature_rows = readers.count_feature_rows(features.values())
        rows = letitgo.read_inter(path, min_rating, feature_rows, hosts)
        if protocol == "temporal" and split_file is None:
            _refuse_positions(path, rows)
    elif layout == "s3rec":
        rows = s3rec.read(name, folder)
        if mode is None and not any(folder.glob("*_feat.npy")):
            mode = "none"  # none is published
        if protocol == "temporal" and split_file is None:
            _refuse_positions(folder / s3rec.FILES[name][0], rows)
    elif layout == "beauty":
        rows = letitgo.read_beauty(folder, min_rating, published)
    elif layout == "zvuk":
        rows = letitgo.read_zvuk(folder, published)
        max_users = max_users or ZVUK_USERS
    else:
        rows, test = amazon_m2.read_amazon_m2(folder, published=published)

    if split_file is not None:
        arrays = sequence_splits.read_arrays(split_file)
        if "cold_items" not in arrays:
            pool = rows if test is None else pd.concat([rows, test])
            dataset = sequence_splits.checked_dataset(split_file, name, arrays, pool)
            return _with_content(dataset, folder, layout, mode, published, split_file)
        if protocol != "random_cold" or test is not None:
            raise DataError(
                f"{split_file}: draws cold items; set data.protocol='random_cold', and for "
                "Amazon-M2 unset data.split_file"
            )
        chosen = sequence_splits.checked_cold_split(split_file, arrays, rows)
        dataset = sequences.random_cold_split(
            name, rows, consecutive_duplicates=consecutive_duplicates, chosen=chosen
        )
    elif test is not None:
        if max_users is not None:
            rows = sequences.sample_users(rows, max_users, split_seed)
        dataset = sequences.given_test_split(
            name,
            rows,
            test,
            val_fraction=val_fraction,
            seed=split_seed,
            consecutive_duplicates=consecutive_duplicates,
        )
    elif protocol == "random_cold":
        dataset = sequences.random_cold_split(
            name,
            rows,
            cold_fraction=cold_fraction,
            val_fraction=val_fraction,
            seed=split_seed,
            max_users=max_users,
            consecutive_duplicates=consecutive_duplicates,
        )
    elif protocol == "leave_one_out":
        if max_users is not None:
            rows = sequences.sample_users(rows, max_users, split_seed)
        dataset = leave_one_out_split(
            name,
            rows,
            cold_fraction=cold_fraction,
            core=n_core,
            seed=split_seed,
            consecutive_duplicates=consecutive_duplicates,
        )
    else:
        if max_users is not None:
            rows = sequences.sample_users(rows, max_users, split_seed)
        dataset = sequences.temporal_split(
            name,
            rows,
            quantile=quantile,
            core=n_core,
            val_fraction=val_fraction,
            seed=split_seed,
            consecutive_duplicates=consecutive_duplicates,
        )
    return _with_content(dataset, folder, layout, mode, published, split_file)


def _find_layout(name: str, folder: Path) -> str:
    if (folder / "processed").is_dir():
        return "letitgo"
    if (folder / "zvuk-interactions.parquet").is_file():
        return "zvuk"
    if (folder / "sessions_train.csv").is_file():
        return "amazon_m2"
    if any(folder.glob("reviews_*.parquet")) or any(folder.glob("ratings_*.csv")):
        return "beauty"
    if not (folder / f"{name}.inter").is_file() and s3rec.find_file(name, folder) is not None:
        return "s3rec"
    return "inter"


def _refuse_positions(path: Path, rows: pd.DataFrame) -> None:
    """Stops if the times of every user count 0, 1, 2 ...: a boundary in them means nothing."""
    ordered = sequences.in_order(rows)
    start = ordered["time"] - ordered.groupby("user").cumcount()
    if rows["user"].nunique() > 1 and start.nunique() == 1:
        raise DataError(
            f"{path}: timestamp counts the steps of each user and is no clock for a boundary in "
            "time; set data.protocol='random_cold' or "
            "'leave_one_out', or write the time"
        )


def _find_features(folder: Path, layout: str, mode: str | None, published: str) -> dict[str, Path]:
    """The one content mode and its file."""
    if not any(folder.glob("*_feat.npy")):
        source = f"; published at {published}" if published else ""
        is_numbered = layout in ("inter", "s3rec")
        beside = "" if is_numbered else f" and the items of its rows in {letitgo.ITEM_LIST}"
        raise DataError(
            f"{folder}: no content{source}; put a [items, features] array into MODE_feat.npy"
            f"{beside}, or set data.mode='none' to do without"
        )
    files = readers.find_features(folder, "*_feat.npy", None, published)
    if mode is None and len(files) > 1:
        raise DataError(f"{folder}: content modes {', '.join(files)}; choose one by data.mode")
    if mode is not None and mode not in files:
        raise DataError(
            f"data.mode={mode!r}: {folder} has no {mode}_feat.npy; choose from {', '.join(files)}"
        )
    mode = mode or next(iter(files))
    return {mode: files[mode]}


def _with_content(
    dataset: SequenceDataset,
    folder: Path,
    layout: str,
    mode: str | None,
    published: str,
    split_file: str | os.PathLike | None,
) -> SequenceDataset:
    """The data set with row i of its content for item i, and the digests of its files."""
    inputs = letitgo.find_files(layout, dataset.name, folder)
    if mode == "none":
        return replace(dataset, sources=digest_files(folder, inputs, split_file))
    files = _find_features(folder, layout, mode, published)
    mode = next(iter(files))
    inputs += files.values()
    is_numbered = layout in ("inter", "s3rec")  # row i of the features is item i
    if not is_numbered:
        inputs.append(folder / letitgo.ITEM_LIST)
    least = int(dataset.item_ids.max()) + 1 if is_numbered else 0
    features = readers.read_features(files, least, allow_unused=True)
    table = features.tables[mode]
    if is_numbered:
        sources = digest_files(folder, inputs, split_file)
        return replace(dataset, content=table[dataset.item_ids], sources=sources)
    feature_ids = pd.Index(letitgo.read_item_list(folder, len(table)))
    row = feature_ids.get_indexer(pd.Index(dataset.item_ids.astype(str)))
    if (row < 0).any():
        raise DataError(
            f"{folder / letitgo.ITEM_LIST}: item {dataset.item_ids[np.argmin(row)]} is missing "
            f"(and {np.count_nonzero(row < 0) - 1} others); add it with its row of features"
        )
    return replace(dataset, content=table[row], sources=digest_files(folder, inputs, split_file))
