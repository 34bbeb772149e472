"""From a name and a folder to a :class:`Dataset`."""

import os
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np

from jaxcold.data import readers, synthetic
from jaxcold.data.digests import digest_files
from jaxcold.data.pairs.dataset import Dataset, Interactions
from jaxcold.data.pairs.split import make_split
from jaxcold.data.pairs.split_file import read_split, rows_of
from jaxcold.data.sequences.split_file import training_rows
from jaxcold.data.sources import citeulike
from jaxcold.data.text_tables import ONE_HOST, Hosts
from jaxcold.types import DataError


def cache_folder(name: str) -> Path:
    """The per-user folder of a data set: ``$XDG_CACHE_HOME`` or ``~/.cache``, ``jaxcold/NAME``."""
    base = os.environ.get("XDG_CACHE_HOME") or os.path.join(os.path.expanduser("~"), ".cache")
    return Path(base) / "jaxcold" / name


def default_root(name: str) -> Path:
    """``$JAXCOLD_DATA/NAME`` where that folder exists, else the per-user cache."""
    shared = os.environ.get("JAXCOLD_DATA")
    if shared and (Path(shared) / name).is_dir():
        return Path(shared) / name
    return cache_folder(name)


def load(
    name: str,
    root: str | os.PathLike | None = None,
    *,
    split_file: str | os.PathLike | None = None,
    split_seed: int = 42,
    reader: str | None = None,
    content: str = "files",
    modes: Sequence[str] | None = None,
    missing_modes: bool = False,
    mmap: bool = False,
    duplicates: str = "error",
    allow_unused: bool = False,
    published: str = "",
    synthetic_options: Mapping[str, Any] | None = None,
    hosts: Hosts = ONE_HOST,
) -> Dataset:
    """Loads, checks and splits a data set.

    Args:
        name: of the data set: "synthetic" is generated, others are folders.
        root: its folder; None means :func:`default_root`.
        split_file: an ``.npz`` written by ``write_split``; None makes a split from the seed, or
            takes the one that the authors' layout brings along. The split of a sequential run
            leaves the interactions of its training users alone, of which a split is made from the
            seed: what is learnt there knows nothing of that run's test.
        split_seed: of the cold split and of generated data.
        reader: "mmrec" (``NAME.inter`` and ``*_feat.npy``) or "authors" (``cold_item/*.csv`` and
            ``feats/*.npy``); None looks which of them is there.
        content: "files" reads feature files; "raw" (citeulike-a only) computes them, and the
            interactions, from the published files, which are downloaded where they are missing.
        modes: content modes to use, in that order; None takes all, by name.
        missing_modes: rows of zeros or NaN mean that an item lacks the mode.
        mmap: leave feature files on disk.
        duplicates: "error", or "drop" to keep the first row of a repeated pair.
        allow_unused: accept users and items without any interaction.
        published: where the files can be had, for the message when they are missing.
        synthetic_options: arguments of :func:`jaxcold.data.synthetic.make`.
        hosts: that read the tables together; each must call this function.

    Raises:
        DataError: one line: the place, what is wrong, and the remedy.
    """
    if content not in ("files", "raw"):
        raise DataError(f"data.content={content!r}: must be 'files' or 'raw'")
    if content == "raw" and name != "citeulike-a":
        raise DataError(
            f"data.content='raw' for {name}: only citeulike-a is computed from its published "
            "files; set data.content='files'"
        )
    if reader not in (None, "mmrec", "authors"):
        raise DataError(f"data.reader={reader!r}: must be 'mmrec' or 'authors'")

    if name == "synthetic":
        dataset = synthetic.make(seed=split_seed, **(synthetic_options or {}))
        if split_file is None:
            return dataset
        return replace(
            dataset,
            split=read_split(split_file, dataset.interactions),
            sources=digest_files(Path(), (), split_file),
        )

    folder = default_root(name) if root is None else Path(root).expanduser()
    split = None
    rows = None if split_file is None else training_rows(split_file)
    if content == "raw":
        interactions, features = citeulike.read(folder, cache_folder(name), modes, missing_modes)
        inputs = citeulike.find_files(folder)
    else:
        if reader == "authors" or (reader is None and (folder / "cold_item").is_dir()):
            files = readers.find_features(folder / "feats", "*.npy", modes, published)
            feature_rows = readers.count_feature_rows(files.values())
            interactions, split = readers.read_authors_split(
                folder, allow_unused, published, feature_rows, hosts
            )
            inputs = [folder / "cold_item" / file for file in readers.SPLIT_FILES.values()]
        else:
            needed = [f"{name}.inter", *(f"{mode}_feat.npy" for mode in modes or ())]
            readers.require(folder, needed, published)
            files = readers.find_features(folder, "*_feat.npy", modes, published)
            feature_rows = readers.count_feature_rows(files.values())
            inputs = [folder / f"{name}.inter"]
            interactions = readers.read_interactions(
                inputs[0], duplicates, allow_unused, feature_rows, hosts
            )
        features = readers.read_features(
            files, interactions.num_items, mmap, missing_modes, allow_unused
        )
        inputs += files.values()
        # Under allow_unused the features may have rows beyond the last item of the interactions.
        num_items = len(next(iter(features.tables.values())))
        interactions = interactions._replace(num_items=num_items)
    if rows is not None:
        interactions = _only(interactions, *rows, str(split_file))
    elif split_file is not None:
        split = read_split(split_file, interactions)
    return Dataset(
        name=name,
        interactions=interactions,
        split=split or make_split(interactions, split_seed),
        content=features,
        user_ids=np.arange(interactions.num_users),
        item_ids=np.arange(interactions.num_items),
        sources=digest_files(folder, inputs, split_file),
    )


def _only(
    interactions: Interactions, user: np.ndarray, item: np.ndarray, place: str
) -> Interactions:
    """The named pairs; users and items keep their ids."""
    try:
        wanted = np.unique(np.stack([user, item]).astype(np.int64), axis=1)
    except ValueError:
        raise DataError(
            f"{place}: names users and items by text; this data set numbers them"
        ) from None
    rows = rows_of(interactions, *wanted)
    if (rows < 0).any():
        raise DataError(
            f"{place}: {np.count_nonzero(rows < 0)} of its training rows are no interactions of "
            "this data set; make the split again from it"
        )
    return interactions.take(np.sort(rows))
