"""Leave-one-out: the last row of each user is for test, the one before it validates."""

import numpy as np
import pandas as pd

from jaxcold.data.sequences.dataset import SequenceDataset
from jaxcold.data.sequences.split import assemble, id_array, n_core, ordered_rows, with_statistics
from jaxcold.types import DataError

_FEWEST_ROWS = 3  # of a user who is asked


def leave_one_out_split(
    name: str,
    rows: pd.DataFrame,
    *,
    cold_fraction: float = 0.0,
    core: int = 1,
    seed: int = 42,
    consecutive_duplicates: str = "keep",
) -> SequenceDataset:
    """The last row of every user is for test, the one before it validates, those before train.

    Users with fewer than three rows train with all of them and are asked nothing. The history of a
    test target is all of the user's earlier rows, that of validation included; rows of equal times
    have the order of the file. A target that the user took before is a target nevertheless (and a
    miss, since items of the history are not recommended); ``test_targets_seen_before`` counts them.

    Drawn cold items leave the training rows and the histories of validation. They stay in the
    histories of the test and are targets there, but never of validation. All other items are warm,
    those that occur only as targets too, as in the benchmarks of this protocol:
    ``warm_items_untrained`` counts them.

    Args:
        name: of the data set, to begin messages with.
        rows: columns user, item, time; only the order inside a user counts.
        cold_fraction: of the items are cold.
        core: of the rows, see `n_core`; 1 keeps all of them.
        seed: that draws the cold items.
        consecutive_duplicates: "keep" them, or "drop" them first.

    Raises:
        DataError: if a set of the split would be empty, or an argument is out of range.

    Source: the protocol of SASRec (Kang and McAuley, ICDM 2018, section IV).
    """
    if not 0 <= cold_fraction < 1:
        raise DataError(f"data.cold_fraction={cold_fraction!r}: must be at least 0 and below 1")
    everything = ordered_rows(name, rows, consecutive_duplicates)
    kept = n_core(everything, core)
    if not len(kept):
        raise DataError(
            f"{name}: the {core}-core of the {len(everything)} interactions is empty; lower "
            "data.n_core or give more data"
        )
    by_user = kept.groupby("user")["user"]
    from_end = by_user.cumcount(ascending=False).to_numpy()  # 0: the user's last row
    is_asked = (by_user.transform("size") >= _FEWEST_ROWS).to_numpy()
    if not is_asked.any():
        raise DataError(
            f"{name}: no user has {_FEWEST_ROWS} interactions, one each to train, validate and "
            "test; give more data"
        )
    items = np.unique(id_array(kept["item"]))
    cold = np.random.default_rng([seed, 3]).permutation(items)[: round(cold_fraction * len(items))]
    if cold_fraction and not 0 < len(cold) < len(items):
        raise DataError(
            f"{name}: {len(items)} items leave none cold or none warm at data.cold_fraction="
            f"{cold_fraction}; change it or give more data"
        )
    is_cold = kept["item"].isin(cold).to_numpy()
    trains = ~is_asked | (from_end >= 2)
    # With a cold target a user does not validate: the row before it is one of training.
    without = kept["user"][is_asked & (from_end == 1) & is_cold]
    validates = is_asked & (from_end >= 1) & ~kept["user"].isin(without).to_numpy()
    dataset = assemble(
        name,
        kept[trains & ~is_cold],
        kept[validates],
        kept[is_asked],
        warm=np.setdiff1d(items, cold),
        cold=np.sort(cold),
    )
    statistics = {
        "interactions": len(rows),
        "consecutive_duplicates_dropped": len(rows) - len(everything),
        "rows_below_core": len(everything) - len(kept),
        "users_that_only_train": kept["user"].nunique() - int((is_asked & (from_end == 0)).sum()),
        "cold_rows_of_training": int((trains & is_cold).sum()),
        "validation_targets_cold": len(without),
    }
    return with_statistics(dataset, statistics)
