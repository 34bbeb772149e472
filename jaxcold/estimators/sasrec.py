"""SASRec on data frames: fit on a log with times, recommend the next items, save, load."""

import dataclasses
import functools
import inspect
from collections.abc import Hashable, Iterable, Mapping
from typing import Any

import numpy as np
import pandas as pd

from jaxcold.data import content as vectors
from jaxcold.data.pairs.dataset import ContentFeatures
from jaxcold.data.sequences import batches as packing
from jaxcold.data.sequences import evaluation
from jaxcold.data.sequences.dataset import SequenceDataset
from jaxcold.estimators import arguments, features, frames, schema
from jaxcold.estimators.base import Recommender
from jaxcold.estimators.features import Content, Modes
from jaxcold.estimators.frames import to_distinct_index
from jaxcold.estimators.lists import CONTENT_KNN
from jaxcold.estimators.logs import SequenceLog, group
from jaxcold.estimators.training import Validation, sizes_for, train
from jaxcold.models import content_knn, sasrec
from jaxcold.models.layers import fill_state, named_shapes
from jaxcold.models.sequence_encoder import (
    encode_histories,
    encoder_arrays,
    encoder_from_arrays,
    served_shapes,
)
from jaxcold.types import Csr, DataError

_SCORES = 2**20  # of a block of users, within the bounds of _USERS
_USERS = (32, 256)


@dataclasses.dataclass(frozen=True)
class Encoder:
    """A trained SASRec without its item table, and what makes an item of content."""

    arrays: Mapping[str, np.ndarray]  # parameters by path
    options: Mapping[str, Any]  # of `jaxcold.models.sasrec.build`
    reduction: vectors.Reduction | None  # raw content to `dim` numbers; None takes it as it is

    @functools.cached_property
    def network(self) -> tuple[Any, Any]:
        """The module and its parameters."""
        return encoder_from_arrays(self.options, self.arrays)


@dataclasses.dataclass(frozen=True, eq=False, kw_only=True)
class SASRec(Recommender):
    """Recommends what a user takes next, by the order of what they took; new items included.

    Made by `SASRec.fit`, `SASRec.from_training` or `SASRec.load`. A user is a list of items, the
    latest last; one who was never seen in training is as good as another. The vectors of warm
    items are trained; a cold one is placed by its content.

    Example:
        >>> import numpy as np, pandas as pd
        >>> log = pd.DataFrame([(u, (u + t) % 6, t) for u in range(20) for t in range(4)])
        >>> log.columns = ["user", "item", "time"]
        >>> text = pd.DataFrame(np.random.default_rng(0).normal(size=(7, 3)))
        >>> small = {"dim": 2, "max_length": 4, "blocks": 1, "dropout": 0.0}
        >>> model = SASRec.fit(log, text, val_fraction=0, epochs=1, progress=False, **small)
        >>> model.cold_items.tolist()
        [6]
        >>> model.recommend({"ann": [3, 4]}, candidates="cold")[["user", "item", "rank"]]
          user  item  rank
        0  ann     6     1
        >>> model.add_items([7, 8], np.ones((2, 3))).cold_items.tolist()
        [6, 7, 8]
    """

    KIND = "sasrec"
    ORDERED = True

    @classmethod
    def fit(
        cls,
        interactions: Any,
        content: Content | None,
        *,
        items: Iterable[Hashable] | None = None,
        columns: Mapping[str | int, str] | None = None,
        item_table: sasrec.ItemTable = "delta",
        max_delta_norm: float = 0.5,
        dim: int | None = None,
        max_length: int = 64,
        epochs: int | None = None,
        batch_size: int | None = None,
        learning_rate: float = 1e-3,
        val_fraction: float | None = None,
        patience: int = 5,
        seed: int = 0,
        user: str = "user",
        item: str = "item",
        time: str = "time",
        rating: str = "rating",
        weight: str | None = None,
        min_rating: float | None = None,
        standardize: bool | str = "auto",
        progress: bool = True,
        **options: Any,
    ) -> "SASRec":
        """Trains on most users; the last items of the others choose what is served.

        Each user's rows are sorted by time, equal times in the order of the frame; an item that
        follows itself counts once, and so do equal rows. Users with one item do not train. After
        training the best epoch by NDCG@10 is kept. If content-KNN is better still on the same
        sequences, its vectors are served, and a warning says so.

        Args:
            interactions: a frame of pandas, polars or Arrow with a row per click: ids of users and
                items, whole numbers or strings, and times, numbers or dates. Other columns are
                ignored; those that look like ratings or weights are named in a warning.
            content: one table of features, see `jaxcold.SEMCo.fit`; no item may lack it. Items
                without clicks are cold: they can be recommended at once. None trains on ids alone:
                ``item_table="random"``, which ignores content.
            items: ids of the rows of an array.
            columns: see `jaxcold.SEMCo.fit`; raw columns are joined into the one table.
            item_table: "random", "content", "frozen" or "delta", see `jaxcold.models.sasrec`.
            max_delta_norm: how far "delta" may move an item from its content, whose norm is 1.
            dim: size of an embedding, to which content is reduced; unset, 64 or the number of
                features or of warm items, if that is lower.
            max_length: items that the model looks back.
            epochs: passes over the training users, at most; unset, by the number of users.
            batch_size: users of a step; unset, by the number of users.
            learning_rate: of Adam.
            val_fraction: fraction of the users that is held out, from 0 and below 1. With 0 all
                users train, the last epoch is served and nothing is compared. Unset, .1.
            patience: evaluations without a better NDCG@10 after which training ends: one an epoch.
            seed: equal seeds and data give equal models on one machine.
            user: column of the users' ids.
            item: column of the items' ids.
            time: column of the times.
            rating: column that `min_rating` reads.
            weight: column of weights of clicks as targets in the loss, from 0: no click.
            min_rating: keeps the rows whose rating is at least this; unset, all rows.
            standardize: as for `jaxcold.SEMCo.fit`; ``reduce="always"`` standardises in any case.
            progress: show a bar.
            **options: of `jaxcold.models.sasrec.build`: loss, alpha, tau, negatives, calibration,
                blocks, heads, dropout, windows, compute, reduce, layers, average.

        Raises:
            DataError: naming the column, row or id at fault.
            ValueError: for an argument out of range.
            DivergedError: if the loss is not finite.

        Source: "Let It Go? Not Quite", sections 3 and 4.1, and its code for the early stopping.
        """
        arguments.check_options("SASRec", cls.fit, (sasrec.build,), options)
        arguments.check_fit(
            counts={
                "epochs": epochs,
                "patience": patience,
                "batch_size": batch_size,
                "max_length": max_length,
                "dim": dim,
            },
            numbers={"max_delta_norm": max_delta_norm, "min_rating": min_rating},
            seed=seed,
            val_fraction=val_fraction,
            standardize=standardize,
        )
        arguments.check_learning_rate(learning_rate)
        _refuse_reference(options)
        names = frames.log_names(
            user=user, item=item, time=time, rating=rating, weight=weight, min_rating=min_rating
        )
        log, modes = SequenceLog.read(interactions, names, min_rating), Modes({}, {}, {})
        if content is None or item_table == "random":
            item_table = "random"
        else:
            ids, given, modes = features.fit(content, items, item, columns, progress, joined=True)
            if len(modes.widths) > 1:
                raise DataError("content is one table for SASRec; join its modes into one")
            log = log.with_items(ids)
            given, modes = features.standardize("SASRec", given, modes, log.is_clicked, standardize)
            log = dataclasses.replace(log, content=given)
        options = {
            "item_table": item_table,
            "max_delta_norm": max_delta_norm,
            "max_length": max_length,
            "learning_rate": learning_rate,
            **options,
        }
        return cls._train(
            log,
            modes,
            options,
            dim=dim,
            epochs=epochs,
            batch_size=batch_size,
            val_fraction=val_fraction,
            patience=patience,
            seed=seed,
            record={"log": names},
            progress=progress,
        )

    @classmethod
    def _train(
        cls,
        log: SequenceLog,
        modes: Modes,
        options: dict[str, Any],
        *,
        dim: int | None,
        epochs: int | None,
        batch_size: int | None,
        val_fraction: float | None,
        patience: int,
        seed: int,
        record: Mapping[str, Any],
        progress: bool,
        before: "SASRec | None" = None,
    ) -> "SASRec":
        dataset = log.split(val_fraction, seed)
        default = default_sizes(dataset.train.rows)
        options = {
            "dim": dim or _default_dim(dataset, **options),
            "batch_size": batch_size or default[0],
            "epochs": epochs or default[1],
            **options,
        }
        with arguments.translate_messages():
            model = sasrec.build(dataset, **options)
        validation, baselines = None, {}
        if dataset.content is not None:  # as content-KNN would serve it
            rows = vectors.unit_rows(dataset.content)
            baselines[CONTENT_KNN] = content_knn.build(dataclasses.replace(dataset, content=rows))
        if val_fraction != 0:
            validation = Validation(
                evaluation.slices(dataset)["val/total"],
                "ndcg@10",
                patience,
                baselines,
                every=1 if epochs else -(-20 // model.steps_per_epoch),
            )
        trained = train(
            "SASRec",
            model,
            seed=seed,
            progress=progress,
            remedy="a lower learning_rate",
            validation=validation,
            start=None if before is None else functools.partial(before._continued, dataset),
        )
        options = {**options, "seed": seed, **trained.record, **record}
        params = sasrec.served(trained.params, trained.model_state)
        fitted = cls.from_training(dataset, params, options)
        at = fitted.items.get_indexer(log.items)[log.rows["item"]]
        taken, at = log.rows[at >= 0], at[at >= 0]  # a table of ids lacks some
        weights = taken["weight"].to_numpy(np.float32) if "weight" in taken else None
        histories, weights = group(
            taken["user"].to_numpy(), at, len(log.users), weights, ordered=True
        )
        warm = np.bincount(histories.indices, minlength=len(fitted.items)) > 0
        fitted = dataclasses.replace(
            fitted,
            users=log.users,
            histories=histories,
            weights=weights,
            warm=warm,
            modes=modes,
            history=trained.history,
        )
        if trained.served is None:
            return fitted
        assert dataset.content is not None
        return fitted.serve(trained.served, _as_features(dataset.content))

    def partial_fit(
        self,
        interactions: Any,
        content: Content | None,
        *,
        items: Iterable[Hashable] | None = None,
        epochs: int = 1,
        learning_rate: float | None = None,
        seed: int = 0,
        progress: bool = True,
    ) -> "SASRec":
        """A recommender that trains on from this one's parameters, on old and new clicks.

        Nothing is held out; the reduction of content and all options stay. Users and items may be
        new.

        Args:
            interactions: new clicks, see `add_clicks`.
            content: of every item that the model knows or shall know; None where it has none.
            items: see `fit`.
            epochs: passes over all users.
            learning_rate: of Adam; unset, that of the fit.
            seed: see `fit`.
            progress: see `fit`.

        Raises:
            DataError, DivergedError: see `fit`.
            ValueError: for an argument out of range, or a model that serves content-KNN.
        """
        arguments.check_integer("epochs", epochs, 1)
        grown, given = self._grow(interactions, content, items)
        taken = grown.histories
        rows = pd.DataFrame({"user": taken.row_of_entry, "item": taken.indices})
        rows["time"] = np.arange(len(rows))
        if grown.weights is not None:
            rows["weight"] = grown.weights
        reduced = None if given is None else _as_features(self._embed(given))  # as it was
        changed = {"reduce": "never", "average": 0.0}  # an average would begin at fresh parameters
        options = arguments.build_options((sasrec.build,), self.options) | changed
        options |= {} if learning_rate is None else {"learning_rate": learning_rate}
        fitted = self._train(
            SequenceLog(rows, grown.users, grown.items, reduced),
            self.modes,
            options,
            dim=None,
            epochs=epochs,
            batch_size=self.options.get("batch_size"),
            val_fraction=0,
            patience=1,
            seed=seed,
            record={"log": self._log_names()},
            progress=progress,
            before=self,
        )
        encoder = dataclasses.replace(fitted.encoder, reduction=self.encoder.reduction)
        kept = {name: self.options.get(name, value) for name, value in changed.items()}
        return dataclasses.replace(fitted, encoder=encoder, options={**fitted.options, **kept})

    def _continued(self, dataset: SequenceDataset, fresh: Any) -> Any:
        """Fresh parameters of a data set, with this model's where it has them."""
        arrays = {**encoder_arrays(fresh["main"]), **self.encoder.arrays}
        warm = dataset.item_ids[: dataset.num_warm]
        at = self.items.get_indexer(pd.Index(warm))
        known = (at >= 0) & self.warm[at]
        rows = self.item[at[known]]
        if "delta" in arrays:
            assert dataset.content is not None
            rows = rows - vectors.unit_rows(dataset.content[: dataset.num_warm][known])
        for name in {"items", "delta"} & arrays.keys():
            arrays[name] = arrays[name].copy()
            arrays[name][1 : dataset.num_warm + 1][known] = rows
        return {"main": fill_state(fresh["main"], arrays)}

    @classmethod
    def from_training(
        cls, dataset: SequenceDataset, params: Any, options: Mapping[str, Any]
    ) -> "SASRec":
        """A recommender from the result of a training.

        Args:
            dataset: that the model was built on; its training sequences become the users'
                histories. With ``item_table="random"`` its cold items have no vectors, and the
                recommender does not know them.
            params: trained.
            options: keyword arguments of `jaxcold.models.sasrec.build`, where those that are
                missing have its defaults; others are kept for the record. JSON can hold them.

        Raises:
            DataError: if the data set lacks the content that the model was trained on.
            ValueError: for ``reference=True``, where lists depend on who else is asked.
        """
        known = inspect.signature(sasrec.build).parameters.values()
        defaults = [p for p in known if p.default is not p.empty and p.name != "devices"]
        options = arguments.to_json_values({p.name: p.default for p in defaults} | {**options})
        _refuse_reference(options)
        arrays = encoder_arrays(params["main"])
        rows, delta = arrays.pop("items", None), arrays.pop("delta", None)
        warm = np.arange(dataset.num_items) < dataset.num_warm
        own = slice(1, dataset.num_warm + 1)  # of a table's rows
        ids = to_distinct_index(dataset.item_ids, "item")
        reduction, modes = None, Modes({}, {}, {})
        if options["item_table"] == "random":
            assert rows is not None
            ids, warm, item = ids[warm], warm[warm], rows[own]
        else:
            item, reduction = sasrec.contents(dataset, options["dim"], options["reduce"])
            assert dataset.content is not None
            width = dataset.content.shape[1]
            modes = Modes({features.TABLE: width}, {features.TABLE: None}, {})
            if rows is not None:
                item[warm] = rows[own]
            elif delta is not None:
                item[warm] += delta[own]
        return cls(
            users=to_distinct_index(dataset.user_ids[: dataset.train.rows], "user"),
            items=ids,
            item=item,
            warm=warm,
            histories=dataset.train,
            weights=dataset.weights,
            modes=modes,
            options=options,
            encoder=Encoder(arrays, options, reduction),
        )

    def _embed(self, content: ContentFeatures) -> np.ndarray:
        (rows,) = content.tables.values()
        reduction = self.encoder.reduction
        return vectors.unit_rows(rows) if reduction is None else reduction(rows)

    def _encode_users(self, histories: Csr, weights: np.ndarray | None) -> np.ndarray:
        graphdef, params = self.encoder.network
        # With the lengths of buckets, the programs and their rounding are the same for everybody.
        length = self.options["max_length"]
        read = packing.truncate(histories, length)
        return encode_histories(graphdef, params, self.item, read, longest=length)

    def _block_users(self, pool: np.ndarray | Csr) -> int:
        count = len(self.items) if isinstance(pool, Csr) else len(pool)
        return int(np.clip(_SCORES // max(count, 1), *_USERS))

    def _encoder_arrays(self) -> dict[str, np.ndarray]:
        arrays = {f"encoder/{path}": rows for path, rows in self.encoder.arrays.items()}
        if self.encoder.reduction is not None:
            parts = self.encoder.reduction._asdict().items()
            arrays |= {f"reduction/{name}": x for name, x in parts}
        return arrays

    @classmethod
    def _expected_arrays(
        cls,
        arrays: Mapping[str, np.ndarray],
        options: Mapping[str, Any],
        widths: Mapping[str, int],
        items: int,
    ) -> schema.Schema:
        for name in ("dim", "max_length", "blocks", "heads"):
            if type(options[name]) is not int or options[name] < 1:
                raise ValueError(f"options: {name} is {options[name]!r:.20}")
        dim, width = options["dim"], sum(widths.values())
        blocks = {name.split("/")[2] for name in arrays if name.startswith("encoder/blocks/")}
        if len(blocks) != options["blocks"] or dim % options["heads"]:
            raise ValueError("options: blocks or heads do not fit the arrays")
        if arrays["items/embedding"].shape[1:] != (dim,):
            raise ValueError(f"items/embedding does not have dim={dim} columns")
        expected: schema.Schema = {
            f"encoder/{name}": (shape, "float32")
            for name, shape in named_shapes(served_shapes(options)[1]).items()
        }
        expected["items/embedding"] = (items, dim), "float32"
        if any(name.startswith("reduction/") for name in arrays):
            expected |= {
                "reduction/mean": ((width,), "float64"),
                "reduction/scale": ((width,), "float64"),
                "reduction/components": ((dim, width), "float64"),
            }
        elif widths and width != dim:
            raise ValueError(f"content of width {width} without a reduction to {dim}")
        return expected

    @classmethod
    def _read_encoder(cls, arrays: Mapping[str, np.ndarray], options: Mapping[str, Any]) -> Encoder:
        reduction = None
        if "reduction/scale" in arrays:
            if not (arrays["reduction/scale"] > 0).all():
                raise ValueError("reduction/scale is not positive")
            fields = vectors.Reduction._fields
            reduction = vectors.Reduction(*(arrays[f"reduction/{name}"] for name in fields))
        own = {
            name.removeprefix("encoder/"): rows
            for name, rows in arrays.items()
            if name.startswith("encoder/")
        }
        encoder = Encoder(own, options, reduction)
        _ = encoder.network  # options that do not fit are found here
        return encoder


def default_sizes(users: int) -> tuple[int, int]:
    """Batch size and epochs for so many training users: 900 steps or 100 epochs."""
    return sizes_for(users, batch=(users / 16, 16, 128), epochs=(100, 400))


def _as_features(table: np.ndarray) -> ContentFeatures:
    return ContentFeatures({features.TABLE: table}, {features.TABLE: np.ones(len(table), bool)})


def _refuse_reference(options: Mapping[str, Any]) -> None:
    if options.get("reference"):
        raise ValueError(
            "reference=True repeats defects of published code, by which a list depends on who "
            "else is asked; train without it to serve"
        )


def _default_dim(
    dataset: SequenceDataset, *, reduce: str = "always", heads: int = 1, **_: Any
) -> int:
    """64, or what the content allows: its features and, where it is reduced, the warm items."""
    if dataset.content is None:
        return 64
    size = dataset.content.shape[1]
    if reduce != "always":
        return size
    size = min(64, size, dataset.num_warm)
    return max(size - size % max(heads, 1), 1)
