"""A cold-item split as one ``.npz``: written, read back and checked against the data."""

import os
from collections.abc import Callable, Mapping
from pathlib import Path

import numpy as np

from jaxcold.data.pairs.dataset import SETS, ColdSplit, Interactions
from jaxcold.files import write_arrays
from jaxcold.types import DataError

ITEM_SETS = ("warm_items", "cold_val_items", "cold_test_items")


def write_split(path: str | os.PathLike, split: ColdSplit) -> None:
    """Writes a split as one ``.npz``: the five sets [n, 2] and the three item sets, all i32.

    The file appears whole or not at all; equal splits give equal bytes.
    """
    arrays = dict(split.pairs) | {name: getattr(split, name) for name in ITEM_SETS}
    write_arrays(path, arrays)


def read_split(path: str | os.PathLike, interactions: Interactions) -> ColdSplit:
    """Reads a split written by :func:`write_split` and checks it against the data.

    Raises:
        DataError: if the file is no such split, or is the split of other interactions.
    """
    path = Path(path)
    remedy = "write the split again with jaxcold.data.pairs.split_file.write_split"
    try:
        with open(path, "rb") as file, np.load(file, allow_pickle=False) as archive:
            # Checked before anything is allocated: a small file can declare gigabytes of zeros.
            size = sum(entry.file_size for entry in archive.zip.infolist())
            limit = 32 * (len(interactions.user) + interactions.num_items) + (1 << 16)
            if size > limit:
                raise DataError(
                    f"{path}: declares {size} bytes, more than a split of these interactions can "
                    f"have ({limit}); {remedy}"
                )
            arrays = {name: archive[name] for name in (*SETS, *ITEM_SETS)}
    except FileNotFoundError:
        raise DataError(f"{path}: no such split file; unset split_file to make a split") from None
    except KeyError as error:
        name = str(error.args[0]).split()[0]
        raise DataError(f"{path}: has no array {name}; {remedy}") from None
    except DataError:
        raise
    except Exception:  # damaged bytes raise anything, the errors of zipfile and zlib included
        raise DataError(f"{path}: is not a readable .npz of plain arrays; {remedy}") from None
    for name, array in arrays.items():
        shape = "[n, 2]" if name in SETS else "[n]"
        if array.dtype.kind not in "iu" or array.ndim != (2 if name in SETS else 1):
            raise DataError(
                f"{path}: {name} is {array.dtype}{list(array.shape)}, not integers {shape}; "
                f"{remedy}"
            )
        if name in SETS and array.shape[1] != 2:
            raise DataError(
                f"{path}: {name} has {array.shape[1]} columns, not user and item; {remedy}"
            )
    return check_split(
        {set_name: arrays[set_name] for set_name in SETS},
        interactions,
        place=lambda set_name, row: f"{path}: {set_name} row {row}",
        item_sets={name: arrays[name] for name in ITEM_SETS},
    )


def check_split(
    pairs: Mapping[str, np.ndarray],
    interactions: Interactions,
    place: Callable[[str, int], str],
    item_sets: Mapping[str, np.ndarray],
) -> ColdSplit:
    """A split of given sets, once they are shown to divide the interactions.

    Args:
        pairs: set -> integers [n, 2], for the five sets.
        interactions: what the sets must divide.
        place: (set, row) -> where that row is, to begin an error with.
        item_sets: the three sets of item ids.

    Raises:
        DataError: at the first pair or item that contradicts the data or another set.
    """
    again = "make the split again from this data set"
    for set_name in SETS:
        if not len(pairs[set_name]):
            raise DataError(f"{place(set_name, 0)}: the set is empty; {again}")
    for name, items in item_sets.items():
        bad = np.flatnonzero((items < 0) | (items >= interactions.num_items))
        if len(bad):
            raise DataError(
                f"{place(name, bad[0])}: item {items[bad[0]]} is not one of the "
                f"{interactions.num_items} items; {again}"
            )
    owner = np.full(interactions.num_items, -1)
    for number, (name, items) in enumerate(item_sets.items()):
        taken = np.flatnonzero(owner[items] >= 0)
        _, first = np.unique(items, return_index=True)
        repeated = np.setdiff1d(np.arange(len(items)), first)
        for row in (*taken[:1], *repeated[:1]):
            other = ITEM_SETS[owner[items[row]]] if len(taken) else name
            raise DataError(
                f"{place(name, row)}: item {items[row]} is in {other} already; "
                "an item is warm, cold validation or cold test: keep one"
            )
        owner[items] = number

    rows = {}
    seen = np.full(len(interactions.user), -1, np.int8)
    for number, set_name in enumerate(SETS):
        user, item = pairs[set_name].T
        rows[set_name] = numbers = rows_of(interactions, user, item)
        wanted = {"cold_val": 1, "cold_test": 2}.get(set_name, 0)
        missing = np.flatnonzero(numbers < 0)
        if len(missing):
            at = missing[0]
            raise DataError(
                f"{place(set_name, at)}: user {user[at]} and item {item[at]} are not a pair of the "
                f"interactions; {again}"
            )
        wrong = np.flatnonzero(owner[item] != wanted)
        if len(wrong):
            at = wrong[0]
            raise DataError(
                f"{place(set_name, at)}: item {item[at]} is not in {ITEM_SETS[wanted]}; "
                f"move the row to the set of its item, or {again}"
            )
        _, first = np.unique(numbers, return_index=True)
        repeated = np.setdiff1d(np.arange(len(numbers)), first)
        repeated = np.sort(np.concatenate([repeated, np.flatnonzero(seen[numbers] >= 0)]))
        if len(repeated):
            at = repeated[0]
            other = SETS[seen[numbers[at]]] if seen[numbers[at]] >= 0 else set_name
            raise DataError(
                f"{place(set_name, at)}: user {user[at]} and item {item[at]} are in {other} "
                "already; keep one of the two rows"
            )
        seen[numbers] = number
    if (seen < 0).any():
        at = np.flatnonzero(seen < 0)[0]
        raise DataError(
            f"{place(SETS[0], 0)}: {np.count_nonzero(seen < 0)} interactions are in no set, the "
            f"first user {interactions.user[at]} with item {interactions.item[at]}; {again}"
        )

    trained = np.isin(item_sets["warm_items"], pairs["warm_train"][:, 1])
    if not trained.all():
        at = np.flatnonzero(~trained)[0]
        raise DataError(
            f"{place('warm_items', at)}: item {item_sets['warm_items'][at]} does not occur in "
            "warm_train; move one of its rows there"
        )
    for set_name in ("warm_val", "warm_test"):
        alone = np.flatnonzero(~np.isin(pairs[set_name][:, 0], pairs["warm_train"][:, 0]))
        if len(alone):
            raise DataError(
                f"{place(set_name, alone[0])}: user {pairs[set_name][alone[0], 0]} does not occur "
                "in warm_train; move the row there"
            )
    return ColdSplit(
        train=interactions.take(rows["warm_train"]),
        pairs={set_name: np.ascontiguousarray(pairs[set_name], np.int32) for set_name in SETS},
        **{name: np.sort(items).astype(np.int32) for name, items in item_sets.items()},
    )


def rows_of(interactions: Interactions, user: np.ndarray, item: np.ndarray) -> np.ndarray:
    """i64[n]: the row of each pair among the interactions, -1 where it is not one of them."""
    keys = interactions.user.astype(np.int64) * interactions.num_items + interactions.item
    order = np.argsort(keys, kind="stable")
    inside = (user >= 0) & (user < interactions.num_users)
    inside &= (item >= 0) & (item < interactions.num_items)
    wanted = np.where(inside, user.astype(np.int64) * interactions.num_items + item, -1)
    at = np.minimum(np.searchsorted(keys, wanted, sorter=order), len(keys) - 1)
    return np.where(keys[order[at]] == wanted, order[at], -1)
