"""SEMCo on data frames: fit, embed new items, recommend, save, load."""

import dataclasses
from collections.abc import Callable, Hashable, Iterable, Mapping
from typing import Any, ClassVar, Self

import numpy as np

from jaxcold import parallel
from jaxcold.data.pairs.dataset import ContentFeatures, Dataset
from jaxcold.data.pairs.evaluation import slices
from jaxcold.estimators import arguments, features, frames, schema
from jaxcold.estimators.base import Recommender
from jaxcold.estimators.features import Content, Modes
from jaxcold.estimators.frames import to_distinct_index
from jaxcold.estimators.lists import CONTENT_KNN
from jaxcold.estimators.logs import PairLog, group
from jaxcold.estimators.training import Validation, sizes_for, train
from jaxcold.models import closed_form, content_knn, encoders, semco
from jaxcold.models.layers import fill_state, named_arrays
from jaxcold.types import Model

# Temperatures by gradient and alpha, for users with tens of items. Measured on citeulike-a, where
# the exact gradient was ahead with its own (experiments/RESULTS.md). Softmax has one gradient.
TAU = {
    "fenchel_young": {1.0: 0.15, 1.5: 1.25, 2.0: 5.0},
    "autodiff": {1.0: 0.15, 1.5: 2.0, 2.0: 12.0},
}


def default_sizes(clicks: int) -> tuple[int, int]:
    """Batch size and epochs for a log of so many clicks: 900 steps or 10 epochs."""
    return sizes_for(clicks, batch=(clicks / 64, 64, 2048), epochs=(10, 200))


@dataclasses.dataclass(frozen=True, eq=False, kw_only=True)
class SEMCo(Recommender):
    """Recommends items by their content, those without a single click included.

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

    KIND = "semco"
    # The function that builds the model, and those that it passes options on to.
    BUILDS: ClassVar[tuple[Callable[..., Any], ...]] = (semco.build,)

    @classmethod
    def fit(
        cls,
        interactions: Any,
        content: Content,
        *,
        items: Iterable[Hashable] | None = None,
        columns: Mapping[str | int, str] | None = None,
        alpha: float = 2.0,
        tau: float | None = None,
        epochs: int | None = None,
        batch_size: int | None = None,
        learning_rate: float = 1e-3,
        l2: float = 1e-4,
        val_fraction: float | None = None,
        patience: int = 3,
        seed: int = 0,
        user: str = "user",
        item: str = "item",
        rating: str = "rating",
        weight: str | None = None,
        min_rating: float | None = None,
        standardize: bool | str = "auto",
        progress: bool = True,
        **options: Any,
    ) -> Self:
        """Trains on the clicks of most items; those of the others choose what is served.

        The items that are held out are embedded by their content like all others, and their clicks
        stay in the users' histories. After training the best epoch by NDCG@20 on them is kept. If
        content-KNN is better still, its vectors are served, and a warning says so; another warning
        names `jaxcold.Linear` where that is better than what is served.

        Args:
            interactions: a frame of pandas, polars or Arrow with a row per click: ids of users and
                items, whole numbers or strings. Other columns are ignored and a repeated pair
                counts once. Columns that look like ratings or weights are named in a warning.
            content: features by mode, or one table of them: a frame with item ids in the column
                `item` or else in its index, or an array or a sparse matrix whose row i belongs to
                ``items[i]``. Later frames may have the columns of a frame in another order; those
                of arrays go by position. An item that a frame lacks, or whose row is all NaN, lacks
                that mode. Items without clicks are cold: they can be recommended at once. A frame
                may also hold raw columns, such as titles: text, categories and numbers become modes
                of their own, learnt from all its rows and saved with the model. What each column
                became is said, and `columns` decides otherwise.
            items: ids of the rows of arrays.
            columns: raw column -> "text" (TF-IDF and SVD), "category" (a feature per value; "a|b"
                holds two), "number" (standardised) or "ignore". Unset ones go by their values. It
                makes a frame of numbers alone one of raw columns.
            alpha: 1 softmax, 1.5 entmax15, 2 sparsemax, or anything between.
            tau: temperature; unset, a value that suits alpha and gradient.
            epochs: passes over the clicks, at most; unset, by the number of clicks.
            batch_size: clicks of a step; their items are each other's negatives. Unset, by the
                number of clicks.
            learning_rate: of Adam; it decays to 0 by a cosine over all steps.
            l2: coupled weight decay.
            val_fraction: fraction of the items with clicks that is held out, from 0 and below 1.
                With 0 all clicks train, the last epoch is served and nothing is compared. Unset,
                .1, or 0 where that would be fewer than 5 items.
            patience: evaluations without a better NDCG@20 after which training ends.
            seed: equal seeds and data give equal models on one machine.
            user: column of the users' ids.
            item: column of the items' ids.
            rating: column that `min_rating` reads.
            weight: column of weights of the clicks, from 0: they weigh the loss and the items in
                the mean of a user. A repeated pair has its largest weight; a click of weight 0 is
                none.
            min_rating: keeps the rows whose rating is at least this; unset, all rows.
            standardize: "auto" standardises the modes whose columns differ in scale by orders of
                magnitude, and says so in a warning; True all modes; False none. Items with clicks
                decide; new items are treated alike.
            progress: show a bar, and what each raw column became.
            **options: of `jaxcold.models.semco.build`: gradient, hidden, out, attention_layers,
                encode, batch_norm, user_vector, stream, compute.

        Raises:
            DataError: naming the column, mode or id at fault.
            ValueError: for an argument out of range.
            DivergedError: if the loss is not finite.
        """
        arguments.check_options(cls.__name__, cls.fit, cls.BUILDS, options)
        arguments.check_fit(
            counts={"epochs": epochs, "batch_size": batch_size, "patience": patience},
            numbers={"alpha": alpha, "l2": l2, "tau": tau, "min_rating": min_rating},
            seed=seed,
            val_fraction=val_fraction,
            standardize=standardize,
        )
        arguments.check_learning_rate(learning_rate)
        if l2 < 0:
            raise ValueError(f"l2 is a number from 0, not {l2}")
        names = frames.log_names(
            user=user, item=item, rating=rating, weight=weight, min_rating=min_rating
        )
        options = {"gradient": "fenchel_young", **options}
        ids, given, modes = features.fit(content, items, item, columns, progress)
        log = PairLog.read(interactions, names, ids, min_rating)
        given, modes = features.standardize(cls.__name__, given, modes, log.is_clicked, standardize)
        options = {
            "alpha": alpha,
            "tau": _default_tau(alpha, options["gradient"]) if tau is None else tau,
            "learning_rate": learning_rate,
            "l2": l2,
            **options,
        }
        return cls._train(
            log,
            given,
            modes,
            options,
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
        log: PairLog,
        given: ContentFeatures,
        modes: Modes,
        options: dict[str, Any],
        *,
        epochs: int | None,
        batch_size: int | None,
        val_fraction: float | None,
        patience: int,
        seed: int,
        record: Mapping[str, Any],
        progress: bool,
        start: Callable[[Any], Any] | None = None,
    ) -> Self:
        dataset = log.split(given, val_fraction, seed)
        default = default_sizes(len(dataset.split.train.user))
        options |= {"batch_size": batch_size or default[0], "epochs": epochs or default[1]}
        with arguments.translate_messages():
            model = cls.BUILDS[0](dataset, **options)
        validation = None
        if len(dataset.split.cold_val_items):
            validation = Validation(
                slices(dataset.split)["val/cold_own"],
                "ndcg@20",
                patience,
                {CONTENT_KNN: content_knn.build(dataset)},
                every=max(options["epochs"] // 25, 1),
                rivals=_rivals(dataset),
            )
        trained = train(
            cls.__name__,
            model,
            seed=seed,
            progress=progress,
            remedy="a lower learning_rate or another tau",
            validation=validation,
            start=start,
        )
        options = {**options, "seed": seed, **trained.record, **record}
        fitted = cls.from_training(dataset, model, trained.params, trained.model_state, options)
        histories, weights = group(log.user, log.item, len(log.users), log.weight)
        fitted = dataclasses.replace(
            fitted,
            modes=modes,
            histories=histories,
            weights=weights,
            warm=log.is_clicked,
            history=trained.history,
        )
        if trained.served is not None:
            return fitted.serve(trained.served, given)
        return fitted if validation is None else fitted._completed(log, given)

    def _completed(self, log: PairLog, given: ContentFeatures) -> Self:
        """With what takes no training made from the clicks of the held-out items as well."""
        del log, given
        return self

    @classmethod
    def from_training(
        cls,
        dataset: Dataset,
        model: Model,
        params: Any,
        model_state: Any,
        options: Mapping[str, Any],
    ) -> Self:
        """A recommender from the result of a training.

        Args:
            dataset: that the model was built on; its training pairs become the users' histories.
            model: from `jaxcold.models.semco.build` or `jaxcold.models.distillation.build`.
            params: trained.
            model_state: of the training.
            options: how it was trained, for the record; JSON can hold it.
        """
        pairs, tables = dataset.split.train, dataset.content.tables
        served = parallel.fetch(model.constants.served)
        warm = np.zeros(len(dataset.item_ids), bool)
        warm[dataset.split.warm_items] = True
        histories, weights = group(pairs.user, pairs.item, pairs.num_users, pairs.weight)
        return cls(
            users=to_distinct_index(dataset.user_ids, "user"),
            items=to_distinct_index(dataset.item_ids, "item"),
            item=model.encode_items(params, model_state),
            warm=warm,
            histories=histories,
            weights=weights,
            modes=Modes(
                {mode: table.shape[1] for mode, table in tables.items()},
                dict.fromkeys(tables),
                {},
            ),
            options=arguments.to_json_values(options),
            encoder=encoders.trained(encoders.joined(params), served),
        )

    def partial_fit(
        self,
        interactions: Any,
        content: Content,
        *,
        items: Iterable[Hashable] | None = None,
        epochs: int = 1,
        learning_rate: float | None = None,
        seed: int = 0,
        progress: bool = True,
    ) -> Self:
        """A recommender that trains on from this one's parameters, on old and new clicks.

        Nothing is held out; scales of features and all options stay. Users and items may be new.

        Args:
            interactions: new clicks, see `add_clicks`.
            content: of every item that the model knows or shall know: all are embedded anew.
            items: ids of the rows of arrays.
            epochs: passes over all clicks.
            learning_rate: of Adam; unset, that of the fit.
            seed: of the order of the clicks.
            progress: show a bar.

        Raises:
            DataError: naming the column, mode or id at fault.
            ValueError: for an argument out of range, or a model that cannot be trained on: one
                that is distilled or serves content-KNN.
            DivergedError: if the loss is not finite.
        """
        arguments.check_integer("epochs", epochs, 1)
        grown, given = self._grow(interactions, content, items)
        assert given is not None
        if "student/second/kernel" in self._encoder_arrays():
            raise ValueError("a distilled model cannot be trained on; fit a new one")
        rate = {} if learning_rate is None else {"learning_rate": learning_rate}
        params = self.encoder.params
        log = PairLog(
            grown.histories.row_of_entry,
            grown.histories.indices,
            grown.weights,
            grown.users,
            grown.items,
        )
        return self._train(
            log,
            given,
            self.modes,
            arguments.build_options(self.BUILDS, self.options) | rate,
            epochs=epochs,
            batch_size=self.options.get("batch_size"),
            val_fraction=0,
            patience=1,
            seed=seed,
            record={"log": self._log_names()},
            progress=progress,
            start=lambda fresh: {"main": fill_state(fresh["main"], named_arrays(params))},
        )

    def _embed(self, content: ContentFeatures) -> np.ndarray:
        present = [content.present[mode] for mode in content.tables]
        return encoders.encode(self.encoder, list(content.tables.values()), present)

    def _encoder_arrays(self) -> dict[str, np.ndarray]:
        return encoders.encoder_arrays(self.encoder)

    @classmethod
    def _expected_arrays(
        cls,
        arrays: Mapping[str, np.ndarray],
        options: Mapping[str, Any],
        widths: Mapping[str, int],
        items: int,
    ) -> schema.Schema:
        shape = encoders.Shape.of(widths.values(), arrays)
        expected: schema.Schema = {
            name: (size, "float32") for name, size in shape.parameters().items()
        }
        for m, width in enumerate(widths.values()):
            expected[f"first/{m}/kernel"] = (width, shape.hidden), "float32"
            expected[f"first/{m}/bias"] = (shape.hidden,), "float32"
        out = shape.out if shape.student is None else shape.student[1]
        return expected | {"items/embedding": ((items, out), "float32")}

    @classmethod
    def _read_encoder(cls, arrays: Mapping[str, np.ndarray], options: Mapping[str, Any]) -> Any:
        return encoders.encoder_from_arrays(arrays)


def _rivals(dataset: Dataset) -> dict[str, Model]:
    """The closed forms of `jaxcold.Linear`; none where content stays on disk."""
    if any(isinstance(table, np.memmap) for table in dataset.content.tables.values()):
        return {}
    return {
        'jaxcold.Linear(method="whitened_knn")': closed_form.whitened_knn(dataset),
        "jaxcold.Linear(l2=1)": closed_form.ridge(dataset, l2=(1.0,))[1.0],
    }


def _default_tau(alpha: float, gradient: str) -> float:
    values = TAU.get(gradient, {})
    if values and alpha not in values:
        known = ", ".join(f"{a:g}" for a in values)
        raise ValueError(f"tau has defaults for alpha {known}; pass tau for alpha={alpha:g}")
    return values.get(alpha, 1.0)  # of an unknown gradient: the model names the known ones
