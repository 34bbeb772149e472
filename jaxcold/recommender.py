"""The estimator face: fit on data frames, embed new items, recommend, save, load.

External ids live here and in the readers alone; the rest of the package counts from 0. Everything
is immutable: adding items gives a new recommender.
"""

import dataclasses
import io
import json
import os
import zipfile
from collections.abc import Collection, Hashable, Iterable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd

from jaxcold import artifact
from jaxcold.data import vectors
from jaxcold.data.dataset import ColdSplit, ContentFeatures, Dataset, Interactions
from jaxcold.eval.rank import top_k
from jaxcold.eval.report import Progress
from jaxcold.models import encoders, semco
from jaxcold.train.loop import DivergedError
from jaxcold.train.loop import fit as run
from jaxcold.train.optim import adam_coupled_l2, cosine
from jaxcold.train.step import init_state, make_step
from jaxcold.types import Csr, DataError, EvalSlice, Model, Representations

if TYPE_CHECKING:
    from jaxcold.sequential import SASRec

# Temperatures by gradient and alpha, for users with tens of items. Measured on citeulike-a, where
# the exact gradient was ahead with its own (README.md). Softmax has one gradient.
TAU = {
    "fenchel_young": {1.0: 0.15, 1.5: 1.25, 2.0: 5.0},
    "autodiff": {1.0: 0.15, 1.5: 2.0, 2.0: 12.0},
}

Content = Mapping[str, pd.DataFrame | np.ndarray]


@dataclasses.dataclass(frozen=True, eq=False)
class SEMCo:
    """Recommends items by their content, those without a single interaction included.

    Made by `SEMCo.fit` or `SEMCo.load`. A user is the set of items that the user took: neither
    order nor repetition counts, and a user who was never seen in training is as good as another.

    Example:
        >>> import numpy as np, pandas as pd
        >>> log = pd.DataFrame({"user": ["ann", "ann", "bob"], "item": [10, 11, 12]})
        >>> text = pd.DataFrame(np.eye(4), index=[10, 11, 12, 13])
        >>> model = SEMCo.fit(log, {"text": text}, epochs=1, hidden=4, out=2, progress=False)
        >>> model.cold_items.tolist()
        [13]
        >>> model.recommend(["bob"], k=3, candidates="cold")[["user", "item", "rank"]]
          user  item  rank
        0  bob    13     1
        >>> model.embed({"text": np.eye(4)[:1]}).shape
        (1, 2)
    """

    users: pd.Index  # [U] external ids
    items: pd.Index  # [I] external ids
    item: np.ndarray  # f32[I, out] embeddings
    warm: np.ndarray  # bool[I]: the item has interactions
    histories: Csr  # U rows of items, ascending
    widths: Mapping[str, int]  # content mode -> number of its features, in the model's order
    options: Mapping[str, Any]  # how it was trained; for the record
    encoder: encoders.Encoder

    @classmethod
    def fit(
        cls,
        interactions: pd.DataFrame,
        content: Content,
        *,
        items: Iterable[Hashable] | None = None,
        alpha: float = 2.0,
        tau: float | None = None,
        epochs: int = 15,
        batch_size: int = 2048,
        learning_rate: float = 1e-3,
        l2: float = 1e-4,
        seed: int = 0,
        progress: bool = True,
        **options: Any,
    ) -> "SEMCo":
        """Trains on every interaction; nothing is held out.

        Args:
            interactions: columns ``user`` and ``item`` with ids, whole numbers or strings; other
                columns are ignored and a repeated pair counts once.
            content: mode name to features: a frame whose index holds item ids, or an array whose
                row i belongs to ``items[i]``. An item that a frame lacks, or whose row is all
                NaN, lacks that mode. Items without interactions are cold: they can be
                recommended at once.
            items: ids of the rows of arrays.
            alpha: 1 softmax, 1.5 entmax15, 2 sparsemax, or anything between.
            tau: temperature; unset, a value that suits alpha and gradient.
            epochs: passes over the interactions.
            batch_size: interactions of a step; their items are each other's negatives.
            learning_rate: of Adam; it decays to 0 by a cosine over all steps.
            l2: coupled weight decay.
            seed: equal seeds and data give equal models on one machine.
            progress: show a bar.
            **options: of `jaxcold.models.semco.build`: gradient, hidden, out, attention_layers,
                encode, batch_norm, user_vector, stream.

        Raises:
            DataError: naming the column, mode or id at fault.
            ValueError: for an argument out of range.
            DivergedError: if the loss is not finite.
        """
        options = {"gradient": "fenchel_young", **options}
        ids, features = _content(content, items)
        dataset = _dataset(interactions, ids, features)
        if epochs < 1:
            raise ValueError(f"epochs is at least 1, not {epochs}")
        tau = _tau(alpha, options["gradient"]) if tau is None else tau
        options = {"alpha": alpha, "tau": tau, "batch_size": batch_size, **options}
        model = semco.build(dataset, **options)
        schedule = cosine(learning_rate, epochs * model.steps_per_epoch)
        optimizer = adam_coupled_l2(schedule, l2)
        state = init_state(model, optimizer, seed)
        step = make_step(model, optimizer)
        try:
            if progress:
                with Progress("SEMCo", total=epochs * model.steps_per_epoch, unit="steps") as bar:
                    state = run(
                        model,
                        step,
                        state,
                        epochs=epochs,
                        seed=seed,
                        on_step=lambda _, logs: bar.advance(1, logs["loss"]),
                    )
            else:
                state = run(model, step, state, epochs=epochs, seed=seed)
        except DivergedError as error:
            raise DivergedError(f"{error}; try a lower learning_rate or another tau") from None
        options |= {"epochs": epochs, "learning_rate": learning_rate, "l2": l2, "seed": seed}
        return cls.from_training(dataset, model, state.params, options)

    @classmethod
    def from_training(
        cls, dataset: Dataset, model: Model, params: Any, options: Mapping[str, Any]
    ) -> "SEMCo":
        """What training leaves, made servable.

        Args:
            dataset: that the model was built on; its training pairs become the users' histories.
            model: from `jaxcold.models.semco.build`.
            params: trained.
            options: how it was trained, for the record; JSON can hold it.
        """
        train, tables = dataset.split.train, dataset.content.tables
        encoder = encoders.trained(params, model.fixed.served)
        warm = np.zeros(len(dataset.item_ids), bool)
        warm[dataset.split.warm_items] = True
        order = np.lexsort((train.item, train.user))
        return cls(
            users=_ids(dataset.user_ids, "user"),
            items=_ids(dataset.item_ids, "item"),
            item=encoders.encode(encoder, list(tables.values()), _present(dataset.content)),
            warm=warm,
            histories=Csr.from_pairs(train.user[order], train.item[order], train.num_users),
            widths={mode: table.shape[1] for mode, table in tables.items()},
            options={
                name: value.item() if isinstance(value, np.generic) else value
                for name, value in options.items()
            },
            encoder=encoder,
        )

    @property
    def cold_items(self) -> pd.Index:
        """Ids of the items without interactions."""
        return self.items[~self.warm]

    def representations(self) -> Representations:
        """Vectors of all users f32[U, out] and items f32[I, out], in the order of their ids."""
        return Representations(vectors.history_means(self.histories, self.item), self.item)

    def embed(self, content: Content) -> np.ndarray:
        """Embeds items from their content: the same bits alone as in any company.

        Args:
            content: every mode of the model, as for `fit`; row i of each array is one item.

        Returns:
            f32[n, out] unit rows, in the order of the rows; of frames, in that of the ids as they
            first appear.

        Raises:
            DataError: naming the mode that is absent, unknown or of the wrong width.
        """
        return self._embed(_content(content, None, self.widths)[1])

    def add_items(self, ids: Iterable[Hashable], content: Content) -> "SEMCo":
        """A recommender that knows more items, cold ones; `self` stays as it is.

        Args:
            ids: of the new items.
            content: every mode of the model: an array with a row per id, or a frame indexed by
                these ids, in any order.

        Raises:
            DataError: for an id that is known already or content that does not fit.
        """
        new = _ids(ids, "item")
        known = new[new.isin(self.items)]
        if len(known):
            raise DataError(f"{_some('item', known)} known already; an item's content is fixed")
        found, features = _content(content, new, self.widths)
        if len(found) != len(new):
            raise DataError(f"{_some('item', found[~found.isin(new)])} in content but not in ids")
        return dataclasses.replace(
            self,
            items=_ids([*self.items, *new], "item"),
            item=np.concatenate([self.item, self._embed(features)]),
            warm=np.concatenate([self.warm, np.zeros(len(new), bool)]),
        )

    def recommend(
        self,
        users: Iterable[Hashable] | None = None,
        k: int = 10,
        *,
        histories: Mapping[Any, Iterable[Hashable]] | Sequence[Iterable[Hashable]] | None = None,
        candidates: str | Iterable[Hashable] | None = None,
        exclude_seen: bool = True,
    ) -> pd.DataFrame:
        """The best k items of each user.

        ``recommend(histories={item: [item]})`` gives the items most similar to one.

        Args:
            users: ids of users of the training log; unset, all of them, unless `histories` is
                given.
            k: items per user.
            histories: item ids by user, for anybody: name to items, or a list of lists whose
                users are then 0, 1, ...
            candidates: what may be recommended: unset, every item; "cold", those without
                interactions; or item ids.
            exclude_seen: leave out what the user took.

        Returns:
            Columns user, item, rank (from 1) and score (the cosine), users in the order asked for,
            best items first, equal scores in the order of `items`. A user for whom fewer than k
            candidates remain has fewer rows.

        Raises:
            DataError: naming ids that are unknown, or a user without history.
            ValueError: if k < 1, or if both users and histories are given.
        """
        if users is not None and histories is not None:
            raise ValueError("give users or histories, not both")
        if histories is None:
            names, taken = self._known(users)
        else:
            if not isinstance(histories, Mapping):
                histories = dict(enumerate(histories))
            names = pd.Index(list(histories), tupleize_cols=False)
            taken = self._histories(histories)
        empty = names[taken.counts == 0]
        if len(empty):
            raise DataError(
                f"{_some('user', empty)} without history: nothing says what to recommend; "
                "leave such users out, or give them items"
            )
        if candidates is None:
            pool = np.arange(len(self.items), dtype=np.int32)
        elif isinstance(candidates, str):
            if candidates != "cold":
                raise ValueError(f'candidates is "cold" or a list of item ids, not {candidates!r}')
            pool = np.flatnonzero(~self.warm).astype(np.int32)
        else:
            pool = np.unique(self._rows(candidates, "candidates"))
        nobody = Csr(np.zeros(len(names) + 1, np.int64), np.zeros(0, np.int32))
        asked = EvalSlice(
            users=np.arange(len(names), dtype=np.int32),
            positives=nobody,
            exclude=taken if exclude_seen else nobody,
            candidates=pool,
            items=pool,
        )
        user = vectors.history_means(taken, self.item)
        found = top_k(Representations(user, self.item), asked, k)
        row, column = np.nonzero(found.items >= 0)
        return pd.DataFrame(
            {
                "user": names.take(row),
                "item": self.items.take(found.items[row, column]),
                "rank": column + 1,
                "score": found.scores[row, column],
            }
        )

    def save(self, folder: str | os.PathLike) -> None:
        """Writes the recommender into a folder of its own; no pickle.

        The folder appears whole or not at all, and one that holds an older recommender holds that
        or this one at any moment, whatever interrupts the writing.

        Raises:
            DataError: if the folder holds anything else.
        """
        arrays: dict[str, Any] = {
            **encoders.encoder_arrays(self.encoder),
            "items/embedding": self.item,
            "items/warm": self.warm,
            "histories/indptr": self.histories.indptr,
            "histories/indices": self.histories.indices,
        }
        buffer = io.BytesIO()
        np.savez(buffer, **arrays)
        ids = {"users": self.users.tolist(), "items": self.items.tolist()}
        meta = {
            "model": "semco",
            "modes": [{"name": mode, "width": width} for mode, width in self.widths.items()],
            "options": dict(self.options),
        }
        files = {"arrays.npz": buffer.getvalue(), "ids.json": json.dumps(ids).encode()}
        artifact.write(folder, meta, files)

    @classmethod
    def load(cls, folder: str | os.PathLike) -> "SEMCo":
        """Reads what `save` wrote: the same bits for embeddings and recommendations.

        Raises:
            DataError: naming the file that is absent or damaged, and what to do.
        """
        meta, files = artifact.read(folder, ("arrays.npz", "ids.json"))
        if meta.get("model", "semco") != "semco":
            raise DataError(
                f"{folder}: holds a model of kind {meta.get('model')!r}, not 'semco'; read it with "
                "jaxcold.load"
            )
        try:
            with np.load(io.BytesIO(files["arrays.npz"]), allow_pickle=False) as archive:
                arrays = dict(archive)
            ids = json.loads(files["ids.json"])
            return cls(
                users=_ids(ids["users"], "user"),
                items=_ids(ids["items"], "item"),
                item=arrays["items/embedding"],
                warm=arrays["items/warm"],
                histories=Csr(arrays["histories/indptr"], arrays["histories/indices"]),
                widths={mode["name"]: mode["width"] for mode in meta["modes"]},
                options=meta["options"],
                encoder=encoders.encoder_from_arrays(arrays),
            )
        except (KeyError, TypeError, ValueError, zipfile.BadZipFile) as error:
            raise DataError(
                f"{folder}: does not hold a whole recommender ({' '.join(str(error).split())}); "
                "save it again"
            ) from None

    def _embed(self, features: ContentFeatures) -> np.ndarray:
        return encoders.encode(self.encoder, list(features.tables.values()), _present(features))

    def _known(self, users: Iterable[Hashable] | None) -> tuple[pd.Index, Csr]:
        """Users of the training log and their histories."""
        if users is None:
            return self.users, self.histories
        names = _listed(users, "users")
        rows = self.users.get_indexer(names)
        if (rows < 0).any():
            raise DataError(
                f"{_some('user', names[rows < 0])} not in the training log; give the items they "
                "took as histories={user: [items]}"
            )
        return names, self.histories.take(rows)

    def _histories(self, histories: Mapping[Any, Iterable[Hashable]]) -> Csr:
        """Item ids by user to rows of ascending, distinct item numbers."""
        lists = [_listed(taken, f"histories[{name!r}]") for name, taken in histories.items()]
        counts = [len(taken) for taken in lists]
        ids = [item for taken in lists for item in taken]
        item = self._rows(ids, "histories")
        row = np.repeat(np.arange(len(lists)), counts)
        pairs = np.unique(np.stack([row, item], axis=1), axis=0)
        return Csr.from_pairs(pairs[:, 0], pairs[:, 1], len(lists))

    def _rows(self, ids: Iterable[Hashable], where: str) -> np.ndarray:
        """i32[n]: the numbers of items."""
        asked = _listed(ids, where)
        rows = self.items.get_indexer(asked)
        if (rows < 0).any():
            raise DataError(
                f"{where}: {_some('item', asked[rows < 0])} unknown; add them with add_items, or "
                "leave them out"
            )
        return rows.astype(np.int32)


def load(folder: str | os.PathLike) -> "SEMCo | SASRec":
    """Reads a saved recommender, whichever it is; see `SEMCo.load` and `SASRec.load`."""
    from jaxcold.sequential import MODEL, SASRec  # which imports this module

    meta, _ = artifact.read(folder, ())
    return SASRec.load(folder) if meta.get("model") == MODEL else SEMCo.load(folder)


def _present(features: ContentFeatures) -> list[np.ndarray]:
    return [features.present[mode] for mode in features.tables]


def _some(what: str, ids: Collection) -> str:
    """What to call a few of many: "item 3, 5, 7 and 12 more are"."""
    shown = ", ".join(map(repr, list(ids)[:3]))
    more = f" and {len(ids) - 3} more" if len(ids) > 3 else ""
    return f"{what} {shown}{more} {'is' if len(ids) == 1 else 'are'}"


def _listed(ids: Iterable[Hashable], where: str) -> pd.Index:
    if isinstance(ids, str | bytes) or not isinstance(ids, Iterable):
        raise DataError(f"{where}: is a list of ids, not {ids!r}")
    return pd.Index(list(ids), tupleize_cols=False)


def _ids(values: Iterable[Hashable], what: str) -> pd.Index:
    """Distinct ids, all whole numbers or all strings, of one dtype whatever they came in.

    Other ids, such as the floats that a table with gaps turns whole numbers into, are refused
    before any training and not when the model is saved.
    """
    index = _listed(values, f"{what} ids")
    kind = pd.api.types.infer_dtype(index, skipna=False)
    if kind not in ("integer", "string"):
        raise DataError(
            f"{what} ids are {kind}; make all of them whole numbers or all of them strings, "
            "for example by astype(str)"
        )
    if index.has_duplicates:
        raise DataError(f"{_some(what, index[index.duplicated()].unique())} given twice; keep one")
    return pd.Index(index.tolist())


def _tau(alpha: float, gradient: str) -> float:
    values = TAU.get(gradient, {})
    if values and alpha not in values:
        known = ", ".join(f"{a:g}" for a in values)
        raise ValueError(f"tau has defaults for alpha {known}; pass tau for alpha={alpha:g}")
    return values.get(alpha, 1.0)  # of an unknown gradient: the model names the known ones


def _content(
    content: Content, items: Iterable[Hashable] | None, widths: Mapping[str, int] | None = None
) -> tuple[pd.Index, ContentFeatures]:
    """Frames and arrays to tables with a row per item.

    Args:
        content: as for `SEMCo.fit`.
        items: ids of the rows of arrays; unset, where the model is known, they are numbered.
        widths: of the modes that a trained model takes.

    Returns:
        The ids, in the order of `items`, then as they first appear, and their features.
    """
    if not isinstance(content, Mapping) or not content:
        raise DataError('content is a dictionary of modes, such as {"text": frame}')
    if widths is not None:
        for mode in content:
            if mode not in widths:
                raise DataError(f"content mode {mode!r} is unknown; known: {', '.join(widths)}")
        for mode in widths:
            if mode not in content:
                raise DataError(
                    f"content mode {mode!r} is absent; give it rows of NaN for items without it"
                )
        content = {mode: content[mode] for mode in widths}
    named = None if items is None else _ids(items, "item")
    parts: dict[str, tuple[pd.Index, np.ndarray]] = {}
    for mode, given in content.items():
        index = named
        if isinstance(given, pd.DataFrame):
            index = _ids(given.index, f"content[{mode!r}] item")
        table = _table(mode, given)
        if index is None:
            if widths is None:
                raise DataError(f"content[{mode!r}] is an array; say whose rows it holds by items=")
            index = named = pd.RangeIndex(len(table))
        if len(index) != len(table):
            raise DataError(
                f"content[{mode!r}] has {len(table)} rows for {len(index)} items; give one per item"
            )
        if widths is not None and table.shape[1] != widths[mode]:
            raise DataError(
                f"content[{mode!r}] has {table.shape[1]} columns; the model was trained on "
                f"{widths[mode]}"
            )
        parts[mode] = index, table
    ids = pd.Index([]) if named is None else named
    for index, _ in parts.values():
        ids = index if not len(ids) else ids.append(index[~index.isin(ids)])
    ids = _ids(ids, "item")
    tables, present = {}, {}
    for mode, (index, table) in parts.items():
        finite = np.isfinite(table)
        there = ~np.isnan(table).all(axis=1)
        broken = there & ~finite.all(axis=1)
        if broken.any():
            row = int(np.argmax(broken))
            raise DataError(
                f"content[{mode!r}]: {_some('item', index[broken])} not finite "
                f"({table[row][~finite[row]][0]} in column {int(np.argmin(finite[row]))}); write "
                "numbers, or NaN in the whole row of an item that lacks the mode"
            )
        if not index.equals(ids):
            rows = index.get_indexer(ids)
            table, there = table[rows], there[rows] & (rows >= 0)
        tables[mode], present[mode] = table, there
    nothing = ~np.any(list(present.values()), axis=0)
    if nothing.any():
        raise DataError(
            f"{_some('item', ids[nothing])} without content in any mode; give content or remove"
        )
    return ids, ContentFeatures(tables, present)


def _table(mode: str, given: pd.DataFrame | np.ndarray) -> np.ndarray:
    """[n, D] floats of one mode."""
    if isinstance(given, pd.DataFrame):
        for column, dtype in given.dtypes.items():
            if not pd.api.types.is_numeric_dtype(dtype):
                raise DataError(
                    f"content[{mode!r}]: column {column!r} holds {dtype}; keep numbers alone"
                )
        table = given.to_numpy(np.float32, na_value=np.nan)
    else:
        table = np.asanyarray(given)  # one that is mapped from a file stays there
    if table.dtype.kind in "iub":
        table = table.astype(np.float32)
    if table.dtype.kind != "f" or table.dtype.itemsize > 8 or table.ndim != 2 or not table.size:
        raise DataError(
            f"content[{mode!r}] is {table.dtype}{list(table.shape)}, not numbers [items, features]"
        )
    return table


def _dataset(interactions: pd.DataFrame, items: pd.Index, content: ContentFeatures) -> Dataset:
    """The log as a data set whose pairs are all for training; its ids count from 0."""
    if not isinstance(interactions, pd.DataFrame) or not {"user", "item"} <= {
        *interactions.columns
    }:
        raise DataError('interactions is a data frame with columns "user" and "item"')
    if not len(interactions):
        raise DataError("interactions has no rows; give one per click")
    codes, found = {}, {}
    for field in ("user", "item"):
        code, distinct = pd.factorize(interactions[field])
        if (code < 0).any():
            raise DataError(
                f"interactions: row {int(np.argmax(code < 0))} (counted from 0) has no {field}; "
                "drop it"
            )
        codes[field], found[field] = code, _ids(distinct, field)
    rows = items.get_indexer(found["item"])
    if (rows < 0).any():
        shown = ", ".join(map(repr, items[:3].tolist()))
        raise DataError(
            f"interactions: {_some('item', found['item'][rows < 0])} without content (content "
            f"holds {shown}, ...); give content for it, or drop its interactions"
        )
    pairs = np.unique(np.stack([codes["user"], rows[codes["item"]]], axis=1), axis=0)
    pairs = pairs.astype(np.int32)
    users, count = found["user"], len(items)
    train = Interactions(
        np.ascontiguousarray(pairs[:, 0]), np.ascontiguousarray(pairs[:, 1]), len(users), count
    )
    warm = np.unique(train.item)
    none = np.zeros((0, 2), np.int32)
    split = ColdSplit(
        train=train,
        warm_items=warm,
        cold_val_items=np.zeros(0, np.int32),
        cold_test_items=np.setdiff1d(np.arange(count, dtype=np.int32), warm),
        pairs={
            "warm_train": pairs,
            **dict.fromkeys(("warm_val", "warm_test", "cold_val", "cold_test"), none),
        },
    )
    return Dataset("log", train, split, content, users.to_numpy(), items.to_numpy())
