"""Data sets of a few users with a known answer, in MMRec's layout, for runs that take seconds."""

from collections.abc import Sequence
from pathlib import Path

import numpy as np


def write_mmrec(
    folder: Path,
    name: str,
    modes: Sequence[str],
    *,
    users: int = 40,
    items: int = 60,
    seed: int = 0,
) -> None:
    """Users of two tastes, items of two kinds, and content that tells the kinds apart."""
    rng = np.random.default_rng(seed)
    kind = np.arange(items) % 2
    rows = [
        (user, item)
        for user in range(users)
        for item in rng.choice(np.flatnonzero(kind == user % 2), size=14, replace=False)
    ]
    # Every item in at least one pair: item i belongs to a user of its kind.
    rows = sorted({*rows, *((int(k), item) for item, k in enumerate(kind))})
    folder.mkdir(parents=True, exist_ok=True)
    lines = ["userID\titemID\trating\ttimestamp", *(f"{u}\t{i}\t1\t0" for u, i in rows)]
    (folder / f"{name}.inter").write_text("\n".join(lines) + "\n")
    for mode in modes:
        table = rng.normal(size=(items, 6)) + 2 * kind[:, None]
        np.save(folder / f"{mode}_feat.npy", table.astype(np.float16))


def write_log(folder: Path, users: int = 60, items: int = 30, seed: int = 0) -> None:
    """Walks around a circle of items, and content that tells where on the circle an item is."""
    rng = np.random.default_rng(seed)
    lines = ["userID\titemID\trating\ttimestamp"]
    for user in range(users):
        start, first = rng.integers(items), rng.integers(1000)
        lines += [f"{user}\t{(start + i) % items}\t5\t{first + i}" for i in range(8)]
    # Items that are taken late alone are cold.
    for user in range(users, users + 12):
        lines += [f"{user}\t{items + (user + i) % 3}\t5\t{2000 + i}" for i in range(4)]
    folder.mkdir(parents=True)
    (folder / "ml-100k.inter").write_text("\n".join(lines) + "\n")
    angle = np.arange(items + 3)[:, None] / (items + 3) * 2 * np.pi * np.arange(1, 4)
    table = np.concatenate([np.cos(angle), np.sin(angle)], axis=1)
    np.save(folder / "text_feat.npy", table.astype(np.float32))
