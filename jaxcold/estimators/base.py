"""What every recommender on data frames does, whatever its method.

A method subclasses `Recommender` and says how content becomes the vector of an item (`_embed`), how
a history becomes that of a user (`_encode_users`; by default the mean of the items), and which
arrays it is saved as (`_encoder_arrays`, `_expected_arrays`, `_read_encoder`).
"""

import dataclasses
import os
from collections.abc import Hashable, Iterable, Mapping
from typing import Any, Self

import numpy as np
import pandas as pd

from jaxcold.data import content as vectors
from jaxcold.data.pairs.dataset import ContentFeatures
from jaxcold.estimators import columns, features, frames, schema
from jaxcold.estimators.features import Content, Modes
from jaxcold.estimators.frames import format_ids, to_distinct_index, to_index
from jaxcold.estimators.lists import CONTENT_KNN, Lists
from jaxcold.estimators.logs import group
from jaxcold.types import Csr, DataError


@dataclasses.dataclass(frozen=True, eq=False, kw_only=True)
class Recommender(Lists):
    """A catalogue that grows and shrinks, users that click on, and a folder to keep them in."""

    def add_items(self, ids: Iterable[Hashable], content: Content) -> Self:
        """A recommender that knows more items, cold ones; `self` stays as it is.

        Args:
            ids: of the new items.
            content: every mode of the model: an array with a row per id, or a frame with these ids
                in its index, or in the column that had them in `fit`, in any order.

        Raises:
            DataError: for an id that is known already or content that does not fit.
            ValueError: if the model was trained without content.
        """
        ids = to_index(ids, "ids")
        if not len(ids):
            return self
        new = frames.check_new_items(self.items, ids)
        return dataclasses.replace(
            self,
            items=to_distinct_index([*self.items, *new], "item"),
            item=np.concatenate([self.item, self._embed_named(new, content)]),
            warm=np.concatenate([self.warm, np.zeros(len(new), bool)]),
        )

    def update_items(self, ids: Iterable[Hashable], content: Content) -> Self:
        """A recommender in which known items have new content; they stay warm or cold.

        An item takes the vector of its new content, as a cold item has it.

        Args:
            ids: of known items.
            content: see `add_items`.

        Raises:
            DataError: for an id that is not known or content that does not fit.
            ValueError: if the model was trained without content.
        """
        rows = frames.lookup_rows(self.items, ids, "ids")
        if not len(rows):
            return self
        item = self.item.copy()
        item[rows] = self._embed_named(to_distinct_index(ids, "item"), content)
        return dataclasses.replace(self, item=item)

    def remove_items(self, ids: Iterable[Hashable]) -> Self:
        """A recommender without these items; histories lose them too.

        Raises:
            DataError: for an id that is not known, or if no item would be left.
        """
        kept = np.ones(len(self.items), bool)
        kept[frames.lookup_rows(self.items, ids, "ids")] = False
        if not kept.any():
            raise DataError("ids: all items are named; a recommender needs one")
        entry = kept[self.histories.indices]
        new_row = np.cumsum(kept) - 1
        return dataclasses.replace(
            self,
            items=self.items[kept],
            item=self.item[kept],
            warm=self.warm[kept],
            histories=Csr.from_pairs(
                self.histories.row_of_entry[entry],
                new_row[self.histories.indices[entry]],
                len(self.users),
            ),
            weights=None if self.weights is None else self.weights[entry],
        )

    def add_clicks(self, interactions: Any) -> Self:
        """A recommender whose users took more items; nothing is trained.

        Users may be new. Items that had no clicks are warm then.

        Args:
            interactions: a log with the columns of that of `fit`; of a sequential model its rows
                come after those that are known.

        Raises:
            DataError: naming the column, row or id at fault; for an item that is not known.
        """
        log = self._read_log(interactions)
        item = frames.lookup_rows(self.items, log["item"], "interactions")
        asked = to_distinct_index(log["user"].unique(), "user")
        new = asked[~asked.isin(self.users)]
        users = to_distinct_index([*self.users, *new], "user")
        row = np.concatenate(
            [self.histories.row_of_entry, users.get_indexer(pd.Index(log["user"]))]
        )
        weights = None
        if self.weights is not None:
            weights = np.concatenate([self.weights, log["weight"].to_numpy(np.float32)])
        histories, weights = group(
            row,
            np.concatenate([self.histories.indices, item]),
            len(users),
            weights,
            ordered=self.ORDERED,
        )
        warm = self.warm.copy()
        warm[item] = True
        return dataclasses.replace(
            self, users=users, histories=histories, weights=weights, warm=warm
        )

    def _grow(
        self, interactions: Any, content: Content | None, items: Iterable[Hashable] | None
    ) -> tuple[Self, ContentFeatures | None]:
        """With more clicks, and the content of all items in the order of `items`.

        The vectors of items that are new are still zero.

        Raises:
            DataError: for an item without content, or whatever `add_clicks` refuses.
            ValueError: if the model serves the vectors of a baseline.
        """
        if self.encoder is None:
            raise ValueError(
                f"the model serves the vectors of {self.served}, which training does not change; "
                "fit a new one"
            )
        names = self._log_names()
        if self.modes.widths:
            ids, given, _ = features.to_features(content, items, self.modes, names["item"])
        else:
            log = frames.read_log(interactions, {"item": names["item"]})
            ids, given = self.items.append(pd.Index(log["item"].unique())).unique(), None
        absent = self.items[~self.items.isin(ids)]
        if len(absent):
            raise DataError(
                f"content: {format_ids('item', absent)} absent; give the content of every item "
                "that the model knows, or remove_items first"
            )
        new = ids[~ids.isin(self.items)]
        zeros = np.zeros((len(new), self.item.shape[1]), np.float32)
        grown = dataclasses.replace(
            self,
            items=to_distinct_index([*self.items, *new], "item"),
            item=np.concatenate([self.item, zeros]),
            warm=np.concatenate([self.warm, np.zeros(len(new), bool)]),
        ).add_clicks(interactions)
        if given is not None:
            at = ids.get_indexer(grown.items)
            given = ContentFeatures(
                {mode: table[at] for mode, table in given.tables.items()},
                {mode: there[at] for mode, there in given.present.items()},
            )
        return grown, given

    def save(self, folder: str | os.PathLike) -> None:
        """Writes the recommender into a folder of its own; no pickle.

        The folder appears whole or not at all, and one that holds an older recommender holds that
        or this one at any moment, whatever interrupts the writing.

        Raises:
            DataError: if the folder holds anything else.
        """
        arrays: dict[str, Any] = {
            "items/embedding": self.item,
            "items/warm": self.warm,
            "histories/indptr": self.histories.indptr,
            "histories/indices": self.histories.indices,
        }
        if self.weights is not None:
            arrays["histories/weights"] = self.weights
        for m, mode in enumerate(self.modes.widths):
            if mode in self.modes.scalings:
                mean, factor = self.modes.scalings[mode]
                arrays |= {f"scaling/{m}/mean": mean, f"scaling/{m}/factor": factor}
        if self.served == self.KIND:
            arrays |= self._encoder_arrays()
        raw, raw_arrays = columns.to_saved(self.modes.raw)
        arrays |= raw_arrays
        meta = {
            "modes": [
                {"name": mode, "width": width, "columns": self.modes.columns[mode]}
                for mode, width in self.modes.widths.items()
            ],
            "raw": raw,
            "options": dict(self.options),
            "history": self.history.to_dict("records"),
        }
        schema.write_model(
            folder, self.KIND, meta, arrays, {"users": self.users, "items": self.items}
        )

    @classmethod
    def load(cls, folder: str | os.PathLike) -> Self:
        """Reads what `save` wrote: the same bits for embeddings and recommendations.

        Raises:
            DataError: naming the file that is absent or damaged, and what to do.
        """
        with schema.read_model(folder, cls.KIND, ("users", "items")) as saved:
            arrays, users, items = saved.arrays, saved.ids["users"], saved.ids["items"]
            options = saved.meta["options"]
            widths, names = schema.check_modes(saved.meta["modes"])
            served = options.get("served", cls.KIND)
            expected: schema.Schema = {
                "items/warm": ((len(items),), "bool"),
                "histories/indptr": ((len(users) + 1,), "int64"),
                "histories/indices": ((None,), "int32"),
            }
            if "histories/weights" in arrays:
                expected["histories/weights"] = arrays["histories/indices"].shape, "float32"
            for m, width in enumerate(widths.values()):
                for part in ("mean", "factor") if f"scaling/{m}/mean" in arrays else ():
                    expected[f"scaling/{m}/{part}"] = (width,), "float64"
            raw, raw_expected = columns.from_saved(saved.meta.get("raw", []), arrays, widths)
            expected |= raw_expected
            if served == cls.KIND:
                expected |= cls._expected_arrays(arrays, options, widths, len(items))
            elif served == CONTENT_KNN and widths:
                expected["items/embedding"] = (len(items), sum(widths.values())), "float32"
            else:
                raise ValueError(f"options: served is {served!r:.20}")
            schema.check_arrays(arrays, expected)
            histories = Csr(arrays["histories/indptr"], arrays["histories/indices"])
            schema.check_rows("histories", histories, len(items), ascending=not cls.ORDERED)
            weights = arrays.get("histories/weights")
            if weights is not None and not (weights > 0).all():
                raise ValueError("histories/weights are not above 0")
            scalings = {
                mode: vectors.Scaling(arrays[f"scaling/{m}/mean"], arrays[f"scaling/{m}/factor"])
                for m, mode in enumerate(widths)
                if f"scaling/{m}/mean" in arrays
            }
            encoder = cls._read_encoder(arrays, options) if served == cls.KIND else None
            return cls(
                users=users,
                items=items,
                item=arrays["items/embedding"],
                warm=arrays["items/warm"],
                histories=histories,
                weights=weights,
                modes=Modes(widths, names, scalings, raw),
                options=options,
                history=pd.DataFrame(schema.check_history(saved.meta["history"])),
                encoder=encoder,
            )

    def _encoder_arrays(self) -> dict[str, np.ndarray]:
        """The encoder as arrays by name."""
        raise NotImplementedError

    @classmethod
    def _expected_arrays(
        cls,
        arrays: Mapping[str, np.ndarray],
        options: Mapping[str, Any],
        widths: Mapping[str, int],
        items: int,
    ) -> schema.Schema:
        """Names, shapes and dtypes of `_encoder_arrays` and of "items/embedding"."""
        raise NotImplementedError

    @classmethod
    def _read_encoder(cls, arrays: Mapping[str, np.ndarray], options: Mapping[str, Any]) -> Any:
        """The encoder of arrays that were checked."""
        raise NotImplementedError

    def _embed_named(self, ids: pd.Index, content: Content) -> np.ndarray:
        """Vectors of content that must be that of these ids."""
        names, rows = self._embed_content(content, ids)
        if len(names) != len(ids):
            others = names[~names.isin(ids)]
            raise DataError(f"{format_ids('item', others)} in content but not in ids")
        return rows

    def _read_log(self, interactions: Any) -> pd.DataFrame:
        """A log as `fit` takes it, in the order of time if the model has one."""
        names = self._log_names()
        fields = ["user", "item", *(["time"] if self.ORDERED else [])]
        fields += ["weight"] if self.weights is not None else []
        log = frames.read_log(interactions, {field: names[field] for field in fields})
        for field in ("user", "item"):
            frames.encode_column(log[field], names[field])
        if self.ORDERED:
            order = frames.encode_column(log["time"], names["time"], ordered=True)[0]
            log = log.iloc[np.argsort(order, kind="stable")]
        return log
