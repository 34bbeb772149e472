"""Sequential data: histories in the order of time, and what came next.

Ids inside the library count from 0: warm items first, cold items after them. There is no padding
item in the data; a model that needs one adds its own.

The functions work on a frame of rows: one interaction each, with columns ``user``, ``item`` and
``time``. Ids are integers or text; times are integers in any unit. Rows with equal times keep the
order of the file, everywhere.

:func:`temporal_split` and :func:`given_test_split` follow Let It Go? Not Quite (Pembek et al.),
section 4.1, and the preparation published with it.
"""

from collections.abc import Mapping, Sequence
from dataclasses import replace

import numpy as np
import pandas as pd

from jaxcold.data.sequences.dataset import EvalSequences, SequenceDataset
from jaxcold.types import Csr, DataError

COLD_SPLIT_ARRAYS = ("cold_items", "train_users", "val_users", "test_users")


def drop_consecutive_duplicates(rows: pd.DataFrame) -> pd.DataFrame:
    """Sorts by user and time, and keeps the first of consecutive rows with the same item.

    Args:
        rows: columns user, item, time; rows of equal user and time keep their order.

    Returns:
        The rows that are left, sorted.
    """
    rows = in_order(rows)
    again = (rows["user"] == rows["user"].shift()) & (rows["item"] == rows["item"].shift())
    return rows[~again]


def drop_repeated_rows(rows: pd.DataFrame) -> pd.DataFrame:
    """The rows without those that repeat an earlier user, item and time: logs written twice.

    So [5, 6, 5, 6, 7] at times 1, 2, 1, 2, 3 is the history [5, 6, 7]. File order is kept.
    """
    return rows[~rows.duplicated(["user", "item", "time"])]


def in_order(rows: pd.DataFrame) -> pd.DataFrame:
    """The rows sorted by user and time; ties keep their order."""
    user = pd.factorize(rows["user"], sort=True)[0]
    return rows.iloc[np.lexsort((rows["time"].to_numpy(), user))]


def n_core(rows: pd.DataFrame, core: int) -> pd.DataFrame:
    """The most rows in which every user and every item has ``core`` rows.

    Users with fewer rows go, then items with fewer, until nothing changes. The result does not
    depend on that order: rows that together satisfy the condition are never removed.

    Raises:
        DataError: unless ``core`` is an integer from 1.
    """
    if not isinstance(core, int) or core < 1:
        raise DataError(f"data.n_core={core!r}: must be an integer from 1")
    while True:
        before = len(rows)
        for column in ("user", "item"):
            rows = rows[rows.groupby(column)[column].transform("size") >= core]
        if len(rows) == before:
            return rows


def time_boundary(times: np.ndarray, quantile: float) -> int:
    """The quantile by nearest rank: the sorted time at place floor((n - 1) quantile + 1/2)."""
    place = int(np.floor((len(times) - 1) * quantile + 0.5))
    return int(np.partition(times, place)[place])


def sample_users(rows: pd.DataFrame, count: int, seed: int) -> pd.DataFrame:
    """All rows of ``count`` users drawn without replacement, or of all where there are fewer."""
    users = np.unique(id_array(rows["user"]))
    chosen = np.random.default_rng([seed, 0]).permutation(len(users))[:count]
    return rows[rows["user"].isin(users[chosen])]


def temporal_split(
    name: str,
    rows: pd.DataFrame,
    *,
    quantile: float = 0.9,
    core: int = 3,
    val_fraction: float = 0.1,
    seed: int = 42,
    val_users: Sequence | np.ndarray | None = None,
    consecutive_duplicates: str = "drop",
) -> SequenceDataset:
    """Splits at one moment for all users; items without a training row before it are cold.

    Rows after the boundary are for test; of the others, an n-core is left. Its users are divided:
    the rows of most train, those of the rest validate. A test user has all rows, those of
    the n-core before the boundary included; the last row is the answer. So the early rows of a
    test user also train or validate.

    Args:
        name: of the data set, to begin messages with.
        rows: columns user, item, time; time is a clock that all users share.
        quantile: fraction of the rows up to the boundary (:func:`time_boundary`).
        core: of the rows up to the boundary; 1 keeps all of them.
        val_fraction: of the n-core's users validate.
        seed: that draws them.
        val_users: names them instead.
        consecutive_duplicates: "drop" them first, as the paper says, or "keep" them, as its
            published preparation of Beauty does.

    Returns:
        The data set without content. Of ``statistics``, ``cold_seen_before`` counts cold items that
        somebody took before the boundary, in rows that n-core removed or a validation user owns:
        the paper's rule (cold items occur only in the test set) would not call them cold.

    Raises:
        DataError: if a set of the split would be empty, or an argument is out of range.
    """
    _check_fraction("quantile", quantile)
    _check_fraction("val_fraction", val_fraction)
    everything = ordered_rows(name, rows, consecutive_duplicates)
    boundary = time_boundary(everything["time"].to_numpy(), quantile)
    late = (everything["time"] > boundary).to_numpy()
    early, after = everything[~late], everything[late]
    if not len(after):
        raise DataError(
            f"{name}: no interaction is later than the boundary {boundary}; lower data.quantile="
            f"{quantile}, or give data whose times differ"
        )
    kept = n_core(early, core)
    if not len(kept):
        raise DataError(
            f"{name}: the {core}-core of the {len(early)} interactions up to the boundary is "
            "empty; lower data.n_core or give more data"
        )
    users = np.unique(id_array(kept["user"]))
    if val_users is None:
        val_users = _draw_val_users(name, users, val_fraction, seed)
    else:
        val_users = np.unique(np.asarray(val_users))
        stranger = val_users[~np.isin(val_users, users)]
        if len(stranger):
            raise DataError(
                f"{name}: validation user {stranger[0]} has no rows in the {core}-core up to the "
                "boundary; name users who have"
            )
    validates = kept["user"].isin(val_users).to_numpy()
    own = kept[kept["user"].isin(after["user"])]
    dataset = assemble(name, kept[~validates], kept[validates], pd.concat([own, after]))
    cold = dataset.item_ids[dataset.num_warm :]
    statistics = {
        "interactions": len(rows),
        "consecutive_duplicates_dropped": len(rows) - len(everything),
        "boundary": boundary,
        "rows_below_core": len(early) - len(kept),
        "users_below_core": early["user"].nunique() - len(users),
        "items_below_core": early["item"].nunique() - kept["item"].nunique(),
        "cold_seen_before": int(np.isin(cold, id_array(early["item"])).sum()),
        "cold_seen_in_validation": int(np.isin(cold, id_array(kept["item"])).sum()),
    }
    return with_statistics(dataset, statistics)


def random_cold_split(
    name: str,
    rows: pd.DataFrame,
    *,
    cold_fraction: float = 0.15,
    val_fraction: float = 0.1,
    seed: int = 42,
    max_users: int | None = None,
    consecutive_duplicates: str = "drop",
    chosen: Mapping[str, np.ndarray] | None = None,
) -> SequenceDataset:
    """Draws cold items and held-out users; for logs that have an order but no shared clock.

    Training users lose their cold items, and so do validation users; test users keep everything,
    and their last row is the answer. All other items of the log are warm.

    Args:
        name: of the data set, to begin messages with.
        rows: columns user, item, time; only the order inside a user counts.
        cold_fraction: of the items of the log are cold.
        val_fraction: of the users validate, and as many are for test.
        seed: of the draws.
        max_users: so many are drawn before; None takes all.
        consecutive_duplicates: "drop" them first, or "keep" them.
        chosen: arrays ``cold_items``, ``train_users``, ``val_users`` and ``test_users`` of
            external ids instead of the draws; they must be ids of the log.

    Raises:
        DataError: if a set of the split would be empty, or an argument is out of range.
    """
    everything = ordered_rows(name, rows, consecutive_duplicates)
    items, users = np.unique(id_array(everything["item"])), np.unique(id_array(everything["user"]))
    if chosen is None:
        _check_fraction("cold_fraction", cold_fraction)
        _check_fraction("val_fraction", val_fraction)
        generator = np.random.default_rng([seed, 1])
        cold = generator.permutation(items)[: round(cold_fraction * len(items))]
        drawn = generator.permutation(users)[:max_users]
        held_out = round(val_fraction * len(drawn))
        if not len(cold) or not held_out or 2 * held_out >= len(drawn):
            raise DataError(
                f"{name}: {len(items)} items and {len(drawn)} users leave a set of the split "
                f"empty at data.cold_fraction={cold_fraction}, data.val_fraction={val_fraction}; "
                "change the fractions or give more data"
            )
        val, test, train = np.split(drawn, [held_out, 2 * held_out])
    else:
        cold, train, val, test = (chosen[name] for name in COLD_SPLIT_ARRAYS)
    trains = everything["user"].isin(train)
    warm_rows = everything[trains & ~everything["item"].isin(cold)]
    dataset = assemble(
        name,
        warm_rows,
        everything[everything["user"].isin(val)],
        everything[everything["user"].isin(test)],
        warm=np.setdiff1d(items, cold),
        cold=np.sort(cold),
    )
    statistics = {
        "interactions": len(rows),
        "consecutive_duplicates_dropped": len(rows) - len(everything),
        "cold_rows_of_training_users": int(trains.sum()) - len(warm_rows),
    }
    return with_statistics(dataset, statistics)


def given_test_split(
    name: str,
    rows: pd.DataFrame,
    test: pd.DataFrame,
    *,
    val_fraction: float = 0.1,
    seed: int = 42,
    consecutive_duplicates: str = "drop",
) -> SequenceDataset:
    """For data published with its test sessions: divides the other users, and nothing else.

    Args:
        name: of the data set, to begin messages with.
        rows: columns user, item, time: training and validation users.
        test: the same of the test users, whose last row is the answer.
        val_fraction: of the users of ``rows`` validate; the paper's text says 0.1, its published
            preparation of Amazon-M2 takes 0.2.
        seed: that draws them.
        consecutive_duplicates: "drop" them, as the paper says; "drop_in_train" leaves those of the
            test sessions, as the published preparation does; "keep" leaves all.

    Raises:
        DataError: if a set of the split would be empty, or an argument is out of range.
    """
    _check_fraction("val_fraction", val_fraction)
    if consecutive_duplicates not in ("drop", "drop_in_train", "keep"):
        raise DataError(
            f"data.consecutive_duplicates={consecutive_duplicates!r}: must be 'drop', "
            "'drop_in_train' or 'keep'"
        )
    everything = ordered_rows(name, rows, "keep" if consecutive_duplicates == "keep" else "drop")
    sessions = in_order(drop_repeated_rows(test))
    last = (sessions["user"] != sessions["user"].shift(-1)).to_numpy()
    # An answer that repeats the last item of its history stays an answer.
    history = (
        drop_consecutive_duplicates(sessions[~last])
        if consecutive_duplicates == "drop"
        else sessions[~last]
    )
    users = np.unique(id_array(everything["user"]))
    val_users = _draw_val_users(name, users, val_fraction, seed)
    validates = everything["user"].isin(val_users).to_numpy()
    dataset = assemble(
        name, everything[~validates], everything[validates], pd.concat([history, sessions[last]])
    )
    cold = dataset.item_ids[dataset.num_warm :]
    statistics = {
        "interactions": len(rows) + len(test),
        "consecutive_duplicates_dropped": len(rows)
        - len(everything)
        + int((~last).sum())
        - len(history),
        "cold_seen_in_validation": int(np.isin(cold, id_array(everything["item"])).sum()),
    }
    return with_statistics(dataset, statistics)


def ordered_rows(name: str, rows: pd.DataFrame, consecutive_duplicates: str) -> pd.DataFrame:
    """The distinct rows sorted by user and time, consecutive duplicates dropped unless kept.

    Raises:
        DataError: if there are no rows, or ``consecutive_duplicates`` is neither "drop" nor "keep".
    """
    if consecutive_duplicates not in ("drop", "keep"):
        raise DataError(
            f"data.consecutive_duplicates={consecutive_duplicates!r}: must be 'drop' or 'keep'"
        )
    if not len(rows):
        raise DataError(f"{name}: no interactions are left; give more data or loosen the filters")
    rows = drop_repeated_rows(rows)
    return drop_consecutive_duplicates(rows) if consecutive_duplicates == "drop" else in_order(rows)


def assemble(
    name: str,
    train: pd.DataFrame,
    val: pd.DataFrame,
    test: pd.DataFrame,
    warm: np.ndarray | None = None,
    cold: np.ndarray | None = None,
) -> SequenceDataset:
    """Numbers users and items and groups the rows of a split.

    Args:
        name: of the data set.
        train: rows of training users; those with fewer than two are dropped after the items are
            numbered, since one item has no target.
        val: rows of validation users; items that are not warm are dropped, then users with fewer
            than two rows. The last row is the answer.
        test: rows of test users; the last row is the answer, and it may be the only one.
        warm: external ids of the warm items, ascending; None takes the items of ``train``.
        cold: of the cold items; None takes those of ``test`` that are not warm.

    Raises:
        DataError: if nothing is left to train, validate or test with.
    """
    warm = np.unique(id_array(train["item"])) if warm is None else warm
    if cold is None:
        cold = np.setdiff1d(id_array(test["item"]), warm)
    item_ids = np.concatenate([warm, cold])
    known = pd.Index(item_ids)
    train, val, test = in_order(train), in_order(val), in_order(test)
    allowed = val[val["item"].isin(warm)]
    trains = train[train.groupby("user")["user"].transform("size") >= 2]
    validates = allowed[allowed.groupby("user")["user"].transform("size") >= 2]
    for what, left, remedy in (
        ("training sequence of two items", trains, "give more data"),
        ("validation sequence", validates, "raise data.val_fraction or give more data"),
        ("test sequence", test, "give more data"),
    ):
        if not len(left):
            raise DataError(f"{name}: no {what} is left; {remedy}")

    train_users = np.unique(id_array(trains["user"]))
    evaluated = np.unique(np.concatenate([id_array(validates["user"]), id_array(test["user"])]))
    user_ids = np.concatenate([train_users, np.setdiff1d(evaluated, train_users)])
    seen = pd.Index(user_ids)

    def eval_sequences(rows: pd.DataFrame) -> EvalSequences:
        last = (rows["user"] != rows["user"].shift(-1)).to_numpy()
        item = known.get_indexer(rows["item"])
        number: np.ndarray = np.cumsum(last) - last
        return EvalSequences(
            user=seen.get_indexer(rows["user"][last]).astype(np.int32),
            history=Csr.from_pairs(number[~last], item[~last], int(last.sum())),
            target=item[last].astype(np.int32),
        )

    sequences = Csr.from_pairs(
        seen.get_indexer(trains["user"]), known.get_indexer(trains["item"]), len(train_users)
    )
    val_sequences, test_sequences = eval_sequences(validates), eval_sequences(test)
    statistics = {
        "training_users_with_one_item": train["user"].nunique() - len(train_users),
        "validation_rows_of_cold_items": len(val) - len(allowed),
        "validation_users_without_question": val["user"].nunique() - len(val_sequences.user),
        "warm_items_untrained": len(warm) - len(np.unique(sequences.indices)),
        "test_questions_without_history": int((test_sequences.history.counts == 0).sum()),
        "test_targets_cold": int((test_sequences.target >= len(warm)).sum()),
        "test_targets_seen_before": count_seen_targets(test_sequences),
    }
    return SequenceDataset(
        name=name,
        num_warm=len(warm),
        num_items=len(item_ids),
        train=sequences,
        val=val_sequences,
        test=test_sequences,
        content=None,
        user_ids=user_ids,
        item_ids=item_ids,
        statistics=statistics,
    )


def count_seen_targets(sequences: EvalSequences) -> int:
    """Number of sequences whose target occurs in their history: misses if those are excluded."""
    row = sequences.history.row_of_entry
    return len(np.unique(row[sequences.history.indices == sequences.target[row]]))


def windows(train: Csr, max_length: int, which: str) -> Csr:
    """Cuts sequences into training windows of at most ``max_length`` next-item targets.

    A window of k items has k - 1 targets: each item but the last is an input, each but the
    first a target.

    Args:
        train: a row per user, in the order of time.
        max_length: inputs of a window, hence items less one.
        which: "last" is the last window of each user, the published code's rule; "all" goes on to
            the front, each window ending with the first item of the next, so that every item but
            a user's first is a target exactly once.

    Returns:
        The windows, by user and then by time; rows with fewer than two items have none.

    Raises:
        DataError: if an argument is out of range.
    """
    row = window_rows(train, max_length, which)
    targets = np.maximum(train.counts - 1, 0)
    number = np.bincount(row, minlength=train.rows)
    # Counted from the end of the row: 0 is the last window.
    back = np.repeat(np.cumsum(number), number) - 1 - np.arange(len(row))
    end = targets[row] - back * max_length
    start = np.maximum(end - max_length, 0)
    counts = end - start + 1
    indptr = np.zeros(len(row) + 1, np.int64)
    np.cumsum(counts, out=indptr[1:])
    at = np.arange(indptr[-1]) + np.repeat(train.indptr[row] + start - indptr[:-1], counts)
    return Csr(indptr, train.indices[at])


def window_rows(train: Csr, max_length: int, which: str) -> np.ndarray:
    """The row of ``train`` that each of its `windows` is cut from; see there."""
    if which not in ("last", "all"):
        raise DataError(f"windows={which!r}: must be 'last' or 'all'")
    if max_length < 1:
        raise DataError(f"max_length={max_length}: must be at least 1")
    number = -(-np.maximum(train.counts - 1, 0) // max_length)
    if which == "last":
        number = np.minimum(number, 1)
    return np.repeat(np.arange(train.rows), number)


def with_statistics(dataset: SequenceDataset, statistics: Mapping[str, int]) -> SequenceDataset:
    """The data set with more statistics, which come first."""
    return replace(dataset, statistics={**statistics, **dataset.statistics})


def _draw_val_users(name: str, users: np.ndarray, val_fraction: float, seed: int) -> np.ndarray:
    # Rounded first: 0.7 * 10 must not become 6 training users by an error of the last digit.
    training = int(np.floor(round((1 - val_fraction) * len(users), 9)))
    if not 0 < training < len(users):
        raise DataError(
            f"{name}: {len(users)} users before the test leave none to train or none to validate "
            f"at data.val_fraction={val_fraction}; change it or give more data"
        )
    return np.sort(np.random.default_rng([seed, 2]).permutation(users)[training:])


def _check_fraction(field: str, value: float) -> None:
    if not 0 < value < 1:
        raise DataError(f"data.{field}={value!r}: must lie between 0 and 1")


def id_array(column: pd.Series) -> np.ndarray:
    """Ids as integers or fixed-width text, which files hold without pickles."""
    ids = column.to_numpy()
    return ids if ids.dtype.kind in "iuU" else ids.astype(str)
